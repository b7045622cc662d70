//! What shapes the traffic to a `Pool`, as it is written: balancing, ejection, limits. Names are Envoy's.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::duration::Duration;
use super::number::Hundredths;

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancing {
    /// The policy.
    pub policy: Option<LoadBalancingPolicy>,
    /// Of policy `leastRequest`.
    pub least_request: Option<LeastRequest>,
    /// Of policy `peakEwma`.
    pub peak_ewma: Option<PeakEwma>,
    /// Of policy `ringHash`.
    pub ring_hash: Option<RingHash>,
    /// Of policy `maglev`.
    pub maglev: Option<Maglev>,
    /// What of a request is hashed by policies `ringHash` and `maglev`.
    pub hash: Option<Vec<HashSource>>,
    /// An endpoint takes no more than this percentage of the mean load; policies `ringHash` and `maglev`.
    pub balance_factor: Option<u32>,
    /// New endpoints get their share step by step.
    pub slow_start: Option<SlowStart>,
    /// Below this percentage of healthy endpoints health is ignored; 50.
    pub panic_threshold: Option<u32>,
    /// Below it requests are refused instead.
    pub fail_in_panic: Option<bool>,
    /// A priority keeps its whole share while its healthy endpoints, times this percentage, are all of them; 140.
    pub overprovisioning_factor: Option<u32>,
    /// Localities by weight.
    pub localities: Option<LocalityWeights>,
    /// The gateway's own zone first.
    pub zone_aware: Option<ZoneAware>,
}

/// The policies; each is weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancingPolicy {
    /// The least busy of some random ones.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The one that is expected to answer sooner.
    PeakEwma,
    /// By a hash on a ring.
    RingHash,
    /// By a hash in a table.
    Maglev,
}

/// Of policy `leastRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeastRequest {
    /// How many random ones are compared; 2.
    pub choices: Option<u32>,
    /// How much requests in flight weigh against weights; 1.
    pub active_request_bias: Option<Hundredths>,
}

/// Of policy `peakEwma`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct PeakEwma {
    /// How long a peak is remembered; 10s.
    pub decay: Option<Duration>,
}

/// Of policy `ringHash`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// `xxHash` without it.
    pub hash_function: HashFunction,
    /// Entries at least; 1024.
    pub minimum_ring_size: Option<u32>,
    /// Entries at most; 8388608.
    pub maximum_ring_size: Option<u32>,
}

/// The functions that place endpoints on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashFunction {
    /// xxHash64.
    #[default]
    XxHash,
    /// MurmurHash2.
    MurmurHash2,
}

/// Of policy `maglev`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// A prime; 65537.
    pub table_size: Option<u32>,
}

/// One thing to hash. Exactly one of the four is set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct HashSource {
    /// The value of a header of that name.
    pub header: Option<String>,
    /// A cookie's value.
    pub cookie: Option<HashCookie>,
    /// The client's address.
    pub source: Option<HashClient>,
    /// The value of a query parameter of that name.
    pub query: Option<String>,
    /// If it is there, the rest of the list is not looked at.
    pub terminal: bool,
}

/// A cookie to hash.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// With it the gateway sets the cookie where it is missing; `0s` for the browser's session.
    pub ttl: Option<Duration>,
    /// The Path of a cookie that the gateway sets; `/`.
    pub path: Option<String>,
}

/// The client's address, as a thing to hash.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct HashClient {}

/// Slow start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// How long it takes.
    pub window: Duration,
    /// 1 is linear; more is faster at the beginning.
    pub aggression: Option<Hundredths>,
    /// Percent of the weight to begin with; 10.
    pub min_weight_percent: Option<u32>,
}

/// Localities by weight.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LocalityWeights {
    /// By `region/zone/subzone`. One that is not there gets nothing.
    pub weights: BTreeMap<String, u32>,
}

/// Zone-aware routing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneAware {
    /// Below so many endpoints zones are ignored; 6.
    pub min_endpoints: Option<u32>,
    /// So many percent of requests prefer their zone; 100.
    pub percent: Option<u32>,
}

/// When endpoints are ejected; fields and defaults are those of Envoy's `OutlierDetection`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct OutlierDetection {
    pub consecutive_5xx: Option<u32>,
    pub enforcing_consecutive_5xx: Option<u32>,
    pub consecutive_gateway_failure: Option<u32>,
    pub enforcing_consecutive_gateway_failure: Option<u32>,
    pub split_external_local_origin_errors: Option<bool>,
    pub consecutive_local_origin_failure: Option<u32>,
    pub enforcing_consecutive_local_origin_failure: Option<u32>,
    pub interval: Option<Duration>,
    pub base_ejection_time: Option<Duration>,
    pub max_ejection_time: Option<Duration>,
    pub max_ejection_time_jitter: Option<Duration>,
    pub max_ejection_percent: Option<u32>,
    pub success_rate_minimum_hosts: Option<u32>,
    pub success_rate_request_volume: Option<u32>,
    pub success_rate_stdev_factor: Option<u32>,
    pub enforcing_success_rate: Option<u32>,
    pub failure_percentage_threshold: Option<u32>,
    pub failure_percentage_minimum_hosts: Option<u32>,
    pub failure_percentage_request_volume: Option<u32>,
    pub enforcing_failure_percentage: Option<u32>,
    /// Whether a check that passes ends an ejection; true.
    pub successful_active_health_check_uneject_host: Option<bool>,
}

/// Limits of a pool as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Open connections.
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection; 1024.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests in flight per endpoint and worker.
    pub max_requests_per_endpoint: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// Requests after which a connection is closed.
    pub max_requests_per_connection: Option<u32>,
    /// How long a connection is used.
    pub max_connection_duration: Option<Duration>,
    /// How long a request may wait for a connection.
    pub queue_timeout: Option<Duration>,
    /// How many retries there may be.
    pub retry_budget: Option<RetryBudget>,
    /// Finds the limit of requests in flight by itself.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// Refuses some requests while many fail.
    pub admission_control: Option<AdmissionControl>,
}

/// How many retries there may be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Of requests in flight; 20. 100 is no budget.
    pub percent: Option<u32>,
    /// Retries that are always allowed; 3.
    pub min_retry_concurrency: Option<u32>,
}

/// Adaptive concurrency.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdaptiveConcurrency {
    /// Between looks at the latency; 100ms.
    pub update_interval: Option<Duration>,
    /// The percentile looked at; 50.
    pub percentile: Option<u32>,
    /// Between measurements without load; 60s.
    pub min_rtt_interval: Option<Duration>,
    /// Requests of a measurement; 50.
    pub min_rtt_requests: Option<u32>,
    /// Requests in flight during one; 3.
    pub min_concurrency: Option<u32>,
    /// The largest limit; 1000.
    pub max_concurrency: Option<u32>,
    /// Percent by which the latency may rise; 25.
    pub buffer_percent: Option<u32>,
}

/// Admission control.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdmissionControl {
    /// How far back it looks; 30s.
    pub window: Option<Duration>,
    /// Percent of successes below which it refuses; 95.
    pub success_threshold: Option<u32>,
    /// More refuses sooner; 1.
    pub aggression: Option<Hundredths>,
    /// Requests per second below which none is refused; 0.
    pub min_request_rate: Option<u32>,
    /// The largest share that is refused, in percent; 80.
    pub max_rejection_percent: Option<u32>,
}
