//! One exchange: from a request's head to its outcome, whatever protocols are spoken on either side.
//!
//! Decisions are core's; this file carries them out and sees to it that every request has exactly one outcome on record.

mod admit;
mod ask;
mod attempt;
mod decide;
mod fault;
mod hedge;
mod respond;
mod retries;
mod tries;

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fieldgate_core::balance::{CompiledPool, Wish};
use fieldgate_core::fault::FaultDecision;
use fieldgate_core::guard::{Answered, Callout, Guard, NoAnswer, Work};
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{Affinity, ListenerKey};
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::{CompiledListener, CompiledRule};
use fieldgate_core::{Headers, RequestHead, ResponseHead};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::Deadline;
use smallvec::SmallVec;

pub(super) use self::attempt::{Opened, open, open_speaking, speaks_http2};
pub(super) use self::decide::apply_to_response;
pub(super) use self::respond::grpc_status;
pub(super) use self::tries::{InFlight, http_status, pick, recycle, tell};
use super::capacity::Queued;
use super::local::Answer;
use super::replay::Replay;
use super::side::{Side, SideError, Transfer};
use super::upstream::StreamGuard;
use super::{Connection, Current, Worker, mirror};
use crate::published::Published;
use crate::telemetry::{Outcome, Stages};

/// Longest time without a byte moving on either side of an exchange (Envoy's stream idle timeout).
pub(super) const STREAM_IDLE: Duration = Duration::from_mins(5);
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
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
    /// The route would have another try, but there were as many as it may have, or no time.
    exhausted: bool,
    /// It would have had another try, but the pool's budget of retries was used up.
    over_budget: bool,
    original_path: Option<String>,
    /// When it was over, if the clock was read then.
    pub(super) ended: Option<Instant>,
}

impl Log<'_> {
    /// What one of several tries has learned.
    fn take_try(&mut self, of: Log<'_>) {
        self.attempts += of.attempts;
        self.stages.connect = of.stages.connect.or(self.stages.connect);
        self.stages.first_byte = of.stages.first_byte.or(self.stages.first_byte);
        self.stages.queue = self.stages.queue.or(of.stages.queue);
        self.upstream_local = of.upstream_local.or(self.upstream_local);
        self.bytes_received = self.bytes_received.max(of.bytes_received);
        self.failure = of.failure.or(self.failure.take());
    }

    /// With Envoy's words for retries that were used up (`URX`) and for those that were too many for the pool (`UO`).
    fn all_flags(&self) -> &'static str {
        if !self.exhausted && !self.over_budget {
            return self.flags;
        }
        match (self.flags, self.exhausted, self.over_budget) {
            ("-", true, _) => "URX",
            ("UF", true, _) => "UF,URX",
            ("UC", true, _) => "UC,URX",
            ("UT", true, _) => "UT,URX",
            ("UPE", true, _) => "UPE,URX",
            ("-", false, true) => "UO",
            ("UC", false, true) => "UC,UO",
            ("UT", false, true) => "UT,UO",
            ("UPE", false, true) => "UPE,UO",
            (flags, ..) => flags,
        }
    }

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
    /// Somebody is asked, and then decided again.
    Ask(Question),
}

/// What a guard wants to know before it goes on.
enum Question {
    /// Of another party.
    Callout(Box<Callout>),
    /// Of a computation.
    Work(Box<Work>),
}

/// How far the decisions about a request have come. Most requests are decided in one go.
#[derive(Default)]
struct Walk<'p> {
    /// Steps of the listener's policy, and filters of the rule, that are done.
    steps: u32,
    filters: u32,
    /// The client, after trusted X-Forwarded-For.
    client: Option<IpAddr>,
    rare: Option<Box<Rare<'p>>>,
    known: Option<Box<Known<'p>>>,
    /// Bytes of header fields that came from the client.
    from_client: usize,
}

/// What guards have learned, and what was asked for them.
#[derive(Default)]
struct Known<'p> {
    metadata: Metadata,
    response_headers: Headers,
    /// The answer to the last question, and which of the guard's it was.
    answer: Option<(u8, Result<Answered, NoAnswer>)>,
    /// Guards that are not done with the request when it goes on.
    following: Vec<&'p dyn Guard>,
    /// When the question was put that waits for an answer.
    asked: Option<Instant>,
    /// A guard let the request pass without an answer.
    failed_open: bool,
}

pub(super) struct Forward<'p> {
    rule: &'p CompiledRule,
    backend: usize,
    pool: &'p CompiledPool,
    /// When the request must be over.
    limit: Option<Instant>,
    /// The client has set that.
    limit_is_clients: bool,
    /// Longest time without a byte moving.
    idle: Duration,
    /// What few requests have.
    rare: Option<Box<Rare<'p>>>,
    copies: Option<Box<mirror::Copies>>,
    tee: Option<Rc<mirror::Tee>>,
    replay: Option<Rc<Replay>>,
    waiting: Cell<Option<Box<Queued>>>,
}

/// What few requests have.
#[derive(Default)]
struct Rare<'p> {
    /// What the choice of an endpoint looks at, apart from those tried.
    wish: Wish<'static>,
    /// Cookies that the response sets.
    cookies: SmallVec<[String; 1]>,
    /// What guards add to the response.
    headers: Headers,
    /// Guards that look at the response.
    following: Vec<&'p dyn Guard>,
    /// Bytes that the request's body may have.
    body_limit: Option<u64>,
    /// The route keeps a client at one endpoint.
    affinity: Option<&'p Affinity>,
    fault: Option<FaultDecision>,
}

