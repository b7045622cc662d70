//! The generators, pinned beside the backend, and what they counted: wrk, h2load, openssl, and the paced load of our
//! own. Nothing is judged here, but a generator that saw failures is an error: figures of failures say nothing.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use fieldgate_loadtests::load::paced::{Paced, PacedReport, Percentiles};
use fieldgate_loadtests::rig::cpu;
use serde_json::Value;

use super::{LOAD_CPU, WARM_UP_SECONDS};
use crate::context::ensure;

/// What clients of [`Load::Identified`] prove who they are by: files in the scratch directory.
pub const CLIENT_CHAIN: &str = "client.crt";
pub const CLIENT_KEY: &str = "client.key";
pub const CLIENT_TOKEN: &str = "client.jwt";

/// Users of [`Load::Users`].
const USERS: usize = 1000;
/// Bytes of the message that gRPC requests carry.
const MESSAGE: u8 = 128;

/// What is asked of a proxy.
#[derive(Clone, Copy)]
pub enum Load {
    /// wrk: HTTP/1.1, each connection one request at a time.
    Http1 {
        /// Over TLS.
        tls: bool,
        /// Connections.
        connections: usize,
        /// A path of the backend.
        path: &'static str,
        /// Bytes of the request's body.
        upload: usize,
        /// Each request on a connection of its own.
        close: bool,
    },
    /// wrk: HTTP/1.1, with the cookie `user` of a thousand users in turn.
    Users {
        /// Connections.
        connections: usize,
    },
    /// h2load: HTTP/2 over TLS.
    Http2 {
        /// Connections.
        connections: usize,
        /// Streams open at a time on each.
        streams: usize,
        /// A path of the backend.
        path: &'static str,
        /// A POST with one message, and gRPC's headers.
        grpc: bool,
    },
    /// Our own generator: HTTP/1.1 over TLS with a client certificate, and a token in each request.
    Identified {
        /// Connections.
        connections: usize,
    },
    /// `openssl s_time`: a handshake, a request, and the end of the connection, one after the other.
    Handshakes {
        /// With the session of the connection before.
        resumed: bool,
    },
}

/// Where a proxy listens.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// Plaintext.
    pub plain: SocketAddr,
    /// TLS, HTTP/1.1 and HTTP/2 by ALPN.
    pub tls: SocketAddr,
}

/// What a generator counted, and what it used.
pub struct Counted {
    /// Exchanges completed.
    pub requests: f64,
    /// In a second.
    pub per_second: f64,
    /// Where the generator tells.
    pub latency: Option<Percentiles>,
    /// How late the generator itself was, where it has a schedule.
    pub late: Option<Percentiles>,
    /// Seconds of CPU that the generator used.
    pub cpu: f64,
    /// Seconds that it ran.
    pub elapsed: f64,
}

impl Load {
    /// Runs the generator. `scratch` is a directory for what it needs.
    pub fn run(self, to: Addresses, seconds: u32, scratch: &Path) -> Result<Counted, String> {
        match self {
            Self::Http1 { tls, connections, path, upload, close } => {
                let (scheme, address) = if tls { ("https", to.tls) } else { ("http", to.plain) };
                let wrk = Wrk { connections, seconds, upload, close, ..Wrk::default() };
                wrk.run(&format!("{scheme}://{address}{path}"), scratch)
            }
            Self::Users { connections } => {
                let wrk = Wrk { connections, seconds, users: true, ..Wrk::default() };
                wrk.run(&format!("http://{}/", to.plain), scratch)
            }
            Self::Http2 { connections, streams, path, grpc } => {
                let url = format!("https://{}{path}", to.tls);
                h2load(connections, streams, seconds, grpc, &url, scratch)
            }
            Self::Identified { connections } => identified(connections, seconds, to.tls, scratch),
            Self::Handshakes { resumed } => handshakes(to.tls, resumed, seconds),
        }
    }

    /// Seconds until every connection is there and has been used.
    pub fn warm_up_seconds(self) -> u32 {
        match self {
            Self::Http1 { connections, .. } => WARM_UP_SECONDS + (connections / 2000) as u32,
            _ => WARM_UP_SECONDS,
        }
    }

