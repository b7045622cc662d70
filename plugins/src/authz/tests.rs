//! Policies in a short notation against requests.

use std::net::{IpAddr, SocketAddr};

use fieldgate_core::Method;
use fieldgate_core::identity::{PeerIdentity, Token};
use fieldgate_core::ir::{
    ConditionKey, ConditionValue, ObjectKey, Policy, PolicyCondition, PolicyOperation, PolicyRule,
    PolicySource, RequestPrincipal, StringMatch,
};
use proptest::prelude::*;

use super::*;

thread_local!(static RULES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });

/// Called for every rule that is evaluated.
pub fn count_a_rule() {
    RULES.set(RULES.get() + 1);
}

/// Istio's notation of a pattern.
fn pattern(text: &str) -> StringMatch {
    match text {
        "*" => StringMatch::Present,
        t if t.contains('{') => StringMatch::Template(t.into()),
        t if t.ends_with('*') => StringMatch::Prefix(t.trim_end_matches('*').into()),
        t if t.starts_with('*') => StringMatch::Suffix(t.trim_start_matches('*').into()),
        t => StringMatch::Exact(t.into()),
    }
}

fn patterns(texts: &[&str]) -> Vec<StringMatch> {
    texts.iter().map(|t| pattern(t)).collect()
}

fn policy(name: &str, action: PolicyAction, rules: Vec<PolicyRule>) -> Policy {
    let key = ObjectKey { kind: "AuthorizationPolicy", namespace: "foo".into(), name: name.into() };
    Policy { key, action, dry_run: false, listeners: Vec::new(), rules, provider: None, cel: None }
}

fn to(operation: PolicyOperation) -> PolicyRule {
    PolicyRule { to: vec![operation], ..PolicyRule::default() }
}

fn when(key: ConditionKey, values: &[&str], not_values: &[&str]) -> PolicyRule {
    let strings = |texts: &[&str]| texts.iter().map(|t| ConditionValue::String(pattern(t))).collect();
    let condition = PolicyCondition { key, values: strings(values), not_values: strings(not_values) };
    PolicyRule { when: vec![condition], ..PolicyRule::default() }
}

fn request(authority: &str, target: &str, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead { authority: authority.into(), ..RequestHead::default() };
    head.set_target(target);
    for (name, value) in fields {
        head.headers.push(name.as_bytes(), value.as_bytes());
    }
    head
}

fn facts() -> ConnectionFacts<'static> {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let local = SocketAddr::new(ip("10.9.9.9"), 8443);
    ConnectionFacts { peer: ip("::ffff:10.0.0.1"), client: ip("192.0.2.1"), local, sni: None, identity: None }
}

/// Whether one ALLOW rule lets a request pass.
fn allows(rule: PolicyRule, head: &RequestHead) -> bool {
    let policy = policy("p", PolicyAction::Allow, vec![rule]);
    Authorizer::compile(&[Arc::new(policy)]).decide(head, &facts(), &Metadata::default()).allowed
}

#[test]
fn no_policies_allow_all_and_one_without_rules_allows_nothing() {
    let head = request("a", "/", &[]);
    let none = Authorizer::compile(&[]);
    assert!(none.is_empty() && none.decide(&head, &facts(), &Metadata::default()).allowed);
    let nothing = Authorizer::compile(&[Arc::new(policy("nothing", PolicyAction::Allow, vec![]))]);
    let decision = nothing.decide(&head, &facts(), &Metadata::default());
    assert!(!nothing.is_empty() && !decision.allowed);
    assert_eq!(decision.details(), "rbac_access_denied_matched_policy[none]");
    assert!(
        Authorizer::compile(&[Arc::new(policy("d", PolicyAction::Deny, vec![]))])
            .decide(&head, &facts(), &Metadata::default())
            .allowed
    );
}

