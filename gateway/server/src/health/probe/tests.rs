//! Against real sockets: servers in this process that answer well, badly, or not at all.

use fieldgate_wire::tls::{Certificate, ServerTls, SniResolver};
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn http(expected: &[(u16, u16)]) -> HealthCheck {
    check_of(HealthKind::Http {
        method: "GET".into(),
        path: "/healthz".into(),
        host: Some("vm.example".into()),
        expected: expected.to_vec(),
    })
}

fn grpc(service: &str) -> HealthCheck {
    check_of(HealthKind::Grpc { service: service.into(), authority: Some("vm.example".into()) })
}

fn check_of(kind: HealthKind) -> HealthCheck {
    HealthCheck {
        interval: LONG,
        jitter: Duration::ZERO,
        timeout: LONG,
        healthy: 1,
        unhealthy: 1,
        kind,
        ..HealthCheck::default()
    }
}

async fn probe(address: SocketAddr, check: &HealthCheck, protocol: Protocol) -> Result<Seen, String> {
    let version = Version::of(check, protocol, false);
    Probe::new(address, Arc::new(check.clone()), version, None).ask().await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Answers one connection with `response`; the result is what was asked.
async fn endpoint(response: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let (listener, address) = listen().await;
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        answer_h1(stream, response).await
    });
    (address, asked)
}

async fn answer_h1(mut stream: impl Socket, response: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut request).await.unwrap() > 0);
    }
    stream.write_all(response.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    String::from_utf8(request).unwrap()
}

async fn check(response: &'static str, expected: &[(u16, u16)], failure: Option<&str>) {
    let (address, asked) = endpoint(response).await;
    let seen = probe(address, &http(expected), Protocol::Http1).await;
    assert_eq!(seen.err().as_deref(), failure, "{response:?}");
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("GET /healthz HTTP/1.1\r\nhost: vm.example\r\n"), "{asked}");
}

#[tokio::test]
async fn the_status_decides() {
    check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", &[(200, 299)], None).await;
    check("HTTP/1.0 204 \r\n\r\n", &[(200, 299)], None).await;
    check("HTTP/1.1 401 No\r\n\r\n", &[(200, 299), (401, 401)], None).await;
    let failure = "status 503, expected 200-299, 401";
    check("HTTP/1.1 503 No\r\n\r\n", &[(200, 299), (401, 401)], Some(failure)).await;
    check("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", &[(200, 200)], None).await;
}

#[tokio::test]
async fn what_is_not_http_fails() {
    let closed = "the connection was closed before a response";
    check("220 mail.example ESMTP\r\n\r\n", &[(200, 299)], Some("the answer is not HTTP/1")).await;
    check("", &[(200, 299)], Some(closed)).await;
    check("HTTP/1.1 200 OK\r\n", &[(200, 299)], Some(closed)).await;
}

#[tokio::test]
async fn the_final_answer_may_say_degraded() {
    for (response, expected) in [
        ("HTTP/1.1 200 OK\r\nX-Envoy-Degraded:\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nx-other: x-envoy-degraded: 1\r\n\r\nx-envoy-degraded: 1\r\n", false),
        ("HTTP/1.1 103 Hints\r\nx-envoy-degraded: 1\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", false),
    ] {
        let (address, _) = endpoint(response).await;
        let seen = probe(address, &http(&[(200, 299)]), Protocol::Http1).await;
        assert_eq!(seen, Ok(Seen { degraded: expected }), "{response:?}");
    }
}

#[tokio::test]
async fn a_tcp_check_needs_an_open_port() {
    let (listener, address) = listen().await;
    assert_eq!(probe(address, &check_of(HealthKind::Tcp), Protocol::Http1).await, Ok(Seen::default()));
    drop(listener);
    let refused = probe(address, &check_of(HealthKind::Tcp), Protocol::Http1).await.unwrap_err();
    assert!(refused.starts_with("cannot connect: "), "{refused}");
}

#[tokio::test]
async fn a_check_may_have_its_own_port() {
    let (address, asked) = endpoint("HTTP/1.1 200 OK\r\n\r\n").await;
    let mut check = http(&[(200, 200)]);
    check.port = Some(address.port());
    // Nobody listens on port 1.
    let seen = probe(SocketAddr::new(address.ip(), 1), &check, Protocol::Http1).await;
    assert_eq!(seen, Ok(Seen::default()));
    asked.await.unwrap();
}

#[tokio::test]
async fn a_silent_endpoint_fails_at_the_timeout() {
    let (listener, address) = listen().await;
    for mut check in [http(&[(200, 299)]), grpc("")] {
        check.timeout = Duration::from_millis(20);
        let late = probe(address, &check, Protocol::Http1).await;
        assert_eq!(late, Err("no answer within 20ms".to_owned()));
    }
    drop(listener);
}

