//! The life of a request: let in, sent, answered or not, sent again. As the server does it, with core's decisions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::balance::{CompiledPool, Wish};
use fieldgate_core::limits::{Refused, RetryPass};
use fieldgate_core::outlier::Seen;

use crate::account::{Account, Next, Now};
use crate::life::{Event, Life};
use crate::setup;
use crate::world::{Outcome, address};

/// How often who waits looks for room.
const LOOK_MS: u64 = 20;

pub struct Request {
    pub worker: usize,
    pub slot: usize,
    /// The snapshot that it came with.
    pub pool: Arc<CompiledPool>,
    pub account: Account,
    pub hash: Option<u64>,
    pub prefer: Option<SocketAddr>,
    pub strict: bool,
    since_ms: u64,
    limit_ms: u64,
    /// Until when it waits, if it does.
    queued_until_ms: Option<u64>,
    entered: bool,
    pass: Option<RetryPass>,
    at: Option<Try>,
    sends: u32,
    /// Why it may be sent once more.
    permission: Option<&'static str>,
}

struct Try {
    index: usize,
    address: SocketAddr,
    outcome: Outcome,
    since_ms: u64,
}

impl Life {
    pub fn begin(&mut self, worker: usize, slot: usize) {
        let random = &mut self.world;
        let n = random.below(setup::SERVERS);
        let request = Request {
            worker,
            slot,
            pool: self.pools[slot].compiled.clone(),
            account: Account {
                route: setup::retry(random),
                idempotent: random.chance(60),
                ..Account::default()
            },
            hash: random.chance(90).then(|| random.next()),
            prefer: random.chance(5).then(|| address(slot, n)),
            strict: random.chance(30),
            since_ms: self.now_ms,
            limit_ms: self.now_ms + if random.chance(20) { random.between(20, 1500) } else { 15_000 },
            queued_until_ms: None,
            entered: false,
            pass: None,
            at: None,
            sends: 0,
            permission: None,
        };
        self.next_id += 1;
        self.statistics.requests += 1;
        self.requests.insert(self.next_id, request);
        self.enter(self.next_id);
    }

    fn take(&mut self, id: u64) -> Request {
        self.requests.remove(&id).expect("events are of requests that are there")
    }

    /// Lets it in, makes it wait, or refuses it.
    pub fn enter(&mut self, id: u64) {
        let mut request = self.take(id);
        if !request.pool.limits_requests() {
            return self.send_first(id, request);
        }
        match self.enter_watched(request.worker, request.slot, &request.pool) {
            Ok(()) => {
                request.entered = true;
                self.leave_queue(&mut request);
                self.send_first(id, request);
            }
            Err(Refused::Requests) if request.pool.ir.limits.queue_timeout.is_some() => {
                self.wait(id, request, Event::Enter(id));
            }
            Err(refused) => {
                self.trace(|| format!("request {id}: refused, {refused:?}"));
                self.finish(id, request, false);
            }
        }
    }

    fn send_first(&mut self, id: u64, request: Request) {
        self.requests.insert(id, request);
        self.send(id);
    }

    /// Waits in the queue if that has room, and not for too long.
    fn wait(&mut self, id: u64, mut request: Request, then: Event) {
        let limits = &request.pool.ir.limits;
        if request.queued_until_ms.is_none() {
            let side = &mut self.pools[request.slot];
            if request.pool.shared.pending.enter(limits.max_pending) {
                side.pending += 1;
                self.statistics.waits += 1;
                let timeout = limits.queue_timeout.unwrap_or(limits.connect_timeout).as_millis() as u64;
                request.queued_until_ms = Some((self.now_ms + timeout).min(request.limit_ms));
            }
        }
        match request.queued_until_ms {
            Some(until) if self.now_ms < until => {
                self.requests.insert(id, request);
                self.after(LOOK_MS, then);
            }
            _ => {
                self.trace(|| format!("request {id}: no room"));
                self.finish(id, request, false);
            }
        }
    }

    fn leave_queue(&mut self, request: &mut Request) {
        if request.queued_until_ms.take().is_some() {
            request.pool.shared.pending.leave();
            self.pools[request.slot].pending -= 1;
        }
    }

    /// Chooses an endpoint with room, and sends.
    pub fn send(&mut self, id: u64) {
        let mut request = self.take(id);
        let most = request.pool.ir.limits.max_requests_per_endpoint;
        let mut passed = request.account.tried.clone();
        let mut full = false;
        let index = loop {
            let wish =
                Wish { hash: request.hash, prefer: request.prefer, strict: request.strict, tried: &passed };
            let index = match self.pick_watched(request.worker, request.slot, &request.pool, &wish) {
                Ok(index) => index,
                Err(_) if full => return self.wait(id, request, Event::Send(id)),
                Err(none) => {
                    self.trace(|| format!("request {id}: {none:?}"));
                    return self.finish(id, request, false);
                }
            };
            let address = request.pool.endpoints[index].address();
            self.started(request.worker, request.slot, &request.pool, index);
            if self.pools[request.slot].workers[request.worker].state.in_flight(address) <= most {
                break index;
            }
            self.finished(request.worker, request.slot, address);
            passed.push(address);
            full = true;
        };
        self.leave_queue(&mut request);
        if let Some(why) = request.permission.filter(|_| request.sends > 0) {
            *self.statistics.again.entry(why).or_default() += 1;
        }
        self.check_send(&request, request.sends, request.permission);
        request.permission = None;
        request.sends += 1;
        self.statistics.sends += 1;
        self.begin_try(id, request, index);
    }