#[test]
fn a_refusal_names_its_rule_and_deny_goes_before_allow() {
    let get = to(PolicyOperation { methods: patterns(&["GET"]), ..PolicyOperation::default() });
    let admin = to(PolicyOperation { paths: patterns(&["/admin*"]), ..PolicyOperation::default() });
    let never = to(PolicyOperation { methods: patterns(&["NEVER"]), ..PolicyOperation::default() });
    let authorizer = Authorizer::compile(&[
        Arc::new(policy("reads", PolicyAction::Allow, vec![get])),
        Arc::new(policy("no-admin", PolicyAction::Deny, vec![never, admin])),
    ]);
    let decide = |head: &RequestHead| authorizer.decide(head, &facts(), &Metadata::default());

    let refused = decide(&request("a", "/admin/x", &[]));
    assert!(!refused.allowed);
    assert_eq!(refused.details(), "rbac_access_denied_matched_policy[ns[foo]-policy[no-admin]-rule[1]]");
    assert_eq!(refused.matched.unwrap().index, 1);

    let passed = decide(&request("a", "/", &[]));
    assert!(passed.allowed);
    assert_eq!(&*passed.matched.unwrap().id, "ns[foo]-policy[reads]-rule[0]");

    let mut post = request("a", "/", &[]);
    post.method = Method::Post;
    assert_eq!((decide(&post).allowed, decide(&post).matched), (false, None));
}

#[test]
fn dry_run_and_audit_only_report() {
    let admin = || to(PolicyOperation { paths: patterns(&["/admin"]), ..PolicyOperation::default() });
    let dry = |name, action| Arc::new(Policy { dry_run: true, ..policy(name, action, vec![admin()]) });
    let authorizer = Authorizer::compile(&[
        dry("deny", PolicyAction::Deny),
        dry("allow", PolicyAction::Allow),
        Arc::new(policy("audit", PolicyAction::Audit, vec![PolicyRule::default()])),
    ]);
    let admin = authorizer.decide(&request("a", "/admin", &[]), &facts(), &Metadata::default());
    assert!(admin.allowed && admin.audit.is_some() && admin.matched.is_none());
    assert!(!admin.dry_run_deny.unwrap().allowed && admin.dry_run_allow.unwrap().allowed);
    let other = authorizer.decide(&request("a", "/", &[]), &facts(), &Metadata::default());
    assert_eq!(
        admin.matches().map(|rule| &*rule.policy.name).collect::<Vec<_>>(),
        ["audit", "deny", "allow"]
    );
    assert!(other.allowed && other.dry_run_deny.unwrap().allowed && !other.dry_run_allow.unwrap().allowed);
}

#[test]
fn hosts_ignore_case_and_are_compared_with_the_port_as_sent() {
    let hosts = |texts: &[&str]| to(PolicyOperation { hosts: patterns(texts), ..PolicyOperation::default() });
    for (texts, authority, expected) in [
        (&["Shop.Example.com"][..], "shop.example.com", true),
        (&["shop.example.com"], "shop.example.com:8080", false),
        (&["shop.example.com:*"], "shop.example.com:8080", true),
        (&["*.Example.com"], "shop.example.com", true),
        (&["*.example.com"], "example.com", false),
        (&["a", "b*"], "bc", true),
        (&["*"], "x", true),
        (&["*"], "", false),
    ] {
        assert_eq!(allows(hosts(texts), &request(authority, "/", &[])), expected, "{texts:?} {authority}");
    }
}

#[test]
fn paths_are_without_query() {
    let paths = |texts: &[&str]| to(PolicyOperation { paths: patterns(texts), ..PolicyOperation::default() });
    for (texts, target, expected) in [
        (&["/a"][..], "/a?b=c", true),
        (&["/a"], "/a/", false),
        (&["/a*"], "/ab", true),
        (&["*/z"], "/a/z?q", true),
        (&["/a/{*}"], "/a/b?x=/y", true),
        (&["*"], "/", true),
    ] {
        assert_eq!(allows(paths(texts), &request("a", target, &[])), expected, "{texts:?} {target}");
    }
}

#[test]
fn not_fields_hold_when_there_is_nothing() {
    let not_hosts = to(PolicyOperation { not_hosts: patterns(&["*"]), ..PolicyOperation::default() });
    assert!(allows(not_hosts.clone(), &request("", "/", &[])));
    assert!(!allows(not_hosts, &request("a", "/", &[])));
}

