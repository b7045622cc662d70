//! HTTP/2 as a backend speaks it, by prior knowledge.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::answer::{
    Answer, BLOCK, Cut, EchoReport, GRPC_MESSAGE, ROOT, Receipt, TRAILER, TRICKLE, UploadReport, Whole,
    answer,
};
use super::rewound::Rewound;
use super::{NEVER, State, Transport, count, websocket};

const WINDOW: u32 = 1024 * 1024;
const MAX_STREAMS: u32 = 1024;

/// Serves one connection until either side ends it.
pub(super) async fn serve<S: Transport>(stream: Rewound<S>, state: Arc<State>) -> io::Result<()> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(io::Error::other)?;
    let cut = Rc::new(Notify::new());
    let mut requests = 0;
    let mut idle = state.close_idle;
    loop {
        let accepted = tokio::select! {
            accepted = timeout(idle, connection.accept()) => accepted,
            () = cut.notified() => return Ok(()),
        };
        let Ok(accepted) = accepted else {
            // As servers do: what is under way ends, what comes too late was not begun.
            connection.graceful_shutdown();
            idle = NEVER;
            continue;
        };
        let Some(request) = accepted else { return Ok(()) };
        let (request, respond) = request.map_err(io::Error::other)?;
        count(&state.counters.requests, 1);
        requests += 1;
        if requests == state.close_after {
            connection.graceful_shutdown();
        }
        let (state, cut) = (Arc::clone(&state), Rc::clone(&cut));
        spawn_local(async move {
            let is_head = request.method() == Method::HEAD;
            if (Exchange { respond, state: &state, is_head, cut }).run(request).await.is_err() {
                count(&state.counters.cancelled, 1);
            }
        });
    }
}

struct Exchange<'a> {
    respond: SendResponse<Bytes>,
    state: &'a State,
    is_head: bool,
    /// Ends the connection.
    cut: Rc<Notify>,
}

