//! Random policies, written as people write them, against random requests: what the configuration makes of them must decide
//! as a naive reading of Istio's rules does, which shares no code with it and knows neither indexes nor preparation.

mod oracle;

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fieldgate_config::{Configuration, FileChange};
use fieldgate_core::identity::{Metadata, PeerIdentity, Token};
use fieldgate_core::ir::ConnectionFacts;
use fieldgate_core::{Method, RequestHead};
use fieldgate_plugins::authz::{Authorizer, ConnectionAuthorizer};
use proptest::prelude::*;
use proptest::sample::select;

use oracle::{Oracle, Verdict};

/// A policy as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) action: &'static str,
    pub(crate) dry_run: bool,
    pub(crate) rules: Vec<WrittenRule>,
}

/// Fields and conditions as they are written.
#[derive(Clone, Debug)]
pub(crate) struct WrittenRule {
    pub(crate) from: Vec<Vec<Field>>,
    pub(crate) to: Vec<Vec<Field>>,
    pub(crate) when: Vec<(&'static str, Vec<&'static str>, Vec<&'static str>)>,
}

/// A field with its texts.
pub(crate) type Field = (&'static str, Vec<&'static str>);

/// A request with all that is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: &'static str,
    pub(crate) host: &'static str,
    pub(crate) path: &'static str,
    pub(crate) header: Option<&'static str>,
    pub(crate) peer: &'static str,
    pub(crate) client: &'static str,
    pub(crate) port: u16,
    pub(crate) sni: Option<&'static str>,
    pub(crate) uri: Option<&'static str>,
    pub(crate) token: Option<serde_json::Value>,
}