#[test]
fn headers() {
    let x = || ConditionKey::RequestHeader("X-Team".into());
    for (values, not_values, fields, expected) in [
        (&["a"][..], &[][..], &[("x-team", "a")][..], true),
        (&["a"], &[], &[], false),
        (&["*"], &[], &[("x-team", "")], true),
        (&["*"], &[], &[], false),
        (&["b"], &[], &[("x-team", "a"), ("x-team", "b")], true),
        (&["a,b"], &[], &[("x-team", "a"), ("x-team", "b")], false),
        (&["a,b"], &[], &[("x-team", "a,b")], true),
        (&["b"], &[], &[("x-team", "a,b")], false),
        (&[], &["bad"], &[("x-team", "good"), ("x-team", "bad")], false),
        (&[], &["bad"], &[], true),
        (&[], &["bad"], &[("x-team", "bad")], false),
        (&["a*"], &["ab"], &[("x-team", "ac")], true),
    ] {
        let allowed = allows(when(x(), values, not_values), &request("a", "/", fields));
        assert_eq!(allowed, expected, "{values:?} {not_values:?} {fields:?}");
    }
    let host = when(ConditionKey::RequestHeader("host".into()), &["a"], &[]);
    assert!(allows(host, &request("a", "/", &[])));
    let whole = || when(ConditionKey::RequestHeader("cookie".into()), &["a=1; b=2"], &[]);
    let mut crumbs = request("a", "/", &[("cookie", "a=1"), ("cookie", "b=2")]);
    assert!(!allows(whole(), &crumbs));
    crumbs.version = fieldgate_core::Version::Http2;
    assert!(allows(whole(), &crumbs));
}

#[test]
fn server_name() {
    let decide = |values: &[&str], sni| {
        let policy = policy("p", PolicyAction::Allow, vec![when(ConditionKey::Sni, values, &[])]);
        Authorizer::compile(&[Arc::new(policy)])
            .decide(&request("a", "/", &[]), &ConnectionFacts { sni, ..facts() }, &Metadata::default())
            .allowed
    };
    assert!(decide(&["shop.example.com"], Some("shop.example.com")));
    assert!(decide(&["*"], Some("x")) && !decide(&["*"], None));
}

#[test]
fn addresses_and_ports() {
    let blocks = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
    let from = |source| PolicyRule { from: vec![source], ..PolicyRule::default() };
    let head = request("a", "/", &[]);
    // The peer is a mapped address; the client is another.
    for (peer, not_peer, client, not_client, expected) in [
        (&["10.0.0.0/8"][..], &[][..], &[][..], &[][..], true),
        (&["192.0.2.0/24"], &[], &[], &[], false),
        (&[], &["10.0.0.1/32"], &[], &[], false),
        (&[], &[], &["192.0.2.0/24"], &[], true),
        (&[], &[], &["10.0.0.0/8"], &[], false),
        (&["10.0.0.0/8"], &[], &["192.0.2.0/24"], &["192.0.2.1/32"], false),
    ] {
        let source = PolicySource {
            ip_blocks: blocks(peer),
            not_ip_blocks: blocks(not_peer),
            remote_ip_blocks: blocks(client),
            not_remote_ip_blocks: blocks(not_client),
            ..PolicySource::default()
        };
        assert_eq!(allows(from(source.clone()), &head), expected, "{source:?}");
    }
    let ports = |ports: &[u16], not: &[u16]| {
        to(PolicyOperation { ports: ports.into(), not_ports: not.into(), ..PolicyOperation::default() })
    };
    assert!(allows(ports(&[80, 8443], &[]), &head) && !allows(ports(&[80], &[]), &head));
    assert!(!allows(ports(&[], &[8443]), &head));
    for (key, value, expected) in [
        (ConditionKey::SourceIp, "10.0.0.1/32", true),
        (ConditionKey::RemoteIp, "10.0.0.1/32", false),
        (ConditionKey::DestinationIp, "10.9.0.0/16", true),
    ] {
        let values = vec![ConditionValue::Ip(value.parse().unwrap())];
        let condition = PolicyCondition { key, values, not_values: Vec::new() };
        assert_eq!(allows(PolicyRule { when: vec![condition], ..PolicyRule::default() }, &head), expected);
    }
}

