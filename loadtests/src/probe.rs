//! One exchange at a time, driven step by step and seen in full: interim heads, the final one, the body piece by
//! piece, trailers, and how it ended. What is not asked for is not read, so a probe can stall like no library would.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use crate::load::client::{Connector, Stream};
use crate::load::reader::Reader;
use crate::load::{Plan, Version};
use crate::rig::http::Response;

/// A step that takes longer has failed.
const STEP: Duration = Duration::from_mins(1);
/// Receive window of an HTTP/2 stream, unless a test wants the socket to be the limit.
const WINDOW: u32 = 1024 * 1024;

/// Name and value pairs.
pub type Fields = Vec<(String, String)>;

/// Runs what probes on this thread.
pub fn run<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio::task::LocalSet::new().block_on(&runtime.map_err(|error| error.to_string())?, future)
}

/// Where and how exchanges are made.
pub struct Probe {
    plan: Plan,
    connector: Connector,
    window: u32,
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Fields apart from Host and framing.
    pub headers: Fields,
    /// What body follows.
    pub body: Framing,
}

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// By its length.
    Counted(u64),
    /// By chunks, or in HTTP/2 by the stream's end.
    Streamed,
}

impl Ask {
    /// A request without a body.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Fields::new(),
            body: Framing::None,
        }
    }

    /// `GET`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `POST` with a body of this framing.
    pub fn post(target: &str, body: Framing) -> Self {
        Self { body, ..Self::new("POST", target) }
    }

    /// One field more.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// All that came of an exchange.
#[derive(Debug, Default)]
pub struct Seen {
    /// Heads of 1xx.
    pub interim: Vec<Response>,
    /// The final answer, with the body as far as it came. Status 0 if there was none.
    pub answer: Response,
    /// Trailers.
    pub trailers: Fields,
    /// Why it did not end as it should; empty if it did.
    pub error: String,
}

impl Probe {
    /// Probes go where the plan's connections go.
    pub fn new(plan: &Plan) -> Result<Self, String> {
        Ok(Self { plan: plan.clone(), connector: Connector::new(plan)?, window: WINDOW })
    }

    /// HTTP/2: how many bytes the server may send before they are read.
    pub fn with_window(mut self, bytes: u32) -> Self {
        self.window = bytes;
        self
    }

    /// The certificate that a handshake of its own shows, in DER.
    pub async fn certificate(plan: &Plan) -> Result<Vec<u8>, String> {
        let connector = Connector::new(plan)?;
        step("a handshake", connector.certificate()).await
    }

    /// Sends a head on a connection of its own.
    pub async fn open(&self, ask: &Ask) -> Result<Exchange, String> {
        let stream = step("a connection", self.connector.connect()).await?;
        let scheme = if self.plan.ca.is_some() { "https" } else { "http" };
        let link = match self.plan.version {
            Version::Http1 => Link::Http1,
            Version::Http2 => {
                let handshake = h2::client::Builder::new()
                    .initial_window_size(self.window)
                    .initial_connection_window_size(self.window)
                    .enable_push(false)
                    .handshake(stream);
                let (send, connection) = step("a handshake", handshake).await?;
                let driver = tokio::task::spawn_local(async move {
                    // How it ends is seen by the exchange.
                    let _ = connection.await;
                });
                let link = Link::Http2 { send, _driver: Driver(driver) };
                return Exchange::begin(Parts { link, scheme, host: self.plan.host.clone() }, None, ask)
                    .await;
            }
        };
        let (read, write) = tokio::io::split(stream);
        let halves = Some((Reader::new(read), write));
        Exchange::begin(Parts { link, scheme, host: self.plan.host.clone() }, halves, ask).await
    }

    /// A whole exchange on a connection of its own.
    pub async fn ask(&self, ask: &Ask, body: impl Into<Bytes>) -> Result<Seen, String> {
        Ok(self.open(ask).await?.complete(body.into(), &[]).await)
    }
}

type Halves = (Reader<ReadHalf<Box<dyn Stream>>>, WriteHalf<Box<dyn Stream>>);

enum Link {
    Http1,
    Http2 { send: SendRequest<Bytes>, _driver: Driver },
}

/// The task that moves an HTTP/2 connection's frames. The connection closes with it.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What stays when a connection's next exchange begins.
struct Parts {
    link: Link,
    scheme: &'static str,
    host: String,
}

/// An exchange under way. Dropped, it closes its connection.
pub struct Exchange {
    /// The request's body.
    pub sender: Sender,
    /// The answer.
    pub receiver: Receiver,
    parts: Parts,
}

/// Sends a request's body.
pub struct Sender(Outgoing);

enum Outgoing {
    /// A connection's writing half, and how pieces are framed on it.
    Http1(WriteHalf<Box<dyn Stream>>, Framing),
    /// None when the request has ended.
    Http2(Option<SendStream<Bytes>>),
}

/// Reads an answer.
pub struct Receiver {
    incoming: Incoming,
    trailers: Fields,
}

