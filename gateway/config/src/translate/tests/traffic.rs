//! What routes and TrafficPolicies say of retries, times, affinity and faults.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    Affinity, AffinityCarrier, Backoff, FaultAnswer, Filter, Hedge, RetryOn, Rule, ValueMatch,
};

use super::*;

fn policy(name: &str, section: &str, spec: &str) -> String {
    let target =
        format!("targetRef: {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r{section}}}");
    object("fieldgate.dev/v1alpha1", "TrafficPolicy", name, &format!("{target}, {spec}"))
}

/// The rules of route `r` with these rules and policies.
fn rules(rules: &str, policies: &[String]) -> Vec<Arc<Rule>> {
    let (gateway, route) = (gateway(WEB), route(&format!("rules: [{rules}]")));
    let policies = policies.iter().map(String::as_str);
    let texts: Vec<&str> = [&*gateway, &route].into_iter().chain(policies).collect();
    http_route(&texts).rules.clone()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_policy_says_what_becomes_of_requests() {
    let spec = "retry: {attempts: 3, on: [5xx, cancelled], statusCodes: [409], headers: [X-Retry], perTryTimeout: 1s, \
                backoff: {base: 10ms, max: 1s}, retryAfterMax: 2s, hedge: {after: 100ms}, bodyLimit: 1000}, \
                timeouts: {request: 9s, backendRequest: 3s, idle: 0s}, \
                affinity: {cookie: {name: c, ttl: 1h}, strict: true}, \
                fault: {headers: [{name: X-Test, value: a.*, type: RegularExpression}], \
                delay: {percent: 0.5, time: 2s}, abort: {grpcStatus: 14}}";
    let rules = rules(
        "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}]}",
        &[policy("p", "", spec)],
    );
    let rule = &rules[0];
    let retry = rule.retry.as_deref().expect("a retry");
    assert_eq!(retry.attempts, 3);
    let on = RetryOn::SERVER_ERROR.and(RetryOn::GRPC_CANCELLED);
    assert_eq!(retry.on, on.and(RetryOn::STATUS_CODES).and(RetryOn::HEADERS));
    assert_eq!((&retry.codes[..], &*retry.headers[0]), (&[409][..], "x-retry"));
    assert_eq!((retry.per_try_timeout, retry.retry_after), (Some(secs(1)), Some(secs(2))));
    assert_eq!(retry.backoff, Backoff { base: Duration::from_millis(10), max: secs(1) });
    assert_eq!(retry.hedge, Some(Hedge { after: Duration::from_millis(100), at_once: 2 }));
    assert_eq!(retry.body_limit, 1000);
    let times = rule.timeouts;
    assert_eq!(
        (times.request, times.backend_request, times.idle),
        (Some(secs(9)), Some(secs(3)), Some(secs(0)))
    );
    let carrier = AffinityCarrier::Cookie { name: "c".into(), ttl: Some(secs(3600)), path: "/".into() };
    assert_eq!(rule.affinity.as_deref(), Some(&Affinity { carrier, strict: true }));
    assert!(matches!(rule.filters[1], Filter::RequestHeaders(_)), "faults come first");
    let Filter::Fault(fault) = &rule.filters[0] else { panic!("{:?}", rule.filters) };
    assert_eq!(fault.headers, [("x-test".into(), ValueMatch::Regex("a.*".into()))]);
    assert_eq!(fault.delay, Some((5_000, secs(2))));
    assert_eq!(fault.abort, Some((1_000_000, FaultAnswer::Grpc(14))));
}

#[test]
fn what_the_route_says_goes_before_the_policy() {
    let spec = "retry: {attempts: 5, on: [reset], backoff: {base: 1s}, perTryTimeout: 1s}, \
                timeouts: {request: 9s, backendRequest: 4s}, affinity: {header: {name: X-To}}";
    let own =
        "timeouts: {request: 3s}, retry: {codes: [503], attempts: 1}, sessionPersistence: {sessionName: s}";
    let rules = rules(&format!("{{{own}}}"), &[policy("p", "", spec)]);
    let retry = rules[0].retry.as_deref().expect("a retry");
    assert_eq!((retry.attempts, &retry.codes[..]), (1, &[503][..]));
    assert_eq!(retry.on, RetryOn::RESET.and(RetryOn::STATUS_CODES));
    assert_eq!((retry.backoff.base, retry.per_try_timeout), (secs(1), Some(secs(1))));
    let times = rules[0].timeouts;
    assert_eq!((times.request, times.backend_request), (Some(secs(3)), Some(secs(4))));
    let carrier = &rules[0].affinity.as_deref().expect("an affinity").carrier;
    assert!(matches!(carrier, AffinityCarrier::Cookie { name, .. } if &**name == "s"), "{carrier:?}");
}

#[test]
fn the_policy_of_a_named_rule_goes_before_that_of_its_route() {
    let policies = [
        policy("all", "", "timeouts: {idle: 1s}"),
        policy("later", "", "timeouts: {idle: 2s}"),
        policy("pay", ", sectionName: pay", "timeouts: {request: 3s}"),
    ];
    let rules = rules("{}, {name: pay}", &policies);
    assert_eq!(rules[0].timeouts.idle, Some(secs(1)));
    assert_eq!((rules[1].timeouts.idle, rules[1].timeouts.request), (None, Some(secs(3))));
    let texts = [gateway(WEB), route("rules: [{}, {name: pay}]")];
    let texts: Vec<&str> = texts.iter().chain(&policies).map(String::as_str).collect();
    for (name, condition) in [
        ("all", "/Accepted=true Accepted"),
        ("later", "/Accepted=false Conflicted"),
        ("pay", "/Accepted=true Accepted"),
    ] {
        assert_eq!(conditions(&texts, "TrafficPolicy", name), [condition], "{name}");
    }
}

#[test]
fn a_policy_that_goes_leaves_nothing_behind() {
    let (gateway, route) = (gateway(WEB), route("rules: [{}]"));
    let policy = policy("p", "", "timeouts: {idle: 1s}");
    let mut configuration = configuration(&[&gateway, &route, &policy]);
    let gone = FileChange { name: "2.yaml".into(), text: None };
    let outcome = configuration.apply(vec![gone]);
    let route = outcome.config.routes.values().next().expect("a route");
    assert_eq!(route.rules[0].timeouts.idle, None);
    assert_eq!(outcome.touched, ir::Touched::Routes(vec![route.key.clone()]));
}

#[test]
fn a_pattern_that_is_none_refuses_the_policy() {
    let spec = "fault: {headers: [{name: a, value: '(', type: RegularExpression}], abort: {status: 500}}";
    let texts = [gateway(WEB), route("rules: [{}]"), policy("p", "", spec)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(problems(&texts), ["UnsupportedValue spec.fault.headers[0].value"]);
    assert!(http_route(&texts).rules[0].filters.is_empty());
}

#[test]
fn sessions_stay_at_their_endpoint() {
    let carrier = |rule: &str| {
        let rules = rules(rule, &[]);
        let affinity = rules[0].affinity.as_deref().expect("an affinity").clone();
        assert!(!affinity.strict);
        affinity.carrier
    };
    let cookie =
        |name: &str, ttl, path: &str| AffinityCarrier::Cookie { name: name.into(), ttl, path: path.into() };
    assert_eq!(carrier("{sessionPersistence: {sessionName: s}}"), cookie("s", None, "/"));
    assert_eq!(
        carrier(
            "{matches: [{path: {value: /shop}}], sessionPersistence: {sessionName: s, absoluteTimeout: 1h, \
             cookieConfig: {lifetimeType: Permanent}}}"
        ),
        cookie("s", Some(secs(3600)), "/shop")
    );
    assert_eq!(
        carrier("{sessionPersistence: {sessionName: X-Session, type: Header}}"),
        AffinityCarrier::Header("x-session".into())
    );
    let rules = rules("{sessionPersistence: {}}, {sessionPersistence: {}}", &[]);
    assert_ne!(rules[0].affinity, rules[1].affinity, "rules do not share a cookie");
}

#[test]
fn what_a_session_cannot_have_is_said() {
    let rule = "{sessionPersistence: {absoluteTimeout: 1h, idleTimeout: 1m}}";
    let grpc = object(
        "gateway.networking.k8s.io/v1",
        "GRPCRoute",
        "g",
        "parentRefs: [{name: edge}], rules: [{sessionPersistence: {sessionName: s, type: Header, idleTimeout: 1m}}]",
    );
    let texts = [gateway(WEB), route(&format!("rules: [{rule}]")), grpc];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = [
        "UnsupportedValue spec.rules[0].sessionPersistence.absoluteTimeout",
        "UnsupportedValue spec.rules[0].sessionPersistence.idleTimeout",
        "UnsupportedValue spec.rules[0].sessionPersistence.idleTimeout",
    ];
    assert_eq!(problems(&texts), expected);
}
