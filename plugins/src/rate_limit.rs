//! Rate limits: only so many requests in a time, counted here (token buckets that all workers share), by Envoy's rate limit
//! service, or both.
//!
//! A request must fit every limit that it counts against. All are looked at before any is taken from, so that a request
//! which is refused costs nobody a token. How exact that is under many workers: see `gcra` and `table`; what is let pass
//! of one bucket is never more than the bucket has, and of a bucket in a table that overflows what it says there.
//!
//! Nothing here waits or locks. What is asked of the service is a [`Callout`](fieldgate_core::guard::Callout).

mod answer;
mod explain;
mod gcra;
mod global;
mod key;
mod proto;
mod table;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use fieldgate_core::filter::LocalResponse;
use fieldgate_core::guard::{Answered, Guard, Guarded, NoAnswer, Verdict};
use fieldgate_core::ir::{Limit, ObjectKey, RateLimit};
use smallvec::SmallVec;

pub use explain::explain;

use answer::{Told, refusal};
use gcra::{Level, Rate, SECOND, units};
use global::{Answer, Global};
use key::{Value, When};
use table::Table;

use crate::guards::closed;

/// The name under which the service's answers are counted, beside those of limits.
const GLOBAL: &str = "global";

/// What became of requests that counted against a limit.
pub const RESULTS: [&str; 4] = ["ok", "limited", "shadow_limited", "error"];
const OK: usize = 0;
const LIMITED: usize = 1;
const SHADOW_LIMITED: usize = 2;
const ERROR: usize = 3;

/// Requests by what became of them, as in [`RESULTS`].
type Counts = [AtomicU64; RESULTS.len()];

/// A rate limit that is ready to decide.
#[derive(Debug)]
pub struct RateLimiter {
    key: ObjectKey,
    limits: Box<[Local]>,
    global: Option<(Global, Arc<Counts>)>,
    shadow: bool,
    headers: bool,
    status: u16,
    resource_exhausted: bool,
}

/// A limit with what it has counted.
#[derive(Debug)]
struct Local {
    ir: Limit,
    when: Box<[When]>,
    rate: Rate,
    buckets: Arc<Buckets>,
    counts: Arc<Counts>,
}

/// What is left of a limit, for each that it tells apart.
#[derive(Debug)]
struct Buckets {
    /// When time begins: the first request.
    began: OnceLock<Instant>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// One for all.
    One(AtomicU64),
    /// One for each key.
    Many(Table),
}

/// A limit that a request counts against.
struct Hit<'l> {
    limit: &'l Local,
    key: u64,
    now: u64,
    level: Level,
}

/// Makes a rate limit ready. Limits of `before` that count the same way go on with what they have counted.
pub fn ready(key: &ObjectKey, ir: &RateLimit, before: Option<&Arc<dyn Guard>>) -> Arc<dyn Guard> {
    let before = before.and_then(|guard| (&**guard as &dyn Any).downcast_ref::<RateLimiter>());
    let limits = ir.limits.iter().map(|limit| Local::new(limit, before));
    let Some(limits) = limits.collect::<Option<_>>() else {
        return closed(key, "a pattern of it cannot be evaluated");
    };
    let counted = before.and_then(|before| Some(before.global.as_ref()?.1.clone()));
    let global = ir.global.as_ref().map(|ir| (Global::new(ir), counted.unwrap_or_default()));
    let RateLimit { shadow, headers, status, resource_exhausted, .. } = *ir;
    Arc::new(RateLimiter { key: key.clone(), limits, global, shadow, headers, status, resource_exhausted })
}

impl Guard for RateLimiter {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn name(&self) -> &'static str {
        "rate_limit"
    }

    fn begin(&self, request: &mut Guarded<'_>) -> Verdict {
        if let Err(response) = self.count(request) {
            return Verdict::Respond(response);
        }
        let question = self.global.as_ref().and_then(|(global, _)| global.ask(request));
        question.map_or(Verdict::Continue, |callout| Verdict::Ask(Box::new(callout)))
    }

    fn resume(&self, request: &mut Guarded<'_>, _: u8, answer: Result<Answered, NoAnswer>) -> Verdict {
        let Some((global, counts)) = &self.global else { return Verdict::Continue };
        let Some(answer) = Answer::read(answer) else {
            counts[ERROR].fetch_add(1, Relaxed);
            return if global.fail_open || self.shadow {
                Verdict::Continue
            } else {
                Verdict::Respond(Box::new(answer::service_error()))
            };
        };
        if self.headers
            && let Some(told) = answer.told()
        {
            told.tell(request.response_headers);
        }
        answer.learn(request.metadata);
        if !answer.over_limit() {
            counts[OK].fetch_add(1, Relaxed);
            answer.pass(request);
            return Verdict::Continue;
        }
        counts[if self.shadow { SHADOW_LIMITED } else { LIMITED }].fetch_add(1, Relaxed);
        if self.shadow {
            return Verdict::Continue;
        }
        answer.refuse(request.response_headers);
        let response = self.refuse(request, answer.wait(), answer.body(), "request_rate_limited");
        Verdict::Respond(Box::new(response))
    }
}

impl RateLimiter {
    /// What was counted since the limit was first configured: its name and requests by [`RESULTS`].
    pub fn counts(&self) -> impl Iterator<Item = (&str, [u64; RESULTS.len()])> {
        let read = |counts: &Counts| std::array::from_fn(|at| counts[at].load(Relaxed));
        let locals = self.limits.iter().map(move |limit| (&*limit.ir.name, read(&limit.counts)));
        locals.chain(self.global.iter().map(move |(_, counts)| (GLOBAL, read(counts))))
    }

