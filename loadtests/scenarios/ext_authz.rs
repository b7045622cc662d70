//! External authorization with a real authorizer (Istio's sample, which speaks gRPC and HTTP), and with ones that do what
//! authorizers should not: nothing, too late, too much, nonsense.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fieldgate_loadtests::rig::http::{self, Response};
use fieldgate_loadtests::rig::scripted::{Reply, Scripted};
use fieldgate_loadtests::rig::{Gateway, Process, config, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::raw::Wire;

/// Istio's sample authorizer.
const AUTHORIZER: &str = "istio.io/istio/samples/extauthz/cmd/extauthz@v0.0.0-20260827124520-eed52ebb66ad";
const NOTICED: Duration = Duration::from_secs(10);
/// Clients at once.
const CLIENTS: usize = 10;

struct Scene {
    stage: Stage,
    address: SocketAddr,
    upstream: Scripted,
    gateway: Gateway,
}

impl Scene {
    fn start(context: &Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let address = stage.plain_edge()?;
        let upstream = Scripted::good("upstream")?;
        stage.config.write("pool-shop", &config::pool("shop", &[upstream.address], "http1"))?;
        stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
        let gateway = stage.gateway(&context.options())?;
        Ok(Self { stage, address, upstream, gateway })
    }

    /// All requests are asked about at `address` from now on. `spec` is the rest of the authorizer's, in braces.
    fn asks(&self, address: SocketAddr, spec: &str) -> Result<(), String> {
        let text = format!(
            "{}---
apiVersion: fieldgate.dev/v1alpha1
kind: ExternalAuthorizer
metadata: {{name: authz}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: edge}}]
  backendRef: {{group: fieldgate.dev, kind: Pool, name: authz}}
{spec}",
            config::pool("authz", &[address], "http1")
        );
        self.gateway.change(|| self.stage.config.write("authz", &text)).map(|_| ())
    }

    fn get(&self, fields: &str) -> Result<Response, String> {
        self.send(&format!("GET /path?q=1 HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n{fields}\r\n"))
    }

    fn post(&self, body: &str) -> Result<Response, String> {
        let length = body.len();
        self.send(&format!(
            "POST / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
    }

    fn send(&self, text: &str) -> Result<Response, String> {
        let mut wire = Wire::connect(self.address)?;
        wire.send(text)?;
        http::parse(&wire.rest()?)
    }

    fn decisions(&self, result: &str) -> Result<f64, String> {
        self.gateway.metric("fieldgate_guard_decisions_total", &format!("result=\"{result}\""))
    }
}

/// Everything.
pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    let scene = Scene::start(context)?;
    match sample()? {
        Some(program) => {
            figures.add(real(&scene, &program)?);
            figures.add(restarted(&scene, &program)?);
        }
        None => figures.add("Istio's sample authorizer was left out: there is no Go here to build it"),
    }
    figures.add(failing(&scene)?);
    figures.add(bodies(&scene)?);
    figures.add(gone(&scene)?);
    Ok(figures)
}

