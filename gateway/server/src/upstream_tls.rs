//! TLS towards upstreams, made ready on the control side: one configuration for each way in which endpoints are connected
//! to, kept over reloads as long as what it is made of stays the same, so that sessions resume.
//!
//! What cannot be made ready is kept as its error: such an endpoint is not connected to, and never without TLS. Nothing
//! here connects to anything.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use fieldgate_config::diagnostic::Severity;
use fieldgate_core::Snapshot;
use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::{EndpointTls, PoolTls, Protocol, ServerTrust, StringMatch};
use fieldgate_wire::tls::{Certificate, ClientTls, NameCheck, PeerName, Verification, server_name};
use rustc_hash::FxHashMap;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

/// TLS of one pool's endpoints, kept with the compiled pool.
#[derive(Debug, Default)]
pub struct PoolClients {
    pool: Option<Arc<Client>>,
    /// Of endpoints that are not as the pool says; `None` is plain.
    own: FxHashMap<SocketAddr, Option<Arc<Client>>>,
}

/// One way to connect by TLS.
#[derive(Debug)]
pub struct Client {
    ready: Result<Ready, String>,
    /// What is asked for; nothing: the request's host.
    sni: Option<ServerName<'static>>,
}

#[derive(Debug)]
struct Ready {
    /// Offers what the pool's protocol says.
    any: Arc<ClientConfig>,
    /// Offers no HTTP/2.
    http1: Arc<ClientConfig>,
}

/// What an endpoint chose to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Nothing, or a name that says nothing of it.
    Nothing,
}

impl PoolClients {
    /// How an endpoint is connected to; nothing is without TLS.
    pub fn of(&self, address: SocketAddr) -> Option<&Arc<Client>> {
        if self.own.is_empty() {
            return self.pool.as_ref();
        }
        self.own.get(&address).unwrap_or(&self.pool).as_ref()
    }

    /// Whether an endpoint of this pool is connected to by TLS.
    pub fn is_for(pool: &CompiledPool, address: SocketAddr) -> bool {
        pool.transport.get::<Self>().is_some_and(|clients| clients.of(address).is_some())
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.pool.iter().chain(self.own.values().flatten())
    }
}

impl Client {
    fn new(tls: &PoolTls, protocol: Protocol) -> (Self, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut found = |severity, message: String| findings.push(Finding { severity, message });
        let sni = tls.sni.as_deref().map(server_name).transpose().map_err(|error| error.to_string());
        let ready = sni.clone().and_then(|_| configurations(tls, protocol, &mut found));
        if let Err(why) = &ready {
            found(Severity::Error, format!("{why}; no connection is made"));
        }
        (Self { ready, sni: sni.ok().flatten() }, findings)
    }

    /// Whether the request's host is asked for.
    pub fn asks_for_host(&self) -> bool {
        self.sni.is_none()
    }

    /// The configuration, or why there is none. `http1`: one that does not offer HTTP/2.
    pub fn configuration(&self, http1: bool) -> Result<&Arc<ClientConfig>, &str> {
        let ready = self.ready.as_ref().map_err(String::as_str)?;
        Ok(if http1 { &ready.http1 } else { &ready.any })
    }

    /// The configuration for a check that speaks one of these protocols; nothing: none that matters.
    pub fn configuration_for_check(&self, speaks: Option<&[&[u8]]>) -> Result<Arc<ClientConfig>, String> {
        let any = &self.ready.as_ref().map_err(Clone::clone)?.any;
        let Some(speaks) = speaks else { return Ok(Arc::clone(any)) };
        let fits = |name: &[u8]| match Self::chosen(Some(name)) {
            Chosen::Http1 => speaks.contains(&b"http/1.1".as_slice()),
            Chosen::Http2 => speaks.contains(&b"h2".as_slice()),
            Chosen::Nothing => true,
        };
        let mut config = ClientConfig::clone(any);
        config.alpn_protocols.retain(|name| fits(name));
        if config.alpn_protocols.is_empty() {
            config.alpn_protocols = speaks.iter().map(|name| name.to_vec()).collect();
        }
        Ok(Arc::new(config))
    }

