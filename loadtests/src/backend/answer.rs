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
/// What `/truncate` sends before the cut; it declares twice as much.
const TRUNCATED: u64 = 500;
/// The trailer that `/trailers` ends with.
pub(super) const TRAILER: (&str, &str) = ("x-trailer", "the end");

/// A message of `/grpc/N`: a prefix that says that it is not compressed and how long it is, and that much.
pub(super) static GRPC_MESSAGE: [u8; 133] = {
    let mut message = [b'.'; 133];
    [message[0], message[1], message[2], message[3], message[4]] = [0, 0, 0, 0, 128];
    message
};

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
    /// A body that ends after so many bytes, which are half of it.
    Truncate(Cut, u64),
    /// The connection or stream is reset instead of an answer.
    Reset,
    /// The request is read in full, and then the connection or stream ends.
    Swallow,
    /// 413 before the body was read.
    Early,
    /// So many 103, then `/`.
    EarlyHints(u64),
    /// A body with a trailer.
    Trailers,
    /// So many messages of gRPC, and the trailer that says that all went well.
    Grpc(u64),
    /// Length and checksum of the request's body.
    Upload,
    /// As `Upload`, but nothing is read before somebody asks for `/resume`.
    Stall,
    /// The request's body, sent back as it comes.
    Duplex,
    /// The request itself.
    Echo,
    /// A WebSocket that echoes.
    WebSocket,
}

/// How a body is cut short. What HTTP/1.1 has no such way for, it does by closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A declared length is not reached: the connection closes, or in HTTP/2 the stream is reset.
    Length,
    /// Without a declared length, between two chunks.
    BetweenChunks,
    /// Without a declared length, within a chunk.
    WithinChunk,
    /// A declared length is not reached: the connection is reset; in HTTP/2 it closes.
    Connection,
    /// HTTP/2: the stream ends in good order before its declared length.
    Short,
    /// HTTP/2: the stream is reset with NO_ERROR.
    NoError,
}

impl Cut {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "length" => Self::Length,
            "between-chunks" => Self::BetweenChunks,
            "within-chunk" => Self::WithinChunk,
            "connection" => Self::Connection,
            "short" => Self::Short,
            "no-error" => Self::NoError,
            _ => return None,
        })
    }

    /// Whether the length is declared.
    pub(super) fn is_counted(self) -> bool {
        !matches!(self, Self::BetweenChunks | Self::WithinChunk)
    }
}

/// A complete answer.
pub(super) struct Whole {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
    /// What `content-length` says, if it is there.
    pub(super) length: Option<u64>,
}

impl Whole {
    pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain", body.into())
    }

    /// No body; 204 and 304 declare a length only if the query says which.
    fn status(code: u64, query: &str) -> Self {
        let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        let mut whole = Self::text(status.unwrap_or(StatusCode::BAD_REQUEST), Bytes::new());
        if matches!(code, 204 | 304) {
            whole.length = number(query, "length=");
        }
        whole
    }

    fn new(status: StatusCode, content_type: &'static str, body: Bytes) -> Self {
        let length = Some(body.len() as u64);
        Self { status, content_type, body, length }
    }

    pub(super) fn json(body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("plain data is JSON");
        Self::new(StatusCode::OK, "application/json", body.into())
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

/// What is known of a request whose body was summed up.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Receipt {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
    pub(super) bytes: u64,
    pub(super) crc32: u32,
    pub(super) trailers: Vec<(String, String)>,
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

/// The answer that a path stands for. What went to `/upload` is listed by `/received`. Asking for `/healthz/fail` and `/healthz/ok` sets what `/healthz` says.
pub(super) fn answer(path: &str, state: &State) -> Answer {
    if !super::is_exempt(path)
        && let Some(fault) = state.faults.answer()
    {
        return fault;
    }
    let path = match &state.always {
        Some(always) if !matches!(path, "/stats" | "/received") => always,
        _ => path,
    };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    match path {
        "/upload" => return Answer::Upload,
        "/stall" => return Answer::Stall,
        "/duplex" => return Answer::Duplex,
        "/swallow" => return Answer::Swallow,
        "/echo" => return Answer::Echo,
        "/slow-body" => return Answer::SlowBody,
        "/truncate" => return Answer::Truncate(Cut::Length, TRUNCATED),
        "/reset" => return Answer::Reset,
        "/early" => return Answer::Early,
        "/103" => return Answer::EarlyHints(1),
        "/trailers" => return Answer::Trailers,
        "/ws" => return Answer::WebSocket,
        "/stats" => return Answer::Whole(Whole::json(&state.counters)),
        "/received" => {
            let received = state.received.lock().expect("nobody panics with the lock");
            return Answer::Whole(Whole::json(&*received));
        }
        "/healthz" => return Answer::Whole(health(state)),
        "/healthz/fail" => state.healthy.store(false, Ordering::Relaxed),
        "/healthz/ok" => state.healthy.store(true, Ordering::Relaxed),
        "/resume" => state.resumed.send_modify(|times| *times += 1),
        _ => {}
    }
    if let Some(bytes) = number(path, "/bytes/") {
        Answer::Bytes(bytes)
    } else if let Some(messages) = number(path, "/grpc/") {
        Answer::Grpc(messages)
    } else if let Some(millis) = number(path, "/delay/") {
        Answer::Delay(Duration::from_millis(millis))
    } else if let Some(code) = number(path, "/status/") {
        Answer::Whole(Whole::status(code, query))
    } else if let Some(count) = number(path, "/103/") {
        Answer::EarlyHints(count)
    } else if let Some((cut, bytes)) = path.strip_prefix("/truncate/").and_then(|way| way.split_once('/')) {
        Answer::Truncate(Cut::parse(cut).unwrap_or(Cut::Length), bytes.parse().unwrap_or(TRUNCATED))
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
