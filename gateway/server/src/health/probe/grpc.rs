//! A check by gRPC's health protocol, `grpc.health.v1.Health/Check`.
//!
//! The two messages have one field each, so that they are written and read here by hand.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response};

use super::{PATIENCE, Seen, Socket};

/// A response longer than this is a failure; the real one has two bytes.
const MAX_MESSAGE: usize = 16 * 1024;
/// gRPC puts a byte of flags and a length before each message.
const PREFIX: usize = 5;

/// What is asked.
pub(super) struct Question<'a> {
    /// Empty is the server as a whole.
    pub(super) service: &'a str,
    pub(super) authority: String,
    pub(super) scheme: &'a str,
    pub(super) timeout: Duration,
}

/// Asks, and says why the endpoint is not SERVING.
pub(super) async fn ask(stream: Box<dyn Socket>, question: &Question<'_>) -> Result<Seen, String> {
    let request = http::Request::builder()
        .method("POST")
        .uri(format!("{}://{}/grpc.health.v1.Health/Check", question.scheme, question.authority))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "fieldgate-health-check")
        // At most eight digits.
        .header("grpc-timeout", format!("{}m", question.timeout.as_millis().min(99_999_999)))
        .body(())
        .map_err(|error| format!("the check's request is invalid: {error}"))?;
    let (sender, mut connection) =
        h2::client::handshake(stream).await.map_err(|error| format!("no HTTP/2: {error}"))?;
    let verdict = tokio::select! {
        // The answer first: a connection that ends just after it does not take it away.
        biased;
        verdict = exchange(sender, request, question.service) => verdict?,
        ended = &mut connection => return Err(match ended {
            Ok(()) => "the connection was closed before a response".to_owned(),
            Err(error) => format!("the HTTP/2 connection failed: {error}"),
        }),
    };
    tokio::time::timeout(PATIENCE.min(question.timeout), connection).await.ok();
    Ok(verdict)
}

async fn exchange(
    sender: h2::client::SendRequest<Bytes>,
    request: http::Request<()>,
    service: &str,
) -> Result<Seen, String> {
    let failed = |error: h2::Error| format!("the HTTP/2 request failed: {error}");
    let mut sender = sender.ready().await.map_err(failed)?;
    let (response, mut body) = sender.send_request(request, false).map_err(failed)?;
    body.send_data(encode(service), true).map_err(failed)?;
    let mut response = response.await.map_err(failed)?;
    is_grpc(&response)?;
    // An answer without a body has its status in the head.
    let mut known = status(response.headers(), service)?;
    let mut message = BytesMut::new();
    while let Some(data) = response.body_mut().data().await {
        let data = data.map_err(failed)?;
        response.body_mut().flow_control().release_capacity(data.len()).map_err(failed)?;
        message.put(data);
        if message.len() > MAX_MESSAGE {
            return Err(format!("the gRPC response is longer than {MAX_MESSAGE} bytes"));
        }
    }
    if let Some(trailers) = response.body_mut().trailers().await.map_err(failed)? {
        known |= status(&trailers, service)?;
    }
    if !known {
        return Err("the gRPC response ended without a status".to_owned());
    }
    serving(&message, service)
}

fn is_grpc(response: &Response<h2::RecvStream>) -> Result<(), String> {
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let code = response.status().as_u16();
    if code != 200 {
        return Err(format!("status {code}, where gRPC answers 200"));
    }
    if !kind.starts_with("application/grpc") {
        return Err(format!("the answer is not gRPC: content-type {kind:?}"));
    }
    Ok(())
}

/// Whether there is a status; one that is not OK is why the check failed.
fn status(headers: &HeaderMap, service: &str) -> Result<bool, String> {
    let Some(code) = headers.get("grpc-status") else { return Ok(false) };
    let code = code.to_str().unwrap_or_default();
    let text = headers.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    let of = named(service);
    let why = match code {
        "0" => return Ok(true),
        "5" => format!("the endpoint does not know {of} (gRPC status 5, NOT_FOUND)"),
        "12" => {
            "the endpoint does not offer grpc.health.v1.Health (gRPC status 12, UNIMPLEMENTED)".to_owned()
        }
        code => {
            let text: String = text.chars().take(200).collect();
            let colon = if text.is_empty() { "" } else { ": " };
            format!("gRPC status {code}, {}{colon}{text}", name_of(code))
        }
    };
    Err(why)
}

fn name_of(code: &str) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    code.parse::<usize>().ok().and_then(|code| NAMES.get(code).copied()).unwrap_or("which is none")
}

fn named(service: &str) -> String {
    if service.is_empty() { "the server as a whole".to_owned() } else { format!("the service {service:?}") }
}

/// `HealthCheckRequest { string service = 1; }` behind its prefix.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut len = service.len();
        while len >= 0x80 {
            message.put_u8(len as u8 | 0x80);
            len >>= 7;
        }
        message.put_u8(len as u8);
        message.put(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.put(message);
    framed.freeze()
}

fn serving(framed: &[u8], service: &str) -> Result<Seen, String> {
    let of = named(service);
    match decode(framed).ok_or("the gRPC response is no HealthCheckResponse")? {
        1 => Ok(Seen::default()),
        0 => Err(format!("{of} says UNKNOWN")),
        2 => Err(format!("{of} says NOT_SERVING")),
        3 => Err(format!("the endpoint does not know {of} (SERVICE_UNKNOWN)")),
        other => Err(format!("{of} says {other}, which is no status of grpc.health.v1")),
    }
}

/// The status in `HealthCheckResponse { ServingStatus status = 1; }` behind its prefix. Fields that are not known are
/// passed over; a field that is not there is 0.
fn decode(framed: &[u8]) -> Option<u64> {
    let (prefix, mut message) = framed.split_at_checked(PREFIX)?;
    let len = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    // No compression was offered, so that there must be none; and there is one message.
    if prefix[0] != 0 || len != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message)?;
                status = if tag >> 3 == 1 { value } else { status };
            }
            1 => message = message.get(8..)?,
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(len..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_protobuf() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("shop")[..], b"\0\0\0\0\x06\x0a\x04shop");
        let long = "s".repeat(300);
        assert_eq!(&encode(&long)[..8], [0, 0, 0, 1, 0x2f, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn responses_are_read_with_care() {
        for (message, expected) in [
            (&b"\0\0\0\0\0"[..], Some(0)),
            (b"\0\0\0\0\x02\x08\x01", Some(1)),
            (b"\0\0\0\0\x05\x12\x01x\x08\x02", Some(2)),
            (b"\0\0\0\0\x02\x10\x01", Some(0)),
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"\0\0\0\0\x03\x08\x01", None),
            (b"\0\0\0\0\x01\x08", None),
            (b"\0\0\0\0\x02\x12\x09", None),
            (b"\0\0\0", None),
        ] {
            assert_eq!(decode(message), expected, "{message:?}");
        }
    }
}