    /// The name to ask for on behalf of a request for this host. Where that is no name at all, the endpoint's address is
    /// what the certificate has to be for.
    pub fn server_name(&self, host: Option<&str>, address: IpAddr) -> ServerName<'static> {
        let of_host = || server_name(host?.trim_matches(['[', ']'])).ok();
        self.sni.clone().or_else(of_host).unwrap_or_else(|| ServerName::from(address.to_canonical()))
    }

    /// What a name that was agreed on by ALPN stands for.
    pub fn chosen(alpn: Option<&[u8]>) -> Chosen {
        match alpn {
            Some(name) if is_http2(name) => Chosen::Http2,
            Some(b"http/1.1" | b"http/1.0" | b"istio-http/1.1" | b"istio-http/1.0") => Chosen::Http1,
            _ => Chosen::Nothing,
        }
    }
}

fn is_http2(name: &[u8]) -> bool {
    matches!(name, b"h2" | b"istio-h2")
}

/// Whether a pool of this protocol can go on with it.
fn is_spoken(name: &str, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Http1 => !is_http2(name.as_bytes()),
        Protocol::Http2 => Client::chosen(Some(name.as_bytes())) != Chosen::Http1,
        Protocol::Auto => true,
    }
}

fn configurations(
    tls: &PoolTls,
    protocol: Protocol,
    found: &mut impl FnMut(Severity, String),
) -> Result<Ready, String> {
    let offers: Vec<&str> = match (&tls.alpn[..], protocol) {
        ([], Protocol::Http1) => vec!["http/1.1"],
        ([], Protocol::Http2) => vec!["h2"],
        ([], Protocol::Auto) => vec!["h2", "http/1.1"],
        (given, _) => given.iter().map(|name| &**name).filter(|name| is_spoken(name, protocol)).collect(),
    };
    if offers.is_empty() {
        return Err("of the protocols to be offered (ALPN) the pool speaks none".to_owned());
    }
    let identity = tls.identity.as_ref().map(|given| {
        let read = Certificate::from_pem(&given.chain_pem, &given.key_pem);
        read.map_err(|error| format!("the client certificate of {} cannot be used: {error}", given.origin))
    });
    let identity = identity.transpose()?.map(Arc::new);
    for warning in identity.iter().flat_map(|identity| identity.warnings(SystemTime::now())) {
        // Without a name it is still good for a client.
        if !matches!(warning, fieldgate_wire::tls::CertificateWarning::NoNames) {
            found(Severity::Warning, format!("the client certificate: {warning}"));
        }
    }
    let mut bundle = Vec::new();
    let (verification, revoked) = match &tls.trust {
        ServerTrust::Anybody => (Verification::None, &[][..]),
        ServerTrust::System => (Verification::Store(system_roots()?), &[][..]),
        ServerTrust::Roots { roots, .. } if roots.is_empty() => {
            return Err("there are no authorities to believe".to_owned());
        }
        ServerTrust::Roots { roots, revoked } => {
            for root in roots {
                bundle.extend_from_slice(&root.pem);
                bundle.push(b'\n');
            }
            (Verification::Roots(&bundle), &revoked[..])
        }
    };
    let mut setup =
        ClientTls::new(verification).revoked(revoked.iter().map(|list| &list.pem[..])).alpn(&offers);
    if let Some(identity) = identity {
        setup = setup.identity(identity);
    }
    if !tls.names.is_empty() {
        let names = tls.names.clone();
        setup = setup.names(NameCheck::new(move |name| names.iter().any(|wanted| fits(wanted, name))));
    }
    let any = setup.build().map_err(|error| error.to_string())?;
    Ok(Ready { http1: without_http2(&any), any })
}

/// The same, with the same sessions.
fn without_http2(any: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    if !any.alpn_protocols.iter().any(|name| is_http2(name)) {
        return Arc::clone(any);
    }
    let mut http1 = ClientConfig::clone(any);
    http1.alpn_protocols.retain(|name| !is_http2(name));
    Arc::new(http1)
}

fn fits(wanted: &StringMatch, name: PeerName<'_>) -> bool {
    match wanted {
        StringMatch::Exact(text) => name.is(text),
        StringMatch::Prefix(start) => name.to_string().starts_with(&**start),
        StringMatch::Suffix(end) => name.to_string().ends_with(&**end),
        StringMatch::Present => true,
        // Of paths.
        StringMatch::Template(_) => false,
    }
}

/// The authorities of the operating system, read once.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: LazyLock<Result<Arc<RootCertStore>, String>> = LazyLock::new(|| {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // A system may keep some that are of no use to anybody.
        roots.add_parsable_certificates(found.certs);
        if !roots.is_empty() {
            return Ok(Arc::new(roots));
        }
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        Err(format!(
            "the system has no certificate authorities{why}: install ca-certificates, or set SSL_CERT_FILE"
        ))
    });
    ROOTS.clone()
}

