//! TLS per address: which certificates answer there, and what clients have to show. A certificate that cannot be used is a
//! problem of the listeners that name it, and of no other; what it said when it last could be used stays in use. Of what
//! clients are judged by nothing old stays in use: a listener that cannot judge takes nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fieldgate_config::diagnostic::Severity;
use fieldgate_core::Snapshot;
use fieldgate_core::ir::{self, Hostname, ListenerKey, ListenerTls};
use fieldgate_core::snapshot::AddressTable;
use fieldgate_wire::tls::{
    Certificate, ClientVerifier, DatedKind, Patterns, ServerTls, SniResolver, TicketKeys, TlsVersion,
};
use rustc_hash::FxHashMap;
use rustls::ServerConfig;

use super::clients::verifier;
use super::expiry::Expiry;
use crate::published::{ClientTerms, ServedTls};

/// A ticket is good for two to three of these.
const TICKET_PERIOD: Duration = Duration::from_hours(12);
/// Best first.
const PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];

/// What is served on an address, or why nothing can be.
pub type Served = Result<ServedTls, String>;

type Config = Result<Arc<ServerConfig>, String>;

/// The configurations of all addresses with TLS.
pub struct Configs {
    /// One set for the process, so that clients resume across reloads and on every address.
    tickets: Arc<TicketKeys>,
    built: BTreeMap<SocketAddr, Built>,
    /// The last usable certificate of each origin that is in use.
    good: BTreeMap<Arc<str>, Arc<Certificate>>,
}

struct Built {
    from: Vec<Input>,
    served: Served,
    findings: Vec<Finding>,
    expiries: Vec<(ListenerKey, Expiry)>,
}

/// What a listener brings to its address.
#[derive(Clone, PartialEq)]
struct Input {
    listener: ListenerKey,
    hostname: Option<Hostname>,
    tls: Arc<ListenerTls>,
    details: ir::ClientCertDetails,
}

/// Something wrong with a certificate.
struct Finding {
    listener: ListenerKey,
    severity: Severity,
    message: String,
    /// What was refused, if something was.
    refused: Option<Arc<str>>,
}

impl Default for Configs {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Configs {
    /// Goes on with the ticket keys that a process before exported, if they are of use.
    pub fn new(inherited: Option<&[u8]>) -> Self {
        let keys = inherited.and_then(|exported| TicketKeys::import(TICKET_PERIOD, exported));
        let tickets = keys.unwrap_or_else(|| TicketKeys::new(TICKET_PERIOD));
        Self { tickets, built: BTreeMap::new(), good: BTreeMap::new() }
    }

    /// The ticket keys, for the process that follows.
    pub fn export_tickets(&self) -> Vec<u8> {
        self.tickets.export()
    }

    /// Follows the snapshot; what did not change keeps its configuration, and with it its remembered sessions.
    pub fn reconcile(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.built);
        for table in snapshot.addresses().filter(|table| table.tls) {
            let from = inputs(table);
            let built = match before.remove(&table.address) {
                Some(built) if built.from == from => built,
                _ => self.build(from),
            };
            self.built.insert(table.address, built);
        }
        let inputs = self.built.values().flat_map(|built| &built.from);
        let origins: BTreeSet<_> =
            inputs.flat_map(|input| input.tls.certificates.iter().map(|used| &used.origin)).collect();
        self.good.retain(|origin, _| origins.contains(origin));
    }

    /// Certificates that are refused at present, by their origin.
    pub fn refused(&self) -> BTreeSet<Arc<str>> {
        let findings = self.built.values().flat_map(|built| &built.findings);
        findings.filter_map(|finding| finding.refused.clone()).collect()
    }

    /// For publication.
    pub fn by_address(&self) -> FxHashMap<SocketAddr, Served> {
        self.built.iter().map(|(address, built)| (*address, built.served.clone())).collect()
    }

    /// What is wrong at `now`, for people.
    pub fn findings(&self, now: SystemTime) -> impl Iterator<Item = (Severity, String)> {
        let soon = self.expiries_by_listener().filter_map(move |(listener, expiry)| {
            Some((Severity::Warning, format!("warning: listener {listener}: {}", expiry.warning(now)?)))
        });
        let findings = self.built.values().flat_map(|built| &built.findings).map(|finding| {
            let severity = if finding.severity == Severity::Error { "error" } else { "warning" };
            (finding.severity, format!("{severity}: listener {}: {}", finding.listener, finding.message))
        });
        findings.chain(soon)
    }

