//! One check of one endpoint: a connection, or a request and its status. It keeps no state and makes no judgement.

use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_core::ir::{HealthCheck, HealthKind, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// A response head longer than this is a failure.
const MAX_HEAD: usize = 16 * 1024;
/// Of a body no more than this is read; a health page is short.
const MAX_BODY: usize = 64 * 1024;
/// How long a body may take once the status is known. Reading it spares the endpoint a reset in its log, no more.
const BODY_PATIENCE: Duration = Duration::from_millis(500);

/// What a request asks for.
struct Question<'a> {
    method: &'a str,
    path: &'a str,
    host: String,
}

/// `Err` says why the check failed, in words that fit after "endpoint is unhealthy:".
pub async fn probe(address: SocketAddr, check: &HealthCheck, protocol: Protocol) -> Result<(), String> {
    let deadline = Instant::now() + check.timeout;
    let late = |_| format!("no answer within {:?}", check.timeout);
    match &check.kind {
        HealthKind::Grpc { .. } => Err("gRPC checks are not made yet".to_owned()),
        HealthKind::Tcp => timeout_at(deadline, connect(address)).await.map_err(late)?.map(drop),
        HealthKind::Http { method, path, host, expected } => {
            let host = host.as_deref().map_or_else(|| address.to_string(), str::to_owned);
            let question = Question { method, path, host };
            let status = match protocol {
                Protocol::Http2 => timeout_at(deadline, ask_h2(address, &question)).await.map_err(late)??,
                Protocol::Http1 | Protocol::Auto => {
                    let (status, rest) =
                        timeout_at(deadline, ask_h1(address, &question)).await.map_err(late)??;
                    let patience = deadline.min(Instant::now() + BODY_PATIENCE);
                    // The verdict stands already, whatever becomes of the body.
                    timeout_at(patience, read_rest(rest)).await.ok();
                    status
                }
            };
            judge(status, expected)
        }
    }
}

fn judge(status: u16, expected: &[(u16, u16)]) -> Result<(), String> {
    if expected.iter().any(|(low, high)| (*low..=*high).contains(&status)) {
        return Ok(());
    }
    let expected: Vec<_> = expected
        .iter()
        .map(|(low, high)| if low == high { low.to_string() } else { format!("{low}-{high}") })
        .collect();
    Err(format!("status {status}, expected {}", expected.join(", ")))
}

async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address).await.map_err(|error| format!("cannot connect: {error}"))
}

async fn ask_h1(address: SocketAddr, question: &Question<'_>) -> Result<(u16, TcpStream), String> {
    let mut stream = connect(address).await?;
    let Question { method, path, host } = question;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: fieldgate-health-check\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| format!("cannot send the request: {error}"))?;
    let mut received = Vec::with_capacity(1024);
    loop {
        let read = stream
            .read_buf(&mut received)
            .await
            .map_err(|error| format!("cannot read the response: {error}"))?;
        if let Some(status) = final_status(&received)? {
            return Ok((status, stream));
        }
        if read == 0 {
            return Err("the connection was closed before a response".to_owned());
        }
        if received.len() > MAX_HEAD {
            return Err(format!("the response head is longer than {MAX_HEAD} bytes"));
        }
    }
}

/// The status of the first response that is not an interim one (RFC 9110 section 15.2), once its head is complete.
pub(super) fn final_status(mut received: &[u8]) -> Result<Option<u16>, String> {
    while let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
        let status = status_of(received)?;
        if status >= 200 {
            return Ok(Some(status));
        }
        received = &received[end + 4..];
    }
    Ok(None)
}

fn status_of(head: &[u8]) -> Result<u16, String> {
    let digits = head
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(1..5))
        .and_then(|rest| rest.strip_prefix(b" "))
        .and_then(|digits| std::str::from_utf8(digits).ok());
    match digits.map(str::parse::<u16>) {
        Some(Ok(status)) if (100..=999).contains(&status) => Ok(status),
        _ => Err("the answer is not HTTP/1".to_owned()),
    }
}

async fn read_rest(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    let mut total = 0;
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        total += read;
        if total > MAX_BODY {
            return;
        }
    }
}

async fn ask_h2(address: SocketAddr, question: &Question<'_>) -> Result<u16, String> {
    let stream = connect(address).await?;
    let (sender, connection) =
        h2::client::handshake(stream).await.map_err(|error| format!("no HTTP/2: {error}"))?;
    let driver = tokio::spawn(connection);
    let status = request_h2(sender, question).await;
    driver.abort();
    status
}

async fn request_h2(
    sender: h2::client::SendRequest<bytes::Bytes>,
    question: &Question<'_>,
) -> Result<u16, String> {
    let failed = |error: h2::Error| format!("the HTTP/2 request failed: {error}");
    let request = http::Request::builder()
        .method(question.method)
        .uri(format!("http://{}{}", question.host, question.path))
        .header("user-agent", "fieldgate-health-check")
        .body(())
        .map_err(|error| format!("the check's request is invalid: {error}"))?;
    let mut sender = sender.ready().await.map_err(failed)?;
    let (response, _) = sender.send_request(request, true).map_err(failed)?;
    Ok(response.await.map_err(failed)?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::TcpListener;

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

    /// Answers one connection with `response`; the result is what was asked.
    async fn endpoint(response: &'static str) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (address, asked)
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
        check(
            "HTTP/1.1 503 No\r\n\r\n",
            &[(200, 299), (401, 401)],
            Some("status 503, expected 200-299, 401"),
        )
        .await;
        check("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", &[(200, 200)], None).await;
    }

    #[tokio::test]
    async fn what_is_not_http_fails() {
        check("220 mail.example ESMTP\r\n\r\n", &[(200, 299)], Some("the answer is not HTTP/1")).await;
        check("", &[(200, 299)], Some("the connection was closed before a response")).await;
        check("HTTP/1.1 200 OK\r\n", &[(200, 299)], Some("the connection was closed before a response"))
            .await;
    }

    #[tokio::test]
    async fn a_tcp_check_needs_an_open_port() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(probe(address, &check_of(HealthKind::Tcp), Protocol::Http1).await, Ok(()));
        drop(listener);
        let refused = probe(address, &check_of(HealthKind::Tcp), Protocol::Http1).await.unwrap_err();
        assert!(refused.starts_with("cannot connect: "), "{refused}");
    }

    #[tokio::test]
    async fn a_silent_endpoint_fails_at_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut check = http(&[(200, 299)]);
        check.timeout = Duration::from_millis(20);
        let late = probe(listener.local_addr().unwrap(), &check, Protocol::Http1).await;
        assert_eq!(late, Err("no answer within 20ms".to_owned()));
    }

    #[tokio::test]
    async fn an_http2_pool_is_asked_in_http2() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            respond.send_response(http::Response::builder().status(204).body(()).unwrap(), true).unwrap();
            // Drives the connection until the check is gone.
            while connection.accept().await.is_some() {}
            Arc::<str>::from(request.uri().to_string())
        });
        assert_eq!(probe(address, &http(&[(200, 299)]), Protocol::Http2).await, Ok(()));
        assert_eq!(&*asked.await.unwrap(), "http://vm.example/healthz");
    }
}
