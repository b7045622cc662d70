//! Fills pools that are given by DNS names with the addresses those names have now.
//!
//! Looks nothing up itself: answers come from [`crate::resolve`].

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fieldgate_core::ir::{Config, DnsName, Endpoint, Endpoints, Pool, PoolKey};

use crate::resolve::Resolved;

/// The last answers, and the pools made of them.
#[derive(Default)]
pub struct DnsPools {
    answers: HashMap<Arc<str>, Vec<IpAddr>>,
    filled: HashMap<PoolKey, Filled>,
}

struct Filled {
    from: Arc<Pool>,
    with: Arc<Pool>,
}

impl DnsPools {
    /// Takes an answer in. One without addresses says that the name does not resolve, and replaces none that has some:
    /// a name whose interval was changed is watched anew, perhaps while its server is down.
    pub fn answer(&mut self, resolved: Resolved) {
        let addresses = self.answers.entry(resolved.host).or_default();
        if !resolved.addresses.is_empty() {
            *addresses = resolved.addresses;
        }
    }

    /// Names of the configuration that nothing is known of yet, not even that they do not resolve.
    pub fn unanswered(&self, config: &Config) -> bool {
        names(config).any(|name| !self.answers.contains_key(&name.host))
    }

    /// The configuration with every DNS pool made a static one. A pool whose addresses are the same as before is the
    /// same object as before, so that nothing downstream takes it for changed.
    pub fn fill(&mut self, config: &Config) -> Config {
        let mut out = config.clone();
        let mut seen = HashSet::new();
        for (key, pool) in &config.pools {
            let Endpoints::Dns { fixed, names } = &pool.endpoints else { continue };
            seen.insert(key.clone());
            let endpoints = self.endpoints(fixed, names);
            out.pools.insert(key.clone(), self.filled(key, pool, endpoints));
        }
        self.filled.retain(|key, _| seen.contains(key));
        let used: HashSet<&Arc<str>> = names(config).map(|name| &name.host).collect();
        self.answers.retain(|host, _| used.contains(host));
        out
    }

    fn filled(&mut self, key: &PoolKey, pool: &Arc<Pool>, endpoints: Vec<Endpoint>) -> Arc<Pool> {
        let endpoints = Endpoints::Static(endpoints);
        if let Some(before) = self.filled.get(key)
            && Arc::ptr_eq(&before.from, pool)
            && before.with.endpoints == endpoints
        {
            return Arc::clone(&before.with);
        }
        let with = Arc::new(Pool { endpoints, ..Pool::clone(pool) });
        self.filled.insert(key.clone(), Filled { from: Arc::clone(pool), with: Arc::clone(&with) });
        with
    }

    fn endpoints(&self, fixed: &[Endpoint], names: &[DnsName]) -> Vec<Endpoint> {
        let mut endpoints = fixed.to_vec();
        for name in names {
            for ip in self.answers.get(&name.host).into_iter().flatten() {
                let address = SocketAddr::new(*ip, name.endpoint.address.port());
                // Two names of one machine are one endpoint; the first one's weight counts.
                if !endpoints.iter().any(|endpoint| endpoint.address == address) {
                    endpoints.push(Endpoint { address, ..name.endpoint.clone() });
                }
            }
        }
        endpoints
    }
}

/// All names of a configuration.
pub fn names(config: &Config) -> impl Iterator<Item = &DnsName> {
    config.pools.values().flat_map(|pool| match &pool.endpoints {
        Endpoints::Dns { names, .. } => names.as_slice(),
        Endpoints::Static(_) => &[],
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fieldgate_core::ir::ObjectKey;

    use super::*;

    fn config(hosts: &[&str]) -> Config {
        let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "vms".into() };
        let key = PoolKey { object, port: 0 };
        let name = |host: &&str| DnsName {
            host: (*host).into(),
            endpoint: Endpoint { weight: 2, ..Endpoint::new(([0, 0, 0, 0], 8080).into()) },
            refresh: Duration::from_secs(5),
        };
        let names = hosts.iter().map(name).collect();
        let pool = Pool::of(key.clone(), Endpoints::Dns { fixed: Vec::new(), names });
        Config { pools: [(key, Arc::new(pool))].into_iter().collect(), ..Config::default() }
    }

    fn answer(dns: &mut DnsPools, host: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        dns.answer(Resolved { host: host.into(), addresses });
    }

    fn addresses(config: &Config) -> Vec<String> {
        let Endpoints::Static(endpoints) = &config.pools.values().next().unwrap().endpoints else {
            panic!("a DNS pool was left as it was")
        };
        endpoints.iter().map(|endpoint| format!("{}*{}", endpoint.address, endpoint.weight)).collect()
    }

    #[test]
    fn a_pool_has_the_addresses_of_all_its_names_each_once() {
        let config = config(&["a.example", "b.example"]);
        let mut dns = DnsPools::default();
        assert!(dns.unanswered(&config));
        assert!(addresses(&dns.fill(&config)).is_empty());
        answer(&mut dns, "a.example", &["10.0.0.1", "10.0.0.2"]);
        assert!(dns.unanswered(&config));
        answer(&mut dns, "b.example", &["10.0.0.2", "2001:db8::1"]);
        assert!(!dns.unanswered(&config));
        assert_eq!(
            addresses(&dns.fill(&config)),
            ["10.0.0.1:8080*2", "10.0.0.2:8080*2", "[2001:db8::1]:8080*2"]
        );
    }

    #[test]
    fn an_equal_answer_gives_the_same_object() {
        let config = config(&["a.example"]);
        let mut dns = DnsPools::default();
        answer(&mut dns, "a.example", &["10.0.0.1"]);
        let first = dns.fill(&config);
        answer(&mut dns, "a.example", &["10.0.0.1"]);
        let second = dns.fill(&config);
        assert!(Arc::ptr_eq(first.pools.values().next().unwrap(), second.pools.values().next().unwrap()));
    }

    #[test]
    fn a_name_that_stops_resolving_keeps_its_addresses() {
        let config = config(&["a.example"]);
        let mut dns = DnsPools::default();
        answer(&mut dns, "a.example", &["10.0.0.1"]);
        answer(&mut dns, "a.example", &[]);
        assert_eq!(addresses(&dns.fill(&config)), ["10.0.0.1:8080*2"]);
    }

    #[test]
    fn a_name_that_is_no_longer_used_is_forgotten() {
        let mut dns = DnsPools::default();
        answer(&mut dns, "a.example", &["10.0.0.1"]);
        dns.fill(&config(&["b.example"]));
        assert!(dns.unanswered(&config(&["a.example"])));
    }
}
