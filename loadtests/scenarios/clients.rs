//! Real clients: curl, and in Python grpcio and websockets, in a virtual environment that is made when it is missing.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use fieldgate_loadtests::rig::{config, ports};
use serde_json::Value;

use crate::context::{Context, Figures, Outcome, ensure};
use crate::edge::{Edge, HOST, Way};

/// Seconds that one run of curl may take.
const CURL_BOUND: &str = "300";

/// Every behaviour of the backend, seen by curl, by every protocol.
pub fn curl(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _backends = stage.pools(&["one"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let _gateway = stage.gateway(&context.options())?;
    let mut figures = Figures::default();
    let mut failed = String::new();
    for Way { name, curl: flags, base, .. } in edge.ways() {
        for (path, more, wanted) in CURL_CHECKS {
            let url = format!("{base}{path}");
            let seen = curl_once(&flags, more, &url, stage.path())?;
            // HTTP/1.1 ends a body that is cut short in good order, so that what there was of it arrives.
            let in_full = path.rsplit_once('/').map(|(_, bytes)| format!("200 {bytes} 18"));
            let wanted = match in_full {
                Some(in_full) if *wanted == "cut" && name.starts_with("h1") => in_full,
                _ => (*wanted).to_owned(),
            };
            if seen != wanted {
                let _ = write!(failed, "\n  {name} {path}: wanted {wanted}, saw {seen}");
            }
        }
        let echo: Value =
            serde_json::from_str(&run_curl(&flags, &["-d", "hello", &format!("{base}/echo?a=b")])?)
                .map_err(|error| format!("{name} /echo: {error}"))?;
        if echo["method"] != "POST" || echo["target"] != "/echo?a=b" || echo["body"] != "hello" {
            let _ = write!(failed, "\n  {name} /echo: {echo}");
        }
        figures.add(format!("{name}: {} checks", CURL_CHECKS.len() + 1));
    }
    ensure(failed.is_empty(), || failed)?;
    Ok(figures)
}

/// Path, flags, and what curl must say: status, bytes, exit code.
const CURL_CHECKS: &[(&str, &[&str], &str)] = &[
    ("/", &[], "200 128 0"),
    ("/", &["-I"], "200 0 0"),
    ("/bytes/0", &[], "200 0 0"),
    ("/bytes/1", &[], "200 1 0"),
    ("/bytes/10000000", &[], "200 10000000 0"),
    ("/status/204", &[], "204 0 0"),
    ("/status/304", &[], "304 0 0"),
    ("/status/404", &[], "404 0 0"),
    ("/slow-body", &[], "200 1280 0"),
    ("/103", &[], "200 128 0"),
    ("/trailers", &[], "200 128 0"),
    ("/delay/50", &[], "200 128 0"),
    ("/upload", &["-d", "hello", "-H", "expect: 100-continue"], "200 29 0"),
    ("/upload", &["-d", "hello", "-H", "transfer-encoding: chunked"], "200 29 0"),
    ("/upload", &["-X", "PUT", "-H", "content-length: 0"], "200 21 0"),
    ("/truncate/length/500", &[], "cut"),
    ("/truncate/within-chunk/500", &[], "cut"),
    ("/truncate/length/3000000", &[], "cut"),
    ("/reset", &[], "refused"),
];

fn curl_once(flags: &[String], more: &[&str], url: &str, directory: &Path) -> Result<String, String> {
    let sink = directory.join("curl-body").display().to_string();
    let mut command = Command::new("curl");
    command.args(["-s", "-m", CURL_BOUND, "-o", &sink, "-w", "%{http_code} %{size_download} %{exitcode}"]);
    let output =
        command.args(flags).args(more).arg(url).output().map_err(|error| format!("curl: {error}"))?;
    let seen = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(match seen.rsplit_once(' ') {
        // What curl calls a stream of HTTP/2 that was reset. How much came before is chance.
        Some((_, "92")) => "cut".to_owned(),
        // How many words a refusal takes is the gateway's affair.
        _ if seen.starts_with("502 ") || seen.starts_with("503 ") => "refused".to_owned(),
        _ => seen,
    })
}

/// Runs curl to success; gives what it printed.
pub fn run_curl(flags: &[String], arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", CURL_BOUND]).args(flags).args(arguments);
    let output = command.output().map_err(|error| format!("curl: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure(output.status.success(), || format!("curl {}: {}", arguments.join(" "), error.trim()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// h2load over TLS and by prior knowledge.
pub fn h2load(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _backends = stage.pools(&["one"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let _gateway = stage.gateway(&context.options())?;
    let requests = context.count("50000", "5000");
    let mut figures = Figures::default();
    for url in [format!("https://{}/", edge.tls), format!("http://{}/", edge.plain)] {
        let output = Command::new("h2load").args(["-n", requests, "-c", "16", "-m", "16", &url]).output();
        let output = output.map_err(|error| format!("h2load: {error} (Debian package nghttp2-client)"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wanted = format!("{requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout");
        ensure(text.contains(&wanted) && text.contains(&format!("status codes: {requests} 2xx")), || {
            format!("{url}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })?;
        let rate = text.lines().find(|line| line.starts_with("finished in")).unwrap_or_default();
        figures.add(format!("{url}: {wanted}; {rate}"));
    }
    Ok(figures)
}

/// grpcio on both sides of the gateway, in plaintext and over TLS.
pub fn grpc(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let server = ports::free();
    stage.config.write("pool", &config::pool("grpc", &[server], "http2"))?;
    stage.config.write("route", GRPC_ROUTE)?;
    let _gateway = stage.gateway(&context.options())?;
    grpc_kinds(&edge, server, context.count(100, 20))
}

/// grpcio's four kinds of calls between a server at this address and clients of the edge.
pub fn grpc_kinds(edge: &Edge, server: SocketAddr, megabytes: u32) -> Outcome {
    python(
        "grpc_kinds.py",
        &[
            &format!("--server={server}"),
            &format!("--plain={}", edge.plain),
            &format!("--tls={HOST}:{}", edge.tls.port()),
            &format!("--ca={}", edge.authority.file.display()),
            &format!("--megabytes={megabytes}"),
        ],
    )
}

/// The route of those calls to Pool `grpc`; its one rule may be given more lines.
pub const GRPC_ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: grpc}
spec:
  parentRefs: [{name: edge}]
  rules:
  - matches: [{method: {service: fieldgate.test.Kinds}}]
    backendRefs: [{group: fieldgate.dev, kind: Pool, name: grpc}]
";

/// The `websockets` package through the gateway.
pub fn websocket(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _backends = stage.pools(&["one"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let _gateway = stage.gateway(&context.options())?;
    python(
        "websocket_echo.py",
        &[
            &format!("--plain=ws://{}/ws", edge.plain),
            &format!("--tls=wss://{HOST}:{}/ws", edge.tls.port()),
            &format!("--ca={}", edge.authority.file.display()),
        ],
    )
}

/// Runs a client script; its output lines are the figures, and a failed check its exit code.
pub fn python(script: &str, arguments: &[&str]) -> Outcome {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let interpreter = environment(root)?;
    let script = root.join("clients").join(script);
    let output = Command::new(&interpreter).arg("-u").arg(&script).args(arguments).output();
    let output = output.map_err(|error| format!("{}: {error}", interpreter.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.success(), || format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Figures { lines: text.lines().map(str::to_owned).collect(), skipped: None })
}

/// The interpreter of a virtual environment that holds exactly what `requirements.txt` pins.
fn environment(root: &Path) -> Result<PathBuf, String> {
    let environment = root.parent().unwrap_or(root).join(".venv");
    let interpreter = environment.join("bin/python");
    let requirements = root.join("clients/requirements.txt");
    let wanted =
        std::fs::read_to_string(&requirements).map_err(|error| format!("requirements.txt: {error}"))?;
    let marker = environment.join("installed-requirements.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return Ok(interpreter);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure(output.status.success(), || format!("{} {}: {error}", program.display(), arguments.join(" ")))
    };
    run(Path::new("python3"), &["-m", "venv", &environment.display().to_string()])?;
    let file = requirements.display().to_string();
    run(&interpreter, &["-m", "pip", "install", "--quiet", "--requirement", &file])?;
    std::fs::write(&marker, wanted).map_err(|error| format!("{}: {error}", marker.display()))?;
    Ok(interpreter)
}
