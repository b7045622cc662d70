//! Our own kinds, of the group `fieldgate.dev/v1alpha1`: `Pool` and `SplitPolicy`.

use serde::Deserialize;

use super::check::Checks;
use super::duration::Duration;
use crate::diagnostic::reason;

/// A pool of machines. Exactly one of `endpoints`, `dns` and `service` is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolSpec {
    /// The machines by address.
    pub endpoints: Option<Vec<PoolEndpoint>>,
    /// The machines behind a DNS name.
    pub dns: Option<PoolDns>,
    /// The pods behind a Kubernetes Service.
    pub service: Option<PoolService>,
    /// What the machines speak.
    #[serde(default)]
    pub protocol: PoolProtocol,
    /// How one is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// How they are probed; not at all without it.
    pub health_check: Option<HealthCheck>,
    /// How long a TCP connection may take to open.
    pub connect_timeout: Option<Duration>,
    /// How long an unused connection is kept.
    pub idle_timeout: Option<Duration>,
    /// How many connections each endpoint gets at most, over all workers.
    pub max_connections_per_endpoint: Option<u32>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolEndpoint {
    /// An IP address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// Its share among the others; 0 takes no new requests.
    #[serde(default = "one")]
    pub weight: u32,
    /// Where it stands.
    pub zone: Option<String>,
    /// The name it goes by in metrics and, with TLS, in its certificate.
    pub hostname: Option<String>,
    /// Finishes what it has and takes nothing new.
    #[serde(default)]
    pub drain: bool,
}

/// A DNS name whose addresses are the endpoints.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolDns {
    /// The name.
    pub name: String,
    /// The port of all of them.
    pub port: u16,
    /// It is asked again after the answer's TTL, and at the latest after this; 30s.
    pub refresh: Option<Duration>,
}

/// A Kubernetes Service whose endpoints are the pool's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolService {
    /// The Service's name.
    pub name: String,
    /// Its namespace; the pool's own without it.
    pub namespace: Option<String>,
    /// The Service's port.
    pub port: u16,
}

/// What a pool's endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, with prior knowledge on plaintext.
    Http2,
    /// What the client speaks.
    Auto,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// The policy.
    #[serde(default)]
    pub policy: LoadBalancingPolicy,
}

/// The policies; each is weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoadBalancingPolicy {
    /// The less busy of two random ones.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// Active probes. Exactly one of `http` and `tcp` is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// From the end of one probe to the start of the next; 5s.
    pub interval: Option<Duration>,
    /// After which a probe has failed; 1s.
    pub timeout: Option<Duration>,
    /// Successes in a row that make an endpoint healthy; 2.
    pub healthy_threshold: Option<u32>,
    /// Failures in a row that make it unhealthy; 3.
    pub unhealthy_threshold: Option<u32>,
    /// A random addition to each interval.
    pub jitter: Option<Duration>,
    /// By an HTTP request.
    pub http: Option<HttpCheck>,
    /// By opening a connection.
    pub tcp: Option<TcpCheck>,
}

/// A probe by HTTP.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// The path; `/`.
    pub path: Option<String>,
    /// The Host header; the endpoint's address without it.
    pub host: Option<String>,
    /// The method; GET.
    pub method: Option<String>,
    /// Codes and ranges of codes, `"200-299"` without it.
    pub expected_statuses: Option<Vec<StatusRange>>,
}

/// A probe by TCP.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct TcpCheck {}

/// `"204"` or `"200-299"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The first code.
    pub first: u16,
    /// The last code, included.
    pub last: u16,
}

/// Makes the split of a route's rules sticky.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitPolicySpec {
    /// The route.
    pub target_ref: TargetRef,
    /// What a user is known by.
    pub sticky: Option<Sticky>,
    /// Keeps users who have a session where they are.
    pub existing_sessions: Option<ExistingSessions>,
}

/// What a policy is attached to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// The kind's group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The object's name, in the policy's namespace.
    pub name: String,
    /// One named rule.
    pub section_name: Option<String>,
}

/// Exactly one of the three is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sticky {
    /// By a cookie.
    pub cookie: Option<StickyCookie>,
    /// By a header.
    pub header: Option<StickyHeader>,
    /// By the client's address.
    pub source: Option<StickySource>,
}

