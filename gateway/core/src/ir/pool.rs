//! Pools: endpoints behind one name, how one of them is chosen, and what protects them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{EndpointTls, PoolKey, PoolTls};

/// Endpoints behind one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its key.
    pub key: PoolKey,
    /// Where the endpoints come from.
    pub endpoints: Endpoints,
    /// The protocol spoken to them.
    pub protocol: Protocol,
    /// How one is chosen.
    pub balance: Balance,
    /// How localities, priorities and the state of endpoints bear on the choice.
    pub spread: Spread,
    /// Active checks.
    pub health: Option<Arc<HealthCheck>>,
    /// Ejection of endpoints by the outcome of requests.
    pub outlier: Option<Arc<Outlier>>,
    /// Limits and times.
    pub limits: PoolLimits,
    /// Istio's labels for the destination in metrics.
    pub service: ServiceIdentity,
    /// TLS towards its endpoints.
    pub tls: Option<Arc<PoolTls>>,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Endpoints {
    /// Given.
    Static(Vec<Endpoint>),
    /// Looked up again and again, beside those that are given; the source fills them in at run time.
    Dns {
        /// Given.
        fixed: Vec<Endpoint>,
        /// To look up.
        names: Vec<DnsName>,
    },
}

/// A name to look up.
#[derive(Clone, Debug, PartialEq)]
pub struct DnsName {
    /// The name.
    pub host: Arc<str>,
    /// How often, at the least, it is looked up again.
    pub refresh: Duration,
    /// What each of its addresses is, but for the address itself, whose port alone counts.
    pub endpoint: Endpoint,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// Its weight; never 0.
    pub weight: u32,
    /// Where it stands.
    pub locality: Option<Arc<Locality>>,
    /// 0 is used first, others as those before them fail (Envoy: `priority` of `LocalityLbEndpoints`).
    pub priority: u32,
    /// No new requests; those in flight finish (an operator's drain, or a terminating pod).
    pub draining: bool,
    /// Used when those that are not degraded do not suffice.
    pub degraded: bool,
    /// The workload behind it, for metrics, if known.
    pub workload: Option<Arc<str>>,
    /// What hashing balancers know it by; its address without one (Envoy: hostname, or `hash_key` metadata).
    pub hash_key: Option<Arc<str>>,
    /// Its part in the pool's TLS.
    pub tls: EndpointTls,
}

impl Endpoint {
    /// One of weight 1, of which nothing else is known.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            locality: None,
            priority: 0,
            draining: false,
            degraded: false,
            workload: None,
            hash_key: None,
            tls: EndpointTls::AsPool,
        }
    }

    /// Its zone.
    pub fn zone(&self) -> Option<&str> {
        self.locality.as_deref().map(|l| &*l.zone).filter(|z| !z.is_empty())
    }
}

/// Where something stands; unknown parts are empty. `region/zone/subzone`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    /// `eu-west-1`
    pub region: Arc<str>,
    /// `eu-west-1a`
    pub zone: Arc<str>,
    /// A rack, a rank.
    pub subzone: Arc<str>,
}

impl Locality {
    /// Of `region/zone/subzone`, of which the later parts may be missing.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(Arc::from);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Only a zone is known.
    pub fn of_zone(zone: &str) -> Self {
        Self { zone: zone.into(), ..Self::default() }
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.subzone);
        f.write_str(text.trim_end_matches('/'))
    }
}

/// The protocol spoken to a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// As the client: HTTP/2 for an HTTP/2 client, else HTTP/1.1.
    Auto,
}

/// How an endpoint is chosen among those that may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The least busy of `choices` random ones, by requests in flight.
    LeastRequest {
        /// 2 at the least.
        choices: u32,
        /// How much requests in flight weigh against weights, in hundredths: 100 halves the share of an endpoint with
        /// twice the load, 0 looks at weights only (Envoy: `active_request_bias`).
        bias: u32,
    },
    /// In turn, smoothly by weight.
    RoundRobin,
    /// By chance.
    Random,
    /// By expected latency: the better of two random ones by the peak-sensitive moving average of response times and
    /// requests in flight.
    PeakEwma {
        /// How long a peak is remembered.
        decay: Duration,
    },
    /// By a hash of the request on a ring of hashes of endpoints.
    RingHash {
        /// Which function places endpoints on the ring.
        function: HashFunction,
        /// Entries of the ring at least (Envoy: 1024).
        min_size: u32,
        /// Entries of the ring at most (Envoy: 8,388,608).
        max_size: u32,
        /// Of what of the request.
        by: Arc<HashBy>,
    },
    /// By a hash of the request in a table filled as the Maglev paper says.
    Maglev {
        /// A prime (Envoy: 65537).
        table_size: u32,
        /// Of what of the request.
        by: Arc<HashBy>,
    },
}

