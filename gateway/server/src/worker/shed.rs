//! What a refusal for the gateway's own sake looks like on the wire: as cheap as it can be for us, and plain to the client.
//!
//! A connection is reset: that costs neither a handshake, nor a buffer, nor a socket that lingers. A request gets 503 with
//! `Retry-After`, or on HTTP/2, when memory is scarce, a reset that says it was not processed. Who was refused is not heard
//! again at once: else refusals alone could take up a worker.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::io::Io;
use fieldgate_wire::timer::{Deadline, with_deadline};
use futures_util::FutureExt;
use h2::Reason;
use h2::server::SendResponse;
use tokio::net::{TcpListener, TcpStream};

use super::exchange::{self, Request};
use super::local::{self, Answer};
use super::side::H1Side;
use super::{Connection, Worker};
use crate::overload::{Pressure, Refusal};

/// How long an HTTP/1 connection is not read from after a refusal, and how long an HTTP/2 stream waits for one that is
/// not among the first [`QUICK`] of its connection.
const PAUSE: Duration = Duration::from_millis(200);
/// Streams of a connection that are refused at once, each [`PAUSE`].
const QUICK: u32 = 8;
/// How long a client may take to accept a refusal.
const FAREWELL: Duration = Duration::from_secs(2);
/// Idle connections that are closed at once to make room for others.
const GIVEN_UP: u32 = 64;
/// At most so often.
const ROOM_PAUSE: Duration = Duration::from_millis(500);
/// Files that a worker keeps for the time when there are no others.
const RESERVE: usize = 16;
/// Upstream connections that no request has used for so long are closed to make room. Others would be missed at once.
const UNUSED: Duration = Duration::from_secs(1);
/// Clients wait in the queue of a socket for so long before they are told that there is no file for them.
const PATIENCE: Duration = Duration::from_secs(1);
/// Shortages of files within this time are one, as far as the log is concerned.
const EPISODE: Duration = Duration::from_secs(10);

/// 503, `Retry-After: 1`, Envoy's flag of its overload manager.
pub fn answer() -> Answer {
    let mut answer = Answer::new(503, "overload", "OM", "overloaded\n");
    answer.headers.push(b"retry-after", b"1");
    answer
}

/// Breaks off a connection that was just accepted.
pub fn reset(worker: &Worker, tcp: TcpStream, why: Refusal) {
    worker.recorder.connection_refused(why);
    Io::Tcp(tcp).abort();
}

/// Refuses an HTTP/1 request whose head was read. Gives the connection back if it can go on.
pub async fn http1(
    worker: &Rc<Worker>,
    conn: &Connection,
    mut side: Box<H1Side>,
    request: &Request,
    why: Refusal,
    deadline: &Deadline,
) -> Option<Box<H1Side>> {
    let keep = why != Refusal::Memory && request.keep_alive && request.body == BodyKind::None;
    let mut answer = answer();
    if request.head.is_grpc() {
        answer = answer.into_grpc();
    }
    local::write_h1(&mut side, &answer, &request.head, keep);
    deadline.set(FAREWELL);
    let sent = with_deadline(deadline, poll_fn(|cx| side.poll_flush(cx))).await;
    record(worker, conn, request, &answer, why);
    if !keep || !matches!(sent, Ok(Ok(()))) {
        // Not lingered for: a body that we do not want is what we have no room for.
        return None;
    }
    deadline.set(PAUSE);
    let _ = with_deadline(deadline, std::future::pending::<()>()).await;
    Some(side)
}

/// Refusals of one HTTP/2 connection.
#[derive(Debug, Default)]
pub struct Refused {
    since: Cell<u64>,
    count: Cell<u32>,
}

impl Refused {
    /// Whether the next one has to wait.
    fn waits(&self, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.since.get()) >= PAUSE.as_millis() as u64 {
            self.since.set(now_ms);
            self.count.set(0);
        }
        self.count.set(self.count.get() + 1);
        self.count.get() > QUICK
    }
}

/// Refuses an HTTP/2 request.
pub fn http2(
    worker: &Rc<Worker>,
    conn: &Connection,
    mut respond: SendResponse<bytes::Bytes>,
    request: Request,
    why: Refusal,
    refused: &Refused,
) {
    let mut answer = answer();
    if request.head.is_grpc() {
        answer = answer.into_grpc();
    }
    record(worker, conn, &request, &answer, why);
    if why == Refusal::Memory {
        respond.send_reset(Reason::REFUSED_STREAM);
    } else if refused.waits(worker.wheel.millis()) {
        // It keeps its place among the streams of the connection meanwhile, of which there are few.
        let deadline = worker.wheel.register();
        let head = request.head;
        tokio::task::spawn_local(async move {
            deadline.set(PAUSE);
            let _ = with_deadline(&deadline, poll_fn(|cx| respond.poll_reset(cx))).await;
            local::send_h2(respond, answer, &head);
        });
        return;
    } else {
        local::send_h2(respond, answer, &request.head);
    }
    worker.give_request_head(request.head);
}

