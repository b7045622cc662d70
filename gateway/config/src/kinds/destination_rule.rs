//! Istio's `DestinationRule`, as its API publishes it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::Checks;
use super::duration::GoDuration;
use super::number::Hundredths;
use super::pool_check::check_table_size;
use crate::diagnostic::reason;

/// What happens to the traffic for a host.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRuleSpec {
    /// The host; a short name is one of the rule's namespace.
    pub host: String,
    /// For all of it.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Parts of it, by the labels of endpoints.
    #[serde(default)]
    pub subsets: Vec<Subset>,
    /// The namespaces that see the rule.
    #[serde(default)]
    pub export_to: Vec<String>,
    /// The workloads that it is for; gateways have none.
    pub workload_selector: Option<Selector>,
}

/// The labels of workloads.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// All of them must be there.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// Settings of a host or subset.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and times.
    pub connection_pool: Option<ConnectionPool>,
    /// When endpoints are ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to endpoints.
    pub tls: Option<Tls>,
    /// In place of the above, for some ports.
    pub port_level_settings: Vec<PortSettings>,
    /// CONNECT.
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How many retries there may be.
    pub retry_budget: Option<RetryBudget>,
}

/// Settings of one port.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortSettings {
    /// Which.
    pub port: PortSelector,
    /// How an endpoint is chosen.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits and times.
    pub connection_pool: Option<ConnectionPool>,
    /// When endpoints are ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS to endpoints.
    pub tls: Option<Tls>,
}

/// A port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PortSelector {
    /// Its number.
    pub number: u32,
}

/// Endpoints with certain labels.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// All of them must be there.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Goes before the rule's.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// By one of the simple policies.
    pub simple: Option<Simple>,
    /// By a hash of the request.
    pub consistent_hash: Option<ConsistentHash>,
    /// By where endpoints stand.
    pub locality_lb_setting: Option<LocalitySetting>,
    /// The older form of `warmup`.
    pub warmup_duration_secs: Option<GoDuration>,
    /// New endpoints get their share step by step.
    pub warmup: Option<Warmup>,
}

/// The simple policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum Simple {
    Unspecified,
    LeastConn,
    Random,
    Passthrough,
    RoundRobin,
    LeastRequest,
}

/// A hash of the request.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// The value of this header.
    pub http_header_name: Option<String>,
    /// A cookie, which the gateway sets where it is missing.
    pub http_cookie: Option<HttpCookie>,
    /// The client's address.
    pub use_source_ip: Option<bool>,
    /// The value of this query parameter.
    pub http_query_parameter_name: Option<String>,
    /// On a ring.
    pub ring_hash: Option<RingHash>,
    /// In a table.
    pub maglev: Option<Maglev>,
    /// The older form of `ringHash`.
    pub minimum_ring_size: Option<u32>,
}

/// A cookie.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HttpCookie {
    /// Its name.
    pub name: String,
    /// Its Path.
    pub path: Option<String>,
    /// How long it lives; `0s` for the browser's session.
    pub ttl: Option<GoDuration>,
}

/// A ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RingHash {
    /// Entries at least; 1024.
    pub minimum_ring_size: Option<u32>,
}

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Maglev {
    /// A prime; 65537.
    pub table_size: Option<u32>,
}

/// By where endpoints stand. At most one of `distribute`, `failover` and `failoverPriority` is set, but for the last two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalitySetting {
    /// Shares of localities.
    pub distribute: Vec<Distribute>,
    /// Which region is next.
    pub failover: Vec<Failover>,
    /// Labels in the order of their weight.
    pub failover_priority: Vec<String>,
    /// Whether any of it counts.
    pub enabled: Option<bool>,
}

/// Shares of localities, for clients of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Distribute {
    /// Where the client stands: `region/zone/subzone`, with `*`.
    pub from: String,
    /// Percent by locality.
    pub to: BTreeMap<String, u32>,
}

/// The region that is next.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Failover {
    /// Where the client stands.
    pub from: String,
    /// Where it goes next.
    pub to: String,
}

/// Slow start.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warmup {
    /// How long.
    pub duration: GoDuration,
    /// Percent to begin with; 10.
    pub minimum_percent: Option<Hundredths>,
    /// 1 is linear.
    pub aggression: Option<Hundredths>,
}