const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/b/sa/y",
    "cluster.local/ns/a/*",
    "*/sa/x",
    "*",
    "other/ns/a/sa/x",
];
const NAMESPACES: &[&str] = &["a", "b", "a*", "*b", "*"];
const ACCOUNTS: &[&str] = &["x", "a/x", "b/y"];
const DOMAINS: &[&str] = &["cluster.local", "other", "clus*", "*er"];
const BEARERS: &[&str] = &["https://i/u", "https://i/*", "https://i/a*", "*/u", "*", "j*", "*n", "i"];
const BLOCKS: &[&str] = &["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "2001:db8::/32"];
const HOSTS: &[&str] = &["shop.test", "*.test", "SHOP.*", "*", "other.test:8080"];
const METHODS: &[&str] = &["GET", "POST", "P*", "*T", "*"];
const PATHS: &[&str] = &["/a", "/a/*", "*/b", "/a/{*}/c", "/{**}/c", "*", "/"];
const PORTS: &[&str] = &["80", "443"];
const TEXTS: &[&str] = &["v", "v*", "*w", "*", "read"];

fn fields(table: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = Vec<Field>> {
    let field = select(table).prop_flat_map(|(name, texts)| {
        prop::collection::vec(select(texts), 1..3).prop_map(move |texts| (name, texts))
    });
    prop::collection::vec(field, 1..4).prop_map(|mut fields| {
        fields.sort_by_key(|(name, _)| *name);
        fields.dedup_by_key(|(name, _)| *name);
        // Istio refuses these beside each other.
        let by_name = |(name, _): &Field| name.to_lowercase().contains("account");
        if fields.iter().any(|f| !by_name(f)) {
            fields.retain(|field| !by_name(field));
        }
        fields
    })
}

const SOURCES: &[(&str, &[&str])] = &[
    ("principals", PRINCIPALS),
    ("notPrincipals", PRINCIPALS),
    ("namespaces", NAMESPACES),
    ("notNamespaces", NAMESPACES),
    ("serviceAccounts", ACCOUNTS),
    ("notServiceAccounts", ACCOUNTS),
    ("trustDomains", DOMAINS),
    ("notTrustDomains", DOMAINS),
    ("requestPrincipals", BEARERS),
    ("notRequestPrincipals", BEARERS),
    ("ipBlocks", BLOCKS),
    ("notIpBlocks", BLOCKS),
    ("remoteIpBlocks", BLOCKS),
    ("notRemoteIpBlocks", BLOCKS),
];

const OPERATIONS: &[(&str, &[&str])] = &[
    ("hosts", HOSTS),
    ("notHosts", HOSTS),
    ("methods", METHODS),
    ("notMethods", METHODS),
    ("paths", PATHS),
    ("notPaths", PATHS),
    ("ports", PORTS),
    ("notPorts", PORTS),
];

const CONDITIONS: &[(&str, &[&str])] = &[
    ("request.headers[X-H]", TEXTS),
    ("source.ip", BLOCKS),
    ("remote.ip", BLOCKS),
    ("source.namespace", NAMESPACES),
    ("source.serviceAccount", ACCOUNTS),
    ("source.principal", PRINCIPALS),
    ("request.auth.principal", BEARERS),
    ("request.auth.audiences", TEXTS),
    ("request.auth.presenter", TEXTS),
    ("request.auth.claims[groups]", TEXTS),
    ("request.auth.claims[nested][deep]", TEXTS),
    ("request.auth.claims[scope]", TEXTS),
    ("destination.ip", BLOCKS),
    ("destination.port", PORTS),
    ("connection.sni", HOSTS),
];

fn rule() -> impl Strategy<Value = WrittenRule> {
    let when = select(CONDITIONS).prop_flat_map(|(key, texts)| {
        let some = || prop::collection::vec(select(texts), 0..3);
        (some(), some()).prop_map(move |(values, not)| {
            let values = if values.is_empty() && not.is_empty() { vec![texts[0]] } else { values };
            (key, values, not)
        })
    });
    let lists = |table, most| prop::collection::vec(fields(table), 0..most);
    (lists(SOURCES, 3), lists(OPERATIONS, 3), prop::collection::vec(when, 0..2))
        .prop_map(|(from, to, when)| WrittenRule { from, to, when })
}

fn policies() -> impl Strategy<Value = Vec<Written>> {
    let action = select(&["ALLOW", "DENY", "AUDIT"][..]);
    let policy = (action, prop::bool::weighted(0.15), prop::collection::vec(rule(), 0..4)).prop_map(
        |(action, dry_run, mut rules)| {
            if action == "DENY" && rules.is_empty() {
                rules.push(WrittenRule { from: Vec::new(), to: Vec::new(), when: Vec::new() });
            }
            Written { action, dry_run, rules }
        },
    );
    prop::collection::vec(policy, 1..6)
}

fn requests() -> impl Strategy<Value = Vec<Asked>> {
    let value = || {
        select(vec![
            serde_json::json!("v"),
            serde_json::json!("vw"),
            serde_json::json!(["x", "v"]),
            serde_json::json!("read write"),
            serde_json::json!(["w", 1]),
            serde_json::json!(1),
            serde_json::json!(""),
        ])
    };
    let token = (
        select(&["https://i", "j", "i", "https://i/x", ""][..]),
        select(&["u", "admin", "n", ""][..]),
        [value(), value(), value(), value(), value()],
    )
        .prop_map(|(iss, sub, [aud, azp, groups, deep, scope])| {
            let mut token = serde_json::json!({
                "iss": iss, "aud": aud, "azp": azp, "groups": groups, "nested": {"deep": deep}, "scope": scope
            });
            if !sub.is_empty() {
                token["sub"] = sub.into();
            }
            token
        });
    let addresses = &["10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.7", "2001:db8::1", "203.0.113.1"][..];
    let uris = &[
        "spiffe://cluster.local/ns/a/sa/x",
        "spiffe://cluster.local/ns/b/sa/y",
        "spiffe://other/ns/a/sa/x",
        "spiffe://other/ns/ab/sa/x",
        "spiffe://cluster.local/ns/a/sa/xx",
        "spiffe://cluster.local/x",
        "https://cluster.local/ns/a/sa/x",
    ][..];
    let request =
        (
            (
                select(&["GET", "POST", "PUT", "HEAD"][..]),
                select(&["shop.test", "shop.example", "other.test:8080", "test"][..]),
            ),
            select(&["/a", "/a/b", "/a/x/c", "/x/y/c", "/", "/a?b=/a/b", "/a/"][..]),
            prop::option::of(select(&["v", "vw", "", "read"][..])),
            (select(addresses), select(addresses), select(&[80u16, 443, 8080][..])),
            prop::option::of(select(&["shop.test", "a.test"][..])),
            prop::option::weighted(0.7, select(uris)),
            prop::option::weighted(0.7, token),
        )
            .prop_map(|((method, host), path, header, (peer, client, port), sni, uri, token)| {
                Asked { method, host, path, header, peer, client, port, sni, uri, token }
            });
    prop::collection::vec(request, 60)
}

/// The policies as a file, in the order of their names.
fn yaml(policies: &[Written]) -> String {
    let mut text =
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge, namespace: a}\n\
        spec: {gatewayClassName: fieldgate, listeners: [{name: web, protocol: HTTP, port: 80}]}\n"
            .to_owned();
    let list = |texts: &[&str]| serde_json::to_string(texts).unwrap();
    let fields = |fields: &[Field]| {
        let all: Vec<_> = fields.iter().map(|(name, texts)| format!("{name}: {}", list(texts))).collect();
        all.join(", ")
    };
    for (at, policy) in policies.iter().enumerate() {
        let _ = write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p{at}, namespace: a, annotations: {{istio.io/dry-run: '{}'}}}}\nspec:\n  action: {}\n",
            policy.dry_run, policy.action
        );
        if !policy.rules.is_empty() {
            text.push_str("  rules:\n");
        }
        for rule in &policy.rules {
            let from: Vec<_> = rule.from.iter().map(|f| format!("{{source: {{{}}}}}", fields(f))).collect();
            let to: Vec<_> = rule.to.iter().map(|f| format!("{{operation: {{{}}}}}", fields(f))).collect();
            let when: Vec<_> = rule
                .when
                .iter()
                .map(|(key, some, none)| {
                    format!("{{key: '{key}', values: {}, notValues: {}}}", list(some), list(none))
                })
                .collect();
            let parts = [("from", from), ("to", to), ("when", when)];
            let parts = parts.into_iter().filter(|(_, items)| !items.is_empty());
            let parts: Vec<_> =
                parts.map(|(name, items)| format!("{name}: [{}]", items.join(", "))).collect();
            let _ = writeln!(text, "  - {{{}}}", parts.join(", "));
        }
    }
    text
}

