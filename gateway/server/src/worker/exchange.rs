//! One exchange: from a request's head to its outcome, whatever protocols are spoken on either side.
//!
//! Decisions are core's; this file carries them out and sees to it that every request has exactly one outcome on record.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fieldgate_core::balance::{CompiledPool, NoEndpoint, Wish};
use fieldgate_core::filter;
use fieldgate_core::ir::{ConnectionFacts, Filter, ListenerKey, Protocol};
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::{CompiledListener, CompiledRule};
use fieldgate_core::{HeaderId, Headers, Method, RequestHead, ResponseHead, Version};
use fieldgate_plugins::cors;
use fieldgate_wire::h1::{BodyKind, HeadLimits, parse_response};
use fieldgate_wire::timer::{Deadline, with_deadline};
use h2::Reason;
use smallvec::SmallVec;

use super::capacity::{NoPlace, Queued};
use super::local::{self, Answer};
use super::side::{H1Side, H2Side, Side, SideError, Transfer, TransferError};
use super::tunnel::{self, Asked};
use super::upstream::{NoConnection, StreamGuard};
use super::{Connection, Worker, capacity, forward, mirror};
use crate::published::Published;
use crate::telemetry::{Outcome, Stages};

/// Longest time without a byte moving on either side of an exchange (Envoy's stream idle timeout).
pub(super) const STREAM_IDLE: Duration = Duration::from_mins(5);
/// How long a client may take to accept the last of a response that is cut short.
const FAREWELL: Duration = Duration::from_secs(2);
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
    let decision = decide(worker, conn, &published, request, &mut log);
    let mut response = ResponseHead::default();
    let end = match decision {
        Decision::Answer(answer) => send_answer(down, request, answer, &mut log, deadline).await,
        Decision::Forward(mut to) => {
            if let Some(copies) = to.copies.take() {
                to.tee = copies.send(worker, &published, request.body);
            }
            forward_request(worker, down, request, to, &mut log, &mut response, deadline).await
        }
    };
    record(worker, conn, &published, request, &log, Some(&response.headers));
    worker.give_response_head(response);
    worker.requests.set(worker.requests.get() - 1);
    end
}

/// Records a request that was refused before it had a head to decide on.
pub fn record_refusal(worker: &Worker, conn: &Connection, request: &Request, answer: &Answer) {
    let published = worker.published();
    let mut log = Log { flags: "-", ..Log::default() };
    log.answer(answer);
    record(worker, conn, &published, request, &log, None);
}

fn record(
    worker: &Worker,
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
        access_log.log(&outcome);
    }
}

/// Stands for the listener of a connection whose address is no longer configured.
static UNKNOWN_LISTENER: LazyLock<ListenerKey> =
    LazyLock::new(|| ListenerKey { namespace: "".into(), gateway: "".into(), name: "".into() });

/// Listener, policies, route, filters, split. Changes the head to what the upstream is to see.
fn decide<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    request: &mut Request,
    log: &mut Log<'p>,
) -> Decision<'p> {
    match decide_or_answer(worker, conn, published, request, log) {
        Ok(to) => Decision::Forward(to),
        Err(answer) if request.head.is_grpc() && answer.status >= 400 => Decision::Answer(answer.into_grpc()),
        Err(answer) => Decision::Answer(answer),
    }
}

