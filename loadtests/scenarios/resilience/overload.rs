//! More is asked for than can be carried: of a pool whose backends work on so many requests at once, or of the proxy
//! itself on one core. What is admitted is to be as much as before and answered in time, the rest refused at once.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_loadtests::load::paced::PacedReport;
use fieldgate_loadtests::rig::{Backend, ports};
use serde::Serialize;

use super::farm::Farm;
use super::network::Network;
use super::proxies::{self, Job, Limits, Proxy, Purpose, Running, Targets};
use super::{circumstances, publish};
use crate::bench::load::PacedArguments;
use crate::bench::{self, Target};
use crate::context::{Context, Figures, Outcome, Stage};

/// Backends of the pool.
const BACKENDS: u8 = 2;
/// Requests that each works on at once, and how long on each: 400 a second and backend.
const CONCURRENCY: u32 = 8;
const SERVICE: Duration = Duration::from_millis(20);
/// What waits in front of the pool, and how long.
const LIMITS: Limits = Limits { concurrency: CONCURRENCY, queue: 32, wait: Duration::from_millis(100) };
/// Offered, as shares of what can be carried.
const LOADS: [f64; 3] = [0.5, 1.0, 3.0];
/// Enough for all that waits anywhere.
const CONNECTIONS: usize = 1024;
/// Connections that measure what the proxy itself can carry.
const BUSY: usize = 64;
const WARM_UP: f64 = 1.0;
const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;
/// Of the most that was carried at any load, so much has to be carried at the largest.
const GOODPUT: f64 = 0.9;
/// What is admitted may take as long as it may wait and be worked on, and this many times more.
const SLACK: f64 = 2.0;
/// Memory that a proxy may need more than at its own capacity, in MiB, beside what connections need.
const GROWTH_MIB: f64 = 32.0;

/// One load on one proxy.
#[derive(Clone, Debug, Serialize)]
struct Row {
    proxy: &'static str,
    variant: &'static str,
    load: f64,
    offered: f64,
    goodput: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// From the moment that a request was sent: what is due may have to wait for a connection of the generator's.
    sent_p99_ms: f64,
    refused: u64,
    /// Neither admitted nor refused: connections that broke, other statuses.
    errors: u64,
    /// Without an answer, or still without a connection to be sent on, some seconds after the last was due.
    unanswered: u64,
    memory_before_mib: f64,
    memory_after_mib: f64,
    /// The generator's own delay: if it is large it could not offer what it was to.
    late_p99_ms: f64,
}

#[derive(Serialize)]
struct Report {
    circumstances: String,
    skipped: Vec<String>,
    /// What can be carried, in requests per second, by proxy and variant.
    capacity: Vec<(String, f64)>,
    rows: Vec<Row>,
}

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let (proxies, skipped) = proxies::find(context)?;
    let mut report =
        Report { circumstances: circumstances(&proxies), skipped, capacity: Vec::new(), rows: Vec::new() };
    for proxy in &proxies {
        if context.gateway_itself {
            itself(context, &stage, proxy, &mut report)?;
        } else {
            pool(context, &stage, proxy, &mut report)?;
        }
    }
    let name = if context.gateway_itself { "overload-itself" } else { "overload" };
    let table = markdown(&report);
    publish(context, name, &report, &table)?;
    let mut figures = Figures::default();
    table.lines().for_each(|line| figures.add(line));
    let missed = missed(&report.rows, !context.gateway_itself);
    if missed.is_empty() {
        return Ok(figures);
    }
    figures.lines.iter().for_each(|line| println!("     {line}"));
    Err(missed.join("\n"))
}

