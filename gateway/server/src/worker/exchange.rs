//! One exchange: from a request's head to its outcome, whatever protocols are spoken on either side.
//!
//! Decisions are core's; this file carries them out and sees to it that every request has exactly one outcome on record.

mod attempt;
mod decide;
mod respond;
mod tries;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::ListenerKey;
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::{CompiledListener, CompiledRule};
use fieldgate_core::{Headers, RequestHead, ResponseHead};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::Deadline;

pub(super) use self::attempt::{Opened, open, speaks_http2};
pub(super) use self::decide::apply_to_response;
pub(super) use self::tries::{InFlight, pick, recycle};
use super::capacity::Queued;
use super::local::Answer;
use super::side::{Side, SideError, Transfer};
use super::upstream::StreamGuard;
use super::{Connection, Worker, mirror};
use crate::published::Published;
use crate::telemetry::{Outcome, Stages};

/// Longest time without a byte moving on either side of an exchange (Envoy's stream idle timeout).
pub(super) const STREAM_IDLE: Duration = Duration::from_mins(5);
/// Endpoints tried at most when connections cannot be opened, retries of the route apart.
pub(super) const CONNECT_TRIES: u32 = 3;
/// Kept connections found closed at most, one after the other.
pub(super) const STALE_TRIES: u32 = 16;

/// A request as a downstream codec hands it over.
pub struct Request {
    /// The head.
    pub head: RequestHead,
    /// The body that follows.
    pub body: BodyKind,
    /// Whether the client lets the connection go on.
    pub keep_alive: bool,
    /// The client waits for 100 before it sends the body.
    pub expects_continue: bool,
    /// The client asks for another protocol: which.
    pub upgrade: Option<Vec<u8>>,
    /// When its first byte was there.
    pub started: Instant,
    /// HTTP/2: where the response goes.
    pub respond: Option<h2::server::SendResponse<Bytes>>,
    /// HTTP/2: what the client sends once the upgrade that it asks for is agreed to.
    pub tunnel: Option<h2::RecvStream>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            head: RequestHead::default(),
            body: BodyKind::None,
            keep_alive: true,
            expects_continue: false,
            upgrade: None,
            started: Instant::now(),
            respond: None,
            tunnel: None,
        }
    }
}

impl Request {
    /// Ready when an HTTP/2 client has reset the stream before a response began.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.respond {
            Some(respond) => respond.poll_reset(cx).map(|_| ()),
            None => Poll::Pending,
        }
    }
}

/// What is learned about a request on its way, for the one record at its end.
///
/// It borrows from the snapshot: a reference count would be memory that all workers write per request.
#[derive(Default)]
pub(super) struct Log<'p> {
    listener: Option<&'p Arc<CompiledListener>>,
    entry: Option<&'p Arc<Entry>>,
    backend: Option<usize>,
    pool: Option<&'p Arc<CompiledPool>>,
    upstream: Option<SocketAddr>,
    upstream_local: Option<SocketAddr>,
    pub(super) status: u16,
    grpc_status: Option<u16>,
    pub(super) flags: &'static str,
    pub(super) details: std::borrow::Cow<'static, str>,
    pub(super) failure: Option<String>,
    stages: Stages,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    attempts: u32,
    original_path: Option<String>,
    /// When it was over, if the clock was read then.
    pub(super) ended: Option<Instant>,
}

impl Log<'_> {
    fn answer(&mut self, answer: &Answer) {
        self.status = answer.status;
        self.flags = answer.flags;
        self.details.clone_from(&answer.details);
        self.bytes_sent = answer.body.len() as u64;
    }
}

/// What the head alone decides.
#[allow(clippy::large_enum_variant)] // lives on the stack for one call
enum Decision<'p> {
    Answer(Answer),
    Forward(Forward<'p>),
}

pub(super) struct Forward<'p> {
    rule: &'p CompiledRule,
    backend: usize,
    pool: &'p CompiledPool,
    issue_cookie: Option<String>,
    copies: Option<Box<mirror::Copies>>,
    tee: Option<Rc<mirror::Tee>>,
    waiting: Cell<Option<Queued>>,
}