/// The sample authorizer, built if need be.
fn sample() -> Result<Option<PathBuf>, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
    let program = target.join("extauthz");
    if program.exists() {
        return Ok(Some(program));
    }
    let output = Command::new("go").args(["install", AUTHORIZER]).env("GOBIN", &target).output();
    match output {
        Err(_) => Ok(None),
        Ok(output) if output.status.success() => Ok(Some(program)),
        Ok(output) => Err(format!("go install {AUTHORIZER}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

fn start_sample(
    scene: &Scene,
    program: &Path,
    by_http: SocketAddr,
    by_grpc: SocketAddr,
) -> Result<Process, String> {
    let arguments =
        ["-http".to_owned(), by_http.port().to_string(), "-grpc".to_owned(), by_grpc.port().to_string()];
    let mut process = Process::start("extauthz", scene.stage.path(), None, program, &arguments)?;
    process.wait_listening(by_http)?;
    process.wait_listening(by_grpc)?;
    Ok(process)
}

const BY_GRPC: &str = "  grpc: {context: {tier: gold}}\n  timeout: 5s\n  statusOnError: 503\n";
const BY_HTTP: &str = "  http:
    includeRequestHeadersInCheck: [x-ext-authz]
    includeAdditionalHeadersInCheck: {x-ext-authz-additional-header-override: from-edge}
    headersToUpstreamOnAllow: [x-ext-authz-check-result, x-ext-authz-additional-header-override]
    headersToDownstreamOnDeny: [x-ext-authz-check-result]
  timeout: 5s
  statusOnError: 503
";

fn real(scene: &Scene, program: &Path) -> Result<String, String> {
    let (by_http, by_grpc) = (ports::free(), ports::free());
    let _authorizer = start_sample(scene, program, by_http, by_grpc)?;
    for (how, address, spec, overridden) in [
        ("gRPC", by_grpc, BY_GRPC, "grpc-additional-header-override-value"),
        ("HTTP", by_http, BY_HTTP, "from-edge"),
    ] {
        scene.asks(address, spec)?;
        let before = scene.upstream.received().len();
        let denied = scene.get("")?;
        let said = String::from_utf8_lossy(&denied.body).into_owned();
        ensure(denied.status == 403 && said.starts_with("denied by ext_authz"), || {
            format!("{how}: {denied:?}")
        })?;
        let result = denied.header("x-ext-authz-check-result");
        ensure(result == Some("denied"), || format!("{how}: the refusal's fields: {denied:?}"))?;
        ensure(scene.upstream.received().len() == before, || {
            format!("{how}: what was denied went upstream")
        })?;

        // The client forges what the authorizer says, and wants it taken away.
        let forged = "x-ext-authz: allow\r\nx-ext-authz-check-result: forged\r\nconnection: x-ext-authz-check-result\r\n\
                      x-ext-authz-additional-header-override: forged\r\n";
        let allowed = scene.get(forged)?;
        ensure(allowed.status == 200, || format!("{how}: {allowed:?}"))?;
        let received = scene.upstream.received();
        let head = received.last().map(|request| request.head.to_ascii_lowercase()).unwrap_or_default();
        // What the authorizer was told it says in one field; the others are what it has decided.
        let (told, head): (Vec<&str>, Vec<&str>) =
            head.lines().partition(|line| line.starts_with("x-ext-authz-check-received"));
        let (told, head) = (told.concat(), head.join("\n"));
        for line in [
            "x-ext-authz-check-result: allowed",
            &format!("x-ext-authz-additional-header-override: {overridden}"),
        ] {
            ensure(head.matches(line).count() == 1, || format!("{how}: \"{line}\" is not in: {head}"))?;
        }
        ensure(!head.contains("forged"), || format!("{how}: forged fields went upstream: {head}"))?;
        if how == "gRPC" {
            for part in ["path?q=1", "http/1.1", "shop.test", "127.0.0.1", "gold"] {
                ensure(told.contains(part), || format!("the check does not say {part}: {told}"))?;
            }
        }
        in_parallel(scene).map_err(|error| format!("{how}: {error}"))?;
    }
    let (allowed, denied) = (scene.decisions("allowed")?, scene.decisions("denied")?);
    ensure(allowed > 0.0 && denied > 0.0, || format!("metrics: {allowed} allowed, {denied} denied"))?;
    Ok(format!(
        "Istio's sample by gRPC and HTTP: {allowed} allowed, {denied} denied, {CLIENTS} clients at once"
    ))
}

/// Clients at once, of which each knows what it must hear.
fn in_parallel(scene: &Scene) -> Result<(), String> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    for request in 0..20 {
                        let allow = (client + request) % 2 == 0;
                        let answer = scene.get(if allow { "x-ext-authz: allow\r\n" } else { "" })?;
                        let wanted = if allow { 200 } else { 403 };
                        ensure(answer.status == wanted, || format!("{} instead of {wanted}", answer.status))?;
                    }
                    Ok(())
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| "a client panicked".to_owned())?)
    })
}

fn restarted(scene: &Scene, program: &Path) -> Result<String, String> {
    let (by_http, by_grpc) = (ports::free(), ports::free());
    let mut authorizer = start_sample(scene, program, by_http, by_grpc)?;
    scene.asks(by_grpc, BY_GRPC)?;
    let allowed = |wanted: u16| {
        let heard = scene.get("x-ext-authz: allow\r\n")?.status;
        ensure(heard == wanted, || format!("{heard} instead of {wanted}"))
    };
    allowed(200)?;
    authorizer.kill();
    for _ in 0..5 {
        allowed(503).map_err(|error| format!("while it is down: {error}"))?;
    }
    ensure(scene.decisions("error")? >= 5.0, || "errors are not counted".to_owned())?;
    let _authorizer = start_sample(scene, program, by_http, by_grpc)?;
    // An endpoint that refused connections is passed over for a while.
    let mut last = String::new();
    wait::until_true(NOTICED, "the authorizer that came back to be asked", || {
        allowed(200).map_err(|error| last = error).is_ok()
    })
    .map_err(|error| format!("{error}: {last}"))?;
    Ok("down: 503; back: asked again, on new connections".to_owned())
}

/// One that says the same to everybody, whatever that is, and then hangs up.
fn stubborn(says: Vec<u8>) -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let says = says.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(&says);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    Ok(address)
}