enum Incoming {
    Http1 { reader: Box<Reader<ReadHalf<Box<dyn Stream>>>>, is_head: bool },
    Http2 { response: Option<ResponseFuture>, body: Option<RecvStream> },
}

impl Exchange {
    async fn begin(mut parts: Parts, halves: Option<Halves>, ask: &Ask) -> Result<Self, String> {
        let (outgoing, incoming) = match (&mut parts.link, halves) {
            (Link::Http2 { send, .. }, _) => {
                let uri = format!("{}://{}{}", parts.scheme, parts.host, ask.target);
                let mut request = Request::builder().method(ask.method.as_str()).uri(uri);
                if let Framing::Counted(length) = ask.body {
                    request = request.header("content-length", length);
                }
                for (name, value) in &ask.headers {
                    request = request.header(name, value);
                }
                let request = request.body(()).map_err(|error| error.to_string())?;
                *send = step("a free stream", send.clone().ready()).await?;
                let ended = ask.body == Framing::None;
                let (response, body) =
                    send.send_request(request, ended).map_err(|error| error.to_string())?;
                let incoming = Incoming::Http2 { response: Some(response), body: None };
                (Outgoing::Http2((!ended).then_some(body)), incoming)
            }
            (Link::Http1, Some((reader, mut stream))) => {
                let head = http1_head(ask, &parts.host);
                step("room for the head", stream.write_all(head.as_bytes())).await?;
                let is_head = ask.method == "HEAD";
                let incoming = Incoming::Http1 { reader: Box::new(reader), is_head };
                (Outgoing::Http1(stream, ask.body), incoming)
            }
            (Link::Http1, None) => return Err("an HTTP/1.1 exchange needs its stream".to_owned()),
        };
        let receiver = Receiver { incoming, trailers: Fields::new() };
        Ok(Self { sender: Sender(outgoing), receiver, parts })
    }

    /// Sends the next head on the same connection, this exchange being over.
    pub async fn again(self, ask: &Ask) -> Result<Self, String> {
        let halves = match (self.sender.0, self.receiver.incoming) {
            (Outgoing::Http1(stream, _), Incoming::Http1 { reader, .. }) => Some((*reader, stream)),
            _ => None,
        };
        Self::begin(self.parts, halves, ask).await
    }

    /// Sends a body and its end while it reads the answer to its end.
    pub async fn complete(&mut self, body: Bytes, trailers: &[(&str, &str)]) -> Seen {
        let Self { sender, receiver, .. } = self;
        let send = async {
            if !body.is_empty() {
                sender.send(body).await?;
            }
            sender.finish(trailers).await
        };
        let receive = receiver.complete();
        tokio::pin!(send, receive);
        // An answer that comes before the request's end is the end of both.
        tokio::select! {
            biased;
            seen = &mut receive => seen,
            sent = &mut send => {
                let mut seen = receive.await;
                if let Err(error) = sent && !seen.error.is_empty() {
                    seen.error = format!("{}; {error}", seen.error);
                }
                seen
            }
        }
    }

    /// Breaks the exchange off: HTTP/1.1 has to close the connection for it, HTTP/2 resets the stream and keeps the
    /// connection, for as long as the value that is returned.
    pub fn cancel(self) -> impl Sized {
        let Self { mut sender, receiver, parts } = self;
        if let Outgoing::Http2(Some(stream)) = &mut sender.0 {
            stream.send_reset(Reason::CANCEL);
        }
        drop((sender, receiver));
        parts
    }
}