/// A pool whose capacity is known, in front of which each proxy has its limits.
fn pool(context: &Context, stage: &Stage, proxy: &Proxy, report: &mut Report) -> Result<(), String> {
    let capacity = f64::from(u32::from(BACKENDS) * CONCURRENCY) / SERVICE.as_secs_f64();
    let (concurrency, service) = (CONCURRENCY.to_string(), SERVICE.as_millis().to_string());
    let options = ["--capacity", &concurrency, "--service", &service];
    for (variant, purpose) in [("limits", Purpose::Capacity(LIMITS)), ("adaptive", Purpose::Adaptive)] {
        if !proxy.can(purpose) {
            continue;
        }
        let (network, _) = Network::new(BACKENDS);
        let directory = place(stage, proxy, variant)?;
        let farm = Farm::start(&Arc::new(network), usize::from(BACKENDS), &directory, &options, None)?;
        let job = Job { targets: Targets::Addresses(farm.addresses()), purpose, cpu: None, tls: None };
        let running = proxy.start(&job, &directory)?;
        report.capacity.push((format!("{} {variant}", proxy.name), capacity));
        measure(context, proxy.name, variant, &running, capacity, report)?;
    }
    Ok(())
}

/// A fast backend, and a proxy on one core whose capacity is measured first.
fn itself(context: &Context, stage: &Stage, proxy: &Proxy, report: &mut Report) -> Result<(), String> {
    let directory = place(stage, proxy, "itself")?;
    let backend = Backend::start_at("fast", ports::free(), &directory, Some(LOAD_CPU))?;
    let targets = Targets::Addresses(vec![backend.address]);
    let job = Job { targets, purpose: Purpose::Throughput, cpu: Some(PROXY_CPU), tls: None };
    let running = proxy.start(&job, &directory)?;
    let target = Target { address: running.address, host: running.address.to_string(), path: "/".to_owned() };
    let sample = bench::sample(&running.process, &target, BUSY, context.count(context.seconds, 2))?;
    report.capacity.push((format!("{} itself", proxy.name), sample.per_second));
    measure(context, proxy.name, "itself", &running, sample.per_second, report)
}

fn place(stage: &Stage, proxy: &Proxy, variant: &str) -> Result<std::path::PathBuf, String> {
    let directory = stage.path().join(format!("{}-{variant}", proxy.name));
    std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(directory)
}

fn measure(
    context: &Context,
    proxy: &'static str,
    variant: &'static str,
    running: &Running,
    capacity: f64,
    report: &mut Report,
) -> Result<(), String> {
    let seconds = f64::from(context.count(context.seconds.max(5), 2));
    let pinned = context.gateway_itself.then_some(LOAD_CPU);
    let offer = |load: f64, seconds: f64| {
        let paced = PacedArguments {
            address: running.address,
            path: "/".to_owned(),
            body: 0,
            connections: CONNECTIONS,
            rate: load * capacity,
            seconds: seconds + WARM_UP,
            warm_up: WARM_UP,
        };
        generate(&paced, pinned)
    };
    // Connections and buffers of all that are ever open at once are there from the beginning.
    offer(LOADS[0], WARM_UP)?;
    for load in LOADS {
        let before = running.process.memory_mib()?;
        let paced = offer(load, seconds)?;
        let row = Row {
            proxy,
            variant,
            load,
            offered: load * capacity,
            goodput: paced.carried as f64 / seconds,
            p50_ms: paced.latency.p50,
            p99_ms: paced.latency.p99,
            sent_p99_ms: paced.from_sent.p99,
            refused: paced.refused,
            errors: paced.failed - paced.refused,
            unanswered: paced.unanswered,
            memory_before_mib: before,
            memory_after_mib: running.process.memory_mib()?,
            late_p99_ms: paced.late.p99,
        };
        eprintln!("     {proxy} {variant} {load}: {:.0} a second, p99 {:.1} ms", row.goodput, row.p99_ms);
        report.rows.push(row);
    }
    Ok(())
}

/// The generator, as a process of its own.
fn generate(paced: &PacedArguments, cpu: Option<usize>) -> Result<PacedReport, String> {
    let this = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    let mut command = match cpu {
        None => Command::new(&this),
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string()]).arg(Path::new(&this));
            command
        }
    };
    let output = command.args(paced.words()).output().map_err(|error| format!("paced: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).map_err(|error| {
        format!("a paced load said: {text}{}: {error}", String::from_utf8_lossy(&output.stderr))
    })
}

