//! Requests that policies have an opinion about: made of the values in them, values close by, and others.

use std::net::{IpAddr, SocketAddr};

use fieldgate_core::ir::{ConditionKey, ConditionValue, ConnectionFacts, Policy, StringMatch};
use fieldgate_core::{Method, RequestHead};
use ipnet::IpNet;

/// A request with its facts.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: RequestHead,
    pub peer: IpAddr,
    pub client: IpAddr,
    pub local: SocketAddr,
    pub server_name: Option<String>,
}

impl Request {
    pub fn facts(&self) -> ConnectionFacts<'_> {
        ConnectionFacts {
            peer: self.peer,
            client: self.client,
            local: self.local,
            sni: self.server_name.as_deref(),
            identity: None,
        }
    }
}

/// Values by what they are of.
#[derive(Default)]
struct Values {
    hosts: Vec<String>,
    methods: Vec<String>,
    paths: Vec<String>,
    ports: Vec<u16>,
    peers: Vec<IpAddr>,
    clients: Vec<IpAddr>,
    locals: Vec<IpAddr>,
    server_names: Vec<String>,
    headers: Vec<String>,
    header_names: Vec<String>,
}

/// Some requests, always the same ones for the same policies.
pub fn about(policies: &[std::sync::Arc<Policy>]) -> Vec<Request> {
    let values = Values::of(policies);
    let mut random = Random(0x5eed);
    (0..600).map(|_| values.request(&mut random)).collect()
}

impl Values {
    fn of(policies: &[std::sync::Arc<Policy>]) -> Self {
        let texts = |list: &str| list.split(' ').map(str::to_owned).collect();
        let ips = || vec!["172.31.0.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        let mut values = Self {
            hosts: texts("other.test other.test:80"),
            methods: texts("GET POST"),
            paths: texts("/ /other"),
            ports: vec![1],
            peers: ips(),
            clients: ips(),
            locals: ips(),
            server_names: texts("other.test "),
            headers: texts("other "),
            header_names: Vec::new(),
        };
        let rules = || policies.iter().flat_map(|p| &p.rules);
        for source in rules().flat_map(|r| &r.from) {
            source.ip_blocks.iter().chain(&source.not_ip_blocks).for_each(|n| around(n, &mut values.peers));
            source
                .remote_ip_blocks
                .iter()
                .chain(&source.not_remote_ip_blocks)
                .for_each(|n| around(n, &mut values.clients));
        }
        for to in rules().flat_map(|r| &r.to) {
            to.hosts.iter().chain(&to.not_hosts).for_each(|p| like(p, &mut values.hosts));
            to.methods.iter().chain(&to.not_methods).for_each(|p| like(p, &mut values.methods));
            to.paths.iter().chain(&to.not_paths).for_each(|p| like(p, &mut values.paths));
            values.ports.extend(to.ports.iter().chain(&to.not_ports));
        }
        for when in rules().flat_map(|r| &r.when) {
            if let ConditionKey::RequestHeader(name) = &when.key {
                values.header_names.push(name.to_string());
            }
            for value in when.values.iter().chain(&when.not_values) {
                match (value, &when.key) {
                    (ConditionValue::String(p), ConditionKey::Sni) => like(p, &mut values.server_names),
                    (ConditionValue::String(p), _) => like(p, &mut values.headers),
                    (ConditionValue::Ip(net), ConditionKey::SourceIp) => around(net, &mut values.peers),
                    (ConditionValue::Ip(net), ConditionKey::RemoteIp) => around(net, &mut values.clients),
                    (ConditionValue::Ip(net), _) => around(net, &mut values.locals),
                    (ConditionValue::Port(port), _) => values.ports.push(*port),
                }
            }
        }
        values
    }

    fn request(&self, random: &mut Random) -> Request {
        let mut head = RequestHead {
            method: Method::from_bytes(random.of(&self.methods).as_bytes()),
            authority: random.of(&self.hosts).to_ascii_lowercase(),
            ..RequestHead::default()
        };
        head.set_target(&format!("{}{}", random.of(&self.paths), random.of(&["", "?query=/exact"])));
        for name in &self.header_names {
            for _ in 0..random.next() % 3 {
                head.headers.push(name.as_bytes(), random.of(&self.headers).as_bytes());
            }
        }
        let server_name = random.of(&self.server_names).clone();
        Request {
            head,
            peer: *random.of(&self.peers),
            client: *random.of(&self.clients),
            local: SocketAddr::new(*random.of(&self.locals), *random.of(&self.ports)),
            server_name: Some(server_name).filter(|n| !n.is_empty()),
        }
    }
}

/// Texts that a pattern takes, and some that it just does not.
fn like(pattern: &StringMatch, values: &mut Vec<String>) {
    match pattern {
        StringMatch::Exact(t) => {
            values.extend([t.to_string(), format!("{t}x"), format!("x{t}"), format!("{t}:80")]);
        }
        StringMatch::Prefix(t) => values.extend([t.to_string(), format!("{t}x"), format!("x{t}")]),
        StringMatch::Suffix(t) => values.extend([t.to_string(), format!("x{t}"), format!("{t}x")]),
        StringMatch::Present => {}
        StringMatch::Template(t) => {
            for with in ["a", "a=b", "", "a*b", "a/b", "a b"] {
                values.push(t.replace("{**}", with).replace("{*}", with));
            }
        }
    }
}

/// The ends of a block and the address behind it.
fn around(net: &IpNet, values: &mut Vec<IpAddr>) {
    values.extend([net.network(), net.broadcast()]);
    if let IpAddr::V4(last) = net.broadcast() {
        values.push(IpAddr::V4(u32::from(last).wrapping_add(1).into()));
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[(self.next() % values.len() as u64) as usize]
    }
}
