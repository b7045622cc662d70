//! Downstream HTTP/1: requests of a connection one after the other.
//!
//! A connection that has been quiet for a moment holds no buffer: it waits for readability and nothing else.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_core::head::split_port;
use fieldgate_core::{HeaderId, Method, RequestHead, Version, path};
use fieldgate_wire::h1::{BodyKind, HeadLimits, Malformed, parse_request, valid_authority};
use fieldgate_wire::io::Stream;
use fieldgate_wire::timer::{Deadline, with_deadline};

use super::exchange::{self, Request};
use super::side::{H1Side, Side};
use super::{Connection, Worker, local, shed, tunnel};
use crate::overload::Pressure;

/// First byte of a connection, and from one request to the next.
const IDLE: Duration = Duration::from_secs(75);
/// From the first byte of a head to its last.
const HEADER: Duration = Duration::from_secs(10);
/// How long buffers are kept after a response, waiting for the next request.
const WARM: Duration = Duration::from_millis(200);
/// How long an idle connection may still use while the gateway drains.
const DRAIN_IDLE: Duration = Duration::from_secs(2);
/// After a refusal, how long and how much of the unwanted body is read, so that the answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 1024 * 1024;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection, which is what `slot` holds, to its end, or to HTTP/2's preface, which only a plain connection may
/// begin with: puts the stream back then, and gives what was read of it.
pub async fn serve(worker: &Rc<Worker>, conn: &Rc<Connection>, slot: &mut Option<Stream>) -> Option<Bytes> {
    let deadline = worker.wheel.register();
    let mut first = !conn.tls;
    loop {
        deadline.set(IDLE);
        if !wait_for_request(worker, slot.as_mut()?, &deadline).await {
            return None;
        }
        // A new connection counts as readable until it was tried: what comes must come soon, or be waited for again.
        deadline.set(WARM);
        match Box::pin(active(worker, conn, slot.take()?, &deadline, &mut first)).await? {
            Pause::Quiet(stream) => *slot = Some(stream),
            Pause::Http2(stream, ahead) => {
                *slot = Some(stream);
                return Some(ahead);
            }
        }
    }
}

/// Why a connection has no request at present.
enum Pause {
    /// None came for a while.
    Quiet(Stream),
    /// It speaks HTTP/2, as these first bytes say.
    Http2(Stream, Bytes),
}

/// The idle state. `false`: the connection is over.
async fn wait_for_request(worker: &Worker, stream: &mut Stream, deadline: &Deadline) -> bool {
    let drain = worker.drain.notified();
    tokio::pin!(drain);
    if worker.draining.get() {
        deadline.set(DRAIN_IDLE);
    }
    let mut told = worker.draining.get();
    poll_fn(|cx| {
        if let Poll::Ready(ready) = stream.io_mut().poll_readable(cx) {
            return Poll::Ready(ready.is_ok());
        }
        while !told && drain.as_mut().poll(cx).is_ready() {
            if worker.draining.get() {
                told = true;
                deadline.set(DRAIN_IDLE);
            } else if worker.room.wants_it_closed() {
                return Poll::Ready(false);
            } else {
                drain.set(worker.drain.notified());
            }
        }
        deadline.poll_expired(cx).map(|()| false)
    })
    .await
}

/// Requests in quick succession. Returns the stream once it goes quiet, nothing once it is over. `first`: it may yet turn
/// out to speak HTTP/2.
async fn active(
    worker: &Rc<Worker>,
    conn: &Rc<Connection>,
    stream: Stream,
    deadline: &Deadline,
    first: &mut bool,
) -> Option<Pause> {
    let mut side = Box::new(H1Side::new(stream, worker.buffers.take(), Vec::new()));
    let mut request = Request::default();
    loop {
        if side.input.is_empty() && !read_first(&mut side, deadline).await? {
            return Some(Pause::Quiet(side.stream));
        }
        let started = Instant::now();
        // One span of time for a head, also for one that begins like the preface.
        deadline.set(HEADER);
        if std::mem::take(first) && begins_with_preface(&mut side, deadline).await {
            let ahead = Bytes::copy_from_slice(side.input.filled());
            return Some(Pause::Http2(side.stream, ahead));
        }
        request.head = worker.take_request_head();
        match read_head(&mut side, &mut request, conn, deadline).await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(why) => {
                refuse(worker, conn, side, &mut request, why, started, deadline).await;
                return None;
            }
        }
        request.started = started;
        if let Some(why) = worker.gate.refuses(|| worker.random()) {
            side = Box::pin(shed::http1(worker, conn, side, &request, why, deadline)).await?;
            worker.give_request_head(std::mem::take(&mut request.head));
            deadline.set(WARM);
            continue;
        }
        if worker.gate.pressure() > Pressure::None {
            request.keep_alive = false;
        }
        let keep = request.keep_alive;
        let (back, reusable) =
            exchange::exchange(worker, conn, Side::H1(side), &mut request, deadline).await?;
        let Side::H1(back) = back else { return None };
        side = back;
        // What is given back now is what the next request of any connection takes.
        worker.give_request_head(std::mem::take(&mut request.head));
        worker.give_out(std::mem::take(&mut side.out));
        // Draining alone is no reason: a client that was not told to go may have sent its next request already. The
        // answer to that one tells it.
        if !reusable || !keep {
            // A client that said so sends nothing more; of any other, more may be on its way.
            let silent = !keep && !conn.tls && side.is_clean() && side.input.is_empty();
            if !silent {
                linger(side, deadline).await;
            }
            return None;
        }
        deadline.set(WARM);
    }
}

