//! RequestAuthentication: where tokens are looked for, where keys come from, and closed where they cannot be had.

use std::time::Duration;

use fieldgate_core::ir::{Authentication, Jwks, JwtRule, TokenPlace};

use super::*;

fn authentication(name: &str, spec: &str) -> String {
    object("security.istio.io/v1", "RequestAuthentication", name, spec)
}

fn translated(spec: &str) -> (Authentication, Vec<String>) {
    let texts = [gateway(WEB), authentication("jwt", spec)];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    let one = config.authentications.values().next().unwrap_or_else(|| panic!("{:?}", problems(&texts)));
    ((**one).clone(), problems(&texts))
}

fn rule(spec: &str) -> JwtRule {
    let (one, problems) = translated(&format!("jwtRules: [{{{spec}}}]"));
    assert_eq!(problems, [""; 0], "{spec}");
    (*one.rules[0]).clone()
}

#[test]
fn a_rule_without_a_word_is_istios_default() {
    let rule = rule("issuer: 'https://issuer.example'");
    assert_eq!(
        rule.from,
        [
            TokenPlace::Header("authorization".into(), "Bearer ".into()),
            TokenPlace::Param("access_token".into())
        ]
    );
    assert!(!rule.forward && rule.audiences.is_empty() && rule.claim_headers.is_empty());
    assert_eq!(rule.clock_skew, Duration::from_mins(1));
    let Jwks::Remote(remote) = &rule.keys else { panic!("{:?}", rule.keys) };
    assert_eq!((&*remote.uri, remote.discover), ("https://issuer.example", true));
    assert_eq!(remote.timeout, Duration::from_secs(5));
}

#[test]
fn every_field_has_its_meaning() {
    let rule = rule(
        "issuer: me, jwksUri: 'http://keys.example:81/jwks?x=1', timeout: 2s, audiences: [a, b], \
         fromHeaders: [{name: X-Token, prefix: 'Token '}, {name: x-plain}], fromParams: [t], fromCookies: [c], \
         forwardOriginalToken: true, outputPayloadToHeader: X-Payload, \
         outputClaimToHeaders: [{header: X-Group, claim: a.b}]",
    );
    let header = |name: &str, prefix: &str| TokenPlace::Header(name.into(), prefix.into());
    let places = [
        header("x-token", "Token "),
        header("x-plain", ""),
        TokenPlace::Param("t".into()),
        TokenPlace::Cookie("c".into()),
    ];
    assert_eq!(rule.from, places);
    assert!(rule.forward);
    assert_eq!(rule.audiences.iter().map(|a| &**a).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(rule.payload_header.as_deref(), Some("x-payload"));
    let (header, path) = &rule.claim_headers[0];
    assert_eq!((&**header, path.iter().map(|p| &**p).collect::<Vec<_>>()), ("x-group", vec!["a", "b"]));
    let Jwks::Remote(remote) = &rule.keys else { panic!("{:?}", rule.keys) };
    assert_eq!((&*remote.uri, remote.discover), ("http://keys.example:81/jwks?x=1", false));
    assert_eq!(remote.timeout, Duration::from_secs(2));
}

#[test]
fn keys_that_cannot_be_had_let_no_token_pass() {
    for (spec, field) in [
        ("issuer: me", "issuer"),
        ("issuer: me, jwksUri: 'file:///keys'", "jwksUri"),
        ("issuer: me, jwksUri: 'https:///keys'", "jwksUri"),
        ("issuer: me, jwksUri: 'https://u:p@host/keys'", "jwksUri"),
        ("issuer: me, jwksUri: 'https://host/a b'", "jwksUri"),
        ("issuer: me, jwks: 'nothing'", "jwks"),
        ("issuer: me, jwks: '{}'", "jwks"),
        ("issuer: me, jwks: '{\"keys\": []}'", "jwks"),
    ] {
        let (one, problems) = translated(&format!("jwtRules: [{{{spec}}}]"));
        assert_eq!(problems, [format!("InvalidValue spec.jwtRules[0].{field}")], "{spec}");
        assert!(matches!(&one.rules[0].keys, Jwks::Inline(_)), "{spec}");
        assert_eq!(one.listeners.len(), 1);
    }
}

#[test]
fn one_that_cannot_be_read_lets_no_token_pass() {
    let texts = [gateway(WEB), authentication("jwt", "jwtRuels: []")];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    let closed = config.authentications.values().next().expect("something in its place");
    assert_eq!((closed.rules.len(), closed.listeners.len()), (1, 1));
    assert_eq!((&*closed.rules[0].issuer, &closed.rules[0].keys), ("", &Jwks::Inline("".into())));
}

#[test]
fn it_applies_where_policies_of_istio_apply() {
    let texts = [
        gateway(WEB),
        gateway("{name: web, protocol: HTTP, port: 81}").replace("name: edge", "name: inner"),
        authentication("all", ""),
        authentication("one", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: inner}]"),
        authentication("none", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: gone}]"),
    ];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let config = config(&texts);
    let of = |name: &str| {
        let one = config.authentications.values().find(|one| *one.key.name == *name).expect("translated");
        one.listeners.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("all"), "default/edge/web default/inner/web");
    assert_eq!(of("one"), "default/inner/web");
    assert_eq!(of("none"), "");
    assert_eq!(problems(&texts), ["TargetNotFound spec.targetRefs[0].name"]);
    assert_eq!(conditions(&texts, "RequestAuthentication", "none"), ["/Accepted=false TargetNotFound"]);
    assert_eq!(conditions(&texts, "RequestAuthentication", "one"), ["/Accepted=true Accepted"]);
}
