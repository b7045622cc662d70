//! LoginPolicies: what they take from Secrets, and what becomes of it that is missing or not sound.

use fieldgate_core::ir::{GuardKind, Jwks, Login, ObjectKey, StringMatch};

use super::*;

const TARGET: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";

fn policy(spec: &str) -> String {
    object("fieldgate.dev/v1alpha1", "LoginPolicy", "l", &format!("{TARGET}, {spec}"))
}

fn secret(name: &str, entries: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{{entries}}}\n")
}

fn outcome(texts: &[String]) -> crate::Outcome {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Configuration::default().apply(files(&texts))
}

fn login(config: &ir::Config) -> Option<Login> {
    let key = ObjectKey { kind: "LoginPolicy", namespace: "default".into(), name: "l".into() };
    match &config.guards.get(&key)?.kind {
        GuardKind::Login(login) => Some((**login).clone()),
        other => panic!("{other:?}"),
    }
}

fn oidc(more: &str) -> String {
    policy(&format!(
        "userHeader: X-User, oidc: {{issuer: 'https://id.example', authorizationEndpoint: 'https://id.example/auth', \
         tokenEndpoint: 'https://id.example/token', backendRef: {{group: fieldgate.dev, kind: Pool, name: id}}, \
         clientId: shop, clientSecretRef: {{name: s}}, cookieSecretRef: {{name: s}}{more}}}"
    ))
}

const LONG: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn secrets_are_read() {
    let spec = "apiKeys: {secretRef: {name: keys}}, basic: {secretRef: {name: users, key: file}}";
    let users = secret("users", "file: \"# people\\nalice:{SHA}x\\n\\nbob:$2y$05$x\\n\"");
    let texts =
        [gateway(WEB), route("rules: [{}]"), policy(spec), secret("keys", "robot: \"key\\n\""), users];
    let outcome = outcome(&texts);
    assert_eq!(outcome.diagnostics, []);
    let login = login(&outcome.config).expect("a login");
    let keys = login.api_keys.expect("keys");
    assert_eq!((&*keys.headers[0], keys.strip), ("x-api-key", true));
    assert_eq!((&*keys.keys[0].0, &*keys.keys[0].1.0), ("robot", &b"key"[..]));
    let basic = login.basic.expect("passwords");
    let names: Vec<&str> = basic.users.iter().map(|(user, _)| &**user).collect();
    assert_eq!((&*basic.realm, names), ("l", vec!["alice", "bob"]));
}

#[test]
fn a_provider() {
    let more = ", session: 5m, passThrough: [/public/*], forwardAccessToken: true";
    let secrets = secret("s", &format!("client-secret: pw, current: {LONG}, previous: {LONG}x"));
    let texts = [gateway(WEB), route("rules: [{}]"), oidc(more), pool("id"), secrets];
    let outcome = outcome(&texts);
    assert_eq!(outcome.diagnostics, []);
    let login = login(&outcome.config).expect("a login");
    assert_eq!(login.user_header.as_deref(), Some("x-user"));
    let oidc = login.oidc.expect("a provider");
    assert_eq!(
        (&*oidc.callback_path, &*oidc.user_claim, oidc.session.as_secs()),
        ("/oauth2/callback", "sub", 300)
    );
    assert_eq!(
        (oidc.cookie_secrets.len(), oidc.token_endpoint.1.to_string()),
        (2, "Pool default/id".to_owned())
    );
    assert_eq!(oidc.pass_through, [StringMatch::Prefix("/public/".into())]);
    let Jwks::Remote(keys) = &oidc.jwks else { panic!("{:?}", oidc.jwks) };
    assert!(keys.discover && &*keys.uri == "https://id.example");
}