#[allow(clippy::result_large_err)] // an answer is the end of the request, not an error on a hot path
fn decide_or_answer<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    request: &mut Request,
    log: &mut Log<'p>,
) -> Result<Forward<'p>, Answer> {
    let head = &mut request.head;
    if head.method == Method::Connect {
        return Err(Answer::new(405, "connect_not_supported", "-", "CONNECT is not supported\n"));
    }
    let not_found = || Answer::new(404, "route_not_found", "NR", "no route\n");
    let table = published.snapshot.address(conn.bound).ok_or_else(not_found)?;
    let listener = table.listener_for(head.host()).ok_or_else(not_found)?;
    if let Some(sni) = &conn.sni
        && table.listener_for(sni).is_some_and(|by_sni| !Arc::ptr_eq(by_sni, listener))
    {
        // The handshake was for another listener: its certificates and policies were another's (RFC 9110 section 15.5.20).
        return Err(Answer::new(421, "misdirected_request", "-", "misdirected request\n"));
    }
    log.listener = Some(listener);
    let trusted_hops = listener.ir.client.trusted_hops;
    let client = conn.client(head.headers.get_id(HeaderId::XForwardedFor), trusted_hops);
    if let Some(authorizer) = published.authorizers.get(&listener.ir.key) {
        let facts = ConnectionFacts {
            peer: conn.peer.ip().to_canonical(),
            client,
            local: conn.local,
            sni: conn.sni.as_deref(),
        };
        let decision = authorizer.decide(head, &facts);
        for rule in decision.matches() {
            worker.recorder.authz(&rule.policy, rule.action, rule.dry_run);
        }
        if !decision.allowed {
            return Err(Answer::new(403, decision.details(), "-", "RBAC: access denied"));
        }
    }
    let entry = listener.route(head).ok_or_else(not_found)?;
    log.entry = Some(entry);
    let rule = &entry.rule;
    forward::prepare_request(head, conn.peer.ip().to_canonical(), trusted_hops, || worker.random());
    let port = conn.local.port();
    for filter in &rule.ir.filters {
        apply(filter, entry, head, port, log)?;
    }
    if rule.ir.backends.is_empty() {
        return Err(Answer::new(500, "no_backend", "-", "no backend\n"));
    }
    let choice = {
        let mut splits = worker.splits.borrow_mut();
        let slot = rule.slot as usize;
        if splits.len() <= slot {
            splits.resize_with(slot + 1, Default::default);
        }
        rule.split.choose(&mut splits[slot], head, client, worker.random())
    };
    let Some(choice) = choice else {
        return Err(Answer::new(500, "no_weight", "-", "no backend has weight\n"));
    };
    worker.count_choice(rule, choice.backend);
    log.backend = Some(choice.backend);
    let backend = &rule.backends[choice.backend];
    let mut copies = None;
    let mirrored = request.upgrade.is_none();
    if mirrored && !rule.mirrors.is_empty() {
        mirror::copy(worker, rule, &rule.mirrors, head, &mut copies);
    }
    for filter in &backend.filters {
        apply(filter, entry, head, port, log)?;
    }
    if mirrored && !backend.mirrors.is_empty() {
        mirror::copy(worker, rule, &backend.mirrors, head, &mut copies);
    }
    let slot = match &backend.pool {
        Ok(slot) => *slot,
        Err(why) => {
            log.failure = Some(why.to_string());
            return Err(Answer::new(500, "backend_invalid", "-", "backend is not valid\n"));
        }
    };
    let Some(pool) = published.snapshot.pool(slot) else {
        return Err(Answer::new(500, "cluster_not_found", "NC", "backend not found\n"));
    };
    log.pool = Some(pool);
    let issue_cookie = choice.issue_cookie;
    Ok(Forward {
        rule,
        backend: choice.backend,
        pool,
        issue_cookie,
        copies,
        tee: None,
        waiting: Cell::default(),
    })
}

/// A filter's effect on the request.
#[allow(clippy::result_large_err)] // see `decide_or_answer`
fn apply(
    filter: &Filter,
    entry: &Entry,
    head: &mut RequestHead,
    port: u16,
    log: &mut Log<'_>,
) -> Result<(), Answer> {
    match filter {
        Filter::RequestHeaders(edit) => filter::edit_headers(edit, &mut head.headers),
        Filter::Rewrite(rewrite) => {
            if rewrite.path.is_some() {
                log.original_path.get_or_insert_with(|| head.target.clone());
            }
            filter::rewrite(rewrite, entry.prefix_len, head);
        }
        Filter::Redirect(redirect) => {
            return Err(of_local(filter::redirect(redirect, entry.prefix_len, head, port)));
        }
        Filter::Cors(policy) => {
            if let Some(answer) = cors::preflight(policy, head) {
                return Err(of_local(answer));
            }
        }
        Filter::ResponseHeaders(_) | Filter::Mirror(_) | Filter::Fault(_) => {}
    }
    Ok(())
}

fn of_local(response: filter::LocalResponse) -> Answer {
    let mut answer = Answer::new(response.status, response.details, "-", "");
    for (name, value) in &response.headers {
        answer.headers.push(name.as_bytes(), value.as_bytes());
    }
    answer.body = response.body;
    answer
}

/// A filter's effect on the response.
pub(super) fn apply_to_response(to: &Forward<'_>, request: &RequestHead, response: &mut ResponseHead) {
    let filters = to.rule.backends[to.backend].filters.iter().chain(&to.rule.ir.filters);
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(edit) => filter::edit_headers(edit, &mut response.headers),
            Filter::Cors(policy) => cors::apply(policy, request, &mut response.headers),
            _ => {}
        }
    }
    if let Some(cookie) = &to.issue_cookie {
        response.headers.push_known(HeaderId::SetCookie, "set-cookie", cookie.as_bytes());
    }
}

