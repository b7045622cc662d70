//! Envoy's own integration tests of its RBAC filter, as far as policies can say what their filters say: its requests must
//! end as they do there. The fixtures lost the requests' paths and fields, so these are written here.

use std::path::Path;
use std::sync::Arc;

use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{
    ConditionKey, ConditionValue, ConnectionFacts, ObjectKey, Policy, PolicyAction, PolicyCondition,
    PolicyOperation, PolicyRule, StringMatch,
};
use fieldgate_core::{Method, RequestHead};
use fieldgate_plugins::authz::Authorizer;

use crate::yaml::{self, Yaml};

/// File, method, target, fields, and whether the request passes.
type Case = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], bool);

const CASES: &[Case] = &[
    ("RBAC_CONFIG", "GET", "/", &[], true),
    ("RBAC_CONFIG", "POST", "/", &[], false),
    ("RBAC_CONFIG", "HEAD", "/", &[], false),
    ("RBAC_CONFIG_WITH_DENY_ACTION", "GET", "/", &[], false),
    ("RBAC_CONFIG_WITH_DENY_ACTION", "POST", "/", &[], true),
    ("RBAC_CONFIG_WITH_PREFIX_MATCH", "POST", "/foo/bar", &[], true),
    ("RBAC_CONFIG_WITH_PREFIX_MATCH", "POST", "/bar", &[], false),
    ("RBAC_CONFIG_WITH_PATH_EXACT_MATCH", "POST", "/allow", &[], true),
    ("RBAC_CONFIG_WITH_PATH_EXACT_MATCH", "POST", "/allow?p1=v1", &[], true),
    ("RBAC_CONFIG_WITH_PATH_EXACT_MATCH", "POST", "/allowed", &[], false),
    ("RBAC_CONFIG_DENY_WITH_PATH_EXACT_MATCH", "POST", "/deny", &[], false),
    ("RBAC_CONFIG_DENY_WITH_PATH_EXACT_MATCH", "POST", "/deny?p1=v1", &[], false),
    ("RBAC_CONFIG_DENY_WITH_PATH_EXACT_MATCH", "POST", "/other", &[], true),
    ("RBAC_CONFIG_PERMISSION_WITH_URI_PATH_TEMPLATE_MATCH", "POST", "/test/deny/path", &[], false),
    ("RBAC_CONFIG_PERMISSION_WITH_URI_PATH_TEMPLATE_MATCH", "POST", "/test/other", &[], true),
    ("RBAC_CONFIG_WITH_LOG_ACTION", "POST", "/", &[], true),
    ("RBAC_CONFIG_HEADER_MATCH_CONDITION", "POST", "/", &[("xxx", "yyy")], true),
    ("RBAC_CONFIG_HEADER_MATCH_CONDITION", "POST", "/", &[("xxx", "yyy"), ("xxx", "zzz")], false),
    ("RBAC_CONFIG_HEADER_MATCH_CONDITION", "POST", "/", &[], false),
];

#[test]
fn requests_end_as_in_envoys_own_tests() {
    let Some(root) = std::env::var_os("FIELDGATE_FIXTURES") else {
        println!("skipped: FIELDGATE_FIXTURES is not set");
        return;
    };
    let folder = Path::new(&root).join("envoy-derived/rbac_integration");
    for (file, method, target, fields, passes) in CASES {
        let filter = &yaml::read(&folder.join(format!("{file}.yaml")))[0];
        let authorizer = Authorizer::compile(&[Arc::new(policy(filter.at("typed_config.rules")))]);
        let mut head = RequestHead {
            method: Method::from_bytes(method.as_bytes()),
            authority: "host".into(),
            ..RequestHead::default()
        };
        head.set_target(target);
        for (name, value) in *fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        let local = "127.0.0.1:80".parse().unwrap();
        let peer = "127.0.0.1".parse().unwrap();
        let facts = ConnectionFacts { peer, client: peer, local, sni: None, identity: None };
        let decision = authorizer.decide(&head, &facts, &Metadata::default());
        assert_eq!(decision.allowed, *passes, "{file}: {method} {target} {fields:?}");
    }
}

/// A filter's one policy, of one permission of everybody.
fn policy(rules: &Yaml) -> Policy {
    let action = match rules.at("action").text() {
        Some("DENY") => PolicyAction::Deny,
        Some("LOG") => PolicyAction::Audit,
        None | Some("ALLOW") => PolicyAction::Allow,
        other => panic!("{other:?}"),
    };
    let (_, written) = &rules.at("policies").entries()[0];
    let permission = &written.at("permissions").items()[0];
    let key = ObjectKey { kind: "AuthorizationPolicy", namespace: "default".into(), name: "foo".into() };
    let (mut rule, mut operation) = (PolicyRule::default(), PolicyOperation::default());
    let header = permission.at("header");
    match (header.at("name").text(), permission.entries()[0].0.as_str()) {
        (Some(":method"), _) => operation.methods.push(exact(header.at("string_match.exact"))),
        (Some(":path"), _) => {
            let prefix = StringMatch::Prefix(header.at("string_match.prefix").text().unwrap().into());
            rule.when.push(PolicyCondition {
                key: ConditionKey::RequestHeader(":path".into()),
                values: vec![ConditionValue::String(prefix)],
                not_values: Vec::new(),
            });
        }
        (_, "url_path") => operation.paths.push(exact(permission.at("url_path.path.exact"))),
        // Without an operator in it, it is the path.
        (_, "uri_template") => {
            operation.paths.push(exact(permission.at("uri_template.typed_config.path_template")));
        }
        (_, "any") => {}
        other => panic!("{other:?}"),
    }
    if operation != PolicyOperation::default() {
        rule.to.push(operation);
    }
    let closed = Policy::closed(key, Vec::new());
    Policy { action, rules: vec![rule], cel: condition(written).map(Into::into), ..closed }
}

fn exact(text: &Yaml) -> StringMatch {
    StringMatch::Exact(text.text().unwrap().into())
}

/// `request.headers.xxx == TEXT`, where the test that the fixture is of fills the text in.
fn condition(policy: &Yaml) -> Option<String> {
    let call = policy.get("condition")?.at("call_expr");
    assert_eq!(call.at("function").text(), Some("_==_"));
    let field = call.at("args").items()[0].at("select_expr");
    let headers = field.at("operand.select_expr");
    let root = headers.at("operand.ident_expr.name");
    let names = [root, headers.at("field"), field.at("field")].map(|part| part.text().unwrap());
    Some(format!("{} == 'yyy'", names.join(".")))
}
