//! `TrafficPolicy` of the group `fieldgate.dev/v1alpha1`: retries, timeouts, affinity and faults of a route's rules.

use serde::Deserialize;

use super::check::Checks;
use super::duration::Duration;
use super::fieldgate::{TargetRef, check_target};
use super::number::Percent;
use crate::diagnostic::{did_you_mean_hint, one_of, reason};
use fieldgate_core::ir::RetryOn;

/// What becomes of the requests of a route's rules.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The route.
    pub target_ref: TargetRef,
    /// When a request is tried again.
    pub retry: Option<RetrySpec>,
    /// How long it may take.
    pub timeouts: Option<TimeoutsSpec>,
    /// Keeps a client at its endpoint.
    pub affinity: Option<AffinitySpec>,
    /// Faults on purpose.
    pub fault: Option<FaultSpec>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetrySpec {
    /// Tries after the first; 1.
    pub attempts: Option<u32>,
    /// On what, in Envoy's words.
    pub on: Option<Vec<String>>,
    /// Statuses of responses to try again.
    pub status_codes: Vec<u16>,
    /// Headers whose presence makes a response one to try again.
    pub headers: Vec<String>,
    /// Bound of one try.
    pub per_try_timeout: Option<Duration>,
    /// Pauses before retries.
    pub backoff: Option<BackoffSpec>,
    /// A response's Retry-After is waited for, unless it asks for longer than this.
    pub retry_after_max: Option<Duration>,
    /// A second try beside the first.
    pub hedge: Option<HedgeSpec>,
    /// Bodies of up to so many bytes are kept for another try; 65536.
    pub body_limit: Option<u32>,
}

/// Pauses before retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct BackoffSpec {
    /// Before the first; 25ms. `0s` is no pause.
    pub base: Option<Duration>,
    /// The longest; ten times the base.
    pub max: Option<Duration>,
}

/// A second try beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HedgeSpec {
    /// It begins when a try has had no response for so long.
    pub after: Duration,
    /// Tries under way at once; 2.
    pub at_once: Option<u32>,
}

/// How long a request may take. `0s` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimeoutsSpec {
    /// All of it.
    pub request: Option<Duration>,
    /// One try, until the response's head.
    pub backend_request: Option<Duration>,
    /// Without a byte on either side; 5m.
    pub idle: Option<Duration>,
}

/// Exactly one of `cookie` and `header` is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AffinitySpec {
    /// A cookie of the gateway names the endpoint.
    pub cookie: Option<AffinityCookie>,
    /// A header of response and request does.
    pub header: Option<AffinityHeader>,
    /// A request whose endpoint cannot have it is refused.
    #[serde(default)]
    pub strict: bool,
}

/// The cookie that names the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AffinityCookie {
    /// Its name.
    pub name: String,
    /// How long it lives; for the browser's session without it.
    pub ttl: Option<Duration>,
    /// Its Path; `/`.
    pub path: Option<String>,
}

/// The header that names the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AffinityHeader {
    /// Its name.
    pub name: String,
}

/// Faults on purpose. At least one of `delay` and `abort` is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FaultSpec {
    /// Only requests with all of these.
    #[serde(default)]
    pub headers: Vec<FaultHeader>,
    /// Some wait.
    pub delay: Option<DelaySpec>,
    /// Some are answered at once.
    pub abort: Option<AbortSpec>,
}

/// A header that a request must have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct FaultHeader {
    /// Its name.
    pub name: String,
    /// Its value, or a pattern of it.
    pub value: String,
    /// Which of the two; `Exact` without it.
    #[serde(default)]
    pub r#type: FaultHeaderType,
}

/// How a header is compared; the words are Gateway API's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[allow(missing_docs)]
pub enum FaultHeaderType {
    #[default]
    Exact,
    RegularExpression,
}

/// Some requests wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct DelaySpec {
    /// How many of a hundred; 100.
    pub percent: Option<Percent>,
    /// How long.
    pub time: Duration,
}

/// Some requests are answered at once. Exactly one of `status` and `grpcStatus` is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AbortSpec {
    /// How many of a hundred; 100.
    pub percent: Option<Percent>,
    /// With this status.
    pub status: Option<u16>,
    /// With 200 and this gRPC status.
    pub grpc_status: Option<u16>,
}

/// The most that is kept of one request for another try.
const MAX_BODY: i64 = 64 * 1024 * 1024;

