//! Which certificates of upstreams are believed, over real handshakes.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::ClientConfig;
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::buffer::BufferPool;
use crate::staged::Staged;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// What an endpoint shows, as PEM.
struct Shown {
    chain: String,
    key: String,
}

fn leaf(of: &Authority, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Shown {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.subject_alt_names = names
        .iter()
        .map(|name| match name.split_once("://") {
            Some(_) => SanType::URI((*name).try_into().unwrap()),
            None => name
                .parse()
                .map_or_else(|_| SanType::DnsName((*name).try_into().unwrap()), SanType::IpAddress),
        })
        .collect();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Shown { chain: params.signed_by(&key, of).unwrap().pem(), key: key.serialize_pem() }
}

/// A plain rustls server that shows this; `clients`: it wants certificates of that authority.
fn server(shown: &Shown, clients: Option<&Authority>) -> Arc<rustls::ServerConfig> {
    let certificate = Certificate::from_pem(shown.chain.as_bytes(), shown.key.as_bytes()).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let roots = client::parse_roots(authority.pem().as_bytes()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider()));
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let shown = rustls::sign::SingleCertAndKey::from(Arc::clone(certificate.certified()));
    Arc::new(builder.with_cert_resolver(Arc::new(shown)))
}

/// What comes of a handshake and, as TLS 1.3 tells of a refusal only then, of the first read.
async fn try_it(
    server: &Arc<rustls::ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &str,
) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let opened = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = listener.accept().await.unwrap().0;
    let serve = async {
        let accepted = tokio_rustls::TlsAcceptor::from(Arc::clone(server)).accept(accepted).await;
        if let Ok(mut stream) = accepted {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all(b"!").await;
            let _ = stream.flush().await;
            return Some(stream);
        }
        None
    };
    let connect_and_read = async {
        let staged = Staged::new(opened, BufferPool::new(16 * 1024, 1).take());
        let mut io = connect(Arc::clone(client), server_name(name).unwrap(), staged).await?;
        io.read_u8().await
    };
    let (_stream, outcome) = tokio::join!(serve, connect_and_read);
    outcome.map(|_| ()).map_err(|error| describe(&error))
}

fn believing(authority: &Authority) -> Arc<ClientConfig> {
    ClientTls::new(Verification::Roots(authority.pem().as_bytes())).build().unwrap()
}

fn expecting(authority: &Authority, names: &'static [&'static str]) -> Arc<ClientConfig> {
    let check = NameCheck::new(move |name| names.iter().any(|expected| name.is(expected)));
    ClientTls::new(Verification::Roots(authority.pem().as_bytes())).names(check).build().unwrap()
}

fn nothing(_: &mut CertificateParams) {}

#[tokio::test]
async fn a_chain_to_a_known_authority_and_the_server_name_are_needed() {
    let (known, unknown) = (authority("known"), authority("unknown"));
    let good = server(&leaf(&known, &["a.example", "*.b.example", "127.0.0.1"], nothing), None);
    for name in ["a.example", "A.Example", "x.b.example", "127.0.0.1"] {
        assert_eq!(try_it(&good, &believing(&known), name).await, Ok(()), "{name}");
    }
    let why = try_it(&good, &believing(&known), "x.y.b.example").await.unwrap_err();
    assert_eq!(why, "the certificate is not for x.y.b.example, but for a.example, *.b.example, 127.0.0.1");
    let why = try_it(&good, &believing(&unknown), "a.example").await.unwrap_err();
    assert_eq!(why, "the certificate is not issued by an authority that is known here");
    let namesake = authority("known");
    let why = try_it(&good, &believing(&namesake), "a.example").await.unwrap_err();
    assert_eq!(why, "the certificate is not signed by the authority of that name that is known here");
    let anybody = ClientTls::new(Verification::None).build().unwrap();
    assert_eq!(try_it(&good, &anybody, "other.example").await, Ok(()));
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused_and_the_time_named() {
    let authority = authority("ca");
    for (from, to, expected) in [
        (2020, 2021, "the certificate has expired: it was valid until Jan  1 00:00:00 2021"),
        (3020, 3021, "the certificate is not valid yet: it will be from Jan  1 00:00:00 3020"),
    ] {
        let shown = leaf(&authority, &["a.example"], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        });
        for client in [believing(&authority), expecting(&authority, &["a.example"])] {
            let why = try_it(&server(&shown, None), &client, "a.example").await.unwrap_err();
            assert!(why.starts_with(expected), "{why}");
        }
    }
}

