//! Rate limits on real sockets: exact over several workers, over a reload, against floods of keys; and shared by two gateways
//! through Envoy's own rate limit service with Redis behind it, with all that can break there.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Backend, ConfigDir, Gateway, Process, Response, http, ports, wait};

use crate::context::{Context, Figures, Outcome, Stage, ensure};

/// How long a program may take to notice that another one came or went, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    for part in [exact, flood, reload, shadow] {
        figures.add(part(context)?);
    }
    match Programs::find() {
        Ok(programs) => figures.lines.extend(global(context, &programs)?),
        Err(missing) => figures.add(format!("the service that many gateways share was left out: {missing}")),
    }
    Ok(figures)
}

/// A gateway with one backend and this policy on its only route.
struct Play {
    stage: Stage,
    gateway: Gateway,
    edge: SocketAddr,
    _backends: Vec<Backend>,
}

impl Play {
    fn new(context: &Context, spec: &str) -> Result<Self, String> {
        let stage = context.stage()?;
        let edge = stage.plain_edge()?;
        let backends = stage.pools(&["shop"])?;
        stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
        stage.config.write("policy", &policy("limits", "shop", spec))?;
        let gateway = stage.gateway(&context.options())?;
        Ok(Self { stage, gateway, edge, _backends: backends })
    }

    fn counted(&self, result: &str) -> Result<u64, String> {
        counted(&self.gateway, &format!("result=\"{result}\""))
    }
}

/// A RateLimitPolicy on a route; `spec` holds the lines below its targets, indented by two.
fn policy(name: &str, route: &str, spec: &str) -> String {
    format!(
        "apiVersion: fieldgate.dev/v1alpha1
kind: RateLimitPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {route}}}]
{spec}"
    )
}

fn counted(gateway: &Gateway, labels: &str) -> Result<u64, String> {
    gateway.metric("fieldgate_rate_limit_requests_total", labels).map(|count| count as u64)
}

fn send(edge: SocketAddr, host: &str, fields: &str) -> Result<Response, String> {
    let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\n{fields}connection: close\r\n\r\n");
    let mut stream = http::connect(edge).map_err(|error| error.to_string())?;
    stream.write_all(head.as_bytes()).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| error.to_string())?;
    http::parse(&answer)
}

/// What passes is a burst and what comes back in the time that the load took: one bucket, however many workers, and a bucket
/// found by its key just the same.
fn exact(context: &Context) -> Result<String, String> {
    let (rate, burst) = (50.0, 40.0);
    let mut line = format!("{rate} per second and {burst} at once over 2 workers:");
    for (what, by) in [("one bucket", ""), ("a bucket by key", ", by: [{host: {}}, {client: {}}]")] {
        let spec = format!("  limits: [{{name: l, rate: {{requests: 50, per: 1s}}, burst: 40{by}}}]\n");
        let play = Play::new(context, &spec)?;
        let began = Instant::now();
        let duration = Some(context.count(Duration::from_secs(20), Duration::from_secs(4)));
        let tally = Plan { duration, threads: 2, ..Plan::new(play.edge) }.run()?;
        let seconds = began.elapsed().as_secs_f64();
        let (passed, limited) = (tally.status(200), tally.status(429));
        ensure(passed + limited == tally.sent && limited > 0, || tally.describe_failures())?;
        let most = burst + rate * seconds + 1.0;
        // The load may begin late and end early, by less than a bucket takes to fill.
        let least = most - rate * 1.0 - 2.0;
        ensure((least..=most).contains(&(passed as f64)), || {
            format!("{what}: {passed} passed, expected {least:.0} to {most:.0}")
        })?;
        let seen = (play.counted("ok")?, play.counted("limited")?);
        ensure(seen == (passed, limited), || {
            format!("{what}: counted {seen:?}, not {passed} and {limited}")
        })?;
        line += &format!(" {what} let {passed} pass in {seconds:.1} s and refused {limited};");
    }
    Ok(line.trim_end_matches(';').to_owned())
}

