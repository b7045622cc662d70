//! ExternalAuthorizers and ExternalAuth filters.

use std::time::Duration;

use fieldgate_core::ir::{
    ExtAuthz, ExtAuthzProtocol, ExtAuthzRoute, Filter, GuardKind, ObjectKey, StringMatch,
};

use super::*;

const BACKEND: &str = "backendRefs: [{group: fieldgate.dev, kind: Pool, name: p}]";
const POOL: &str = "backendRef: {group: fieldgate.dev, kind: Pool, name: opa}";

fn authorizer(spec: &str) -> String {
    object("fieldgate.dev/v1alpha1", "ExternalAuthorizer", "a", spec)
}

fn made(config: &ir::Config) -> ExtAuthz {
    let guard = config.guards.values().next().expect("a guard");
    let GuardKind::ExtAuthz(authorizer) = &guard.kind else { panic!("{guard:?}") };
    (**authorizer).clone()
}

fn exact(name: &str) -> StringMatch {
    StringMatch::Exact(name.into())
}

#[test]
fn one_without_a_word_more_is_as_envoys() {
    let authorizer =
        made(&config(&[&gateway(WEB), &pool("opa"), &authorizer(&format!("{POOL}, grpc: {{}}"))]));
    assert_eq!(authorizer.pool.to_string(), "Pool default/opa");
    assert_eq!(authorizer.protocol, ExtAuthzProtocol::Grpc { authority: None });
    assert_eq!((authorizer.timeout, authorizer.status_on_error), (Duration::from_millis(200), 403));
    assert!(!authorizer.fail_open && authorizer.body_limit == 0 && authorizer.own_headers.is_empty());
}

#[test]
fn all_that_is_said_of_grpc_is_taken_over() {
    let spec = format!(
        "{POOL}, timeout: 1s, failOpen: true, failOpenHeader: true, statusOnError: 503, \
         reservedHeaders: [X-User, x-auth-*], \
         grpc: {{authority: opa.example, includeRequestHeadersInCheck: [Authorization], includePeerCertificate: true, \
         context: {{tier: gold}}}}, \
         includeRequestBodyInCheck: {{maxRequestBytes: 1024, allowPartialMessage: true, packAsBytes: true}}, \
         routes: [{{targetRef: {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: open}}, disabled: true}}, \
         {{targetRef: {{group: gateway.networking.k8s.io, kind: GRPCRoute, name: g}}, context: {{tier: iron}}}}]"
    );
    let authorizer = made(&config(&[&gateway(WEB), &pool("opa"), &authorizer(&spec)]));
    assert_eq!(authorizer.protocol, ExtAuthzProtocol::Grpc { authority: Some("opa.example".into()) });
    assert!(authorizer.fail_open && authorizer.fail_open_header && authorizer.peer_certificate);
    assert_eq!((authorizer.timeout, authorizer.status_on_error), (Duration::from_secs(1), 503));
    assert_eq!((authorizer.body_limit, authorizer.partial_body, authorizer.raw_body), (1024, true, true));
    assert_eq!(authorizer.own_headers, [exact("x-user"), StringMatch::Prefix("x-auth-".into())]);
    assert_eq!(authorizer.request_headers, [exact("authorization")]);
    assert_eq!(authorizer.context, [("tier".into(), "gold".into())]);
    let iron = ExtAuthzRoute::Context(vec![("tier".into(), "iron".into())]);
    let routes = [("default/r/open".into(), ExtAuthzRoute::Off), ("grpc:default/g".into(), iron)];
    assert_eq!(authorizer.routes, routes);
}

#[test]
fn what_an_http_authorizer_sets_is_not_the_clients_to_set() {
    let spec = format!(
        "{POOL}, http: {{pathPrefix: /verify, authority: 'auth.example:8080', includeRequestHeadersInCheck: [Cookie], \
         includeAdditionalHeadersInCheck: {{X-From: edge}}, headersToUpstreamOnAllow: [X-User, Authorization, cookie], \
         headersToDownstreamOnAllow: [set-cookie], headersToDownstreamOnDeny: [x-why]}}"
    );
    let authorizer = made(&config(&[&gateway(WEB), &pool("opa"), &authorizer(&spec)]));
    assert_eq!(authorizer.own_headers, [exact("x-user")], "what a client proves itself by stays");
    let ExtAuthzProtocol::Http { path_prefix, authority, add, upstream_headers, .. } = authorizer.protocol
    else {
        panic!()
    };
    assert_eq!((&*path_prefix, authority.as_deref()), ("/verify", Some("auth.example:8080")));
    assert_eq!(add, [("x-from".into(), "edge".into())]);
    assert_eq!(upstream_headers, [exact("x-user"), exact("authorization"), exact("cookie")]);
}

