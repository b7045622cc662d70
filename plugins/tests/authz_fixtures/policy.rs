//! The fixtures' policies as IR, cut down to what is kept.

use std::sync::Arc;

use fieldgate_core::ir::{
    ConditionKey, ConditionValue, ObjectKey, Policy, PolicyAction, PolicyCondition, PolicyOperation,
    PolicyRule, PolicySource, StringMatch,
};
use ipnet::IpNet;

use crate::yaml::Yaml;
use crate::{Keep, Kind};

pub fn translate(policy: &Yaml, keep: Keep) -> Arc<Policy> {
    let name = |field: &str| Arc::from(policy.at(field).text().unwrap());
    let action = match policy.at("spec.action").text() {
        Some("AUDIT") => PolicyAction::Audit,
        Some("DENY") => PolicyAction::Deny,
        Some("ALLOW") | None => PolicyAction::Allow,
        other => panic!("{other:?}"),
    };
    let dry_run =
        policy.at("metadata.annotations").get("istio.io/dry-run").and_then(Yaml::text) == Some("true");
    Arc::new(Policy {
        key: ObjectKey {
            kind: "AuthorizationPolicy",
            namespace: name("metadata.namespace"),
            name: name("metadata.name"),
        },
        action,
        dry_run,
        listeners: Vec::new(),
        rules: policy.at("spec.rules").items().iter().map(|rule| translate_rule(rule, keep)).collect(),
    })
}

fn translate_rule(rule: &Yaml, keep: Keep) -> PolicyRule {
    let list = |field: &str| rule.at(field).items();
    PolicyRule {
        from: list("from").iter().map(|from| source(from.at("source"), keep)).collect(),
        to: list("to").iter().map(|to| operation(to.at("operation"), keep)).collect(),
        when: list("when").iter().filter_map(|when| condition(when, keep)).collect(),
    }
}

fn source(source: &Yaml, keep: Keep) -> PolicySource {
    let nets = |field: &str, kind| texts(source.at(field), keep, kind).map(net).collect();
    PolicySource {
        ip_blocks: nets("ipBlocks", Kind::Peer),
        not_ip_blocks: nets("notIpBlocks", Kind::Peer),
        remote_ip_blocks: nets("remoteIpBlocks", Kind::Client),
        not_remote_ip_blocks: nets("notRemoteIpBlocks", Kind::Client),
    }
}

fn operation(operation: &Yaml, keep: Keep) -> PolicyOperation {
    let patterns = |field: &str, kind| texts(operation.at(field), keep, kind).map(pattern).collect();
    let ports =
        |field: &str| texts(operation.at(field), keep, Kind::Port).map(|t| t.parse().unwrap()).collect();
    PolicyOperation {
        hosts: patterns("hosts", Kind::Host),
        not_hosts: patterns("notHosts", Kind::Host),
        ports: ports("ports"),
        not_ports: ports("notPorts"),
        methods: patterns("methods", Kind::Method),
        not_methods: patterns("notMethods", Kind::Method),
        paths: patterns("paths", Kind::Path),
        not_paths: patterns("notPaths", Kind::Path),
    }
}

fn condition(when: &Yaml, keep: Keep) -> Option<PolicyCondition> {
    let name = when.at("key").text().unwrap();
    let header = name.strip_prefix("request.headers[").and_then(|n| n.strip_suffix(']'));
    let (key, kind) = match name {
        _ if header.is_some() => {
            (ConditionKey::RequestHeader(header.unwrap().to_ascii_lowercase().into()), Kind::Header)
        }
        "source.ip" => (ConditionKey::SourceIp, Kind::Peer),
        "remote.ip" => (ConditionKey::RemoteIp, Kind::Client),
        "destination.ip" => (ConditionKey::DestinationIp, Kind::Local),
        "destination.port" => (ConditionKey::DestinationPort, Kind::Port),
        "connection.sni" => (ConditionKey::Sni, Kind::ServerName),
        _ => return None,
    };
    let value = |text: &str| match kind {
        Kind::Header | Kind::ServerName => ConditionValue::String(pattern(text)),
        Kind::Port => ConditionValue::Port(text.parse().unwrap()),
        _ => ConditionValue::Ip(net(text)),
    };
    let values = |field: &str| texts(when.at(field), keep, kind).map(value).collect();
    Some(PolicyCondition { key, values: values("values"), not_values: values("notValues") })
}

fn texts(list: &Yaml, keep: Keep, kind: Kind) -> impl Iterator<Item = &str> {
    list.texts().filter(move |text| keep.kind(kind) && (keep.star || *text != "*"))
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| text.parse::<std::net::IpAddr>().unwrap().into())
}

fn pattern(text: &str) -> StringMatch {
    match text {
        "*" => StringMatch::Present,
        t if t.contains("{*}") || t.contains("{**}") => StringMatch::Template(t.into()),
        t if t.ends_with('*') => StringMatch::Prefix(t[..t.len() - 1].into()),
        t if t.starts_with('*') => StringMatch::Suffix(t[1..].into()),
        t => StringMatch::Exact(t.into()),
    }
}
