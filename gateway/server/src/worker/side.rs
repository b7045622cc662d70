//! One side of an exchange: the client's or the upstream's, HTTP/1 or HTTP/2, seen the same way.
//!
//! A side is a source of body bytes and a sink for them. Long bodies are not copied between buffers on the way: an HTTP/1
//! sink writes what is pending (head, chunk size) and the source's slice in one vectored call. Nothing is decided here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use fieldgate_core::{HeaderId, Headers};
use fieldgate_wire::buffer::{PooledBuf, copy_to_bytes};
use fieldgate_wire::h1::{BodyKind, ChunkedDecoder, Decoded, Malformed, write_chunk_size};
use fieldgate_wire::io::{Io, PeerState, Stream};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::AsyncWrite;

use super::Worker;
use super::mirror::Tee;
use super::replay::Replay;
use super::upstream::{Lease, Secured};

/// Body bytes are copied behind a head or a chunk size as long as both are not more than this: one plain write is cheaper
/// than a gathering one, by more than so short a copy costs.
const GATHER: usize = 2048;

/// Small pieces of an HTTP/2 body are put together up to about so many bytes.
const GATHERED: usize = 4096;

/// Pieces of a body that are moved before others have their turn: a body of chunks of one byte has thousands in a read.
const PIECES: u32 = 256;

/// Bytes of a body that are moved before others have their turn: with some hundred large bodies at once, a client with a small
/// request waits for a turn of all of them.
const TURN: usize = 64 * 1024;

/// Why a side failed.
#[derive(Debug)]
pub enum SideError {
    /// The connection broke or ended too early.
    Io(io::Error),
    /// The peer sent what is not HTTP.
    Malformed(Malformed),
    /// The stream or connection was reset (HTTP/2).
    Reset(h2::Error),
    /// The body is longer than it may be.
    TooLong,
}

impl SideError {
    /// Whether the peer says that it has not processed the request (RFC 9113 sections 6.8 and 8.7).
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::Reset(error) if error.is_remote() => {
                error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)
            }
            _ => false,
        }
    }

    /// Whether it can mean that a kept connection was closed meanwhile. A peer that resets one stream is alive and has
    /// decided about the request, unless it says that it has not processed it.
    pub fn may_be_stale(&self) -> bool {
        match self {
            Self::Reset(error) => !error.is_reset() || self.is_unprocessed(),
            Self::Io(_) | Self::Malformed(_) => true,
            Self::TooLong => false,
        }
    }
}

impl std::fmt::Display for SideError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(e) => write!(f, "{e}"),
            Self::Malformed(e) => write!(f, "{e}"),
            Self::Reset(e) => write!(f, "{e}"),
            Self::TooLong => f.write_str("the body is longer than allowed"),
        }
    }
}

impl From<io::Error> for SideError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}
impl From<Malformed> for SideError {
    fn from(e: Malformed) -> Self {
        Self::Malformed(e)
    }
}
impl From<h2::Error> for SideError {
    fn from(e: h2::Error) -> Self {
        Self::Reset(e)
    }
}

fn truncated() -> SideError {
    SideError::Io(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "connection closed before the message was complete",
    ))
}

/// What a source has.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// So many bytes at [`Side::data`].
    Data(usize),
    /// The body is over.
    End,
}

/// Either protocol.
pub enum Side {
    /// HTTP/1.x.
    H1(Box<H1Side>),
    /// One stream of an HTTP/2 connection.
    H2(Box<H2Side>),
}

/// An HTTP/1 connection in use.
pub struct H1Side {
    /// The socket.
    pub stream: Stream,
    /// What was read and not yet used.
    pub input: PooledBuf,
    /// What is to be written before body bytes: head, chunk sizes, trailers.
    pub out: Vec<u8>,
    /// Upstream: the right to the connection, and its TLS.
    pub held: Option<(Lease, Secured)>,
    written: usize,
    read: Read,
    write: Write,
}

#[derive(Debug)]
enum Read {
    Done,
    Length(u64),
    Chunked(ChunkedDecoder),
    UntilClose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    Done,
    Length(u64),
    /// Bytes left of the chunk whose size was announced.
    Chunked(usize),
    UntilClose,
}