#[test]
fn what_cannot_be_evaluated_fails_closed() {
    let broken = || to(PolicyOperation { paths: patterns(&["/a/{**}/{*}"]), ..PolicyOperation::default() });
    let mistyped = || when(ConditionKey::DestinationPort, &["http"], &[]);
    let head = request("a", "/", &[]);
    for rule in [broken, mistyped] {
        for action in [PolicyAction::Allow, PolicyAction::Deny] {
            let authorizer = Authorizer::compile(&[Arc::new(policy("p", action, vec![rule()]))]);
            assert!(!authorizer.decide(&head, &facts(), &Metadata::default()).allowed, "{action:?}");
        }
    }
}

fn token(claims: serde_json::Value) -> Arc<Token> {
    let serde_json::Value::Object(claims) = claims else { unreachable!() };
    let text = |name: &str| claims.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    Arc::new(Token { issuer: text("iss"), subject: text("sub"), claims, ..Token::default() })
}

/// What one rule makes of a request with these tokens: whether ALLOW lets it pass, and whether DENY refuses it.
fn with_tokens(rule: &PolicyRule, tokens: &[Arc<Token>]) -> (bool, bool) {
    let metadata = Metadata { tokens: tokens.to_vec(), ..Metadata::default() };
    let decide = |action| {
        let policy = Arc::new(policy("p", action, vec![rule.clone()]));
        Authorizer::compile(&[policy]).decide(&request("a", "/", &[]), &facts(), &metadata).allowed
    };
    (decide(PolicyAction::Allow), !decide(PolicyAction::Deny))
}

#[test]
fn claims() {
    let token = token(serde_json::json!({
        "iss": "https://i", "sub": "s", "aud": ["x", "y"], "n": 1, "scope": "read write", "a": {"b": "deep", "l": ["p", 2]}
    }));
    for (path, values, not_values, expected) in [
        (&["aud"][..], &["y"][..], &[][..], true),
        (&["aud"], &["z"], &[], false),
        (&["aud"], &[], &["x"], false),
        (&["n"], &["1"], &[], false),
        (&["n"], &[], &["1"], true),
        (&["scope"], &["write"], &[], true),
        (&["scope"], &["read write"], &[], false),
        (&["a", "b"], &["d*"], &[], true),
        (&["a", "l"], &["p"], &[], true),
        (&["a"], &["*"], &[], false),
        (&["sub"], &["*"], &["t"], true),
        (&["none"], &["*"], &[], false),
        (&["none"], &[], &["*"], true),
    ] {
        let rule = when(ConditionKey::Claim(path.iter().map(|p| (*p).into()).collect()), values, not_values);
        let both = with_tokens(&rule, std::slice::from_ref(&token));
        assert_eq!(both, (expected, expected), "{path:?} {values:?} {not_values:?}");
        assert_eq!(with_tokens(&rule, &[]), (values.is_empty(), values.is_empty()), "no token");
    }
}

#[test]
fn two_tokens_are_not_one() {
    let (admin, friend) = (
        token(serde_json::json!({"iss": "i", "sub": "admin"})),
        token(serde_json::json!({"iss": "i", "sub": "u", "group": "g"})),
    );
    let bearer = RequestPrincipal {
        issuer: StringMatch::Exact("i".into()),
        subject: StringMatch::Exact("admin".into()),
    };
    let source = PolicySource { request_principals: vec![bearer.clone()], ..PolicySource::default() };
    let in_group = when(ConditionKey::Claim(vec!["group".into()]), &["g"], &[]);
    let both = PolicyRule { from: vec![source.clone()], ..in_group };
    let all = [admin.clone(), friend.clone()];
    assert_eq!(with_tokens(&both, &all), (false, false));
    let one = PolicyRule { from: vec![source], ..PolicyRule::default() };
    assert_eq!(with_tokens(&one, &all), (true, true));
    assert_eq!(with_tokens(&one, std::slice::from_ref(&friend)), (false, false));
    // Nobody hides one token behind another.
    let not = PolicySource { not_request_principals: vec![bearer], ..PolicySource::default() };
    let others = PolicyRule { from: vec![not], ..PolicyRule::default() };
    assert_eq!(with_tokens(&others, &all), (true, true));
    assert_eq!(with_tokens(&others, &[admin]), (false, false));
}

