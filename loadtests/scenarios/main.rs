//! Runs scenarios against a built gateway: each starts it with real backends and real clients, judges what comes
//! back, prints PASS or FAIL with its figures, and takes everything down again.

mod aborts;
mod attacks;
mod authz;
mod backpressure;
mod bench;
mod clients;
mod connections;
mod context;
mod crossing;
mod desync;
mod drain;
mod edge;
mod exchanges;
mod ext_authz;
mod failure;
mod faults;
mod hardening;
mod held;
mod hygiene;
mod idle;
mod jwt;
mod memory;
mod mirror;
mod mtls;
mod oidc;
mod rate_limits;
mod raw;
mod reloads;
mod resilience;
mod resumption;
mod routes;
mod scale;
mod splits;
mod stale;
mod sticky;
mod timeouts;
mod tries;
mod truncation;
mod tunnels;
mod upgrade;
mod upstream_tls;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use fieldgate_loadtests::backend;

use context::{Context, Outcome};

struct Scenario {
    name: &'static str,
    about: &'static str,
    run: fn(&Context) -> Outcome,
    /// Whether `all --ci` runs it: a bench on a shared machine would say nothing.
    ci: bool,
}

const fn scenario(name: &'static str, about: &'static str, run: fn(&Context) -> Outcome) -> Scenario {
    Scenario { name, about, run, ci: true }
}

const SCENARIOS: &[Scenario] = &[
    scenario("splits", "90/10, 1/99 and 33/33/34 are exact to within rounding", splits::run),
    scenario("sticky", "users stay on their side through a 0 to 100 ramp", sticky::run),
    scenario("reloads", "a thousand reloads under load fail no request", reloads::run),
    scenario("upgrade", "binary upgrades under load fail no request", upgrade::run),
    scenario(
        "hardening",
        "without privileges, with its own system calls and files only: serves, reloads, hands over",
        hardening::run,
    ),
    scenario("resumption", "TLS sessions resume across a binary upgrade", resumption::run),
    scenario(
        "mtls",
        "clients show who they are: who is let in, who is not and why, and who is told",
        mtls::run,
    ),
    scenario(
        "upstream-tls",
        "nginx and OpenSSL with good TLS are served, with bad TLS refused, with the reason",
        upstream_tls::run,
    ),
    scenario("drain", "SIGTERM under load fails no request", drain::run),
    scenario("backend-kill", "killed backends are gone around; all down is 503 at once", failure::run),
    scenario(
        "curl",
        "curl by h1, h2 and TLS: bodies, Expect, trailers, early hints, truncation",
        clients::curl,
    ),
    scenario("h2load", "h2load with 16 x 16 streams, over TLS and in plaintext", clients::h2load),
    scenario(
        "grpc",
        "grpcio: all four kinds, metadata, deadlines, cancellation, long streams",
        clients::grpc,
    ),
    scenario("websocket", "Python's websockets through the gateway", clients::websocket),
    scenario(
        "tunnels",
        "upgrades by h1 and h2 to h1 and h2: frames, ends, refusals, drain, access log",
        tunnels::run,
    ),
    scenario("http10", "HTTP/1.0 clients, with and without keep-alive", raw::http10),
    scenario("pipelining", "pipelined requests are answered in order", raw::pipelining),
    scenario("expect", "100-continue comes before the body is sent", raw::expect),
    scenario("early-response", "an answer that comes before the upload's end arrives", raw::early_response),
    scenario(
        "exchanges",
        "1xx, HEAD, 204, 304, trailers, Expect, early answers: every protocol pair",
        exchanges::run,
    ),
    scenario(
        "truncation",
        "an answer cut short never looks complete, by any pair of protocols",
        truncation::run,
    ),
    scenario("aborts", "who goes away is missed on the other side at once", aborts::run),
    scenario("backpressure", "who does not read holds back who sends, in bounded memory", backpressure::run),
    scenario(
        "timeouts",
        "a try whose time is up is made again, a request whose time is up gets 504",
        timeouts::run,
    ),
    scenario("tries", "retries, hedges, budgets, queues, affinity, hashing, faults, ejection", tries::run),
    scenario("jwt", "tokens through an issuer's outage, its garbage and its rotation of keys", jwt::run),
    scenario(
        "rate-limits",
        "limits are exact over workers, reloads and floods; shared through Envoy's service",
        rate_limits::run,
    ),
    scenario("stale", "upstream connections that close fail no GET and resend no POST", stale::run),
    scenario("full-log", "an access log on a full disk is counted, and fails no request", faults::full_log),
    scenario(
        "config-dir",
        "a configuration directory that is replaced, missing, unreadable",
        faults::config_dir,
    ),
    scenario("desync", "no request of http-desync-guardian reaches the upstream ambiguous", desync::run),
    scenario(
        "ext-authz",
        "an authorizer decides, by gRPC and HTTP; one that does not answer is not waited for",
        ext_authz::run,
    ),
    scenario("mirror", "mirrors get the same requests, and what they do with them harms nobody", mirror::run),
    scenario(
        "connections",
        "a pool's limit of connections holds, and requests wait for it",
        connections::run,
    ),
    scenario(
        "chaos",
        "backends that break in all ways cost no request that can be saved; beside Envoy and HAProxy",
        resilience::chaos::run,
    ),
    scenario(
        "drain-endpoint",
        "an endpoint drained by the API loses no request, and gets none after",
        resilience::drain::run,
    ),
    Scenario {
        ci: false,
        ..scenario(
            "overload",
            "three times what a pool or the proxy can carry: goodput, latency, memory",
            resilience::overload::run,
        )
    },
    scenario("edge", "addresses, sizes, methods, paths, header fields, API keys, passwords", hygiene::run),
    scenario("oidc", "login, refresh and logout at a real OpenID provider, and one that is away", oidc::run),
    scenario("authz-envoy", "random policies decide as Envoy's RBAC filters made of them", authz::run),
    scenario("memory", "curl with bodies of 1 GiB leaves memory bounded", memory::run),
    scenario("attacks", "attacks end, or are bounded, and other clients hardly notice", attacks::run),
    scenario(
        "files",
        "out of files: who is connected is served, who comes waits, nothing spins",
        attacks::files,
    ),
    scenario("limits", "limits of connections and memory hold, and room is made", attacks::limits),
    scenario(
        "gateway-overload",
        "more clients than the gateway can carry: as many are served, in good time",
        attacks::overload,
    ),
    scenario("routes-100k", "start, change and lookup with 100,000 routes", routes::run),
    Scenario {
        ci: false,
        ..scenario("idle", "memory per idle connection against peers: plain, TLS, HTTP/2", idle::run)
    },
    Scenario {
        ci: false,
        ..scenario("scale", "up to 100,000 routes against peers: lookup, memory, start", scale::run)
    },
    Scenario {
        ci: false,
        ..scenario("change", "one route changed among many under load, against peers", scale::change)
    },
    Scenario {
        ci: false,
        ..scenario("bench-h1", "CPU per small HTTP/1.1 request against peers", bench::small)
    },
    Scenario { ci: false, ..scenario("bench", "CPU and latency against peers in many cases", bench::all) },
];