/// An HTTP/2 stream in use.
#[derive(Default)]
pub struct H2Side {
    /// What comes.
    pub recv: Option<RecvStream>,
    /// What goes.
    pub send: Option<SendStream<Bytes>>,
    current: Bytes,
}

impl H2Side {
    /// A stream of which one or both halves are open.
    pub fn new(recv: Option<RecvStream>, send: Option<SendStream<Bytes>>) -> Self {
        Self { recv, send, current: Bytes::new() }
    }
}

impl H1Side {
    /// A connection with an empty body both ways.
    pub fn new(stream: Stream, input: PooledBuf, out: Vec<u8>) -> Self {
        Self { stream, input, out, held: None, written: 0, read: Read::Done, write: Write::Done }
    }

    /// Takes output of the worker's, if the side has none, before a head is written.
    pub fn make_room(&mut self, worker: &Worker) {
        if self.out.capacity() == 0 {
            self.out = worker.take_out();
        }
    }

    /// The body that is about to be read.
    pub fn expect_body(&mut self, kind: BodyKind) {
        self.read = match kind {
            BodyKind::None => Read::Done,
            BodyKind::Length(n) => Read::Length(n),
            BodyKind::Chunked => Read::Chunked(ChunkedDecoder::default()),
            BodyKind::UntilClose => Read::UntilClose,
        };
    }

    /// The body that is about to be written.
    pub fn begin_body(&mut self, kind: BodyKind) {
        self.write = match kind {
            BodyKind::None => Write::Done,
            BodyKind::Length(n) => Write::Length(n),
            BodyKind::Chunked => Write::Chunked(0),
            BodyKind::UntilClose => Write::UntilClose,
        };
    }

    /// From here on bytes flow both ways, until each side ends its own.
    pub fn switch(&mut self) {
        self.expect_body(BodyKind::UntilClose);
        self.begin_body(BodyKind::UntilClose);
    }

    /// Whether only the end of the connection tells the peer that it has the whole body.
    pub fn ends_with_connection(&self) -> bool {
        self.write == Write::UntilClose
    }

    /// Whether both bodies are over and nothing waits to be written.
    pub fn is_clean(&self) -> bool {
        matches!(self.read, Read::Done) && self.write == Write::Done && self.written == self.out.len()
    }

