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

/// How long nothing is heard of a client after a refusal: an HTTP/1 connection is not read from for so long.
const PAUSE: Duration = Duration::from_millis(200);
/// Of those who were refused, one is heard again each so long, and nobody later than after [`LONGEST`]: what refusals take of
/// a worker's time is bounded by that, however many clients there are.
const SPACING: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(10);
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

/// When those who were refused are heard again, on one worker.
#[derive(Debug, Default)]
pub struct Pace {
    next: Cell<Option<Instant>>,
}

impl Pace {
    /// How long the next one has to wait.
    fn wait(&self, now: Instant) -> Duration {
        let at = self.next.get().map_or(now, |next| next.max(now));
        let wait = at - now;
        if wait < LONGEST {
            self.next.set(Some(at + SPACING));
        }
        wait
    }
}

/// 503, when to come again, Envoy's flag of its overload manager.
fn answer(request: &Request, wait: Duration) -> Answer {
    let mut answer = Answer::new(503, "overload", "OM", "overloaded\n");
    let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
    answer.headers.push(b"retry-after", seconds.to_string().as_bytes());
    if request.head.is_grpc() { answer.into_grpc() } else { answer }
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
    let wait = worker.pace.wait(Instant::now());
    let answer = answer(request, wait);
    local::write_h1(&mut side, &answer, &request.head, keep);
    deadline.set(FAREWELL);
    let sent = with_deadline(deadline, poll_fn(|cx| side.poll_flush(cx))).await;
    record(worker, conn, request, &answer, why);
    if !keep || !matches!(sent, Ok(Ok(()))) {
        // Not lingered for: a body that we do not want is what we have no room for.
        return None;
    }
    deadline.set(wait.max(PAUSE));
    let _ = with_deadline(deadline, std::future::pending::<()>()).await;
    Some(side)
}

/// Refuses an HTTP/2 request. One that has to wait for that keeps its place among the streams of the connection, of which
/// there are few: that is what keeps the client from coming again.
pub fn http2(
    worker: &Rc<Worker>,
    conn: &Connection,
    mut respond: SendResponse<bytes::Bytes>,
    request: Request,
    why: Refusal,
) {
    let wait = worker.pace.wait(Instant::now());
    let answer = answer(&request, wait);
    record(worker, conn, &request, &answer, why);
    if why == Refusal::Memory {
        respond.send_reset(Reason::REFUSED_STREAM);
    } else if wait > PAUSE {
        let deadline = worker.wheel.register();
        let head = request.head;
        tokio::task::spawn_local(async move {
            deadline.set(wait);
            if with_deadline(&deadline, poll_fn(|cx| respond.poll_reset(cx))).await.is_err() {
                local::send_h2(respond, answer, &head);
            }
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
    /// They were there and are given away.
    lent: Cell<bool>,
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
        self.lend_files();
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

    /// Gives away the files that are kept for it, if they are there: to upstream connections, for no connection is accepted
    /// before they are back.
    pub fn lend_files(&self) -> bool {
        let room = &self.room;
        if room.reserve.borrow().is_empty() {
            return false;
        }
        room.reserve.borrow_mut().clear();
        room.short_since.set(Some(Instant::now()));
        room.lent.set(true);
        self.overload.files_lent();
        true
    }

    /// Whether this worker, or another, has given away what it keeps.
    pub fn lacks_files(&self) -> bool {
        self.room.lent.get() || self.overload.lacks_files()
    }

    /// Whether connections may be accepted again. Closes idle ones if not.
    pub fn has_files(&self) -> bool {
        if self.room.lent.get() && self.room.refill() {
            self.room.lent.set(false);
            self.overload.files_back();
        }
        if !self.lacks_files() {
            return true;
        }
        self.room.short_at.set(Some(Instant::now()));
        self.close_idle();
        false
    }

    /// Tells those who have waited for long, while there is a file to tell them by.
    pub fn refuse_waiting(&self, socket: &TcpListener) {
        if !self.room.lent.get() {
            return;
        }
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
    fn those_refused_come_again_one_after_the_other() {
        let pace = Pace::default();
        let now = Instant::now();
        assert_eq!([0, 1, 2].map(|_| pace.wait(now)), [0, 1, 2].map(Duration::from_millis));
        let later = now + Duration::from_millis(2);
        assert_eq!(pace.wait(later), Duration::from_millis(1));
        assert_eq!(pace.wait(now + Duration::from_secs(5)), Duration::ZERO);
        let longest = (0..20_000).map(|_| pace.wait(later)).max();
        assert_eq!(longest, Some(LONGEST), "a client waits for a bounded time");
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