fn failing(scene: &Scene) -> Result<String, String> {
    let silent = Scripted::start(|_, _| Reply::Silence)?;
    let broken = Scripted::start(|_, _| Reply::Status(500, "", "broken"))?;
    let garbage = stubborn(b"nonsense\r\n\r\n".to_vec())?;
    let huge =
        [b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n".to_vec(), vec![b'x'; 10_000_000]].concat();
    let huge = stubborn(huge)?;
    let cut = stubborn(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec())?;
    let nobody = ports::free();
    let cases = [
        ("nobody", nobody, "http"),
        ("silence", silent.address, "http"),
        ("500", broken.address, "http"),
        ("nonsense", garbage, "http"),
        ("10 MB", huge, "http"),
        ("half an answer", cut, "http"),
        ("nobody by gRPC", nobody, "grpc"),
        ("silence by gRPC", silent.address, "grpc"),
        ("nonsense by gRPC", garbage, "grpc"),
    ];
    for (what, address, protocol) in cases {
        let spec = format!("  {protocol}: {{}}\n  timeout: 300ms\n  statusOnError: 503\n");
        scene.asks(address, &spec)?;
        let before = scene.upstream.received().len();
        let heard = scene.get("")?;
        ensure(heard.status == 503, || format!("{what}: {heard:?}"))?;
        ensure(scene.upstream.received().len() == before, || {
            format!("{what}: it went upstream all the same")
        })?;

        let open = "  failOpen: true\n  failOpenHeader: true\n  reservedHeaders: [x-user]\n";
        scene.asks(address, &format!("{spec}{open}"))?;
        let heard = scene.get("x-user: forged\r\nx-envoy-auth-failure-mode-allowed: forged\r\n")?;
        ensure(heard.status == 200, || format!("{what}, open: {heard:?}"))?;
        let head = scene.upstream.received().last().map(|r| r.head.to_ascii_lowercase()).unwrap_or_default();
        ensure(head.contains("x-envoy-auth-failure-mode-allowed: true"), || format!("{what}, open: {head}"))?;
        ensure(!head.contains("forged"), || format!("{what}, open: {head}"))?;
    }
    let open = scene.decisions("failed_open")?;
    ensure(open >= cases.len() as f64, || format!("{open} failed open, of {}", cases.len()))?;
    Ok(format!(
        "{} ways to give no answer: refused, or let pass where that is wanted, each counted",
        cases.len()
    ))
}

fn bodies(scene: &Scene) -> Result<String, String> {
    let authorizer = Scripted::start(|_, request| {
        Reply::Status(if request.body.starts_with(b"bad") { 403 } else { 200 }, "", "")
    })?;
    let spec = |partial: bool| {
        format!(
            "  http: {{}}\n  timeout: 5s\n  includeRequestBodyInCheck: {{maxRequestBytes: 16, allowPartialMessage: {partial}}}\n"
        )
    };
    let seen = |by: &Scripted| by.received().last().map(|request| request.body.clone()).unwrap_or_default();
    scene.asks(authorizer.address, &spec(false))?;
    for (body, status) in
        [("good", 200), ("bad one", 403), ("sixteen bytes...", 200), ("seventeen bytes..", 413)]
    {
        let heard = scene.post(body)?;
        ensure(heard.status == status, || format!("\"{body}\": {heard:?}"))?;
        if status != 413 {
            ensure(seen(&authorizer) == body.as_bytes(), || {
                format!("the authorizer did not see \"{body}\"")
            })?;
        }
        if status == 200 {
            ensure(seen(&scene.upstream) == body.as_bytes(), || format!("\"{body}\" went upstream changed"))?;
        }
    }
    scene.asks(authorizer.address, &spec(true))?;
    let long = "long ".repeat(20_000);
    let heard = scene.post(&long)?;
    ensure(heard.status == 200, || format!("in part: {heard:?}"))?;
    ensure(seen(&authorizer) == long.as_bytes()[..16], || "the authorizer saw another part".to_owned())?;
    ensure(seen(&scene.upstream) == long.as_bytes(), || "the long body went upstream changed".to_owned())?;

    // Who waits for 100 gets one, before anybody has seen a byte of the body.
    let mut wire = Wire::connect(scene.address)?;
    wire.send(
        "POST / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
    )?;
    let interim = wire.head()?;
    ensure(interim.status == 100, || format!("instead of 100: {interim:?}"))?;
    wire.send("good")?;
    let heard = http::parse(&wire.rest()?)?;
    ensure(heard.status == 200 && seen(&scene.upstream) == b"good", || format!("after 100: {heard:?}"))?;
    let head = scene.upstream.received().last().map(|r| r.head.to_ascii_lowercase()).unwrap_or_default();
    ensure(!head.contains("expect:"), || format!("the upstream is asked for a second 100: {head}"))?;
    Ok("bodies: seen whole, in part, too long (413), after 100; each the same upstream".to_owned())
}

/// The authorizer is let go of when the client is gone.
fn gone(scene: &Scene) -> Result<String, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let (asked, was_asked) = mpsc::channel();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let _ = stream.read(&mut [0; 4096]);
        let _ = asked.send(());
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = asked.send(());
    });
    scene.asks(address, "  http: {}\n  timeout: 1m\n")?;
    let before = scene.upstream.received().len();
    let mut wire = Wire::connect(scene.address)?;
    wire.send("GET / HTTP/1.1\r\nhost: shop.test\r\n\r\n")?;
    was_asked.recv_timeout(NOTICED).map_err(|_| "the authorizer was not asked".to_owned())?;
    let left = Instant::now();
    drop(wire);
    was_asked.recv_timeout(NOTICED).map_err(|_| "the question outlives its client".to_owned())?;
    ensure(scene.upstream.received().len() == before, || "a client that is gone went upstream".to_owned())?;
    Ok(format!("a client that goes away takes its question along, in {:?}", left.elapsed()))
}