/// Sends a response of our own.
async fn send_answer(
    mut down: Side,
    request: &mut Request,
    answer: Answer,
    log: &mut Log<'_>,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    log.answer(&answer);
    let keep = request.body == BodyKind::None && request.keep_alive;
    match &mut down {
        Side::H1(side) => {
            local::write_h1(side, &answer, &request.head, keep);
            deadline.set(STREAM_IDLE);
            with_deadline(deadline, poll_fn(|cx| down.poll_flush(cx))).await.ok()?.ok()?;
            Some((down, keep))
        }
        Side::H2(_) => {
            local::send_h2(request.respond.take()?, answer, &request.head)?;
            None
        }
    }
}

/// Endpoints that a request was sent to in vain.
type Tried = SmallVec<[SocketAddr; 4]>;

/// Tries endpoints until one answers, then streams the response.
async fn forward_request(
    worker: &Rc<Worker>,
    mut down: Side,
    request: &mut Request,
    to: Forward<'_>,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    let mut tried = Tried::new();
    // Kept connections that turned out closed say nothing about an endpoint and do not use up its tries.
    let (mut failed, mut stale) = (0, 0);
    let mut waited = false;
    let retries = to.rule.ir.retry.as_ref();
    let limit = to.rule.ir.timeouts.request.filter(|t| !t.is_zero()).map(|t| request.started + t);
    let tries = retries.map_or(0, |r| r.attempts) + 1;
    loop {
        let http2 = speaks_http2(to.pool, &request.head, request.upgrade.is_some());
        let in_flight = match capacity::pick(worker, to.pool, http2, &tried, waited) {
            Ok(in_flight) => in_flight,
            Err(NoPlace::NoEndpoint(none)) => {
                let answer = if tried.is_empty() {
                    Answer::new(503, none.details(), none.flags(), "no healthy upstream\n")
                } else {
                    unreachable_upstream()
                };
                return send_failure(down, request, answer, log, deadline).await;
            }
            Err(NoPlace::Full(full)) => {
                let waiting = to.waiting.take().or_else(|| Queued::begin(worker, to.pool, full, limit));
                if let Some(waiting) = waiting
                    && Box::pin(waiting.wait()).await
                {
                    to.waiting.set(Some(waiting));
                    waited = true;
                    continue;
                }
                return send_failure(down, request, capacity::overflow(), log, deadline).await;
            }
        };
        let address = in_flight.address;
        log.attempts += 1;
        if log.attempts > 1 {
            worker.recorder.retried(&to.pool.ir.key);
        }
        log.upstream = Some(address);
        let outcome = attempt(worker, &mut down, request, &to, address, log, response, deadline, limit).await;
        let state = || to.pool.endpoints.iter().find(|e| e.state.address == address).map(|e| &e.state);
        let now_ms = worker.now_ms();
        let untouched = log.bytes_received == 0;
        let failure = match outcome {
            Ok(answered) => {
                if let Some(state) = state() {
                    state.report_success();
                }
                let again = retries.is_some_and(|r| r.codes.contains(&response.status))
                    && failed + 1 < tries
                    && untouched
                    && !answered.upload_failed;
                if answered.switched {
                    // Rare, and not to make every exchange larger.
                    return Box::pin(tunnel::carry(
                        worker, down, request, &to, answered, log, response, deadline,
                    ))
                    .await;
                }
                if again {
                    drop(in_flight);
                    discard(worker, answered, &to, address);
                    failed += 1;
                    before_retry(worker, &to, address, &mut tried).await;
                    continue;
                }
                return respond(
                    worker, down, request, &to, answered, log, response, deadline, limit, address,
                )
                .await;
            }
            Err(failure) => failure,
        };
        drop(in_flight);
        let answer = match failure {
            Failure::ClientGone => {
                log.status = 0;
                log.flags = "DC";
                log.details = "downstream_remote_disconnect".into();
                down.abort(Reason::CANCEL);
                return None;
            }
            Failure::ClientError(error) => {
                log.failure = Some(error.to_string());
                let answer = Answer::new(400, "downstream_body_error", "DPE", "bad request body\n");
                request.keep_alive = false;
                return send_failure(down, request, answer, log, deadline).await;
            }
            // A kept connection that the peer had closed: nothing was lost but the write. The same endpoint is fine.
            Failure::Broken { stale: true, unsent, .. }
                if untouched && (unsent || request.head.method.is_idempotent()) && stale < STALE_TRIES =>
            {
                stale += 1;
                continue;
            }
            // Another worker was faster.
            Failure::Full => {
                log.attempts -= 1;
                continue;
            }
            Failure::Connect(error) => {
                if let Some(state) = state() {
                    state.report_refused(now_ms);
                }
                log.failure = Some(error.to_string());
                failed += 1;
                tried.push(address);
                if failed < CONNECT_TRIES.max(tries) && other_endpoint(worker, to.pool, &tried) {
                    continue;
                }
                unreachable_upstream()
            }
            Failure::Broken { error, unsent, .. } => {
                if let Some(state) = state() {
                    state.report_failure(now_ms);
                }
                log.failure = Some(error.to_string());
                failed += 1;
                tried.push(address);
                let safe = untouched && (unsent || request.head.method.is_idempotent() || retries.is_some());
                if safe && failed < CONNECT_TRIES.max(tries) && other_endpoint(worker, to.pool, &tried) {
                    continue;
                }
                if matches!(error, SideError::Malformed(_)) {
                    Answer::new(
                        502,
                        "upstream_reset_before_response_started{protocol_error}",
                        "UPE",
                        "upstream broke the protocol\n",
                    )
                } else {
                    Answer::new(
                        503,
                        "upstream_reset_before_response_started{connection_termination}",
                        "UC",
                        "upstream closed the connection\n",
                    )
                }
            }
            Failure::Refused(answer) => answer,
            // The try's time was up, not the request's.
            Failure::Timeout
                if untouched && failed + 1 < tries && limit.is_none_or(|limit| Instant::now() < limit) =>
            {
                failed += 1;
                before_retry(worker, &to, address, &mut tried).await;
                continue;
            }
            Failure::Timeout => Answer::new(504, "response_timeout", "UT", "upstream request timeout\n"),
        };
        return send_failure(down, request, answer, log, deadline).await;
    }
}