    /// What is in use and has its time, each once.
    pub fn expiries(&self) -> Vec<Expiry> {
        let all: BTreeSet<_> = self.expiries_by_listener().map(|(_, expiry)| expiry.clone()).collect();
        all.into_iter().collect()
    }

    fn expiries_by_listener(&self) -> impl Iterator<Item = &(ListenerKey, Expiry)> {
        self.built.values().flat_map(|built| &built.expiries)
    }

    /// What is wrong with a listener's certificates, if anything is.
    pub fn error(&self, listener: &ListenerKey) -> Option<&str> {
        let findings = self.built.values().flat_map(|built| &built.findings);
        let mut errors =
            findings.filter(|finding| finding.listener == *listener && finding.severity == Severity::Error);
        errors.next().map(|finding| finding.message.as_str())
    }

    fn build(&mut self, from: Vec<Input>) -> Built {
        let mut findings = Vec::new();
        let mut expiries = Vec::new();
        let mut entries = Vec::new();
        let mut unnamed = Vec::new();
        for input in &from {
            let certificates = self.certificates(input, &mut findings);
            expiries.extend(certificates.iter().map(|(origin, certificate)| {
                let (origin, subject) = (Arc::clone(origin), certificate.subject().to_owned());
                let expiry = Expiry { origin, kind: "certificate", subject, at: certificate.expires_at() };
                (input.listener.clone(), expiry)
            }));
            let certificates: Vec<_> = certificates.into_iter().map(|(_, certificate)| certificate).collect();
            if input.hostname.is_none() {
                unnamed.extend(certificates.iter().cloned());
            }
            entries.push((input.pattern(), certificates));
        }
        let served = if entries.iter().all(|(_, certificates)| certificates.is_empty()) {
            Err("no listener of this address has a usable certificate".to_owned())
        } else {
            // A client that names no host gets the listener for every host, if there is one, and nobody else's certificate.
            let strict = unnamed.is_empty();
            let resolver = Arc::new(SniResolver::new(entries, unnamed, strict));
            self.serve(&resolver, &from, &mut findings, &mut expiries)
        };
        Built { from, served, findings, expiries }
    }

    /// One configuration for all names where nobody is asked for a certificate; else one per set of rules.
    fn serve(
        &self,
        resolver: &Arc<SniResolver>,
        from: &[Input],
        findings: &mut Vec<Finding>,
        expiries: &mut Vec<(ListenerKey, Expiry)>,
    ) -> Served {
        if from.iter().all(|input| input.tls.clients.is_none()) {
            return self.configure(resolver, None, from).map(ServedTls::Same);
        }
        let mut known: Vec<(&Option<Arc<ir::ClientValidation>>, Config)> = Vec::new();
        let mut by_name = Patterns::default();
        for input in from {
            let clients = &input.tls.clients;
            let verifier = clients.as_deref().map(verifier).transpose();
            for dated in verifier.iter().flatten().flat_map(|verifier| verifier.dated()) {
                let kind = match dated.kind {
                    DatedKind::Authority => "authority",
                    DatedKind::RevocationList => "revocation_list",
                };
                let (origin, subject) = (Arc::from(&*dated.origin), dated.subject.to_string());
                expiries.push((input.listener.clone(), Expiry { origin, kind, subject, at: dated.until }));
            }
            let found = known.iter().find(|(rules, _)| *rules == clients).map(|(_, config)| config.clone());
            let config = found.unwrap_or_else(|| {
                let config = verifier.and_then(|verifier| self.configure(resolver, verifier.as_ref(), from));
                known.push((clients, config.clone()));
                config
            });
            if let Err(why) = &config {
                findings.push(Finding {
                    listener: input.listener.clone(),
                    severity: Severity::Error,
                    message: format!("clients cannot be judged, so none is let in: {why}"),
                    refused: None,
                });
            }
            let terms = ClientTerms {
                listener: input.listener.clone(),
                clients: clients.clone(),
                details: input.details,
                config: config.ok(),
            };
            // Of two listeners with one host name the first by key has it, as with requests.
            by_name.entry(&input.pattern(), || Arc::new(terms));
        }
        Ok(ServedTls::ByName(Arc::new(by_name)))
    }