/// What the gateway did not keep of its promises.
fn missed(rows: &[Row], bounded: bool) -> Vec<String> {
    let mut missed = Vec::new();
    for row in rows.iter().filter(|row| row.proxy == "fieldgate" && row.load > 1.0) {
        let same = rows.iter().filter(|other| (other.proxy, other.variant) == (row.proxy, row.variant));
        let most = same.clone().map(|other| other.goodput).fold(0.0, f64::max);
        let at_capacity = same.filter(|other| other.load <= 1.0).map(|other| other.memory_after_mib);
        let memory = at_capacity.fold(0.0, f64::max);
        let what = format!("{} at {} of capacity", row.variant, row.load);
        if row.goodput < GOODPUT * most {
            missed.push(format!("{what}: {:.0} a second of {most:.0}", row.goodput));
        }
        let bound = SLACK * (LIMITS.wait + SERVICE).as_secs_f64() * 1000.0;
        // With more waiting than it has connections, the generator's own queue is none of the proxy's doing.
        let p99 = if bounded { row.p99_ms } else { row.sent_p99_ms };
        if p99 > bound {
            missed.push(format!("{what}: p99 {p99:.0} ms, the bound is {bound:.0} ms"));
        }
        if row.memory_after_mib > memory + GROWTH_MIB {
            missed.push(format!("{what}: {:.0} MiB after {memory:.0} MiB", row.memory_after_mib));
        }
        if row.errors > 0 {
            missed.push(format!("{what}: {} requests neither answered nor refused", row.errors));
        }
        if bounded && row.unanswered > 0 {
            missed.push(format!("{what}: {} requests without an answer", row.unanswered));
        }
    }
    missed
}

fn markdown(report: &Report) -> String {
    let mut text = format!("{}\n\n", report.circumstances);
    for skipped in &report.skipped {
        let _ = writeln!(text, "Left out: {skipped}.");
    }
    text.push_str(
        "\n| proxy | by | load | offered /s | goodput /s | of its most | p50 ms | p99 ms | p99 ms from sent | refused | errors | unanswered | MiB before | MiB after | generator late p99 ms |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in &report.rows {
        let same =
            report.rows.iter().filter(|other| (other.proxy, other.variant) == (row.proxy, row.variant));
        let most = same.map(|other| other.goodput).fold(f64::EPSILON, f64::max);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.0} | {:.0} | {:.0} % | {:.1} | {:.1} | {:.1} | {} | {} | {} | {:.1} | {:.1} | {:.1} |",
            row.proxy,
            row.variant,
            row.load,
            row.offered,
            row.goodput,
            100.0 * row.goodput / most,
            row.p50_ms,
            row.p99_ms,
            row.sent_p99_ms,
            row.refused,
            row.errors,
            row.unanswered,
            row.memory_before_mib,
            row.memory_after_mib,
            row.late_p99_ms
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_can_be_missed() {
        let row = |load, goodput, p99_ms, memory_after_mib, errors| Row {
            proxy: "fieldgate",
            variant: "limits",
            load,
            offered: 0.0,
            goodput,
            p50_ms: 0.0,
            p99_ms,
            sent_p99_ms: p99_ms,
            refused: 0,
            errors,
            unanswered: 0,
            memory_before_mib: 0.0,
            memory_after_mib,
            late_p99_ms: 0.0,
        };
        let at_capacity = row(1.0, 800.0, 30.0, 20.0, 0);
        let missed = |row| missed(&[at_capacity.clone(), row], true).len();
        assert_eq!(missed(row(3.0, 790.0, 120.0, 30.0, 0)), 0);
        assert_eq!(missed(row(3.0, 700.0, 120.0, 30.0, 0)), 1);
        assert_eq!(missed(row(3.0, 790.0, 300.0, 30.0, 0)), 1);
        assert_eq!(missed(row(3.0, 790.0, 120.0, 80.0, 0)), 1);
        assert_eq!(missed(row(3.0, 790.0, 120.0, 30.0, 1)), 1);
        let itself = super::missed(&[at_capacity.clone(), row(3.0, 790.0, 300.0, 30.0, 0)], false);
        assert_eq!(itself.len(), 1, "{itself:?}");
    }
}
