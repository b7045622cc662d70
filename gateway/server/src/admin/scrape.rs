//! Metrics that are read off the running configuration at the moment of a scrape, so that what is gone is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::UNIX_EPOCH;

use fieldgate_config::diagnostic::Severity;
use fieldgate_core::Snapshot;
use fieldgate_core::balance::{CompiledPool, Gauge};

use super::pools::{EndpointHealth, gauges, limit};
use crate::audit::Audit;
use crate::control::View;
use crate::hardening::Report;
use crate::telemetry::backend_name;
use crate::telemetry::exposition::Family;

/// Rules whose split is shown. Far above what anybody splits at once; a bound all the same.
const MAX_RULES: usize = 5_000;

/// Sets of keys that are shown.
const MAX_KEY_SETS: usize = 1_000;

/// Pools that are shown.
const MAX_POOLS: usize = 5_000;

/// Places and kinds of what expires that are shown.
const MAX_EXPIRIES: usize = 10_000;

/// Kinds that are shown even if none is rejected, so that an alert has a series from the start.
const KINDS: &[&str] = &[
    "AuthorizationPolicy",
    "ExternalAuthorizer",
    "GRPCRoute",
    "Gateway",
    "HTTPRoute",
    "Pool",
    "RateLimitPolicy",
    "RequestAuthentication",
    "Secret",
    "SplitPolicy",
    "TrafficPolicy",
];

/// Writes all of them.
pub(super) fn write(out: &mut String, snapshot: &Snapshot, view: &View, now_ms: u64) {
    config(out, view);
    rejected(out, view);
    expiries(out, view);
    changes(out, view);
    keys(out, view);
    splits(out, snapshot);
    pools(out, snapshot, now_ms);
    limits(out, snapshot);
    ejections(out, snapshot);
}

/// What holds for the process itself: 1, or 0 where it is missing.
pub(super) fn hardening(out: &mut String, report: &Report) {
    let help = "Controls that the process has put on itself, as tried at its start: 1 in force, 0 missing.";
    let mut family = Family::begin(out, "fieldgate_hardening_active", "gauge", help);
    for control in report.controls() {
        family.sample(&[("control", control.name)], f64::from(u8::from(control.active)));
    }
}

pub(super) fn audit(out: &mut String, audit: &Audit) {
    let help = "Lines of the audit log that could not be written.";
    Family::begin(out, "fieldgate_audit_lost_total", "counter", help).sample(&[], audit.lost() as f64);
}

fn config(out: &mut String, view: &View) {
    let help = "Configurations published since the start; 0 is none yet.";
    Family::begin(out, "fieldgate_config_generation", "gauge", help).sample(&[], view.generation as f64);
    let loaded = view.loaded.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the configuration in force was published, in seconds since 1970.";
    Family::begin(out, "fieldgate_config_published_timestamp_seconds", "gauge", help).sample(&[], loaded);
}

/// The first to expire stands for all of one place and kind.
fn expiries(out: &mut String, view: &View) {
    let mut first: BTreeMap<(&str, &str), i64> = BTreeMap::new();
    for expiry in &view.expiries {
        let at = first.entry((&expiry.origin, expiry.kind)).or_insert(expiry.at);
        *at = expiry.at.min(*at);
    }
    let help =
        "When what is used for TLS expires, in seconds since 1970, by where it is from and what it is.";
    let mut family = Family::begin(out, "fieldgate_certificate_expiry_timestamp_seconds", "gauge", help);
    for ((origin, kind), at) in first.into_iter().take(MAX_EXPIRIES) {
        family.sample(&[("origin", origin), ("kind", kind)], at as f64);
    }
}

fn changes(out: &mut String, view: &View) {
    let help = "Changes of objects that were asked for by the admin API, by what became of them.";
    let mut family = Family::begin(out, "fieldgate_config_api_changes_total", "counter", help);
    family.sample(&[("result", "accepted")], view.changes.accepted as f64);
    family.sample(&[("result", "refused")], view.changes.refused as f64);
}

fn rejected(out: &mut String, view: &View) {
    let mut objects: BTreeMap<&str, BTreeSet<(String, String)>> =
        KINDS.iter().map(|kind| (*kind, BTreeSet::new())).collect();
    let errors = view.diagnostics.iter().filter(|d| d.severity == Severity::Error);
    for diagnostic in errors {
        // A text that is no object at all counts by its place. A kind is as written, so only known ones are labels.
        let (kind, id) = match &diagnostic.object {
            Some(object) => (object.kind.as_str(), (object.namespace.clone(), object.name.clone())),
            None => ("unknown", (diagnostic.location.file.to_string(), diagnostic.location.line.to_string())),
        };
        let kind = known_kind(kind);
        objects.entry(kind).or_default().insert(id);
    }
    for rejection in &view.rejections {
        let object = &rejection.object;
        objects
            .entry(object.kind)
            .or_default()
            .insert((object.namespace.to_string(), object.name.to_string()));
    }
    for origin in &view.refused_certificates {
        // Secrets are the only source of certificates.
        objects.entry("Secret").or_default().insert((origin.to_string(), String::new()));
    }
    let help = "Objects that are refused at present, by kind.";
    let mut family = Family::begin(out, "fieldgate_config_rejected_objects", "gauge", help);
    for (kind, objects) in objects {
        family.sample(&[("kind", kind)], objects.len() as f64);
    }
}

