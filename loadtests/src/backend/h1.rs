//! HTTP/1.1 as a backend speaks it: keep-alive, pipelining (answers to what has arrived leave in one write),
//! chunked and counted bodies, 100-continue. Heads are parsed leniently; strictness is the proxy's task.

use std::io;
use std::io::Write as _;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::answer::{
    Answer, BLOCK, Cut, EchoReport, ROOT, Receipt, TRAILER, TRICKLE, UploadReport, Whole, answer,
};
use super::{State, Transport, count, websocket};

/// Bytes of a connection's input buffer.
pub(super) const BUFFER: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;

/// The bytes that answer `/`.
pub(super) fn root_answer(name: &str) -> Vec<u8> {
    let mut output = Vec::new();
    write_head(&mut output, name, StatusCode::OK, "text/plain", Length::Known(ROOT.len() as u64), true);
    output.extend_from_slice(ROOT);
    output
}

/// Serves one connection until either side ends it; `input` is what was read of it already.
pub(super) async fn serve<S: Transport>(stream: S, input: BytesMut, state: &State) -> io::Result<()> {
    let mut connection = Connection { stream, input, output: Vec::new(), state };
    let mut answers = 0;
    while answers < state.close_after {
        match connection.next()? {
            Next::Incomplete => {
                connection.flush().await?;
                match timeout(state.close_idle, connection.fill()).await {
                    Ok(Ok(1..)) => {}
                    Ok(Ok(0)) | Err(_) => return Ok(()),
                    Ok(Err(error)) => return Err(error),
                }
                continue;
            }
            Next::Root => connection.output.extend_from_slice(&state.root_h1),
            Next::Request(request) => {
                let after = connection.respond(request).await;
                match after.inspect_err(|_| count(&state.counters.cancelled, 1))? {
                    After::Keep => {}
                    After::Close => break,
                    After::Reset => {
                        // A zero linger makes the close a RST.
                        return socket2::SockRef::from(connection.stream.tcp())
                            .set_linger(Some(Duration::ZERO));
                    }
                }
            }
        }
        answers += 1;
    }
    connection.flush().await?;
    connection.stream.shutdown().await
}

struct Connection<'a, S> {
    stream: S,
    input: BytesMut,
    output: Vec<u8>,
    state: &'a State,
}

enum Next {
    Incomplete,
    /// `/` without a body, on a connection that stays: the hot path.
    Root,
    Request(Box<Request>),
}