    /// Local limits: takes a token of each, or of none.
    fn count(&self, request: &mut Guarded<'_>) -> Result<(), Box<LocalResponse>> {
        let mut hits: SmallVec<[Hit<'_>; 4]> =
            self.limits.iter().filter_map(|limit| limit.hit(request)).collect();
        let passes = if self.shadow { take_each(&mut hits) } else { take_all(&mut hits) };
        let refused = if self.shadow { SHADOW_LIMITED } else { LIMITED };
        for hit in &hits {
            match hit.level.fits {
                false => hit.limit.counts[refused].fetch_add(1, Relaxed),
                true if passes => hit.limit.counts[OK].fetch_add(1, Relaxed),
                true => continue,
            };
        }
        if self.headers
            && let Some(told) = told(&hits)
        {
            told.tell(request.response_headers);
        }
        if passes {
            return Ok(());
        }
        let wait = hits.iter().map(|hit| hit.level.until_token).max().unwrap_or_default();
        Err(Box::new(self.refuse(request, Some(wait.div_ceil(SECOND)), None, "local_rate_limited")))
    }

    fn refuse(
        &self,
        request: &Guarded<'_>,
        wait: Option<u64>,
        body: Option<String>,
        details: &'static str,
    ) -> LocalResponse {
        let exhausted = self.resource_exhausted && request.head.is_grpc();
        refusal(self.status, exhausted, wait, body, details)
    }
}

/// For what refuses: a token of each, or of none.
fn take_all(hits: &mut [Hit<'_>]) -> bool {
    if hits.iter().any(|hit| !hit.level.fits) {
        return false;
    }
    for at in 0..hits.len() {
        hits[at].take();
        if !hits[at].level.fits {
            // Somebody else took the last one meanwhile.
            hits[..at].iter().for_each(Hit::put_back);
            return false;
        }
    }
    true
}

/// For what only watches: each limit as if there were no other.
fn take_each(hits: &mut [Hit<'_>]) -> bool {
    hits.iter_mut().for_each(Hit::take);
    true
}

/// The tightest of all, and the policies of all.
fn told(hits: &[Hit<'_>]) -> Option<Told> {
    let tightest = hits.iter().min_by_key(|hit| (hit.level.left, u64::MAX - hit.level.until_full))?;
    let mut told = Told {
        limit: tightest.limit.ir.burst.into(),
        left: tightest.level.left,
        reset: tightest.level.until_full.div_ceil(SECOND),
        policies: String::new(),
    };
    for Hit { limit: Local { ir, .. }, .. } in hits {
        told.policy(ir.tokens.into(), ir.interval.as_secs(), &ir.name);
    }
    Some(told)
}

impl Hit<'_> {
    fn take(&mut self) {
        self.level = match &self.limit.buckets.kind {
            Kind::One(bucket) => self.limit.rate.take(bucket, self.now),
            Kind::Many(table) => table.take(self.key, &self.limit.rate, self.now),
        };
    }

    fn put_back(&self) {
        match &self.limit.buckets.kind {
            Kind::One(bucket) => self.limit.rate.put_back(bucket),
            Kind::Many(table) => table.put_back(self.key, &self.limit.rate),
        }
    }
}

impl Local {
    /// `None` if a pattern is none.
    fn new(ir: &Limit, before: Option<&RateLimiter>) -> Option<Self> {
        let same = before.and_then(|before| before.limits.iter().find(|old| old.ir.name == ir.name));
        let buckets = same.filter(|old| old.counts_like(ir)).map(|old| old.buckets.clone());
        Some(Self {
            when: ir.when.iter().map(When::new).collect::<Result<_, _>>().ok()?,
            rate: Rate::new(ir.tokens, ir.interval, ir.burst),
            buckets: buckets.unwrap_or_else(|| Arc::new(Buckets::new(ir))),
            counts: same.map(|old| old.counts.clone()).unwrap_or_default(),
            ir: ir.clone(),
        })
    }

    /// Whether what was taken means the same: the burst may differ, for a bucket knows what it misses, and so may the
    /// conditions.
    fn counts_like(&self, ir: &Limit) -> bool {
        let Limit { name, when: _, by, burst: _, tokens, interval, max_keys } = &self.ir;
        (name, by, tokens, interval, max_keys) == (&ir.name, &ir.by, &ir.tokens, &ir.interval, &ir.max_keys)
    }

    /// What it says of a request; `None` if that does not count.
    fn hit(&self, request: &Guarded<'_>) -> Option<Hit<'_>> {
        if !self.when.iter().all(|when| when.holds(request)) {
            return None;
        }
        let began = *self.buckets.began.get_or_init(|| request.now);
        let now = units(request.now.saturating_duration_since(began));
        let (key, level) = match &self.buckets.kind {
            Kind::One(bucket) => (0, self.rate.look(bucket.load(Relaxed), now)),
            Kind::Many(table) => {
                let mut hasher = table.hasher();
                for by in &self.ir.by {
                    Value::of(by, request)?.hash(&mut hasher);
                }
                let key = Table::key(&hasher);
                (key, table.look(key, &self.rate, now))
            }
        };
        Some(Hit { limit: self, key, now, level })
    }
}

impl Buckets {
    fn new(ir: &Limit) -> Self {
        let kind =
            if ir.by.is_empty() { Kind::One(AtomicU64::new(0)) } else { Kind::Many(Table::new(ir.max_keys)) };
        Self { began: OnceLock::new(), kind }
    }
}