impl Default for Balance {
    fn default() -> Self {
        Self::LeastRequest { choices: 2, bias: 100 }
    }
}

impl Balance {
    /// Of what of a request the choice is a hash, if it is one.
    pub fn hash_by(&self) -> Option<&Arc<HashBy>> {
        match self {
            Self::RingHash { by, .. } | Self::Maglev { by, .. } => Some(by),
            _ => None,
        }
    }
}

/// Places endpoints on a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HashFunction {
    /// xxHash64, seed 0.
    #[default]
    XxHash,
    /// MurmurHash2, as libstdc++ has it (Envoy: `MURMUR_HASH_2`).
    Murmur2,
}

/// What of a request is hashed (Envoy: `hash_policy` of a route).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashBy {
    /// The hashes of all that are there are combined; a terminal one that is there ends the list.
    pub sources: Vec<HashSource>,
    /// An endpoint takes no more than so many hundredths of the mean load, else the next on the ring has it; 0 is no
    /// bound (Envoy: `hash_balance_factor`).
    pub balance_factor: u32,
}

/// One thing to hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashSource {
    /// What.
    pub kind: HashKind,
    /// If it is there, the rest of the list is not looked at.
    pub terminal: bool,
}

/// What to hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// A header's value; name in lower case.
    Header(Arc<str>),
    /// A cookie's value.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// With a time, the gateway sets one where it is missing; zero makes it a session cookie.
        ttl: Option<Duration>,
        /// `Path` of one that the gateway sets.
        path: Arc<str>,
    },
    /// The client's address, without its port.
    Source,
    /// A query parameter's value.
    Query(Arc<str>),
}

/// How localities, priorities and the state of endpoints bear on the choice. The defaults are Envoy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// A priority gets its whole share as long as its healthy endpoints, times this many hundredths, are all of them.
    pub overprovisioning: u32,
    /// Below this percentage of healthy endpoints health is ignored; 0 never does.
    pub panic_threshold: u32,
    /// In panic the request is refused in place of sent to an endpoint that is not healthy.
    pub fail_in_panic: bool,
    /// How a priority's share is divided among localities.
    pub localities: Localities,
    /// Endpoints that are new or back get their full share step by step.
    pub slow_start: Option<SlowStart>,
}

impl Default for Spread {
    fn default() -> Self {
        Self {
            overprovisioning: 140,
            panic_threshold: 50,
            fail_in_panic: false,
            localities: Localities::Ignored,
            slow_start: None,
        }
    }
}

/// How a priority's share is divided among localities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Localities {
    /// All endpoints of a priority are alike.
    #[default]
    Ignored,
    /// By weight; a locality of which nothing is said gets nothing. The weight falls with the locality's health, as that
    /// of priorities does.
    Weighted(Vec<(Locality, u32)>),
    /// Those in the gateway's own zone are preferred, as far as they suffice (Envoy: zone-aware routing).
    ZoneAware {
        /// Where the gateway stands.
        own: Locality,
        /// Below so many endpoints localities are ignored (Envoy: `min_cluster_size`, 6).
        min_endpoints: u32,
        /// So many percent of requests prefer their zone.
        enabled: u32,
    },
}

/// Slow start (Envoy: `SlowStartConfig`): the weight is times `max(min_weight, (t / window)^(1 / aggression))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long.
    pub window: Duration,
    /// In hundredths; 100 is linear.
    pub aggression: u32,
    /// Percent of the weight to begin with.
    pub min_weight: u32,
}

/// An active check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// From the end of one to the start of the next.
    pub interval: Duration,
    /// Largest random addition to the interval.
    pub jitter: Duration,
    /// Bound of one check.
    pub timeout: Duration,
    /// Successes in a row to become healthy.
    pub healthy: u32,
    /// Failures in a row to become unhealthy.
    pub unhealthy: u32,
    /// Asked on this port in place of the endpoint's.
    pub port: Option<u16>,
    /// TLS, if the check is made over it.
    pub tls: Option<Arc<HealthTls>>,
    /// What is checked.
    pub kind: HealthKind,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            jitter: Duration::from_millis(500),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
            port: None,
            tls: None,
            kind: HealthKind::Tcp,
        }
    }
}

