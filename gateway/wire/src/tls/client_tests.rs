//! Handshakes in which clients show certificates: who is believed, who is not and why, and what sessions remember of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::certificate::tests::ecdsa;
use super::tests::{keys, limited, single, sockets};
use super::*;

const DAY: Duration = Duration::from_hours(24);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Times as days from now: begin and end.
fn lives(params: &mut CertificateParams, from: i64, to: i64) {
    let at = |days: i64| {
        let span = DAY * days.unsigned_abs() as u32;
        let now = SystemTime::now();
        if days < 0 { now - span } else { now + span }
    };
    (params.not_before, params.not_after) = (at(from).into(), at(to).into());
}

impl Authority {
    fn of_days(name: &str, from: i64, to: i64) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        lives(&mut params, from, to);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn new(name: &str) -> Self {
        Self::of_days(name, -1, 30)
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<Certificate> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "web");
        params.serial_number = Some(SerialNumber::from(7));
        lives(&mut params, -1, 10);
        params.subject_alt_names = vec![uri("spiffe://td/ns/shop/sa/web"), dns("web.shop")];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Arc::new(Certificate::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap())
    }

    fn list(&self, serials: &[u64], to: i64) -> String {
        let mut dates = CertificateParams::new(vec![]).unwrap();
        lives(&mut dates, -2, to);
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: dates.not_before,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: dates.not_before,
            next_update: dates.not_after,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn rules(mode: ClientMode, authority: &Authority) -> ClientRules<'_> {
    ClientRules {
        mode,
        roots: vec![("ca", authority.pem.as_bytes())],
        revoked: vec![],
        names: vec![],
        trust_domains: vec![],
    }
}

fn server(rules: ClientRules<'_>, tickets: &Arc<TicketKeys>) -> Arc<ServerConfig> {
    let clients = ClientVerifier::new(rules).unwrap();
    ServerTls::new(single(ecdsa(&["a.example"]))).tickets(tickets).clients(&clients).build().unwrap()
}

fn showing(identity: Option<&Arc<Certificate>>) -> Arc<ClientConfig> {
    let tls = ClientTls::new(Verification::None);
    identity.cloned().into_iter().fold(tls, ClientTls::identity).build().unwrap()
}