impl Exchange<'_> {
    async fn run(mut self, request: Request<RecvStream>) -> Result<(), h2::Error> {
        let (head, mut body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let state = self.state;
        let _place = state.work(path).await;
        let answer = answer(path, state);
        match answer {
            Answer::Early => {
                self.whole(&Whole::text(StatusCode::PAYLOAD_TOO_LARGE, "too large\n"))?;
                // Give the answer its turn on the wire: a reset discards what is queued.
                sleep(TRICKLE.1).await;
                // RFC 9113 section 8.1: the answer is complete, the rest of the request is not wanted.
                self.respond.send_reset(Reason::NO_ERROR);
                return Ok(());
            }
            Answer::Reset => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            Answer::Duplex => return self.duplex(body).await,
            Answer::Stall => self.state.resumed().await,
            _ => {}
        }
        if head.extensions.get::<Protocol>().is_some() {
            // RFC 8441: the body is the tunnel, so there is none to wait for.
            return match answer {
                Answer::WebSocket => self.websocket(body).await,
                Answer::Whole(whole) => self.whole(&whole),
                _ => self.whole(&Whole::root()),
            };
        }
        if head.headers.contains_key("expect") {
            let mut interim = Response::new(());
            *interim.status_mut() = StatusCode::CONTINUE;
            self.respond.send_informational(interim)?;
        }
        let received = receive(&mut body, matches!(answer, Answer::Echo), self.state).await?;
        match answer {
            Answer::Whole(whole) => self.whole(&whole),
            Answer::Upload | Answer::Stall => {
                self.state.receipt(Receipt {
                    method: head.method.to_string(),
                    target: path.to_owned(),
                    host: head.uri.authority().map(ToString::to_string).unwrap_or_default(),
                    bytes: received.bytes,
                    crc32: received.crc32,
                    trailers: received.trailers,
                });
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
                self.pause(pause).await?;
                self.whole(&Whole::root())
            }
            Answer::Bytes(bytes) => {
                let Some(mut stream) = self.head(Some(bytes))? else { return Ok(()) };
                self.send(&mut stream, bytes).await?;
                stream.send_data(Bytes::new(), true)
            }
            Answer::SlowBody => {
                let (pieces, pause) = TRICKLE;
                let Some(mut stream) = self.head(None)? else { return Ok(()) };
                for _ in 0..pieces {
                    stream.send_data(Bytes::from_static(ROOT), false)?;
                    sleep(pause).await;
                }
                stream.send_data(Bytes::new(), true)
            }
            Answer::Swallow => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                Ok(())
            }
            Answer::Truncate(cut, bytes) => self.truncate(cut, bytes).await,
            Answer::EarlyHints(hints) => {
                for number in 1..=hints {
                    let mut hint = Response::new(());
                    *hint.status_mut() = StatusCode::EARLY_HINTS;
                    let link = format!("</{number}.css>; rel=preload");
                    hint.headers_mut().insert("link", link.parse().expect("a valid value"));
                    self.respond.send_informational(hint)?;
                }
                self.whole(&Whole::root())
            }
            Answer::Trailers => {
                let Some(mut stream) = self.head(None)? else { return Ok(()) };
                stream.send_data(Bytes::from_static(ROOT), false)?;
                let mut trailers = HeaderMap::new();
                trailers.insert(TRAILER.0, TRAILER.1.parse().expect("a valid value"));
                stream.send_trailers(trailers)
            }
            Answer::Grpc(messages) => self.grpc(messages).await,
            Answer::WebSocket => {
                self.whole(&Whole::text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket\n"))
            }
            Answer::Early | Answer::Reset | Answer::Duplex => unreachable!("returned above"),
        }
    }

    /// Messages in a frame each, as fast as the client takes them.
    async fn grpc(&mut self, messages: u64) -> Result<(), h2::Error> {
        let response = self.response(StatusCode::OK, "application/grpc", None);
        let mut stream = self.respond.send_response(response, false)?;
        for _ in 0..messages {
            self.send_all(&mut stream, Bytes::from_static(&GRPC_MESSAGE)).await?;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        stream.send_trailers(trailers)
    }

    /// Half of a body of this many bytes, and then the end of the stream or connection.
    async fn truncate(&mut self, cut: Cut, bytes: u64) -> Result<(), h2::Error> {
        let Some(mut stream) = self.head(cut.is_counted().then_some(2 * bytes))? else { return Ok(()) };
        self.send(&mut stream, bytes).await?;
        if cut == Cut::Short {
            return stream.send_data(Bytes::new(), true);
        }
        // As with the early answer.
        sleep(TRICKLE.1).await;
        match cut {
            Cut::Connection => self.cut.notify_one(),
            Cut::NoError => stream.send_reset(Reason::NO_ERROR),
            _ => stream.send_reset(Reason::INTERNAL_ERROR),
        }
        Ok(())
    }

    /// Sends the body back while it comes.
    async fn duplex(&mut self, mut body: RecvStream) -> Result<(), h2::Error> {
        let Some(mut stream) = self.head(None)? else { return Ok(()) };
        while let Some(piece) = body.data().await {
            let mut piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            while !piece.is_empty() {
                let granted = granted(&mut stream, piece.len()).await?;
                stream.send_data(piece.split_to(granted), false)?;
            }
        }
        stream.send_data(Bytes::new(), true)
    }

    /// A pause that ends early, with an error, when the client resets the stream.
    async fn pause(&mut self, pause: Duration) -> Result<(), h2::Error> {
        match timeout(pause, poll_fn(|cx| self.respond.poll_reset(cx))).await {
            Ok(reason) => Err(reason?.into()),
            Err(_) => Ok(()),
        }
    }

    async fn websocket(mut self, mut body: RecvStream) -> Result<(), h2::Error> {
        let response = Response::builder().header("x-backend", &self.state.name).body(());
        let mut stream =
            self.respond.send_response(response.expect("a backend's name is a valid header value"), false)?;
        let mut input = BytesMut::new();
        loop {
            let mut output = Vec::new();
            let closed = websocket::answer_frames(&mut input, &mut output);
            self.send_all(&mut stream, output.into()).await?;
            if closed.map_err(|_| Reason::PROTOCOL_ERROR)? {
                break;
            }
            let Some(piece) = body.data().await.transpose()? else { break };
            body.flow_control().release_capacity(piece.len())?;
            count(&self.state.counters.received_bytes, piece.len());
            input.extend_from_slice(&piece);
        }
        stream.send_data(Bytes::new(), true)
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

    /// Sends a head; nothing follows it in the answer to HEAD.
    fn head(&mut self, length: Option<u64>) -> Result<Option<SendStream<Bytes>>, h2::Error> {
        let response = self.response(StatusCode::OK, "application/octet-stream", length);
        let stream = self.respond.send_response(response, self.is_head)?;
        Ok((!self.is_head).then_some(stream))
    }

    fn whole(&mut self, whole: &Whole) -> Result<(), h2::Error> {
        let response = self.response(whole.status, whole.content_type, whole.length);
        let bodiless = self.is_head || whole.body.is_empty();
        let mut stream = self.respond.send_response(response, bodiless)?;
        if bodiless {
            return Ok(());
        }
        count(&self.state.counters.sent_bytes, whole.body.len());
        stream.send_data(whole.body.clone(), true)
    }

    async fn send(&self, stream: &mut SendStream<Bytes>, bytes: u64) -> Result<(), h2::Error> {
        let mut left = bytes;
        while left > 0 {
            let piece = granted(stream, left.min(BLOCK.len() as u64) as usize).await?;
            stream.send_data(Bytes::from_static(&BLOCK[..piece]), false)?;
            count(&self.state.counters.sent_bytes, piece);
            left -= piece as u64;
        }
        Ok(())
    }

    async fn send_all(&self, stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(granted(stream, bytes.len()).await?);
            count(&self.state.counters.sent_bytes, piece.len());
            stream.send_data(piece, false)?;
        }
        Ok(())
    }
}

/// Waits until some of this many bytes may be sent; how many.
async fn granted(stream: &mut SendStream<Bytes>, wanted: usize) -> Result<usize, h2::Error> {
    stream.reserve_capacity(wanted);
    let granted = poll_fn(|cx| stream.poll_capacity(cx)).await.transpose()?;
    granted.map(|granted| granted.min(wanted)).ok_or(Reason::CANCEL.into())
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
