//! Whether a request gets another try, and when. What is retriable is core's to say; here is the account of one request.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use fieldgate_core::ir::Retry;
use fieldgate_core::limits::RetryPass;
use fieldgate_core::retry::{self, Repeat, Trouble};
use fieldgate_core::{Headers, ResponseHead};
use fieldgate_wire::h1::BodyKind;
use smallvec::SmallVec;

use super::{Failure, Forward, Log, Request, Responding, STALE_TRIES};
use crate::overload::out_of_files;
use crate::telemetry::PoolEvent;
use crate::worker::Worker;
use crate::worker::local::Answer;
use crate::worker::replay::Replay;
use crate::worker::side::SideError;

/// Endpoints that a request was sent to in vain.
type Tried = SmallVec<[SocketAddr; 4]>;

/// Bodies of requests that may be repeated without being asked for are kept up to so many bytes.
const BODY: usize = 64 * 1024;

/// What became of the tries of one request.
pub(super) struct Tries<'w> {
    pub tried: Tried,
    worker: &'w Worker,
    failed: u32,
    /// Kept connections that turned out closed say nothing about an endpoint and do not use up its tries.
    stale: u32,
    /// Its part of the pool's retry budget.
    pub pass: Option<Pass<'w>>,
}

/// What to do after a try that failed.
pub(super) enum Next {
    /// Another try, after this pause, which may be none.
    Again(Duration),
    /// The client hears this.
    Answer(Answer),
    /// Nobody to answer.
    ClientGone,
}

impl<'w> Tries<'w> {
    pub fn new(worker: &'w Worker) -> Self {
        Self { tried: Tried::new(), worker, failed: 0, stale: 0, pass: None }
    }

    /// Where to keep the request's body for another try, if there may be one after some of the body was sent. What a guard
    /// has had kept of it is there already.
    pub fn replay(to: &Forward<'_>, request: &Request) -> Option<Rc<Replay>> {
        let limit = Self::replay_limit(to, request);
        if let Some(kept) = &to.replay {
            kept.raise(limit.unwrap_or(0));
            return Some(kept.clone());
        }
        limit.map(|limit| Rc::new(Replay::new(limit)))
    }

    fn replay_limit(to: &Forward<'_>, request: &Request) -> Option<usize> {
        let asked = to.rule.ir.retry.as_ref().map(|retry| retry.body_limit as usize);
        let limit = asked.or_else(|| request.head.method.is_idempotent().then_some(BODY))?;
        let fits = match request.body {
            BodyKind::None => false,
            BodyKind::Length(length) => length <= limit as u64,
            BodyKind::Chunked | BodyKind::UntilClose => true,
        };
        (fits && limit > 0 && request.upgrade.is_none()).then_some(limit)
    }

    /// Whether a response is to be replaced by that of another try, and after which pause.
    pub fn after_response(
        &mut self,
        to: &Forward<'_>,
        request: &Request,
        log: &mut Log<'_>,
        response: &ResponseHead,
        answered: &Responding,
        address: SocketAddr,
    ) -> Option<Duration> {
        let retry = to.rule.ir.retry.as_deref()?;
        if !Self::is_unwanted(to, request, response) {
            return None;
        }
        if self.failed >= retry.attempts {
            log.exhausted = true;
            return None;
        }
        if answered.upload_failed || !repeatable(to, log) || !self.within_budget(to, log) {
            return None;
        }
        let pause = self.pause(to, Some(&response.headers), log)?;
        self.count(to, address);
        Some(pause)
    }

    /// Whether the route would rather have another response than this.
    pub fn is_unwanted(to: &Forward<'_>, request: &Request, response: &ResponseHead) -> bool {
        // An upgrade that was agreed to is no answer to replace.
        response.status != 101
            && to.rule.ir.retry.as_deref().is_some_and(|retry| {
                let grpc = request.head.is_grpc();
                let trouble = Trouble::Response { status: response.status, headers: &response.headers, grpc };
                retry::wants(retry, &trouble)
            })
    }

