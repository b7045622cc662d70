//! The life of a request: let in, sent to an endpoint, sent again, hedged, answered.
//!
//! Carries out what core decides, in the order in which the server does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::Headers;
use fieldgate_core::balance::{CompiledPool, Wish};
use fieldgate_core::ir::{Retry, RetryOn};
use fieldgate_core::limits::RetryPass;
use fieldgate_core::outlier::Seen;
use fieldgate_core::retry::{self, Repeat, Trouble};

use crate::servers::Fate;
use crate::settings::place;
use crate::watch::Choice;
use crate::world::{Event, World};

/// A request gives up after so long.
const REQUEST_TIMEOUT_MS: u64 = 3000;
/// So long a connection may take.
const CONNECT_TIMEOUT_MS: u64 = 1000;

pub struct Request {
    worker: usize,
    client: u64,
    pool: Arc<CompiledPool>,
    policy: Option<Arc<Retry>>,
    idempotent: bool,
    hash: Option<u64>,
    prefer: Option<SocketAddr>,
    strict: bool,
    started_ms: u64,
    tried: Vec<SocketAddr>,
    failed: u32,
    begun: u32,
    running: Vec<Try>,
    budget: Option<RetryPass>,
    /// How often an endpoint may have begun to work on it.
    worked_on: u32,
    /// Why the last try was none that could be passed on.
    last: Option<Ending>,
}

struct Try {
    number: u32,
    index: usize,
    address: SocketAddr,
    begun_ms: u64,
    ending: Ending,
}

/// How a try ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    Answer(u16),
    NoConnection,
    Broken {
        unsent: bool,
    },
    TimedOut,
    /// The time of the whole request is up.
    Expired,
}

impl Ending {
    fn seen(self) -> Seen {
        match self {
            Self::Answer(status) => Seen::Status(status),
            Self::NoConnection => Seen::ConnectFailed,
            Self::Broken { .. } => Seen::Reset,
            Self::TimedOut | Self::Expired => Seen::TimedOut,
        }
    }

    fn worked_on(self) -> bool {
        !matches!(self, Self::NoConnection | Self::Broken { unsent: true })
    }

    fn trouble(self, headers: &Headers) -> Trouble<'_> {
        match self {
            Self::Answer(status) => Trouble::Response { status, headers, grpc: false },
            Self::NoConnection => Trouble::NoConnection,
            Self::Broken { unsent } => Trouble::Reset { before_request: unsent, refused_stream: false },
            Self::TimedOut | Self::Expired => Trouble::TryTimedOut,
        }
    }

    /// Whether a route asks for another try after this; read from Envoy's page on its router.
    fn is_asked_for(self, policy: &Retry) -> bool {
        let on = |any: RetryOn| policy.on.has(any);
        let any_5xx = on(RetryOn::SERVER_ERROR);
        let none_at_all = any_5xx || on(RetryOn::GATEWAY_ERROR) || on(RetryOn::RESET);
        match self {
            Self::Answer(status) => {
                any_5xx && status >= 500
                    || on(RetryOn::GATEWAY_ERROR) && [502, 503, 504].contains(&status)
                    || on(RetryOn::RETRIABLE_4XX) && status == 409
                    || on(RetryOn::STATUS_CODES) && policy.codes.contains(&status)
            }
            Self::NoConnection => none_at_all || on(RetryOn::CONNECT_FAILURE),
            Self::Broken { unsent } => none_at_all || unsent && on(RetryOn::RESET_BEFORE_REQUEST),
            Self::TimedOut => none_at_all,
            Self::Expired => false,
        }
    }
}

impl World {
    pub fn arrive(&mut self, at: usize) {
        let Self { workers, dice, truth, .. } = self;
        let worker = &mut workers[at];
        let pool = worker.pool.clone();
        if pool.limits_requests() {
            let verdict = worker.state.enter(&pool, self.now_ms, &mut || dice.roll());
            truth.entered(&pool, worker, verdict);
            if let Err(refused) = verdict {
                return self.watch.count(refused.as_str());
            }
        }
        let client = dice.below(60);
        let hash = (pool.ir.balance.hash_by().is_some() && dice.percent(90))
            .then(|| client.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(23));
        let bound = dice.percent(15);
        let request = Request {
            worker: at,
            client,
            policy: dice.one_of(&self.routes),
            idempotent: dice.percent(50),
            hash,
            prefer: self.sessions.get(&client).copied().filter(|_| bound),
            strict: dice.percent(30),
            started_ms: self.now_ms,
            tried: Vec::new(),
            failed: 0,
            begun: 0,
            running: Vec::new(),
            budget: None,
            worked_on: 0,
            last: None,
            pool,
        };
        let cancelled = dice.percent(2).then(|| dice.about(20));
        let id = self.truth.number();
        self.requests.insert(id, request);
        if let Some(ms) = cancelled {
            self.after(ms, Event::Cancel(id));
        }
        self.begin(id);
    }

