//! The RBAC filters that istiod would send for policies, and an Envoy that has them.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::policies::{Case, Field, Policy, Rule};

const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
/// istiod's order.
const ACTIONS: [(&str, &str); 3] = [("AUDIT", "LOG"), ("DENY", "DENY"), ("ALLOW", "ALLOW")];

/// Envoy's configuration: who passes the filters of a host is answered 200.
pub fn envoy(address: SocketAddr, cases: &[Case]) -> String {
    let hosts: Vec<Value> = cases
        .iter()
        .map(|case| {
            let of = |(ours, envoys): (&str, &str)| {
                let rbac = filter(case, ours, envoys)?;
                Some((ours.to_owned(), json!({"@type": PER_ROUTE, "rbac": rbac})))
            };
            let filters: Map<String, Value> = ACTIONS.into_iter().filter_map(of).collect();
            json!({
                "name": format!("case{}", case.number),
                "domains": [format!("*.case{}.test", case.number)],
                "typed_per_filter_config": filters,
                "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
            })
        })
        .collect();
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let mut filters: Vec<Value> =
        ACTIONS.iter().map(|(name, _)| json!({"name": name, "typed_config": {"@type": RBAC}})).collect();
    filters.push(json!({"name": "router", "typed_config": router}));
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "use_remote_address": true,
        "xff_num_trusted_hops": 1,
        "normalize_path": true,
        // Requests are many, each with a connection of its own.
        "delayed_close_timeout": "0s",
        "route_config": {"virtual_hosts": hosts, "ignore_port_in_host_matching": true},
        "http_filters": filters,
    });
    let listener = json!({
        "name": "edge",
        "address": {"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    });
    // JSON is YAML, which is what a file of this name is read as.
    json!({"static_resources": {"listeners": [listener]}}).to_string()
}

/// `None` without a policy of the action.
fn filter(case: &Case, ours: &str, envoys: &str) -> Option<Value> {
    let all = case.policies.iter().enumerate().filter(|(_, policy)| policy.action == ours);
    let all: Vec<(usize, &Policy)> = all.collect();
    if all.is_empty() {
        return None;
    }
    let mut policies = Map::new();
    for (at, policy) in all {
        let name = |rule: usize| format!("ns[default]-policy[case{}-{at}]-rule[{rule}]", case.number);
        if policy.rules.is_empty() {
            let never = json!({
                "permissions": [{"not_rule": {"any": true}}], "principals": [{"not_id": {"any": true}}]
            });
            policies.insert(name(0), never);
        }
        for (index, rule) in policy.rules.iter().enumerate() {
            policies.insert(name(index), generated(rule));
        }
    }
    Some(json!({"rules": {"action": envoys, "policies": policies}}))
}

fn generated(rule: &Rule) -> Value {
    let side = |of_permission: bool| -> Vec<Value> {
        rule.when
            .iter()
            .filter(|(key, ..)| is_permission(key) == of_permission)
            .flat_map(|(key, values, not)| both(of_permission, key, values, not))
            .collect()
    };
    let with = |fields: &Vec<Field>, when: &[Value], of_permission: bool| -> Value {
        let mut all = Vec::new();
        for (name, texts) in fields {
            let (plain, negated) = plain(name);
            let (values, not) = if negated { (&[][..], &texts[..]) } else { (&texts[..], &[][..]) };
            all.extend(both(of_permission, &plain, values, not));
        }
        all.extend(when.iter().cloned());
        if all.is_empty() {
            all.push(json!({"any": true}));
        }
        if of_permission { json!({"and_rules": {"rules": all}}) } else { json!({"and_ids": {"ids": all}}) }
    };
    let list = |alternatives: &[Vec<Field>], of_permission: bool| -> Vec<Value> {
        let when = side(of_permission);
        let none = [Vec::new()];
        let alternatives = if alternatives.is_empty() { &none[..] } else { alternatives };
        alternatives.iter().map(|fields| with(fields, &when, of_permission)).collect()
    };
    json!({"permissions": list(&rule.to, true), "principals": list(&rule.from, false)})
}

/// `notHosts` is `hosts`, negated.
fn plain(name: &str) -> (String, bool) {
    match name.strip_prefix("not") {
        Some(rest) => (format!("{}{}", rest[..1].to_lowercase(), &rest[1..]), true),
        None => (name.to_owned(), false),
    }
}

fn is_permission(key: &str) -> bool {
    matches!(key, "destination.port" | "connection.sni")
}

/// Some of `values`, and none of `not`.
fn both(of_permission: bool, key: &str, values: &[String], not: &[String]) -> Vec<Value> {
    let any = |texts: &[String]| {
        // What istiod writes of claims is one matcher for all values.
        if let Some(path) = claim(key) {
            return metadata(&path, texts);
        }
        let all: Vec<Value> = texts.iter().map(|text| matcher(key, text)).collect();
        if of_permission { json!({"or_rules": {"rules": all}}) } else { json!({"or_ids": {"ids": all}}) }
    };
    let mut parts = Vec::new();
    if !values.is_empty() {
        parts.push(any(values));
    }
    if !not.is_empty() {
        let name = if of_permission { "not_rule" } else { "not_id" };
        parts.push(json!({ name: any(not) }));
    }
    parts
}

fn claim(key: &str) -> Option<Vec<String>> {
    let path = key.strip_prefix("request.auth.claims[")?.strip_suffix(']')?;
    Some(path.split("][").map(str::to_owned).collect())
}

fn metadata(path: &[String], texts: &[String]) -> Value {
    let keys: Vec<Value> = std::iter::once("payload")
        .chain(path.iter().map(String::as_str))
        .map(|key| json!({"key": key}))
        .collect();
    let matchers: Vec<Value> = texts.iter().map(|text| json!({"string_match": string(text, "")})).collect();
    let any = match &matchers[..] {
        [only] => only.clone(),
        several => json!({"or_match": {"value_matchers": several}}),
    };
    json!({"metadata": {
        "filter": "envoy.filters.http.jwt_authn",
        "path": keys,
        "value": {"or_match": {"value_matchers": [{"list_match": {"one_of": any.clone()}}, any]}},
    }})
}

fn matcher(key: &str, text: &str) -> Value {
    match key {
        "hosts" => json!({"header": header(":authority", text, true)}),
        "methods" => json!({"header": header(":method", text, false)}),
        "paths" if text.contains('{') => json!({"uri_template": {
            "name": "uri-template",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "path_template": text.replace("{**}", "**").replace("{*}", "*"),
            },
        }}),
        "paths" => json!({"url_path": {"path": string(text, "")}}),
        "ports" | "destination.port" => json!({"destination_port": text.parse::<u16>().unwrap_or_default()}),
        "connection.sni" => json!({"requested_server_name": string(text, "")}),
        "ipBlocks" | "source.ip" => json!({"direct_remote_ip": block(text)}),
        "remoteIpBlocks" | "remote.ip" => json!({"remote_ip": block(text)}),
        "source.principal" => json!({"authenticated": {"principal_name": string(text, "spiffe://")}}),
        "source.namespace" => {
            let regex = format!(".*/ns/{}/.*", text.replace('*', ".*"));
            json!({"authenticated": {"principal_name": {"safe_regex": {"regex": regex}}}})
        }
        "request.auth.principal" => {
            let (issuer, subject) = text.rsplit_once('/').unwrap_or(("*", "*"));
            let one = |name: &str, text: &str| {
                json!({"metadata": {
                    "filter": "envoy.filters.http.jwt_authn",
                    "path": [{"key": "payload"}, {"key": name}],
                    "value": {"string_match": string(text, "")},
                }})
            };
            json!({"and_ids": {"ids": [one("iss", issuer), one("sub", subject)]}})
        }
        other => {
            let name = other.trim_start_matches("request.headers[").trim_end_matches(']');
            json!({"header": header(name, text, false)})
        }
    }
}

fn header(name: &str, text: &str, ignore_case: bool) -> Value {
    if text == "*" {
        return json!({"name": name, "present_match": true});
    }
    let mut matcher = string(text, "");
    if ignore_case {
        matcher["ignore_case"] = json!(true);
    }
    json!({"name": name, "string_match": matcher})
}

fn string(text: &str, prefix: &str) -> Value {
    match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => json!({"safe_regex": {"regex": ".+"}}),
        (Some(end), _) if prefix.is_empty() => json!({"suffix": end}),
        (Some(end), _) => json!({"safe_regex": {"regex": format!("{prefix}.*{}", end.replace('.', r"\."))}}),
        (None, Some(start)) => json!({"prefix": format!("{prefix}{start}")}),
        (None, None) => json!({"exact": format!("{prefix}{text}")}),
    }
}

fn block(text: &str) -> Value {
    let whole = if text.contains(':') { "128" } else { "32" };
    let (address, length) = text.split_once('/').unwrap_or((text, whole));
    json!({"address_prefix": address, "prefix_len": length.parse::<u32>().unwrap_or_default()})
}