/// Stickiness by a cookie.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StickyCookie {
    /// The cookie's name.
    pub name: String,
    /// Whether the gateway sets it.
    #[serde(default)]
    pub issue: bool,
    /// How long a cookie that the gateway sets lives; for the browser's session without it.
    pub ttl: Option<Duration>,
    /// The Path of a cookie that the gateway sets; `/`.
    pub path: Option<String>,
}

/// Stickiness by a header.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StickyHeader {
    /// The header's name.
    pub name: String,
}

/// Stickiness by the client's address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct StickySource {}

/// Users with a session stay where they are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExistingSessions {
    /// The cookie that marks a session.
    pub cookie: String,
    /// The name of the backend that such a user stays on.
    pub stay_on: String,
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl serde::de::Visitor<'_> for V {
            type Value = StatusRange;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a status code or a range of them, such as \"200-299\"")
            }

            fn visit_i64<E: serde::de::Error>(self, code: i64) -> Result<StatusRange, E> {
                self.visit_str(&code.to_string())
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<StatusRange, E> {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                match (code(first), code(last)) {
                    (Some(first), Some(last)) if first <= last => Ok(StatusRange { first, last }),
                    _ => Err(crate::yaml::reject(
                        reason::INVALID_VALUE,
                        format_args!("\"{text}\" is not a range of status codes"),
                        "write codes between 100 and 599: \"200\" or \"200-299\"",
                    )),
                }
            }
        }
        deserializer.deserialize_any(V)
    }
}

fn code(text: &str) -> Option<u16> {
    let code = text.trim().parse().ok()?;
    (100..=599).contains(&code).then_some(code)
}

pub(super) fn check_pool(spec: &PoolSpec, checks: &mut Checks<'_>) {
    let sources = [
        ("endpoints", spec.endpoints.is_some()),
        ("dns", spec.dns.is_some()),
        ("service", spec.service.is_some()),
    ];
    checks.exactly_one("spec", &sources);
    if let Some(endpoints) = &spec.endpoints {
        check_endpoints(endpoints, checks);
    }
    if let Some(dns) = &spec.dns {
        checks.port("spec.dns.port", i64::from(dns.port));
        checks.hostname("spec.dns.name", &dns.name, false);
        checks.positive("spec.dns.refresh", dns.refresh);
    }
    if let Some(service) = &spec.service {
        checks.port("spec.service.port", i64::from(service.port));
    }
    if let Some(check) = &spec.health_check {
        check_health_check(check, checks);
    }
    checks.positive("spec.connectTimeout", spec.connect_timeout);
    checks.positive("spec.idleTimeout", spec.idle_timeout);
    if spec.max_connections_per_endpoint == Some(0) {
        checks.error(
            "spec.maxConnectionsPerEndpoint",
            reason::OUT_OF_RANGE,
            "0 connections would refuse every request",
            Some("remove the field for no limit, or set drain: true on an endpoint"),
        );
    }
}

fn check_endpoints(endpoints: &[PoolEndpoint], checks: &mut Checks<'_>) {
    if endpoints.is_empty() {
        checks.error(
            "spec.endpoints",
            reason::WRONG_COUNT,
            "at least one endpoint is needed",
            Some("to take a pool out of service, give it weight 0 in its routes, or drain: true on its endpoints"),
        );
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        checks.port(format_args!("spec.endpoints[{i}].port"), i64::from(endpoint.port));
        let address: Result<std::net::IpAddr, _> = endpoint.address.parse();
        if address.is_err() {
            checks.error(
                &format!("spec.endpoints[{i}].address"),
                reason::INVALID_VALUE,
                format!("\"{}\" is not an IP address", endpoint.address),
                Some(if endpoint.address.contains(':') {
                    "the port has a field of its own; an IPv6 address has no brackets"
                } else {
                    "for a name, use dns: {name, port} in place of endpoints"
                }),
            );
        }
        let earlier =
            endpoints[..i].iter().position(|e| e.address == endpoint.address && e.port == endpoint.port);
        if let Some(earlier) = earlier {
            checks.error(
                &format!("spec.endpoints[{i}]"),
                reason::INVALID_VALUE,
                format!("this endpoint is already listed as spec.endpoints[{earlier}]"),
                Some("give one entry the weight of both"),
            );
        }
    }
}

