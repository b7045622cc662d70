//! `/config_dump`: the configuration in force, as it was translated. Private keys are not in it.

mod pool;
mod traffic;

use std::time::Duration;

use fieldgate_core::Snapshot;
use fieldgate_core::ir::{Authentication, Hostname, Jwks, Listener, PathMatch, Policy, Route, Rule};
use fieldgate_core::snapshot::Rejection;
use serde_json::{Value, json};

use super::views::rejections;
use crate::telemetry::backend_name;

/// The whole configuration.
pub(super) fn config(snapshot: &Snapshot, refused: &[Rejection]) -> Value {
    let config = &snapshot.config;
    json!({
        "generation": snapshot.generation,
        "listeners": config.listeners.values().map(|l| listener(l)).collect::<Vec<_>>(),
        "routes": config.routes.values().map(|r| route(r)).collect::<Vec<_>>(),
        "pools": config.pools.values().map(|p| pool::pool(p)).collect::<Vec<_>>(),
        "policies": config.policies.values().map(|p| policy(p)).collect::<Vec<_>>(),
        "authentications": config.authentications.values().map(|a| authentication(a)).collect::<Vec<_>>(),
        "rejections": rejections(refused),
    })
}

fn listener(listener: &Listener) -> Value {
    let certificates =
        listener.tls.as_ref().map(|tls| tls.certificates.iter().map(|c| &*c.origin).collect::<Vec<_>>());
    json!({
        "name": listener.key.to_string(),
        "addresses": listener.addresses,
        "hostname": listener.hostname.as_ref().map(ToString::to_string),
        "certificates": certificates,
        "trusted_hops": listener.client.trusted_hops,
    })
}

fn route(route: &Route) -> Value {
    let attachments = route.attachments.iter().map(|attachment| {
        let hosts = attachment.hostnames.iter().map(|h| host(h.as_ref())).collect::<Vec<_>>();
        json!({"listener": attachment.listener.to_string(), "hostnames": hosts})
    });
    json!({
        "name": route.key.to_string(),
        "attachments": attachments.collect::<Vec<_>>(),
        "rules": route.rules.iter().map(|r| rule(r)).collect::<Vec<_>>(),
    })
}

fn host(hostname: Option<&Hostname>) -> String {
    hostname.map_or_else(|| "*".to_owned(), ToString::to_string)
}

fn rule(rule: &Rule) -> Value {
    let matches = rule.matches.iter().map(|m| {
        let (kind, path) = match &m.path {
            PathMatch::Exact(path) => ("exact", path),
            PathMatch::Prefix(path) => ("prefix", path),
            PathMatch::Regex(path) => ("regex", path),
        };
        let conditions = |list: &[(std::sync::Arc<str>, _)]| {
            list.iter().map(|(name, value)| format!("{name}: {value:?}")).collect::<Vec<_>>()
        };
        json!({
            "path": {"type": kind, "value": &**path},
            "method": m.method.as_deref(),
            "headers": conditions(&m.headers),
            "query": conditions(&m.query),
        })
    });
    let backends = rule.backends.iter().enumerate().map(|(index, backend)| {
        json!({
            "backend": backend_name(rule, index),
            "weight": backend.weight,
            "filters": shown(&backend.filters),
        })
    });
    json!({
        "id": &*rule.id,
        "grpc": rule.grpc,
        "matches": matches.collect::<Vec<_>>(),
        "filters": shown(&rule.filters),
        "backends": backends.collect::<Vec<_>>(),
        "timeouts": traffic::timeouts(&rule.timeouts),
        "retry": rule.retry.as_deref().map(traffic::retry),
        "affinity": rule.affinity.as_deref().map(traffic::affinity),
        "split_policy": rule.split.as_ref().map(|policy| format!("{policy:?}")),
    })
}

/// Keys that are written out may be secrets.
fn authentication(one: &Authentication) -> Value {
    let rules = one.rules.iter().map(|rule| {
        let keys = match &rule.keys {
            Jwks::Inline(_) => json!("inline"),
            Jwks::Remote(remote) => json!(remote.uri.split('?').next()),
        };
        let claims = rule
            .claim_headers
            .iter()
            .map(|(header, path)| json!({"header": &**header, "claim": path.join(".")}));
        json!({
            "issuer": &*rule.issuer,
            "audiences": rule.audiences.iter().map(|audience| &**audience).collect::<Vec<_>>(),
            "keys": keys,
            "from": rule.from.iter().map(|place| format!("{place:?}")).collect::<Vec<_>>(),
            "forward": rule.forward,
            "payload_header": rule.payload_header.as_deref(),
            "claim_headers": claims.collect::<Vec<_>>(),
            "clock_skew_seconds": rule.clock_skew.as_secs(),
        })
    });
    json!({
        "name": one.key.to_string(),
        "listeners": one.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rules": rules.collect::<Vec<_>>(),
    })
}

fn policy(policy: &Policy) -> Value {
    json!({
        "name": policy.key.to_string(),
        "action": format!("{:?}", policy.action),
        "dry_run": policy.dry_run,
        "listeners": policy.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "rules": shown(&policy.rules),
    })
}

/// Parts that no program reads yet are shown as they are.
fn shown<T: std::fmt::Debug>(list: &[T]) -> Vec<String> {
    list.iter().map(|item| format!("{item:?}")).collect()
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

fn some_ms(time: Option<Duration>) -> Option<u64> {
    time.map(ms)
}