fn unreachable_upstream() -> Answer {
    let details = "upstream_reset_before_response_started{connection_failure}";
    Answer::new(503, details, "UF", "no upstream could be reached\n")
}

/// Pauses as the route says before a try elsewhere, or at the same endpoint if there is no other.
async fn before_retry(worker: &Worker, to: &Forward<'_>, failed: SocketAddr, tried: &mut Tried) {
    tried.push(failed);
    if !other_endpoint(worker, to.pool, tried) {
        tried.clear();
    }
    let pause = to.rule.ir.retry.as_ref().map(|retry| retry.backoff.base);
    if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
        tokio::time::sleep(pause).await;
    }
}

async fn send_failure(
    down: Side,
    request: &mut Request,
    answer: Answer,
    log: &mut Log<'_>,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    let answer = if request.head.is_grpc() { answer.into_grpc() } else { answer };
    send_answer(down, request, answer, log, deadline).await
}

/// A request at an endpoint, counted for as long as this lives, however it ends.
pub(super) struct InFlight<'w> {
    worker: &'w Worker,
    slot: u32,
    pub address: SocketAddr,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.worker.pools.borrow_mut()[self.slot as usize].finished(self.address);
    }
}

pub(super) fn pick<'w>(
    worker: &'w Worker,
    pool: &CompiledPool,
    tried: &[SocketAddr],
) -> Result<InFlight<'w>, NoEndpoint> {
    let mut pools = worker.pools.borrow_mut();
    let slot = pool.slot as usize;
    if pools.len() <= slot {
        pools.resize_with(slot + 1, Default::default);
    }
    let state = &mut pools[slot];
    state.sync(pool);
    let index =
        pool.pick(state, worker.now_ms(), &mut || worker.random(), &Wish { tried, ..Wish::default() })?;
    state.started(index);
    Ok(InFlight { worker, slot: pool.slot, address: pool.endpoints[index].state.address })
}

/// Whether a retry could go anywhere else.
fn other_endpoint(worker: &Worker, pool: &CompiledPool, tried: &[SocketAddr]) -> bool {
    let now = worker.now_ms();
    pool.endpoints
        .iter()
        .any(|e| !e.ir.draining && e.state.available(now) && !tried.contains(&e.state.address))
}