/// Waits for the first byte of a request: `Some(false)` if none came for a while, `None` if the connection is over.
async fn read_first(side: &mut H1Side, deadline: &Deadline) -> Option<bool> {
    match with_deadline(deadline, poll_fn(|cx| side.poll_read_more(cx))).await {
        Ok(Ok(0) | Err(_)) => None,
        Ok(Ok(_)) => Some(true),
        Err(_) => Some(false),
    }
}

/// Whether HTTP/2's preface comes first. It may come in pieces; a connection that ends within it is not HTTP/2's.
async fn begins_with_preface(side: &mut H1Side, deadline: &Deadline) -> bool {
    loop {
        let seen = side.input.filled();
        let compared = seen.len().min(PREFACE.len());
        if seen[..compared] != PREFACE[..compared] {
            return false;
        }
        if compared == PREFACE.len() {
            return true;
        }
        match with_deadline(deadline, poll_fn(|cx| side.poll_read_more(cx))).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return false,
        }
    }
}

/// `Ok(false)`: the client went away or was too slow.
async fn read_head(
    side: &mut H1Side,
    request: &mut Request,
    conn: &Connection,
    deadline: &Deadline,
) -> Result<bool, Malformed> {
    let mut pieces = Pieces::default();
    loop {
        if pieces.worth_parsing(side.input.filled())
            && let Some(used) = parse(side.input.filled(), request, conn.tls)?
        {
            side.input.consume(used);
            side.expect_body(request.body);
            return Ok(true);
        }
        match with_deadline(deadline, poll_fn(|cx| side.poll_read_more(cx))).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return Ok(false),
        }
    }
}

/// When a head that comes in pieces is parsed again: at its end, or once it has grown by a quarter. Parsed after each
/// piece, a long head sent byte by byte would cost a thousand times what it costs to send.
#[derive(Default)]
struct Pieces {
    seen: usize,
    parsed: usize,
}

impl Pieces {
    /// A head as short as this, in bytes, is parsed after each piece, so that a mistake is answered at once.
    const SHORT: usize = 1024;

    fn worth_parsing(&mut self, input: &[u8]) -> bool {
        let new = &input[self.seen.saturating_sub(3).min(input.len())..];
        self.seen = input.len();
        let ended = || new.windows(2).any(|w| w == b"\n\n") || new.windows(3).any(|w| w == b"\n\r\n");
        let worth = input.len() <= Self::SHORT || input.len() >= self.parsed + self.parsed / 4 || ended();
        if worth {
            self.parsed = input.len();
        }
        worth
    }
}

pub(super) fn parse(input: &[u8], request: &mut Request, https: bool) -> Result<Option<usize>, Malformed> {
    let head = &mut request.head;
    head.clear();
    let parsed = parse_request(input, HeadLimits::default(), |name, value| {
        if !(name.len() == 4 && name.eq_ignore_ascii_case(b"host")) {
            head.headers.push(name, value);
        }
    })?;
    let Some(parsed) = parsed else { return Ok(None) };
    head.method = Method::from_bytes(parsed.method.as_bytes());
    head.version = if parsed.http10 { Version::Http10 } else { Version::Http11 };
    head.https = https;
    head.authority.push_str(parsed.host.unwrap_or_default());
    set_target(head, parsed.target)?;
    head.authority.make_ascii_lowercase();
    head.drop_trailing_dot();
    request.body = parsed.body;
    request.keep_alive = parsed.keep_alive;
    request.expects_continue = parsed.expects_continue && parsed.body != BodyKind::None;
    request.upgrade =
        head.headers.get_id(HeaderId::Upgrade).filter(|_| parsed.upgrade).and_then(tunnel::asked_for);
    Ok(Some(parsed.len))
}