    fn begin_try(&mut self, id: u64, mut request: Request, index: usize) {
        let address = request.pool.endpoints[index].address();
        let (mut outcome, mut took) = self.servers[&address].serve(self.now_ms, &mut self.world);
        let per_try = request.account.route.as_ref().and_then(|route| route.per_try_timeout);
        let left = request.limit_ms.saturating_sub(self.now_ms);
        let patience = per_try.map_or(left, |limit| left.min(limit.as_millis() as u64));
        if outcome == Outcome::Nothing || took >= patience {
            (outcome, took) = (Outcome::Nothing, patience);
        }
        self.trace(|| {
            let send = request.sends;
            format!("request {id}: send {send} to {address}, {outcome:?} after {took} ms")
        });
        request.at = Some(Try { index, address, outcome, since_ms: self.now_ms });
        let event = if self.world.chance(2) { Event::Gone(id) } else { Event::Outcome(id) };
        self.requests.insert(id, request);
        self.after(took, event);
    }

    pub fn outcome(&mut self, id: u64) {
        let mut request = self.take(id);
        let Try { index, address, outcome, since_ms } = request.at.take().expect("a try is under way");
        self.report(&request, index, outcome, Duration::from_millis(self.now_ms - since_ms));
        request.permission = request.account.permission(outcome);
        if !matches!(outcome, Outcome::Refused) && !request.account.idempotent && self.world.chance(10) {
            request.account.body_gone = true;
        }
        let answered = matches!(outcome, Outcome::Status(_) | Outcome::Busy(..));
        let next = self.decide(&mut request, outcome, address);
        if answered && next == Next::Over {
            // The response is passed on; the request is in flight until its end.
            request.at = Some(Try { index, address, outcome, since_ms });
            let rest = self.world.wait(10);
            self.requests.insert(id, request);
            return self.after(rest, Event::Done(id));
        }
        self.finished(request.worker, request.slot, address);
        match next {
            Next::Again(pause) => {
                let longest = request.account.longest_pause();
                if pause > longest {
                    self.fail(&format!("a pause of {pause:?} where {longest:?} is the longest"));
                }
                self.requests.insert(id, request);
                self.after(pause.as_millis() as u64, Event::Send(id));
            }
            Next::Over => self.finish(id, request, false),
        }
    }

    fn decide(&mut self, request: &mut Request, outcome: Outcome, address: SocketAddr) -> Next {
        let (worker, slot, pool) = (request.worker, request.slot, request.pool.clone());
        let (ms, limit_ms, random) = (self.now_ms, request.limit_ms, self.chance.next());
        let Request { account, pass, .. } = request;
        let mut budget = || {
            if pass.is_none() {
                *pass = self.begin_retry_watched(worker, slot, &pool);
            }
            pass.is_some()
        };
        let mut now = Now { pool: &pool, ms, limit_ms, random, budget: &mut budget };
        match outcome {
            Outcome::Status(_) | Outcome::Busy(..) => account.after_response(outcome, address, &mut now),
            _ => account.after_failure(outcome, address, &mut now),
        }
    }

    fn report(&mut self, request: &Request, index: usize, outcome: Outcome, took: Duration) {
        let seen = match outcome {
            Outcome::Status(status) | Outcome::Busy(status, _) => Seen::Status(status),
            Outcome::Refused => Seen::ConnectFailed,
            Outcome::Reset { .. } => Seen::Reset,
            Outcome::Nothing => Seen::TimedOut,
            // The peer may close a connection that is not in use.
            Outcome::Stale { .. } => return,
        };
        let pool = &request.pool;
        let state = &mut self.pools[request.slot].workers[request.worker].state;
        let ejection = pool.report(state, index, seen, self.now_ms, self.chance.next());
        if pool.wants_latency() && matches!(seen, Seen::Status(_)) {
            state.observe(pool.endpoints[index].address(), took, self.now_ms);
        }
        if let Some(ejection) = &ejection {
            self.trace(|| format!("{ejection:?}"));
            self.statistics.ejections += u64::from(ejection.enforced);
        }
        let checked = self.model.reported(pool, index, seen, ejection, self.now_ms);
        self.check(checked);
    }

    /// The client does not wait for the rest.
    pub fn gone(&mut self, id: u64) {
        let mut request = self.take(id);
        let at = request.at.take().expect("a try is under way");
        self.finished(request.worker, request.slot, at.address);
        self.finish(id, request, false);
    }

    pub fn done(&mut self, id: u64) {
        let mut request = self.take(id);
        let at = request.at.take().expect("a response is under way");
        self.finished(request.worker, request.slot, at.address);
        let success = matches!(at.outcome, Outcome::Status(..500) | Outcome::Busy(..500, _));
        self.finish(id, request, success);
    }

    /// Gives back all that it holds.
    fn finish(&mut self, id: u64, mut request: Request, success: bool) {
        self.leave_queue(&mut request);
        let Request { worker, slot, .. } = request;
        if let Some(pass) = request.pass.take() {
            self.end_retry(worker, slot, pass, request.pool.ir.limits.max_retries != u32::MAX);
        }
        if request.entered {
            let took = Duration::from_millis(self.now_ms - request.since_ms);
            self.leave(worker, slot, &request.pool, took, success);
        }
        self.statistics.refused += u64::from(request.sends == 0);
        self.trace(|| format!("request {id}: over after {} sends, success {success}", request.sends));
    }
}