/// TLS of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthTls {
    /// The name asked for; `None` is the endpoint's address.
    pub server_name: Option<Arc<str>>,
    /// Certificates are checked against these authorities in PEM; `None`: any certificate will do, for it says nothing of
    /// health.
    pub ca_pem: Option<Arc<[u8]>>,
}

/// What a check does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HealthKind {
    /// A TCP connection opens.
    #[default]
    Tcp,
    /// A request is answered with an expected status. `x-envoy-degraded` in the answer makes the endpoint degraded.
    Http {
        /// The method.
        method: Arc<str>,
        /// The path.
        path: Arc<str>,
        /// The Host; `None` is the endpoint's address.
        host: Option<Arc<str>>,
        /// Inclusive ranges of statuses.
        expected: Vec<(u16, u16)>,
    },
    /// `grpc.health.v1.Health/Check` is answered with SERVING.
    Grpc {
        /// The service; empty is the server as a whole.
        service: Arc<str>,
        /// `:authority`; `None` is the endpoint's address.
        authority: Option<Arc<str>>,
    },
}

/// Ejection of endpoints by the outcome of their requests (Envoy: `OutlierDetection`, with its names and defaults).
/// Enforcement is in percent; a verdict that is not enforced is counted only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// 5xx in a row; 5.
    pub consecutive_5xx: u32,
    /// 100.
    pub enforcing_consecutive_5xx: u32,
    /// 502, 503, 504 in a row; 5.
    pub consecutive_gateway_failure: u32,
    /// 0 in Envoy.
    pub enforcing_consecutive_gateway_failure: u32,
    /// Whether failures of our side (connect, timeout, reset) are told apart from responses; if not they count as 5xx.
    pub split_external_local_origin_errors: bool,
    /// In a row; 5.
    pub consecutive_local_origin_failure: u32,
    /// 100.
    pub enforcing_consecutive_local_origin_failure: u32,
    /// Between looks at rates; 10 s.
    pub interval: Duration,
    /// Times how often it was ejected; 30 s.
    pub base_ejection_time: Duration,
    /// The longest; 300 s.
    pub max_ejection_time: Duration,
    /// A random addition; 0.
    pub max_ejection_time_jitter: Duration,
    /// Of the pool's endpoints; 10. One may always be ejected.
    pub max_ejection_percent: u32,
    /// Endpoints with enough requests needed to compare success rates; 5.
    pub success_rate_minimum_hosts: u32,
    /// Requests in an interval needed to count; 100.
    pub success_rate_request_volume: u32,
    /// How far below the mean is too far, in thousandths of the standard deviation; 1900.
    pub success_rate_stdev_factor: u32,
    /// 100.
    pub enforcing_success_rate: u32,
    /// Percent of failures that are too many; 85.
    pub failure_percentage_threshold: u32,
    /// 5.
    pub failure_percentage_minimum_hosts: u32,
    /// 50.
    pub failure_percentage_request_volume: u32,
    /// 0.
    pub enforcing_failure_percentage: u32,
    /// A check that passes ends an ejection; true (Envoy: `successful_active_health_check_uneject_host`).
    pub check_ends_ejection: bool,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            enforcing_consecutive_5xx: 100,
            consecutive_gateway_failure: 5,
            enforcing_consecutive_gateway_failure: 0,
            split_external_local_origin_errors: false,
            consecutive_local_origin_failure: 5,
            enforcing_consecutive_local_origin_failure: 100,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_mins(5),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
            enforcing_success_rate: 100,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
            enforcing_failure_percentage: 0,
            check_ends_ejection: true,
        }
    }
}

