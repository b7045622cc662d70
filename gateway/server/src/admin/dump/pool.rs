//! A pool in the configuration dump. Times are in milliseconds; `null` is no limit.

use std::time::Duration;

use fieldgate_core::ir::{
    DnsName, Endpoint, Endpoints, HealthCheck, HealthKind, Localities, Outlier, Pool, PoolLimits, PoolTls,
    Spread,
};
use serde_json::{Value, json};

use super::{ms, some_ms};
use crate::admin::pools::limit;
use crate::describe;

pub(super) fn pool(pool: &Pool) -> Value {
    let endpoints: Vec<_> = match &pool.endpoints {
        Endpoints::Static(endpoints) => endpoints.iter().map(endpoint).collect(),
        Endpoints::Dns { fixed, names } => {
            fixed.iter().map(endpoint).chain(names.iter().map(dns_name)).collect()
        }
    };
    json!({
        "name": pool.key.to_string(),
        "service": &*pool.service.host,
        "protocol": format!("{:?}", pool.protocol),
        "balance": describe::balance(&pool.balance),
        "spread": spread(&pool.spread),
        "tls": pool.tls.as_deref().map(tls),
        "health_check": pool.health.as_deref().map(health),
        "outlier_detection": pool.outlier.as_deref().map(outlier),
        "limits": limits(&pool.limits),
        "endpoints": endpoints,
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let mut value = attributes(endpoint);
    value["address"] = json!(endpoint.address);
    value
}

fn dns_name(name: &DnsName) -> Value {
    let mut value = attributes(&name.endpoint);
    value["dns"] = json!(&*name.host);
    value["port"] = json!(name.endpoint.address.port());
    value["refresh_ms"] = json!(ms(name.refresh));
    value
}

fn attributes(endpoint: &Endpoint) -> Value {
    json!({
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "locality": endpoint.locality.as_ref().map(ToString::to_string),
        "draining": endpoint.draining,
        "degraded": endpoint.degraded,
        "workload": endpoint.workload.as_deref(),
        "hash_key": endpoint.hash_key.as_deref(),
        "tls": describe::endpoint_tls(&endpoint.tls),
    })
}

/// Never a key: where certificates come from, not what they are.
fn tls(tls: &PoolTls) -> Value {
    json!({
        "by": &*tls.origin,
        "what": describe::upstream_tls(tls),
        "alpn": tls.alpn.iter().map(|name| &**name).collect::<Vec<_>>(),
    })
}

fn spread(spread: &Spread) -> Value {
    let localities = match &spread.localities {
        Localities::Ignored => json!("ignored"),
        Localities::Weighted(weights) => weights
            .iter()
            .map(|(locality, weight)| json!({"locality": locality.to_string(), "weight": weight}))
            .collect(),
        Localities::ZoneAware { own, min_endpoints, enabled } => {
            json!({"zone_aware": {"own": own.to_string(), "min_endpoints": min_endpoints, "enabled_percent": enabled}})
        }
    };
    let slow_start = spread.slow_start.map(|slow| {
        json!({"window_ms": ms(slow.window), "aggression": hundredths(slow.aggression), "min_weight_percent": slow.min_weight})
    });
    json!({
        "overprovisioning": hundredths(spread.overprovisioning),
        "panic_threshold_percent": spread.panic_threshold,
        "fail_in_panic": spread.fail_in_panic,
        "localities": localities,
        "slow_start": slow_start,
    })
}

fn health(check: &HealthCheck) -> Value {
    let kind = match &check.kind {
        HealthKind::Tcp => json!("tcp"),
        HealthKind::Http { method, path, host, expected } => json!({"http": {
            "method": &**method, "path": &**path, "host": host.as_deref(), "expected_statuses": expected,
        }}),
        HealthKind::Grpc { service, authority } => {
            json!({"grpc": {"service": &**service, "authority": authority.as_deref()}})
        }
    };
    let tls = check.tls.as_ref().map(|tls| {
        json!({"server_name": tls.server_name.as_deref(), "certificate_is_checked": tls.ca_pem.is_some()})
    });
    json!({
        "kind": kind,
        "interval_ms": ms(check.interval),
        "jitter_ms": ms(check.jitter),
        "timeout_ms": ms(check.timeout),
        "healthy_threshold": check.healthy,
        "unhealthy_threshold": check.unhealthy,
        "port": check.port,
        "tls": tls,
    })
}

/// By Envoy's names.
fn outlier(outlier: &Outlier) -> Value {
    json!({
        "consecutive_5xx": outlier.consecutive_5xx,
        "enforcing_consecutive_5xx": outlier.enforcing_consecutive_5xx,
        "consecutive_gateway_failure": outlier.consecutive_gateway_failure,
        "enforcing_consecutive_gateway_failure": outlier.enforcing_consecutive_gateway_failure,
        "split_external_local_origin_errors": outlier.split_external_local_origin_errors,
        "consecutive_local_origin_failure": outlier.consecutive_local_origin_failure,
        "enforcing_consecutive_local_origin_failure": outlier.enforcing_consecutive_local_origin_failure,
        "interval_ms": ms(outlier.interval),
        "base_ejection_time_ms": ms(outlier.base_ejection_time),
        "max_ejection_time_ms": ms(outlier.max_ejection_time),
        "max_ejection_time_jitter_ms": ms(outlier.max_ejection_time_jitter),
        "max_ejection_percent": outlier.max_ejection_percent,
        "success_rate_minimum_hosts": outlier.success_rate_minimum_hosts,
        "success_rate_request_volume": outlier.success_rate_request_volume,
        "success_rate_stdev_factor": outlier.success_rate_stdev_factor,
        "enforcing_success_rate": outlier.enforcing_success_rate,
        "failure_percentage_threshold": outlier.failure_percentage_threshold,
        "failure_percentage_minimum_hosts": outlier.failure_percentage_minimum_hosts,
        "failure_percentage_request_volume": outlier.failure_percentage_request_volume,
        "enforcing_failure_percentage": outlier.enforcing_failure_percentage,
        "successful_active_health_check_uneject_host": outlier.check_ends_ejection,
    })
}

fn limits(limits: &PoolLimits) -> Value {
    // A time of zero is none.
    let time = |time: Duration| some_ms(Some(time).filter(|time| !time.is_zero()));
    let adaptive = limits.adaptive.as_ref().map(|adaptive| {
        json!({
            "update_interval_ms": ms(adaptive.update_interval),
            "percentile": adaptive.percentile,
            "min_rtt_interval_ms": ms(adaptive.min_rtt_interval),
            "min_rtt_requests": adaptive.min_rtt_requests,
            "min_concurrency": adaptive.min_concurrency,
            "max_concurrency": adaptive.max_concurrency,
            "buffer_percent": adaptive.buffer_percent,
        })
    });
    let admission = limits.admission.as_ref().map(|admission| {
        json!({
            "window_ms": ms(admission.window),
            "threshold_percent": admission.threshold,
            "aggression": hundredths(admission.aggression),
            "min_rate": admission.min_rate,
            "max_rejection_percent": admission.max_rejection,
        })
    });
    json!({
        "connect_timeout_ms": time(limits.connect_timeout),
        "idle_timeout_ms": time(limits.idle_timeout),
        "max_connection_duration_ms": time(limits.max_connection_duration),
        "max_connections_per_endpoint": limit(limits.max_connections),
        "max_connections": limit(limits.max_pool_connections),
        "max_pending_requests": limit(limits.max_pending),
        "max_requests": limit(limits.max_requests),
        "max_requests_per_endpoint_and_worker": limit(limits.max_requests_per_endpoint),
        "max_retries": limit(limits.max_retries),
        "max_requests_per_connection": limit(limits.max_requests_per_connection),
        "queue_timeout_ms": some_ms(limits.queue_timeout),
        "retry_budget": {"percent": limits.retry_budget.percent, "min": limits.retry_budget.min},
        "adaptive_concurrency": adaptive,
        "admission_control": admission,
    })
}

fn hundredths(value: u32) -> f64 {
    f64::from(value) / 100.0
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fieldgate_core::ir::{ObjectKey, PoolKey, SlowStart};

    use super::*;

    #[test]
    fn what_protects_a_pool_is_shown() {
        let object = ObjectKey { kind: "Pool", namespace: "a".into(), name: "b".into() };
        let key = PoolKey { object, port: 0 };
        let endpoint = Endpoint { priority: 1, ..Endpoint::new(([10, 0, 0, 1], 80).into()) };
        let mut ir = Pool::of(key, Endpoints::Static(vec![endpoint]));
        ir.spread.slow_start =
            Some(SlowStart { window: Duration::from_secs(30), aggression: 100, min_weight: 10 });
        ir.health = Some(Arc::new(HealthCheck::default()));
        ir.outlier = Some(Arc::new(Outlier::default()));
        ir.limits.max_requests = 7;
        let shown = pool(&ir);
        assert_eq!(shown["endpoints"][0]["priority"], 1);
        assert_eq!(shown["spread"]["overprovisioning"], 1.4);
        assert_eq!(shown["spread"]["slow_start"]["window_ms"], 30_000);
        assert_eq!(shown["health_check"]["kind"], "tcp");
        assert_eq!(shown["outlier_detection"]["base_ejection_time_ms"], 30_000);
        let limits = &shown["limits"];
        assert_eq!((&limits["max_requests"], &limits["max_retries"]), (&json!(7), &Value::Null));
        assert_eq!(
            (&limits["connect_timeout_ms"], &limits["max_connection_duration_ms"]),
            (&json!(5000), &Value::Null)
        );
    }
}
