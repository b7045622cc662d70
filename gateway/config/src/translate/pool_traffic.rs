//! What shapes the traffic to a `Pool` to IR: balancing, localities, ejection, limits.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    self, AdaptiveConcurrency, Admission, Balance, HashBy, HashKind, HashSource, Localities, Locality,
    Outlier, Pool, PoolLimits, RetryBudget, SlowStart, Spread,
};

use crate::kinds::duration::Duration as Written;
use crate::kinds::number::Hundredths;
use crate::kinds::pool::PoolSpec;
use crate::kinds::pool_traffic::{
    AdaptiveConcurrency as AdaptiveSpec, AdmissionControl, HashFunction, HashSource as HashSpec, Limits,
    LoadBalancing, LoadBalancingPolicy as Policy, OutlierDetection,
};

/// Takes a warning: field, message, hint.
pub(crate) type Warn<'w> = dyn FnMut(&str, &str, &str) + 'w;

/// Envoy's and ours, where the IR has no defaults of its own.
pub(crate) const RING_MIN: u32 = 1024;
pub(crate) const RING_MAX: u32 = 8 * 1024 * 1024;
pub(crate) const TABLE: u32 = 65_537;
const DECAY: Duration = Duration::from_secs(10);

/// Puts on a pool what is written; what is not written stays as the pool has it.
pub(crate) fn apply(spec: &PoolSpec, pool: &mut Pool, own: Option<&Locality>, warn: &mut Warn<'_>) {
    if let Some(balance) = balance(&spec.load_balancing) {
        pool.balance = balance;
    }
    spread(&spec.load_balancing, &mut pool.spread, own, warn);
    if let Some(outlier) = &spec.outlier_detection {
        pool.outlier = Some(Arc::new(outlier_of(outlier)));
    }
    let limits = &mut pool.limits;
    set_time(&mut limits.connect_timeout, spec.connect_timeout);
    set_time(&mut limits.idle_timeout, spec.idle_timeout);
    set(&mut limits.max_connections, spec.max_connections_per_endpoint);
    if let Some(spec) = &spec.limits {
        apply_limits(spec, limits);
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn set_time(field: &mut Duration, value: Option<Written>) {
    set(field, value.map(|d| d.0));
}

fn hundredths(value: Option<Hundredths>) -> u32 {
    value.map_or(100, |h| h.0)
}

fn balance(spec: &LoadBalancing) -> Option<Balance> {
    let policy = match spec.policy {
        None if spec.least_request.is_none() => return None,
        policy => policy.unwrap_or_default(),
    };
    Some(match policy {
        Policy::LeastRequest => {
            let least = spec.least_request.clone().unwrap_or_default();
            let (choices, bias) = (least.choices.unwrap_or(2), hundredths(least.active_request_bias));
            Balance::LeastRequest { choices, bias }
        }
        Policy::RoundRobin => Balance::RoundRobin,
        Policy::Random => Balance::Random,
        Policy::PeakEwma => {
            let decay = spec.peak_ewma.as_ref().and_then(|e| e.decay);
            Balance::PeakEwma { decay: decay.map_or(DECAY, |d| d.0) }
        }
        Policy::RingHash => {
            let ring = spec.ring_hash.clone().unwrap_or_default();
            let max_size = ring.maximum_ring_size.unwrap_or(RING_MAX);
            Balance::RingHash {
                function: match ring.hash_function {
                    HashFunction::XxHash => ir::HashFunction::XxHash,
                    HashFunction::MurmurHash2 => ir::HashFunction::Murmur2,
                },
                min_size: ring.minimum_ring_size.unwrap_or(RING_MIN.min(max_size)),
                max_size,
                by: Arc::new(hash_by(spec)),
            }
        }
        Policy::Maglev => {
            let table_size = spec.maglev.as_ref().and_then(|m| m.table_size).unwrap_or(TABLE);
            Balance::Maglev { table_size, by: Arc::new(hash_by(spec)) }
        }
    })
}

fn hash_by(spec: &LoadBalancing) -> HashBy {
    let sources = spec.hash.iter().flatten().filter_map(hash_source).collect();
    HashBy { sources, balance_factor: spec.balance_factor.unwrap_or(0) }
}

fn hash_source(spec: &HashSpec) -> Option<HashSource> {
    let kind = if let Some(header) = &spec.header {
        HashKind::Header(header.to_ascii_lowercase().into())
    } else if let Some(cookie) = &spec.cookie {
        HashKind::Cookie {
            name: cookie.name.as_str().into(),
            ttl: cookie.ttl.map(|d| d.0),
            path: cookie.path.as_deref().unwrap_or("/").into(),
        }
    } else if let Some(query) = &spec.query {
        HashKind::Query(query.as_str().into())
    } else {
        spec.source.as_ref()?;
        HashKind::Source
    };
    Some(HashSource { kind, terminal: spec.terminal })
}

fn spread(spec: &LoadBalancing, spread: &mut Spread, own: Option<&Locality>, warn: &mut Warn<'_>) {
    set(&mut spread.overprovisioning, spec.overprovisioning_factor);
    set(&mut spread.panic_threshold, spec.panic_threshold);
    set(&mut spread.fail_in_panic, spec.fail_in_panic);
    if let Some(slow) = &spec.slow_start {
        spread.slow_start = Some(SlowStart {
            window: slow.window.0,
            aggression: hundredths(slow.aggression),
            min_weight: slow.min_weight_percent.unwrap_or(10),
        });
    }
    if let Some(localities) = &spec.localities {
        let weights = localities.weights.iter().map(|(name, weight)| (Locality::parse(name), *weight));
        spread.localities = Localities::Weighted(weights.collect());
    }
    let Some(zone) = &spec.zone_aware else { return };
    match own {
        Some(own) => {
            spread.localities = Localities::ZoneAware {
                own: own.clone(),
                min_endpoints: zone.min_endpoints.unwrap_or(6),
                enabled: zone.percent.unwrap_or(100),
            };
        }
        None => warn(
            "spec.loadBalancing.zoneAware",
            "the gateway does not know where it stands: this field has no effect",
            "start it with --locality region/zone",
        ),
    }
}

fn outlier_of(spec: &OutlierDetection) -> Outlier {
    let mut o = Outlier::default();
    set(&mut o.consecutive_5xx, spec.consecutive_5xx);
    set(&mut o.enforcing_consecutive_5xx, spec.enforcing_consecutive_5xx);
    set(&mut o.consecutive_gateway_failure, spec.consecutive_gateway_failure);
    set(&mut o.enforcing_consecutive_gateway_failure, spec.enforcing_consecutive_gateway_failure);
    set(&mut o.split_external_local_origin_errors, spec.split_external_local_origin_errors);
    set(&mut o.consecutive_local_origin_failure, spec.consecutive_local_origin_failure);
    set(&mut o.enforcing_consecutive_local_origin_failure, spec.enforcing_consecutive_local_origin_failure);
    set_time(&mut o.interval, spec.interval);
    set_time(&mut o.base_ejection_time, spec.base_ejection_time);
    // Envoy: the longer of its default and the base.
    o.max_ejection_time = o.max_ejection_time.max(o.base_ejection_time);
    set_time(&mut o.max_ejection_time, spec.max_ejection_time);
    set_time(&mut o.max_ejection_time_jitter, spec.max_ejection_time_jitter);
    set(&mut o.max_ejection_percent, spec.max_ejection_percent);
    set(&mut o.success_rate_minimum_hosts, spec.success_rate_minimum_hosts);
    set(&mut o.success_rate_request_volume, spec.success_rate_request_volume);
    set(&mut o.success_rate_stdev_factor, spec.success_rate_stdev_factor);
    set(&mut o.enforcing_success_rate, spec.enforcing_success_rate);
    set(&mut o.failure_percentage_threshold, spec.failure_percentage_threshold);
    set(&mut o.failure_percentage_minimum_hosts, spec.failure_percentage_minimum_hosts);
    set(&mut o.failure_percentage_request_volume, spec.failure_percentage_request_volume);
    set(&mut o.enforcing_failure_percentage, spec.enforcing_failure_percentage);
    set(&mut o.check_ends_ejection, spec.successful_active_health_check_uneject_host);
    o
}

fn apply_limits(spec: &Limits, limits: &mut PoolLimits) {
    set(&mut limits.max_pool_connections, spec.max_connections);
    set(&mut limits.max_pending, spec.max_pending_requests);
    set(&mut limits.max_requests, spec.max_requests);
    set(&mut limits.max_requests_per_endpoint, spec.max_requests_per_endpoint);
    set(&mut limits.max_retries, spec.max_retries);
    set(&mut limits.max_requests_per_connection, spec.max_requests_per_connection);
    set_time(&mut limits.max_connection_duration, spec.max_connection_duration);
    if let Some(timeout) = spec.queue_timeout {
        limits.queue_timeout = Some(timeout.0);
    }
    if let Some(budget) = &spec.retry_budget {
        let default = RetryBudget::default();
        limits.retry_budget = RetryBudget {
            percent: budget.percent.unwrap_or(default.percent),
            min: budget.min_retry_concurrency.unwrap_or(default.min),
        };
    }
    if let Some(adaptive) = &spec.adaptive_concurrency {
        limits.adaptive = Some(Arc::new(adaptive_of(adaptive)));
    }
    if let Some(admission) = &spec.admission_control {
        limits.admission = Some(Arc::new(admission_of(admission)));
    }
}

fn adaptive_of(spec: &AdaptiveSpec) -> AdaptiveConcurrency {
    let mut a = AdaptiveConcurrency::default();
    set_time(&mut a.update_interval, spec.update_interval);
    set(&mut a.percentile, spec.percentile);
    set_time(&mut a.min_rtt_interval, spec.min_rtt_interval);
    set(&mut a.min_rtt_requests, spec.min_rtt_requests);
    set(&mut a.min_concurrency, spec.min_concurrency);
    set(&mut a.max_concurrency, spec.max_concurrency);
    set(&mut a.buffer_percent, spec.buffer_percent);
    a
}

fn admission_of(spec: &AdmissionControl) -> Admission {
    let mut a = Admission::default();
    set_time(&mut a.window, spec.window);
    set(&mut a.threshold, spec.success_threshold);
    set(&mut a.aggression, spec.aggression.map(|h| h.0));
    set(&mut a.min_rate, spec.min_request_rate);
    set(&mut a.max_rejection, spec.max_rejection_percent);
    a
}