/// Limits and times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ConnectionPool {
    /// Of connections.
    pub tcp: Option<TcpSettings>,
    /// Of requests.
    pub http: Option<HttpSettings>,
}

/// Of connections.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpSettings {
    /// Open ones.
    pub max_connections: Option<u32>,
    /// Until one is open.
    pub connect_timeout: Option<GoDuration>,
    /// How long one is kept unused.
    pub idle_timeout: Option<GoDuration>,
    /// How long one is used.
    pub max_connection_duration: Option<GoDuration>,
    /// Probes of the kernel.
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// Probes of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<GoDuration>,
    pub interval: Option<GoDuration>,
}

/// Of requests.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSettings {
    /// Requests that wait for a connection.
    pub http1_max_pending_requests: Option<u32>,
    /// Requests in flight, whatever the protocol.
    pub http2_max_requests: Option<u32>,
    /// Then a connection is closed.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// How long a connection is kept unused.
    pub idle_timeout: Option<GoDuration>,
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub h2_upgrade_policy: Option<H2Upgrade>,
    /// Speak what the client speaks.
    pub use_client_protocol: Option<bool>,
    /// Streams of a connection.
    pub max_concurrent_streams: Option<u32>,
}

/// Whether HTTP/1.1 becomes HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum H2Upgrade {
    Default,
    DoNotUpgrade,
    Upgrade,
}

/// When endpoints are ejected.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// The oldest form of `consecutive5xxErrors`.
    pub consecutive_errors: Option<i64>,
    /// Whether failures of our side are told apart.
    pub split_external_local_origin_errors: Option<bool>,
    /// Of our side, in a row.
    pub consecutive_local_origin_failures: Option<u32>,
    /// 502, 503, 504 in a row; 0 is off.
    pub consecutive_gateway_errors: Option<u32>,
    /// 5xx in a row; 0 is off.
    #[serde(rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Between looks.
    pub interval: Option<GoDuration>,
    /// Times how often it was ejected.
    pub base_ejection_time: Option<GoDuration>,
    /// Of all endpoints; 10.
    pub max_ejection_percent: Option<u32>,
    /// Below it ejection and health are ignored; 0.
    pub min_health_percent: Option<u32>,
}

/// TLS to endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Tls {
    #[serde(default)]
    pub mode: TlsMode,
    pub client_certificate: Option<String>,
    pub private_key: Option<String>,
    pub ca_certificates: Option<String>,
    pub credential_name: Option<String>,
    #[serde(default)]
    pub subject_alt_names: Vec<String>,
    pub sni: Option<String>,
    pub insecure_skip_verify: Option<bool>,
    pub ca_crl: Option<String>,
}

/// Whether there is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum TlsMode {
    #[default]
    Disable,
    Simple,
    Mutual,
    IstioMutual,
}

/// CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Tunnel {
    pub protocol: Option<String>,
    pub target_host: Option<String>,
    pub target_port: Option<u32>,
}

/// PROXY protocol.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub struct ProxyProtocol {
    pub version: Option<String>,
}

/// How many retries there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryBudget {
    /// Of requests in flight; 20.
    pub percent: Option<Hundredths>,
    /// Always allowed; 3.
    pub min_retry_concurrency: Option<u32>,
}

pub(super) fn check_destination_rule(spec: &DestinationRuleSpec, checks: &mut Checks<'_>) {
    if spec.host.is_empty() {
        checks.error("spec.host", reason::INVALID_VALUE, "the host is empty", None);
    }
    if let Some(policy) = &spec.traffic_policy {
        check_policy(policy, "spec.trafficPolicy", checks);
    }
    for (i, subset) in spec.subsets.iter().enumerate() {
        let at = format!("spec.subsets[{i}]");
        if spec.subsets[..i].iter().any(|s| s.name == subset.name) {
            let message = format!("another subset is already named \"{}\"", subset.name);
            checks.error(&format!("{at}.name"), reason::INVALID_VALUE, message, None);
        }
        if let Some(policy) = &subset.traffic_policy {
            check_policy(policy, &format!("{at}.trafficPolicy"), checks);
        }
    }
}

fn check_policy(policy: &TrafficPolicy, at: &str, checks: &mut Checks<'_>) {
    let (balancer, outlier) = (policy.load_balancer.as_ref(), policy.outlier_detection.as_ref());
    check_settings(balancer, outlier, at, checks);
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let at = format!("{at}.portLevelSettings[{i}]");
        checks.port(format_args!("{at}.port.number"), i64::from(port.port.number));
        check_settings(port.load_balancer.as_ref(), port.outlier_detection.as_ref(), &at, checks);
    }
}