/// The four forms of a target (RFC 9112 section 3.2), and the path made canonical.
pub(crate) fn set_target(head: &mut RequestHead, target: &str) -> Result<(), Malformed> {
    if head.method == Method::Connect {
        if !valid_authority(target) || split_port(target).1.is_none() {
            return Err(Malformed::Target);
        }
        head.authority.clear();
        head.authority.push_str(target);
        return Ok(());
    }
    if target == "*" {
        head.set_target("*");
        return if head.method == Method::Options { Ok(()) } else { Err(Malformed::Target) };
    }
    let origin = if target.starts_with('/') {
        target
    } else {
        let rest = target
            .split_once("://")
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
            .ok_or(Malformed::Target)?
            .1;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        if !valid_authority(&rest[..end]) {
            return Err(Malformed::Target);
        }
        // The absolute form wins over Host (RFC 9112 section 3.2.2).
        head.authority.clear();
        head.authority.push_str(&rest[..end]);
        &rest[end..]
    };
    let (path, query) = match origin.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin, None),
    };
    if query.is_some_and(|q| q.contains('#')) {
        return Err(Malformed::Target);
    }
    let written = if path.is_empty() { "/" } else { path };
    let path = path::normalise(written).ok_or(Malformed::Target)?;
    head.written_path = (*path != *written).then(|| written.into());
    head.target.clear();
    head.target.push_str(&path);
    head.path_len = head.target.len();
    if let Some(query) = query {
        head.target.push('?');
        head.target.push_str(query);
    }
    Ok(())
}

async fn refuse(
    worker: &Rc<Worker>,
    conn: &Rc<Connection>,
    mut side: Box<H1Side>,
    request: &mut Request,
    why: Malformed,
    started: Instant,
    deadline: &Deadline,
) {
    request.head.clear();
    request.started = started;
    let answer = local::Answer::new(why.status(), why.as_str(), "DPE", "bad request\n");
    local::write_h1(&mut side, &answer, &request.head, false);
    deadline.set(HEADER);
    let _ = with_deadline(deadline, poll_fn(|cx| side.poll_flush(cx))).await;
    exchange::record_refusal(worker, conn, request, &answer);
    linger(side, deadline).await;
}

/// Closes so that the last response arrives: a close with unread input would reset the connection.
async fn linger(mut side: Box<H1Side>, deadline: &Deadline) {
    deadline.set(LINGER);
    let ended = with_deadline(deadline, side.stream.io_mut().shutdown_write()).await;
    if !matches!(ended, Ok(Ok(()))) {
        return;
    }
    let mut left = LINGER_BYTES;
    loop {
        side.input.clear();
        match with_deadline(deadline, poll_fn(|cx| side.poll_read_more(cx))).await {
            Ok(Ok(n)) if n > 0 && n <= left => left -= n,
            _ => return,
        }
    }
}

/// A field that only the gateway may write, as far as clients are concerned.
pub(super) fn is_internal(id: HeaderId, name: &[u8]) -> bool {
    id == HeaderId::XForwardedClientCert || name.starts_with(b"x-envoy-")
}

#[cfg(test)]
mod tests {
    use fieldgate_wire::buffer::BufferPool;
    use fieldgate_wire::io::Io;
    use fieldgate_wire::timer::Wheel;
    use futures_util::FutureExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// What is made of a client that sends these pieces, each once the one before was seen, and then closes if it is told to.
    async fn judged(pieces: &[&str], close: bool) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let stream = Stream::new(Io::Tcp(accepted), peer, listener.local_addr().unwrap());
        let mut side = H1Side::new(stream, BufferPool::new(1024, 1).take(), Vec::new());
        let deadline = Wheel::default().register();
        let mut verdict = std::pin::pin!(begins_with_preface(&mut side, &deadline));
        for piece in pieces {
            // The piece before is in the socket's queue; the runtime hears of it in its next turn.
            tokio::task::yield_now().await;
            assert!(verdict.as_mut().now_or_never().is_none(), "judged before {piece:?}");
            client.write_all(piece.as_bytes()).await.unwrap();
        }
        if close {
            client.shutdown().await.unwrap();
        }
        verdict.await
    }

    #[test]
    fn a_long_head_in_small_pieces_is_parsed_a_few_times_only() {
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(50_000));
        let head = head.as_bytes();
        let mut pieces = Pieces::default();
        let parsed = (1..=head.len()).filter(|n| pieces.worth_parsing(&head[..*n])).count();
        assert!((1024..1024 + 30).contains(&parsed), "{parsed}");
        for step in [1, 2, 3, 7, 1000] {
            let mut pieces = Pieces::default();
            let cuts = (1..head.len()).step_by(step).chain([head.len()]);
            let last = cuts.map(|n| pieces.worth_parsing(&head[..n])).last();
            assert_eq!(last, Some(true), "the end is seen, in pieces of {step}");
        }
    }

    #[tokio::test]
    async fn the_preface_may_come_in_pieces() {
        assert!(judged(&["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n and more"], false).await);
        assert!(judged(&["PRI * HT", "TP/2.0\r\n\r\nS", "M\r\n\r\n"], false).await);
        assert!(!judged(&["PRI * HT", "TP/1.1\r\n"], false).await);
        assert!(!judged(&["P", "OST / HTTP/1.1\r\n"], false).await);
        assert!(!judged(&["GET / HTTP/1.1\r\n"], false).await);
        assert!(!judged(&["PRI * HT"], true).await);
    }
}
