//! `RateLimitPolicy` of the group `fieldgate.dev/v1alpha1`: how many requests may come in what time.

use serde::Deserialize;

use super::check::Checks;
use super::duration::Duration;
use super::fieldgate::TargetRef;
use super::guard::{ServiceRef, check_service, check_targets};
use crate::diagnostic::reason;

/// How many requests may come in what time.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitPolicySpec {
    /// Gateways, listeners, routes, rules.
    pub target_refs: Vec<TargetRef>,
    /// Counted by this gateway; a request must fit all of them.
    #[serde(default)]
    pub limits: Vec<LimitSpec>,
    /// Counted by a service for many gateways.
    pub global: Option<GlobalLimitSpec>,
    /// Counts and reports, but refuses nothing.
    #[serde(default)]
    pub shadow: bool,
    /// Whether clients are told by `x-ratelimit-*` headers how much is left.
    #[serde(default)]
    pub headers: bool,
    /// What a refused client hears; 429.
    pub status: Option<u16>,
    /// How a refused gRPC call ends; `Unavailable`, which 429 is to gRPC.
    pub grpc_status: Option<GrpcStatus>,
}

/// How a refused gRPC call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum GrpcStatus {
    Unavailable,
    ResourceExhausted,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitSpec {
    /// Its name in metrics.
    pub name: String,
    /// How fast tokens come back.
    pub rate: RateSpec,
    /// What may come at once; `rate.requests` without it.
    pub burst: Option<u32>,
    /// What tells buckets apart; one bucket for all without it.
    #[serde(default)]
    pub by: Vec<KeySpec>,
    /// Only requests that fit all of these count.
    #[serde(default)]
    pub when: Vec<WhenSpec>,
    /// Buckets that are kept at most; 100000.
    pub max_keys: Option<u32>,
}

/// So many requests in so much time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct RateSpec {
    /// How many.
    pub requests: u32,
    /// In what time.
    pub per: Duration,
}

/// What tells requests apart. Exactly one is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeySpec {
    /// The value of this header. A request without it does not count.
    pub header: Option<String>,
    /// The client's address.
    pub client: Option<ClientSpec>,
    /// The identity of the client's certificate.
    pub principal: Option<Nothing>,
    /// The user of a token or a login.
    pub user: Option<Nothing>,
    /// A claim of a verified token, by its path.
    pub claim: Option<Vec<String>>,
    /// The rule.
    pub route: Option<Nothing>,
    /// The host.
    pub host: Option<Nothing>,
    /// The path without its query.
    pub path: Option<Nothing>,
    /// The method.
    pub method: Option<Nothing>,
}

/// `{}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct Nothing {}

/// The client's address, or the network that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientSpec {
    /// Bits of an IPv4 address that count; 32.
    pub ipv4_prefix: Option<u8>,
    /// Bits of an IPv6 address that count; 64, which is what one customer has of a provider.
    pub ipv6_prefix: Option<u8>,
}

/// What a request must be like. Exactly one is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct WhenSpec {
    /// A header.
    pub header: Option<WhenHeader>,
    /// The path without its query: as it is, `/api/*`, `*.jpg`, or a template such as `/users/{*}`.
    pub path: Option<String>,
    /// The method.
    pub method: Option<String>,
}

/// A header that a request must have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct WhenHeader {
    /// Its name.
    pub name: String,
    /// Its value: as it is, `abc*`, `*abc`, or `*` for any; any without it.
    pub value: Option<String>,
}

/// Envoy's rate limit service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GlobalLimitSpec {
    /// Where it is asked.
    pub backend_ref: ServiceRef,
    /// The domain of its configuration.
    pub domain: String,
    /// How long it may take; 20ms.
    pub timeout: Option<Duration>,
    /// Whether requests pass when it does not answer; true.
    pub fail_open: Option<bool>,
    /// What it is asked about.
    pub descriptors: Vec<DescriptorSpec>,
}

/// A descriptor. One that cannot be made of a request is left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DescriptorSpec {
    /// Its entries, in order.
    pub entries: Vec<EntrySpec>,
}

/// An entry. Exactly one of `value` and `from` is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct EntrySpec {
    /// Its key.
    pub key: String,
    /// Always the same value.
    pub value: Option<String>,
    /// What of a request is the value.
    pub from: Option<KeySpec>,
}