/// Serves one HTTP/2 connection; `answer` gets the first request with its body.
async fn serve_h2(
    stream: impl Socket,
    answer: impl FnOnce(&str, Vec<u8>, h2::server::SendResponse<bytes::Bytes>),
) -> String {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (request, respond) = connection.accept().await.unwrap().unwrap();
    let uri = request.uri().to_string();
    let mut body = request.into_body();
    let read = async {
        let mut all = Vec::new();
        while let Some(data) = body.data().await {
            all.extend_from_slice(&data.unwrap());
        }
        all
    };
    let body = tokio::select! {
        all = read => all,
        _ = connection.accept() => panic!("the check asks once"),
    };
    answer(&uri, body, respond);
    // Drives the connection until the check ends it.
    while let Some(Ok(_)) = connection.accept().await {}
    uri
}

fn no_content(_: &str, _: Vec<u8>, mut respond: h2::server::SendResponse<bytes::Bytes>) {
    let response = ::http::Response::builder().status(204).header("x-envoy-degraded", "1").body(()).unwrap();
    respond.send_response(response, true).unwrap();
}

#[tokio::test]
async fn an_http2_pool_is_asked_in_http2() {
    let (listener, address) = listen().await;
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve_h2(stream, no_content).await
    });
    let seen = probe(address, &http(&[(200, 299)]), Protocol::Http2).await;
    assert_eq!(seen, Ok(Seen { degraded: true }));
    assert_eq!(asked.await.unwrap(), "http://vm.example/healthz");
}

/// A gRPC answer: a message, and where its status is.
struct Reply {
    code: u16,
    kind: &'static str,
    message: Option<&'static [u8]>,
    status: Option<&'static str>,
    text: &'static str,
}

const SERVING: Reply = Reply {
    code: 200,
    kind: "application/grpc+proto",
    message: Some(b"\0\0\0\0\x02\x08\x01"),
    status: Some("0"),
    text: "",
};

fn reply(reply: &Reply, mut respond: h2::server::SendResponse<bytes::Bytes>) {
    let mut response = ::http::Response::builder().status(reply.code).header("content-type", reply.kind);
    let mut trailers = ::http::HeaderMap::new();
    if let Some(status) = reply.status {
        trailers.insert("grpc-status", status.parse().unwrap());
        trailers.insert("grpc-message", reply.text.parse().unwrap());
    }
    let Some(message) = reply.message else {
        response.headers_mut().unwrap().extend(trailers);
        respond.send_response(response.body(()).unwrap(), true).unwrap();
        return;
    };
    let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
    stream.send_data(message.into(), false).unwrap();
    stream.send_trailers(trailers).unwrap();
}

async fn check_grpc(service: &'static str, answer: Reply, failure: Option<&str>) {
    let (listener, address) = listen().await;
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        serve_h2(stream, |_, body, respond| {
            assert_eq!(body[..5], [0, 0, 0, 0, if service.is_empty() { 0 } else { service.len() as u8 + 2 }]);
            assert!(body.ends_with(service.as_bytes()));
            reply(&answer, respond);
        })
        .await
    });
    // Even where the pool speaks HTTP/1.
    let seen = probe(address, &grpc(service), Protocol::Http1).await;
    assert_eq!(seen.err().as_deref(), failure);
    assert_eq!(asked.await.unwrap(), "http://vm.example/grpc.health.v1.Health/Check");
}

#[tokio::test]
async fn grpc_statuses_have_clear_reasons() {
    check_grpc("", SERVING, None).await;
    check_grpc("shop.Cart", SERVING, None).await;
    for (message, why) in [
        (&b"\0\0\0\0\x02\x08\x02"[..], "the service \"shop\" says NOT_SERVING"),
        (b"\0\0\0\0\0", "the service \"shop\" says UNKNOWN"),
        (b"\0\0\0\0\x02\x08\x03", "the endpoint does not know the service \"shop\" (SERVICE_UNKNOWN)"),
        (b"\0\0\0\0\x02\x08\x63", "the service \"shop\" says 99, which is no status of grpc.health.v1"),
        (b"ok", "the gRPC response is no HealthCheckResponse"),
    ] {
        check_grpc("shop", Reply { message: Some(message), ..SERVING }, Some(why)).await;
    }
}

#[tokio::test]
async fn grpc_errors_have_clear_reasons() {
    for (status, text, why) in [
        ("12", "", "the endpoint does not offer grpc.health.v1.Health (gRPC status 12, UNIMPLEMENTED)"),
        (
            "5",
            "unknown service",
            "the endpoint does not know the server as a whole (gRPC status 5, NOT_FOUND)",
        ),
        ("14", "warming up", "gRPC status 14, UNAVAILABLE: warming up"),
        ("7", "", "gRPC status 7, PERMISSION_DENIED"),
    ] {
        for message in [None, Some(&b""[..])] {
            check_grpc("", Reply { message, status: Some(status), text, ..SERVING }, Some(why)).await;
        }
    }
    let none = Reply { status: None, ..SERVING };
    check_grpc("", none, Some("the gRPC response ended without a status")).await;
    let page = Reply { code: 404, kind: "text/html", ..SERVING };
    check_grpc("", page, Some("status 404, where gRPC answers 200")).await;
    let html = Reply { kind: "text/html", ..SERVING };
    check_grpc("", html, Some("the answer is not gRPC: content-type \"text/html\"")).await;
}