#[tokio::test]
async fn names_that_are_expected_stand_in_place_of_the_server_name() {
    const SHOP: &str = "spiffe://cluster.local/ns/default/sa/shop";
    let authority = authority("ca");
    let shown = server(&leaf(&authority, &[SHOP, "*.a.example"], nothing), None);
    for (names, good) in [
        (&[SHOP][..], true),
        (&["b.example", SHOP], true),
        (&["x.a.example"], true),
        (&["a.example"], false),
        (&["spiffe://cluster.local/ns/default/sa/sho"], false),
    ] {
        let names: &'static [&'static str] = Box::leak(names.to_vec().into());
        let outcome = try_it(&shown, &expecting(&authority, names), "other.example").await;
        assert_eq!(outcome.is_ok(), good, "{names:?}: {outcome:?}");
    }
    let why = try_it(&shown, &expecting(&authority, &["b.example"]), "b.example").await.unwrap_err();
    assert_eq!(why, format!("the certificate is for {SHOP}, *.a.example, none of which is expected"));
    // The right name by the wrong authority.
    let other = self::authority("other");
    let why = try_it(&shown, &expecting(&other, &[SHOP]), "a.example").await.unwrap_err();
    assert_eq!(why, "the certificate is not issued by an authority that is known here");
}

#[tokio::test]
async fn what_is_revoked_is_refused_and_so_is_what_no_list_speaks_of() {
    let (listed, unlisted) = (authority("listed"), authority("unlisted"));
    let numbered =
        |serial: u64| move |params: &mut CertificateParams| params.serial_number = Some(serial.into());
    let list = |revoked: u64, until| {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: revoked.into(),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&listed).unwrap().pem().unwrap()
    };
    let both = format!("{}{}", listed.pem(), unlisted.pem());
    let client = |list: &str| {
        ClientTls::new(Verification::Roots(both.as_bytes())).revoked([list.as_bytes()]).build().unwrap()
    };
    let (good, bad) =
        (leaf(&listed, &["a.example"], numbered(7)), leaf(&listed, &["a.example"], numbered(8)));
    let of_other = leaf(&unlisted, &["a.example"], numbered(7));
    let ask =
        async |shown: &Shown, list: &str| try_it(&server(shown, None), &client(list), "a.example").await;
    assert_eq!(ask(&good, &list(8, 3000)).await, Ok(()));
    assert_eq!(ask(&bad, &list(8, 3000)).await.unwrap_err(), "the certificate is revoked");
    let why = ask(&of_other, &list(8, 3000)).await.unwrap_err();
    assert_eq!(why, "there is no revocation list of the certificate's issuer");
    let why = ask(&good, &list(8, 2021)).await.unwrap_err();
    assert_eq!(why, "the revocation list of the certificate's issuer is too old");
    let none = ClientTls::new(Verification::Roots(both.as_bytes())).revoked([&b"no list"[..]]).build();
    assert!(matches!(none, Err(ClientTlsError::Revocation(_))), "{none:?}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_wanted() {
    let (servers, clients, others) = (authority("servers"), authority("clients"), authority("others"));
    let wanting = server(&leaf(&servers, &["a.example"], nothing), Some(&clients));
    let showing = |shown: &Shown| {
        let own = Certificate::from_pem(shown.chain.as_bytes(), shown.key.as_bytes()).unwrap();
        let roots = servers.pem();
        ClientTls::new(Verification::Roots(roots.as_bytes())).identity(Arc::new(own)).build().unwrap()
    };
    let own = leaf(&clients, &["gateway.example"], nothing);
    assert_eq!(try_it(&wanting, &showing(&own), "a.example").await, Ok(()));
    let why = try_it(&wanting, &believing(&servers), "a.example").await.unwrap_err();
    assert_eq!(why, "the endpoint wants a client certificate (alert certificate_required)");
    let wrong = leaf(&others, &["gateway.example"], nothing);
    let why = try_it(&wanting, &showing(&wrong), "a.example").await.unwrap_err();
    assert!(why.starts_with("the endpoint refused the gateway's client certificate"), "{why}");
}

#[tokio::test]
async fn a_self_signed_certificate_vouches_for_itself_even_as_an_authority() {
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let shown = server(&Shown { chain: own.pem(), key: own.key().serialize_pem() }, None);
    assert_eq!(try_it(&shown, &believing(&own), "a.example").await, Ok(()));
    assert!(try_it(&shown, &believing(&own), "b.example").await.is_err());
    let why = try_it(&shown, &believing(&authority("ca")), "a.example").await.unwrap_err();
    assert_eq!(why, "the certificate is that of an authority, and not one that is known here");
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told_from_what_refuses() {
    let authority = authority("ca");
    let ask = async |answer: &'static [u8]| {
        use tokio::io::AsyncWriteExt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let opened = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut accepted = listener.accept().await.unwrap().0;
        accepted.write_all(answer).await.unwrap();
        accepted.shutdown().await.unwrap();
        let staged = Staged::new(opened, BufferPool::new(16 * 1024, 1).take());
        let outcome = connect(believing(&authority), server_name("a.example").unwrap(), staged).await;
        describe(&outcome.unwrap_err())
    };
    let why = ask(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert!(why.starts_with("the endpoint does not seem to speak TLS"), "{why}");
    assert_eq!(ask(b"").await, "the endpoint closed the connection during the handshake");
}
