//! AuthorizationPolicy: to which listeners, and closed where it cannot be evaluated.

use fieldgate_core::ir::{ConditionKey, ConditionValue, PolicyAction, PolicyRule, StringMatch};

use super::*;
use crate::translate::TrustDomains;

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
        from("principals: ['']"),
        from("notNamespaces: ['']"),
        from("serviceAccounts: ['a/b/c']"),
        from("serviceAccounts: ['a*']"),
        from("serviceAccounts: [a], namespaces: [b]"),
        from("ipBlocks: [10.0.0.0/33]"),
        from("remoteIpBlocks: [here]"),
        when("key: 'request.auth.claims', values: [a]"),
        when("key: 'request.auth.claims[a][]', values: [a]"),
        when("key: 'request.headers[a][b]', values: [a]"),
        when("key: source.serviceAccount, values: ['*']"),
        when("key: source.user, values: [a]"),
        when("key: experimental.x, values: [a]"),
        when("key: 'experimental.envoy.filters.network.x[y]', values: [a]"),
        when("key: source.ip, values: [a]"),
        when("key: destination.port, values: ['70000']"),
        path("/a/{**}/{*}"),
        path("/a/{b}"),
        path("/a/{*}b"),
        path("/a/{*}/b*"),
        "action: CUSTOM, rules: [{}]".to_owned(),
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
    let text = policy("p", "action: DENY, rules: [{from: [{source: {ipBlocks: [a]}}]}]")
        .replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'true'},");
    assert!(policies(&[&gateway(WEB), &text]).is_empty());
    let sound = text.replace("ipBlocks: [a]", "ipBlocks: [10.0.0.1]");
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

#[test]
fn identities_and_tokens() {
    let text = policy(
        "p",
        "rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/b', '*'], notRequestPrincipals: ['https://i/*']}}], \
         when: [{key: 'request.auth.claims[a][b/c]', values: ['x*']}, {key: request.auth.presenter, notValues: [y]}, \
         {key: source.serviceAccount, values: [me]}, {key: 'experimental.envoy.filters.http.ext_authz[k]', values: ['[l]', t]}]}]",
    );
    let found = policies(&[&gateway(WEB), &text]);
    let rule = &found[0].rules[0];
    let source = &rule.from[0];
    assert_eq!(
        source.principals,
        [StringMatch::Exact("cluster.local/ns/a/sa/b".into()), StringMatch::Present]
    );
    assert_eq!(source.not_request_principals[0].subject, StringMatch::Present);
    assert_eq!(rule.when[0].key, ConditionKey::Claim(vec!["a".into(), "b/c".into()]));
    assert_eq!(rule.when[1].key, ConditionKey::Claim(vec!["azp".into()]));
    let account = ir::ServiceAccount { namespace: "default".into(), name: "me".into() };
    assert_eq!(rule.when[2].values, [ConditionValue::Account(account)]);
    assert_eq!(
        rule.when[3].values,
        [
            ConditionValue::InList(StringMatch::Exact("l".into())),
            ConditionValue::String(StringMatch::Exact("t".into()))
        ]
    );
}

#[test]
fn a_provider_that_is_missing_is_said() {
    let text = policy("p", "action: CUSTOM, provider: {name: opa}, rules: [{}]");
    let texts = [&*gateway(WEB), &*text];
    let found = policies(&texts);
    assert_eq!(found[0].action, PolicyAction::Custom);
    assert_eq!(found[0].provider.as_ref().unwrap().key.to_string(), "ExternalAuthorizer default/opa");
    assert_eq!(problems(&texts), ["TargetNotFound spec.provider.name"]);
    assert_eq!(conditions(&texts, "AuthorizationPolicy", "p"), ["/Accepted=false TargetNotFound"]);
}

#[test]
fn trust_domains_are_those_of_the_gateway() {
    let text = policy("p", "rules: [{from: [{source: {principals: ['cluster.local/ns/a/sa/b']}}]}]");
    let files = vec![
        FileChange { name: "a".into(), text: Some(gateway(WEB)) },
        FileChange { name: "b".into(), text: Some(text) },
    ];
    let mut configuration =
        crate::Configuration::default().in_trust_domains(TrustDomains::new("td", &["old"]));
    let outcome = configuration.apply(files);
    let found = outcome.config.policies.values().next().unwrap();
    let expected = ["td/ns/a/sa/b", "old/ns/a/sa/b"].map(|text| StringMatch::Exact(text.into()));
    assert_eq!(found.rules[0].from[0].principals, expected);
}
