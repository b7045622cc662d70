//! What the admin server shows: JSON for programs, text where Envoy shows text.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use fieldgate_core::Snapshot;
use fieldgate_core::snapshot::{CompiledRule, Rejection};
use serde_json::{Value, json};

use super::{is_draining, is_failing};
use crate::control::{AdminState, DrainedEndpoint, Expiry};
use crate::telemetry::{backend_name, route_of};
use crate::worker::WorkerReport;

/// `/api/v1/status`
pub(super) fn status(state: &AdminState, reports: &[WorkerReport]) -> Value {
    let view = state.view.load();
    let snapshot = &state.shared.published.load().snapshot;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": state.shared.started.elapsed().as_secs(),
        "generation": view.generation,
        "published": view.loaded.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        "ready": state.is_ready(),
        "draining": is_draining(state),
        "failing": is_failing(state),
        "workers": state.workers.len(),
        "connections": reports.iter().map(|r| r.connections).sum::<u64>(),
        "requests_in_flight": reports.iter().map(|r| r.requests).sum::<u64>(),
        "routes": snapshot.config.routes.len(),
        "pools": snapshot.config.pools.len(),
        "policies": snapshot.config.policies.len(),
        "listeners": listeners(state),
        "certificates": certificates(&view.expiries, SystemTime::now()),
        "drained": drained(&view.drained, snapshot),
        "rejected": rejections(&view.rejections),
        "diagnostics": view.diagnostics,
        "hardening": state.hardened.json(),
    })
}

/// Endpoints that an operator has taken out of service, and whether they are in their pool at present.
fn drained(drained: &[DrainedEndpoint], snapshot: &Snapshot) -> Vec<Value> {
    let is_there = |(name, address): &DrainedEndpoint| {
        let mut pools = snapshot.pools().filter(|pool| name.is_of(&pool.ir.key));
        pools.any(|pool| pool.endpoints.iter().any(|endpoint| endpoint.address() == *address))
    };
    let row =
        |of: &DrainedEndpoint| json!({"pool": of.0.to_string(), "address": of.1, "in_pool": is_there(of)});
    drained.iter().map(row).collect()
}

/// What is used for TLS and expires, the first to do so first.
fn certificates(expiries: &[Expiry], now: SystemTime) -> Vec<Value> {
    let mut sorted: Vec<_> = expiries.iter().collect();
    sorted.sort_by_key(|expiry| expiry.at);
    let row = |of: &Expiry| json!({"origin": &*of.origin, "kind": of.kind, "subject": of.subject, "expires": of.at, "days": of.days(now)});
    sorted.into_iter().map(row).collect()
}

/// Objects that could not be compiled.
pub(super) fn rejections(rejections: &[Rejection]) -> Vec<Value> {
    let row = |r: &Rejection| json!({"object": r.object.to_string(), "field": r.field, "message": r.message});
    rejections.iter().map(row).collect()
}

/// `/api/v1/objects`
pub(super) async fn objects(state: &AdminState) -> Value {
    json!(state.control.statuses().await)
}

/// `/api/v1/jwks`
pub(super) fn key_sets(state: &AdminState) -> Value {
    let rows = state.view.load().keys.all().into_iter().map(|watch| {
        let known = watch.state();
        let keys = watch.source.current();
        let shown = keys.as_ref().map_or_else(Vec::new, |keys| {
            keys.keys().map(|key| json!({"kid": key.kid, "kty": key.kty, "alg": key.alg})).collect()
        });
        let left_out = keys.as_ref().map_or_else(Vec::new, |keys| {
            keys.unusable().iter().map(|key| json!({"kid": key.kid, "reason": key.reason})).collect()
        });
        json!({
            "uri": watch.shown_uri(),
            "discovery": watch.remote.discover,
            "refresh_seconds": watch.remote.refresh.as_secs_f64(),
            "fetches": {"succeeded": known.succeeded, "failed": known.failed},
            "age_seconds": known.fetched.map(|fetched| fetched.elapsed().as_secs_f64()),
            "error": known.failure.map(|failure| failure.to_string()),
            "keys": shown,
            "left_out": left_out,
        })
    });
    Value::Array(rows.collect())
}