#[test]
fn metadata_of_filters() {
    let key = || ConditionKey::Metadata("envoy.filters.http.ext_authz".into(), "k".into());
    let dynamic = serde_json::json!({"envoy.filters.http.ext_authz": {"k": ["a", "b"], "t": "a"}});
    let serde_json::Value::Object(dynamic) = dynamic else { unreachable!() };
    let metadata = Metadata { dynamic, ..Metadata::default() };
    let in_list = |text: &str| PolicyRule {
        when: vec![PolicyCondition {
            key: key(),
            values: vec![ConditionValue::InList(pattern(text))],
            not_values: Vec::new(),
        }],
        ..PolicyRule::default()
    };
    let decide = |rule: PolicyRule| {
        let policies = [Arc::new(policy("p", PolicyAction::Allow, vec![rule]))];
        Authorizer::compile(&policies).decide(&request("a", "/", &[]), &facts(), &metadata).allowed
    };
    assert!(decide(in_list("b")) && !decide(in_list("c")));
    // A list is not one of its texts.
    assert!(!decide(when(key(), &["b"], &[])));
    let text = ConditionKey::Metadata("envoy.filters.http.ext_authz".into(), "t".into());
    assert!(decide(when(text, &["a"], &[])));
}

#[test]
fn providers_are_asked_about_what_their_policies_match() {
    let guard = |name: &str| {
        let key = ObjectKey { kind: "ExternalAuthorizer", namespace: "foo".into(), name: name.into() };
        Some(Arc::new(GuardRef::new(key)))
    };
    let paths = |texts: &[&str]| to(PolicyOperation { paths: patterns(texts), ..PolicyOperation::default() });
    let custom = |name: &str, provider, path: &str, dry_run| {
        let policy = policy(name, PolicyAction::Custom, vec![paths(&[path])]);
        Arc::new(Policy { provider, dry_run, ..policy })
    };
    let policies = [
        custom("b", guard("opa"), "/b", false),
        custom("a", guard("opa"), "/a*", false),
        custom("c", guard("beta"), "/a/x", false),
        custom("d", guard("beta"), "/", true),
    ];
    let authorizer = Authorizer::compile(&policies);
    let nothing = Metadata::default();
    let asked = |path: &str| -> Vec<String> {
        let of = |provider| authorizer.asks(provider, &request("a", path, &[]), &facts(), &nothing);
        authorizer.providers().iter().filter_map(of).map(|rule| rule.id.to_string()).collect()
    };
    assert_eq!(
        asked("/a/x"),
        ["istio-ext-authz-beta-ns[foo]-policy[c]-rule[0]", "istio-ext-authz-opa-ns[foo]-policy[a]-rule[0]"]
    );
    assert_eq!(asked("/b"), ["istio-ext-authz-opa-ns[foo]-policy[b]-rule[0]"]);
    assert!(asked("/").is_empty());
    let tried = authorizer.decide(&request("a", "/", &[]), &facts(), &nothing);
    assert!(tried.allowed && tried.dry_run_custom.is_some_and(|rule| &*rule.policy.name == "d"));
}

#[test]
fn dry_runs_are_reported_as_envoy_does() {
    let rule = to(PolicyOperation { paths: patterns(&["/a"]), ..PolicyOperation::default() });
    let trial = |action| Arc::new(Policy { dry_run: true, ..policy("p", action, vec![rule.clone()]) });
    let authorizer = Authorizer::compile(&[trial(PolicyAction::Deny), trial(PolicyAction::Allow)]);
    let report = |path: &str| {
        let mut metadata = Metadata::default();
        authorizer.decide(&request("a", path, &[]), &facts(), &metadata.clone()).report(&mut metadata);
        metadata.dynamic["envoy.filters.http.rbac"].clone()
    };
    let id = "ns[foo]-policy[p]-rule[0]";
    assert_eq!(
        report("/a"),
        serde_json::json!({
            "istio_dry_run_deny_shadow_engine_result": "denied", "istio_dry_run_deny_shadow_effective_policy_id": id,
            "istio_dry_run_allow_shadow_engine_result": "allowed", "istio_dry_run_allow_shadow_effective_policy_id": id,
        })
    );
    assert_eq!(
        report("/b"),
        serde_json::json!({
            "istio_dry_run_deny_shadow_engine_result": "allowed",
            "istio_dry_run_allow_shadow_engine_result": "denied",
        })
    );
}