    /// Reads more input. `Ok(0)` is the end.
    pub fn poll_read_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.input.is_empty() {
            // Storage is held only while there is something in it: a thousand waiting requests share a few warm buffers.
            if let Io::Tcp(tcp) = self.stream.io_mut() {
                ready!(tcp.poll_read_ready(cx))?;
            }
        } else if self.input.spare_len() == 0 {
            self.input.reserve(self.input.capacity());
        }
        self.input.poll_read_from(cx, &mut self.stream)
    }

    /// Writes what is pending.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.out.clear();
        self.written = 0;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Option<Box<Headers>>,
    ) -> Poll<Result<Piece, SideError>> {
        loop {
            match &mut self.read {
                Read::Done | Read::Length(0) => {
                    self.read = Read::Done;
                    return Poll::Ready(Ok(Piece::End));
                }
                Read::Length(left) if !self.input.is_empty() => {
                    return Poll::Ready(Ok(Piece::Data((*left).min(self.input.len() as u64) as usize)));
                }
                Read::UntilClose if !self.input.is_empty() => {
                    return Poll::Ready(Ok(Piece::Data(self.input.len())));
                }
                Read::Chunked(decoder) => match decoder.decode(self.input.filled())? {
                    Decoded::NeedMore => {}
                    Decoded::Data { skip, len } => {
                        self.input.consume(skip);
                        return Poll::Ready(Ok(Piece::Data(len)));
                    }
                    Decoded::End { skip, trailers: from } => {
                        *trailers = parse_trailers(&self.input.filled()[from..skip])?.map(Box::new);
                        self.input.consume(skip);
                        self.read = Read::Done;
                        return Poll::Ready(Ok(Piece::End));
                    }
                },
                Read::Length(_) | Read::UntilClose => {}
            }
            self.input.compact();
            if ready!(self.poll_read_more(cx))? == 0 {
                if !matches!(self.read, Read::UntilClose) {
                    return Poll::Ready(Err(truncated()));
                }
                self.read = Read::Done;
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        match &mut self.read {
            Read::Length(left) => *left -= count as u64,
            Read::Chunked(decoder) => decoder.used(count),
            Read::Done | Read::UntilClose => {}
        }
    }

    pub(super) fn poll_write_body(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let len = match &mut self.write {
            Write::Done => return Poll::Ready(Err(too_much())),
            Write::Length(left) if *left < data.len() as u64 => return Poll::Ready(Err(too_much())),
            Write::Length(_) | Write::UntilClose => data.len(),
            Write::Chunked(left) => {
                if *left == 0 {
                    write_chunk_size(&mut self.out, data.len());
                    *left = data.len();
                }
                data.len().min(*left)
            }
        };
        let pending = self.out.len() - self.written;
        if pending > 0 && pending + len <= GATHER {
            self.out.extend_from_slice(&data[..len]);
            self.wrote(len);
            return Poll::Ready(Ok(len));
        }
        let slices = [IoSlice::new(&self.out[self.written..]), IoSlice::new(&data[..len])];
        // TLS makes a record of each slice: one small record for a head would be a packet of its own.
        let n = if pending == 0 {
            ready!(Pin::new(&mut self.stream).poll_write(cx, &data[..len]))?
        } else {
            ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices))?
        };
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let body = n.saturating_sub(pending);
        self.written += n.min(pending);
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        }
        self.wrote(body);
        Poll::Ready(Ok(body))
    }

    /// Counts body bytes that were written, or put where they will be.
    fn wrote(&mut self, body: usize) {
        match &mut self.write {
            Write::Length(left) => *left -= body as u64,
            Write::Chunked(left) if body > 0 => {
                *left -= body;
                if *left == 0 {
                    self.out.extend_from_slice(b"\r\n");
                }
            }
            _ => {}
        }
    }

    pub(super) fn finish(&mut self, trailers: Option<&Headers>) -> Result<(), SideError> {
        match self.write {
            Write::Length(left) if left > 0 => return Err(truncated()),
            Write::Chunked(_) => {
                self.out.extend_from_slice(b"0\r\n");
                for (id, name, value) in trailers.iter().flat_map(|t| t.iter()) {
                    if !id.is_hop_by_hop() {
                        write_field(&mut self.out, name, value);
                    }
                }
                self.out.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        self.write = Write::Done;
        Ok(())
    }
}

/// Appends `name: value CRLF`.
pub fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn too_much() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "body is longer than its content-length")
}

/// Trailer fields must not carry framing, routing or authentication (RFC 9110 section 6.5.1).
pub(super) fn parse_trailers(lines: &[u8]) -> Result<Option<Headers>, Malformed> {
    if lines == b"\r\n" || lines.is_empty() {
        return Ok(None);
    }
    let mut storage = [httparse::EMPTY_HEADER; 64];
    match httparse::parse_headers(lines, &mut storage) {
        Ok(httparse::Status::Complete((_, fields))) => {
            let mut headers = Headers::new();
            for field in fields {
                headers.push(field.name.as_bytes(), field.value);
            }
            take_off_of_trailers(&mut headers);
            Ok(Some(headers))
        }
        _ => Err(Malformed::Trailer),
    }
}

/// What of trailers would be framing, routing, authentication, or words of the gateway's own, to a reader that puts them
/// among the header fields (RFC 9110 section 6.5.1).
fn take_off_of_trailers(headers: &mut Headers) {
    headers.remove_if(|id, name, _| {
        use fieldgate_core::HeaderId as Id;
        id.is_hop_by_hop()
            || super::h1::is_internal(id, name)
            || name == b"authorization"
            || matches!(
                id,
                Id::ContentLength
                    | Id::Host
                    | Id::Te
                    | Id::Trailer
                    | Id::Cookie
                    | Id::SetCookie
                    | Id::XForwardedFor
                    | Id::XForwardedProto
                    | Id::XForwardedClientCert
                    | Id::XRequestId
            )
    });
}

