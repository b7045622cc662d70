//! The demo: a shop moves from three VMs to two pods while customers buy, and every request is accounted for.
//!
//! Backends, load and gateway are real processes on loopback; only the VMs and pods are played. `fieldgate demo` runs
//! this program from beside its own binary.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use fieldgate_loadtests::load::{Plan, Running, Tally};
use fieldgate_loadtests::rig::{http, process::Backend, process::Process};

/// A service moves from VMs to Kubernetes under load, and one backend dies on the way.
#[derive(Parser)]
#[command(name = "fieldgate demo", version)]
struct Arguments {
    #[command(subcommand)]
    backend: Option<Internal>,
    /// Seconds that each step of the migration lasts.
    #[arg(long, default_value_t = 4)]
    step: u64,
    /// Requests per second and protocol.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Leave everything running at the end, with lines to try.
    #[arg(long)]
    keep: bool,
    /// The gateway's binary; by default the one beside this program.
    #[arg(long, env = "FIELDGATE_BIN")]
    gateway: Option<PathBuf>,
    /// Where configuration (shop/, overwritten) and logs (logs/) go.
    #[arg(long, default_value = "demo-config")]
    directory: PathBuf,
}

#[derive(Subcommand)]
enum Internal {
    /// Plays a VM or a pod.
    #[command(hide = true)]
    Backend(fieldgate_loadtests::backend::Options),
}

const FILES: [(&str, &str); 5] = [
    ("gateway.yaml", include_str!("../../../deploy/examples/shop/gateway.yaml")),
    ("vms.yaml", include_str!("../../../deploy/examples/shop/vms.yaml")),
    ("pods.yaml", include_str!("../../../deploy/examples/shop/pods.yaml")),
    ("route.yaml", include_str!("../../../deploy/examples/shop/route.yaml")),
    ("policy.yaml", include_str!("../../../deploy/examples/shop/policy.yaml")),
];
const BACKENDS: [(&str, u16); 5] =
    [("vm-1", 9101), ("vm-2", 9102), ("vm-3", 9103), ("pod-1", 9201), ("pod-2", 9202)];
const HOST: &str = "shop.example.com";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Internal::Backend(options)) = &arguments.backend {
        return match fieldgate_loadtests::backend::serve(options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("demo backend: cannot serve on {}: {error}", options.listen);
                ExitCode::FAILURE
            }
        };
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    let gateway_binary = gateway_binary(arguments)?;
    let directory = &arguments.directory;
    let logs = directory.join("logs");
    std::fs::create_dir_all(&logs).map_err(|e| format!("{}: {e}", logs.display()))?;
    let config = directory.join("shop");
    std::fs::create_dir_all(&config).map_err(|e| format!("{}: {e}", config.display()))?;
    for (name, text) in FILES {
        write(&config.join(name), text)?;
    }

    println!("1. Five backends: three play VMs (9101-9103), two play pods (9201-9202).");
    let mut backends = Vec::new();
    for (name, port) in BACKENDS {
        backends.push(Backend::start_at(name, loopback(port), &logs, None)?);
    }
    println!(
        "2. The gateway on {}, listening on 127.0.0.1:8080, admin on 127.0.0.1:15000.",
        config.display()
    );
    let admin = loopback(15000);
    let config_flag = config.display().to_string();
    let flags = ["run", "--config", config_flag.as_str(), "--admin", "127.0.0.1:15000", "--workers", "1"];
    let mut gateway = Process::start("gateway", &logs, None, &gateway_binary, &flags)?;
    gateway
        .wait_ready(Duration::from_secs(20), || http::get(admin, "/ready").is_ok_and(|r| r.status == 200))?;

    println!(
        "3. Load: {} requests a second by HTTP/1.1 and as many by HTTP/2, on connections kept open.\n",
        arguments.rate
    );
    let mut http1 = Plan::new(loopback(8080));
    HOST.clone_into(&mut http1.host);
    http1.rate = Some(arguments.rate);
    let http2 = Plan { connections: 4, ..http1.clone() }.http2(4);
    let loads = [http1.start()?, http2.start()?];

    println!("{:<34}{:>9}{:>9}{:>9}{:>9}{:>9}", "", "req/s", "VMs %", "pods %", "errors", "p99 ms");
    let steps = [(100, 0, false), (90, 10, false), (50, 50, true), (0, 100, false)];
    let mut last = (0, 0);
    for (vms, pods, kill) in steps {
        write(&config.join("route.yaml"), &weighted(vms, pods))?;
        for second in 0..arguments.step {
            let mut what = if second == 0 { format!("weights {vms}/{pods} written") } else { String::new() };
            if kill && second == arguments.step / 2 {
                backends[1].process.kill();
                "vm-2 killed (kill -9)".clone_into(&mut what);
            }
            last = print_second(&what, &loads);
        }
    }
    let totals: Vec<Tally> = if arguments.keep {
        loads.iter().map(Running::snapshot).collect()
    } else {
        loads.into_iter().map(Running::stop).collect()
    };
    let sent: u64 = totals.iter().map(Tally::completed).sum();
    let failed: u64 = totals.iter().map(Tally::failures).sum();
    println!("\nrequests: {sent}   errors: {failed}");
    if arguments.keep {
        keep_running(&config, &gateway_binary);
    } else {
        println!(
            "With --keep (make demo DEMO_ARGS=--keep) all of it stays up at the end, with lines to try."
        );
    }
    if last.0 > 0 {
        println!("the move did not complete: {} requests of the last second went to VMs", last.0);
    }
    Ok(failed == 0 && sent > 0 && last.0 == 0)
}