#[test]
fn without_its_service_it_is_not_there_and_that_is_said() {
    let targets = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";
    let texts = [
        gateway(WEB),
        route("rules: [{}]"),
        authorizer(&format!("{targets}, {POOL}, failOpen: true, grpc: {{}}")),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    assert!(config.guards.is_empty());
    let rule = &config.routes.values().next().unwrap().rules[0];
    assert!(
        matches!(&rule.filters[0], Filter::Guard(guard) if &*guard.key.name == "a"),
        "the server refuses for it"
    );
    assert_eq!(problems(&texts), ["BackendNotFound spec.backendRef.name"]);
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for (spec, field) in [
        (POOL.to_string(), "spec"),
        (format!("{POOL}, grpc: {{}}, http: {{}}"), "spec.http"),
        (format!("{POOL}, grpc: {{}}, timeout: 0s"), "spec.timeout"),
        (format!("{POOL}, grpc: {{}}, timeout: 2m"), "spec.timeout"),
        (format!("{POOL}, grpc: {{}}, statusOnError: 200"), "spec.statusOnError"),
        (format!("{POOL}, grpc: {{}}, failOpenHeader: true"), "spec.failOpenHeader"),
        (format!("{POOL}, grpc: {{}}, reservedHeaders: ['a b']"), "spec.reservedHeaders[0]"),
        (format!("{POOL}, grpc: {{}}, reservedHeaders: ['a*b']"), "spec.reservedHeaders[0]"),
        (format!("{POOL}, http: {{pathPrefix: 'a'}}"), "spec.http.pathPrefix"),
        (format!("{POOL}, http: {{pathPrefix: '/a?b'}}"), "spec.http.pathPrefix"),
        (
            format!("{POOL}, http: {{includeAdditionalHeadersInCheck: {{host: a}}}}"),
            "spec.http.includeAdditionalHeadersInCheck.host",
        ),
        (
            format!("{POOL}, grpc: {{}}, includeRequestBodyInCheck: {{maxRequestBytes: 0}}"),
            "spec.includeRequestBodyInCheck.maxRequestBytes",
        ),
        (
            format!(
                "{POOL}, http: {{}}, routes: [{{targetRef: {{group: x, kind: HTTPRoute, name: r}}, disabled: true}}]"
            ),
            "spec.routes[0].targetRef",
        ),
    ] {
        let texts = [gateway(WEB), pool("opa"), authorizer(&spec)];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let problems = problems(&texts);
        assert!(problems.iter().any(|p| p.split(' ').nth(1) == Some(field)), "{spec}: {problems:?}");
    }
}

#[test]
fn one_that_was_never_read_closes_its_namespace() {
    let bad = authorizer(&format!("{POOL}, grpc: {{}}, failOpne: true"));
    let closed = |texts: &[&str]| config(texts).policies.values().map(|p| p.listeners.len()).sum::<usize>();
    assert_eq!(closed(&[&gateway(WEB), &pool("opa")]), 0);
    assert_eq!(closed(&[&gateway(WEB), &pool("opa"), &bad]), 1);
}

fn filter(auth: &str) -> String {
    let filter = format!("{{type: ExternalAuth, externalAuth: {{{auth}}}}}");
    route(&format!("rules: [{{filters: [{filter}], {BACKEND}}}]"))
}

#[test]
fn a_filter_is_a_guard_of_its_rule() {
    let auth = format!(
        "{POOL}, protocol: HTTP, http: {{path: /check, allowedHeaders: [Cookie]}}, forwardBody: {{maxSize: 10}}"
    );
    let config = config(&[&gateway(WEB), &pool("p"), &pool("opa"), &filter(&auth)]);
    let key = ObjectKey { kind: "ExternalAuth", namespace: "default".into(), name: "r:0".into() };
    let rule = &config.routes.values().next().unwrap().rules[0];
    assert!(matches!(&rule.filters[..], [Filter::Guard(guard)] if guard.key == key), "{:?}", rule.filters);
    let authorizer = made(&config);
    assert_eq!((authorizer.body_limit, authorizer.partial_body), (10, false));
    assert_eq!(authorizer.request_headers, [exact("cookie")]);
    let ExtAuthzProtocol::Http { upstream_headers, .. } = authorizer.protocol else { panic!() };
    assert_eq!(upstream_headers, [StringMatch::Present], "all, where none is named");
}

#[test]
fn a_filter_whose_service_is_missing_refuses() {
    let texts = [gateway(WEB), pool("p"), filter(&format!("{POOL}, protocol: GRPC"))];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    let rule = &config.routes.values().next().unwrap().rules[0];
    assert!(matches!(&rule.filters[..], [Filter::Guard(_)]) && config.guards.is_empty());
    let problems = problems(&texts);
    assert!(problems[0].ends_with("spec.rules[0].filters[0].externalAuth.backendRef.name"), "{problems:?}");
}

#[test]
fn guards_of_a_route_come_and_go_with_it() {
    let auth = |protocol: &str| filter(&format!("{POOL}, protocol: {protocol}"));
    let mut configuration = configuration(&[&gateway(WEB), &pool("p"), &pool("opa"), &auth("GRPC")]);
    let mut change =
        |name: &str, text: Option<String>| configuration.apply(vec![FileChange { name: name.into(), text }]);
    let before = change("9.yaml", None).config.guards;
    assert_eq!(before.len(), 1);
    let outcome = change("3.yaml", Some(auth("HTTP")));
    assert!(outcome.changed && outcome.config.guards != before, "the route is the same, its guard is not");
    let other = authorizer(&format!("{POOL}, grpc: {{}}"));
    let outcome = change("9.yaml", Some(other));
    assert_eq!(outcome.config.guards.len(), 2);
    let outcome = change("3.yaml", None);
    assert_eq!(outcome.config.guards.len(), 1);
    let kept = outcome.config.guards.values().next().unwrap();
    assert_eq!(kept.key.kind, "ExternalAuthorizer");
}
