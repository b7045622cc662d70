//! EdgePolicies: lists of addresses above all, which may be long and wrong in one line.

use std::sync::Arc;

use fieldgate_core::ir::{EdgeRules, GuardKind, ObjectKey, StringMatch, StripPort};
use fieldgate_core::path::EscapedSlashes;

use super::*;

const GATEWAY: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]";

fn policy(spec: &str) -> String {
    object("fieldgate.dev/v1alpha1", "EdgePolicy", "e", &format!("{GATEWAY}, {spec}"))
}

fn list(text: &str) -> String {
    let lines = text.lines().fold(String::new(), |text, line| text + "    " + line + "\n");
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bad}}\ndata:\n  list: |\n{lines}")
}

fn apply(texts: &[String]) -> crate::Outcome {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Configuration::default().apply(files(&texts))
}

fn web() -> String {
    gateway("{name: web, protocol: HTTP, port: 80}")
}

fn rules(config: &ir::Config) -> Option<EdgeRules> {
    let key = ObjectKey { kind: "EdgePolicy", namespace: "default".into(), name: "e".into() };
    match &config.guards.get(&key)?.kind {
        GuardKind::Edge(rules) => Some((**rules).clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_of_it() {
    let spec = "addresses: {allow: [10.0.0.0/8], deny: [10.1.2.3], denyFrom: [{configMap: bad, key: list}]}, \
        limits: {bodyBytes: 1024, targetBytes: 100}, methods: [GET], requestHeaders: {allow: [X-App-*], defaults: false}, \
        securityHeaders: {frameOptions: '', contentSecurityPolicy: \"default-src 'self'\"}, \
        paths: {mergeSlashes: true, escapedSlashes: UnescapeAndRedirect}, hostPort: StripMatching";
    let list = list("# spammers\n192.0.2.0/24   # a net\n\n2001:db8::/32");
    let outcome = apply(&[web(), policy(spec), list]);
    assert_eq!(outcome.diagnostics, []);
    let rules = rules(&outcome.config).expect("rules");
    let has = |set: &fieldgate_core::AddressSet, a: &str| set.contains(a.parse().expect("an address"));
    assert!(has(rules.allow.as_ref().expect("a list"), "10.9.9.9"));
    for denied in ["10.1.2.3", "192.0.2.77", "2001:db8::7"] {
        assert!(has(&rules.deny, denied), "{denied}");
    }
    assert!(!has(&rules.deny, "192.0.3.1"));
    assert_eq!(
        (rules.max_body, rules.max_target, rules.strip_port),
        (Some(1024), Some(100), StripPort::Matching)
    );
    assert_eq!(rules.request_headers.as_deref(), Some(&[StringMatch::Prefix("x-app-".into())][..]));
    let names: Vec<&str> = rules.response_headers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["x-content-type-options", "referrer-policy", "content-security-policy"]);
    assert_eq!(rules.transport_security.as_deref(), Some("max-age=31536000"));
    let paths = rules.paths.expect("options");
    assert_eq!((paths.merge_slashes, paths.escaped_slashes), (true, EscapedSlashes::Redirect));
}

#[test]
fn a_list_that_cannot_be_read_closes_what_it_guards() {
    let spec = "addresses: {denyFrom: [{configMap: bad, key: list}]}";
    for (texts, message) in [
        (vec![web(), policy(spec)], "there is no ConfigMap default/bad"),
        (
            vec![web(), policy(spec), list("192.0.2.1\n192.0.2.300")],
            "line 2 of \"list\" in ConfigMap bad: \"192.0.2.300\" is neither an IP address nor a CIDR range",
        ),
        (
            vec![web(), policy(&spec.replace("key: list", "key: lisst")), list("::1")],
            "ConfigMap bad has no key \"lisst\"",
        ),
    ] {
        let outcome = apply(&texts);
        assert_eq!(outcome.diagnostics.len(), 1, "{:?}", outcome.diagnostics);
        assert_eq!(outcome.diagnostics[0].message, message);
        assert!(
            outcome.diagnostics[0].field.starts_with("spec.addresses.denyFrom[0]"),
            "{:?}",
            outcome.diagnostics
        );
        assert_eq!(rules(&outcome.config), None);
        let listener = outcome.config.listeners.values().next().expect("a listener");
        assert_eq!(listener.guards.len(), 1, "the server refuses what names a guard that is not there");
    }
}

#[test]
fn a_list_is_read_again_only_when_it_changes() {
    let spec = "addresses: {denyFrom: [{configMap: bad, key: list}]}";
    let mut configuration = Configuration::default();
    let file = |name: &str, text: String| FileChange { name: name.into(), text: Some(text) };
    let first =
        configuration.apply(vec![file("g", web()), file("p", policy(spec)), file("l", list("192.0.2.1"))]);
    let before = rules(&first.config).expect("rules").deny;
    let other = configuration.apply(vec![file("p", policy(&format!("{spec}, methods: [GET]")))]);
    assert!(Arc::ptr_eq(&before, &rules(&other.config).expect("rules").deny));
    let longer = configuration.apply(vec![file("l", list("192.0.2.1\n192.0.2.9"))]);
    let deny = rules(&longer.config).expect("rules").deny;
    assert!(longer.changed && deny.contains("192.0.2.9".parse().expect("an address")));
}

#[test]
fn paths_of_a_route_come_too_late() {
    let route = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}], paths: {mergeSlashes: true}";
    let text = object("fieldgate.dev/v1alpha1", "EdgePolicy", "e", route);
    let outcome = apply(&[web(), super::route("rules: [{}]"), text]);
    assert_eq!(outcome.diagnostics[0].field, "spec.targetRefs[0]", "{:?}", outcome.diagnostics);
}
