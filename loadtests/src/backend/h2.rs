//! HTTP/2 as a backend speaks it, by prior knowledge on plaintext.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::answer::{
    Answer, BLOCK, EchoReport, ROOT, TRAILER, TRICKLE, TRUNCATED, UploadReport, Whole, answer,
};
use super::rewound::Rewound;
use super::{State, count};

const WINDOW: u32 = 1024 * 1024;
const MAX_STREAMS: u32 = 1024;

/// Serves one connection until either side ends it.
pub(super) async fn serve(stream: Rewound, state: Arc<State>) -> io::Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(io::Error::other)?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request.map_err(io::Error::other)?;
        count(&state.counters.requests, 1);
        let state = Arc::clone(&state);
        spawn_local(async move {
            let is_head = request.method() == Method::HEAD;
            if (Exchange { respond, state: &state, is_head }).run(request).await.is_err() {
                count(&state.counters.cancelled, 1);
            }
        });
    }
    Ok(())
}

struct Exchange<'a> {
    respond: SendResponse<Bytes>,
    state: &'a State,
    is_head: bool,
}

impl Exchange<'_> {
    async fn run(mut self, request: Request<RecvStream>) -> Result<(), h2::Error> {
        let (head, mut body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let answer = answer(path, self.state);
        match answer {
            Answer::Early => {
                self.whole(&Whole::text(StatusCode::PAYLOAD_TOO_LARGE, "too large\n"))?;
                // RFC 9113 section 8.1: the answer is complete, the rest of the request is not wanted.
                self.respond.send_reset(Reason::NO_ERROR);
                return Ok(());
            }
            Answer::Reset => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            _ => {}
        }
        let received = receive(&mut body, matches!(answer, Answer::Echo), self.state).await?;
        match answer {
            Answer::Whole(whole) => self.whole(&whole),
            Answer::Upload => {
                self.whole(&Whole::json(&UploadReport { bytes: received.bytes, crc32: received.crc32 }))
            }
            Answer::Echo => self.whole(&Whole::json(&EchoReport {
                backend: self.state.name.clone(),
                method: head.method.to_string(),
                target: path.to_owned(),
                version: "HTTP/2",
                headers: pairs(&head.headers),
                body: String::from_utf8_lossy(&received.kept).into_owned(),
                trailers: received.trailers,
            })),
            Answer::Delay(pause) => {
                sleep(pause).await;
                self.whole(&Whole::root())
            }
            Answer::Bytes(bytes) => {
                let stream = self.head(Some(bytes))?;
                self.send(stream, bytes).await
            }
            Answer::SlowBody => {
                let (pieces, pause) = TRICKLE;
                let mut stream = self.head(None)?;
                for _ in 0..pieces {
                    stream.send_data(Bytes::from_static(ROOT), false)?;
                    sleep(pause).await;
                }
                stream.send_data(Bytes::new(), true)
            }
            Answer::Truncate => {
                let (declared, sent) = TRUNCATED;
                let mut stream = self.head(Some(declared as u64))?;
                stream.send_data(Bytes::from_static(&BLOCK[..sent]), false)?;
                // Give the data its turn on the wire: a reset discards what is queued.
                sleep(TRICKLE.1).await;
                stream.send_reset(Reason::INTERNAL_ERROR);
                Ok(())
            }
            Answer::EarlyHints => {
                let mut hints = Response::new(());
                *hints.status_mut() = StatusCode::EARLY_HINTS;
                hints
                    .headers_mut()
                    .insert("link", "</style.css>; rel=preload".parse().expect("a valid value"));
                self.respond.send_informational(hints)?;
                self.whole(&Whole::root())
            }
            Answer::Trailers => {
                let mut stream = self.head(None)?;
                stream.send_data(Bytes::from_static(ROOT), false)?;
                let mut trailers = HeaderMap::new();
                trailers.insert(TRAILER.0, TRAILER.1.parse().expect("a valid value"));
                stream.send_trailers(trailers)
            }
            Answer::WebSocket => {
                self.whole(&Whole::text(StatusCode::NOT_IMPLEMENTED, "WebSocket is for HTTP/1.1 here\n"))
            }
            Answer::Early | Answer::Reset => unreachable!("returned above"),
        }
    }

    fn response(&self, status: StatusCode, content_type: &'static str, length: Option<u64>) -> Response<()> {
        let mut response = Response::builder().status(status).header("x-backend", &self.state.name);
        if status != StatusCode::NO_CONTENT {
            response = response.header(CONTENT_TYPE, content_type);
            if let Some(length) = length {
                response = response.header(CONTENT_LENGTH, length);
            }
        }
        response.body(()).expect("a backend's name is a valid header value")
    }

    fn head(&mut self, length: Option<u64>) -> Result<SendStream<Bytes>, h2::Error> {
        let response = self.response(StatusCode::OK, "application/octet-stream", length);
        self.respond.send_response(response, false)
    }

    fn whole(&mut self, whole: &Whole) -> Result<(), h2::Error> {
        let response = self.response(whole.status, whole.content_type, Some(whole.body.len() as u64));
        let bodiless = self.is_head || whole.body.is_empty();
        let mut stream = self.respond.send_response(response, bodiless)?;
        if bodiless {
            return Ok(());
        }
        count(&self.state.counters.sent_bytes, whole.body.len());
        stream.send_data(whole.body.clone(), true)
    }

    async fn send(&self, mut stream: SendStream<Bytes>, bytes: u64) -> Result<(), h2::Error> {
        let mut left = bytes;
        while left > 0 {
            stream.reserve_capacity(left.min(BLOCK.len() as u64) as usize);
            let Some(granted) = poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()? else {
                return Err(Reason::CANCEL.into());
            };
            let piece = left.min(granted as u64).min(BLOCK.len() as u64) as usize;
            stream.send_data(Bytes::from_static(&BLOCK[..piece]), false)?;
            count(&self.state.counters.sent_bytes, piece);
            left -= piece as u64;
        }
        stream.send_data(Bytes::new(), true)
    }
}

/// A request's body, read.
struct Received {
    bytes: u64,
    crc32: u32,
    kept: Vec<u8>,
    trailers: Vec<(String, String)>,
}

async fn receive(body: &mut RecvStream, keep: bool, state: &State) -> Result<Received, h2::Error> {
    let mut bytes = 0;
    let mut checksum = crc32fast::Hasher::new();
    let mut kept = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        count(&state.counters.received_bytes, piece.len());
        bytes += piece.len() as u64;
        checksum.update(&piece);
        if keep {
            kept.extend_from_slice(&piece);
        }
    }
    let trailers = body.trailers().await?.map(|trailers| pairs(&trailers)).unwrap_or_default();
    Ok(Received { bytes, crc32: checksum.finalize(), kept, trailers })
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
