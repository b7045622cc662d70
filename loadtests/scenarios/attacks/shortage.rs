//! A gateway that runs out of files: it serves whom it has, takes others in as soon as there is room, and does not spin.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{config, http, wait};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

/// Files that the process may have open, over what it has.
const MORE: u64 = 40;
const HELD: usize = 200;
const BOUND: Duration = Duration::from_secs(20);
/// Cores that the gateway may keep busy while it has no files: one that spins keeps a whole one.
const BUSY: f64 = 0.5;

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = stage.plain_edge()?;
    let _backends = stage.pools(&["shop"])?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let gateway = stage.gateway(&context.options())?;
    let plan = Plan { rate: Some(100.0), connections: 4, ..Plan::new(edge) };
    let load = plan.clone().start()?;
    wait::until_true(BOUND, "the first answers", || load.snapshot().completed() > 50)?;

    let pid = gateway.process.pid();
    let open =
        std::fs::read_dir(format!("/proc/{pid}/fd")).map_err(|error| error.to_string())?.count() as u64;
    limit(pid, open + MORE)?;
    let cpu = gateway.process.cpu_seconds()?;
    let held = hold(edge)?;
    wait::until_true(BOUND, "a shortage of files", || {
        gateway.metric("fieldgate_file_shortages_total", "").is_ok_and(|count| count >= 1.0)
    })?;
    let span = context.count(Duration::from_secs(5), Duration::from_secs(2));
    std::thread::sleep(span);
    let used = (gateway.process.cpu_seconds()? - cpu) / span.as_secs_f64();
    let during = load.snapshot();
    ensure(during.failures() == 0, || {
        format!("clients that were connected: {}", during.describe_failures())
    })?;
    ensure(used < BUSY, || format!("the gateway kept {used:.2} cores busy"))?;
    let lines = gateway.process.log().matches("no file for a new connection").count();
    ensure((1..=crate::context::WORKERS).contains(&lines), || format!("{lines} lines about it in the log"))?;

    drop(held);
    wait::until_true(BOUND, "a new connection to be served", || {
        http::get(edge, "/").is_ok_and(|response| response.status == 200)
    })?;
    let after = Plan { requests: Some(200), rate: None, ..plan }.run()?;
    ensure_flawless("after it", &after)?;
    ensure_flawless("clients that were connected", &load.stop())?;
    let refused = gateway.metric("fieldgate_connections_refused_total", "files")?;
    let mut figures = Figures::default();
    figures.add(format!(
        "{HELD} connections where {MORE} files are left: those connected were served, {refused} were told that there is no \
         room, {used:.2} cores busy, and served again once they were gone"
    ));
    Ok(figures)
}

/// Connections that send a part of a request: they are not idle, and cannot be closed to make room.
fn hold(edge: SocketAddr) -> Result<Vec<TcpStream>, String> {
    let open = |_| {
        let mut stream = http::connect(edge).map_err(|error| error.to_string())?;
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: a\r\n")
            .map_err(|error| error.to_string())?;
        Ok(stream)
    };
    (0..HELD).map(open).collect()
}

fn limit(pid: u32, files: u64) -> Result<(), String> {
    let status = Command::new("prlimit")
        .args([&format!("--pid={pid}"), &format!("--nofile={files}:{files}")])
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("prlimit: {other:?}")),
    }
}