impl H2Side {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Option<Box<Headers>>,
    ) -> Poll<Result<Piece, SideError>> {
        if !self.current.is_empty() {
            return Poll::Ready(Ok(Piece::Data(self.current.len())));
        }
        let Some(recv) = &mut self.recv else { return Poll::Ready(Ok(Piece::End)) };
        loop {
            match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    self.current = if data.len() < GATHER { gather(recv, cx, data) } else { data };
                    return Poll::Ready(Ok(Piece::Data(self.current.len())));
                }
                Some(Err(e)) => return Poll::Ready(Err(e.into())),
                None => {
                    if let Some(map) = ready!(recv.poll_trailers(cx))? {
                        let mut fields = headers_of(&map);
                        take_off_of_trailers(&mut fields);
                        *trailers = Some(Box::new(fields));
                    }
                    self.recv = None;
                    return Poll::Ready(Ok(Piece::End));
                }
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.current.advance(count);
        if let Some(recv) = &mut self.recv {
            // An error means that the stream is gone, which the next read reports.
            let _ = recv.flow_control().release_capacity(count);
        }
    }

    /// `last`: no byte and no trailer follows these.
    pub(super) fn poll_write_body(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        owned: Option<&mut Bytes>,
        last: bool,
    ) -> Poll<Result<usize, SideError>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(SideError::Io(too_much()))) };
        send.reserve_capacity(data.len());
        let n = loop {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(n)) => break n.min(data.len()),
                Some(Err(e)) => return Poll::Ready(Err(e.into())),
                None => return Poll::Ready(Err(truncated())),
            }
        };
        let piece = match owned {
            Some(bytes) => bytes.slice(..n),
            // A short one is copied in no time, wherever it lies.
            None if n < GATHER => Bytes::copy_from_slice(&data[..n]),
            None => copy_to_bytes(&data[..n]),
        };
        let end = last && n == data.len();
        send.send_data(piece, end)?;
        if end {
            self.send = None;
        }
        Poll::Ready(Ok(n))
    }

    pub(super) fn finish(&mut self, trailers: Option<&Headers>) -> Result<(), SideError> {
        let Some(mut send) = self.send.take() else { return Ok(()) };
        match trailers {
            Some(trailers) => send.send_trailers(header_map(trailers))?,
            None => send.send_data(Bytes::new(), true)?,
        }
        Ok(())
    }
}

/// Small pieces that are there together go on together: a frame costs more than copying what is in it, and where one
/// message ends and the next begins is not for frames to tell (RFC 9113 section 8.1).
fn gather(recv: &mut RecvStream, cx: &mut Context<'_>, first: Bytes) -> Bytes {
    let mut gathered: Option<BytesMut> = None;
    // What else it may say, that it is over or broken, it says again when asked for the next piece.
    while let Poll::Ready(Some(Ok(more))) = recv.poll_data(cx) {
        let gathered = gathered.get_or_insert_with(|| {
            let mut gathered = BytesMut::with_capacity(GATHERED);
            gathered.extend_from_slice(&first);
            gathered
        });
        gathered.extend_from_slice(&more);
        if gathered.len() >= GATHERED {
            break;
        }
    }
    gathered.map_or(first, BytesMut::freeze)
}

