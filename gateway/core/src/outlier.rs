//! Endpoints left alone for what became of their requests: Envoy's outlier detection, and a rule of our own where nothing
//! is configured.
//!
//! Workers report every try. Failures in a row are counted by all workers together, and are written only when something
//! fails; successes and failures for rates are counted by each worker for itself, given to all once a second, and judged
//! by one of them when the interval is over. Nothing here chooses an endpoint.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::balance::{CompiledEndpoint, CompiledPool, EndpointState, PoolState};
use crate::ir::Outlier;

/// What became of a try at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It answered with this status; a gRPC status is given as the HTTP status that means the same.
    Status(u16),
    /// No connection.
    ConnectFailed,
    /// The connection or stream broke.
    Reset,
    /// No answer in time.
    TimedOut,
}

/// Why an endpoint is an outlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// 5xx in a row.
    Consecutive5xx,
    /// 502, 503, 504 in a row.
    ConsecutiveGatewayFailure,
    /// Failures on this side of the connection in a row.
    ConsecutiveLocalOriginFailure,
    /// Its rate of successes is far below the others'.
    SuccessRate,
    /// Too many of its requests fail.
    FailurePercentage,
    /// Without outlier detection: it refused a connection.
    Refused,
    /// Without outlier detection: it broke or did not answer, several times in a row.
    Failures,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::FailurePercentage,
        Self::Refused,
        Self::Failures,
    ];

    /// Envoy's name where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::Refused => "refused",
            Self::Failures => "failures",
        }
    }
}

/// An endpoint is left alone, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Which.
    pub address: SocketAddr,
    /// Why.
    pub reason: Reason,
    /// Until then, if it is enforced.
    pub until_ms: u64,
    /// Otherwise it was found and counted only.
    pub enforced: bool,
}

/// A pool's counts, over all workers.
#[derive(Debug, Default)]
pub struct Counters {
    detected: [AtomicU64; Reason::ALL.len()],
    enforced: [AtomicU64; Reason::ALL.len()],
    overflow: AtomicU64,
    /// When rates are judged next.
    due_ms: AtomicU64,
}

impl Counters {
    /// How often an endpoint was found to be an outlier.
    pub fn detected(&self, reason: Reason) -> u64 {
        self.detected[reason as usize].load(Relaxed)
    }

    /// How often one was ejected.
    pub fn enforced(&self, reason: Reason) -> u64 {
        self.enforced[reason as usize].load(Relaxed)
    }

    /// How often one was not, because too many were already.
    pub fn overflow(&self) -> u64 {
        self.overflow.load(Relaxed)
    }
}

/// What all workers know of one endpoint's requests.
#[derive(Debug, Default)]
pub struct Record {
    in_a_row_5xx: AtomicU32,
    in_a_row_gateway: AtomicU32,
    in_a_row_local: AtomicU32,
    /// Of the present interval.
    requests: AtomicU32,
    successes: AtomicU32,
    /// How often it was ejected, less one for each interval since in which it was not.
    times: AtomicU32,
    /// Of the last interval, in thousandths, plus one; 0 is not known.
    success_rate: AtomicU32,
}

impl Record {
    /// The share of requests that succeeded in the last interval, in thousandths; `None` if there were too few.
    pub fn success_rate(&self) -> Option<u32> {
        self.success_rate.load(Relaxed).checked_sub(1)
    }

    /// But for how often it was ejected.
    fn forget(&self) {
        let rows = [&self.in_a_row_5xx, &self.in_a_row_gateway, &self.in_a_row_local];
        let rates = [&self.requests, &self.successes, &self.success_rate];
        rows.into_iter().chain(rates).for_each(reset);
    }
}

/// What one worker has seen of an endpoint and not yet given to all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    requests: u32,
    successes: u32,
}

impl CompiledPool {
    /// Takes in what became of a try at the endpoint of this index, and says whether that makes it an outlier.
    pub fn report(
        &self,
        state: &mut PoolState,
        endpoint: usize,
        seen: Seen,
        now_ms: u64,
        random: u64,
    ) -> Option<Ejection> {
        let endpoint = self.endpoints.get(endpoint)?;
        match self.ir.outlier.as_deref() {
            None => without_detection(&endpoint.state, seen, now_ms),
            Some(outlier) => {
                if let Some(local) = state.local_mut(endpoint.address()) {
                    local.tally.requests += 1;
                    local.tally.successes += u32::from(matches!(seen, Seen::Status(..500)));
                }
                // What it does meanwhile is no reason to eject it again when it is back.
                if endpoint.state.is_ejected(now_ms) {
                    return None;
                }
                let reason = in_a_row(outlier, &endpoint.state.record, seen)?;
                self.eject(outlier, endpoint, reason, now_ms, random)
            }
        }
    }