fn ours(asked: &Asked, authorizer: &Authorizer, connections: &ConnectionAuthorizer) -> (Verdict, bool) {
    let mut head = RequestHead {
        method: Method::from_bytes(asked.method.as_bytes()),
        authority: asked.host.to_owned(),
        ..RequestHead::default()
    };
    head.set_target(asked.path);
    if let Some(value) = asked.header {
        head.headers.push(b"x-h", value.as_bytes());
    }
    let identity = asked.uri.map(|uri| PeerIdentity { uris: vec![uri.into()], ..PeerIdentity::default() });
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let facts = ConnectionFacts {
        peer: ip(asked.peer),
        client: ip(asked.client),
        local: SocketAddr::new(ip("10.1.2.3"), asked.port),
        sni: asked.sni,
        identity: identity.as_ref(),
    };
    let tokens = asked.token.iter().map(|claims| {
        let text = |name: &str| claims[name].as_str().unwrap_or_default().to_owned();
        let all = claims.as_object().unwrap().clone();
        Arc::new(Token { issuer: text("iss"), subject: text("sub"), claims: all, ..Token::default() })
    });
    let metadata = Metadata { tokens: tokens.collect(), ..Metadata::default() };
    let decision = authorizer.decide(&head, &facts, &metadata);
    let verdict = Verdict {
        allowed: decision.allowed,
        audited: decision.audit.is_some(),
        shadow_deny: decision.dry_run_deny.map(|run| run.allowed),
        shadow_allow: decision.dry_run_allow.map(|run| run.allowed),
    };
    (verdict, connections.decide(&facts, &metadata).allowed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]
    #[test]
    fn decisions_are_those_of_a_naive_reading(policies in policies(), requests in requests()) {
        let text = yaml(&policies);
        let file = FileChange { name: "policies.yaml".into(), text: Some(text.clone()) };
        let outcome = Configuration::default().apply(vec![file]);
        prop_assert!(outcome.diagnostics.is_empty(), "{:?}\n{}", outcome.diagnostics, text);
        let read: Vec<_> = outcome.config.policies.values().cloned().collect();
        let (authorizer, connections) = (Authorizer::compile(&read), ConnectionAuthorizer::compile(&read));
        let (http, tcp) = (Oracle { policies: &policies, tcp: false }, Oracle { policies: &policies, tcp: true });
        for asked in &requests {
            let (verdict, connected) = ours(asked, &authorizer, &connections);
            prop_assert_eq!(&verdict, &http.decide(asked), "{}\n{:?}", text, asked);
            prop_assert_eq!(connected, tcp.decide(asked).allowed, "TCP: {}\n{:?}", text, asked);
        }
    }
}
