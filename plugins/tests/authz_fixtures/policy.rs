//! The fixtures' policies as IR: read as a configuration is read, then cut down to what is kept.

use std::path::Path;
use std::sync::Arc;

use fieldgate_config::translate::TrustDomains;
use fieldgate_config::{Configuration, FileChange};
use fieldgate_core::ir::{
    ConditionKey, ConditionValue, Policy, PolicyOperation, PolicyRule, PolicySource, RequestPrincipal,
    StringMatch,
};

use crate::{Keep, Kind};

/// All of the fixtures' selectors choose it.
const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: foo, labels: {app: httpbin, version: v1}}
spec: {gatewayClassName: fieldgate, listeners: [{name: web, protocol: HTTP, port: 80}]}
---
";

pub fn read(path: &Path, trust_domains: &[&str]) -> Vec<Arc<Policy>> {
    // Only what a filter of this gateway could have said is taken.
    let text = std::fs::read_to_string(path).unwrap().replace(".filters.a.b[", ".filters.http.ext_authz[");
    let file = FileChange { name: "fixture.yaml".into(), text: Some(format!("{GATEWAY}{text}")) };
    let own = TrustDomains::new(trust_domains[0], &trust_domains[1..]);
    let outcome = Configuration::default().in_trust_domains(own).apply(vec![file]);
    let unexpected =
        outcome.diagnostics.iter().find(|d| !d.message.contains("there is no ExternalAuthorizer"));
    assert!(unexpected.is_none(), "{}: {unexpected:?}", path.display());
    let policies: Vec<_> = outcome.config.policies.values().cloned().collect();
    assert!(!policies.is_empty() && policies.iter().all(|policy| !policy.listeners.is_empty()));
    policies
}

pub fn cut(policy: &Policy, keep: Keep) -> Arc<Policy> {
    let rules = policy.rules.iter().map(|rule| cut_rule(rule, keep)).collect();
    Arc::new(Policy { rules, ..policy.clone() })
}

fn cut_rule(rule: &PolicyRule, keep: Keep) -> PolicyRule {
    let mut cut = rule.clone();
    cut.from.iter_mut().for_each(|source| cut_source(source, keep));
    cut.to.iter_mut().for_each(|operation| cut_operation(operation, keep));
    cut.when.retain(|when| keep.kind(kind(&when.key)));
    for when in &mut cut.when {
        for values in [&mut when.values, &mut when.not_values] {
            values.retain(|value| match value {
                ConditionValue::String(pattern) | ConditionValue::InList(pattern) => text(pattern, keep),
                ConditionValue::Name(name) => keep.star || **name != *"*",
                ConditionValue::Bearer(bearer) => is_kept(bearer, keep),
                _ => true,
            });
        }
    }
    cut
}

fn kind(key: &ConditionKey) -> Kind {
    match key {
        ConditionKey::RequestHeader(_) => Kind::Header,
        ConditionKey::SourceIp => Kind::Peer,
        ConditionKey::RemoteIp => Kind::Client,
        ConditionKey::SourceNamespace
        | ConditionKey::SourceServiceAccount
        | ConditionKey::SourcePrincipal
        | ConditionKey::SourceTrustDomain => Kind::Identity,
        ConditionKey::RequestPrincipal | ConditionKey::Claim(_) => Kind::Token,
        ConditionKey::DestinationIp => Kind::Local,
        ConditionKey::DestinationPort => Kind::Port,
        ConditionKey::Sni => Kind::ServerName,
        ConditionKey::Metadata(..) => Kind::Metadata,
    }
}

fn cut_source(source: &mut PolicySource, keep: Keep) {
    for list in [&mut source.ip_blocks, &mut source.not_ip_blocks] {
        list.retain(|_| keep.kind(Kind::Peer));
    }
    for list in [&mut source.remote_ip_blocks, &mut source.not_remote_ip_blocks] {
        list.retain(|_| keep.kind(Kind::Client));
    }
    for list in [&mut source.principals, &mut source.not_principals] {
        list.retain(|pattern| keep.kind(Kind::Identity) && text(pattern, keep));
    }
    let names = [
        &mut source.namespaces,
        &mut source.not_namespaces,
        &mut source.trust_domains,
        &mut source.not_trust_domains,
    ];
    for list in names {
        list.retain(|name| keep.kind(Kind::Identity) && (keep.star || **name != *"*"));
    }
    for list in [&mut source.service_accounts, &mut source.not_service_accounts] {
        list.retain(|_| keep.kind(Kind::Identity));
    }
    for list in [&mut source.request_principals, &mut source.not_request_principals] {
        list.retain(|bearer| keep.kind(Kind::Token) && is_kept(bearer, keep));
    }
}

fn cut_operation(operation: &mut PolicyOperation, keep: Keep) {
    for (kind, some, none) in [
        (Kind::Host, &mut operation.hosts, &mut operation.not_hosts),
        (Kind::Method, &mut operation.methods, &mut operation.not_methods),
        (Kind::Path, &mut operation.paths, &mut operation.not_paths),
    ] {
        for list in [some, none] {
            list.retain(|pattern| keep.kind(kind) && text(pattern, keep));
        }
    }
    for list in [&mut operation.ports, &mut operation.not_ports] {
        list.retain(|_| keep.kind(Kind::Port));
    }
}

fn text(pattern: &StringMatch, keep: Keep) -> bool {
    keep.star || *pattern != StringMatch::Present
}

fn is_kept(bearer: &RequestPrincipal, keep: Keep) -> bool {
    text(&bearer.issuer, keep) || text(&bearer.subject, keep)
}