impl<'p> Forward<'p> {
    /// Where it goes.
    pub fn pool(&self) -> &'p CompiledPool {
        self.pool
    }

    /// What the choice of an endpoint looks at, apart from those tried.
    fn wish(&self) -> Wish<'static> {
        self.rare.as_ref().map_or_else(Wish::default, |rare| rare.wish)
    }

    /// Bytes that the request's body may have.
    fn body_limit(&self) -> Option<u64> {
        self.rare.as_ref().and_then(|rare| rare.body_limit)
    }

    /// When the request must be over.
    pub fn limit(&self) -> Option<Instant> {
        self.limit
    }

    /// Whether the time that the client has set is over.
    fn client_gave_up(&self) -> bool {
        self.limit_is_clients && self.limit.is_some_and(|limit| Instant::now() >= limit)
    }

    /// When a try that begins now must have a response's head.
    fn limit_of_try(&self, begun: Instant) -> Option<Instant> {
        let of_route = self.rule.ir.timeouts.backend_request;
        let of_retry = self.rule.ir.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        if of_route.is_none() && of_retry.is_none() {
            return self.limit;
        }
        let of_try = [of_route, of_retry].into_iter().flatten().filter(|t| !t.is_zero());
        of_try.map(|t| begun + t).chain(self.limit).min()
    }

    /// Sets the deadline of an exchange in which a byte has just moved.
    pub fn set(&self, deadline: &Deadline) {
        match self.limit {
            Some(limit) => deadline.set_at(limit.min(Instant::now() + self.idle).into()),
            None => deadline.set(self.idle),
        }
    }
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
    /// So was it, but by the client's own doing: it has not sent its body, or has set the time itself.
    ClientSlow,
    /// The client went away.
    ClientGone,
    /// The client broke the protocol in its body.
    ClientError(SideError),
    /// This upstream cannot be asked for it.
    Refused(Answer),
}

/// An upstream that took the request, with its response's head read.
pub(super) struct Responding {
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
    let _counted = Counted::begin(worker);
    worker.taken.set(worker.taken.get() + 1);
    deadline.set(STREAM_IDLE);
    let published = worker.published();
    let mut log = Log { flags: "-", ..Log::default() };
    let mut walk = Walk::default();
    let mut response = ResponseHead::default();
    let end = match decide::decide(worker, conn, &published, request, &mut log, &mut walk) {
        Decision::Answer(answer) => respond::send_answer(down, request, answer, &mut log, deadline).await,
        Decision::Forward(mut to) => {
            send_copies(worker, &published, request, &mut to);
            tries::forward_request(worker, down, request, to, &mut log, &mut response, deadline).await
        }
        Decision::Ask(question) => {
            let asked = ask_first(
                worker,
                conn,
                &published,
                down,
                request,
                &mut log,
                walk,
                question,
                &mut response,
                deadline,
            );
            // Rare, and not to make every exchange larger.
            Box::pin(asked).await
        }
    };
    record(worker, conn, &published, request, &log, Some(&response.headers));
    worker.give_response_head(response);
    end
}

/// Asks what guards want to know, and goes on with what they then decide.
#[allow(clippy::too_many_arguments)]
async fn ask_first<'p>(
    worker: &Rc<Worker>,
    conn: &Connection,
    published: &'p Current,
    mut down: Side,
    request: &mut Request,
    log: &mut Log<'p>,
    walk: Walk<'p>,
    question: Question,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    match ask::ask_around(worker, conn, published, &mut down, request, log, walk, question, deadline).await {
        Some(Decision::Answer(answer)) => respond::send_answer(down, request, answer, log, deadline).await,
        Some(Decision::Forward(mut to)) => {
            send_copies(worker, published, request, &mut to);
            tries::forward_request(worker, down, request, to, log, response, deadline).await
        }
        Some(Decision::Ask(_)) => unreachable!("asked until nothing was left to ask"),
        None => {
            (log.flags, log.details) = ("DC", "downstream_remote_disconnect".into());
            down.abort(h2::Reason::CANCEL);
            None
        }
    }
}

/// Sends off the copies for mirrors, with what was kept of the body already.
fn send_copies(worker: &Rc<Worker>, published: &Current, request: &Request, to: &mut Forward<'_>) {
    let Some(copies) = to.copies.take() else { return };
    to.tee = copies.send(worker, published, request.body);
    if let (Some(tee), Some(kept)) = (&to.tee, &to.replay) {
        kept.show(tee);
    }
}

/// Counts a request for as long as it is in flight, however that ends.
struct Counted<'w>(&'w Worker);

impl<'w> Counted<'w> {
    fn begin(worker: &'w Worker) -> Self {
        worker.requests.set(worker.requests.get() + 1);
        Self(worker)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.requests.set(self.0.requests.get() - 1);
    }
}

/// Records a request that was refused before it had a head to decide on.
pub fn record_refusal(worker: &Rc<Worker>, conn: &Connection, request: &Request, answer: &Answer) {
    let published = worker.published();
    let mut log = Log { flags: "-", ..Log::default() };
    log.answer(answer);
    record(worker, conn, &published, request, &log, None);
}

/// Records a request whose client went away before it was looked at.
pub fn record_gone(worker: &Rc<Worker>, conn: &Connection, request: &Request) {
    let published = worker.published();
    let log = Log { flags: "DC", details: "downstream_remote_reset".into(), ..Log::default() };
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
        flags: log.all_flags(),
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