    /// Fails unless one request of this kind gets a full answer, in what a generator does not look at.
    pub fn check(self, to: Addresses, scratch: &Path) -> Result<(), String> {
        let (flags, path, wanted) = match self {
            Self::Http2 { path, grpc: true, .. } => {
                let data = format!("@{}", grpc_frame(scratch)?);
                let headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"];
                let flags = [&["--http2", "--data-binary", &data][..], &headers].concat();
                (flags.into_iter().map(str::to_owned).collect(), path, "grpc-status: 0")
            }
            // As openssl asks: HTTP/1.0, no Host, no ALPN.
            Self::Handshakes { .. } => {
                let flags = ["--http1.0", "--no-alpn", "-H", "Host:"].map(str::to_owned);
                (Vec::from(flags), "/", " 200 ok")
            }
            _ => return Ok(()),
        };
        let url = format!("https://{}{path}", to.tls);
        let output = Command::new("curl")
            .args(["-sSk", "-m", "20", "-D", "-", "-o", "/dev/null"])
            .args(flags)
            .arg(&url)
            .output()
            .map_err(|error| format!("curl: {error}"))?;
        let said = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
        ensure(output.status.success() && said.contains(wanted), || {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("{url}: no {wanted:?} in the answer:\n{said}{error}")
        })
    }
}

/// One run of wrk.
#[derive(Default)]
pub struct Wrk<'a> {
    /// Connections.
    pub connections: usize,
    /// Seconds.
    pub seconds: u32,
    /// Bytes of the request's body; with one it is a POST.
    pub upload: usize,
    /// Each request on a connection of its own.
    pub close: bool,
    /// With the cookies of users in turn.
    pub users: bool,
    /// Another `Host` than the URL's.
    pub host: Option<&'a str>,
    /// Two threads on these CPUs, instead of one beside the backend.
    pub spread: Option<&'a str>,
}