    /// What follows a try that had no response.
    pub fn after_failure(
        &mut self,
        to: &Forward<'_>,
        request: &mut Request,
        log: &mut Log<'_>,
        failure: Failure,
        address: SocketAddr,
    ) -> Next {
        let idempotent = request.head.method.is_idempotent();
        if self.worker.over.get() && !matches!(failure, Failure::ClientGone) {
            // What is in flight has been ended; another try would only be ended too.
            return Next::Answer(Answer::new(503, "drain_deadline", "DT", "the gateway is going down\n"));
        }
        let trouble = match &failure {
            Failure::ClientGone => return Next::ClientGone,
            // Another worker was faster.
            Failure::Full => {
                log.attempts -= 1;
                return Next::Again(Duration::ZERO);
            }
            // No file was left for it. Some are kept for this.
            Failure::Connect(error) if out_of_files(error) && self.worker.lend_files() => {
                log.attempts -= 1;
                return Next::Again(Duration::ZERO);
            }
            // A kept connection that the peer had closed: nothing was lost but the write. The same endpoint is fine.
            Failure::Broken { stale: true, unsent, .. }
                if (*unsent || idempotent) && repeatable(to, log) && self.stale < STALE_TRIES =>
            {
                self.stale += 1;
                return Next::Again(Duration::ZERO);
            }
            Failure::ClientError(_) | Failure::ClientSlow | Failure::Refused(_) => {
                return Next::Answer(answer(failure, request, log));
            }
            Failure::Connect(_) => Trouble::NoConnection,
            Failure::Broken { unsent, .. } => {
                Trouble::Reset { before_request: *unsent, refused_stream: *unsent }
            }
            Failure::Timeout => Trouble::TryTimedOut,
        };
        if let Failure::Timeout = failure
            && to.limit.is_some_and(|limit| Instant::now() >= limit)
        {
            return Next::Answer(answer(failure, request, log));
        }
        let verdict = retry::repeat(to.rule.ir.retry.as_deref(), &trouble, idempotent, self.failed);
        let asked = matches!(verdict, Repeat::Yes { asked: true, .. });
        let again = match verdict {
            Repeat::Yes { budgeted, .. }
                if !repeatable(to, log) || budgeted && !self.within_budget(to, log) =>
            {
                None
            }
            Repeat::Yes { asked: true, .. } => self.pause(to, None, log),
            Repeat::Yes { asked: false, .. } => Some(Duration::ZERO),
            Repeat::Exhausted | Repeat::No => {
                log.exhausted = verdict == Repeat::Exhausted;
                None
            }
        };
        self.count(to, address);
        match again {
            // Without being asked for, the same endpoint is not tried twice.
            Some(pause) if asked || !self.tried.is_empty() => Next::Again(pause),
            _ => Next::Answer(answer(failure, request, log)),
        }
    }

    /// Whether one more try may run beside those `begun`.
    pub fn may_hedge(&mut self, to: &Forward<'_>, begun: u32, log: &mut Log<'_>) -> bool {
        let tries = to.rule.ir.retry.as_ref().map_or(0, |retry| retry.attempts) + 1;
        begun < tries && self.within_budget(to, log)
    }

    /// The endpoint has had its try. If there is no other, all may be tried again.
    fn count(&mut self, to: &Forward<'_>, address: SocketAddr) {
        self.failed += 1;
        self.tried.push(address);
        let now = self.worker.now_ms();
        let other = |tried: &Tried| {
            to.pool
                .endpoints
                .iter()
                .any(|e| !e.is_draining() && e.state.available(now) && !tried.contains(&e.state.address))
        };
        // A request that is bound to one endpoint has no other.
        let wish = to.wish();
        if wish.strict && wish.prefer.is_some() || !other(&self.tried) {
            self.tried.clear();
        }
    }