/// One try at one endpoint, up to and including the response's head.
#[allow(clippy::too_many_arguments)]
async fn attempt(
    worker: &Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    address: SocketAddr,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
    limit: Option<Instant>,
) -> Result<Answered, Failure> {
    let begun = Instant::now();
    if log.attempts == 1 {
        log.stages.queue = Some(begun - request.started);
    }
    let per_try = to.rule.ir.timeouts.backend_request.filter(|t| !t.is_zero()).map(|t| begun + t);
    let limit = match (limit, per_try) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    let upgrading = request.upgrade.is_some().then_some(&*request);
    match limit {
        Some(limit) => deadline.set_at(limit.into()),
        None => deadline.set(STREAM_IDLE),
    }
    let opened = {
        // Pinned here: given away, it would be kept twice.
        let opening = open(worker, to.pool, &request.head, request.body, upgrading, address);
        with_deadline(deadline, std::pin::pin!(opening)).await
    };
    let Opened { side, response: h2_response, guard, reused, asked } =
        opened.unwrap_or(Err(Failure::Timeout))?;
    // It has what it waited for.
    drop(to.waiting.take());
    let sent = if reused { begun } else { Instant::now() };
    if !reused {
        log.stages.connect = Some(sent - begun);
    }
    if let Side::H1(s) = &side {
        log.upstream_local = Some(s.stream.local_addr());
    }
    let mut wait = Waiting {
        worker,
        side,
        h2_response,
        upload: Transfer::teed(to.tee.clone()),
        upload_failed: false,
        reused,
        any: false,
    };
    let http2 = matches!(wait.side, Side::H2(_));
    let expects_continue = request.expects_continue;
    if http2 && expects_continue {
        interim_continue(down).await;
    }
    let answered = loop {
        let got = poll_fn(|cx| wait.poll(cx, down, request, response, deadline, limit, log)).await?;
        if response.status >= 200 || response.status == 101 {
            break got;
        }
        // Of its own 100 and the upstream's the client gets one.
        if !(http2 && expects_continue && response.status == 100) {
            interim(down, request, response).await;
        }
    };
    let switched = tunnel::agreed(asked, &mut wait.side, request, response)
        .map_err(|error| Failure::Broken { error, stale: false, unsent: false })?;
    let answered_at = Instant::now();
    log.stages.first_byte = Some(answered_at - sent);
    Ok(Answered {
        at: answered_at,
        side: wait.side,
        guard,
        keep_alive: answered.0,
        body: answered.1,
        upload: wait.upload,
        upload_failed: wait.upload_failed,
        switched,
    })
}

impl From<NoConnection> for Failure {
    fn from(why: NoConnection) -> Self {
        match why {
            NoConnection::Failed(error) => Self::Connect(error),
            NoConnection::Full => Self::Full,
        }
    }
}

/// An upstream that is about to get the request, its head first.
pub(super) struct Opened {
    pub side: Side,
    /// HTTP/2: where the response comes from.
    pub response: Option<h2::client::ResponseFuture>,
    pub guard: Option<StreamGuard>,
    /// Whether the connection was open before.
    pub reused: bool,
    /// The upgrade that it was asked for.
    asked: Option<Asked>,
}

/// Has a connection to an endpoint and puts the head on it. `upgrading`: the request, if it asks for an upgrade.
pub(super) async fn open(
    worker: &Worker,
    pool: &CompiledPool,
    head: &RequestHead,
    body: BodyKind,
    upgrading: Option<&Request>,
    address: SocketAddr,
) -> Result<Opened, Failure> {
    if speaks_http2(pool, head, upgrading.is_some()) {
        open_http2(worker, pool, head, body, address, upgrading).await
    } else {
        open_http1(worker, pool, head, body, upgrading, address).await
    }
}

/// Whether the request goes to this pool by HTTP/2.
pub(super) fn speaks_http2(pool: &CompiledPool, head: &RequestHead, upgrades: bool) -> bool {
    match pool.ir.protocol {
        Protocol::Http1 => false,
        Protocol::Http2 => true,
        // Who speaks either takes an upgrade by HTTP/1.1 in any case.
        Protocol::Auto => head.version >= Version::Http2 && !upgrades,
    }
}

async fn open_http1(
    worker: &Worker,
    pool: &CompiledPool,
    head: &RequestHead,
    body: BodyKind,
    upgrading: Option<&Request>,
    address: SocketAddr,
) -> Result<Opened, Failure> {
    let (stream, lease, reused) = worker.upstreams.http1(pool, address).await?;
    let mut side = H1Side::new(stream, worker.buffers.take(), worker.take_out());
    let body = match body {
        BodyKind::UntilClose => BodyKind::Chunked,
        body => body,
    };
    side.lease = Some(lease);
    let upgrade = upgrading.and_then(|request| request.upgrade.as_deref());
    forward::write_request(&mut side.out, head, body, upgrade);
    side.begin_body(body);
    let asked = upgrading.map(|_| Asked::default());
    Ok(Opened { side: Side::H1(Box::new(side)), response: None, guard: None, reused, asked })
}