/// Limits of one object.
const MAX_LIMITS: usize = 32;
/// Parts of one key, conditions of one limit, entries of one descriptor.
const MAX_PARTS: usize = 16;
/// Descriptors that one request may be asked about.
const MAX_DESCRIPTORS: usize = 32;
/// Buckets of one limit.
pub const MAX_KEYS: i64 = 10_000_000;
/// The most tokens that a bucket may hold.
const MAX_BURST: i64 = 1_000_000_000;
/// The longest interval: a bucket that takes longer to fill is a quota, which must outlive a process.
const MAX_PER: std::time::Duration = std::time::Duration::from_hours(24 * 7);
/// The longest that an empty bucket may take to fill.
const MAX_FILL: std::time::Duration = std::time::Duration::from_hours(24 * 365);

pub(super) fn check_rate_limit_policy(spec: &RateLimitPolicySpec, checks: &mut Checks<'_>) {
    check_targets(&spec.target_refs, "RateLimitPolicy", checks);
    if spec.limits.is_empty() && spec.global.is_none() {
        let message = "neither limits nor global is set";
        checks.error("spec", reason::MISSING_FIELD, message, Some("set one of them"));
    }
    checks.count("spec.limits", spec.limits.len(), MAX_LIMITS);
    for (i, limit) in spec.limits.iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        if spec.limits[..i].iter().any(|other| other.name == limit.name) {
            let message = format!("there is a limit \"{}\" already", limit.name);
            let hint = Some("metrics tell limits apart by their names");
            checks.error(&format!("{at}.name"), reason::CONFLICTING_FIELDS, message, hint);
        }
        check_limit(limit, &at, checks);
    }
    if let Some(global) = &spec.global {
        check_global(global, checks);
    }
    checks.range("spec.status", spec.status.unwrap_or(429), 400, 599);
    check_route_keys(spec, checks);
}

fn check_limit(limit: &LimitSpec, at: &str, checks: &mut Checks<'_>) {
    checks.token(&format!("{at}.name"), &limit.name, "a name");
    if limit.rate.requests == 0 {
        let message = "a rate of 0 requests would let nothing pass, ever";
        let hint = Some("at least 1; to refuse requests altogether, use an AuthorizationPolicy");
        checks.error(&format!("{at}.rate.requests"), reason::OUT_OF_RANGE, message, hint);
    }
    checks.range(format_args!("{at}.rate.requests"), limit.rate.requests, 0, MAX_BURST);
    let per = limit.rate.per.0;
    if per.is_zero() || per > MAX_PER {
        let message = if per.is_zero() { "expected more than 0" } else { "expected at most 7d" };
        checks.error(&format!("{at}.rate.per"), reason::OUT_OF_RANGE, message, Some("such as 1s, 1m or 1h"));
    }
    if let Some(burst) = limit.burst {
        checks.range(format_args!("{at}.burst"), burst, 1, MAX_BURST);
    }
    let tokens = limit.rate.requests.max(1);
    if let Some(filled) = per.checked_mul(limit.burst.unwrap_or(tokens)).map(|all| all / tokens)
        && filled > MAX_FILL
    {
        let message = format!("an empty bucket would take {} days to fill", filled.as_secs() / 86_400);
        let hint = Some("at most 365; a smaller burst, or a faster rate");
        checks.error(&format!("{at}.burst"), reason::OUT_OF_RANGE, message, hint);
    }
    if let Some(max) = limit.max_keys {
        checks.range(format_args!("{at}.maxKeys"), max, 1, MAX_KEYS);
        if limit.by.is_empty() {
            let message = "without by there is one bucket only";
            let hint = Some("add by, or remove maxKeys");
            checks.error(&format!("{at}.maxKeys"), reason::CONFLICTING_FIELDS, message, hint);
        }
    }
    checks.count(format_args!("{at}.by"), limit.by.len(), MAX_PARTS);
    for (i, key) in limit.by.iter().enumerate() {
        check_key(key, &format!("{at}.by[{i}]"), checks);
    }
    checks.count(format_args!("{at}.when"), limit.when.len(), MAX_PARTS);
    for (i, when) in limit.when.iter().enumerate() {
        check_when(when, &format!("{at}.when[{i}]"), checks);
    }
}

