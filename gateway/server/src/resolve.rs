//! Looks up the names of DNS pools, again and again, and reports each answer that differs from the last.
//!
//! Runs on the control runtime. It knows names and addresses only: what a new answer means for a pool is decided in
//! [`crate::control`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_core::ir::DnsName;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverOpts};
use tokio::task::AbortHandle;

/// A TTL below this is stretched: a name with TTL 0 must not turn into a query loop.
pub const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// An answer that differs from the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The name that was looked up.
    pub host: Arc<str>,
    /// Its addresses, sorted. Empty only in the first report of a name that does not resolve: later failures leave the
    /// last addresses in use and are not reported.
    pub addresses: Vec<IpAddr>,
}

/// The names being watched.
///
/// IPv4 addresses are used where a name has any, else IPv6 ones: a VM's name commonly has both, and commonly listens on
/// the first only (Istio's default is the same).
pub struct Resolver {
    lookup: Option<TokioResolver>,
    report: Arc<dyn Fn(Resolved) + Send + Sync>,
    shortest: Duration,
    watched: HashMap<Arc<str>, Watched>,
}

struct Watched {
    refresh: Duration,
    task: AbortHandle,
}

impl Resolver {
    /// Uses the system's `resolv.conf` and `hosts`. Without a usable `resolv.conf` only `localhost` and addresses resolve.
    pub fn system(report: impl Fn(Resolved) + Send + Sync + 'static) -> Self {
        let lookup = TokioResolver::builder_tokio().and_then(|mut builder| {
            configure(builder.options_mut());
            builder.build()
        });
        if let Err(error) = &lookup {
            tracing::warn!(%error, "the system's DNS settings are unusable; only localhost and IP addresses will resolve");
        }
        Self::new(lookup.ok(), SHORTEST_REFRESH, report)
    }

    fn new(
        lookup: Option<TokioResolver>,
        shortest: Duration,
        report: impl Fn(Resolved) + Send + Sync + 'static,
    ) -> Self {
        Self { lookup, report: Arc::new(report), shortest, watched: HashMap::new() }
    }

    /// Watches exactly these names from now on. A name that stays watched is not looked up anew; one that several pools
    /// share is looked up once, at the shortest of their intervals.
    pub fn reconcile<'a>(&mut self, names: impl IntoIterator<Item = &'a DnsName>) {
        let mut wanted: HashMap<Arc<str>, Duration> = HashMap::new();
        for name in names {
            let refresh = wanted.entry(Arc::clone(&name.host)).or_insert(name.refresh);
            *refresh = name.refresh.min(*refresh);
        }
        self.watched.retain(|host, watched| {
            let keep = wanted.get(host) == Some(&watched.refresh);
            if !keep {
                watched.task.abort();
            }
            keep
        });
        for (host, refresh) in wanted {
            if !self.watched.contains_key(&host) {
                let task = self.watch(Arc::clone(&host), refresh);
                self.watched.insert(host, Watched { refresh, task });
            }
        }
    }

    fn watch(&self, host: Arc<str>, refresh: Duration) -> AbortHandle {
        let (lookup, report) = (self.lookup.clone(), Arc::clone(&self.report));
        let watch = Watch {
            host,
            lookup,
            shortest: self.shortest,
            longest: refresh.max(self.shortest),
            last: Vec::new(),
        };
        tokio::spawn(watch.run(report)).abort_handle()
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for watched in self.watched.values() {
            watched.task.abort();
        }
    }
}

fn configure(options: &mut ResolverOpts) {
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    // This module decides when to ask again; a cache would answer in the server's place.
    options.cache_size = 0;
}

struct Watch {
    host: Arc<str>,
    lookup: Option<TokioResolver>,
    shortest: Duration,
    longest: Duration,
    last: Vec<IpAddr>,
}