struct Authority {
    pem: String,
    acceptor: TlsAcceptor,
}

/// A server with a certificate of its own for `names`.
fn tls(names: &[&str], alpn: &[&[u8]]) -> Authority {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let pem = CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
    let certificate = Certificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let resolver = SniResolver::new([] as [(&str, Vec<_>); 0], vec![Arc::new(certificate)], false);
    let config = ServerTls::new(resolver).alpn(alpn).build().unwrap();
    Authority { pem, acceptor: TlsAcceptor::from(config) }
}

fn over_tls(mut check: HealthCheck, server_name: Option<&str>, ca: Option<&str>) -> HealthCheck {
    let tls =
        HealthTls { server_name: server_name.map(Into::into), ca_pem: ca.map(|pem| pem.as_bytes().into()) };
    check.tls = Some(Arc::new(tls));
    check
}

/// Serves one TLS connection with what was agreed on, if the handshake succeeds.
async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor) -> Option<String> {
    let (tcp, _) = listener.accept().await.unwrap();
    let stream = acceptor.accept(tcp).await.ok()?;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        return Some(serve_h2(stream, no_content).await);
    }
    Some(answer_h1(stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await)
}

#[tokio::test]
async fn http_over_tls_follows_the_pools_protocol_and_alpn() {
    const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
    const ONE: &[&[u8]] = &[b"http/1.1"];
    const NONE: &[&[u8]] = &[];
    for (protocol, alpn, asked) in [
        (Protocol::Http1, BOTH, "GET /healthz HTTP/1.1"),
        (Protocol::Http1, NONE, "GET /healthz HTTP/1.1"),
        (Protocol::Http2, BOTH, "https://vm.example/healthz"),
        (Protocol::Auto, BOTH, "https://vm.example/healthz"),
        (Protocol::Auto, ONE, "GET /healthz HTTP/1.1"),
    ] {
        let (listener, address) = listen().await;
        let server = tls(&["vm.example"], alpn);
        let serving = tokio::spawn(serve_tls(listener, server.acceptor));
        let check = over_tls(http(&[(200, 299)]), Some("vm.example"), Some(&server.pem));
        let seen = probe(address, &check, protocol).await;
        assert!(seen.is_ok(), "{protocol:?} {alpn:?}: {seen:?}");
        let seen = serving.await.unwrap().unwrap();
        assert!(seen.starts_with(asked), "{protocol:?} {alpn:?}: {seen}");
    }
}

#[tokio::test]
async fn http2_over_tls_must_be_agreed_on() {
    let (listener, address) = listen().await;
    let server = tls(&["vm.example"], &[]);
    let serving = tokio::spawn(serve_tls(listener, server.acceptor));
    let failure = probe(address, &over_tls(grpc(""), None, None), Protocol::Http1).await;
    let expected = "the endpoint does not agree on HTTP/2 in the TLS handshake (ALPN h2)";
    assert_eq!(failure, Err(expected.to_owned()));
    serving.abort();
}

#[tokio::test]
async fn grpc_is_checked_over_tls() {
    let (listener, address) = listen().await;
    let server = tls(&["127.0.0.1"], &[b"h2"]);
    let acceptor = server.acceptor;
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(tcp).await.unwrap();
        serve_h2(stream, |_, _, respond| reply(&SERVING, respond)).await
    });
    // Without a name the certificate is for the address.
    let seen = probe(address, &over_tls(grpc(""), None, Some(&server.pem)), Protocol::Http1).await;
    assert_eq!(seen, Ok(Seen::default()));
    assert_eq!(serving.await.unwrap(), "https://vm.example/grpc.health.v1.Health/Check");
}

#[tokio::test]
async fn certificates_are_checked_only_against_given_authorities() {
    let server = tls(&["vm.example"], &[]);
    let other = tls(&["vm.example"], &[]);
    for (name, ca, good) in [
        (None, None, true),
        (Some("vm.example"), Some(&*server.pem), true),
        (Some("other.example"), Some(&*server.pem), false),
        (None, Some(&*server.pem), false),
        (Some("vm.example"), Some(&*other.pem), false),
        (Some("vm.example"), Some("no PEM"), false),
    ] {
        let (listener, address) = listen().await;
        let acceptor = server.acceptor.clone();
        let serving = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            // The check ends it, well or badly.
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                stream.read_u8().await.ok();
            }
        });
        let seen = probe(address, &over_tls(check_of(HealthKind::Tcp), name, ca), Protocol::Http1).await;
        assert_eq!(seen.is_ok(), good, "{name:?}: {seen:?}");
        serving.abort();
    }
}