pub(super) fn check_traffic_policy(spec: &TrafficPolicySpec, checks: &mut Checks<'_>) {
    check_target(&spec.target_ref, "TrafficPolicy", checks);
    if spec.retry.is_none() && spec.timeouts.is_none() && spec.affinity.is_none() && spec.fault.is_none() {
        let message = "none of retry, timeouts, affinity, fault is set";
        checks.error("spec", reason::MISSING_FIELD, message, Some("set one of them"));
    }
    if let Some(retry) = &spec.retry {
        check_retry(retry, checks);
    }
    if let Some(timeouts) = &spec.timeouts
        && let (Some(request), Some(try_)) = (timeouts.request, timeouts.backend_request)
        && !request.0.is_zero()
        && try_ > request
    {
        checks.error(
            "spec.timeouts.backendRequest",
            reason::CONFLICTING_FIELDS,
            "backendRequest cannot be longer than request",
            Some("one request to a backend is a part of the whole request"),
        );
    }
    if let Some(affinity) = &spec.affinity {
        check_affinity(affinity, checks);
    }
    if let Some(fault) = &spec.fault {
        check_fault(fault, checks);
    }
}

fn check_retry(retry: &RetrySpec, checks: &mut Checks<'_>) {
    let at = "spec.retry";
    if let Some(attempts) = retry.attempts {
        checks.range(format_args!("{at}.attempts"), attempts, 0, 100);
    }
    let words = RetryOn::WORDS.map(|(word, _)| word);
    for (i, word) in retry.on.iter().flatten().enumerate() {
        if RetryOn::word(word).is_none() {
            let message = format!("\"{word}\" is not allowed here; allowed: {}", one_of(&words));
            let hint = did_you_mean_hint(word, words);
            checks.error(&format!("{at}.on[{i}]"), reason::INVALID_VALUE, message, hint.as_deref());
        }
    }
    for (list, word, is_empty) in [
        ("statusCodes", "retriable-status-codes", retry.status_codes.is_empty()),
        ("headers", "retriable-headers", retry.headers.is_empty()),
    ] {
        if is_empty && let Some(i) = retry.on.iter().flatten().position(|w| w == word) {
            let message = format!("{word} says nothing without {list}");
            let hint = format!("add {list}, or remove it");
            checks.error(&format!("{at}.on[{i}]"), reason::MISSING_FIELD, message, Some(&hint));
        }
    }
    for (i, code) in retry.status_codes.iter().enumerate() {
        checks.range(format_args!("{at}.statusCodes[{i}]"), *code, 400, 599);
    }
    for (i, header) in retry.headers.iter().enumerate() {
        checks.token(&format!("{at}.headers[{i}]"), header, "the name of a header");
    }
    checks.positive(&format!("{at}.perTryTimeout"), retry.per_try_timeout);
    checks.positive(&format!("{at}.retryAfterMax"), retry.retry_after_max);
    if let Some(BackoffSpec { base, max: Some(max) }) = retry.backoff
        && max.0 < base.map_or(std::time::Duration::from_millis(25), |b| b.0)
    {
        let message = "max is less than base";
        checks.error(&format!("{at}.backoff.max"), reason::CONFLICTING_FIELDS, message, None);
    }
    if let Some(hedge) = retry.hedge {
        checks.positive(&format!("{at}.hedge.after"), Some(hedge.after));
        checks.range(format_args!("{at}.hedge.atOnce"), hedge.at_once.unwrap_or(2), 2, 10);
    }
    checks.range(format_args!("{at}.bodyLimit"), retry.body_limit.unwrap_or(0), 0, MAX_BODY);
}

fn check_affinity(affinity: &AffinitySpec, checks: &mut Checks<'_>) {
    let at = "spec.affinity";
    checks.exactly_one(at, &[("cookie", affinity.cookie.is_some()), ("header", affinity.header.is_some())]);
    if let Some(cookie) = &affinity.cookie {
        checks.token(&format!("{at}.cookie.name"), &cookie.name, "the name of a cookie");
        checks.cookie_path(&format!("{at}.cookie.path"), cookie.path.as_deref());
        checks.positive(&format!("{at}.cookie.ttl"), cookie.ttl);
    }
    if let Some(header) = &affinity.header {
        checks.token(&format!("{at}.header.name"), &header.name, "the name of a header");
    }
}

fn check_fault(fault: &FaultSpec, checks: &mut Checks<'_>) {
    let at = "spec.fault";
    if fault.delay.is_none() && fault.abort.is_none() {
        let message = "neither delay nor abort is set";
        checks.error(at, reason::MISSING_FIELD, message, Some("set one of them"));
    }
    for (i, header) in fault.headers.iter().enumerate() {
        checks.token(&format!("{at}.headers[{i}].name"), &header.name, "the name of a header");
    }
    if let Some(delay) = fault.delay {
        checks.positive(&format!("{at}.delay.time"), Some(delay.time));
    }
    let Some(abort) = fault.abort else { return };
    let answers = [("status", abort.status.is_some()), ("grpcStatus", abort.grpc_status.is_some())];
    checks.exactly_one(&format!("{at}.abort"), &answers);
    checks.range(format_args!("{at}.abort.status"), abort.status.unwrap_or(200), 200, 599);
    checks.range(format_args!("{at}.abort.grpcStatus"), abort.grpc_status.unwrap_or(0), 0, 16);
}
