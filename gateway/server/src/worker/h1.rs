//! Downstream HTTP/1: requests of a connection one after the other.
//!
//! A connection that has been quiet for a moment holds no buffer: it waits for readability and nothing else.

use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use fieldgate_core::head::split_port;
use fieldgate_core::{HeaderId, Method, RequestHead, Version, path};
use fieldgate_wire::h1::{BodyKind, HeadLimits, Malformed, parse_request, valid_authority};
use fieldgate_wire::io::Stream;
use fieldgate_wire::timer::{Deadline, with_deadline};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::exchange::{self, Request};
use super::side::{H1Side, Side};
use super::{Connection, Worker, local, tunnel};

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

/// Waits for the first bytes of a plain connection and tells whether they are HTTP/2's preface, without taking them.
pub async fn await_preface(worker: &Rc<Worker>, stream: Stream) -> Option<(Stream, bool)> {
    let deadline = worker.wheel.register();
    deadline.set(IDLE);
    let http2 = with_deadline(&deadline, begins_with_preface(stream.io().tcp())).await.ok()?.ok()?;
    Some((stream, http2))
}

/// Whether HTTP/2's preface comes first. It may come in pieces; a connection that ends within it is not HTTP/2's.
async fn begins_with_preface(tcp: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let ready = tcp.ready(Interest::READABLE).await?;
        let n = tcp.peek(&mut seen).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if n == PREFACE.len() || seen[..n] != PREFACE[..n] || ready.is_read_closed() {
            return Ok(seen[..n] == *PREFACE);
        }
        // What is there was seen, so only more of it is news. Without a read the runtime has to be told.
        let _ = tcp.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
    }
}

/// Serves a connection to its end.
pub async fn serve(worker: &Rc<Worker>, conn: Rc<Connection>, mut stream: Stream) {
    let deadline = worker.wheel.register();
    let mut first = true;
    loop {
        deadline.set(IDLE);
        if !first && !wait_for_request(worker, &mut stream, &deadline).await {
            return;
        }
        first = false;
        match Box::pin(active(worker, &conn, stream, &deadline)).await {
            Some(back) => stream = back,
            None => return,
        }
    }
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
        if !told && drain.as_mut().poll(cx).is_ready() {
            told = true;
            deadline.set(DRAIN_IDLE);
        }
        deadline.poll_expired(cx).map(|()| false)
    })
    .await
}

/// Requests in quick succession. Returns the stream once it goes quiet, nothing once it is over.
async fn active(
    worker: &Rc<Worker>,
    conn: &Rc<Connection>,
    stream: Stream,
    deadline: &Deadline,
) -> Option<Stream> {
    let mut side = Box::new(H1Side::new(stream, worker.buffers.take(), Vec::new()));
    let mut request = Request::default();
    loop {
        if side.input.is_empty() && !read_first(&mut side, deadline).await? {
            return Some(side.stream);
        }
        let started = Instant::now();
        deadline.set(HEADER);
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
            linger(side, deadline).await;
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

/// `Ok(false)`: the client went away or was too slow.
async fn read_head(
    side: &mut H1Side,
    request: &mut Request,
    conn: &Connection,
    deadline: &Deadline,
) -> Result<bool, Malformed> {
    loop {
        if let Some(used) = parse(side.input.filled(), request, conn.tls)? {
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
    let path = path::normalise(if path.is_empty() { "/" } else { path }).ok_or(Malformed::Target)?;
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
    use futures_util::FutureExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What is made of a client that sends these pieces, each once the one before was seen, and then closes if it is told to.
    async fn judged(pieces: &[&str], close: bool) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let mut verdict = std::pin::pin!(begins_with_preface(&accepted));
        for piece in pieces {
            assert!(verdict.as_mut().now_or_never().is_none(), "judged before {piece:?}");
            client.write_all(piece.as_bytes()).await.unwrap();
            // The piece is in the socket's queue; the runtime hears of it in its next turn.
            accepted.ready(Interest::READABLE).await.unwrap();
        }
        if close {
            client.shutdown().await.unwrap();
        }
        verdict.await.unwrap()
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