#[test]
fn what_is_missing_or_not_sound_closes_what_it_guards_and_is_not_told() {
    let base = [gateway(WEB), route("rules: [{}]"), pool("id")];
    let keys = "apiKeys: {secretRef: {name: s}}";
    let basic = "basic: {secretRef: {name: s}}";
    for (policy, secret, field) in [
        (policy(keys), secret("t", "a: b"), "RefNotFound spec.apiKeys.secretRef.name"),
        (policy(keys), secret("s", "a: same, b: same"), "InvalidValue spec.apiKeys.secretRef"),
        (policy(keys), secret("s", "a: ''"), "InvalidValue spec.apiKeys.secretRef"),
        (policy(basic), secret("s", "a: b"), "RefNotFound spec.basic.secretRef"),
        (policy(basic), secret("s", "'.htpasswd': 'alice:same'"), "InvalidValue spec.basic.secretRef"),
        (
            oidc(""),
            secret("s", "client-secret: same, current: same"),
            "InvalidValue spec.oidc.cookieSecretRef",
        ),
        (oidc(""), secret("s", "client-secret: same"), "RefNotFound spec.oidc.cookieSecretRef"),
        (oidc(""), secret("s", &format!("current: {LONG}")), "RefNotFound spec.oidc.clientSecretRef"),
    ] {
        let mut texts = base.to_vec();
        texts.extend([policy, secret]);
        let outcome = outcome(&texts);
        let said: Vec<String> =
            outcome.diagnostics.iter().map(|d| format!("{} {}", d.reason, d.field)).collect();
        assert_eq!(said, [field]);
        assert!(!format!("{:?}", outcome.diagnostics).contains("same"), "{:?}", outcome.diagnostics);
        assert_eq!(login(&outcome.config), None);
        let route = outcome.config.routes.values().next().expect("a route");
        assert_eq!(
            route.rules[0].filters.len(),
            1,
            "the server refuses what names a guard that is not there"
        );
    }
}

#[test]
fn one_that_was_never_read_closes_where_its_routes_are_served() {
    let elsewhere = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: apps}\n\
                     spec: {parentRefs: [{name: edge, namespace: default}]}\n";
    let open = WEB.replace("port: 80", "port: 80, allowedRoutes: {namespaces: {from: All}}");
    let bad =
        object("fieldgate.dev/v1alpha1", "LoginPolicy", "apps/l", "targetRefs: [], basic: {secretReff: x}");
    let closed = |texts: &[&str]| config(texts).policies.values().map(|p| p.listeners.len()).sum::<usize>();
    assert_eq!(closed(&[&gateway(&open), elsewhere]), 0);
    assert_eq!(closed(&[&gateway(&open), elsewhere, &bad]), 1);
}

#[test]
fn what_the_schema_forbids() {
    let texts = |spec: &str| [gateway(WEB), route("rules: [{}]"), policy(spec), pool("id")];
    for (spec, field) in [
        ("userHeader: x".to_owned(), "MissingField spec"),
        ("userHeader: host, apiKeys: {secretRef: {name: s}}".to_owned(), "InvalidValue spec.userHeader"),
    ] {
        let texts = texts(&spec);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        assert!(problems(&texts).contains(&field.to_owned()), "{:?}", problems(&texts));
    }
    for (more, field) in [
        (", callbackPath: '//evil.example'", "InvalidValue spec.oidc.callbackPath"),
        (", afterLogout: 'https://evil.example'", "InvalidValue spec.oidc.afterLogout"),
        (", endSessionEndpoint: 'javascript:x'", "InvalidValue spec.oidc.endSessionEndpoint"),
        (", externalUrl: 'https://a.example/b'", "InvalidValue spec.oidc.externalUrl"),
        (", jwks: '{}', jwksUri: 'https://a.example'", "ConflictingFields spec.oidc.jwks"),
        (", session: 0s", "OutOfRange spec.oidc.session"),
    ] {
        let oidc = oidc(more);
        assert!(problems(&[&gateway(WEB), &oidc]).contains(&field.to_owned()), "{:?}", problems(&[&oidc]));
    }
}
