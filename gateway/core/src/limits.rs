//! How many requests a pool may have: circuit breakers, the retry budget, adaptive concurrency, admission control.
//!
//! What is limited over all workers is counted in [`PoolShared`], and only if it is limited;
//! the rest is each worker's own. Nothing waits here.

mod admission;
mod gradient;

use std::sync::Arc;
use std::time::Duration;

use crate::balance::{CompiledPool, PoolShared, PoolState};
use admission::Window;
use gradient::Gradient;

/// Why a request, or a retry, may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// As many requests are in flight as may be.
    Requests,
    /// More would raise the pool's latency.
    Concurrency,
    /// The pool fails, and some requests are kept from it.
    Admission,
    /// As many retries are in flight as the budget allows.
    RetryBudget,
    /// As many retries are in flight as may be.
    Retries,
}

impl Refused {
    /// For metrics: a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Concurrency => "concurrency",
            Self::Admission => "admission",
            Self::RetryBudget => "budget",
            Self::Retries => "retries",
        }
    }

    /// Envoy's response flag.
    pub fn flags(self) -> &'static str {
        "UO"
    }

    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        match self {
            Self::Requests | Self::RetryBudget | Self::Retries => {
                "upstream_reset_before_response_started{overflow}"
            }
            Self::Concurrency => "reached_concurrency_limit",
            Self::Admission => "denied_by_admission_control",
        }
    }

    /// What the client reads.
    pub fn message(self) -> &'static str {
        match self {
            Self::Requests | Self::RetryBudget | Self::Retries => "too many requests to the upstream\n",
            Self::Concurrency => "the upstream is as busy as it may be\n",
            Self::Admission => "the upstream fails too often; try again later\n",
        }
    }
}

/// What one worker knows of a pool's limits.
#[derive(Debug, Default)]
pub struct LimitState {
    retries: u32,
    gradient: Option<Box<Gradient>>,
    admission: Option<Box<Window>>,
}

/// A retry that was let through; to be given back when its request is over.
#[derive(Debug)]
pub struct RetryPass(Option<Arc<PoolShared>>);

impl CompiledPool {
    /// Whether requests have to [`PoolState::enter`].
    pub fn limits_requests(&self) -> bool {
        let limits = &self.ir.limits;
        limits.max_requests != u32::MAX || limits.adaptive.is_some() || limits.admission.is_some()
    }
}

impl PoolState {
    /// A request turns to the pool. If it may, [`PoolState::leave`] must follow, with the same pool.
    pub fn enter(
        &mut self,
        pool: &CompiledPool,
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
    ) -> Result<(), Refused> {
        let limits = &pool.ir.limits;
        let state = &mut self.limits;
        let limited = limits.max_requests != u32::MAX;
        if limited && !pool.shared.requests.enter(limits.max_requests) {
            return Err(Refused::Requests);
        }
        // Only now: one that waits for a place asks often, and its luck is drawn once.
        if let Some(settings) = limits.admission.as_deref()
            && !Window::of(&mut state.admission).admits(settings, now_ms, random())
        {
            if limited {
                pool.shared.requests.leave();
            }
            return Err(Refused::Admission);
        }
        if let Some(settings) = &limits.adaptive
            && !Gradient::of(&mut state.gradient, settings, now_ms).enter(now_ms)
        {
            if limited {
                pool.shared.requests.leave();
            }
            return Err(Refused::Concurrency);
        }
        Ok(())
    }

    /// A request that entered is over.
    pub fn leave(
        &mut self,
        pool: &CompiledPool,
        took: Duration,
        success: Option<bool>,
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
    ) {
        let limits = &pool.ir.limits;
        if limits.max_requests != u32::MAX {
            pool.shared.requests.leave();
        }
        if let (Some(settings), Some(success)) = (limits.admission.as_deref(), success) {
            Window::of(&mut self.limits.admission).count(settings, success, now_ms);
        }
        // Whatever the settings are now: one that entered under others must not bring those back.
        if limits.adaptive.is_some()
            && let Some(gradient) = &mut self.limits.gradient
        {
            gradient.leave(took, now_ms, random());
        }
    }

    /// The concurrency that adaptive concurrency allows this worker at present.
    pub fn concurrency_limit(&self) -> Option<u32> {
        self.limits.gradient.as_ref().map(|gradient| gradient.limit())
    }

    /// A request of which an endpoint may have begun to work on is about to be tried again. If it may,
    /// [`PoolState::end_retry`] must follow.
    pub fn begin_retry(&mut self, pool: &CompiledPool) -> Result<RetryPass, Refused> {
        let limits = &pool.ir.limits;
        let budget = limits.retry_budget;
        if budget.percent < 100 {
            let of_requests = u64::from(self.in_flight_total()) * u64::from(budget.percent) / 100;
            if u64::from(self.limits.retries) >= of_requests.max(u64::from(budget.min)) {
                return Err(Refused::RetryBudget);
            }
        }
        let limited = limits.max_retries != u32::MAX;
        if limited && !pool.shared.retries.enter(limits.max_retries) {
            return Err(Refused::Retries);
        }
        self.limits.retries += 1;
        Ok(RetryPass(limited.then(|| pool.shared.clone())))
    }

    /// It is over.
    pub fn end_retry(&mut self, pass: RetryPass) {
        self.limits.retries = self.limits.retries.saturating_sub(1);
        if let Some(shared) = pass.0 {
            shared.retries.leave();
        }
    }

    /// Retries of this worker in flight.
    pub fn retries(&self) -> u32 {
        self.limits.retries
    }
}

#[cfg(test)]
mod tests;