/// A label value for a kind: itself if the gateway reads that kind.
fn known_kind(kind: &str) -> &'static str {
    const READ: &[&str] = &[
        "AuthorizationPolicy",
        "BackendTLSPolicy",
        "ConfigMap",
        "DestinationRule",
        "EndpointSlice",
        "ExternalAuthorizer",
        "GRPCRoute",
        "Gateway",
        "HTTPRoute",
        "Namespace",
        "Pool",
        "RateLimitPolicy",
        "ReferenceGrant",
        "RequestAuthentication",
        "Secret",
        "Service",
        "ServiceEntry",
        "SplitPolicy",
        "TrafficPolicy",
        "WorkloadEntry",
        "XBackendTrafficPolicy",
    ];
    READ.iter().find(|known| **known == kind).copied().unwrap_or("unknown")
}

/// Sets of keys that are fetched, by URL; those of one URL that are fetched in several ways are one series.
fn keys(out: &mut String, view: &View) {
    let mut sets: BTreeMap<String, [f64; 4]> = BTreeMap::new();
    for watch in view.keys.all().iter().take(MAX_KEY_SETS) {
        let state = watch.state();
        let age = state.fetched.map_or(f64::NAN, |fetched| fetched.elapsed().as_secs_f64());
        let keys = watch.source.current().map_or(0, |keys| keys.keys().len());
        let row = sets.entry(watch.shown_uri().to_owned()).or_insert([0.0, 0.0, 0.0, 0.0]);
        row[0] += state.succeeded as f64;
        row[1] += state.failed as f64;
        row[2] = row[2].max(age);
        row[3] += keys as f64;
    }
    let help = "Fetches of the keys that tokens are checked with, by result.";
    let mut family = Family::begin(out, "fieldgate_jwks_fetches_total", "counter", help);
    for (uri, [succeeded, failed, ..]) in &sets {
        family.sample(&[("uri", uri), ("result", "success")], *succeeded);
        family.sample(&[("uri", uri), ("result", "failure")], *failed);
    }
    let help = "Seconds since the keys in use were fetched or found unchanged.";
    let mut family = Family::begin(out, "fieldgate_jwks_age_seconds", "gauge", help);
    for (uri, [_, _, age, _]) in &sets {
        family.sample(&[("uri", uri)], *age);
    }
    let help = "Keys in use.";
    let mut family = Family::begin(out, "fieldgate_jwks_keys", "gauge", help);
    for (uri, [.., keys]) in &sets {
        family.sample(&[("uri", uri)], *keys);
    }
}

fn splits(out: &mut String, snapshot: &Snapshot) {
    let help = "The share of requests that each backend of a rule shall get, from 0 to 1.";
    let mut family = Family::begin(out, "fieldgate_split_desired_ratio", "gauge", help);
    for rule in snapshot.rules().filter(|rule| rule.backends.len() > 1).take(MAX_RULES) {
        let route = format!("{}/{}", rule.route.namespace, rule.route.name);
        for (name, share) in shares_by_name(rule) {
            family.sample(&[("route", &route), ("rule", &rule.ir.id), ("backend", &name)], share);
        }
    }
}

/// A pool that is named twice in a rule is one series.
fn shares_by_name(rule: &fieldgate_core::snapshot::CompiledRule) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for (index, (weight, of)) in rule.split.desired().enumerate() {
        let share = if of == 0 { 0.0 } else { f64::from(weight) / of as f64 };
        *shares.entry(backend_name(&rule.ir, index)).or_insert(0.0) += share;
    }
    shares
}

fn pools(out: &mut String, snapshot: &Snapshot, now_ms: u64) {
    let help = "Endpoints of a pool by state.";
    let mut family = Family::begin(out, "fieldgate_pool_endpoints", "gauge", help);
    for pool in snapshot.pools().take(MAX_POOLS) {
        let name = pool.ir.key.to_string();
        for state in EndpointHealth::ALL {
            let count = pool.endpoints.iter().filter(|e| EndpointHealth::of(e, now_ms) == state).count();
            family.sample(&[("pool", &name), ("state", state.as_str())], count as f64);
        }
    }
}