impl Wrk<'_> {
    /// Runs it.
    pub fn run(&self, url: &str, scratch: &Path) -> Result<Counted, String> {
        let mut arguments = vec![
            format!("-t{}", if self.spread.is_some() { 2 } else { 1 }),
            format!("-c{}", self.connections),
            format!("-d{}s", self.seconds),
            // Slow is not failed: its own two seconds are short for thousands of connections.
            "--timeout=20s".to_owned(),
            "-s".to_owned(),
            self.script(scratch)?,
        ];
        if self.close {
            arguments.extend(["-H".to_owned(), "Connection: close".to_owned()]);
        }
        if let Some(host) = self.host {
            // wrk adds its own Host unless it is given one in just this spelling.
            arguments.extend(["-H".to_owned(), format!("Host: {host}")]);
        }
        arguments.push(url.to_owned());
        let ended = run_on(self.spread.unwrap_or(&LOAD_CPU.to_string()), "wrk", &arguments)?;
        let text = &ended.text;
        let line = text.lines().find_map(|line| line.strip_prefix("FIGURES "));
        let numbers: Vec<f64> =
            line.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
        let [requests, micros, errors, p50, p99, p999] = numbers[..] else {
            return Err(format!("wrk on {url} said something unexpected:\n{text}"));
        };
        ensure(errors == 0.0, || format!("wrk on {url} saw failures:\n{text}"))?;
        let millis = |micros: f64| micros / 1000.0;
        let latency = Percentiles { p50: millis(p50), p99: millis(p99), p999: millis(p999) };
        ended.counted(requests, requests / (micros / 1e6), Some(latency))
    }

    fn script(&self, scratch: &Path) -> Result<String, String> {
        let mut text = WRK_DONE.to_owned();
        if self.upload > 0 {
            let _ = write!(text, "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {})\n", self.upload);
        }
        if self.users {
            let _ = write!(text, "{}", WRK_USERS.replace("USERS", &USERS.to_string()));
        }
        let path = scratch.join(format!("wrk-{}-{}.lua", self.upload, self.users));
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// wrk prints no 99.9th percentile by itself.
const WRK_DONE: &str = r#"done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("FIGURES %d %d %d %.1f %.1f %.1f\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

const WRK_USERS: &str = r#"local requests, turn = {}, 0
init = function(args)
  for user = 1, USERS do
    requests[user] = wrk.format("GET", nil, { cookie = "user=u-" .. user })
  end
end
request = function()
  turn = turn % USERS + 1
  return requests[turn]
end
"#;

fn h2load(
    connections: usize,
    streams: usize,
    seconds: u32,
    grpc: bool,
    url: &str,
    scratch: &Path,
) -> Result<Counted, String> {
    let log = scratch.join("h2load.log");
    // It appends.
    let _ = std::fs::remove_file(&log);
    let mut arguments = vec![
        "-t1".to_owned(),
        format!("-c{connections}"),
        format!("-m{streams}"),
        format!("-D{seconds}"),
        format!("--log-file={}", log.display()),
    ];
    if grpc {
        arguments.extend(["-d".to_owned(), grpc_frame(scratch)?]);
        for header in ["content-type: application/grpc", "te: trailers"] {
            arguments.extend(["-H".to_owned(), header.to_owned()]);
        }
    }
    arguments.push(url.to_owned());
    let ended = run("h2load", &arguments)?;
    let text = &ended.text;
    // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
    let numbers = text.lines().find_map(|line| {
        let rest = line.strip_prefix("requests: ")?;
        rest.split(", ").map(|part| part.split(' ').next()?.parse::<f64>().ok()).collect::<Option<Vec<_>>>()
    });
    let numbers = numbers.filter(|numbers| numbers.len() == 7);
    let numbers = numbers.ok_or_else(|| format!("h2load said something unexpected:\n{text}"))?;
    ensure(numbers.iter().skip(4).all(|failed| *failed == 0.0), || {
        format!("h2load on {url} saw failures:\n{text}")
    })?;
    let mut micros = logged_micros(&log)?;
    let latency = (!micros.is_empty()).then(|| Percentiles::of(&mut micros));
    ended.counted(numbers[3], numbers[3] / f64::from(seconds), latency)
}

/// Start, status and duration of each request, separated by tabs.
fn logged_micros(log: &Path) -> Result<Vec<u32>, String> {
    let text = std::fs::read_to_string(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let micros = |line: &str| {
        let mut columns = line.split('\t');
        let status: u32 = columns.nth(1)?.parse().ok()?;
        columns.next()?.parse().ok().filter(|_| status == 200)
    };
    Ok(text.lines().filter_map(micros).collect())
}

/// A file with a message of gRPC: not compressed, its length, and that much.
fn grpc_frame(scratch: &Path) -> Result<String, String> {
    let path = scratch.join("grpc-message");
    let message = [&[0, 0, 0, 0, MESSAGE][..], &[b'.'; MESSAGE as usize]].concat();
    std::fs::write(&path, message).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path.display().to_string())
}

fn identified(
    connections: usize,
    seconds: u32,
    address: SocketAddr,
    scratch: &Path,
) -> Result<Counted, String> {
    let here = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    let program = here.with_file_name("fieldgate-load");
    let file = |name: &str| scratch.join(name).display().to_string();
    let token = std::fs::read_to_string(file(CLIENT_TOKEN)).map_err(|error| format!("the token: {error}"))?;
    let arguments = [
        format!("https://edge.example.com:{}/", address.port()),
        format!("--connect-to={address}"),
        format!("--ca={}", file("ca.pem")),
        format!("--cert={}", file(CLIENT_CHAIN)),
        format!("--key={}", file(CLIENT_KEY)),
        format!("--header=authorization: Bearer {token}"),
        format!("--connections={connections}"),
        format!("--seconds={seconds}"),
    ];
    let ended = run(&program.display().to_string(), &arguments)?;
    let report: Value = serde_json::from_str(&ended.text).map_err(|error| error.to_string())?;
    let number = |name: &str| report[name].as_f64().ok_or_else(|| format!("no {name} in {}", ended.text));
    let millis = |name: &str| report["latency_us"][name].as_f64().unwrap_or_default() / 1000.0;
    let latency = Percentiles { p50: millis("p50"), p99: millis("p99"), p999: millis("p999") };
    ended.counted(number("completed")?, number("requests_per_second")?, Some(latency))
}

fn handshakes(address: SocketAddr, resumed: bool, seconds: u32) -> Result<Counted, String> {
    let mode = if resumed { "-reuse" } else { "-new" };
    let arguments =
        ["s_time", "-connect", &address.to_string(), mode, "-time", &seconds.to_string(), "-www", "/"];
    let ended = run("openssl", &arguments.map(str::to_owned))?;
    let text = &ended.text;
    // 10 connections in 2 real seconds, 270 bytes read per connection
    let line = text.lines().rfind(|line| line.contains(" real seconds"));
    let number = |index: usize| line.and_then(|line| line.split_whitespace().nth(index)?.parse::<f64>().ok());
    let (Some(requests), Some(elapsed)) = (number(0), number(3)) else {
        return Err(format!("openssl said something unexpected:\n{text}"));
    };
    if resumed {
        // Each connection is a letter: r for a session that was resumed, * for one that was not.
        let letters = text.lines().find(|line| line.len() > 10 && line.chars().all(|c| "rtT*".contains(c)));
        let new = letters.map(|letters| letters.chars().filter(|c| *c == '*').count());
        ensure(new.is_some_and(|new| new <= 1), || format!("sessions were not resumed:\n{text}"))?;
    }
    ended.counted(requests, requests / elapsed.max(1.0), None)
}

/// A paced load, as this program's own helper takes it.
#[derive(Clone, Parser)]
pub struct PacedArguments {
    #[arg(long)]
    pub address: SocketAddr,
    #[arg(long)]
    pub path: String,
    #[arg(long)]
    pub body: usize,
    #[arg(long)]
    pub connections: usize,
    #[arg(long)]
    pub rate: f64,
    #[arg(long)]
    pub seconds: f64,
    #[arg(long)]
    pub warm_up: f64,
}

impl PacedArguments {
    /// As words of a command line, the helper's name first.
    pub fn words(&self) -> Vec<String> {
        let Self { address, path, body, connections, rate, seconds, warm_up } = self;
        vec![
            "paced".to_owned(),
            format!("--address={address}"),
            format!("--path={path}"),
            format!("--body={body}"),
            format!("--connections={connections}"),
            format!("--rate={rate}"),
            format!("--seconds={seconds}"),
            format!("--warm-up={warm_up}"),
        ]
    }

    /// Runs the load in a process of its own beside the backend.
    pub fn run(&self) -> Result<Counted, String> {
        let program = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
        let ended = run(&program.display().to_string(), &self.words())?;
        let report = read_paced(&ended.text)?;
        let per_second = report.answered as f64 / report.seconds.max(f64::EPSILON);
        let counted = ended.counted(report.answered as f64, per_second, Some(report.latency))?;
        Ok(Counted { late: Some(report.late), ..counted })
    }
}

/// What a paced load printed; an error if any request failed.
pub fn read_paced(text: &str) -> Result<PacedReport, String> {
    let report: PacedReport =
        serde_json::from_str(text).map_err(|error| format!("a paced load said: {text}: {error}"))?;
    ensure(report.failed + report.unanswered == 0, || format!("a paced load saw failures: {text}"))?;
    Ok(report)
}

/// The helper's own side.
pub fn paced_main(arguments: &[String]) -> Result<(), String> {
    let arguments = PacedArguments::parse_from(arguments);
    let paced = Paced {
        address: arguments.address,
        path: arguments.path,
        body: arguments.body,
        connections: arguments.connections,
        rate: arguments.rate,
        duration: Duration::from_secs_f64(arguments.seconds),
        warm_up: Duration::from_secs_f64(arguments.warm_up),
    };
    let report = paced.run().map_err(|error| format!("paced load on {}: {error}", arguments.address))?;
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

/// A generator that has ended well.
struct Ended {
    text: String,
    cpu: f64,
    elapsed: f64,
}

impl Ended {
    fn counted(
        &self,
        requests: f64,
        per_second: f64,
        latency: Option<Percentiles>,
    ) -> Result<Counted, String> {
        ensure(requests > 0.0, || format!("the generator completed no request:\n{}", self.text))?;
        Ok(Counted { requests, per_second, latency, late: None, cpu: self.cpu, elapsed: self.elapsed })
    }
}

fn run(program: &str, arguments: &[String]) -> Result<Ended, String> {
    run_on(&LOAD_CPU.to_string(), program, arguments)
}

fn run_on(cpus: &str, program: &str, arguments: &[String]) -> Result<Ended, String> {
    let (before, started) = (cpu::of_ended_children()?, Instant::now());
    let output = Command::new("taskset")
        .args(["-c", cpus, program])
        .args(arguments)
        .output()
        .map_err(|error| format!("taskset: {error} (Debian package util-linux)"))?;
    let (elapsed, after) = (started.elapsed().as_secs_f64(), cpu::of_ended_children()?);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure(output.status.success(), || {
        let error = String::from_utf8_lossy(&output.stderr);
        format!(
            "{program} {} failed: {text}{error}\n`deploy/setup.sh bench` installs generators",
            arguments.join(" ")
        )
    })?;
    Ok(Ended { text, cpu: after - before, elapsed })
}
