//! What happens to requests on their way to a pool, apart from their outcome: retries, refusals, ejections, faults.
//!
//! Rare beside requests, so a name is looked up for each.

use std::cell::RefCell;

use fieldgate_core::ir::PoolKey;
use rustc_hash::FxHashMap;

use super::metrics::Telemetry;
use super::recorder::LocalCounter;

/// One thing that happened. The words are labels, so there are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolEvent {
    /// A try after the first.
    Retry,
    /// No other try: why.
    RetryRefused(&'static str),
    /// A second try beside the first.
    Hedge,
    /// That one was faster.
    HedgeWon,
    /// A request was refused before it was sent anywhere: why.
    Refused(&'static str),
    /// An endpoint is left alone: why, and whether that is enforced.
    Ejection(&'static str, bool),
    /// A fault on purpose: which.
    Fault(&'static str),
}

impl PoolEvent {
    fn name(self) -> &'static str {
        match self {
            Self::Retry => "fieldgate_upstream_retries_total",
            Self::RetryRefused(_) => "fieldgate_upstream_retries_refused_total",
            Self::Hedge => "fieldgate_upstream_hedges_total",
            Self::HedgeWon => "fieldgate_upstream_hedges_won_total",
            Self::Refused(_) => "fieldgate_upstream_refused_total",
            Self::Ejection(..) => "fieldgate_upstream_ejections_total",
            Self::Fault(_) => "fieldgate_faults_injected_total",
        }
    }

    fn labels(self, pool: &str) -> Vec<(&'static str, &str)> {
        let pool = ("pool", pool);
        match self {
            Self::Retry | Self::Hedge | Self::HedgeWon => vec![pool],
            Self::RetryRefused(why) | Self::Refused(why) => vec![pool, ("reason", why)],
            Self::Ejection(why, enforced) => {
                vec![pool, ("reason", why), ("enforced", if enforced { "true" } else { "false" })]
            }
            Self::Fault(kind) => vec![pool, ("fault", kind)],
        }
    }
}

/// The counters of one worker.
#[derive(Default)]
pub(super) struct PoolEvents(RefCell<FxHashMap<PoolKey, FxHashMap<PoolEvent, LocalCounter>>>);

impl PoolEvents {
    pub fn add(&self, telemetry: &Telemetry, pool: &PoolKey, event: PoolEvent) {
        let mut pools = self.0.borrow_mut();
        if let Some(counter) = pools.get(pool).and_then(|events| events.get(&event)) {
            return counter.add();
        }
        let shared = telemetry.counter(event.name(), &event.labels(&pool.to_string()));
        pools.entry(pool.clone()).or_default().entry(event).or_insert(LocalCounter::new(shared)).add();
    }

    pub fn flush(&self) {
        self.0.borrow().values().flat_map(FxHashMap::values).for_each(|counter| _ = counter.flush());
    }
}