/// What is limited, by pool. Without a limit nothing is counted, so there is no series; `refused` goes on after a limit is
/// lifted, as a counter must.
fn limits(out: &mut String, snapshot: &Snapshot) {
    let pools: Vec<_> =
        snapshot.pools().take(MAX_POOLS).map(|pool| (pool.ir.key.to_string(), gauges(pool))).collect();
    let mut write = |name, kind, help, value: fn(u32, &Gauge) -> Option<f64>| {
        let mut family = Family::begin(out, name, kind, help);
        for (pool, gauges) in &pools {
            for (what, limit, gauge) in gauges {
                if let Some(value) = value(*limit, gauge) {
                    family.sample(&[("pool", pool), ("limit", what)], value);
                }
            }
        }
    };
    let help = "The most that a pool may have at once over all workers, by what is limited.";
    write("fieldgate_pool_limit", "gauge", help, |max, _| limit(max).map(f64::from));
    let help = "What a pool has at present of what is limited.";
    write("fieldgate_pool_limit_used", "gauge", help, |max, gauge| {
        limit(max).map(|_| f64::from(gauge.now()))
    });
    let help = "How often a limit of a pool was met, by what is limited.";
    write("fieldgate_pool_limit_refused_total", "counter", help, |max, gauge| {
        (limit(max).is_some() || gauge.refused() > 0).then(|| gauge.refused() as f64)
    });
}

/// What workers cannot count: an ejection that did not take place. Pools without outlier detection have no series.
fn ejections(out: &mut String, snapshot: &Snapshot) {
    let help = "Endpoints that outlier detection did not eject because too many were already.";
    let mut family = Family::begin(out, "fieldgate_pool_ejections_refused_total", "counter", help);
    let refused = |pool: &CompiledPool| pool.shared.ejections.overflow();
    let pools = snapshot.pools().filter(|pool| pool.ir.outlier.is_some() || refused(pool) > 0);
    for pool in pools.take(MAX_POOLS) {
        family.sample(&[("pool", &pool.ir.key.to_string())], refused(pool) as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pools::tests::pools;
    use super::*;

    fn check(out: &str, lines: &[&str]) {
        let samples: Vec<_> = out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples, lines);
    }

    #[test]
    fn every_state_of_endpoints_is_counted() {
        let of = pools(true, |_| {});
        of.snapshot.pools().next().unwrap().endpoints[0].state.set_drained(true);
        let mut out = String::new();
        super::pools(&mut out, &of.snapshot, of.now_ms);
        let line = |state: &str, count: u32| {
            format!("fieldgate_pool_endpoints{{pool=\"Pool default/vms\",state=\"{state}\"}} {count}")
        };
        let expected = [
            line("healthy", 1),
            line("degraded", 0),
            line("unhealthy", 0),
            line("ejected", 0),
            line("draining", 0),
            line("drained", 1),
        ];
        check(&out, &expected.each_ref().map(String::as_str));
    }

    #[test]
    fn ejections_are_counted_by_reason() {
        use std::sync::Arc;

        use fieldgate_core::balance::PoolState;
        use fieldgate_core::ir::Outlier;
        use fieldgate_core::outlier::Seen;

        let mut out = String::new();
        ejections(&mut out, &pools(true, |_| {}).snapshot);
        check(&out, &[]);
        let detection = Outlier { consecutive_5xx: 1, max_ejection_percent: 0, ..Outlier::default() };
        let of = pools(true, |pool| pool.outlier = Some(Arc::new(detection)));
        let pool = of.snapshot.pools().next().unwrap();
        for endpoint in [0, 1] {
            pool.report(&mut PoolState::default(), endpoint, Seen::Status(500), 1000, 0);
        }
        ejections(&mut out, &of.snapshot);
        check(&out, &["fieldgate_pool_ejections_refused_total{pool=\"Pool default/vms\"} 1"]);
        let shown = &of.all()[0]["outlier_detection"];
        let reason = serde_json::json!({"detected": 2, "ejected": 1});
        assert_eq!(shown["reasons"]["consecutive_5xx"], reason);
        assert_eq!(shown["refused_by_limit"], 1);
    }

    #[test]
    fn what_is_not_limited_has_no_series_unless_it_was_refused_once() {
        let of = pools(true, |pool| pool.limits.max_requests = 1);
        let shared = &of.snapshot.pools().next().unwrap().shared;
        assert!(shared.requests.enter(1) && !shared.requests.enter(1) && !shared.retries.enter(0));
        let mut out = String::new();
        limits(&mut out, &of.snapshot);
        let pool = "pool=\"Pool default/vms\"";
        let expected = [
            format!("fieldgate_pool_limit{{{pool},limit=\"requests\"}} 1"),
            format!("fieldgate_pool_limit{{{pool},limit=\"pending\"}} 1024"),
            format!("fieldgate_pool_limit_used{{{pool},limit=\"requests\"}} 1"),
            format!("fieldgate_pool_limit_used{{{pool},limit=\"pending\"}} 0"),
            format!("fieldgate_pool_limit_refused_total{{{pool},limit=\"requests\"}} 1"),
            format!("fieldgate_pool_limit_refused_total{{{pool},limit=\"pending\"}} 0"),
            format!("fieldgate_pool_limit_refused_total{{{pool},limit=\"retries\"}} 1"),
        ];
        check(&out, &expected.each_ref().map(String::as_str));
    }
}