/// `/listeners?format=json`
pub(super) fn listeners(state: &AdminState) -> Value {
    let view = state.view.load();
    let rows = view.listeners.iter().map(|l| {
        json!({
            "address": l.address,
            "listeners": l.listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "sockets": l.state.as_ref().unwrap_or(&0),
            "error": l.state.as_ref().err(),
            "tls": l.tls.is_some(),
            "tls_error": l.tls.as_ref().and_then(|tls| tls.as_ref().err()),
        })
    });
    Value::Array(rows.collect())
}

/// `/listeners`: `name::address`, as Envoy.
pub(super) fn listeners_text(state: &AdminState) -> String {
    let view = state.view.load();
    let mut out = String::new();
    for listener in &view.listeners {
        for name in &listener.listeners {
            let _ = writeln!(out, "{name}::{}", listener.address);
        }
    }
    out
}

/// `/ready`, when it is not.
pub(super) fn why_not_ready(state: &AdminState) -> String {
    if is_draining(state) {
        return "DRAINING".to_owned();
    }
    if is_failing(state) {
        return "DRAINING: by /healthcheck/fail; /healthcheck/ok ends it".to_owned();
    }
    let view = state.view.load();
    if view.generation == 0 {
        return "INITIALIZING: no configuration is published yet".to_owned();
    }
    let failed =
        view.listeners.iter().filter_map(|l| Some(format!("{}: {}", l.address, l.state.as_ref().err()?)));
    format!("INITIALIZING: {}", failed.collect::<Vec<_>>().join("; "))
}

/// `/server_info`, with Envoy's names.
pub(super) fn server_info(state: &AdminState) -> Value {
    let phase = if state.is_leaving() {
        "DRAINING"
    } else if state.is_ready() {
        "LIVE"
    } else {
        "INITIALIZING"
    };
    let uptime = format!("{}s", state.shared.started.elapsed().as_secs());
    json!({
        "version": format!("fieldgate/{}", env!("CARGO_PKG_VERSION")),
        "state": phase,
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "pid": std::process::id(),
    })
}

/// `/api/v1/splits`: rules with several backends.
pub(super) fn splits(snapshot: &Snapshot, reports: &[WorkerReport]) -> Value {
    let counts = counts_of_rules(reports);
    let rules = snapshot.rules().filter(|rule| rule.backends.len() > 1);
    Value::Array(rules.map(|rule| split(rule, counts.get(&*rule.ir.id))).collect())
}

fn split(rule: &CompiledRule, counts: Option<&BTreeMap<&str, u64>>) -> Value {
    let total: u64 = counts.map_or(0, |counts| counts.values().sum());
    let backends = rule.split.desired().enumerate().map(|(index, (weight, of))| {
        let name = backend_name(&rule.ir, index);
        let requests = counts.and_then(|counts| counts.get(name.as_str())).copied().unwrap_or(0);
        json!({
            "backend": name,
            "weight": weight,
            "desired": ratio(u64::from(weight), of),
            "requests": requests,
            "achieved": ratio(requests, total),
        })
    });
    json!({
        "route": route_of(&rule.ir.id),
        "rule": &*rule.ir.id,
        "policy": rule.split.policy().map(|policy| &*policy.name),
        "backends": backends.collect::<Vec<_>>(),
    })
}

fn counts_of_rules(reports: &[WorkerReport]) -> BTreeMap<&str, BTreeMap<&str, u64>> {
    let mut counts: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for (rule, backends) in reports.iter().flat_map(|report| &report.splits) {
        let of_rule = counts.entry(rule).or_default();
        for (backend, count) in backends {
            *of_rule.entry(backend).or_default() += count;
        }
    }
    counts
}

fn ratio(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}
