//! Where guards are attached, and what becomes of those that cannot be made.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    DescriptorEntry, Filter, Guard, GuardKind, GuardRef, LimitCondition, LimitKey, ObjectKey, RateLimit,
    StringMatch,
};

use super::*;

const TWO: &str = "{name: web, protocol: HTTP, port: 80}, {name: alt, protocol: HTTP, port: 81}";
const LIMIT: &str = "limits: [{name: all, rate: {requests: 10, per: 1m}}]";

fn policy(name: &str, targets: &[(&str, &str, &str)], spec: &str) -> String {
    let one = |(kind, name, section): &(&str, &str, &str)| {
        let section = if section.is_empty() { String::new() } else { format!(", sectionName: {section}") };
        format!("{{group: gateway.networking.k8s.io, kind: {kind}, name: {name}{section}}}")
    };
    let targets: Vec<String> = targets.iter().map(one).collect();
    let spec = format!("targetRefs: [{}], {spec}", targets.join(", "));
    object("fieldgate.dev/v1alpha1", "RateLimitPolicy", name, &spec)
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: "RateLimitPolicy", namespace: "default".into(), name: name.into() }
}

fn names(guards: &[Arc<GuardRef>]) -> Vec<&str> {
    guards.iter().map(|guard| &*guard.key.name).collect()
}

/// Of each rule of the only route, the names of its guards and a letter for each other filter.
fn filters(config: &ir::Config) -> Vec<Vec<String>> {
    let route = config.routes.values().next().expect("a route");
    let of = |filter: &Filter| match filter {
        Filter::Guard(guard) => guard.key.name.to_string(),
        Filter::Fault(_) => "F".to_owned(),
        Filter::Cors(_) => "C".to_owned(),
        _ => "-".to_owned(),
    };
    route.rules.iter().map(|rule| rule.filters.iter().map(of).collect()).collect()
}

fn rate_limit(config: &ir::Config, name: &str) -> RateLimit {
    let guard: &Guard = config.guards.get(&key(name)).expect("a guard");
    let GuardKind::RateLimit(limit) = &guard.kind else { panic!("{guard:?}") };
    (**limit).clone()
}