    fn certificates(
        &mut self,
        input: &Input,
        findings: &mut Vec<Finding>,
    ) -> Vec<(Arc<str>, Arc<Certificate>)> {
        let mut found = |severity, message, refused| {
            findings.push(Finding { listener: input.listener.clone(), severity, message, refused });
        };
        let mut usable = Vec::new();
        for ir::Certificate { origin, chain_pem, key_pem } in input.tls.certificates.iter().map(AsRef::as_ref)
        {
            match Certificate::from_pem(chain_pem, key_pem) {
                Ok(certificate) => {
                    for warning in certificate.warnings(SystemTime::now()) {
                        found(Severity::Warning, format!("{origin}: {warning}"), None);
                    }
                    let certificate = Arc::new(certificate);
                    self.good.insert(origin.clone(), Arc::clone(&certificate));
                    usable.push((origin.clone(), certificate));
                }
                Err(error) => {
                    let last_good = self.good.get(origin);
                    let stays = if last_good.is_some() { "; the last good one stays in use" } else { "" };
                    found(Severity::Error, format!("{origin}: {error}{stays}"), Some(origin.clone()));
                    usable.extend(last_good.cloned().map(|good| (origin.clone(), good)));
                }
            }
        }
        if input.tls.certificates.is_empty() {
            found(Severity::Error, "there is no certificate to show".to_owned(), None);
        }
        usable
    }

    fn configure(
        &self,
        resolver: &Arc<SniResolver>,
        clients: Option<&Arc<ClientVerifier>>,
        from: &[Input],
    ) -> Config {
        // The handshake's version is settled before the listener is known, so the strictest one decides for its address.
        let min =
            if from.iter().any(|input| input.tls.min_tls13) { TlsVersion::Tls13 } else { TlsVersion::Tls12 };
        let tls = ServerTls::new(Arc::clone(resolver))
            .alpn(PROTOCOLS)
            .versions(min, TlsVersion::Tls13)
            .tickets(&self.tickets);
        let tls = clients.into_iter().fold(tls, ServerTls::clients);
        tls.build().map_err(|error| error.to_string())
    }
}

impl Input {
    fn pattern(&self) -> String {
        self.hostname.as_ref().map_or_else(|| "*".to_owned(), ToString::to_string)
    }
}

fn inputs(table: &AddressTable) -> Vec<Input> {
    let input = |listener: &ir::Listener| {
        Some(Input {
            listener: listener.key.clone(),
            hostname: listener.hostname.clone(),
            tls: Arc::clone(listener.tls.as_ref()?),
            details: listener.client.client_cert_details,
        })
    };
    table.listeners.iter().filter_map(|listener| input(&listener.ir)).collect()
}

#[cfg(test)]
mod tests {
    use fieldgate_core::ir::{ClientTrust, Config, Listener, Touched};

    use super::*;

    const ADDRESS: &str = "127.0.0.1:8443";

    fn certificate(host: &str) -> Arc<ir::Certificate> {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        Arc::new(ir::Certificate {
            origin: format!("Secret default/{host}").into(),
            chain_pem: made.cert.pem().into_bytes().into(),
            key_pem: made.signing_key.serialize_pem().into_bytes().into(),
        })
    }

    fn broken() -> Arc<ir::Certificate> {
        Arc::new(ir::Certificate {
            origin: "Secret default/broken".into(),
            chain_pem: [].into(),
            key_pem: [].into(),
        })
    }

    fn listener(name: &str, certificates: Vec<Arc<ir::Certificate>>) -> Arc<Listener> {
        Arc::new(Listener {
            key: ListenerKey { namespace: "default".into(), gateway: "edge".into(), name: name.into() },
            addresses: vec![ADDRESS.parse().unwrap()],
            hostname: Some(Hostname::Exact(format!("{name}.example").into())),
            tls: Some(Arc::new(ListenerTls { certificates, min_tls13: false, clients: None })),
            client: ClientTrust::default(),
            labels: [].into(),
            guards: [].into(),
        })
    }

    fn snapshot(listeners: Vec<Arc<Listener>>) -> Snapshot {
        let listeners = listeners.into_iter().map(|listener| (listener.key.clone(), listener)).collect();
        Snapshot::compile(None, Config { listeners, ..Config::default() }, &Touched::All, 1)
    }

