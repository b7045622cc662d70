//! Envoy.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::{
    BUDGET, CHECK_SECONDS, CONNECT, Command, EJECTION_SECONDS, FAILURES, GRPC, Job, Proxy, Purpose,
    REQUEST_SECONDS, RETRIES, SLOW_START_SECONDS, TRY_SECONDS, Targets, write,
};

use crate::resilience::farm::Secrets;

/// For what may be processed twice.
const ALWAYS: &str = "connect-failure,refused-stream,reset,gateway-error,reset-before-request";
/// For what may not: it was certainly not processed.
const UNSENT: &str = "connect-failure,refused-stream,reset-before-request";
/// More than is ever needed, where nothing is to be limited.
const MANY: u32 = 10_000;

/// Writes its file. A POST is not tried again once it was sent; a call of gRPC is.
pub fn configure(proxy: &Proxy, job: &Job, directory: &Path, address: SocketAddr) -> Result<Command, String> {
    let is_post = json!([{"name": ":method", "string_match": {"exact": "POST"}}]);
    let routes = [
        json!({"match": {"prefix": format!("{GRPC}/")},
            "route": route(job, "calls", &format!("{ALWAYS},cancelled,deadline-exceeded,unavailable"))}),
        json!({"match": {"prefix": "/", "headers": is_post}, "route": route(job, "shop", UNSENT)}),
        json!({"match": {"prefix": "/"}, "route": route(job, "shop", ALWAYS)}),
    ];
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let mut filters = vec![json!({"name": "router", "typed_config": router})];
    if job.purpose == Purpose::Adaptive {
        filters.insert(0, json!({"name": "adaptive", "typed_config": adaptive()}));
    }
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
    });
    let chain = json!([{"filters": [{"name": "hcm", "typed_config": manager}]}]);
    let listeners = json!([{"name": "plain", "address": socket_address(address), "filter_chains": chain}]);
    let clusters = [cluster(job, "shop", false), cluster(job, "calls", true)];
    // JSON is YAML, which is what a file of this name is read as.
    let text = json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string();
    let path = write(directory, "envoy.yaml", &text)?;
    let threads = job.threads().to_string();
    let flags = ["--concurrency", &threads, "--log-level", "error", "--use-dynamic-base-id", "-c", &path];
    Ok(Command { program: proxy.program.clone(), arguments: flags.map(str::to_owned).into() })
}

fn route(job: &Job, cluster: &str, retry_on: &str) -> Value {
    let mut route = json!({"cluster": cluster, "timeout": format!("{REQUEST_SECONDS}s")});
    if job.purpose == Purpose::Availability {
        let mut policy = json!({
            "retry_on": retry_on, "num_retries": RETRIES,
            "retry_host_predicate": [{"name": "previous", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            }}],
            "host_selection_retry_max_attempts": 5,
        });
        // The time of a try that may not be repeated would only end it sooner.
        if retry_on != UNSENT {
            policy["per_try_timeout"] = json!(format!("{TRY_SECONDS}s"));
        }
        route["retry_policy"] = policy;
    }
    route
}

fn cluster(job: &Job, name: &str, http2: bool) -> Value {
    let (kind, addresses) = match &job.targets {
        Targets::Addresses(addresses) => {
            ("STATIC", addresses.iter().copied().map(socket_address).collect::<Vec<_>>())
        }
        Targets::Name { name, port, .. } => {
            ("STRICT_DNS", vec![json!({"socket_address": {"address": name, "port_value": port}})])
        }
    };
    let endpoints: Vec<Value> =
        addresses.into_iter().map(|address| json!({"endpoint": {"address": address}})).collect();
    let mut cluster = json!({
        "name": name, "type": kind,
        "connect_timeout": format!("{}s", CONNECT.as_secs_f64()),
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [{
            "max_connections": MANY, "max_pending_requests": MANY, "max_requests": MANY,
            "retry_budget": {
                "budget_percent": {"value": BUDGET.0}, "min_retry_concurrency": BUDGET.1,
            },
        }]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    if let Targets::Name { server, .. } = &job.targets {
        cluster["dns_refresh_rate"] = json!("1s");
        cluster["dns_lookup_family"] = json!("V4_ONLY");
        cluster["typed_dns_resolver_config"] = json!({"name": "cares", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [socket_address(*server)],
        }});
    }
    if let Some(tls) = &job.tls {
        cluster["transport_socket"] = json!({"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": Secrets::NAME,
            "common_tls_context": {
                "alpn_protocols": [if http2 { "h2" } else { "http/1.1" }],
                "validation_context": {
                    "trusted_ca": {"filename": tls.authority},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": Secrets::NAME}}],
                },
            },
        }});
    }
    match job.purpose {
        Purpose::Availability => availability(&mut cluster),
        Purpose::Capacity(limits) => {
            let all = limits.concurrency * endpoint_count(&job.targets);
            cluster["circuit_breakers"] = json!({
                "thresholds": [{"max_connections": all, "max_pending_requests": limits.queue, "max_requests": MANY}],
                "per_host_thresholds": [{"max_connections": limits.concurrency}],
            });
        }
        Purpose::Adaptive | Purpose::Throughput => {}
    }
    if http2 {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}

fn endpoint_count(targets: &Targets) -> u32 {
    match targets {
        Targets::Addresses(addresses) => addresses.len() as u32,
        Targets::Name { .. } => 1,
    }
}

fn availability(cluster: &mut Value) {
    let check = format!("{CHECK_SECONDS}s");
    cluster["least_request_lb_config"] =
        json!({"slow_start_config": {"slow_start_window": format!("{SLOW_START_SECONDS}s")}});
    cluster["health_checks"] = json!([{
        "timeout": check, "interval": check, "unhealthy_threshold": 2, "healthy_threshold": 2,
        "no_traffic_interval": check,
        "http_health_check": {"path": "/healthz"},
    }]);
    cluster["outlier_detection"] = json!({
        "consecutive_5xx": FAILURES,
        "consecutive_gateway_failure": FAILURES, "enforcing_consecutive_gateway_failure": 100,
        // Checks pass while requests get 503.
        "successful_active_health_check_uneject_host": false,
        "split_external_local_origin_errors": true,
        "consecutive_local_origin_failure": FAILURES, "enforcing_consecutive_local_origin_failure": 100,
        "interval": "1s", "base_ejection_time": format!("{EJECTION_SECONDS}s"), "max_ejection_percent": 50,
    });
}

fn adaptive() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency",
        "gradient_controller_config": {
            "sample_aggregate_percentile": {"value": 50},
            "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
            "min_rtt_calc_params": {"interval": "30s", "request_count": 50, "min_concurrency": 3},
        },
        "enabled": {"default_value": true, "runtime_key": "adaptive.enabled"},
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