async fn open_http2(
    worker: &Worker,
    pool: &CompiledPool,
    head: &RequestHead,
    body: BodyKind,
    address: SocketAddr,
    upgrading: Option<&Request>,
) -> Result<Opened, Failure> {
    let (shared, guard, reused) = worker.upstreams.http2(pool, address).await?;
    let broken = |error: h2::Error| {
        // It takes no more streams, however long those that are open may last.
        guard.retire();
        Failure::Broken { error: SideError::Reset(error), stale: reused, unsent: true }
    };
    let upgrade = match upgrading {
        Some(request) => Box::pin(tunnel::check_upstream(request, &shared, &pool.ir.limits)).await?,
        None => None,
    };
    let mut send = shared.send.ready().await.map_err(broken)?;
    let mut head = forward::http2_request(head)
        .map_err(|e| Failure::ClientError(SideError::Io(std::io::Error::other(e))))?;
    if let Some(protocol) = upgrade {
        tunnel::extend_connect(&mut head, protocol);
        let (response, stream) = send.send_request(head, false).map_err(broken)?;
        let asked = Some(Asked::on(stream));
        let side = Side::H2(Box::default());
        return Ok(Opened { side, response: Some(response), guard: Some(guard), reused, asked });
    }
    let (response, stream) = send.send_request(head, body == BodyKind::None).map_err(broken)?;
    let stream = (body != BodyKind::None).then_some(stream);
    let side = Side::H2(Box::new(H2Side::new(None, stream)));
    Ok(Opened { side, response: Some(response), guard: Some(guard), reused, asked: None })
}

/// The time between the request's head sent and the response's head read, the body flowing meanwhile.
struct Waiting<'w> {
    worker: &'w Worker,
    side: Side,
    h2_response: Option<h2::client::ResponseFuture>,
    upload: Transfer,
    upload_failed: bool,
    reused: bool,
    /// Whether the upstream sent any byte.
    any: bool,
}

impl Waiting<'_> {
    #[allow(clippy::too_many_arguments)]
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Side,
        request: &mut Request,
        response: &mut ResponseHead,
        deadline: &Deadline,
        limit: Option<Instant>,
        log: &mut Log<'_>,
    ) -> Poll<Result<(bool, BodyKind), Failure>> {
        if deadline.expired() {
            return Poll::Ready(Err(Failure::Timeout));
        }
        if !self.upload.done && !self.upload_failed {
            let moved = self.upload.poll(cx, down, &mut self.side);
            log.bytes_received = self.upload.bytes;
            match moved {
                Poll::Ready(Err(TransferError::Source(e))) => return Poll::Ready(Err(client_failure(e))),
                // The upstream takes no more: it may have answered already.
                Poll::Ready(Err(TransferError::Sink(e))) => {
                    self.upload_failed = true;
                    log.failure = Some(e.to_string());
                }
                _ => {}
            }
        }
        match self.poll_head(cx, request, response) {
            Poll::Ready(Ok(got)) => Poll::Ready(Ok(got)),
            Poll::Ready(Err(error)) => {
                let unsent = error.is_unprocessed();
                let stale = self.reused && !self.any && error.may_be_stale();
                Poll::Ready(Err(Failure::Broken { error, stale, unsent }))
            }
            Poll::Pending => {
                // Asked in the same poll that ends the upload: nothing else would wake us for it.
                let sent = self.upload.done || self.upload_failed;
                if sent && (down.poll_gone(cx).is_ready() || request.poll_reset(cx).is_ready()) {
                    return Poll::Ready(Err(Failure::ClientGone));
                }
                match limit {
                    Some(limit) => deadline.set_at(limit.into()),
                    None => deadline.set(STREAM_IDLE),
                }
                deadline.poll_expired(cx).map(|()| Err(Failure::Timeout))
            }
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        request: &Request,
        response: &mut ResponseHead,
    ) -> Poll<Result<(bool, BodyKind), SideError>> {
        match &mut self.side {
            Side::H1(side) => loop {
                if !side.input.is_empty() {
                    self.any = true;
                    self.worker.make_room(response);
                    let headers = &mut response.headers;
                    headers.clear();
                    let parsed = parse_response(side.input.filled(), HeadLimits::default(), |n, v| {
                        headers.push(n, v);
                    })?;
                    if let Some(parsed) = parsed {
                        side.input.consume(parsed.len);
                        response.status = parsed.status;
                        response.version = if parsed.http10 { Version::Http10 } else { Version::Http11 };
                        let body =
                            if request.head.method == Method::Head { BodyKind::None } else { parsed.body };
                        side.expect_body(body);
                        return Poll::Ready(Ok((parsed.keep_alive, body)));
                    }
                }
                match std::task::ready!(side.poll_read_more(cx)) {
                    Ok(0) => {
                        return Poll::Ready(Err(SideError::Io(std::io::ErrorKind::UnexpectedEof.into())));
                    }
                    Ok(_) => {}
                    Err(e) => return Poll::Ready(Err(e.into())),
                }
            },
            Side::H2(side) => {
                let Some(future) = &mut self.h2_response else { return Poll::Pending };
                if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(cx) {
                    let (parts, ()) = interim.into_parts();
                    forward::read_http2_response(response, &parts);
                    return Poll::Ready(Ok((true, BodyKind::None)));
                }
                let got = std::task::ready!(std::pin::Pin::new(future).poll(cx))?;
                self.h2_response = None;
                let (parts, recv) = got.into_parts();
                self.worker.make_room(response);
                forward::read_http2_response(response, &parts);
                let body = if recv.is_end_stream() || request.head.method == Method::Head {
                    BodyKind::None
                } else {
                    length_of(&response.headers).map_or(BodyKind::Chunked, BodyKind::Length)
                };
                if !recv.is_end_stream() {
                    side.recv = Some(recv);
                }
                Poll::Ready(Ok((true, body)))
            }
        }
    }
}