/// Something to say about a configuration.
#[derive(Debug)]
struct Finding {
    severity: Severity,
    message: String,
}

/// All configurations that are in use.
#[derive(Debug, Default)]
pub struct Clients {
    built: FxHashMap<Kind, Vec<Built>>,
}

/// Finds a configuration among others, of which few are alike.
type Kind = (Arc<str>, Option<Arc<str>>, Protocol);

#[derive(Debug)]
struct Built {
    from: Arc<PoolTls>,
    client: Arc<Client>,
    findings: Vec<Finding>,
}

impl Clients {
    /// Makes ready what pools of the snapshot need, and forgets what none needs any more. To be called before the
    /// snapshot is published.
    pub fn reconcile(&mut self, snapshot: &Snapshot) {
        let mut used = HashSet::new();
        for pool in snapshot.pools() {
            if !pool.transport.is_set() {
                let clients = self.of_pool(pool);
                pool.transport.set(clients.map(|clients| Arc::new(clients) as _));
            }
            let clients = pool.transport.get::<PoolClients>();
            used.extend(clients.into_iter().flat_map(PoolClients::all).map(Arc::as_ptr));
        }
        self.built.retain(|_, alike| {
            alike.retain(|built| used.contains(&Arc::as_ptr(&built.client)));
            !alike.is_empty()
        });
    }

    /// What is wrong, for people.
    pub fn findings(&self) -> impl Iterator<Item = (Severity, String)> {
        self.built.values().flatten().flat_map(|built| {
            built.findings.iter().map(|Finding { severity, message }| {
                let word = if *severity == Severity::Error { "error" } else { "warning" };
                (*severity, format!("{word}: {}: TLS to endpoints: {message}", built.from.origin))
            })
        })
    }

    fn of_pool(&mut self, pool: &CompiledPool) -> Option<PoolClients> {
        let protocol = pool.ir.protocol;
        let mut clients = PoolClients {
            pool: pool.ir.tls.as_ref().map(|tls| self.client(tls, protocol)),
            own: FxHashMap::default(),
        };
        for endpoint in &pool.endpoints {
            match &endpoint.ir.tls {
                EndpointTls::AsPool => {}
                EndpointTls::Plain if clients.pool.is_none() => {}
                EndpointTls::Plain => drop(clients.own.insert(endpoint.address(), None)),
                EndpointTls::Own(tls) => {
                    let client = self.client(tls, protocol);
                    clients.own.insert(endpoint.address(), Some(client));
                }
            }
        }
        (clients.pool.is_some() || !clients.own.is_empty()).then_some(clients)
    }

    fn client(&mut self, tls: &Arc<PoolTls>, protocol: Protocol) -> Arc<Client> {
        let alike = self.built.entry((tls.origin.clone(), tls.sni.clone(), protocol)).or_default();
        if let Some(known) = alike.iter().find(|built| Arc::ptr_eq(&built.from, tls) || built.from == *tls) {
            return Arc::clone(&known.client);
        }
        let (client, findings) = Client::new(tls, protocol);
        let client = Arc::new(client);
        alike.push(Built { from: Arc::clone(tls), client: Arc::clone(&client), findings });
        client
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use fieldgate_core::ir::{Config, Endpoint, Endpoints, ObjectKey, PemBundle, Pool, PoolKey, Touched};

    use super::*;

    /// TLS by a new authority, or by nobody.
    pub fn tls(sni: Option<&str>, believing: bool) -> Arc<PoolTls> {
        let made = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
        let root =
            PemBundle { origin: "ConfigMap default/ca".into(), pem: made.cert.pem().into_bytes().into() };
        let roots = if believing { vec![Arc::new(root)] } else { Vec::new() };
        Arc::new(PoolTls {
            origin: "Pool default/p".into(),
            trust: ServerTrust::Roots { roots, revoked: Vec::new() },
            sni: sni.map(Into::into),
            names: Vec::new(),
            identity: None,
            alpn: Vec::new(),
        })
    }

    /// One pool of these endpoints, after the snapshot before.
    pub fn snapshot(
        before: Option<&Snapshot>,
        tls: Option<&Arc<PoolTls>>,
        endpoints: &[(u8, EndpointTls)],
    ) -> Snapshot {
        let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "p".into() };
        let key = PoolKey { object, port: 0 };
        let endpoint =
            |(last, tls): &(u8, EndpointTls)| Endpoint { tls: tls.clone(), ..Endpoint::new(address(*last)) };
        let endpoints = Endpoints::Static(endpoints.iter().map(endpoint).collect());
        let pool = Pool { tls: tls.cloned(), ..Pool::of(key.clone(), endpoints) };
        let config = Config { pools: [(key, Arc::new(pool))].into_iter().collect(), ..Config::default() };
        Snapshot::compile(before, config, &Touched::All, 1)
    }