/// Limits and times of a pool. Zero durations mean "no limit", `u32::MAX` too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Until a connection is open.
    pub connect_timeout: Duration,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How long a connection is used at all.
    pub max_connection_duration: Duration,
    /// Connections per endpoint, over all workers.
    pub max_connections: u32,
    /// Connections to the pool, over all workers (Envoy: circuit breaker `max_connections`).
    pub max_pool_connections: u32,
    /// Requests that wait for a connection, over all workers (Envoy: `max_pending_requests`, 1024).
    pub max_pending: u32,
    /// Requests in flight, over all workers (Envoy: `max_requests`).
    pub max_requests: u32,
    /// Requests in flight per endpoint and worker.
    pub max_requests_per_endpoint: u32,
    /// Retries in flight, over all workers (Envoy: `max_retries`).
    pub max_retries: u32,
    /// Requests per connection, after which it is closed.
    pub max_requests_per_connection: u32,
    /// How long a request may wait where the pool is saturated; `None` is the connect timeout.
    pub queue_timeout: Option<Duration>,
    /// What keeps retries from making things worse.
    pub retry_budget: RetryBudget,
    /// Finds the concurrency at which the pool's latency begins to rise, and refuses what goes beyond.
    pub adaptive: Option<Arc<AdaptiveConcurrency>>,
    /// Refuses some requests while the pool fails.
    pub admission: Option<Arc<Admission>>,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(1),
            max_connection_duration: Duration::ZERO,
            max_connections: u32::MAX,
            max_pool_connections: u32::MAX,
            max_pending: 1024,
            max_requests: u32::MAX,
            max_requests_per_endpoint: u32::MAX,
            max_retries: u32::MAX,
            max_requests_per_connection: u32::MAX,
            queue_timeout: None,
            retry_budget: RetryBudget::default(),
            adaptive: None,
            admission: None,
        }
    }
}

/// Of a pool's requests in flight on a worker, no more than `percent` may be retries, but `min` always (Envoy:
/// `RetryBudget`, 20 % and 3). 100 percent is no budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of requests in flight.
    pub percent: u32,
    /// Retries in flight that are always allowed.
    pub min: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min: 3 }
    }
}

/// Adaptive concurrency (Envoy: the gradient controller), per worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdaptiveConcurrency {
    /// Between looks at the latency; 100 ms.
    pub update_interval: Duration,
    /// The percentile looked at, in percent; 50.
    pub percentile: u32,
    /// Between measurements of the latency without load; 60 s.
    pub min_rtt_interval: Duration,
    /// Requests in a measurement; 50.
    pub min_rtt_requests: u32,
    /// Concurrency during a measurement; 3.
    pub min_concurrency: u32,
    /// The largest limit; 1000.
    pub max_concurrency: u32,
    /// Percent by which latency may rise above the one without load; 25.
    pub buffer_percent: u32,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self {
            update_interval: Duration::from_millis(100),
            percentile: 50,
            min_rtt_interval: Duration::from_mins(1),
            min_rtt_requests: 50,
            min_concurrency: 3,
            max_concurrency: 1000,
            buffer_percent: 25,
        }
    }
}

/// Admission control (Envoy: `AdmissionControl`), per worker: while fewer requests than `threshold` succeed, new ones
/// are refused with probability `((n - successes / threshold) / (n + 1))^(1 / aggression)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// How far back it looks; 30 s.
    pub window: Duration,
    /// In percent; 95.
    pub threshold: u32,
    /// In hundredths; 100.
    pub aggression: u32,
    /// Requests per second and worker below which all are admitted; 0.
    pub min_rate: u32,
    /// The largest share that is refused, in percent; 80.
    pub max_rejection: u32,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            threshold: 95,
            aggression: 100,
            min_rate: 0,
            max_rejection: 80,
        }
    }
}

/// The destination as Istio's standard metrics name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceIdentity {
    /// `destination_service`: `shop.default.svc.cluster.local`.
    pub host: Arc<str>,
    /// `destination_service_name`.
    pub name: Arc<str>,
    /// `destination_service_namespace`.
    pub namespace: Arc<str>,
    /// `destination_workload`, `unknown` if not known.
    pub workload: Arc<str>,
    /// `destination_app`.
    pub app: Arc<str>,
    /// `destination_version`.
    pub version: Arc<str>,
}

impl Default for ServiceIdentity {
    fn default() -> Self {
        let unknown: Arc<str> = "unknown".into();
        Self {
            host: unknown.clone(),
            name: unknown.clone(),
            namespace: unknown.clone(),
            workload: unknown.clone(),
            app: unknown.clone(),
            version: unknown,
        }
    }
}

impl Pool {
    /// A pool of these endpoints with every default.
    pub fn of(key: PoolKey, endpoints: Endpoints) -> Self {
        Self {
            key,
            endpoints,
            protocol: Protocol::default(),
            balance: Balance::default(),
            spread: Spread::default(),
            health: None,
            outlier: None,
            limits: PoolLimits::default(),
            service: ServiceIdentity::default(),
            tls: None,
        }
    }
}