/// How an attempt at an upstream failed before a response began.
pub(super) enum Failure {
    /// No connection.
    Connect(std::io::Error),
    /// No connection within the pool's limit.
    Full,
    /// The connection broke; `stale`: it had been kept and the peer had closed it meanwhile; `unsent`: the peer has not
    /// processed the request for certain.
    Broken { error: SideError, stale: bool, unsent: bool },
    /// Its time was up.
    Timeout,
    /// The client went away.
    ClientGone,
    /// The client broke the protocol in its body.
    ClientError(SideError),
    /// This upstream cannot be asked for it.
    Refused(Answer),
}

/// An upstream that took the request, with its response's head read.
pub(super) struct Answered {
    at: Instant,
    pub(super) side: Side,
    pub(super) guard: Option<StreamGuard>,
    keep_alive: bool,
    body: BodyKind,
    pub(super) upload: Transfer,
    upload_failed: bool,
    /// It agreed to the upgrade: what follows is a tunnel.
    switched: bool,
}

/// Carries out one exchange. Returns the client's side and whether its connection can go on, or nothing if it is gone.
pub async fn exchange(
    worker: &Rc<Worker>,
    conn: &Connection,
    down: Side,
    request: &mut Request,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    worker.requests.set(worker.requests.get() + 1);
    worker.taken.set(worker.taken.get() + 1);
    deadline.set(STREAM_IDLE);
    let published = worker.published();
    let mut log = Log { flags: "-", ..Log::default() };
    let decision = decide::decide(worker, conn, &published, request, &mut log);
    let mut response = ResponseHead::default();
    let end = match decision {
        Decision::Answer(answer) => respond::send_answer(down, request, answer, &mut log, deadline).await,
        Decision::Forward(mut to) => {
            if let Some(copies) = to.copies.take() {
                to.tee = copies.send(worker, &published, request.body);
            }
            tries::forward_request(worker, down, request, to, &mut log, &mut response, deadline).await
        }
    };
    record(worker, conn, &published, request, &log, Some(&response.headers));
    worker.give_response_head(response);
    worker.requests.set(worker.requests.get() - 1);
    end
}

/// Records a request that was refused before it had a head to decide on.
pub fn record_refusal(worker: &Rc<Worker>, conn: &Connection, request: &Request, answer: &Answer) {
    let published = worker.published();
    let mut log = Log { flags: "-", ..Log::default() };
    log.answer(answer);
    record(worker, conn, &published, request, &log, None);
}

fn record(
    worker: &Rc<Worker>,
    conn: &Connection,
    published: &Published,
    request: &Request,
    log: &Log<'_>,
    response: Option<&Headers>,
) {
    let of_address = || published.snapshot.address(conn.bound)?.listeners.first();
    let listener = log.listener.or_else(of_address).map_or(&*UNKNOWN_LISTENER, |l| &l.ir.key);
    let duration = log.ended.unwrap_or_else(Instant::now) - request.started;
    // Only the access log tells the time of day.
    let started_wall = match &published.access_log {
        Some(_) => SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
        None => SystemTime::UNIX_EPOCH,
    };
    let outcome = Outcome {
        listener,
        rule: log.entry.map(|e| &e.rule.ir),
        backend: log.backend,
        pool: log.pool.map(|p| &p.ir),
        upstream: log.upstream,
        upstream_local: log.upstream_local,
        head: &request.head,
        original_path: log.original_path.as_deref(),
        status: log.status,
        response,
        grpc_status: log.grpc_status,
        flags: log.flags,
        details: &log.details,
        failure: log.failure.as_deref(),
        started: request.started,
        started_wall,
        duration,
        stages: log.stages,
        bytes_received: log.bytes_received,
        bytes_sent: log.bytes_sent,
        peer: conn.peer,
        local: conn.local,
        sni: conn.sni.as_deref(),
        generation: published.snapshot.generation,
        attempts: log.attempts,
    };
    worker.recorder.record(&outcome);
    if let Some(access_log) = &published.access_log {
        worker.log(access_log, &outcome);
    }
}

/// Stands for the listener of a connection whose address is no longer configured.
static UNKNOWN_LISTENER: LazyLock<ListenerKey> =
    LazyLock::new(|| ListenerKey { namespace: "".into(), gateway: "".into(), name: "".into() });