/// Holds a built gateway against its promises.
#[derive(Parser)]
#[command(version, after_help = list())]
struct Arguments {
    /// Scenarios to run, or `all`.
    #[arg(required = true)]
    names: Vec<String>,
    /// The gateway's binary; by default what `FIELDGATE_BIN` says, or else target/release/fieldgate.
    #[arg(long)]
    gateway: Option<PathBuf>,
    /// Reduced counts, for machines that are shared.
    #[arg(long)]
    ci: bool,
    /// Keep the scenarios' directories: configuration and logs.
    #[arg(long)]
    keep: bool,
    /// Write the benches' figures here as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables of `bench`, `chaos` or `overload` here as Markdown; those of the latter two between their markers.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write bar charts of `bench` into this directory as SVG.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// `bench` measures nothing, but makes its tables and charts of what earlier runs wrote with --json.
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    from: Vec<PathBuf>,
    /// Routes of routes-100k, scale and change; by default several numbers of them in the latter two.
    #[arg(long)]
    routes: Option<usize>,
    /// Rounds of a bench.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement of a bench.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Connections of bench-h1.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 512])]
    connections: Vec<usize>,
    /// Peers of a bench beside the gateway: haproxy, nginx, envoy, caddy, pingora. By default all that are here.
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// `overload` asks for more than the proxy itself can carry, in place of its pool.
    #[arg(long)]
    gateway_itself: bool,
    /// Cases of `bench`, `idle` or `attacks`, faults of `chaos`; all by default.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
}

/// A backend in a process of its own: how scenarios start theirs.
#[derive(Parser)]
struct BackendArguments {
    #[command(flatten)]
    options: backend::Options,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("backend") {
        let BackendArguments { options } = BackendArguments::parse_from(std::env::args().skip(1));
        return finish(backend::serve(&options).map_err(|error| format!("{}: {error}", options.listen)));
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|name| name == "attack") {
        return finish(attacks::attack(&words));
    }
    if let Some(result) = words.first().and_then(|name| bench::helper(name, &words)) {
        return finish(result);
    }
    let arguments = Arguments::parse();
    finish(choose(&arguments).and_then(|chosen| run(&chosen, &Context::new(&arguments)?)))
}

fn finish(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fieldgate-scenarios: {error}");
            ExitCode::FAILURE
        }
    }
}

fn choose(arguments: &Arguments) -> Result<Vec<&'static Scenario>, String> {
    if arguments.names.iter().any(|name| name == "all") {
        return Ok(SCENARIOS.iter().filter(|scenario| scenario.ci || !arguments.ci).collect());
    }
    let find = |name: &String| {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        scenario.ok_or_else(|| format!("no scenario {name}\n{}", list()))
    };
    arguments.names.iter().map(find).collect()
}

fn run(chosen: &[&Scenario], context: &Context) -> Result<(), String> {
    let mut failed = Vec::new();
    for scenario in chosen {
        println!("---- {}: {}", scenario.name, scenario.about);
        let started = Instant::now();
        let outcome = (scenario.run)(context);
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(figures) => {
                figures.lines.iter().for_each(|line| println!("     {line}"));
                match figures.skipped {
                    None => println!("PASS {} ({seconds:.1} s)", scenario.name),
                    Some(why) => println!("SKIP {}: {why}", scenario.name),
                }
            }
            Err(error) => {
                println!("FAIL {} ({seconds:.1} s): {error}", scenario.name);
                failed.push(scenario.name);
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

fn list() -> String {
    SCENARIOS.iter().fold("Scenarios:\n".to_owned(), |list, scenario| {
        list + &format!("  {:<15} {}\n", scenario.name, scenario.about)
    })
}