impl Watch {
    async fn run(mut self, report: Arc<dyn Fn(Resolved) + Send + Sync>) {
        if let Some(address) = fixed(&self.host) {
            report(Resolved { host: self.host, addresses: vec![address] });
            return;
        }
        let mut failures = 0_u32;
        loop {
            let pause = match self.ask().await {
                Ok((addresses, ttl)) => {
                    if failures > 0 {
                        tracing::info!(host = %self.host, failures, "the name resolves again");
                    }
                    failures = 0;
                    if addresses != self.last {
                        tracing::info!(host = %self.host, ?addresses, "the name resolves to new addresses");
                        self.last.clone_from(&addresses);
                        report(Resolved { host: Arc::clone(&self.host), addresses });
                    }
                    ttl.clamp(self.shortest, self.longest)
                }
                Err(error) => {
                    if failures == 0 && self.last.is_empty() {
                        report(Resolved { host: Arc::clone(&self.host), addresses: Vec::new() });
                    }
                    if failures == 0 {
                        let kept = self.last.len();
                        tracing::warn!(host = %self.host, %error, kept, "the name does not resolve; its last addresses stay in use");
                    }
                    failures = failures.saturating_add(1);
                    (self.shortest * 2_u32.saturating_pow(failures.min(6) - 1)).min(self.longest)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(&self) -> Result<(Vec<IpAddr>, Duration), String> {
        let lookup = self.lookup.as_ref().ok_or("the system's DNS settings are unusable")?;
        let answer = lookup.lookup_ip(&*self.host).await.map_err(|error| error.to_string())?;
        let mut addresses: Vec<IpAddr> = answer.iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err("the answer holds no address".to_owned());
        }
        Ok((addresses, answer.valid_until().saturating_duration_since(Instant::now())))
    }
}

/// What needs no question. RFC 6761 section 6.3: `localhost` is answered without asking a server.
fn fixed(host: &str) -> Option<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.eq_ignore_ascii_case("localhost") {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    host.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Mutex;

    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use tokio::net::UdpSocket;
    use tokio::sync::mpsc;

    use super::*;

    const TICK: Duration = Duration::from_millis(5);

    #[derive(Clone)]
    enum Answer {
        Addresses(Vec<Ipv4Addr>),
        Failure,
    }

    /// A name server that gives every A question the current answer with TTL 0, and reports each question.
    async fn name_server(answer: Arc<Mutex<Answer>>, asked: mpsc::UnboundedSender<()>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((len, peer)) = socket.recv_from(&mut packet).await {
                let reply = reply(&packet[..len], &answer.lock().unwrap().clone());
                socket.send_to(&reply, peer).await.unwrap();
                asked.send(()).ok();
            }
        });
        address
    }

    /// RFC 1035 section 4: header, the question again, and A records that point back at its name.
    fn reply(query: &[u8], answer: &Answer) -> Vec<u8> {
        let name_end = 12 + query[12..].iter().position(|&b| b == 0).unwrap() + 1;
        let question = &query[12..name_end + 4];
        let is_a = question[question.len() - 4..question.len() - 2] == [0, 1];
        let (code, records) = match answer {
            Answer::Addresses(addresses) if is_a => (0_u8, addresses.clone()),
            Answer::Addresses(_) => (0, vec![]),
            Answer::Failure => (2, vec![]),
        };
        let mut out = query[..2].to_vec();
        out.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        out.extend(question);
        for address in records {
            out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            out.extend(address.octets());
        }
        out
    }

    fn resolver(server: SocketAddr) -> (Resolver, mpsc::UnboundedReceiver<Resolved>) {
        let mut connection = ConnectionConfig::udp();
        connection.port = server.port();
        let servers = vec![NameServerConfig::new(server.ip(), true, vec![connection])];
        let config = ResolverConfig::from_parts(None, vec![], servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        configure(builder.options_mut());
        let (sender, receiver) = mpsc::unbounded_channel();
        let resolver =
            Resolver::new(Some(builder.build().unwrap()), TICK, move |answer| drop(sender.send(answer)));
        (resolver, receiver)
    }

    fn name(host: &str) -> DnsName {
        DnsName {
            host: host.into(),
            endpoint: fieldgate_core::ir::Endpoint::new(([0, 0, 0, 0], 80).into()),
            refresh: TICK,
        }
    }

    #[tokio::test]
    async fn an_answer_is_reported_when_it_changes_and_kept_when_the_server_fails() {
        let answer = Arc::new(Mutex::new(Answer::Addresses(vec![
            Ipv4Addr::new(10, 0, 0, 2),
            Ipv4Addr::new(10, 0, 0, 1),
        ])));
        let (asked, mut questions) = mpsc::unbounded_channel();
        let (mut resolver, mut answers) = resolver(name_server(Arc::clone(&answer), asked).await);
        resolver.reconcile(&[name("vm.example."), name("vm.example.")]);

        let first = answers.recv().await.unwrap();
        assert_eq!(first.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "10.0.0.2".parse().unwrap()]);

        *answer.lock().unwrap() = Answer::Failure;
        while questions.try_recv().is_ok() {}
        questions.recv().await.unwrap();
        questions.recv().await.unwrap();
        assert!(answers.try_recv().is_err(), "a failure reports nothing");

        *answer.lock().unwrap() = Answer::Addresses(vec![Ipv4Addr::new(10, 0, 0, 3)]);
        assert_eq!(answers.recv().await.unwrap().addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
    }

    #[tokio::test]
    async fn a_name_that_never_resolved_is_reported_without_addresses_once() {
        let answer = Arc::new(Mutex::new(Answer::Failure));
        let (asked, _questions) = mpsc::unbounded_channel();
        let (mut resolver, mut answers) = resolver(name_server(Arc::clone(&answer), asked).await);
        resolver.reconcile(&[name("vm.example.")]);
        assert!(answers.recv().await.unwrap().addresses.is_empty());
        *answer.lock().unwrap() = Answer::Addresses(vec![Ipv4Addr::LOCALHOST]);
        assert_eq!(answers.recv().await.unwrap().addresses, [IpAddr::from(Ipv4Addr::LOCALHOST)]);
    }

    #[tokio::test]
    async fn what_needs_no_question_is_answered_without_a_server() {
        let (sender, mut answers) = mpsc::unbounded_channel();
        let mut resolver = Resolver::new(None, TICK, move |answer| drop(sender.send(answer)));
        for (host, address) in [
            ("localhost", "127.0.0.1"),
            ("LOCALHOST.", "127.0.0.1"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            resolver.reconcile(&[name(host)]);
            let expected = Resolved { host: host.into(), addresses: vec![address.parse().unwrap()] };
            assert_eq!(answers.recv().await, Some(expected));
        }
    }

    #[tokio::test]
    async fn a_name_that_stays_is_not_watched_anew_and_one_that_goes_is_left() {
        let (sender, _answers) = mpsc::unbounded_channel();
        let mut resolver = Resolver::new(None, TICK, move |answer| drop(sender.send(answer)));
        resolver.reconcile(&[name("a.example"), name("b.example")]);
        let task = resolver.watched["a.example"].task.id();
        resolver.reconcile(&[name("a.example")]);
        assert_eq!(resolver.watched["a.example"].task.id(), task);
        assert!(!resolver.watched.contains_key("b.example"));
    }
}
