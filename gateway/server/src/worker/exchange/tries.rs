//! From a pool to an endpoint that has answered: choosing, trying, trying again.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use fieldgate_core::ResponseHead;
use fieldgate_core::balance::{CompiledPool, NoEndpoint, Wish};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::Deadline;
use h2::Reason;
use smallvec::SmallVec;

use super::attempt::{attempt, speaks_http2};
use super::respond::{respond, send_failure};
use super::{Answered, CONNECT_TRIES, Failure, Forward, Log, Request, STALE_TRIES};
use crate::worker::capacity::{self, NoPlace, Queued};
use crate::worker::local::Answer;
use crate::worker::side::{H1Side, Side, SideError};
use crate::worker::{Worker, tunnel};

/// Endpoints that a request was sent to in vain.
type Tried = SmallVec<[SocketAddr; 4]>;

/// Tries endpoints until one answers, then streams the response.
pub(super) async fn forward_request(
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

/// A request at an endpoint, counted for as long as this lives, however it ends.
pub struct InFlight<'w> {
    worker: &'w Worker,
    slot: u32,
    pub address: SocketAddr,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.worker.pools.borrow_mut()[self.slot as usize].finished(self.address);
    }
}

pub fn pick<'w>(
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

/// Gets rid of a response that is to be tried again elsewhere.
fn discard(worker: &Worker, answered: Answered, to: &Forward<'_>, address: SocketAddr) {
    if answered.body == BodyKind::None && answered.keep_alive && answered.upload.done {
        recycle(worker, answered.side, to.pool, address);
    }
}

/// Returns an upstream connection to the pool.
pub fn recycle(worker: &Worker, side: Side, pool: &CompiledPool, address: SocketAddr) {
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