    /// To be called by every worker once a second: gives its tallies to all, and judges them when it is time.
    pub fn tick(&self, state: &mut PoolState, now_ms: u64, random: &mut dyn FnMut() -> u64) -> Vec<Ejection> {
        let Some(outlier) = self.ir.outlier.as_deref() else {
            self.forget(state);
            return Vec::new();
        };
        for endpoint in &self.endpoints {
            if let Some(local) = state.local_mut(endpoint.address()) {
                let Tally { requests, successes } = std::mem::take(&mut local.tally);
                if requests > 0 {
                    endpoint.state.record.requests.fetch_add(requests, Relaxed);
                    endpoint.state.record.successes.fetch_add(successes, Relaxed);
                }
            }
        }
        if self.is_due(outlier, now_ms) { self.judge_rates(outlier, now_ms, random) } else { Vec::new() }
    }

    /// What was counted before detection was taken from the pool is no verdict when it comes back.
    fn forget(&self, state: &mut PoolState) {
        if self.shared.ejections.due_ms.swap(0, Relaxed) != 0 {
            self.endpoints.iter().for_each(|endpoint| endpoint.state.record.forget());
        }
        for endpoint in &self.endpoints {
            if let Some(local) = state.local_mut(endpoint.address()) {
                local.tally = Tally::default();
            }
        }
    }

    /// Whether an interval is over; only one worker is told so.
    fn is_due(&self, outlier: &Outlier, now_ms: u64) -> bool {
        let due = &self.shared.ejections.due_ms;
        let at = due.load(Relaxed);
        let next = now_ms + (outlier.interval.as_millis() as u64).max(1);
        let over = at <= now_ms && due.compare_exchange(at, next, Relaxed, Relaxed).is_ok();
        // The first interval has only begun.
        over && at > 0
    }

    fn judge_rates(&self, outlier: &Outlier, now_ms: u64, random: &mut dyn FnMut() -> u64) -> Vec<Ejection> {
        let mut rates = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let record = &endpoint.state.record;
            let (requests, successes) = (record.requests.swap(0, Relaxed), record.successes.swap(0, Relaxed));
            let rate = (requests > 0).then(|| f64::from(successes.min(requests)) / f64::from(requests));
            record.success_rate.store(rate.map_or(0, |r| (r * 1000.0) as u32 + 1), Relaxed);
            let ejected = endpoint.state.is_ejected(now_ms);
            if !ejected {
                let times = record.times.load(Relaxed);
                record.times.store(times.saturating_sub(1), Relaxed);
            }
            if let Some(rate) = rate.filter(|_| !ejected) {
                rates.push((endpoint, requests, rate));
            }
        }
        let slow = below_the_others(outlier, &rates).into_iter().map(|e| (e, Reason::SuccessRate));
        let failing = failing_too_often(outlier, &rates).into_iter().map(|e| (e, Reason::FailurePercentage));
        slow.chain(failing)
            .filter_map(|(endpoint, reason)| self.eject(outlier, endpoint, reason, now_ms, random()))
            .collect()
    }

    /// An endpoint was found to be an outlier.
    fn eject(
        &self,
        outlier: &Outlier,
        endpoint: &CompiledEndpoint,
        reason: Reason,
        now_ms: u64,
        random: u64,
    ) -> Option<Ejection> {
        let counters = &self.shared.ejections;
        let address = endpoint.address();
        counters.detected[reason as usize].fetch_add(1, Relaxed);
        // The high bits decide about enforcement, the low ones about jitter.
        if ((random >> 32) * 100) >> 32 >= u64::from(enforcing(outlier, reason)) {
            return Some(Ejection { address, reason, until_ms: now_ms, enforced: false });
        }
        let _one_at_a_time = self.shared.ejecting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if endpoint.state.is_ejected(now_ms) {
            return None;
        }
        let ejected = self.endpoints.iter().filter(|e| e.state.is_ejected(now_ms)).count();
        if ejected > 0 && (ejected + 1) * 100 > outlier.max_ejection_percent as usize * self.endpoints.len() {
            counters.overflow.fetch_add(1, Relaxed);
            return None;
        }
        let record = &endpoint.state.record;
        // It begins anew after that, however near the other counts were.
        for in_a_row in [&record.in_a_row_5xx, &record.in_a_row_gateway, &record.in_a_row_local] {
            reset(in_a_row);
        }
        let times = times_with_another(outlier, record.times.load(Relaxed));
        record.times.store(times, Relaxed);
        let for_ms = ejection_ms(outlier, times, random as u32);
        endpoint.state.eject(now_ms, for_ms);
        counters.enforced[reason as usize].fetch_add(1, Relaxed);
        Some(Ejection { address, reason, until_ms: now_ms + for_ms, enforced: true })
    }
}

fn without_detection(endpoint: &EndpointState, seen: Seen, now_ms: u64) -> Option<Ejection> {
    let (ejected, reason) = match seen {
        Seen::Status(_) => {
            endpoint.report_success();
            return None;
        }
        Seen::ConnectFailed => (endpoint.report_refused(now_ms), Reason::Refused),
        Seen::Reset => (endpoint.report_failure(now_ms), Reason::Failures),
        // A slow answer to one request is no verdict on the endpoint; but one that never answers has more of them.
        Seen::TimedOut => (endpoint.report_failure(now_ms), Reason::Failures),
    };
    let ejection =
        Ejection { address: endpoint.address, reason, until_ms: endpoint.ejected_until_ms(), enforced: true };
    ejected.then_some(ejection)
}

