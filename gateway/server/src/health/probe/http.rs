//! A check's HTTP request and the status of its answer, in HTTP/1.1 or HTTP/2.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Opened, Seen, Socket};

/// A response head longer than this is a failure.
const MAX_HEAD: usize = 16 * 1024;
/// Of a body no more than this is read; a health page is short.
const MAX_BODY: usize = 64 * 1024;
/// Its presence says that the endpoint works but should get less.
const DEGRADED: &str = "x-envoy-degraded";

/// What a request asks for.
pub(super) struct Question<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) host: String,
    pub(super) scheme: &'a str,
}

/// What the head of an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: u16,
    degraded: bool,
}

impl Answer {
    pub(super) fn judge(self, expected: &[(u16, u16)]) -> Result<Seen, String> {
        let Self { status, degraded } = self;
        if expected.iter().any(|(low, high)| (*low..=*high).contains(&status)) {
            return Ok(Seen { degraded });
        }
        let expected: Vec<_> = expected
            .iter()
            .map(|(low, high)| if low == high { low.to_string() } else { format!("{low}-{high}") })
            .collect();
        Err(format!("status {status}, expected {}", expected.join(", ")))
    }
}

/// A connection whose answer is known.
pub(super) enum Rest {
    /// With the body still to come.
    One(Box<dyn Socket>),
    /// Whose streams are given up.
    Two(Box<h2::client::Connection<Box<dyn Socket>, Bytes>>),
}

impl Rest {
    /// Ends the connection without a reset.
    pub(super) async fn end(self) {
        match self {
            Self::One(mut stream) => {
                let mut buffer = [0; 4096];
                let mut total = 0;
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    total += read;
                    if total > MAX_BODY {
                        return;
                    }
                }
                stream.shutdown().await.ok();
            }
            Self::Two(connection) => drop(connection.await),
        }
    }
}

/// Asks, and reads until the status is known.
pub(super) async fn ask(opened: Opened, question: &Question<'_>) -> Result<(Answer, Rest), String> {
    if opened.http2 { ask_h2(opened.stream, question).await } else { ask_h1(opened.stream, question).await }
}

async fn ask_h1(mut stream: Box<dyn Socket>, question: &Question<'_>) -> Result<(Answer, Rest), String> {
    let Question { method, path, host, .. } = question;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: fieldgate-health-check\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    let sent = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| format!("cannot send the request: {error}"))?;
    let mut received = Vec::with_capacity(1024);
    loop {
        let read = stream
            .read_buf(&mut received)
            .await
            .map_err(|error| format!("cannot read the response: {error}"))?;
        if let Some(answer) = final_answer(&received)? {
            return Ok((answer, Rest::One(stream)));
        }
        if read == 0 {
            return Err("the connection was closed before a response".to_owned());
        }
        if received.len() > MAX_HEAD {
            return Err(format!("the response head is longer than {MAX_HEAD} bytes"));
        }
    }
}

/// The status of the first response that is not an interim one. For the fuzz targets.
#[cfg(fuzzing)]
pub(in crate::health) fn final_status(received: &[u8]) -> Result<Option<u16>, String> {
    Ok(final_answer(received)?.map(|answer| answer.status))
}

/// The first response that is not an interim one (RFC 9110 section 15.2), once its head is complete.
fn final_answer(mut received: &[u8]) -> Result<Option<Answer>, String> {
    while let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
        let status = status_of(received)?;
        if status >= 200 {
            return Ok(Some(Answer { status, degraded: is_degraded(&received[..end]) }));
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

fn is_degraded(head: &[u8]) -> bool {
    let mut names = head.split(|b| *b == b'\n').skip(1).filter_map(|line| line.split(|b| *b == b':').next());
    names.any(|name| name.eq_ignore_ascii_case(DEGRADED.as_bytes()))
}

async fn ask_h2(stream: Box<dyn Socket>, question: &Question<'_>) -> Result<(Answer, Rest), String> {
    let request = http::Request::builder()
        .method(question.method)
        .uri(format!("{}://{}{}", question.scheme, question.host, question.path))
        .header("user-agent", "fieldgate-health-check")
        .body(())
        .map_err(|error| format!("the check's request is invalid: {error}"))?;
    let (sender, mut connection) =
        h2::client::handshake(stream).await.map_err(|error| format!("no HTTP/2: {error}"))?;
    let answer = tokio::select! {
        // The answer first: a connection that ends just after it does not take it away.
        biased;
        answer = request_h2(sender, request) => answer?,
        ended = &mut connection => return Err(match ended {
            Ok(()) => "the connection was closed before a response".to_owned(),
            Err(error) => format!("the HTTP/2 connection failed: {error}"),
        }),
    };
    Ok((answer, Rest::Two(Box::new(connection))))
}

async fn request_h2(
    sender: h2::client::SendRequest<Bytes>,
    request: http::Request<()>,
) -> Result<Answer, String> {
    let failed = |error: h2::Error| format!("the HTTP/2 request failed: {error}");
    let mut sender = sender.ready().await.map_err(failed)?;
    let (response, _) = sender.send_request(request, true).map_err(failed)?;
    let response = response.await.map_err(failed)?;
    let degraded = response.headers().contains_key(DEGRADED);
    Ok(Answer { status: response.status().as_u16(), degraded })
}