impl Side {
    /// What comes next of the body.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Option<Box<Headers>>,
    ) -> Poll<Result<Piece, SideError>> {
        match self {
            Self::H1(s) => s.poll_body(cx, trailers),
            Self::H2(s) => s.poll_body(cx, trailers),
        }
    }

    pub(super) fn data(&self, len: usize) -> &[u8] {
        match self {
            Self::H1(s) => &s.input.filled()[..len],
            Self::H2(s) => &s.current[..len],
        }
    }

    pub(super) fn consume(&mut self, count: usize) {
        match self {
            Self::H1(s) => s.consume(count),
            Self::H2(s) => s.consume(count),
        }
    }

    /// Whether these `len` bytes are known to be the last.
    fn ends_after(&self, len: usize) -> bool {
        match self {
            Self::H1(s) => matches!(s.read, Read::Length(left) if left == len as u64),
            Self::H2(s) => s.recv.as_ref().is_some_and(RecvStream::is_end_stream),
        }
    }

    fn finish(&mut self, trailers: Option<&Headers>) -> Result<(), SideError> {
        match self {
            Self::H1(s) => s.finish(trailers),
            Self::H2(s) => s.finish(trailers),
        }
    }

    /// Writes what is pending.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        match self {
            Self::H1(s) => s.poll_flush(cx).map_err(SideError::Io),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Gives back what a connection that waits does not need, until there is something to read again.
    pub fn rest(&mut self, worker: &Worker) {
        if let Self::H1(s) = self
            && s.out.is_empty()
            && s.out.capacity() > 0
        {
            worker.give_out(std::mem::take(&mut s.out));
        }
    }

    /// Ends our half of a tunnel, the last byte of which was flushed. The peer's half goes on.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        match self {
            Self::H1(s) => Pin::new(&mut s.stream).poll_shutdown(cx).map_err(SideError::Io),
            // END_STREAM went with the end of the transfer.
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the peer is gone. Only asked where no body byte is expected from it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(s) if !s.input.is_empty() => Poll::Pending,
            Self::H1(s) => match ready!(s.stream.io_mut().poll_peer_closed(cx)) {
                // A pipelined request: it waits its turn.
                PeerState::SentData => Poll::Pending,
                PeerState::Closed | PeerState::Broken => Poll::Ready(()),
            },
            Self::H2(s) => match &mut s.send {
                Some(send) => send.poll_reset(cx).map(|_| ()),
                None => Poll::Pending,
            },
        }
    }

    /// Tells the peer that the message it is getting will not be completed.
    pub fn abort(self, reason: Reason) {
        match self {
            Self::H1(s) => s.stream.into_io().abort(),
            Self::H2(mut s) => {
                if let Some(send) = &mut s.send {
                    send.send_reset(reason);
                }
            }
        }
    }
}

/// One direction of an exchange.
#[derive(Debug, Default)]
pub struct Transfer {
    /// Body bytes that the source gave, over all tries.
    pub bytes: u64,
    /// Whether the whole body, trailers included, was handed over and flushed.
    pub done: bool,
    ended: bool,
    /// Apart, for few bodies have any and room for a head is large.
    trailers: Option<Box<Headers>>,
    /// Where the bytes that the sink took go too.
    tee: Option<Rc<Tee>>,
    /// What tries before this one have sent, and where what this one sends is kept for the next.
    replay: Option<Rc<Replay>>,
    /// How much of it the sink has taken.
    replayed: usize,
    /// Body bytes that there may be.
    limit: Option<u64>,
    /// It waits for the source, and the sink has all that there is.
    pub starved: bool,
}

/// Which side broke a transfer.
#[derive(Debug)]
pub enum TransferError {
    /// The side that sends.
    Source(SideError),
    /// The side that takes.
    Sink(SideError),
}

impl Transfer {
    /// One that mirrors look on, if there are any, and that can be made again, if need be. `limit`: body bytes that there
    /// may be.
    pub fn upload(tee: Option<Rc<Tee>>, replay: Option<Rc<Replay>>, limit: Option<u64>) -> Self {
        let bytes = replay.as_ref().map_or(0, |replay| replay.received());
        Self { bytes, tee, replay, limit, ..Self::default() }
    }

    /// The trailers that came, once the body is over.
    pub fn trailers(&self) -> Option<&Headers> {
        self.trailers.as_deref()
    }