struct Request {
    method: String,
    target: String,
    minor: u8,
    headers: Vec<(String, String)>,
    body: Body,
    keep_alive: bool,
    expects_continue: bool,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

#[derive(PartialEq, Eq)]
enum After {
    Keep,
    Close,
    Reset,
}

/// Where a request's body stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Done,
    Counted(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

/// How an answer's length is told.
enum Length {
    Known(u64),
    Chunked,
    Unsaid,
}

impl<S: Transport> Connection<'_, S> {
    /// Parses the next request's head, when it has arrived in full, and takes it off the input.
    fn next(&mut self) -> io::Result<Next> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let length = match parsed.parse(&self.input).map_err(invalid)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(Next::Incomplete),
        };
        if parsed.path != Some("/stats") {
            count(&self.state.counters.requests, 1);
        }
        let minor = parsed.version.unwrap_or(1);
        let mut body = Body::Done;
        let mut keep_alive = minor == 1;
        let mut expects_continue = false;
        for header in parsed.headers.iter() {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("content-length") {
                let length: u64 = text(header.value).parse().map_err(invalid)?;
                body = if length == 0 { Body::Done } else { Body::Counted(length) };
            } else if is("transfer-encoding") {
                body = Body::ChunkSize;
            } else if is("connection") {
                keep_alive = keep_alive && !header.value.eq_ignore_ascii_case(b"close")
                    || header.value.eq_ignore_ascii_case(b"keep-alive");
            } else if is("expect") {
                expects_continue = true;
            }
        }
        let is_root = parsed.path == Some("/") && self.state.always.is_none() && self.state.is_plain;
        let next = if is_root && parsed.method == Some("GET") && body == Body::Done && keep_alive {
            Next::Root
        } else {
            Next::Request(Box::new(Request {
                method: parsed.method.unwrap_or_default().to_owned(),
                target: parsed.path.unwrap_or_default().to_owned(),
                minor,
                headers: parsed.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect(),
                body,
                keep_alive,
                expects_continue,
            }))
        };
        self.input.advance(length);
        Ok(next)
    }

    async fn respond(&mut self, request: Box<Request>) -> io::Result<After> {
        let state = self.state;
        let _place = state.work(&request.target).await;
        let answer = answer(&request.target, state);
        match answer {
            Answer::Early => return self.early(&request).await,
            Answer::Duplex => return self.duplex(&request).await,
            Answer::Reset => return Ok(After::Reset),
            Answer::Stall => self.state.resumed().await,
            _ => {}
        }
        let received = self.receive(&request, matches!(answer, Answer::Echo)).await?;
        match answer {
            Answer::Whole(whole) => self.whole(&request, &whole),
            Answer::Upload | Answer::Stall => {
                let report = UploadReport { bytes: received.bytes, crc32: received.crc32 };
                self.state.receipt(Receipt {
                    method: request.method.clone(),
                    target: request.target.clone(),
                    host: request.header("host").unwrap_or_default().to_owned(),
                    bytes: received.bytes,
                    crc32: received.crc32,
                    trailers: received.trailers,
                });
                self.whole(&request, &Whole::json(&report));
            }
            Answer::Echo => {
                let report = self.echo_report(&request, received);
                self.whole(&request, &Whole::json(&report));
            }
            Answer::Delay(pause) => {
                self.flush().await?;
                self.pause(pause).await?;
                self.whole(&request, &Whole::root());
            }
            Answer::Bytes(bytes) => self.bytes(&request, bytes).await?,
            Answer::SlowBody => self.slow_body(&request).await?,
            Answer::Swallow => return Ok(After::Close),
            Answer::Truncate(cut, bytes) => return self.truncate(cut, bytes).await,
            Answer::EarlyHints(hints) => {
                for number in 1..=hints {
                    write!(
                        self.output,
                        "HTTP/1.1 103 Early Hints\r\nlink: </{number}.css>; rel=preload\r\n\r\n"
                    )?;
                }
                self.flush().await?;
                self.whole(&request, &Whole::root());
            }
            Answer::Trailers => {
                self.head(StatusCode::OK, Length::Chunked, request.keep_alive);
                if request.method != "HEAD" {
                    self.chunk(ROOT);
                    let (name, value) = TRAILER;
                    write!(self.output, "0\r\n{name}: {value}\r\n\r\n")?;
                }
            }
            Answer::Grpc(_) => {
                let text = "gRPC is HTTP/2 only\n";
                self.whole(&request, &Whole::text(StatusCode::HTTP_VERSION_NOT_SUPPORTED, text));
            }
            Answer::WebSocket => return self.websocket(&request).await,
            Answer::Early | Answer::Reset | Answer::Duplex => unreachable!("returned above"),
        }
        if request.keep_alive {
            self.flush_when_idle().await?;
            Ok(After::Keep)
        } else {
            Ok(After::Close)
        }
    }

    /// 413 while the body is still on its way. The connection lingers until the client has sent or closed, because
    /// a close with unread input would be a RST that can overtake the answer.
    async fn early(&mut self, request: &Request) -> io::Result<After> {
        let whole = Whole::text(StatusCode::PAYLOAD_TOO_LARGE, "too large\n");
        self.head(whole.status, Length::Known(whole.body.len() as u64), false);
        self.output.extend_from_slice(&whole.body);
        self.flush().await?;
        self.stream.shutdown().await?;
        // Its end, in whichever way, is all that is waited for.
        let _ = self.read_body(request.body, |_| {}).await;
        Ok(After::Close)
    }

    fn whole(&mut self, request: &Request, whole: &Whole) {
        let length = whole.length.map_or(Length::Unsaid, Length::Known);
        write_head(
            &mut self.output,
            &self.state.name,
            whole.status,
            whole.content_type,
            length,
            request.keep_alive,
        );
        if request.method != "HEAD" {
            self.output.extend_from_slice(&whole.body);
        }
    }

    async fn bytes(&mut self, request: &Request, bytes: u64) -> io::Result<()> {
        self.head(StatusCode::OK, Length::Known(bytes), request.keep_alive);
        self.stream(if request.method == "HEAD" { 0 } else { bytes }).await
    }

    /// Half of a body of this many bytes, and then the end of the connection.
    async fn truncate(&mut self, cut: Cut, bytes: u64) -> io::Result<After> {
        let length = if cut.is_counted() { Length::Known(2 * bytes) } else { Length::Chunked };
        self.head(StatusCode::OK, length, true);
        match cut {
            Cut::BetweenChunks => write!(self.output, "{bytes:x}\r\n")?,
            Cut::WithinChunk => write!(self.output, "{:x}\r\n", 2 * bytes)?,
            _ => {}
        }
        self.stream(bytes).await?;
        match cut {
            Cut::BetweenChunks => self.output.extend_from_slice(b"\r\n"),
            Cut::Connection => {
                // A RST may overtake what the other side has not read yet.
                sleep(TRICKLE.1).await;
                return Ok(After::Reset);
            }
            _ => {}
        }
        Ok(After::Close)
    }

    /// Sends the body back while it comes.
    async fn duplex(&mut self, request: &Request) -> io::Result<After> {
        self.head(StatusCode::OK, Length::Chunked, request.keep_alive);
        self.flush().await?;
        let mut body = request.body;
        loop {
            let mut pieces = Vec::new();
            let ended =
                self.take_body(&mut body, &mut Vec::new(), |piece| pieces.extend_from_slice(piece))?;
            if !pieces.is_empty() {
                self.chunk(&pieces);
            }
            if ended {
                self.output.extend_from_slice(b"0\r\n\r\n");
                self.flush().await?;
                return Ok(if request.keep_alive { After::Keep } else { After::Close });
            }
            self.flush().await?;
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// A pause that ends early, with an error, when the client goes away.
    async fn pause(&mut self, pause: Duration) -> io::Result<()> {
        let end = tokio::time::Instant::now() + pause;
        while let Ok(read) = tokio::time::timeout_at(end, self.fill()).await {
            if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    async fn stream(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        self.flush().await?;
        while left > 0 {
            let piece = &BLOCK[..left.min(BLOCK.len() as u64) as usize];
            let sent = self.stream.write(piece).await?;
            count(&self.state.counters.sent_bytes, sent);
            left -= sent as u64;
        }
        self.stream.flush().await
    }

    async fn slow_body(&mut self, request: &Request) -> io::Result<()> {
        let (pieces, pause) = TRICKLE;
        self.head(StatusCode::OK, Length::Chunked, request.keep_alive);
        if request.method == "HEAD" {
            return Ok(());
        }
        for _ in 0..pieces {
            self.chunk(ROOT);
            self.flush().await?;
            sleep(pause).await;
        }
        self.output.extend_from_slice(b"0\r\n\r\n");
        Ok(())
    }

    async fn websocket(&mut self, request: &Request) -> io::Result<After> {
        let Some(key) = request.header("sec-websocket-key") else {
            self.whole(request, &Whole::text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket\n"));
            return Ok(After::Close);
        };
        write!(
            self.output,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {}\r\nx-backend: {}\r\n\r\n",
            websocket::accept_key(key),
            self.state.name
        )?;
        self.flush().await?;
        websocket::echo(&mut self.stream, &mut self.input).await?;
        Ok(After::Close)
    }

    fn echo_report(&self, request: &Request, received: Received) -> EchoReport {
        EchoReport {
            backend: self.state.name.clone(),
            method: request.method.clone(),
            target: request.target.clone(),
            version: if request.minor == 1 { "HTTP/1.1" } else { "HTTP/1.0" },
            headers: request.headers.clone(),
            body: String::from_utf8_lossy(&received.kept).into_owned(),
            trailers: received.trailers,
        }
    }

    async fn receive(&mut self, request: &Request, keep: bool) -> io::Result<Received> {
        if request.body == Body::Done {
            return Ok(Received::default());
        }
        if request.expects_continue {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.flush().await?;
        let mut bytes = 0;
        let mut checksum = crc32fast::Hasher::new();
        let mut kept = Vec::new();
        let trailers = self
            .read_body(request.body, |piece| {
                bytes += piece.len() as u64;
                checksum.update(piece);
                if keep {
                    kept.extend_from_slice(piece);
                }
            })
            .await?;
        Ok(Received { bytes, crc32: checksum.finalize(), kept, trailers })
    }

    /// Hands a body to `sink` piece by piece; answers its trailers.
    async fn read_body(
        &mut self,
        mut body: Body,
        mut sink: impl FnMut(&[u8]),
    ) -> io::Result<Vec<(String, String)>> {
        let mut trailers = Vec::new();
        while !self.take_body(&mut body, &mut trailers, &mut sink)? {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(trailers)
    }

    /// Hands to `sink` what has arrived of a body; `true` at its end.
    fn take_body(
        &mut self,
        body: &mut Body,
        trailers: &mut Vec<(String, String)>,
        mut sink: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        loop {
            let progressed = match *body {
                Body::Done => return Ok(true),
                Body::Counted(left) | Body::ChunkData(left) => {
                    let taken = left.min(self.input.len() as u64);
                    sink(&self.input[..taken as usize]);
                    self.input.advance(taken as usize);
                    *body = match (*body, left - taken) {
                        (Body::Counted(_), 0) => Body::Done,
                        (Body::Counted(_), left) => Body::Counted(left),
                        (_, 0) => Body::ChunkEnd,
                        (_, left) => Body::ChunkData(left),
                    };
                    taken > 0
                }
                Body::ChunkSize => match self.line() {
                    Some(line) => {
                        let size = line.split(';').next().unwrap_or_default().trim();
                        *body = match u64::from_str_radix(size, 16).map_err(invalid)? {
                            0 => Body::Trailers,
                            size => Body::ChunkData(size),
                        };
                        true
                    }
                    None => false,
                },
                Body::ChunkEnd => self.line().is_some_and(|_| {
                    *body = Body::ChunkSize;
                    true
                }),
                Body::Trailers => self.line().is_some_and(|line| {
                    match line.split_once(':') {
                        Some((name, value)) => trailers.push((name.to_owned(), value.trim().to_owned())),
                        None => *body = Body::Done,
                    }
                    true
                }),
            };
            if !progressed {
                return Ok(false);
            }
        }
    }

    /// Takes one line off the input, without its end.
    fn line(&mut self) -> Option<String> {
        let end = self.input.iter().position(|&byte| byte == b'\n')?;
        let line = self.input.split_to(end + 1);
        Some(text(&line).trim_end().to_owned())
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.input.reserve(if self.input.is_empty() { BUFFER } else { BUFFER / 4 });
        let read = self.stream.read_buf(&mut self.input).await?;
        count(&self.state.counters.received_bytes, read);
        Ok(read)
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            count(&self.state.counters.sent_bytes, self.output.len());
            self.output.clear();
        }
        Ok(())
    }

    /// Answers to pipelined requests are gathered, but not without bound.
    async fn flush_when_idle(&mut self) -> io::Result<()> {
        if self.input.is_empty() || self.output.len() > BUFFER { self.flush().await } else { Ok(()) }
    }

    fn head(&mut self, status: StatusCode, length: Length, keep_alive: bool) {
        write_head(
            &mut self.output,
            &self.state.name,
            status,
            "application/octet-stream",
            length,
            keep_alive,
        );
    }

    fn chunk(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        self.output.extend_from_slice(bytes);
        self.output.extend_from_slice(b"\r\n");
    }
}

/// A request's body, read.
#[derive(Default)]
struct Received {
    bytes: u64,
    crc32: u32,
    kept: Vec<u8>,
    trailers: Vec<(String, String)>,
}

fn write_head(
    output: &mut Vec<u8>,
    name: &str,
    status: StatusCode,
    content_type: &str,
    length: Length,
    keep_alive: bool,
) {
    let code = status.as_u16();
    let reason = status.canonical_reason().unwrap_or("Status");
    let mut head = format!("HTTP/1.1 {code} {reason}\r\nx-backend: {name}\r\n");
    // RFC 9110 section 8.6: no content-length in 1xx and 204.
    if !status.is_informational() && status != StatusCode::NO_CONTENT {
        head.push_str(&match length {
            Length::Known(length) => format!("content-type: {content_type}\r\ncontent-length: {length}\r\n"),
            Length::Chunked => format!("content-type: {content_type}\r\ntransfer-encoding: chunked\r\n"),
            Length::Unsaid => String::new(),
        });
    }
    head.push_str(if keep_alive { "\r\n" } else { "connection: close\r\n\r\n" });
    output.extend_from_slice(head.as_bytes());
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