fn record(worker: &Rc<Worker>, conn: &Connection, request: &Request, answer: &Answer, why: Refusal) {
    worker.recorder.request_refused(why);
    worker.taken.set(worker.taken.get() + 1);
    exchange::record_refusal(worker, conn, request, answer);
}

/// What a worker does to have room for connections.
#[derive(Default)]
pub struct Room {
    /// Idle connections of clients that are to be closed.
    unwanted: Cell<u32>,
    made_at: Cell<Option<Instant>>,
    /// Files that are kept for the time when there are no others: upstream connections of requests that are here already
    /// get them, and new clients do not before all are back.
    reserve: RefCell<Vec<File>>,
    short_since: Cell<Option<Instant>>,
    short_at: Cell<Option<Instant>>,
}

impl Room {
    /// Takes the reserve.
    pub fn new() -> Self {
        let room = Self::default();
        room.refill();
        room
    }

    /// Whether the reserve is whole. A part of it is of no use here, and may be to others.
    fn refill(&self) -> bool {
        let mut reserve = self.reserve.borrow_mut();
        while reserve.len() < RESERVE {
            let Ok(file) = File::open("/dev/null") else {
                reserve.clear();
                return false;
            };
            reserve.push(file);
        }
        true
    }

    /// Whether a connection that is idle is to be closed for the sake of others. To be asked once by each that will.
    pub fn wants_it_closed(&self) -> bool {
        let unwanted = self.unwanted.get();
        // All of them, or so many.
        if unwanted != u32::MAX {
            self.unwanted.set(unwanted.saturating_sub(1));
        }
        unwanted > 0
    }
}

impl Worker {
    /// Closes some connections that are idle, on either side, unless that was just done.
    pub fn close_idle(&self) {
        let now = Instant::now();
        if self.room.made_at.get().is_some_and(|at| now - at < ROOM_PAUSE) {
            return;
        }
        self.room.made_at.set(Some(now));
        self.room.unwanted.set(GIVEN_UP);
        self.upstreams.give_up_idle(UNUSED);
        self.drain.notify_waiters();
    }

    /// Memory is as scarce as this from now on.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.gate.set_pressure(pressure);
        if pressure == Pressure::Critical {
            self.room.unwanted.set(u32::MAX);
            self.upstreams.give_up_idle(Duration::ZERO);
            self.drain.notify_waiters();
        } else {
            self.room.unwanted.set(0);
        }
        if pressure >= Pressure::Tight {
            crate::memory::give_back();
        }
    }

    /// There was no file for a connection that waits to be accepted.
    pub fn short_of_files(&self, bound: SocketAddr, error: &std::io::Error) {
        let room = &self.room;
        let now = Instant::now();
        room.short_since.set(Some(now));
        room.reserve.borrow_mut().clear();
        let known = room.short_at.replace(Some(now)).is_some_and(|at| now - at < EPISODE);
        if !known {
            self.recorder.short_of_files();
            tracing::warn!(
                address = %bound, %error,
                "no file for a new connection: idle connections are closed, and new ones wait (hint: raise ulimit -n, \
                 or lower --max-connections)"
            );
        }
    }

    /// Whether connections may be accepted again. Closes idle ones if not.
    pub fn has_files(&self) -> bool {
        if self.room.refill() {
            return true;
        }
        self.room.short_at.set(Some(Instant::now()));
        self.close_idle();
        false
    }

    /// Tells those who have waited for long, while there is a file to tell them by.
    pub fn refuse_waiting(&self, socket: &TcpListener) {
        let long = |since: Instant| since.elapsed() > PATIENCE;
        if !self.room.short_since.get().is_some_and(long) {
            return;
        }
        for _ in 0..GIVEN_UP {
            match socket.accept().now_or_never() {
                Some(Ok((tcp, _))) => reset(self, tcp, Refusal::Files),
                _ => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusals_are_quick_and_the_others_are_not() {
        let refused = Refused::default();
        let quick = |now| (0..100).filter(|_| !refused.waits(now)).count() as u32;
        assert_eq!(quick(1000), QUICK);
        assert_eq!(quick(1100), 0);
        assert_eq!(quick(1200), QUICK);
    }

    #[test]
    fn as_many_idle_connections_go_as_are_to() {
        let room = Room::new();
        assert!(!room.wants_it_closed());
        room.unwanted.set(2);
        assert_eq!([(); 3].map(|()| room.wants_it_closed()), [true, true, false]);
        room.unwanted.set(u32::MAX);
        assert!((0..1000).all(|_| room.wants_it_closed()));
    }
}