    /// One more try.
    pub fn begin(&mut self, id: u64) {
        let Some(mut request) = self.requests.remove(&id) else { return };
        request.may_be_sent();
        let Self { workers, dice, watch, now_ms, .. } = self;
        let worker = &mut workers[request.worker];
        let mut passed: Vec<SocketAddr> = request.running.iter().map(|t| t.address).collect();
        passed.extend(&request.tried);
        let wish =
            Wish { hash: request.hash, prefer: request.prefer, strict: request.strict, tried: &passed };
        let pool = request.pool.clone();
        let got = pool.pick(&mut worker.state, *now_ms, &mut || dice.roll(), &wish);
        let in_flight = &worker.in_flight;
        watch.choice(request.worker, &Choice { pool: &pool, now_ms: *now_ms, wish: &wish, in_flight, got });
        let Ok(index) = got else {
            let alone = request.running.is_empty();
            self.requests.insert(id, request);
            if alone {
                self.over(id, 503);
            }
            return;
        };
        let address = pool.endpoints[index].address();
        worker.state.started(index);
        *worker.in_flight.entry(address).or_default() += 1;
        assert_eq!(worker.state.in_flight(address), worker.in_flight[&address], "in flight to {address}");
        request.begun += 1;
        let (ms, ending) = self.fate(&request, address);
        request.running.push(Try { number: request.begun, index, address, begun_ms: self.now_ms, ending });
        self.after(ms, Event::Ended(id, request.begun));
        if let Some(hedge) = request.policy.as_ref().and_then(|policy| policy.hedge) {
            self.after(hedge.after.as_millis() as u64, Event::Slow(id));
        }
        self.requests.insert(id, request);
    }

    /// What a try at this endpoint comes to, within its time.
    fn fate(&mut self, request: &Request, address: SocketAddr) -> (u64, Ending) {
        let (ms, fate) = self.servers[place(address)].serve(self.now_ms, &mut self.dice);
        let rest = (request.started_ms + REQUEST_TIMEOUT_MS).saturating_sub(self.now_ms);
        let of_try = request.policy.as_ref().and_then(|p| p.per_try_timeout);
        let limit = of_try.map_or(rest, |limit| rest.min(limit.as_millis() as u64));
        let late = if limit == rest { Ending::Expired } else { Ending::TimedOut };
        match fate {
            Fate::Never if self.dice.percent(50) && limit > CONNECT_TIMEOUT_MS => {
                (CONNECT_TIMEOUT_MS, Ending::NoConnection)
            }
            Fate::Never => (limit, late),
            _ if ms > limit => (limit, late),
            Fate::Answer(status) => (ms, Ending::Answer(status)),
            Fate::Refused => (ms, Ending::NoConnection),
            Fate::Broken { unsent } => (ms, Ending::Broken { unsent }),
        }
    }

    pub fn ended(&mut self, id: u64, number: u32) {
        let Some(mut request) = self.requests.remove(&id) else { return };
        let Some(at) = request.running.iter().position(|t| t.number == number) else {
            self.requests.insert(id, request);
            return;
        };
        let Try { index, address, begun_ms, ending, .. } = request.running[at];
        self.report(&request, index, address, ending);
        request.worked_on += u32::from(ending.worked_on());
        let headers = Headers::default();
        let trouble = ending.trouble(&headers);
        let verdict = match ending {
            Ending::Expired => Repeat::No,
            _ => retry::repeat(request.policy.as_deref(), &trouble, request.idempotent, request.failed),
        };
        let pause = match verdict {
            Repeat::Yes { budgeted, .. } if budgeted && !self.within_budget(&mut request) => None,
            Repeat::Yes { asked: true, .. } => {
                let policy = request.policy.as_deref().expect("it asked");
                retry::pause(policy, request.failed + 1, Some(&headers), 0, self.dice.roll())
            }
            Repeat::Yes { asked: false, .. } => Some(Duration::ZERO),
            Repeat::No | Repeat::Exhausted => None,
        };
        let answers = pause.is_none() && matches!(ending, Ending::Answer(_));
        if !answers {
            request.running.remove(at);
            self.finished(request.worker, address);
            self.count_failure(&mut request, address, ending);
            let asked = matches!(verdict, Repeat::Yes { asked: true, .. });
            let pause = pause.filter(|_| asked || !request.tried.is_empty());
            let alone = request.running.is_empty();
            self.requests.insert(id, request);
            return match pause {
                // Another one may yet answer.
                _ if !alone => {}
                Some(pause) => self.after(pause.as_millis() as u64, Event::Again(id)),
                None => self.over(id, 503),
            };
        }
        // The others are given up.
        let won = request.running.remove(at);
        for other in std::mem::take(&mut request.running) {
            self.finished(request.worker, other.address);
        }
        request.running.push(won);
        let took = Duration::from_millis(self.now_ms - begun_ms);
        if request.pool.wants_latency() {
            self.workers[request.worker].state.observe(address, took, self.now_ms);
        }
        self.sessions.insert(request.client, address);
        let body =
            if self.dice.below(1000) < 3 { self.dice.between(1000, 20_000) } else { self.dice.below(10) };
        self.after(body, Event::Done(id));
        // It has no tries left to begin.
        request.policy = None;
        request.last = Some(ending);
        self.requests.insert(id, request);
    }

