//! AuthorizationPolicy: to which listeners, and closed where it cannot be evaluated.

use fieldgate_core::ir::{PolicyAction, PolicyRule, StringMatch};

use super::*;

fn policy(name: &str, spec: &str) -> String {
    object("security.istio.io/v1", "AuthorizationPolicy", name, spec)
}

fn policies(texts: &[&str]) -> Vec<ir::Policy> {
    config(texts).policies.values().map(|p| (**p).clone()).collect()
}

/// Two Gateways in `default` and one in `far`.
fn gateways() -> [String; 3] {
    let web = gateway(WEB).replace("{name: edge}", "{name: edge, labels: {tier: front}}");
    let other = gateway("{name: web, protocol: HTTP, port: 81}").replace("name: edge", "name: inner");
    let far =
        gateway("{name: web, protocol: HTTP, port: 82}").replace("name: edge", "name: edge, namespace: far");
    [web, other, far]
}

#[test]
fn targets_are_gateways() {
    let target = "group: gateway.networking.k8s.io, kind: Gateway";
    let table: &[(&str, String, &str)] = &[
        ("p", String::new(), "default/edge/web default/inner/web"),
        ("istio-system/p", String::new(), "default/edge/web default/inner/web far/edge/web"),
        ("elsewhere/p", String::new(), ""),
        ("p", format!("targetRefs: [{{{target}, name: edge}}]"), "default/edge/web"),
        ("p", format!("targetRef: {{{target}, name: inner}}"), "default/inner/web"),
        (
            "p",
            format!("targetRefs: [{{{target}, name: gone}}, {{{target}, name: edge}}]"),
            "default/edge/web",
        ),
        (
            "p",
            format!("targetRefs: [{{group: '', kind: Service, name: s}}, {{{target}, name: edge}}]"),
            "default/edge/web",
        ),
        ("p", "selector: {matchLabels: {tier: front}}".into(), "default/edge/web"),
        (
            "p",
            "selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: inner}}".into(),
            "default/inner/web",
        ),
        (
            "istio-system/p",
            "selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}".into(),
            "default/edge/web far/edge/web",
        ),
        ("p", "selector: {matchLabels: {tier: back}}".into(), ""),
    ];
    for (name, spec, expected) in table {
        let comma = if spec.is_empty() { "" } else { ", " };
        let [a, b, c] = gateways();
        let texts = [a, b, c, policy(name, &format!("{spec}{comma}rules: [{{}}]"))];
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let found: Vec<String> = policies(&texts)[0].listeners.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(" "), *expected, "{name} {spec}");
    }
}

#[test]
fn a_target_that_is_missing_is_said() {
    let spec = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edgy}], rules: [{}]";
    let texts = [gateway(WEB), policy("p", spec)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(conditions(&texts, "AuthorizationPolicy", "p"), ["/Accepted=false TargetNotFound"]);
    assert_eq!(problems(&texts), ["TargetNotFound spec.targetRefs[0].name"]);
}

#[test]
fn what_cannot_be_evaluated_refuses_everything() {
    let from = |s: &str| format!("rules: [{{from: [{{source: {{{s}}}}}]}}]");
    let when = |s: &str| format!("rules: [{{when: [{{{s}}}]}}]");
    let path = |s: &str| format!("rules: [{{to: [{{operation: {{paths: ['{s}']}}}}]}}]");
    let specs = [
        from("principals: [a]"),
        from("notPrincipals: [a]"),
        from("requestPrincipals: ['*']"),
        from("namespaces: [a]"),
        from("serviceAccounts: [a]"),
        from("ipBlocks: [10.0.0.0/33]"),
        from("remoteIpBlocks: [here]"),
        when("key: 'request.auth.claims[iss]', values: [a]"),
        when("key: source.principal, values: [a]"),
        when("key: experimental.x, values: [a]"),
        when("key: source.ip, values: [a]"),
        when("key: destination.port, values: ['70000']"),
        path("/a/{**}/{*}"),
        path("/a/{b}"),
        path("/a/{*}b"),
        path("/a/{*}/b*"),
        "action: CUSTOM, provider: {name: a}, rules: [{}]".to_owned(),
    ];
    for spec in &specs {
        for action in ["ALLOW", "DENY", "AUDIT"] {
            let spec =
                if spec.starts_with("action") { spec.clone() } else { format!("action: {action}, {spec}") };
            let texts = [gateway(WEB), policy("p", &spec)];
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let found = policies(&texts);
            assert_eq!(problems(&texts).len(), 1, "{spec}");
            assert!(
                conditions(&texts, "AuthorizationPolicy", "p")[0].starts_with("/Accepted=false"),
                "{spec}"
            );
            if spec.contains("AUDIT") {
                assert!(found.is_empty(), "{spec}");
                continue;
            }
            assert_eq!(found.len(), 1, "{spec}");
            assert_eq!(found[0].action, PolicyAction::Deny, "{spec}");
            assert_eq!(found[0].rules, [PolicyRule::default()], "{spec}");
            assert!(!found[0].dry_run && found[0].listeners.len() == 1, "{spec}");
        }
    }
}

#[test]
fn a_trial_that_cannot_be_evaluated_refuses_nothing() {
    let text = policy("p", "action: DENY, rules: [{from: [{source: {principals: [a]}}]}]")
        .replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'true'},");
    assert!(policies(&[&gateway(WEB), &text]).is_empty());
    let sound = text.replace("principals: [a]", "ipBlocks: [10.0.0.1]");
    let found = policies(&[&gateway(WEB), &sound]);
    assert!(found[0].dry_run);
    assert_eq!(found[0].rules[0].from[0].ip_blocks[0].to_string(), "10.0.0.1/32");
}

#[test]
fn rules_mean_what_istio_says() {
    for (rules, count) in [("{}", 0), ("{rules: []}", 0), ("{rules: [{}]}", 1)] {
        let text = policy("p", "X").replace("{X}", rules);
        let found = policies(&[&gateway(WEB), &text]);
        assert_eq!(found[0].action, PolicyAction::Allow);
        assert_eq!(found[0].rules.len(), count, "{rules}");
    }
}

#[test]
fn strings_have_istios_forms() {
    let text =
        policy("p", "rules: [{to: [{operation: {paths: ['*', '/a', '/a*', '*.css', '/a/{*}/b/{**}']}}]}]");
    let found = policies(&[&gateway(WEB), &text]);
    assert_eq!(
        found[0].rules[0].to[0].paths,
        [
            StringMatch::Present,
            StringMatch::Exact("/a".into()),
            StringMatch::Prefix("/a".into()),
            StringMatch::Suffix(".css".into()),
            StringMatch::Template("/a/{*}/b/{**}".into()),
        ]
    );
}
