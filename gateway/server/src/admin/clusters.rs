//! `/clusters` in Envoy's text, for the tools that read it: a line for each value of a cluster or of one of its hosts.
//!
//! Values that are not counted here are left out, not invented.

use std::fmt::Write as _;

use fieldgate_core::balance::{CompiledEndpoint, CompiledPool};

use super::pools::Pools;
use crate::describe;

/// All pools.
pub(super) fn text(pools: &Pools) -> String {
    let mut out = String::new();
    for pool in pools.snapshot.pools() {
        let cluster = format!("outbound|{}||{}", pool.ir.key.port, pool.ir.service.host);
        limits(&mut out, &cluster, pool);
        for endpoint in &pool.endpoints {
            host(&mut out, &cluster, pools, pool, endpoint);
        }
    }
    out
}

/// There is one set of limits here; Envoy has a second one for requests of high priority.
fn limits(out: &mut String, cluster: &str, pool: &CompiledPool) {
    let limits = &pool.ir.limits;
    for (name, value) in [
        ("max_connections", limits.max_pool_connections),
        ("max_pending_requests", limits.max_pending),
        ("max_requests", limits.max_requests),
        ("max_retries", limits.max_retries),
    ] {
        let _ = writeln!(out, "{cluster}::default_priority::{name}::{value}");
    }
    if let Some(tls) = &pool.ir.tls {
        let _ = writeln!(out, "{cluster}::tls::{}", describe::upstream_tls(tls));
    }
    if let Some(outlier) = &pool.ir.outlier {
        let factor = f64::from(outlier.success_rate_stdev_factor) / 1000.0;
        let _ = writeln!(out, "{cluster}::outlier::success_rate_stdev_factor::{factor}");
    }
}

fn host(out: &mut String, cluster: &str, pools: &Pools, pool: &CompiledPool, endpoint: &CompiledEndpoint) {
    let (address, state, ir) = (endpoint.address(), &endpoint.state, &endpoint.ir);
    let (in_flight, idle) = pools.load(pool, address);
    let locality = ir.locality.as_deref();
    let part = |part: Option<&std::sync::Arc<str>>| part.map(ToString::to_string).unwrap_or_default();
    for (name, value) in [
        ("cx_active", state.connections().to_string()),
        ("cx_idle", idle.to_string()),
        ("rq_active", in_flight.to_string()),
        ("health_flags", flags(pools, endpoint)),
        ("weight", ir.weight.to_string()),
        ("region", part(locality.map(|l| &l.region))),
        ("zone", part(locality.map(|l| &l.zone))),
        ("sub_zone", part(locality.map(|l| &l.subzone))),
        ("priority", ir.priority.to_string()),
        ("success_rate", success_rate(endpoint)),
    ] {
        let _ = writeln!(out, "{cluster}::{address}::{name}::{value}");
    }
}

/// In percent; -1 where there were too few requests.
fn success_rate(endpoint: &CompiledEndpoint) -> String {
    let rate = endpoint.state.record.success_rate();
    rate.map_or_else(|| "-1".to_owned(), |thousandths| (f64::from(thousandths) / 10.0).to_string())
}

/// All that are true, as Envoy joins them; an operator's drain is one that a control plane ordered.
fn flags(pools: &Pools, endpoint: &CompiledEndpoint) -> String {
    let (state, ir) = (&endpoint.state, &endpoint.ir);
    let flags: String = [
        ("/failed_active_hc", !state.is_healthy()),
        ("/failed_outlier_check", state.is_ejected(pools.now_ms)),
        ("/degraded_active_hc", state.is_degraded()),
        ("/degraded_eds_health", ir.degraded),
        ("/pending_active_hc", pools.verdicts.of(state).is_some_and(|verdict| verdict.pending)),
        ("/eds_status_draining", endpoint.is_draining()),
    ]
    .into_iter()
    .filter_map(|(flag, is)| is.then_some(flag))
    .collect();
    if flags.is_empty() { "healthy".to_owned() } else { flags }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fieldgate_core::ir::Outlier;

    use super::super::pools::tests::pools;
    use super::*;

    #[test]
    fn lines_are_envoys() {
        let pools = pools(true, |pool| {
            pool.limits.max_requests = 100;
            pool.outlier = Some(Arc::new(Outlier::default()));
        });
        let endpoints = &pools.snapshot.pools().next().unwrap().endpoints;
        endpoints[1].state.set_healthy(false);
        endpoints[1].state.set_drained(true);
        let cluster = "outbound|0||unknown";
        let (first, second) = (format!("{cluster}::10.0.0.1:80"), format!("{cluster}::10.0.0.2:80"));
        let expected = [
            format!("{cluster}::default_priority::max_connections::4294967295"),
            format!("{cluster}::default_priority::max_pending_requests::1024"),
            format!("{cluster}::default_priority::max_requests::100"),
            format!("{cluster}::default_priority::max_retries::4294967295"),
            format!("{cluster}::outlier::success_rate_stdev_factor::1.9"),
            format!("{first}::cx_active::0"),
            format!("{first}::cx_idle::6"),
            format!("{first}::rq_active::2"),
            format!("{first}::health_flags::healthy"),
            format!("{first}::weight::1"),
            format!("{first}::region::"),
            format!("{first}::zone::"),
            format!("{first}::sub_zone::"),
            format!("{first}::priority::0"),
            format!("{first}::success_rate::-1"),
            format!("{second}::cx_active::0"),
            format!("{second}::cx_idle::2"),
            format!("{second}::rq_active::0"),
            format!("{second}::health_flags::/failed_active_hc/eds_status_draining"),
            format!("{second}::weight::1"),
            format!("{second}::region::eu"),
            format!("{second}::zone::eu-1a"),
            format!("{second}::sub_zone::"),
            format!("{second}::priority::1"),
            format!("{second}::success_rate::-1"),
        ];
        assert_eq!(text(&pools).lines().collect::<Vec<_>>(), expected);
    }
}