fn check_settings(
    balancer: Option<&LoadBalancer>,
    outlier: Option<&OutlierDetection>,
    at: &str,
    checks: &mut Checks<'_>,
) {
    if let Some(outlier) = outlier {
        let at = format!("{at}.outlierDetection");
        checks.range(
            format_args!("{at}.maxEjectionPercent"),
            outlier.max_ejection_percent.unwrap_or(0),
            0,
            100,
        );
        checks.range(format_args!("{at}.minHealthPercent"), outlier.min_health_percent.unwrap_or(0), 0, 100);
    }
    let Some(balancer) = balancer else { return };
    let at = format!("{at}.loadBalancer");
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        let message = "simple and consistentHash cannot be used together";
        let hint = Some("remove one of the two");
        checks.error(&format!("{at}.consistentHash"), reason::CONFLICTING_FIELDS, message, hint);
    }
    if let Some(hash) = &balancer.consistent_hash {
        check_hash(hash, &format!("{at}.consistentHash"), checks);
    }
    if let Some(locality) = &balancer.locality_lb_setting {
        check_locality(locality, &format!("{at}.localityLbSetting"), checks);
    }
}

fn check_hash(hash: &ConsistentHash, at: &str, checks: &mut Checks<'_>) {
    let keys = [
        ("httpHeaderName", hash.http_header_name.is_some()),
        ("httpCookie", hash.http_cookie.is_some()),
        ("useSourceIp", hash.use_source_ip == Some(true)),
        ("httpQueryParameterName", hash.http_query_parameter_name.is_some()),
    ];
    checks.exactly_one(at, &keys);
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        let message = "ringHash and maglev cannot be used together";
        checks.error(
            &format!("{at}.maglev"),
            reason::CONFLICTING_FIELDS,
            message,
            Some("remove one of the two"),
        );
    }
    let ring = hash.ring_hash.and_then(|r| r.minimum_ring_size);
    checks.range(format_args!("{at}.ringHash.minimumRingSize"), ring.unwrap_or(0), 0, 8 * 1024 * 1024);
    checks.range(
        format_args!("{at}.minimumRingSize"),
        hash.minimum_ring_size.unwrap_or(0),
        0,
        8 * 1024 * 1024,
    );
    if let Some(size) = hash.maglev.and_then(|m| m.table_size).filter(|s| *s != 0) {
        check_table_size(&format!("{at}.maglev.tableSize"), size, checks);
    }
    if let Some(name) = &hash.http_header_name {
        checks.token(&format!("{at}.httpHeaderName"), name, "the name of a header");
    }
    if let Some(cookie) = &hash.http_cookie {
        checks.token(&format!("{at}.httpCookie.name"), &cookie.name, "the name of a cookie");
        checks
            .cookie_path(&format!("{at}.httpCookie.path"), cookie.path.as_deref().filter(|p| !p.is_empty()));
    }
}

fn check_locality(setting: &LocalitySetting, at: &str, checks: &mut Checks<'_>) {
    let others = [
        ("failover", !setting.failover.is_empty()),
        ("failoverPriority", !setting.failover_priority.is_empty()),
    ];
    for (field, set) in others {
        if set && !setting.distribute.is_empty() {
            let message = format!("distribute and {field} cannot be used together");
            let hint = Some("remove one of the two");
            checks.error(&format!("{at}.{field}"), reason::CONFLICTING_FIELDS, message, hint);
        }
    }
    for (i, distribute) in setting.distribute.iter().enumerate() {
        let sum: u64 = distribute.to.values().map(|w| u64::from(*w)).sum();
        if sum != 100 {
            let message = format!("the shares are {sum} in all");
            let hint = Some("write shares that are 100 together");
            checks.error(&format!("{at}.distribute[{i}].to"), reason::OUT_OF_RANGE, message, hint);
        }
    }
    for (i, failover) in setting.failover.iter().enumerate() {
        if failover.from == failover.to {
            let message = "a region cannot be its own next";
            checks.error(&format!("{at}.failover[{i}].to"), reason::INVALID_VALUE, message, None);
        }
    }
}