fn check_health_check(check: &HealthCheck, checks: &mut Checks<'_>) {
    checks.exactly_one("spec.healthCheck", &[("http", check.http.is_some()), ("tcp", check.tcp.is_some())]);
    checks.positive("spec.healthCheck.interval", check.interval);
    checks.positive("spec.healthCheck.timeout", check.timeout);
    for (field, value) in
        [("healthyThreshold", check.healthy_threshold), ("unhealthyThreshold", check.unhealthy_threshold)]
    {
        if value == Some(0) {
            checks.error(
                &format!("spec.healthCheck.{field}"),
                reason::OUT_OF_RANGE,
                "expected at least 1, found 0",
                None,
            );
        }
    }
    let Some(http) = &check.http else { return };
    if let Some(path) = &http.path
        && !path.starts_with('/')
    {
        checks.error(
            "spec.healthCheck.http.path",
            reason::INVALID_VALUE,
            format!("the path \"{path}\" does not begin with \"/\""),
            None,
        );
    }
    if let Some(method) = &http.method
        && !super::check::is_token(method)
    {
        checks.error(
            "spec.healthCheck.http.method",
            reason::INVALID_VALUE,
            format!("\"{method}\" is not a method"),
            Some("GET or HEAD"),
        );
    }
    if http.expected_statuses.as_ref().is_some_and(Vec::is_empty) {
        checks.error(
            "spec.healthCheck.http.expectedStatuses",
            reason::WRONG_COUNT,
            "an empty list would make every endpoint unhealthy",
            Some("remove the field for 200-299"),
        );
    }
}

pub(super) fn check_split_policy(spec: &SplitPolicySpec, checks: &mut Checks<'_>) {
    if spec.target_ref.group != "gateway.networking.k8s.io"
        || !matches!(spec.target_ref.kind.as_str(), "HTTPRoute" | "GRPCRoute")
    {
        checks.error(
            "spec.targetRef",
            reason::INVALID_VALUE,
            format!("a SplitPolicy cannot be attached to {}/{}", spec.target_ref.group, spec.target_ref.kind),
            Some("group: gateway.networking.k8s.io with kind: HTTPRoute or GRPCRoute"),
        );
    }
    if spec.sticky.is_none() && spec.existing_sessions.is_none() {
        checks.error(
            "spec",
            reason::MISSING_FIELD,
            "neither sticky nor existingSessions is set",
            Some("set one of them"),
        );
    }
    if let Some(existing) = &spec.existing_sessions
        && !super::check::is_token(&existing.cookie)
    {
        not_a_token("spec.existingSessions.cookie", &existing.cookie, "the name of a cookie", checks);
    }
    let Some(sticky) = &spec.sticky else { return };
    checks.exactly_one(
        "spec.sticky",
        &[
            ("cookie", sticky.cookie.is_some()),
            ("header", sticky.header.is_some()),
            ("source", sticky.source.is_some()),
        ],
    );
    if let Some(header) = &sticky.header
        && !super::check::is_token(&header.name)
    {
        not_a_token("spec.sticky.header.name", &header.name, "the name of a header", checks);
    }
    if let Some(cookie) = &sticky.cookie {
        check_cookie(cookie, checks);
    }
}

fn check_cookie(cookie: &StickyCookie, checks: &mut Checks<'_>) {
    if !super::check::is_token(&cookie.name) {
        not_a_token("spec.sticky.cookie.name", &cookie.name, "the name of a cookie", checks);
    }
    if !cookie.issue && (cookie.ttl.is_some() || cookie.path.is_some()) {
        let field = if cookie.ttl.is_some() { "ttl" } else { "path" };
        checks.error(
            &format!("spec.sticky.cookie.{field}"),
            reason::CONFLICTING_FIELDS,
            "this has no effect on a cookie that the gateway does not set",
            Some("add issue: true, or remove the field"),
        );
    }
    if let Some(path) = &cookie.path
        && (!path.starts_with('/') || path.contains([';', ',']) || path.chars().any(char::is_control))
    {
        checks.error(
            "spec.sticky.cookie.path",
            reason::INVALID_VALUE,
            format!("\"{path}\" is not the path of a cookie"),
            Some("it begins with \"/\" and has no \";\""),
        );
    }
}

fn not_a_token(field: &str, text: &str, what: &str, checks: &mut Checks<'_>) {
    checks.error(
        field,
        reason::INVALID_VALUE,
        format!("\"{text}\" is not {what}"),
        Some("letters, digits and -_. only"),
    );
}