/// Names that a client makes up wash away nobody who has used up a limit.
fn flood(context: &Context) -> Result<String, String> {
    let spec = "  limits: [{name: l, rate: {requests: 3, per: 1h}, by: [{header: X-User}], maxKeys: 64}]\n";
    let play = Play::new(context, spec)?;
    let ask = |user: &str| send(play.edge, "x", &format!("x-user: {user}\r\n")).map(|r| r.status);
    let spent: Vec<u16> = (0..4).map(|_| ask("spent")).collect::<Result<_, _>>()?;
    ensure(spent == [200, 200, 200, 429], || format!("a user of three: {spent:?}"))?;
    let names = context.count(20_000, 1_000);
    for n in 0..names {
        let status = ask(&format!("made-up-{n}"))?;
        ensure(status == 200, || format!("a new name: {status}"))?;
    }
    let status = ask("spent")?;
    ensure(status == 429, || format!("after {names} names the spent one got {status}"))?;
    Ok(format!("{names} made-up names in a table of 64 did not wash away the one that was spent"))
}

/// What was counted is kept over reloads: of other objects, and of the policy itself.
fn reload(context: &Context) -> Result<String, String> {
    let spec = "  limits: [{name: l, rate: {requests: 5, per: 1h}}]\n";
    let play = Play::new(context, spec)?;
    let mut statuses = Vec::new();
    let mut ask = || -> Result<Response, String> {
        let response = send(play.edge, "x", "")?;
        statuses.push(response.status);
        Ok(response)
    };
    for _ in 0..3 {
        ask()?;
    }
    play.gateway.change(|| {
        play.stage.config.write("other", &config::route_for_host("other", "other.test", &[("shop", 1)]))
    })?;
    ask()?;
    let told = format!("{spec}  headers: true\n  status: 503\n  shadow: false\n");
    play.gateway.change(|| play.stage.config.write("policy", &policy("limits", "shop", &told)))?;
    let last = ask()?;
    let refused = ask()?;
    ensure(statuses == [200, 200, 200, 200, 200, 503], || format!("over two reloads: {statuses:?}"))?;
    let header = |response: &Response, name: &str| response.header(name).unwrap_or("-").to_owned();
    let left = [&last, &refused].map(|r| header(r, "x-ratelimit-remaining"));
    ensure(left == ["0", "0"], || format!("x-ratelimit-remaining: {left:?}"))?;
    let limit = header(&refused, "x-ratelimit-limit");
    ensure(limit == "5, 5;w=3600;name=\"l\"", || format!("x-ratelimit-limit: {limit}"))?;
    let wait: u64 = header(&refused, "retry-after").parse().unwrap_or_default();
    ensure((600..=720).contains(&wait), || format!("retry-after: {wait}, a token takes 720 s"))?;
    Ok(format!("five per hour stayed five over two reloads; the sixth heard to come again in {wait} s"))
}

fn shadow(context: &Context) -> Result<String, String> {
    let play = Play::new(context, "  shadow: true\n  limits: [{name: l, rate: {requests: 2, per: 1h}}]\n")?;
    for _ in 0..5 {
        let status = send(play.edge, "x", "")?.status;
        ensure(status == 200, || format!("in the shadow a request got {status}"))?;
    }
    let seen = (play.counted("ok")?, play.counted("shadow_limited")?, play.counted("limited\"")?);
    ensure((seen.0, seen.1) == (2, 3), || format!("counted {seen:?}"))?;
    Ok("in the shadow nothing was refused, and what would have been was counted".into())
}