    /// Moves what can be moved. Back-pressure is that nothing is read which the sink did not take.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Side,
        to: &mut Side,
    ) -> Poll<Result<(), TransferError>> {
        use TransferError::{Sink, Source};
        let limit = self.limit.unwrap_or(u64::MAX);
        // What was kept of it before may have been too much already.
        if self.bytes > limit {
            return Poll::Ready(Err(Source(SideError::TooLong)));
        }
        if self.replay.is_some() && !self.ended {
            ready!(self.poll_replay(cx, to)).map_err(Sink)?;
        }
        let (mut pieces, begun) = (0, self.bytes);
        while !self.ended {
            pieces += 1;
            if pieces > PIECES || self.bytes - begun >= TURN as u64 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let piece = match from.poll_body(cx, &mut self.trailers) {
                Poll::Ready(piece) => piece.map_err(Source)?,
                Poll::Pending => {
                    self.starved = false;
                    ready!(to.poll_flush(cx)).map_err(Sink)?;
                    self.starved = true;
                    return Poll::Pending;
                }
            };
            match piece {
                Piece::End => {
                    self.ended = true;
                    if let Some(tee) = &self.tee {
                        tee.finish(self.trailers.as_deref());
                    }
                    if let Some(replay) = &self.replay {
                        replay.finish(self.trailers.as_deref());
                    }
                    to.finish(self.trailers.as_deref()).map_err(Sink)?;
                }
                Piece::Data(len) => {
                    self.starved = false;
                    if self.bytes.saturating_add(len as u64) > limit {
                        return Poll::Ready(Err(Source(SideError::TooLong)));
                    }
                    let last = from.ends_after(len);
                    let moved = match to {
                        Side::H1(s) => {
                            ready!(s.poll_write_body(cx, from.data(len))).map_err(|e| Sink(e.into()))?
                        }
                        Side::H2(s) => match from {
                            Side::H2(f) => {
                                let mut owned = f.current.clone();
                                ready!(s.poll_write_body(cx, &f.current[..len], Some(&mut owned), last))
                                    .map_err(Sink)?
                            }
                            Side::H1(f) => {
                                ready!(s.poll_write_body(cx, &f.input.filled()[..len], None, last))
                                    .map_err(Sink)?
                            }
                        },
                    };
                    if let Some(tee) = &self.tee {
                        tee.push(from.data(moved));
                    }
                    if let Some(replay) = &self.replay {
                        replay.push(from.data(moved));
                        self.replayed += moved;
                    }
                    from.consume(moved);
                    self.bytes += moved as u64;
                }
            }
        }
        ready!(to.poll_flush(cx)).map_err(Sink)?;
        self.done = true;
        Poll::Ready(Ok(()))
    }

    /// Sends what tries before this one have sent, before anything more is taken from the source.
    fn poll_replay(&mut self, cx: &mut Context<'_>, to: &mut Side) -> Poll<Result<(), SideError>> {
        let Some(replay) = &self.replay else { return Poll::Ready(Ok(())) };
        while let Some(rest) = replay.rest(self.replayed) {
            self.replayed += match to {
                Side::H1(s) => ready!(s.poll_write_body(cx, &rest))?,
                Side::H2(s) => ready!(s.poll_write_body(cx, &rest, None, replay.ends_with_bytes()))?,
            };
        }
        if replay.has_ended() {
            self.ended = true;
            self.trailers = replay.trailers().map(Box::new);
            to.finish(self.trailers.as_deref())?;
        }
        Poll::Ready(Ok(()))
    }
}

/// Fields of an HTTP/2 header map.
pub fn headers_of(map: &http::HeaderMap) -> Headers {
    let mut headers = Headers::new();
    fill_headers(&mut headers, map);
    headers
}

/// Appends the fields of an HTTP/2 header map.
pub fn fill_headers(headers: &mut Headers, map: &http::HeaderMap) {
    for (name, value) in map {
        headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
}

/// The reverse. Fields that HTTP/2 cannot carry are left out (RFC 9113 section 8.2.2).
pub fn header_map(headers: &Headers) -> http::HeaderMap {
    let mut map = http::HeaderMap::with_capacity(headers.len());
    for (id, name, value) in headers.iter() {
        if id.is_hop_by_hop() {
            continue;
        }
        let (Some(name), Ok(value)) = (field_name(id, name), http::HeaderValue::from_bytes(value)) else {
            continue;
        };
        map.append(name, value);
    }
    map
}

/// The usual names need no parsing.
fn field_name(id: HeaderId, name: &[u8]) -> Option<http::HeaderName> {
    use http::header as known;
    Some(match id {
        HeaderId::ContentLength => known::CONTENT_LENGTH,
        HeaderId::ContentType => known::CONTENT_TYPE,
        HeaderId::Cookie => known::COOKIE,
        HeaderId::Date => known::DATE,
        HeaderId::Server => known::SERVER,
        HeaderId::SetCookie => known::SET_COOKIE,
        HeaderId::UserAgent => known::USER_AGENT,
        HeaderId::Via => known::VIA,
        _ => return http::HeaderName::from_bytes(name).ok(),
    })
}