#[test]
fn a_guard_is_where_it_is_attached_and_in_what_that_is_a_part_of() {
    let route = route("rules: [{}, {name: pay}]");
    let texts = [
        gateway(TWO),
        route,
        policy("everywhere", &[("Gateway", "edge", "")], LIMIT),
        policy("alt", &[("Gateway", "edge", "alt")], LIMIT),
        policy("both", &[("HTTPRoute", "r", ""), ("HTTPRoute", "r", "pay")], LIMIT),
        policy("one", &[("HTTPRoute", "r", "pay")], LIMIT),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    assert_eq!(problems(&texts), Vec::<String>::new());
    let listeners: Vec<_> = config.listeners.values().map(|l| (&*l.key.name, names(&l.guards))).collect();
    assert_eq!(listeners, [("alt", vec!["everywhere", "alt"]), ("web", vec!["everywhere"])]);
    assert_eq!(filters(&config), [vec!["both"], vec!["both", "one"]]);
    assert_eq!(config.guards.len(), 4);
}

#[test]
fn guards_are_asked_after_faults_and_cors_and_before_all_else() {
    let rule = "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [a]}}, \
                {type: CORS, cors: {allowOrigins: ['*']}}]}";
    let fault = object(
        "fieldgate.dev/v1alpha1",
        "TrafficPolicy",
        "t",
        "targetRef: {group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}, fault: {abort: {status: 500}}",
    );
    let limits = policy("l", &[("HTTPRoute", "r", "")], LIMIT);
    let texts = [&gateway(WEB), &route(&format!("rules: [{rule}]")), &fault, &limits];
    let texts: Vec<&str> = texts.into_iter().map(String::as_str).collect();
    assert_eq!(filters(&config(&texts)), [["F", "C", "l", "-"]]);
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let check = |target: (&str, &str, &str), problem: &str, condition: &str| {
        let texts = [gateway(WEB), route("rules: [{name: pay}]"), policy("l", &[target], LIMIT)];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert_eq!(problems(&texts), [problem]);
        assert_eq!(conditions(&texts, "RateLimitPolicy", "l"), [condition]);
    };
    let (name, section) =
        ("TargetNotFound spec.targetRefs[0].name", "TargetNotFound spec.targetRefs[0].sectionName");
    check(("HTTPRoute", "q", ""), name, "HTTPRoute q/Accepted=false TargetNotFound");
    check(("HTTPRoute", "r", "pya"), section, "HTTPRoute r pya/Accepted=false TargetNotFound");
    check(("GRPCRoute", "r", ""), name, "GRPCRoute r/Accepted=false TargetNotFound");
    check(("Gateway", "egde", ""), name, "Gateway egde/Accepted=false TargetNotFound");
    check(("Gateway", "edge", "wbe"), section, "Gateway edge wbe/Accepted=false TargetNotFound");
}

#[test]
fn a_guard_that_comes_or_goes_touches_what_it_is_attached_to() {
    let (gateway, route) = (gateway(WEB), route("rules: [{}]"));
    let limits = policy("l", &[("HTTPRoute", "r", ""), ("Gateway", "edge", "")], LIMIT);
    let mut configuration = configuration(&[&gateway, &route]);
    let mut change = |text: Option<&str>| {
        let file = FileChange { name: "2.yaml".into(), text: text.map(str::to_owned) };
        configuration.apply(vec![file])
    };
    let outcome = change(Some(&limits));
    let guarded = outcome.config.listeners.values().next().expect("a listener").clone();
    assert_eq!((names(&guarded.guards), filters(&outcome.config)), (vec!["l"], vec![vec!["l".to_owned()]]));
    // What it says is its own matter: neither route nor listener changes with it.
    let outcome = change(Some(&limits.replace("requests: 10", "requests: 11")));
    assert!(outcome.changed && outcome.touched == ir::Touched::Routes(Vec::new()), "{:?}", outcome.touched);
    assert!(Arc::ptr_eq(outcome.config.listeners.values().next().expect("a listener"), &guarded));
    let outcome = change(None);
    assert_eq!(filters(&outcome.config), [Vec::<String>::new()]);
    assert!(outcome.config.guards.is_empty());
    assert!(outcome.config.listeners.values().all(|l| l.guards.is_empty()));
}

#[test]
fn a_guard_that_cannot_be_made_keeps_its_place() {
    let global = |rest: &str| {
        let descriptors = "descriptors: [{entries: [{key: a, value: b}]}]";
        format!("global: {{backendRef: {{name: ratelimit, port: 8081}}, domain: d, {descriptors}{rest}}}")
    };
    let texts =
        |spec: &str| [gateway(WEB), route("rules: [{}]"), policy("l", &[("HTTPRoute", "r", "")], spec)];
    let closed = texts(&global(", failOpen: false"));
    let closed: Vec<&str> = closed.iter().map(String::as_str).collect();
    assert_eq!(problems(&closed), ["BackendNotFound spec.global.backendRef.name"]);
    assert_eq!(conditions(&closed, "RateLimitPolicy", "l"), ["HTTPRoute r/Accepted=false BackendNotFound"]);
    let closed = config(&closed);
    assert!(closed.guards.is_empty());
    assert_eq!(filters(&closed), [["l"]], "the server refuses what would have passed it");
    let open = texts(&global(""));
    let open: Vec<&str> = open.iter().map(String::as_str).collect();
    assert_eq!(problems(&open), ["BackendNotFound spec.global.backendRef.name"]);
    let limit = rate_limit(&config(&open), "l");
    assert!(
        limit.global.is_some_and(|global| global.fail_open),
        "nobody answers, and that lets requests pass"
    );
}

#[test]
fn all_of_a_rate_limit_is_read() {
    let spec = "limits: [{name: per-user, rate: {requests: 100, per: 1m}, burst: 20, maxKeys: 5000, \
                by: [{header: X-Tenant}, {client: {}}, {client: {ipv4Prefix: 24, ipv6Prefix: 48}}, {principal: {}}, \
                {user: {}}, {claim: [realm, tenant]}, {route: {}}, {host: {}}, {path: {}}, {method: {}}], \
                when: [{header: {name: X-Plan}}, {header: {name: X-Plan, value: fr*}}, {path: '/api/*'}, \
                {path: '/users/{*}'}, {method: POST}]}], \
                global: {backendRef: {group: fieldgate.dev, kind: Pool, name: p}, domain: edge, timeout: 50ms, \
                failOpen: false, descriptors: [{entries: [{key: generic_key, value: x}, \
                {key: remote_address, from: {client: {}}}]}]}, shadow: true, headers: true, status: 503, grpcStatus: ResourceExhausted";
    let texts = [gateway(WEB), route("rules: [{}]"), pool("p"), policy("l", &[("HTTPRoute", "r", "")], spec)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(problems(&texts), Vec::<String>::new());
    let read = rate_limit(&config(&texts), "l");
    assert_eq!((read.shadow, read.headers, read.status), (true, true, 503));
    assert!(read.resource_exhausted);
    let limit = &read.limits[0];
    assert_eq!((&*limit.name, limit.burst, limit.tokens, limit.max_keys), ("per-user", 20, 100, 5000));
    assert_eq!(limit.interval, Duration::from_mins(1));
    let by = [
        LimitKey::Header("x-tenant".into()),
        LimitKey::Client(32, 64),
        LimitKey::Client(24, 48),
        LimitKey::Principal,
        LimitKey::User,
        LimitKey::Claim(vec!["realm".into(), "tenant".into()]),
        LimitKey::Route,
        LimitKey::Host,
        LimitKey::Path,
        LimitKey::Method,
    ];
    assert_eq!(limit.by, by);
    let when = [
        LimitCondition::Header("x-plan".into(), StringMatch::Present),
        LimitCondition::Header("x-plan".into(), StringMatch::Prefix("fr".into())),
        LimitCondition::Path(StringMatch::Prefix("/api/".into())),
        LimitCondition::Path(StringMatch::Template("/users/{*}".into())),
        LimitCondition::Method("POST".into()),
    ];
    assert_eq!(limit.when, when);
    let global = read.global.expect("a service");
    assert_eq!(global.pool.to_string(), "Pool default/p");
    assert_eq!(
        (&*global.domain, global.timeout, global.fail_open),
        ("edge", Duration::from_millis(50), false)
    );
    let entries = [
        DescriptorEntry::Generic("generic_key".into(), "x".into()),
        DescriptorEntry::Of("remote_address".into(), LimitKey::Client(32, 64)),
    ];
    assert_eq!(global.descriptors, [entries]);
}

#[test]
fn what_is_left_out_has_envoys_defaults() {
    let spec = "limits: [{name: a, rate: {requests: 7, per: 1s}}], \
                global: {backendRef: {group: fieldgate.dev, kind: Pool, name: p}, domain: d, \
                descriptors: [{entries: [{key: a, value: b}]}]}";
    let texts = [gateway(WEB), route("rules: [{}]"), pool("p"), policy("l", &[("HTTPRoute", "r", "")], spec)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let read = rate_limit(&config(&texts), "l");
    assert_eq!((read.shadow, read.headers, read.status), (false, false, 429));
    assert_eq!((read.limits[0].burst, read.limits[0].max_keys), (7, 100_000));
    let global = read.global.expect("a service");
    assert_eq!((global.timeout, global.fail_open), (Duration::from_millis(20), true));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let check = |spec: &str, problem: &str| {
        let target = [("HTTPRoute", "r", "")];
        assert_eq!(problems(&[&policy("l", &target, spec)]), [problem], "{spec}");
    };
    let limit = |rest: &str| format!("limits: [{{name: a, rate: {{requests: 1, per: 1s}}, {rest}}}]");
    check("shadow: true", "MissingField spec");
    check("limits: [{name: a, rate: {requests: 0, per: 1s}}]", "OutOfRange spec.limits[0].rate.requests");
    check("limits: [{name: a, rate: {requests: 1, per: 0s}}]", "OutOfRange spec.limits[0].rate.per");
    check("limits: [{name: a, rate: {requests: 1, per: 8d}}]", "OutOfRange spec.limits[0].rate.per");
    check(&limit("burst: 0"), "OutOfRange spec.limits[0].burst");
    check(&limit("burst: 40000000"), "OutOfRange spec.limits[0].burst");
    check(&limit("maxKeys: 10"), "ConflictingFields spec.limits[0].maxKeys");
    check(&limit("by: [{}]"), "MissingField spec.limits[0].by[0]");
    check(&limit("by: [{route: {}, host: {}}]"), "ConflictingFields spec.limits[0].by[0].host");
    check(&limit("by: [{client: {ipv4Prefix: 33}}]"), "OutOfRange spec.limits[0].by[0].client.ipv4Prefix");
    check(&limit("by: [{claim: []}]"), "InvalidValue spec.limits[0].by[0].claim");
    check(&limit("when: [{path: api}]"), "InvalidValue spec.limits[0].when[0].path");
    check(&limit("perUser: true"), "UnknownField spec.limits[0].perUser");
    check(&format!("{LIMIT}, status: 200"), "OutOfRange spec.status");
    let target = [("Gateway", "edge", "")];
    let by_route = policy("l", &target, &limit("by: [{route: {}}]"));
    assert_eq!(problems(&[&by_route]), ["ConflictingFields spec.limits[0].by[0].route"]);
    let nowhere = policy("l", &[], LIMIT);
    assert_eq!(problems(&[&nowhere]), ["MissingField spec.targetRefs"]);
    let wrong = policy("l", &[("Service", "s", "")], LIMIT);
    assert_eq!(problems(&[&wrong]), ["InvalidValue spec.targetRefs[0]"]);
}