/// What is not ours.
struct Programs {
    redis: PathBuf,
    service: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, String> {
        let in_path = |name: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
            found.ok_or_else(|| format!("there is no {name}; deploy/setup.sh scenarios installs it"))
        };
        let given = std::env::var_os("FIELDGATE_RATELIMIT").map(PathBuf::from);
        let built = Some(PathBuf::from(".peers-go/ratelimit")).filter(|file| file.exists());
        let service = match given.or(built) {
            Some(file) => file.canonicalize().map_err(|error| format!("{}: {error}", file.display()))?,
            None => in_path("ratelimit")?,
        };
        Ok(Self { redis: in_path("redis-server")?, service })
    }

    fn redis(&self, stage: &Stage, address: SocketAddr) -> Result<Process, String> {
        let port = address.port().to_string();
        let dir = stage.path().display().to_string();
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--dir", &dir];
        let mut redis = Process::start("redis", stage.path(), None, &self.redis, &arguments)?;
        redis.wait_listening(address)?;
        Ok(redis)
    }

    /// Envoy's service with 20 requests per day for all, and 3 for each user.
    fn service(&self, stage: &Stage, redis: SocketAddr, at: SocketAddr) -> Result<Process, String> {
        let rules = "domain: edge
descriptors:
- {key: generic_key, value: all, rate_limit: {unit: day, requests_per_unit: 20}}
- {key: user, rate_limit: {unit: day, requests_per_unit: 3}}
";
        let directory = stage.path().join("runtime/ratelimit/config");
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(directory.join("edge.yaml"), rules))
            .map_err(|error| format!("{}: {error}", directory.display()))?;
        let (other, debug) = (ports::free().port(), ports::free().port());
        let mut arguments = vec![
            "HOST=127.0.0.1".to_owned(),
            "GRPC_HOST=127.0.0.1".to_owned(),
            "DEBUG_HOST=127.0.0.1".to_owned(),
            format!("GRPC_PORT={}", at.port()),
            format!("PORT={other}"),
            format!("DEBUG_PORT={debug}"),
            "USE_STATSD=false".to_owned(),
            "LOG_LEVEL=warn".to_owned(),
            "BACKEND_TYPE=redis".to_owned(),
            "REDIS_SOCKET_TYPE=tcp".to_owned(),
            format!("REDIS_URL={redis}"),
            format!("RUNTIME_ROOT={}", stage.path().join("runtime").display()),
            "RUNTIME_SUBDIRECTORY=ratelimit".to_owned(),
            "RUNTIME_WATCH_ROOT=false".to_owned(),
        ];
        arguments.push(self.service.display().to_string());
        let mut service =
            Process::start("ratelimit", stage.path(), None, Path::new("/usr/bin/env"), &arguments)?;
        service.wait_listening(at)?;
        Ok(service)
    }
}

/// Two gateways that ask one service, and what becomes of requests while it, or Redis behind it, is slow or gone.
fn global(context: &Context, programs: &Programs) -> Result<Vec<String>, String> {
    let stage = context.stage()?;
    let backends = stage.pools(&["shop"])?;
    let (at, redis_at) = (ports::free(), ports::free());
    let mut redis = programs.redis(&stage, redis_at)?;
    let mut service = programs.service(&stage, redis_at, at)?;
    let second = stage.path().join("second");
    std::fs::create_dir_all(&second).map_err(|error| error.to_string())?;
    let second = ConfigDir::new(&second)?;
    let first = gateway(context, &stage, "first", &stage.config, backends[0].address, at)?;
    let second = gateway(context, &stage, "second", &second, backends[0].address, at)?;
    let mut lines = vec![shared(&[&first, &second])?, slow(&first, &service)?];
    redis.kill();
    lines.push(unanswered(&first, "Redis is gone")?);
    let mut redis = programs.redis(&stage, redis_at)?;
    wait::until_true(PATIENCE, "the service to count again", || {
        send(first.1, "open.test", "").is_ok_and(|r| r.header("x-ratelimit-remaining").is_some())
    })?;
    service.kill();
    lines.push(unanswered(&first, "the service is gone")?);
    redis.kill();
    Ok(lines)
}