fn length_of(headers: &Headers) -> Option<u64> {
    std::str::from_utf8(headers.get_id(HeaderId::ContentLength)?).ok()?.parse().ok()
}

fn client_failure(error: SideError) -> Failure {
    match error {
        SideError::Malformed(_) => Failure::ClientError(error),
        SideError::Io(_) | SideError::Reset(_) => Failure::ClientGone,
    }
}

/// 100 by ourselves, where the upstream's protocol has no use for `expect`.
async fn interim_continue(down: &mut Side) {
    if let Side::H1(side) = down {
        side.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        let _ = poll_fn(|cx| side.poll_flush(cx)).await;
    }
}

/// Passes 100, 103 and their like on to clients that can take them (RFC 9110 section 15.2).
async fn interim(down: &mut Side, request: &mut Request, response: &mut ResponseHead) {
    forward::prepare_response(response);
    match down {
        Side::H1(side) if request.head.version == Version::Http11 => {
            forward::write_response(&mut side.out, response, BodyKind::None, None, None);
            let _ = poll_fn(|cx| side.poll_flush(cx)).await;
        }
        Side::H1(_) => {}
        Side::H2(_) => {
            if let (Some(respond), Ok(head)) =
                (&mut request.respond, forward::http2_response(response.status, &response.headers))
            {
                let _ = respond.send_informational(head);
            }
        }
    }
}

/// Gets rid of a response that is to be tried again elsewhere.
fn discard(worker: &Worker, answered: Answered, to: &Forward<'_>, address: SocketAddr) {
    if answered.body == BodyKind::None && answered.keep_alive && answered.upload.done {
        recycle(worker, answered.side, to.pool, address);
    }
}

/// Returns an upstream connection to the pool.
pub(super) fn recycle(worker: &Worker, side: Side, pool: &CompiledPool, address: SocketAddr) {
    if let Side::H1(side) = side
        && side.is_clean()
        && side.input.is_empty()
    {
        let H1Side { stream, out, lease, .. } = *side;
        worker.give_out(out);
        if let Some(lease) = lease {
            worker.upstreams.keep(pool, address, stream, lease, worker.wheel.now().into_std());
        }
    }
}