fn check_key(key: &KeySpec, at: &str, checks: &mut Checks<'_>) {
    let set = [
        ("header", key.header.is_some()),
        ("client", key.client.is_some()),
        ("principal", key.principal.is_some()),
        ("user", key.user.is_some()),
        ("claim", key.claim.is_some()),
        ("route", key.route.is_some()),
        ("host", key.host.is_some()),
        ("path", key.path.is_some()),
        ("method", key.method.is_some()),
    ];
    checks.exactly_one(at, &set);
    if let Some(name) = &key.header {
        checks.token(&format!("{at}.header"), name, "the name of a header");
    }
    if let Some(client) = key.client {
        checks.range(format_args!("{at}.client.ipv4Prefix"), client.ipv4_prefix.unwrap_or(32), 0, 32);
        checks.range(format_args!("{at}.client.ipv6Prefix"), client.ipv6_prefix.unwrap_or(64), 0, 128);
    }
    if key.claim.as_ref().is_some_and(|path| path.is_empty() || path.iter().any(String::is_empty)) {
        let hint = Some("a claim's name, and below it the name of a part: [realm, tenant]");
        checks.error(&format!("{at}.claim"), reason::INVALID_VALUE, "a claim needs a name", hint);
    }
}

fn check_when(when: &WhenSpec, at: &str, checks: &mut Checks<'_>) {
    let set =
        [("header", when.header.is_some()), ("path", when.path.is_some()), ("method", when.method.is_some())];
    checks.exactly_one(at, &set);
    if let Some(header) = &when.header {
        checks.token(&format!("{at}.header.name"), &header.name, "the name of a header");
    }
    if let Some(method) = &when.method {
        checks.token(&format!("{at}.method"), method, "a method");
    }
    if let Some(path) = &when.path
        && !path.starts_with(['/', '*'])
    {
        let message = format!("\"{path}\" fits no path");
        checks.error(&format!("{at}.path"), reason::INVALID_VALUE, message, Some("it begins with / or *"));
    }
}

fn check_global(global: &GlobalLimitSpec, checks: &mut Checks<'_>) {
    let at = "spec.global";
    check_service(&global.backend_ref, &format!("{at}.backendRef"), checks);
    if global.domain.is_empty() {
        let hint = Some("the domain of the service's configuration");
        checks.error(&format!("{at}.domain"), reason::INVALID_VALUE, "a domain is needed", hint);
    }
    checks.positive(&format!("{at}.timeout"), global.timeout);
    if global.descriptors.is_empty() {
        let message = "without descriptors there is nothing to ask";
        checks.error(&format!("{at}.descriptors"), reason::MISSING_FIELD, message, None);
    }
    checks.count(format_args!("{at}.descriptors"), global.descriptors.len(), MAX_DESCRIPTORS);
    for (i, descriptor) in global.descriptors.iter().enumerate() {
        let at = format!("{at}.descriptors[{i}].entries");
        if descriptor.entries.is_empty() {
            checks.error(&at, reason::MISSING_FIELD, "a descriptor needs entries", None);
        }
        checks.count(&at, descriptor.entries.len(), MAX_PARTS);
        for (i, entry) in descriptor.entries.iter().enumerate() {
            let at = format!("{at}[{i}]");
            if entry.key.is_empty() {
                checks.error(&format!("{at}.key"), reason::INVALID_VALUE, "a key is needed", None);
            }
            checks.exactly_one(&at, &[("value", entry.value.is_some()), ("from", entry.from.is_some())]);
            if entry.value.as_ref().is_some_and(String::is_empty) {
                let message = "the service takes no empty values";
                checks.error(&format!("{at}.value"), reason::INVALID_VALUE, message, None);
            }
            if let Some(key) = &entry.from {
                check_key(key, &format!("{at}.from"), checks);
            }
        }
    }
}

/// What is attached to a Gateway is asked before a route is looked for: a key of the route would never be there, and the
/// limit would count nothing.
fn check_route_keys(spec: &RateLimitPolicySpec, checks: &mut Checks<'_>) {
    if spec.target_refs.iter().all(|target| target.kind != "Gateway") {
        return;
    }
    let message = "a limit of a Gateway is counted before a route is found";
    let hint = Some("attach the policy to routes, or leave route out");
    for (i, limit) in spec.limits.iter().enumerate() {
        for (k, _) in limit.by.iter().enumerate().filter(|(_, key)| key.route.is_some()) {
            let field = format!("spec.limits[{i}].by[{k}].route");
            checks.error(&field, reason::CONFLICTING_FIELDS, message, hint);
        }
    }
    for (i, descriptor) in spec.global.iter().flat_map(|g| &g.descriptors).enumerate() {
        for (k, entry) in descriptor.entries.iter().enumerate() {
            if entry.from.as_ref().is_some_and(|key| key.route.is_some()) {
                let field = format!("spec.global.descriptors[{i}].entries[{k}].from.route");
                checks.error(&field, reason::CONFLICTING_FIELDS, message, hint);
            }
        }
    }
}