    fn report(&mut self, request: &Request, index: usize, address: SocketAddr, ending: Ending) {
        let Self { workers, dice, truth, now_ms, .. } = self;
        let state = &mut workers[request.worker].state;
        let was_ejected = request.pool.endpoints[index].state.is_ejected(*now_ms);
        let ejection = request.pool.report(state, index, ending.seen(), *now_ms, dice.roll());
        truth.reported(&request.pool, address, ending.seen(), was_ejected, ejection.as_ref(), *now_ms);
    }

    /// The endpoint has had its try. If there is no other, all may be tried again.
    fn count_failure(&mut self, request: &mut Request, address: SocketAddr, ending: Ending) {
        request.failed += 1;
        request.last = Some(ending);
        request.tried.push(address);
        let now_ms = self.now_ms;
        let other =
            request.pool.endpoints.iter().any(|e| {
                !e.is_draining() && e.state.available(now_ms) && !request.tried.contains(&e.address())
            });
        if !other {
            request.tried.clear();
        }
    }

    fn within_budget(&mut self, request: &mut Request) -> bool {
        if request.budget.is_some() {
            return true;
        }
        let worker = &mut self.workers[request.worker];
        let verdict = worker.state.begin_retry(&request.pool);
        self.truth.retried(&request.pool, worker, verdict.as_ref().map(|_| ()).map_err(|refused| *refused));
        match verdict {
            Ok(pass) => request.budget = Some(pass),
            Err(refused) => self.watch.count(refused.as_str()),
        }
        request.budget.is_some()
    }

    /// A try takes long: another one beside it.
    pub fn slow(&mut self, id: u64) {
        let Some(mut request) = self.requests.remove(&id) else { return };
        let policy = request.policy.clone();
        let hedge = policy.as_ref().and_then(|policy| Some((policy.attempts, policy.hedge?)));
        let more = hedge.is_some_and(|(attempts, hedge)| {
            let running = request.running.len() as u32;
            running > 0 && running < hedge.at_once && request.begun <= attempts
        });
        let more = more && self.within_budget(&mut request);
        // What is under way is no failure that another try would follow.
        request.last = None;
        self.requests.insert(id, request);
        if more {
            self.watch.count("hedged");
            self.begin(id);
        }
    }

    fn finished(&mut self, worker: usize, address: SocketAddr) {
        let worker = &mut self.workers[worker];
        worker.state.finished(address);
        let count = worker.in_flight.get_mut(&address).expect("it was started");
        *count -= 1;
        assert_eq!(worker.state.in_flight(address), *count, "in flight to {address}");
        let total: u32 = worker.in_flight.values().sum();
        assert_eq!(worker.state.in_flight_total(), total, "in flight");
    }

    pub fn done(&mut self, id: u64) {
        let status = match self.requests.get(&id).and_then(|r| r.last) {
            Some(Ending::Answer(status)) => status,
            _ => 0,
        };
        self.over(id, status);
    }

    pub fn cancel(&mut self, id: u64) {
        if self.requests.contains_key(&id) {
            self.watch.count("cancelled");
            self.over(id, 0);
        }
    }

    /// However it ends, it is counted no more.
    fn over(&mut self, id: u64, status: u16) {
        let Some(request) = self.requests.remove(&id) else { return };
        for running in &request.running {
            self.finished(request.worker, running.address);
        }
        let Self { workers, dice, truth, now_ms, .. } = self;
        let worker = &mut workers[request.worker];
        if let Some(pass) = request.budget {
            worker.state.end_retry(pass);
            truth.retry_over(&request.pool, worker);
        }
        if request.pool.limits_requests() {
            let took = Duration::from_millis(*now_ms - request.started_ms);
            let success = (1..500).contains(&status);
            worker.state.leave(&request.pool, took, Some(success), *now_ms, &mut || dice.roll());
            truth.left(&request.pool, worker);
        }
        self.watch.count(if success(status) { "answered" } else { "failed" });
    }
}

fn success(status: u16) -> bool {
    (1..500).contains(&status)
}

impl Request {
    /// No request is sent twice unless that is allowed.
    fn may_be_sent(&self) {
        let attempts = self.policy.as_ref().map_or(0, |policy| policy.attempts);
        assert!(self.begun < (attempts + 1).max(retry::UNASKED_TRIES), "too many tries");
        if self.policy.is_none() && !self.idempotent {
            assert_eq!(self.worked_on, 0, "not to be repeated, and sent again");
        }
        let Some(last) = self.last else { return };
        let asked = self.policy.as_deref().is_some_and(|policy| last.is_asked_for(policy));
        let harmless = !last.worked_on() || self.idempotent && matches!(last, Ending::Broken { .. });
        assert!(asked || harmless, "sent again after {last:?}, which nobody asked for");
    }
}