/// Sends the response's head and streams both bodies to their ends.
#[allow(clippy::too_many_arguments)]
async fn respond(
    worker: &Rc<Worker>,
    mut down: Side,
    request: &mut Request,
    to: &Forward<'_>,
    answered: Answered,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
    limit: Option<Instant>,
    address: SocketAddr,
) -> Option<(Side, bool)> {
    let Answered { at: begun, side: mut up, guard, keep_alive, body, mut upload, upload_failed, .. } =
        answered;
    log.status = response.status;
    log.details = "via_upstream".into();
    forward::prepare_response(response);
    apply_to_response(to, &request.head, response);
    let mut keep = request.keep_alive && !worker.draining.get();
    match &mut down {
        Side::H1(side) => {
            let out_body = match body {
                BodyKind::Chunked | BodyKind::UntilClose if request.head.version == Version::Http10 => {
                    BodyKind::UntilClose
                }
                BodyKind::Chunked | BodyKind::UntilClose => BodyKind::Chunked,
                body => body,
            };
            side.make_room(worker);
            keep &= out_body != BodyKind::UntilClose && (upload.done || !upload_failed);
            let said = response.headers.has(HeaderId::ContentLength);
            if body == BodyKind::None
                && !said
                && request.head.method != Method::Head
                && !matches!(response.status, 100..=199 | 204 | 304)
            {
                response.headers.push_known(HeaderId::ContentLength, "content-length", b"0");
            }
            let connection = forward::connection_option(request.head.version, keep && upload.done);
            forward::write_response(&mut side.out, response, out_body, connection, None);
            keep &= upload.done;
            side.begin_body(out_body);
        }
        Side::H2(side) => {
            let mut sender = request.respond.take()?;
            let head = forward::http2_response(response.status, &response.headers).ok()?;
            match sender.send_response(head, body == BodyKind::None) {
                Ok(send) => side.send = (body != BodyKind::None).then_some(send),
                Err(_) => {
                    log.flags = "DC";
                    log.details = "downstream_remote_reset".into();
                    return None;
                }
            }
        }
    }
    if upload_failed {
        upload.done = true;
    }
    let mut download = Transfer::default();
    let streamed =
        poll_fn(|cx| poll_streams(cx, &mut down, &mut up, &mut upload, &mut download, deadline, limit)).await;
    log.bytes_received = upload.bytes;
    log.bytes_sent = download.bytes;
    let ended = Instant::now();
    log.stages.body = Some(ended - begun);
    log.ended = Some(ended);
    log.grpc_status = grpc_status(download.trailers()).or_else(|| grpc_status(Some(&response.headers)));
    match streamed {
        Ok(()) => {
            drop(guard);
            let complete = upload.done && !upload_failed;
            if complete && keep_alive {
                recycle(worker, up, to.pool, address);
            } else if let Side::H2(mut s) = up
                && let Some(send) = &mut s.send
            {
                // An early response: the rest of the request is of no use (RFC 9113 section 8.1).
                send.send_reset(Reason::NO_ERROR);
            }
            Some((down, keep && complete))
        }
        Err(end) => {
            match &end {
                End::Client(e) => {
                    log.flags = "DC";
                    log.details = "downstream_remote_disconnect".into();
                    log.failure = Some(e.to_string());
                }
                End::Upstream(e) => {
                    log.flags = "UC";
                    log.details = "upstream_reset_after_response_started{connection_termination}".into();
                    log.failure = Some(e.to_string());
                }
                End::Idle if worker.over.get() => {
                    log.flags = "DT";
                    log.details = "drain_deadline".into();
                }
                End::Idle => {
                    log.flags = if limit.is_some() { "UT" } else { "SI" };
                    log.details = "stream_idle_timeout".into();
                }
            }
            up.abort(Reason::CANCEL);
            match down {
                // What it lacks shows by its length or last chunk, so the connection can close in good order: a reset
                // would take with it what was sent and has not arrived.
                Side::H1(mut side) if !matches!(end, End::Client(_)) && !side.ends_with_connection() => {
                    deadline.set(FAREWELL);
                    let _ = with_deadline(deadline, poll_fn(|cx| side.poll_flush(cx))).await;
                    Some((Side::H1(side), false))
                }
                down => {
                    down.abort(Reason::INTERNAL_ERROR);
                    None
                }
            }
        }
    }
}

enum End {
    Client(SideError),
    Upstream(SideError),
    Idle,
}

#[allow(clippy::too_many_arguments)]
fn poll_streams(
    cx: &mut Context<'_>,
    down: &mut Side,
    up: &mut Side,
    upload: &mut Transfer,
    download: &mut Transfer,
    deadline: &Deadline,
    limit: Option<Instant>,
) -> Poll<Result<(), End>> {
    if deadline.expired() {
        return Poll::Ready(Err(End::Idle));
    }
    if !download.done {
        match download.poll(cx, up, down) {
            Poll::Ready(Err(TransferError::Source(e))) => return Poll::Ready(Err(End::Upstream(e))),
            Poll::Ready(Err(TransferError::Sink(e))) => return Poll::Ready(Err(End::Client(e))),
            _ => {}
        }
    }
    if !upload.done {
        match upload.poll(cx, down, up) {
            Poll::Ready(Err(TransferError::Source(e))) if !download.done => {
                return Poll::Ready(Err(End::Client(e)));
            }
            // The upstream has answered; that it wants no more of the request is its right.
            Poll::Ready(Err(_)) => upload.done = true,
            _ => {}
        }
    }
    if upload.done && !download.done && down.poll_gone(cx).is_ready() {
        return Poll::Ready(Err(End::Client(SideError::Io(std::io::ErrorKind::ConnectionReset.into()))));
    }
    // An exchange is over when the response is, whatever is left of the request.
    if download.done {
        return Poll::Ready(Ok(()));
    }
    match limit {
        Some(limit) => deadline.set_at(limit.into()),
        None => deadline.set(STREAM_IDLE),
    }
    deadline.poll_expired(cx).map(|()| Err(End::Idle))
}

fn grpc_status(headers: Option<&Headers>) -> Option<u16> {
    std::str::from_utf8(headers?.get_id(HeaderId::GrpcStatus)?).ok()?.parse().ok()
}