    /// A request that an endpoint may have begun to work on is not repeated beyond the pool's budget: when a pool fails
    /// as a whole, retries are load that makes it worse.
    fn within_budget(&mut self, to: &Forward<'_>, log: &mut Log<'_>) -> bool {
        if self.pass.is_some() {
            return true;
        }
        let worker = self.worker;
        match worker.with_pool(to.pool, |state| state.begin_retry(to.pool)) {
            Ok(pass) => {
                self.pass = Some(Pass { worker, slot: to.pool.slot, pass: Some(pass) });
                true
            }
            Err(why) => {
                log.over_budget = true;
                self.worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::RetryRefused(why.as_str()));
                false
            }
        }
    }

    /// `None`: there is no time for another try.
    fn pause(&self, to: &Forward<'_>, response: Option<&Headers>, log: &mut Log<'_>) -> Option<Duration> {
        let Some(retry) = to.rule.ir.retry.as_deref() else { return Some(Duration::ZERO) };
        let pause = retry::pause(retry, self.failed + 1, response, unix_seconds(retry), self.worker.random());
        let in_time = pause.filter(|p| to.limit.is_none_or(|limit| Instant::now() + *p < limit));
        if in_time.is_none() {
            log.exhausted = true;
            self.worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::RetryRefused("no-time"));
        }
        in_time
    }
}

/// A retry, counted against its pool's budget for as long as it lives.
pub(super) struct Pass<'w> {
    worker: &'w Worker,
    slot: u32,
    pass: Option<RetryPass>,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take()
            && let Some(state) = self.worker.pools.borrow_mut().get_mut(self.slot as usize)
        {
            state.end_retry(pass);
        }
    }
}

/// Only a date in `retry-after` needs the time of day.
fn unix_seconds(retry: &Retry) -> u64 {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    retry.retry_after.map_or(0, |_| now())
}

/// Whether all of the request's body that was sent is still here.
fn repeatable(to: &Forward<'_>, log: &Log<'_>) -> bool {
    log.bytes_received == 0 || to.replay.as_ref().is_some_and(|replay| replay.is_whole())
}

/// What the client hears of a try that nothing follows.
fn answer(failure: Failure, request: &mut Request, log: &mut Log<'_>) -> Answer {
    match failure {
        Failure::Refused(answer) => answer,
        Failure::ClientError(error) => client_error(request, log, &error),
        Failure::Connect(error) => {
            log.failure = Some(error.to_string());
            unreachable_upstream()
        }
        Failure::Broken { error: error @ SideError::Malformed(_), .. } => {
            log.failure = Some(error.to_string());
            let details = "upstream_reset_before_response_started{protocol_error}";
            Answer::new(502, details, "UPE", "upstream broke the protocol\n")
        }
        Failure::Broken { error, .. } => {
            log.failure = Some(error.to_string());
            let details = "upstream_reset_before_response_started{connection_termination}";
            Answer::new(503, details, "UC", "upstream closed the connection\n")
        }
        // The others have no answer.
        Failure::Timeout | Failure::ClientSlow | Failure::ClientGone | Failure::Full => {
            Answer::new(504, "response_timeout", "UT", "upstream request timeout\n")
        }
    }
}

/// No endpoint could be connected to.
pub(super) fn unreachable_upstream() -> Answer {
    let details = "upstream_reset_before_response_started{connection_failure}";
    Answer::new(503, details, "UF", "no upstream could be reached\n")
}

/// The client has broken the protocol in its body, or sends more of it than it may.
pub(super) fn client_error(request: &mut Request, log: &mut Log<'_>, error: &SideError) -> Answer {
    log.failure = Some(error.to_string());
    request.keep_alive = false;
    if let SideError::TooLong = error {
        return Answer::new(413, "edge_body_too_large", "-", "the body is too large\n");
    }
    Answer::new(400, "downstream_body_error", "DPE", "bad request body\n")
}
