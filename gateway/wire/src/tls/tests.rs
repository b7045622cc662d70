//! Handshakes over real sockets.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use rcgen::KeyPair;
use rustls::client::danger::ServerCertVerifier;
use rustls::{ClientConfig, NamedGroup, ProtocolVersion, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::certificate::tests::{ecdsa, rsa};
use super::*;
use crate::buffer::BufferPool;
use crate::io::{Io, PeerState};
use crate::staged::Staged;

pub(super) fn single(certificate: Arc<Certificate>) -> SniResolver {
    SniResolver::new([] as [(&str, Vec<_>); 0], vec![certificate], false)
}

pub(super) fn keys() -> Arc<TicketKeys> {
    TicketKeys::new(Duration::from_hours(12))
}

fn trusting() -> Arc<ClientConfig> {
    ClientTls::new(Verification::None).build().unwrap()
}

/// A client that takes any certificate and speaks only what is given.
pub(super) fn limited(
    version: &'static SupportedProtocolVersion,
    cipher: impl Fn(&str) -> bool,
) -> Arc<ClientConfig> {
    let mut provider = (**provider()).clone();
    provider.cipher_suites.retain(|suite| cipher(&format!("{:?}", suite.suite())));
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let verifier: Arc<dyn ServerCertVerifier> = Arc::new(super::client::NoVerification);
    config.dangerous().set_certificate_verifier(verifier);
    Arc::new(config)
}

pub(super) async fn sockets() -> (Staged, Staged) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let staged = |tcp| Staged::new(tcp, BufferPool::new(16 * 1024, 1).take());
    (staged(listener.accept().await.unwrap().0), staged(client))
}

/// Both ends after the handshake, or what each said when it failed.
async fn handshake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &str,
) -> (std::io::Result<Io>, std::io::Result<Io>) {
    let (accepted, opened) = sockets().await;
    let name = server_name(name).unwrap();
    tokio::join!(accept(Arc::clone(server), accepted), connect(Arc::clone(client), name, opened))
}

/// A handshake that succeeds and one byte from the server, with which session tickets arrive; both ends and what
/// the server saw.
async fn session(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: &str,
) -> (Io, Io, HandshakeInfo) {
    let (accepted, opened) = handshake(server, client, name).await;
    let (mut accepted, mut opened) = (accepted.unwrap(), opened.unwrap());
    accepted.write_all(b"!").await.unwrap();
    accepted.flush().await.unwrap();
    opened.read_u8().await.unwrap();
    let info = HandshakeInfo::of(&accepted).unwrap();
    (accepted, opened, info)
}

fn shown(client: &Io) -> &[u8] {
    &HandshakeInfo::peer_certificates(client)[0]
}

async fn peer_event(io: &mut Io) -> PeerState {
    std::future::poll_fn(|cx| io.poll_peer_closed(cx)).await
}