/// A gateway with hosts `open.test`, which passes what nobody counts, and `closed.test`, which does not.
fn gateway(
    context: &Context,
    stage: &Stage,
    name: &str,
    directory: &ConfigDir,
    backend: SocketAddr,
    service: SocketAddr,
) -> Result<(Gateway, SocketAddr), String> {
    let edge = ports::free();
    directory.write("gateway", &config::gateway("edge", &[Listener::http("web", edge.port())]))?;
    directory.write("shop", &config::pool("shop", &[backend], "http1"))?;
    directory.write("service", &config::pool("ratelimit", &[service], "http1"))?;
    for (host, open, timeout) in [("open", true, "10s"), ("closed", false, "10s"), ("slow", true, "200ms")] {
        directory.write(host, &config::route_for_host(host, &format!("{host}.test"), &[("shop", 1)]))?;
        let spec = format!(
            "  headers: true
  global:
    backendRef: {{group: fieldgate.dev, kind: Pool, name: ratelimit}}
    domain: edge
    timeout: {timeout}
    failOpen: {open}
    descriptors:
    - entries: [{{key: generic_key, value: all}}]
    - entries: [{{key: user, from: {{header: X-User}}}}]
"
        );
        directory.write(&format!("policy-{host}"), &policy(host, host, &spec))?;
    }
    Ok((Gateway::start_named(name, &context.options(), directory, stage.path())?, edge))
}

type Running = (Gateway, SocketAddr);

fn shared(gateways: &[&Running; 2]) -> Result<String, String> {
    let ask = |n: usize, fields: &str| send(gateways[n % 2].1, "open.test", fields);
    let user: Vec<u16> =
        (0..4).map(|n| ask(n, "x-user: u\r\n").map(|r| r.status)).collect::<Result<_, _>>()?;
    ensure(user == [200, 200, 200, 429], || format!("a user of three at two gateways: {user:?}"))?;
    // The service counts a request against each of its descriptors, whatever another of them says.
    let mut passed = user.len();
    let mut last = ask(0, "")?;
    while last.status == 200 {
        passed += 1;
        ensure(passed <= 20, || "more than 20 passed".to_owned())?;
        last = ask(passed, "")?;
    }
    ensure((passed, last.status) == (20, 429), || format!("{passed} passed, then {}", last.status))?;
    let left = last.header("x-ratelimit-remaining");
    ensure(left == Some("0"), || format!("x-ratelimit-remaining: {left:?}"))?;
    let limit = last.header("x-ratelimit-limit").unwrap_or_default();
    ensure(limit.starts_with("20, 20;w=86400"), || format!("x-ratelimit-limit: {limit}"))?;
    ensure(last.header("retry-after").is_some(), || "a refusal without retry-after".to_owned())?;
    Ok("two gateways shared 20 per day and 3 per user through Envoy's service".into())
}

/// The service is stopped: it has the connection and says nothing.
fn slow(first: &Running, service: &Process) -> Result<String, String> {
    let errors = counted(&first.0, "policy=\"default/slow\",limit=\"global\",result=\"error\"")?;
    service.signal("STOP")?;
    let began = Instant::now();
    let status = send(first.1, "slow.test", "")?.status;
    let took = began.elapsed();
    service.signal("CONT")?;
    ensure(status == 200, || format!("a request that nobody counted got {status}"))?;
    ensure(took >= Duration::from_millis(200), || format!("it was not waited for: {took:?}"))?;
    let now = counted(&first.0, "policy=\"default/slow\",limit=\"global\",result=\"error\"")?;
    ensure(now == errors + 1, || format!("{now} errors were counted, {errors} before"))?;
    Ok(format!("while the service stood still, a request passed after {} ms of 200", took.as_millis()))
}

fn unanswered(first: &Running, what: &str) -> Result<String, String> {
    let (open, closed) = (send(first.1, "open.test", "")?, send(first.1, "closed.test", "")?);
    let statuses = (open.status, closed.status);
    ensure(statuses == (200, 500), || format!("{what}: open and closed got {statuses:?}"))?;
    Ok(format!("while {what}, failOpen let pass and failOpen: false refused with 500"))
}
