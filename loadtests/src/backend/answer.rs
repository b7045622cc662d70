//! Which answer a path stands for, in terms that both protocols can write.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;

use super::State;

/// The body of `/`.
pub(super) const ROOT: &[u8; 128] = &[b'.'; 128];
/// What streamed bodies repeat.
pub(super) static BLOCK: [u8; 64 * 1024] = [b'.'; 64 * 1024];
/// `/slow-body` sends this many pieces, one per pause.
pub(super) const TRICKLE: (usize, Duration) = (10, Duration::from_millis(100));
/// `/truncate` declares the first and sends the second.
pub(super) const TRUNCATED: (usize, usize) = (1000, 500);
/// The trailer that `/trailers` ends with.
pub(super) const TRAILER: (&str, &str) = ("x-trailer", "the end");

/// An answer, before a protocol writes it.
pub(super) enum Answer {
    /// A complete answer.
    Whole(Whole),
    /// As many bytes as asked for.
    Bytes(u64),
    /// `/` after a pause.
    Delay(Duration),
    /// A body that trickles.
    SlowBody,
    /// A body that ends before its declared length.
    Truncate,
    /// The connection or stream is reset instead of an answer.
    Reset,
    /// 413 before the body was read.
    Early,
    /// 103, then `/`.
    EarlyHints,
    /// A body with a trailer.
    Trailers,
    /// Length and checksum of the request's body.
    Upload,
    /// The request itself.
    Echo,
    /// A WebSocket that echoes.
    WebSocket,
}

/// A complete answer.
pub(super) struct Whole {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

impl Whole {
    pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, content_type: "text/plain", body: body.into() }
    }

    pub(super) fn json(body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("plain data is JSON");
        Self { status: StatusCode::OK, content_type: "application/json", body: body.into() }
    }

    pub(super) fn root() -> Self {
        Self::text(StatusCode::OK, &ROOT[..])
    }
}

/// What `/upload` answers.
#[derive(Serialize)]
pub(super) struct UploadReport {
    pub(super) bytes: u64,
    pub(super) crc32: u32,
}

/// What `/echo` answers.
#[derive(Serialize, Default)]
pub(super) struct EchoReport {
    pub(super) backend: String,
    pub(super) method: String,
    pub(super) target: String,
    pub(super) version: &'static str,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) trailers: Vec<(String, String)>,
}

/// The answer that a path stands for. Asking for `/healthz/fail` and `/healthz/ok` sets what `/healthz` says.
pub(super) fn answer(path: &str, state: &State) -> Answer {
    let path = path.split('?').next().unwrap_or_default();
    match path {
        "/upload" => return Answer::Upload,
        "/echo" => return Answer::Echo,
        "/slow-body" => return Answer::SlowBody,
        "/truncate" => return Answer::Truncate,
        "/reset" => return Answer::Reset,
        "/early" => return Answer::Early,
        "/103" => return Answer::EarlyHints,
        "/trailers" => return Answer::Trailers,
        "/ws" => return Answer::WebSocket,
        "/stats" => return Answer::Whole(Whole::json(&state.counters)),
        "/healthz" => return Answer::Whole(health(state)),
        "/healthz/fail" => state.healthy.store(false, Ordering::Relaxed),
        "/healthz/ok" => state.healthy.store(true, Ordering::Relaxed),
        _ => {}
    }
    if let Some(bytes) = number(path, "/bytes/") {
        Answer::Bytes(bytes)
    } else if let Some(millis) = number(path, "/delay/") {
        Answer::Delay(Duration::from_millis(millis))
    } else if let Some(code) = number(path, "/status/") {
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        Answer::Whole(Whole::text(status.unwrap_or(StatusCode::BAD_REQUEST), Bytes::new()))
    } else {
        // Every other path is `/`, so that routes of any shape can be tested.
        Answer::Whole(Whole::root())
    }
}

fn health(state: &State) -> Whole {
    if state.healthy.load(Ordering::Relaxed) {
        Whole::text(StatusCode::OK, "ok\n")
    } else {
        Whole::text(StatusCode::SERVICE_UNAVAILABLE, "failing on request\n")
    }
}

fn number(path: &str, prefix: &str) -> Option<u64> {
    path.strip_prefix(prefix)?.parse().ok()
}