#[tokio::test]
async fn a_modern_client_gets_tls13_with_post_quantum_key_exchange() {
    let server = ServerTls::new(single(ecdsa(&["a.example"]))).alpn(["h2", "http/1.1"]).build().unwrap();
    let client = ClientTls::new(Verification::None).alpn(["http/1.1", "h2"]).build().unwrap();
    let (_, opened, info) = session(&server, &client, "a.example").await;
    assert_eq!(info.group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(info.version, Some(ProtocolVersion::TLSv1_3));
    assert_eq!(info.sni.as_deref(), Some("a.example"));
    assert_eq!(info.alpn, Alpn::Http2);
    assert!(!info.resumed && info.cipher.is_some());
    let seen = HandshakeInfo::of(&opened).unwrap();
    assert_eq!((seen.alpn, seen.group, seen.sni), (info.alpn, info.group, None));
}

#[tokio::test]
async fn versions_are_kept_to() {
    let build = |min, max| ServerTls::new(single(ecdsa(&["a.example"]))).versions(min, max).build();
    let old = limited(&rustls::version::TLS12, |_| true);
    let both = build(TlsVersion::Tls12, TlsVersion::Tls13).unwrap();
    let (.., info) = session(&both, &old, "a.example").await;
    assert_eq!((info.version, info.alpn), (Some(ProtocolVersion::TLSv1_2), Alpn::None));

    let new_only = build(TlsVersion::Tls13, TlsVersion::Tls13).unwrap();
    let (accepted, opened) = handshake(&new_only, &old, "a.example").await;
    assert!(accepted.is_err() && opened.is_err());
    let old_only = build(TlsVersion::Tls12, TlsVersion::Tls12).unwrap();
    let (.., info) = session(&old_only, &trusting(), "a.example").await;
    assert_eq!(info.version, Some(ProtocolVersion::TLSv1_2));
    assert_eq!(build(TlsVersion::Tls13, TlsVersion::Tls12).unwrap_err(), ServerTlsError::NoVersion);
}

#[tokio::test]
async fn the_server_name_chooses_the_certificate() {
    let [exact, wildcard, default] = [ecdsa(&["a.example"]), ecdsa(&["*.example"]), ecdsa(&["default.test"])];
    let entries = || [("a.example", [Arc::clone(&exact)]), ("*.example", [Arc::clone(&wildcard)])];
    let server =
        ServerTls::new(SniResolver::new(entries(), vec![Arc::clone(&default)], false)).build().unwrap();
    for (name, expected) in [
        ("a.example", &exact),
        ("A.EXAMPLE", &exact),
        ("b.example", &wildcard),
        ("x.y.example", &wildcard),
        ("other.test", &default),
        // An address is no server name: the client sends none.
        ("127.0.0.1", &default),
    ] {
        let (_, opened, _) = session(&server, &trusting(), name).await;
        assert_eq!(shown(&opened), &*expected.certified().cert[0], "{name}");
    }
    let strict = ServerTls::new(SniResolver::new(entries(), vec![default], true)).build().unwrap();
    for name in ["other.test", "127.0.0.1"] {
        let (accepted, opened) = handshake(&strict, &trusting(), name).await;
        assert!(accepted.is_err() && opened.is_err(), "{name}");
    }
    session(&strict, &trusting(), "a.example").await;
}

#[tokio::test]
async fn a_client_without_ecdsa_gets_the_rsa_certificate() {
    let [rsa, ecdsa] = [rsa(&["a.example"]), ecdsa(&["a.example"])];
    let entry = ("a.example", [Arc::clone(&rsa), Arc::clone(&ecdsa)]);
    let server = ServerTls::new(SniResolver::new([entry], vec![], true)).build().unwrap();
    let old = limited(&rustls::version::TLS12, |suite| suite.contains("_RSA_"));
    let (_, opened, _) = session(&server, &old, "a.example").await;
    assert_eq!(shown(&opened), &*rsa.certified().cert[0]);
    let (_, opened, _) = session(&server, &trusting(), "a.example").await;
    assert_eq!(shown(&opened), &*ecdsa.certified().cert[0]);
}

#[tokio::test]
async fn clients_resume_across_a_change_of_certificates() {
    let keys = keys();
    let build = |tickets: &Arc<TicketKeys>| {
        ServerTls::new(single(ecdsa(&["a.example"]))).tickets(tickets).build().unwrap()
    };
    for client in [trusting(), limited(&rustls::version::TLS12, |_| true)] {
        let (.., info) = session(&build(&keys), &client, "a.example").await;
        assert!(!info.resumed);
        let (.., info) = session(&build(&keys), &client, "a.example").await;
        assert!(info.resumed, "{info:?}");
        // Other keys cannot open the ticket, and the full handshake goes through all the same.
        let (.., info) = session(&build(&self::keys()), &client, "a.example").await;
        assert!(!info.resumed);
    }
}

#[tokio::test]
async fn upstreams_are_verified_against_the_given_authorities() {
    let (ca, leaf, key) = signed(&["a.example"]);
    let certificate = Arc::new(Certificate::from_pem(leaf.as_bytes(), key.as_bytes()).unwrap());
    let server = ServerTls::new(single(certificate)).build().unwrap();
    let client = |pem: &str| ClientTls::new(Verification::Roots(pem.as_bytes())).build();
    let trusted = client(&ca).unwrap();
    session(&server, &trusted, "a.example").await;
    assert!(handshake(&server, &trusted, "b.example").await.1.is_err());
    let (other, ..) = signed(&["a.example"]);
    assert!(handshake(&server, &client(&other).unwrap(), "a.example").await.1.is_err());
    assert_eq!(client("").unwrap_err(), ClientTlsError::Roots("no certificate in the PEM".to_owned()));
    assert!(server_name("not a name").is_err());
}

#[tokio::test]
async fn something_else_than_tls_is_an_error() {
    let server = ServerTls::new(single(ecdsa(&["a.example"]))).build().unwrap();
    let (accepted, mut opened) = sockets().await;
    opened.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    let error = accept(server, accepted).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn readable_means_decrypted_data_and_tickets_are_none() {
    let server = ServerTls::new(single(ecdsa(&["a.example"]))).tickets(&keys()).build().unwrap();
    let (accepted, opened) = handshake(&server, &trusting(), "a.example").await;
    let (mut accepted, mut opened) = (accepted.unwrap(), opened.unwrap());
    // The tickets are on the socket by now, and nothing else is.
    opened.tcp().readable().await.unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(opened.poll_readable(&mut cx).is_pending());
    assert!(!opened.is_stale());

    accepted.write_all(b"hello").await.unwrap();
    accepted.flush().await.unwrap();
    opened.readable().await.unwrap();
    assert_eq!(peer_event(&mut opened).await, PeerState::SentData);
    // The second half is in memory, where the socket knows nothing of it.
    let mut half = [0; 2];
    opened.read_exact(&mut half).await.unwrap();
    assert!(opened.poll_readable(&mut cx).is_ready());
    let mut rest = [0; 8];
    assert_eq!(opened.try_read(&mut rest).unwrap(), 3);
    assert_eq!((&half, &rest[..3]), (b"he", &b"llo"[..]));
    assert_eq!(opened.try_read(&mut rest).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn the_end_is_told_from_a_break() {
    let server = ServerTls::new(single(ecdsa(&["a.example"]))).build().unwrap();

    let (mut accepted, mut opened, _) = session(&server, &trusting(), "a.example").await;
    opened.shutdown_write().await.unwrap();
    assert_eq!(peer_event(&mut accepted).await, PeerState::Closed);
    assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0);

    let (mut accepted, opened, _) = session(&server, &trusting(), "a.example").await;
    drop(opened);
    assert_eq!(peer_event(&mut accepted).await, PeerState::Closed);
    // Nobody said that it was the end.
    assert_eq!(accepted.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);

    let (mut accepted, opened, _) = session(&server, &trusting(), "a.example").await;
    opened.abort();
    assert_eq!(peer_event(&mut accepted).await, PeerState::Broken);
}

/// An authority, and a certificate of it with its key.
fn signed(names: &[&str]) -> (String, String, String) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    (ca.pem(), leaf.pem(), key.serialize_pem())
}