/// What a handshake comes to, with a byte from the server behind it, with which tickets arrive.
async fn meet(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Result<Introduced, Box<Failed>> {
    let (accepted, opened) = sockets().await;
    let serve = async {
        let greeting = greet(accepted).await.unwrap();
        assert_eq!(greeting.server_name().as_deref(), Some("a.example"));
        match greeting.finish(Arc::clone(server)).await {
            Ok(mut done) => {
                done.io.write_all(b"!").await.unwrap();
                done.io.flush().await.unwrap();
                Ok(done)
            }
            Err(mut failed) => {
                let error = std::mem::replace(&mut failed.error, std::io::ErrorKind::Other.into());
                let refusal = failed.refusal.take();
                failed.farewell().await;
                Err(Box::new(Failed::bare(error, refusal)))
            }
        }
    };
    let ask = async {
        if let Ok(mut io) = connect(Arc::clone(client), server_name("a.example").unwrap(), opened).await {
            let _ = io.read_u8().await;
        }
    };
    tokio::join!(serve, ask).0
}

async fn reason(rules: ClientRules<'_>, identity: Option<&Arc<Certificate>>) -> Option<RefusalReason> {
    let met = meet(&server(rules, &keys()), &showing(identity)).await;
    match met {
        Ok(done) => {
            assert_eq!(done.client.is_empty(), identity.is_none());
            None
        }
        Err(failed) => Some(failed.refusal.expect("a refusal").reason),
    }
}

#[tokio::test]
async fn a_refusal_says_why() {
    use RefusalReason::*;
    let (authority, other) = (Authority::new("one"), Authority::new("two"));
    let required = || rules(ClientMode::Required, &authority);
    let good = authority.sign(|_| ());
    assert_eq!(reason(required(), Some(&good)).await, None);
    assert_eq!(reason(required(), None).await, Some(NoCertificate));
    let expired = authority.sign(|params| lives(params, -3, -1));
    assert_eq!(reason(required(), Some(&expired)).await, Some(Expired));
    let early = authority.sign(|params| lives(params, 1, 3));
    assert_eq!(reason(required(), Some(&early)).await, Some(NotYetValid));
    assert_eq!(reason(required(), Some(&other.sign(|_| ()))).await, Some(UnknownAuthority));
    assert_eq!(reason(required(), Some(&ecdsa(&["web.shop"]))).await, Some(SelfSigned));
    let for_servers = authority.sign(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(reason(required(), Some(&for_servers)).await, Some(WrongKeyUsage));
    let for_clients = authority.sign(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert_eq!(reason(required(), Some(&for_clients)).await, None);
    // Of an authority with the same name and another key.
    let forged = Authority::new("one").sign(|_| ());
    assert_eq!(reason(required(), Some(&forged)).await, Some(BadSignature));
    let sly = authority.sign(|p| p.subject_alt_names = vec![uri("spiffe://td/a\r\nx: y")]);
    assert_eq!(reason(required(), Some(&sly)).await, Some(Malformed));
    let over = Authority::of_days("one", -9, -1);
    assert_eq!(reason(rules(ClientMode::Required, &over), Some(&over.sign(|_| ()))).await, Some(Expired));
}

#[tokio::test]
async fn a_client_without_the_key_is_refused() {
    let authority = Authority::new("one");
    let (leaf, other) = (authority.sign(|_| ()), authority.sign(|_| ()));
    let stolen =
        rustls::sign::CertifiedKey::new(leaf.certified().cert.clone(), Arc::clone(&other.certified().key));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut client = (*limited(version, |_| true)).clone();
        client.client_auth_cert_resolver =
            Arc::new(rustls::sign::SingleCertAndKey::from(Arc::new(stolen.clone())));
        let client = Arc::new(client);
        let failed = meet(&server(rules(ClientMode::Required, &authority), &keys()), &client).await.err();
        let reason = failed.and_then(|failed| failed.refusal).map(|refusal| refusal.reason);
        assert_eq!(reason, Some(RefusalReason::BadSignature));
        let unverified = server(rules(ClientMode::Unverified, &authority), &keys());
        let done = meet(&unverified, &client).await.map_err(|failed| failed.error).unwrap();
        assert!(done.client.is_empty());
        assert_eq!(done.unbelieved.map(|refusal| refusal.reason), Some(RefusalReason::BadSignature));
    }
}

#[tokio::test]
async fn revocation_lists_are_held_to() {
    use RefusalReason::*;
    let (authority, other) = (Authority::new("one"), Authority::new("two"));
    let leaf = authority.sign(|_| ());
    for (list, expected) in [
        (authority.list(&[6, 8], 5), None),
        (authority.list(&[7], 5), Some(Revoked)),
        (authority.list(&[], -1), Some(RevocationListExpired)),
        (other.list(&[7], 5), Some(RevocationUnknown)),
        (other.list(&[], 5) + &authority.list(&[7], 5), Some(Revoked)),
    ] {
        let mut rules = rules(ClientMode::Required, &authority);
        rules.revoked = vec![("crl", list.as_bytes())];
        assert_eq!(reason(rules, Some(&leaf)).await, expected);
    }
}

#[tokio::test]
async fn names_and_trust_domains_are_held_to() {
    use RefusalReason::*;
    let authority = Authority::new("one");
    let leaf =
        authority.sign(|p| p.subject_alt_names.push(SanType::Rfc822Name("web@shop".try_into().unwrap())));
    for (pattern, fits) in [
        (NamePattern::Exact("spiffe://td/ns/shop/sa/web".into()), true),
        (NamePattern::Exact("spiffe://td/ns/shop/sa/WEB".into()), false),
        (NamePattern::Prefix("spiffe://td/ns/shop/".into()), true),
        (NamePattern::Suffix("/sa/web".into()), true),
        (NamePattern::Exact("Web.Shop".into()), true),
        (NamePattern::Exact("web@shop".into()), true),
        (NamePattern::Exact("web".into()), false),
        (NamePattern::Any, true),
    ] {
        let mut rules = rules(ClientMode::Required, &authority);
        rules.names = vec![NamePattern::Exact("other".into()), pattern.clone()];
        assert_eq!(reason(rules, Some(&leaf)).await, (!fits).then_some(WrongName), "{pattern:?}");
    }
    let two = authority.sign(|p| p.subject_alt_names.push(uri("spiffe://other/x")));
    let nobody = authority.sign(|p| p.subject_alt_names = vec![dns("web.shop")]);
    for (domains, leaf, fits) in [
        (&["td"][..], &leaf, true),
        (&["other", "td"], &leaf, true),
        (&["t"], &leaf, false),
        (&["td.example"], &leaf, false),
        (&["td"], &two, false),
        (&["td", "other"], &two, true),
        (&["td"], &nobody, false),
    ] {
        let mut rules = rules(ClientMode::Required, &authority);
        rules.trust_domains = domains.iter().map(|domain| (*domain).into()).collect();
        assert_eq!(reason(rules, Some(leaf)).await, (!fits).then_some(WrongTrustDomain), "{domains:?}");
    }
}

#[tokio::test]
async fn optional_takes_none_and_unverified_takes_whatever_as_none() {
    let (authority, other) = (Authority::new("one"), Authority::new("two"));
    let optional = || rules(ClientMode::Optional, &authority);
    assert_eq!(reason(optional(), None).await, None);
    assert_eq!(reason(optional(), Some(&authority.sign(|_| ()))).await, None);
    assert_eq!(reason(optional(), Some(&other.sign(|_| ()))).await, Some(RefusalReason::UnknownAuthority));

    let unverified = server(rules(ClientMode::Unverified, &authority), &keys());
    for (identity, believed, why) in [
        (None, false, None),
        (Some(authority.sign(|_| ())), true, None),
        (Some(other.sign(|_| ())), false, Some(RefusalReason::UnknownAuthority)),
    ] {
        let client = showing(identity.as_ref());
        // A session that goes on knows no more of its client than the one before.
        for resumed in [false, true] {
            let done = meet(&unverified, &client).await.map_err(|failed| failed.error).unwrap();
            assert_eq!((!done.client.is_empty(), done.resumed), (believed, resumed));
            assert_eq!(done.unbelieved.map(|refusal| refusal.reason), why.filter(|_| !resumed));
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_itself_believed_needs_nobody_above_it() {
    let key = KeyPair::generate().unwrap();
    for (ca, from, to, expected) in
        [(false, -1, 9, None), (true, -1, 9, None), (true, -9, -1, Some(RefusalReason::Expired))]
    {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        lives(&mut params, from, to);
        let pem = params.self_signed(&key).unwrap().pem();
        let identity = Certificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let authority = Authority { issuer: Issuer::new(params, KeyPair::generate().unwrap()), pem };
        let found = reason(rules(ClientMode::Required, &authority), Some(&Arc::new(identity))).await;
        assert_eq!(found, expected, "{ca} {to}");
    }
}

#[tokio::test]
async fn sessions_keep_the_identity_where_the_rules_are_the_same_and_nowhere_else() {
    let (authority, other) = (Authority::new("one"), Authority::new("two"));
    let leaf = authority.sign(|_| ());
    let list = authority.list(&[], 5);
    let tickets = keys();
    let same = || rules(ClientMode::Required, &authority);
    type Change<'a> = Box<dyn Fn(&mut ClientRules<'a>) + 'a>;
    let changes: [Change<'_>; 5] = [
        Box::new(|rules| rules.roots.push(("ca", other.pem.as_bytes()))),
        Box::new(|rules| rules.revoked.push(("crl", list.as_bytes()))),
        Box::new(|rules| rules.names.push(NamePattern::Any)),
        Box::new(|rules| rules.trust_domains.push("td".into())),
        Box::new(|rules| rules.mode = ClientMode::Optional),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let client = || {
            let mut client = (*limited(version, |_| true)).clone();
            let certified = Arc::clone(leaf.certified());
            client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
            Arc::new(client)
        };
        let known = client();
        for resumed in [false, true] {
            let done = meet(&server(same(), &tickets), &known).await.map_err(|failed| failed.error).unwrap();
            assert_eq!((done.client.len(), done.resumed), (1, resumed));
            assert!(done.shown.is_some(), "known in a session that was resumed, too");
        }
        for change in &changes {
            let known = client();
            meet(&server(same(), &tickets), &known).await.map_err(|failed| failed.error).unwrap();
            let mut rules = same();
            change(&mut rules);
            let done = meet(&server(rules, &tickets), &known).await.map_err(|failed| failed.error).unwrap();
            assert_eq!((done.client.len(), done.resumed), (1, false));
        }
    }
}

#[tokio::test]
async fn a_session_without_a_client_certificate_is_not_resumed_where_one_is_required() {
    let authority = Authority::new("one");
    let tickets = keys();
    let open = ServerTls::new(single(ecdsa(&["a.example"]))).tickets(&tickets).build().unwrap();
    let client = showing(None);
    assert!(meet(&open, &client).await.is_ok());
    assert!(meet(&open, &client).await.is_ok_and(|done| done.resumed && done.client.is_empty()));
    let failed =
        meet(&server(rules(ClientMode::Required, &authority), &tickets), &client).await.err().unwrap();
    assert_eq!(failed.refusal.unwrap().reason, RefusalReason::NoCertificate);
}

#[test]
fn what_cannot_be_read_makes_no_rules() {
    let authority = Authority::new("one");
    let error = |change: &dyn Fn(&mut ClientRules<'_>)| {
        let mut rules = rules(ClientMode::Required, &authority);
        change(&mut rules);
        ClientVerifier::new(rules).unwrap_err()
    };
    assert_eq!(error(&|rules| rules.roots.clear()), "there is no authority to believe");
    assert!(
        error(&|rules| rules.roots.push(("ConfigMap a/b", b""))).starts_with("ConfigMap a/b: no certificate")
    );
    let bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(error(&|rules| rules.roots.push(("x", bad))).starts_with("x: certificate 1 is bad: "));
    assert!(error(&|rules| rules.revoked.push(("y", b""))).starts_with("y: no revocation list"));
    let bad = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    assert!(error(&|rules| rules.revoked.push(("y", bad))).starts_with("y: revocation list 1 is bad: "));
}

#[test]
fn what_has_its_time_is_told() {
    let authority = Authority::new("one");
    let list = authority.list(&[], 5);
    let mut rules = rules(ClientMode::Required, &authority);
    rules.revoked = vec![("list", list.as_bytes())];
    let verifier = ClientVerifier::new(rules).unwrap();
    let told: Vec<_> = verifier.dated().iter().map(|of| (of.kind, &*of.origin, &*of.subject)).collect();
    assert_eq!(told, [(DatedKind::Authority, "ca", "CN=one"), (DatedKind::RevocationList, "list", "CN=one")]);
    assert!(verifier.dated()[1].until < verifier.dated()[0].until);
}