/// Counts what comes in a row, and says which count is full.
fn in_a_row(outlier: &Outlier, record: &Record, seen: Seen) -> Option<Reason> {
    let status = match seen {
        Seen::Status(status) => {
            // It can be reached.
            reset(&record.in_a_row_local);
            status
        }
        _ if outlier.split_external_local_origin_errors => {
            let full = count(&record.in_a_row_local, outlier.consecutive_local_origin_failure);
            return full.then_some(Reason::ConsecutiveLocalOriginFailure);
        }
        Seen::ConnectFailed | Seen::Reset => 503,
        Seen::TimedOut => 504,
    };
    if status < 500 {
        reset(&record.in_a_row_5xx);
        reset(&record.in_a_row_gateway);
        return None;
    }
    let gateway = if (502..=504).contains(&status) {
        count(&record.in_a_row_gateway, outlier.consecutive_gateway_failure)
    } else {
        reset(&record.in_a_row_gateway);
        false
    };
    let any = count(&record.in_a_row_5xx, outlier.consecutive_5xx);
    match (gateway, any) {
        (_, true) if outlier.enforcing_consecutive_5xx > 0 || !gateway => Some(Reason::Consecutive5xx),
        (true, _) => Some(Reason::ConsecutiveGatewayFailure),
        (false, _) => None,
    }
}

/// Written only when there is something to forget.
fn reset(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

/// One more; says whether that is as many as it takes, and then begins anew. 0 never is.
fn count(counter: &AtomicU32, enough: u32) -> bool {
    let full = enough > 0 && counter.fetch_add(1, Relaxed) + 1 >= enough;
    if full {
        counter.store(0, Relaxed);
    }
    full
}

/// In percent.
fn enforcing(outlier: &Outlier, reason: Reason) -> u32 {
    match reason {
        Reason::Consecutive5xx => outlier.enforcing_consecutive_5xx,
        Reason::ConsecutiveGatewayFailure => outlier.enforcing_consecutive_gateway_failure,
        Reason::ConsecutiveLocalOriginFailure => outlier.enforcing_consecutive_local_origin_failure,
        Reason::SuccessRate => outlier.enforcing_success_rate,
        Reason::FailurePercentage => outlier.enforcing_failure_percentage,
        Reason::Refused | Reason::Failures => 100,
    }
}

/// How often it was ejected, with this time; no more than it takes to reach the longest time, so that an endpoint that was
/// bad for long is forgiven as soon as others.
fn times_with_another(outlier: &Outlier, times: u32) -> u32 {
    let enough = outlier.base_ejection_time.saturating_mul(times) >= outlier.max_ejection_time;
    if enough && times > 0 { times } else { times + 1 }
}

/// The base time as often as it was ejected, up to the longest time, and a random addition.
fn ejection_ms(outlier: &Outlier, times: u32, random: u32) -> u64 {
    let base = outlier.base_ejection_time.as_millis() as u64;
    let longest = (outlier.max_ejection_time.as_millis() as u64).max(base);
    let jitter = outlier.max_ejection_time_jitter.as_millis() as u64;
    base.saturating_mul(u64::from(times)).min(longest) + ((jitter * u64::from(random)) >> 32)
}

type Rated<'p> = (&'p CompiledEndpoint, u32, f64);

/// Whose rate of successes is further below the mean than so many standard deviations.
fn below_the_others<'p>(outlier: &Outlier, rates: &[Rated<'p>]) -> Vec<&'p CompiledEndpoint> {
    let enough = |requests: u32| requests >= outlier.success_rate_request_volume;
    let counted = || rates.iter().filter(|(_, requests, _)| enough(*requests));
    let n = counted().count();
    if n == 0 || n < outlier.success_rate_minimum_hosts as usize {
        return Vec::new();
    }
    let mean = counted().map(|(.., rate)| rate).sum::<f64>() / n as f64;
    let variance = counted().map(|(.., rate)| (rate - mean).powi(2)).sum::<f64>() / n as f64;
    let limit = mean - variance.sqrt() * f64::from(outlier.success_rate_stdev_factor) / 1000.0;
    counted().filter(|(.., rate)| *rate < limit).map(|(endpoint, ..)| *endpoint).collect()
}

fn failing_too_often<'p>(outlier: &Outlier, rates: &[Rated<'p>]) -> Vec<&'p CompiledEndpoint> {
    let enough = |requests: u32| requests >= outlier.failure_percentage_request_volume;
    let counted = || rates.iter().filter(|(_, requests, _)| enough(*requests));
    if counted().count() < outlier.failure_percentage_minimum_hosts as usize {
        return Vec::new();
    }
    let limit = f64::from(outlier.failure_percentage_threshold) / 100.0;
    counted().filter(|(.., rate)| 1.0 - rate >= limit).map(|(endpoint, ..)| *endpoint).collect()
}

#[cfg(test)]
mod tests;
