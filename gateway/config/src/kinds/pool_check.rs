//! What is forbidden in a `Pool` beyond types.

use super::check::Checks;
use super::number::Hundredths;
use super::pool::{Fallback, PoolEndpoint, PoolSpec};
use super::pool_health::{CheckTls, HealthCheck};
use super::pool_traffic::{
    AdaptiveConcurrency, AdmissionControl, HashSource, Limits, LoadBalancing, LoadBalancingPolicy,
    OutlierDetection, SlowStart,
};
use crate::diagnostic::reason;

/// Envoy's bounds.
const MAX_PRIORITY: i64 = 127;
const MAX_RING: i64 = 8 * 1024 * 1024;
const MAX_TABLE: i64 = 5_000_011;
const MAX: i64 = u32::MAX as i64;

pub(super) fn check_pool(spec: &PoolSpec, checks: &mut Checks<'_>) {
    let sources = [
        ("endpoints", spec.endpoints.is_some()),
        ("dns", spec.dns.is_some()),
        ("service", spec.service.is_some()),
        ("hostname", spec.hostname.is_some()),
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
    if let Some(hostname) = &spec.hostname {
        checks.port("spec.hostname.port", i64::from(hostname.port));
        checks.hostname("spec.hostname.name", &hostname.name, false);
    }
    for (i, fallback) in spec.fallback.iter().enumerate() {
        check_fallback(fallback, &format!("spec.fallback[{i}]"), checks);
    }
    check_balancing(&spec.load_balancing, checks);
    if let Some(check) = &spec.health_check {
        check_health_check(check, checks);
    }
    super::pool_tls::check(spec, checks);
    if let Some(outlier) = &spec.outlier_detection {
        check_outlier(outlier, checks);
    }
    if let Some(limits) = &spec.limits {
        check_limits(limits, checks);
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
        checks.range(format_args!("spec.endpoints[{i}].priority"), endpoint.priority, 0, MAX_PRIORITY);
        if endpoint.locality.is_some() && endpoint.zone.is_some() {
            checks.error(
                &format!("spec.endpoints[{i}].zone"),
                reason::CONFLICTING_FIELDS,
                "zone and locality cannot be used together",
                Some("move the zone into locality"),
            );
        }
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
    let kinds =
        [("http", check.http.is_some()), ("tcp", check.tcp.is_some()), ("grpc", check.grpc.is_some())];
    checks.exactly_one("spec.healthCheck", &kinds);
    if let Some(port) = check.port {
        checks.port("spec.healthCheck.port", i64::from(port));
    }
    if let Some(tls) = &check.tls {
        check_tls(tls, checks);
    }
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

fn check_tls(tls: &CheckTls, checks: &mut Checks<'_>) {
    let at = "spec.healthCheck.tls";
    let refs = tls.ca_certificate_refs.as_deref();
    checks.exactly_one(
        at,
        &[("caCertificateRefs", refs.is_some()), ("insecureSkipVerify", tls.insecure_skip_verify)],
    );
    if refs.is_some_and(<[_]>::is_empty) {
        let field = format!("{at}.caCertificateRefs");
        checks.error(&field, reason::WRONG_COUNT, "at least one Secret is needed", None);
    }
    for (i, reference) in refs.unwrap_or_default().iter().enumerate() {
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        if (group, kind) != ("", "Secret") {
            let message = format!("certificates cannot be in a {kind} of group \"{group}\"");
            let field = format!("{at}.caCertificateRefs[{i}]");
            checks.error(&field, reason::INVALID_VALUE, message, Some("a Secret with the key ca.crt"));
        }
    }
    if let Some(name) = &tls.server_name {
        checks.hostname(&format!("{at}.serverName"), name, false);
    }
}

fn check_fallback(fallback: &Fallback, at: &str, checks: &mut Checks<'_>) {
    let group = fallback.group.as_deref().unwrap_or("");
    let kind = fallback.kind.as_deref().unwrap_or("Service");
    match (group, kind) {
        ("fieldgate.dev", "Pool") => {}
        ("", "Service") | ("networking.istio.io", "Hostname") => match fallback.port {
            Some(port) => checks.port(format_args!("{at}.port"), i64::from(port)),
            None => {
                let message = format!("a reference to a {kind} needs a port");
                checks.error(at, reason::MISSING_FIELD, message, Some("add port: ..."));
            }
        },
        _ => checks.error(
            at,
            reason::INVALID_VALUE,
            format!("a {kind} of group \"{group}\" has no endpoints"),
            Some("Service, Pool (group fieldgate.dev) or Hostname (group networking.istio.io)"),
        ),
    }
}

/// Numbers that may be left out.
fn ranges(at: &str, fields: &[(&str, Option<u32>, i64, i64)], checks: &mut Checks<'_>) {
    for (field, value, min, max) in fields {
        if let Some(value) = value {
            checks.range(format_args!("{at}.{field}"), *value, *min, *max);
        }
    }
}

fn check_balancing(spec: &LoadBalancing, checks: &mut Checks<'_>) {
    use LoadBalancingPolicy as P;
    let at = "spec.loadBalancing";
    let policy = spec.policy.unwrap_or_default();
    let hashes = matches!(policy, P::RingHash | P::Maglev);
    for (field, set, fits) in [
        ("leastRequest", spec.least_request.is_some(), policy == P::LeastRequest),
        ("peakEwma", spec.peak_ewma.is_some(), policy == P::PeakEwma),
        ("ringHash", spec.ring_hash.is_some(), policy == P::RingHash),
        ("maglev", spec.maglev.is_some(), policy == P::Maglev),
        ("hash", spec.hash.is_some(), hashes),
        ("balanceFactor", spec.balance_factor.is_some(), hashes),
        ("slowStart", spec.slow_start.is_some(), !hashes),
    ] {
        if set && !fits {
            let message = format!("{field} has no effect with this policy");
            let hint = "set policy to the one that is meant, or remove the field";
            checks.error(&format!("{at}.{field}"), reason::CONFLICTING_FIELDS, message, Some(hint));
        }
    }
    if hashes && spec.hash.as_ref().is_none_or(Vec::is_empty) {
        let message = "it is not said what of a request is hashed";
        let hint = Some("add hash: [{header: x-user}], a cookie, source or query");
        checks.error(&format!("{at}.hash"), reason::MISSING_FIELD, message, hint);
    }
    for (i, source) in spec.hash.iter().flatten().enumerate() {
        check_hash_source(source, &format!("{at}.hash[{i}]"), checks);
    }
    if let Some(least) = &spec.least_request {
        let at = format!("{at}.leastRequest");
        let bias = least.active_request_bias.map(|b| b.0);
        ranges(&at, &[("choices", least.choices, 2, 100)], checks);
        // More would make every weight that is not 1 of a busy endpoint vanish.
        if bias.is_some_and(|b| b > 1000) {
            let field = format!("{at}.activeRequestBias");
            checks.error(&field, reason::OUT_OF_RANGE, "expected 0 to 10", None);
        }
    }
    if let Some(ewma) = &spec.peak_ewma {
        checks.positive(&format!("{at}.peakEwma.decay"), ewma.decay);
    }
    if let Some(ring) = &spec.ring_hash {
        let at = format!("{at}.ringHash");
        let (min, max) = (ring.minimum_ring_size, ring.maximum_ring_size);
        ranges(&at, &[("minimumRingSize", min, 1, MAX_RING), ("maximumRingSize", max, 1, MAX_RING)], checks);
        if max.is_some_and(|max| min.unwrap_or(1024.min(max)) > max) {
            let message = "minimumRingSize is more than maximumRingSize";
            checks.error(&format!("{at}.minimumRingSize"), reason::CONFLICTING_FIELDS, message, None);
        }
    }
    if let Some(size) = spec.maglev.as_ref().and_then(|m| m.table_size) {
        check_table_size(&format!("{at}.maglev.tableSize"), size, checks);
    }
    if spec.fail_in_panic == Some(true) && spec.panic_threshold == Some(0) {
        let message = "with panicThreshold 0 there is no panic";
        checks.error(&format!("{at}.failInPanic"), reason::CONFLICTING_FIELDS, message, None);
    }
    let numbers = [
        ("balanceFactor", spec.balance_factor, 100, 1_000_000),
        ("panicThreshold", spec.panic_threshold, 0, 100),
        ("overprovisioningFactor", spec.overprovisioning_factor, 100, 1_000_000),
    ];
    ranges(at, &numbers, checks);
    if let Some(slow) = &spec.slow_start {
        check_slow_start(slow, &format!("{at}.slowStart"), checks);
    }
    check_localities(spec, at, checks);
}

fn check_localities(spec: &LoadBalancing, at: &str, checks: &mut Checks<'_>) {
    if spec.localities.is_some() && spec.zone_aware.is_some() {
        let message = "localities and zoneAware cannot be used together";
        let hint = Some("remove one of the two");
        checks.error(&format!("{at}.zoneAware"), reason::CONFLICTING_FIELDS, message, hint);
    }
    if let Some(zone) = &spec.zone_aware {
        let at = format!("{at}.zoneAware");
        let numbers = [("minEndpoints", zone.min_endpoints, 0, MAX), ("percent", zone.percent, 0, 100)];
        ranges(&at, &numbers, checks);
    }
    let Some(localities) = &spec.localities else { return };
    let field = format!("{at}.localities.weights");
    if localities.weights.values().all(|w| *w == 0) {
        let message = "no locality has a weight, so that none would get a request";
        checks.error(&field, reason::WRONG_COUNT, message, Some("write region/zone: 1"));
    }
    for name in localities.weights.keys() {
        if name.starts_with('/') || name.is_empty() || name.split('/').count() > 3 {
            let message = format!("\"{name}\" is not a locality");
            let hint = Some("region/zone/subzone, of which the later parts may be missing");
            checks.error(&field, reason::INVALID_VALUE, message, hint);
        }
    }
}

/// A prime, up to Envoy's bound.
pub(super) fn check_table_size(field: &str, size: u32, checks: &mut Checks<'_>) {
    let before = i64::from(size);
    checks.range(field, size, 2, MAX_TABLE);
    if !(2..=MAX_TABLE).contains(&before) || is_prime(size) {
        return;
    }
    let next = (size..=5_000_011).find(|n| is_prime(*n)).unwrap_or(5_000_011);
    let message = format!("a table has a prime number of entries, and {size} is none");
    checks.error(field, reason::INVALID_VALUE, message, Some(&format!("the next prime is {next}")));
}

fn is_prime(n: u32) -> bool {
    n > 1 && (2..=n.isqrt()).all(|d| !n.is_multiple_of(d))
}

fn check_hash_source(source: &HashSource, at: &str, checks: &mut Checks<'_>) {
    let kinds = [
        ("header", source.header.is_some()),
        ("cookie", source.cookie.is_some()),
        ("source", source.source.is_some()),
        ("query", source.query.is_some()),
    ];
    checks.exactly_one(at, &kinds);
    if let Some(name) = &source.header {
        checks.token(&format!("{at}.header"), name, "the name of a header");
    }
    if source.query.as_ref().is_some_and(String::is_empty) {
        let message = "the name of a query parameter is empty";
        checks.error(&format!("{at}.query"), reason::INVALID_VALUE, message, None);
    }
    let Some(cookie) = &source.cookie else { return };
    checks.token(&format!("{at}.cookie.name"), &cookie.name, "the name of a cookie");
    checks.cookie_path(&format!("{at}.cookie.path"), cookie.path.as_deref());
    if cookie.path.is_some() && cookie.ttl.is_none() {
        let message = "this has no effect on a cookie that the gateway does not set";
        let hint = Some("add ttl, or remove the field");
        checks.error(&format!("{at}.cookie.path"), reason::CONFLICTING_FIELDS, message, hint);
    }
}

fn check_slow_start(slow: &SlowStart, at: &str, checks: &mut Checks<'_>) {
    checks.positive(&format!("{at}.window"), Some(slow.window));
    check_aggression(&format!("{at}.aggression"), slow.aggression, checks);
    ranges(at, &[("minWeightPercent", slow.min_weight_percent, 1, 100)], checks);
}

fn check_aggression(field: &str, aggression: Option<Hundredths>, checks: &mut Checks<'_>) {
    if aggression.is_some_and(|a| a.0 == 0) {
        checks.error(field, reason::OUT_OF_RANGE, "expected more than 0", Some("1 is linear"));
    }
}

fn check_outlier(spec: &OutlierDetection, checks: &mut Checks<'_>) {
    let at = "spec.outlierDetection";
    let hundred = |name, value| (name, value, 0, 100);
    let counted = |name, value| (name, value, 1, MAX);
    let numbers = [
        counted("consecutive5xx", spec.consecutive_5xx),
        hundred("enforcingConsecutive5xx", spec.enforcing_consecutive_5xx),
        counted("consecutiveGatewayFailure", spec.consecutive_gateway_failure),
        hundred("enforcingConsecutiveGatewayFailure", spec.enforcing_consecutive_gateway_failure),
        counted("consecutiveLocalOriginFailure", spec.consecutive_local_origin_failure),
        hundred("enforcingConsecutiveLocalOriginFailure", spec.enforcing_consecutive_local_origin_failure),
        hundred("maxEjectionPercent", spec.max_ejection_percent),
        hundred("enforcingSuccessRate", spec.enforcing_success_rate),
        hundred("failurePercentageThreshold", spec.failure_percentage_threshold),
        hundred("enforcingFailurePercentage", spec.enforcing_failure_percentage),
    ];
    ranges(at, &numbers, checks);
    checks.positive(&format!("{at}.interval"), spec.interval);
    checks.positive(&format!("{at}.baseEjectionTime"), spec.base_ejection_time);
    if let (Some(base), Some(max)) = (spec.base_ejection_time, spec.max_ejection_time)
        && max < base
    {
        let message = "maxEjectionTime is less than baseEjectionTime";
        checks.error(&format!("{at}.maxEjectionTime"), reason::CONFLICTING_FIELDS, message, None);
    }
}

fn check_limits(spec: &Limits, checks: &mut Checks<'_>) {
    let at = "spec.limits";
    for (field, value) in [
        ("maxConnections", spec.max_connections),
        ("maxRequests", spec.max_requests),
        ("maxRequestsPerEndpoint", spec.max_requests_per_endpoint),
        ("maxRequestsPerConnection", spec.max_requests_per_connection),
    ] {
        if value == Some(0) {
            let message = "0 would refuse every request";
            let hint = Some("remove the field for no limit");
            checks.error(&format!("{at}.{field}"), reason::OUT_OF_RANGE, message, hint);
        }
    }
    checks.positive(&format!("{at}.maxConnectionDuration"), spec.max_connection_duration);
    checks.positive(&format!("{at}.queueTimeout"), spec.queue_timeout);
    if let Some(budget) = &spec.retry_budget {
        ranges(&format!("{at}.retryBudget"), &[("percent", budget.percent, 0, 100)], checks);
    }
    if let Some(adaptive) = &spec.adaptive_concurrency {
        check_adaptive(adaptive, &format!("{at}.adaptiveConcurrency"), checks);
    }
    if let Some(admission) = &spec.admission_control {
        check_admission(admission, &format!("{at}.admissionControl"), checks);
    }
}

fn check_adaptive(spec: &AdaptiveConcurrency, at: &str, checks: &mut Checks<'_>) {
    checks.positive(&format!("{at}.updateInterval"), spec.update_interval);
    checks.positive(&format!("{at}.minRttInterval"), spec.min_rtt_interval);
    let numbers = [
        ("percentile", spec.percentile, 1, 100),
        ("minRttRequests", spec.min_rtt_requests, 1, MAX),
        ("minConcurrency", spec.min_concurrency, 1, MAX),
        ("maxConcurrency", spec.max_concurrency, 1, MAX),
        ("bufferPercent", spec.buffer_percent, 0, 1000),
    ];
    ranges(at, &numbers, checks);
    if spec.min_concurrency.unwrap_or(3) > spec.max_concurrency.unwrap_or(1000) {
        let message = "minConcurrency is more than maxConcurrency";
        checks.error(&format!("{at}.minConcurrency"), reason::CONFLICTING_FIELDS, message, None);
    }
}

fn check_admission(spec: &AdmissionControl, at: &str, checks: &mut Checks<'_>) {
    checks.positive(&format!("{at}.window"), spec.window);
    check_aggression(&format!("{at}.aggression"), spec.aggression, checks);
    let numbers = [
        ("successThreshold", spec.success_threshold, 1, 100),
        ("maxRejectionPercent", spec.max_rejection_percent, 0, 100),
    ];
    ranges(at, &numbers, checks);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes() {
        let found: Vec<u32> = (0..30).filter(|n| is_prime(*n)).collect();
        assert_eq!(found, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65_537) && is_prime(5_000_011) && !is_prime(65_536));
    }
}