    #[test]
    fn a_bad_certificate_spoils_its_listener_only() {
        let mut configs = Configs::default();
        configs.reconcile(&snapshot(vec![
            listener("a", vec![certificate("a.example")]),
            listener("b", vec![broken()]),
        ]));
        assert!(configs.by_address()[&ADDRESS.parse().unwrap()].is_ok());
        let findings: Vec<_> = configs.findings(SystemTime::now()).collect();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].1.starts_with("error: listener default/edge/b: Secret default/broken: "),
            "{findings:?}"
        );

        configs.reconcile(&snapshot(vec![listener("b", vec![broken()])]));
        assert!(configs.by_address()[&ADDRESS.parse().unwrap()].is_err());
    }

    #[test]
    fn a_certificate_that_turns_bad_is_refused_and_its_last_good_version_stays() {
        let good = certificate("a.example");
        let bad = Arc::new(ir::Certificate { chain_pem: [].into(), ..ir::Certificate::clone(&good) });
        let mut configs = Configs::default();
        let mut serve = |certificates| {
            configs.reconcile(&snapshot(vec![listener("a", certificates)]));
            (configs.by_address()[&ADDRESS.parse().unwrap()].is_ok(), configs.refused().len())
        };
        assert_eq!(serve(vec![Arc::clone(&good)]), (true, 0));
        assert_eq!(serve(vec![Arc::clone(&bad)]), (true, 1));
        // Out of use, it is forgotten.
        assert_eq!(serve(vec![certificate("b.example")]), (true, 0));
        assert_eq!(serve(vec![bad]), (false, 1));
    }

    #[test]
    fn an_unchanged_address_keeps_its_configuration_and_a_new_certificate_replaces_it() {
        let first = certificate("a.example");
        let mut configs = Configs::default();
        let serve = |configs: &mut Configs, certificate: &Arc<ir::Certificate>| {
            configs.reconcile(&snapshot(vec![listener("a", vec![Arc::clone(certificate)])]));
            match configs.by_address().remove(&ADDRESS.parse().unwrap()) {
                Some(Ok(ServedTls::Same(config))) => config,
                _ => panic!("one configuration for all names"),
            }
        };
        let before = serve(&mut configs, &first);
        assert!(Arc::ptr_eq(&before, &serve(&mut configs, &first)));
        assert!(!Arc::ptr_eq(&before, &serve(&mut configs, &certificate("a.example"))));
    }

    fn clients(pem: &str) -> Arc<ir::ClientValidation> {
        let bundle = ir::PemBundle { origin: "ConfigMap a/ca".into(), pem: pem.as_bytes().into() };
        Arc::new(ir::ClientValidation {
            mode: ir::ClientCertificates::Required,
            roots: vec![Arc::new(bundle)],
            revoked: vec![],
            names: vec![],
            trust_domains: vec![],
        })
    }

    fn asking(name: &str, clients: Arc<ir::ClientValidation>) -> Arc<Listener> {
        let plain = listener(name, vec![certificate(&format!("{name}.example"))]);
        let tls = ListenerTls { clients: Some(clients), ..(**plain.tls.as_ref().unwrap()).clone() };
        Arc::new(Listener { tls: Some(Arc::new(tls)), ..(*plain).clone() })
    }

    fn by_name(configs: &Configs) -> Arc<Patterns<Arc<ClientTerms>>> {
        match configs.by_address().remove(&ADDRESS.parse().unwrap()) {
            Some(Ok(ServedTls::ByName(by_name))) => by_name,
            _ => panic!("a configuration by name"),
        }
    }

    #[test]
    fn each_listener_has_its_own_terms_and_equal_rules_share_a_configuration() {
        let authority = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap().cert.pem();
        let mut configs = Configs::default();
        configs.reconcile(&snapshot(vec![
            listener("a", vec![certificate("a.example")]),
            asking("b", clients(&authority)),
            asking("c", clients(&authority)),
        ]));
        let by_name = by_name(&configs);
        let terms = |name: &str| by_name.find(name).unwrap();
        let config = |name: &str| terms(name).config.clone().unwrap();
        assert!(terms("a.example").clients.is_none() && terms("b.example").clients.is_some());
        assert!(Arc::ptr_eq(&config("b.example"), &config("c.example")));
        assert!(!Arc::ptr_eq(&config("a.example"), &config("b.example")));
        assert!(by_name.every().is_none() && by_name.find("d.example").is_none());
        let kinds: Vec<_> = configs.expiries().iter().map(|expiry| expiry.kind).collect();
        assert_eq!(kinds, ["authority", "certificate", "certificate", "certificate"]);
    }

    #[test]
    fn a_listener_that_cannot_judge_lets_nobody_in_and_spoils_no_other() {
        let mut configs = Configs::default();
        let spoilt = vec![listener("a", vec![certificate("a.example")]), asking("b", clients("?"))];
        configs.reconcile(&snapshot(spoilt));
        let by_name = by_name(&configs);
        assert!(by_name.find("a.example").unwrap().config.is_some());
        assert!(by_name.find("b.example").unwrap().config.is_none());
        let findings: Vec<_> = configs.findings(SystemTime::now()).map(|(_, text)| text).collect();
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains("default/edge/b: clients cannot be judged"), "{findings:?}");
    }
}