/// The route with other weights.
fn weighted(vms: u32, pods: u32) -> String {
    let marked = FILES[3].1.replace("weight: 100}", "weight: VMS}").replace("weight: 0}", "weight: PODS}");
    marked.replace("VMS}", &format!("{vms}}}")).replace("PODS}", &format!("{pods}}}"))
}

/// One line on the second that follows; gives what went to VMs and to pods in it.
fn print_second(what: &str, loads: &[Running]) -> (u64, u64) {
    let before: Vec<Tally> = loads.iter().map(Running::snapshot).collect();
    std::thread::sleep(Duration::from_secs(1));
    let after: Vec<Tally> = loads.iter().map(Running::snapshot).collect();
    let count = |tallies: &[Tally], prefix: &str| -> u64 {
        tallies
            .iter()
            .flat_map(Tally::backends)
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(_, n)| n)
            .sum()
    };
    let vms = count(&after, "vm-") - count(&before, "vm-");
    let pods = count(&after, "pod-") - count(&before, "pod-");
    let errors: u64 = after.iter().map(Tally::failures).sum();
    let share = |n: u64| n as f64 * 100.0 / (vms + pods).max(1) as f64;
    let p99 = after.iter().map(|t| t.latency.percentile(0.99)).max().unwrap_or(0) as f64 / 1000.0;
    println!("{what:<34}{:>9}{:>9.1}{:>9.1}{errors:>9}{p99:>9.2}", vms + pods, share(vms), share(pods));
    (vms, pods)
}

fn keep_running(config: &Path, gateway: &Path) {
    let gateway = gateway.display();
    println!("\nStill running. Try, in another terminal:");
    println!("  curl -i -H 'Host: {HOST}' http://127.0.0.1:8080/");
    println!("  curl -i -H 'Host: {HOST}' http://127.0.0.1:8080/admin        # refused by policy.yaml");
    println!("  $EDITOR {}/route.yaml                  # change the weights, save", config.display());
    println!("  {gateway} status");
    println!("  {gateway} top");
    println!("  {gateway} explain GET http://{HOST}:8080/cart");
    println!("  curl -s http://127.0.0.1:15000/metrics | grep fieldgate_split");
    println!("Enter ends it.");
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn gateway_binary(arguments: &Arguments) -> Result<PathBuf, String> {
    if let Some(given) = &arguments.gateway {
        return Ok(given.clone());
    }
    let own = std::env::current_exe().map_err(|e| format!("own path: {e}"))?;
    let beside = own.with_file_name("fieldgate");
    if beside.exists() {
        Ok(beside)
    } else {
        Err(format!("{} is not there; build it, or name it with --gateway", beside.display()))
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// In one step, so that the gateway never sees half a file.
fn write(path: &Path, text: &str) -> Result<(), String> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| format!("{}: {e}", path.display()))
}