impl Sender {
    /// Sends a piece of the body once there is room for it.
    pub async fn send(&mut self, mut piece: Bytes) -> Result<(), String> {
        match &mut self.0 {
            Outgoing::Http1(stream, Framing::Streamed) => {
                let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
                step("room for a chunk", stream.write_all(&chunk)).await
            }
            Outgoing::Http1(stream, _) => step("room for a piece", stream.write_all(&piece)).await,
            Outgoing::Http2(None) => Err("the request has ended".to_owned()),
            Outgoing::Http2(Some(stream)) => {
                while !piece.is_empty() {
                    stream.reserve_capacity(piece.len());
                    let capacity = poll_fn(|cx| stream.poll_capacity(cx).map(Option::transpose));
                    let granted = step("room for data", capacity).await?;
                    let granted = granted.ok_or("the stream is closed")?.min(piece.len());
                    stream.send_data(piece.split_to(granted), false).map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        }
    }

    /// Ends the body. Trailers need a streamed one.
    pub async fn finish(&mut self, trailers: &[(&str, &str)]) -> Result<(), String> {
        match &mut self.0 {
            Outgoing::Http1(stream, Framing::Streamed) => {
                let fields = trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
                let end = format!("0\r\n{}\r\n", fields.collect::<String>());
                step("room for the end", stream.write_all(end.as_bytes())).await
            }
            Outgoing::Http1(..) => Ok(()),
            Outgoing::Http2(stream) => {
                let Some(mut stream) = stream.take() else { return Ok(()) };
                if trailers.is_empty() {
                    return stream.send_data(Bytes::new(), true).map_err(|error| error.to_string());
                }
                let fields = trailers.iter().map(|(name, value)| {
                    let name = HeaderName::from_bytes(name.as_bytes()).expect("a valid name");
                    (name, HeaderValue::from_str(value).expect("a valid value"))
                });
                let fields: HeaderMap = fields.collect();
                stream.send_trailers(fields).map_err(|error| error.to_string())
            }
        }
    }
}

impl Receiver {
    /// The next head: 1xx, or the final one.
    pub async fn head(&mut self) -> Result<Response, String> {
        match &mut self.incoming {
            Incoming::Http1 { reader, is_head } => {
                step("a head", reader.head(*is_head, http1_response)).await
            }
            Incoming::Http2 { response, body } => {
                let Some(future) = response else { return Err("the head has been read".to_owned()) };
                let next = poll_fn(|cx| {
                    if let Poll::Ready(Some(interim)) = future.poll_informational(cx) {
                        return Poll::Ready(interim.map(|interim| (interim.into_parts().0, None)));
                    }
                    std::pin::Pin::new(&mut *future).poll(cx).map_ok(|response| {
                        let (head, body) = response.into_parts();
                        (head, Some(body))
                    })
                });
                let (head, recv) = step("a head", next).await?;
                if recv.is_some() {
                    *response = None;
                    *body = recv;
                }
                Ok(Response {
                    status: head.status.as_u16(),
                    headers: fields(&head.headers),
                    body: Vec::new(),
                })
            }
        }
    }

    /// The next piece of the body; `None` at its end, if that is as it should be.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, String> {
        match &mut self.incoming {
            Incoming::Http1 { reader, .. } => {
                let piece = step("a piece", reader.piece()).await?;
                self.trailers.clone_from(&reader.trailers);
                Ok(piece)
            }
            Incoming::Http2 { body: None, .. } => Err("no head has been read".to_owned()),
            Incoming::Http2 { body: Some(body), .. } => {
                step("a piece", async {
                    match body.data().await {
                        Some(piece) => {
                            let piece = piece?;
                            body.flow_control().release_capacity(piece.len())?;
                            Ok::<_, h2::Error>(Some(piece))
                        }
                        None => {
                            self.trailers =
                                body.trailers().await?.map(|map| fields(&map)).unwrap_or_default();
                            Ok(None)
                        }
                    }
                })
                .await
            }
        }
    }

    /// Reads at least so many bytes of the body, and fails if it ends before; how many.
    pub async fn read(&mut self, least: u64) -> Result<u64, String> {
        let mut read = 0;
        while read < least {
            let piece = self.piece().await?;
            read += piece.ok_or_else(|| format!("the body ended after {read} bytes"))?.len() as u64;
        }
        Ok(read)
    }

    /// Reads to the end of the body without keeping it; how many bytes.
    pub async fn rest(&mut self) -> Result<u64, String> {
        let mut read = 0;
        while let Some(piece) = self.piece().await? {
            read += piece.len() as u64;
        }
        Ok(read)
    }

    /// Reads all of the answer.
    pub async fn complete(&mut self) -> Seen {
        let mut seen = Seen::default();
        if let Err(error) = self.try_complete(&mut seen).await {
            seen.error = error;
        }
        seen
    }

    async fn try_complete(&mut self, seen: &mut Seen) -> Result<(), String> {
        loop {
            let head = self.head().await?;
            if head.status >= 200 {
                seen.answer = head;
                break;
            }
            seen.interim.push(head);
        }
        while let Some(piece) = self.piece().await? {
            seen.answer.body.extend_from_slice(&piece);
        }
        seen.trailers.clone_from(&self.trailers);
        Ok(())
    }
}

async fn step<T, E: std::fmt::Display>(
    what: &str,
    future: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(STEP, future).await {
        Ok(result) => result.map_err(|error| format!("{what}: {error}")),
        Err(_) => Err(format!("waited {} s in vain for {what}", STEP.as_secs())),
    }
}

fn http1_head(ask: &Ask, host: &str) -> String {
    let mut head = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", ask.method, ask.target);
    for (name, value) in &ask.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match ask.body {
        Framing::None => {}
        Framing::Counted(length) => head.push_str(&format!("content-length: {length}\r\n")),
        Framing::Streamed => head.push_str("transfer-encoding: chunked\r\n"),
    }
    head + "\r\n"
}

fn http1_response(head: &httparse::Response<'_, '_>) -> Response {
    let headers = head.headers.iter();
    let headers = headers
        .map(|h| (h.name.to_ascii_lowercase(), String::from_utf8_lossy(h.value).into_owned()))
        .collect();
    Response { status: head.code.unwrap_or_default(), headers, body: Vec::new() }
}

fn fields(map: &HeaderMap) -> Fields {
    map.iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