    pub fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 443).into()
    }

    fn client_of(snapshot: &Snapshot, last: u8) -> Option<Arc<Client>> {
        let pool = snapshot.pools().next().unwrap();
        pool.transport.get::<PoolClients>()?.of(address(last)).cloned()
    }

    #[test]
    fn what_stays_the_same_keeps_its_sessions_and_what_changes_has_none() {
        let (mut clients, first) = (Clients::default(), tls(Some("a.example"), true));
        let one = snapshot(None, Some(&first), &[(1, EndpointTls::AsPool)]);
        clients.reconcile(&one);
        let client = client_of(&one, 1).unwrap();
        // Equal, though not the same in memory, and with another endpoint.
        let again = Arc::new(PoolTls::clone(&first));
        let two = snapshot(Some(&one), Some(&again), &[(1, EndpointTls::AsPool), (2, EndpointTls::AsPool)]);
        clients.reconcile(&two);
        assert!(Arc::ptr_eq(&client, &client_of(&two, 1).unwrap()));
        assert!(Arc::ptr_eq(&client, &client_of(&two, 2).unwrap()));
        let other = snapshot(Some(&two), Some(&tls(Some("a.example"), true)), &[(1, EndpointTls::AsPool)]);
        clients.reconcile(&other);
        assert!(!Arc::ptr_eq(&client, &client_of(&other, 1).unwrap()));
        assert_eq!(clients.built.values().flatten().count(), 1, "what nobody uses is forgotten");
    }

    #[test]
    fn endpoints_have_their_own_and_what_cannot_be_had_is_closed_and_told() {
        let (pool, own) = (tls(Some("a.example"), false), tls(Some("b.example"), true));
        let endpoints = [(1, EndpointTls::AsPool), (2, EndpointTls::Plain), (3, EndpointTls::Own(own))];
        let (mut clients, now) = (Clients::default(), snapshot(None, Some(&pool), &endpoints));
        clients.reconcile(&now);
        let why = client_of(&now, 1).unwrap().configuration(false).unwrap_err().to_owned();
        assert_eq!(why, "there are no authorities to believe");
        assert!(client_of(&now, 2).is_none());
        assert!(client_of(&now, 3).unwrap().configuration(false).is_ok());
        let told: Vec<_> = clients.findings().collect();
        let expected = "error: Pool default/p: TLS to endpoints: there are no authorities to believe; no connection is made";
        assert_eq!(told, [(Severity::Error, expected.to_owned())]);
    }

    #[test]
    fn protocols_are_offered_as_the_pool_speaks() {
        let istio = ["istio-h2", "istio-http/1.1", "istio", "h2", "http/1.1"];
        let offered = |alpn: &[&str], protocol, http1| {
            let alpn = alpn.iter().map(|name| Arc::from(*name)).collect();
            let tls = PoolTls { alpn, ..PoolTls::clone(&tls(None, true)) };
            let client = Client::new(&tls, protocol).0;
            let config = client.configuration(http1).map_err(str::to_owned)?;
            let names = config.alpn_protocols.iter().map(|name| String::from_utf8_lossy(name).into_owned());
            Ok::<_, String>(names.collect::<Vec<_>>().join(" "))
        };
        for (alpn, protocol, http1, expected) in [
            (&[][..], Protocol::Http1, false, "http/1.1"),
            (&[], Protocol::Http2, false, "h2"),
            (&[], Protocol::Auto, false, "h2 http/1.1"),
            (&[], Protocol::Auto, true, "http/1.1"),
            (&istio, Protocol::Http1, false, "istio-http/1.1 istio http/1.1"),
            (&istio, Protocol::Http2, false, "istio-h2 istio h2"),
        ] {
            assert_eq!(offered(alpn, protocol, http1).unwrap(), expected);
        }
        assert!(offered(&["h2"], Protocol::Http1, false).unwrap_err().contains("ALPN"));
    }
}