#[test]
fn expressions_hold_beside_rules() {
    let claims = serde_json::json!({"iss": "i", "sub": "s", "groups": ["team-a", "b"], "n": 7});
    let metadata = Metadata { tokens: vec![token(claims)], ..Metadata::default() };
    let identity = PeerIdentity { uris: vec!["spiffe://td/ns/a/sa/b".into()], ..PeerIdentity::default() };
    let facts = ConnectionFacts { identity: Some(&identity), sni: Some("shop.test"), ..facts() };
    let head = request("a", "/x?y=z", &[("x-team", "one"), ("x-team", "two")]);
    // As ALLOW lets pass, and as DENY refuses.
    let decide = |text: &str, metadata: &Metadata, facts: &ConnectionFacts<'_>| {
        let of = |action| {
            let policy = policy("p", action, vec![PolicyRule::default()]);
            let policy = Arc::new(Policy { cel: Some(text.into()), ..policy });
            Authorizer::compile(&[policy]).decide(&head, facts, metadata).allowed
        };
        (of(PolicyAction::Allow), !of(PolicyAction::Deny))
    };
    for text in [
        "request.path == '/x?y=z' && request.url_path == '/x' && request.query == 'y=z'",
        "request.method == 'GET' && request.host == 'a' && request.protocol == 'HTTP/1.1'",
        "request.headers['x-team'] == 'one,two' && !('x-other' in request.headers)",
        "request.auth.claims.groups.exists(g, g.startsWith('team-')) && request.auth.claims.n == 7",
        "has(request.auth.claims.groups) && !has(request.auth.claims.other)",
        "source.address == '10.0.0.1' && remote.address == '192.0.2.1' && destination.port == 8443",
        "source.principal == 'td/ns/a/sa/b' && source.namespace == 'a' && connection.mtls",
        "connection.sni == 'shop.test'",
    ] {
        assert_eq!(decide(text, &metadata, &facts), (true, true), "{text}");
        assert_eq!(decide(&format!("!({text})"), &metadata, &facts), (false, false), "{text}");
    }
    // Errors, values that are not true or false, and what cannot be read.
    for text in ["request.auth.claims.none == 1", "request.path", "request.headers['none'] == 'x'", "=="] {
        assert_eq!(decide(text, &metadata, &facts), (false, true), "{text}");
    }
    let anonymous = ConnectionFacts { identity: None, sni: None, ..facts };
    let nobody = "source.principal == '' && !connection.mtls && connection.sni == '' && request.auth.principal == '' \
                  && request.auth.claims.size() == 0";
    assert_eq!(decide(nobody, &Metadata::default(), &anonymous), (true, true));
}

/// Rules that are evaluated for one request, of as many policies as are asked for.
fn evaluated(count: usize, of: fn(usize) -> PolicyRule, metadata: &Metadata) -> usize {
    let named = |n| Arc::new(policy(&format!("p{n}"), PolicyAction::Deny, vec![of(n)]));
    let policies: Vec<_> = (0..count).map(named).collect();
    let identity = PeerIdentity { uris: vec!["spiffe://td/ns/ns7/sa/sa7".into()], ..PeerIdentity::default() };
    let facts = ConnectionFacts { identity: Some(&identity), ..facts() };
    let head = request("host7.example", "/path7", &[]);
    RULES.set(0);
    let authorizer = Authorizer::compile(&policies);
    let decision = authorizer.decide(&head, &facts, metadata);
    assert!(decision.matched.is_some_and(|rule| &*rule.policy.name == "p7"));
    RULES.get()
}

