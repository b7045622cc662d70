//! Envoy.

use serde_json::{Value, json};

use super::{Configured, ROUTES, write};
use crate::bench::load::Addresses;
use crate::bench::setup::{Denial, Grant, Identities, Setup, Site, Split, Upstream, denials, grants};

/// See [`super::Kind`].
pub fn configure(site: &Site<'_>, to: Addresses) -> Configured {
    let Setup { denials: count, split, access_log, identities, .. } = site.setup;
    let last = match split {
        Split::None => json!({"cluster": "bench"}),
        Split::Weighted => json!({"weighted_clusters": {"clusters": [
            {"name": "bench", "weight": 90}, {"name": "bench-new", "weight": 10},
        ]}}),
        Split::Sticky => return Ok(None),
    };
    let route = |prefix: &str, action: Value| json!({"match": {"prefix": prefix}, "route": action});
    let routes: Vec<Value> = (0..ROUTES)
        .map(|n| route(&format!("/r{n}/"), json!({"cluster": "bench"})))
        .chain(std::iter::once(route("/", last)))
        .collect();
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let mut filters = vec![json!({"name": "router", "typed_config": router})];
    if count > 0 {
        filters.insert(0, json!({"name": "rbac", "typed_config": rbac(count)}));
    }
    if identities != Identities::None {
        filters.splice(0..0, judging(site));
    }
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        // openssl's generator asks in HTTP/1.0 without a Host, and waits for the end of the connection.
        "http_protocol_options": {"accept_http_10": true, "default_host_for_http_10": "edge.example.com"},
        "delayed_close_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
    });
    if access_log {
        manager["access_log"] = json!([{"name": "file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": site.file("access.log"),
        }}]);
    }
    if identities != Identities::None {
        manager["forward_client_cert_details"] = json!("SANITIZE_SET");
        manager["set_current_client_cert_details"] = json!({"subject": true, "uri": true});
    }
    let chain = json!([{"name": "hcm", "typed_config": manager}]);
    let mut tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": site.certificate.chain},
                "private_key": {"filename": site.certificate.key},
            }],
        },
    }});
    if identities != Identities::None {
        let context = &mut tls["typed_config"];
        context["require_client_certificate"] = json!(true);
        context["common_tls_context"]["validation_context"] =
            json!({"trusted_ca": {"filename": site.certificate.authority.file}});
    }
    let listeners = json!([
        {"name": "plain", "address": socket_address(to.plain), "filter_chains": [{"filters": chain}]},
        {"name": "tls", "address": socket_address(to.tls),
            "filter_chains": [{"filters": chain, "transport_socket": tls}]},
    ]);
    let clusters = [cluster(site, "bench"), cluster(site, "bench-new")];
    // JSON is YAML, which is what a file of this name is read as.
    let text = json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string();
    let path = write(site, "envoy.yaml", &text)?;
    let flags = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", &path];
    Ok(Some(flags.map(str::to_owned).into()))
}

fn cluster(site: &Site<'_>, name: &str) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [
            {"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000},
        ]},
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": socket_address(site.backend)}}]},
        ]},
    });
    if site.setup.upstream != Upstream::Http1 {
        let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http2_protocol_options": {}},
        }});
    }
    cluster
}

/// Tokens, then policies that refuse, then those that allow, as istiod arranges them.
fn judging(site: &Site<'_>) -> Vec<Value> {
    let issuer = &site.certificate.issuer;
    let mut provider = json!({
        "issuer": issuer.name(), "local_jwks": {"inline_string": issuer.jwks()},
        "forward": true, "payload_in_metadata": "payload",
    });
    if site.setup.identities == Identities::Remembered {
        provider["jwt_cache_config"] = json!({});
    }
    let either =
        json!({"requires_any": {"requirements": [{"provider_name": "issuer"}, {"allow_missing": {}}]}});
    let tokens = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"issuer": provider},
        "rules": [{"match": {"prefix": "/"}, "requires": either}],
    });
    let policies = |denies: bool| {
        let all: serde_json::Map<String, Value> = grants()
            .iter()
            .filter(|grant| grant.denies == denies)
            .enumerate()
            .map(|(number, grant)| (format!("policy-{number}"), grant_policy(grant)))
            .collect();
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": if denies { "DENY" } else { "ALLOW" }, "policies": all},
        })
    };
    vec![
        json!({"name": "jwt", "typed_config": tokens}),
        json!({"name": "rbac-deny", "typed_config": policies(true)}),
        json!({"name": "rbac-allow", "typed_config": policies(false)}),
    ]
}

fn grant_policy(grant: &Grant) -> Value {
    let identity =
        json!({"authenticated": {"principal_name": {"exact": format!("spiffe://{}", grant.principal)}}});
    let claim = json!({"metadata": {
        "filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "groups"}],
        "value": {"list_match": {"one_of": {"string_match": {"exact": grant.group}}}},
    }});
    json!({
        "permissions": [{"url_path": {"path": {"prefix": grant.path}}}],
        "principals": [{"and_ids": {"ids": [identity, claim]}}],
    })
}

fn rbac(count: usize) -> Value {
    let policies: serde_json::Map<String, Value> = denials(count)
        .iter()
        .enumerate()
        .map(|(number, denial)| (format!("deny-{number}"), policy(denial)))
        .collect();
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": policies},
    })
}

fn policy(denial: &Denial) -> Value {
    let below = |path: &str| json!({"url_path": {"path": {"prefix": path}}});
    let anybody = json!({"any": true});
    let (permission, principal) = match denial {
        Denial::Path(path) => (below(path), anybody),
        Denial::Method(method, path) => {
            let is_method = json!({"header": {"name": ":method", "string_match": {"exact": method}}});
            (json!({"and_rules": {"rules": [is_method, below(&format!("{path}/"))]}}), anybody)
        }
        Denial::Source(network) => {
            let (prefix, length) = network.split_once('/').unwrap_or((network, "32"));
            let length: u32 = length.parse().unwrap_or(32);
            let range = json!({"address_prefix": prefix, "prefix_len": length});
            (json!({"any": true}), json!({"direct_remote_ip": range}))
        }
    };
    json!({"permissions": [permission], "principals": [principal]})
}

fn socket_address(address: std::net::SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