#[test]
fn a_thousand_policies_are_as_few_as_ten() {
    let ways: [fn(usize) -> PolicyRule; 8] = [
        |n| to(PolicyOperation { paths: patterns(&[&format!("/path{n}")]), ..PolicyOperation::default() }),
        |n| to(PolicyOperation { hosts: patterns(&[&format!("host{n}.*")]), ..PolicyOperation::default() }),
        |n| {
            let principal = StringMatch::Exact(format!("td/ns/ns{n}/sa/sa{n}").into());
            from_source(PolicySource { principals: vec![principal], ..PolicySource::default() })
        },
        |n| {
            let end = StringMatch::Suffix(format!("/sa/sa{n}").into());
            from_source(PolicySource { principals: vec![end], ..PolicySource::default() })
        },
        |n| {
            from_source(PolicySource { namespaces: vec![format!("ns{n}").into()], ..PolicySource::default() })
        },
        |n| {
            let (namespace, name) = (format!("ns{n}").into(), format!("sa{n}").into());
            let account = ir::ServiceAccount { namespace, name };
            from_source(PolicySource { service_accounts: vec![account], ..PolicySource::default() })
        },
        |n| when(ConditionKey::SourcePrincipal, &[&format!("td/ns/ns{n}/*")], &[]),
        |n| {
            let (issuer, subject) = (StringMatch::Present, StringMatch::Exact(format!("user{n}").into()));
            let bearer = RequestPrincipal { issuer, subject };
            from_source(PolicySource { request_principals: vec![bearer], ..PolicySource::default() })
        },
    ];
    let bearer = token(serde_json::json!({"iss": "i", "sub": "user7"}));
    let metadata = Metadata { tokens: vec![bearer], ..Metadata::default() };
    for (at, of) in ways.into_iter().enumerate() {
        assert_eq!((evaluated(10, of, &metadata), evaluated(1000, of, &metadata)), (1, 1), "way {at}");
    }
}

fn from_source(source: PolicySource) -> PolicyRule {
    PolicyRule { from: vec![source], ..PolicyRule::default() }
}

fn some_patterns(of: &'static [&'static str]) -> impl Strategy<Value = Vec<StringMatch>> {
    prop::collection::vec(prop::sample::select(of).prop_map(pattern), 0..3)
}

fn operation() -> impl Strategy<Value = PolicyOperation> {
    let hosts = || some_patterns(&["a", "b", "c", "*c", "d*", "*"]);
    let paths = || some_patterns(&["/a", "/b", "/c", "/c*", "/x*", "*/y", "*c", "/{*}"]);
    (hosts(), paths(), hosts(), some_patterns(&["GET", "POST"])).prop_map(
        |(hosts, paths, not_hosts, methods)| PolicyOperation {
            hosts,
            paths,
            not_hosts,
            methods,
            ..PolicyOperation::default()
        },
    )
}

fn some_policies() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let rule =
        prop::collection::vec(operation(), 0..3).prop_map(|to| PolicyRule { to, ..PolicyRule::default() });
    let action = prop::sample::select(&[PolicyAction::Deny, PolicyAction::Allow][..]);
    prop::collection::vec((action, prop::collection::vec(rule, 0..3)), 0..8).prop_map(|policies| {
        let named = policies.into_iter().enumerate();
        named.map(|(n, (action, rules))| Arc::new(policy(&format!("p{n}"), action, rules))).collect()
    })
}

proptest! {
    /// The index changes nothing: many rules together decide as each of them alone does.
    #[test]
    fn together_as_alone(
        policies in some_policies(),
        host in prop::sample::select(&["a", "b", "c", "d", "dc"][..]),
        path in prop::sample::select(&["/a", "/b", "/c", "/cc", "/x/y"][..]),
    ) {
        let head = request(host, path, &[]);
        let together = Authorizer::compile(&policies);
        let decision = together.decide(&head, &facts(), &Metadata::default());
        // All rules that match alone, by id: as DENY policies of one rule.
        let alone = |action| policies.iter().filter(|p| p.action == action).flat_map(|p| {
            (0..p.rules.len()).map(|index| {
                let rules = vec![p.rules[index].clone()];
                let only = Policy { action: PolicyAction::Deny, rules, ..(**p).clone() };
                let refused = !Authorizer::compile(&[Arc::new(only)]).decide(&head, &facts(), &Metadata::default()).allowed;
                (refused, format!("ns[foo]-policy[{}]-rule[{index}]", p.key.name))
            }).collect::<Vec<_>>()
        }).filter(|(matches, _)| *matches).map(|(_, id)| id).min();
        let expected = match (alone(PolicyAction::Deny), alone(PolicyAction::Allow)) {
            (Some(deny), _) => (false, Some(deny)),
            (None, Some(allow)) => (true, Some(allow)),
            (None, None) => (policies.iter().all(|p| p.action != PolicyAction::Allow), None),
        };
        let matched = decision.matched.map(|rule| rule.id.to_string());
        prop_assert_eq!((decision.allowed, matched), expected);
    }
}
