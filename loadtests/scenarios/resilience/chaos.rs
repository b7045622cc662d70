//! Ten backends break in all the ways that backends do, under constant load by HTTP/1.1, HTTP/2 and gRPC. Fails on an
//! error that an ideal gateway would have hidden.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::recorded::{Recorded, usual_strands};
use fieldgate_loadtests::rig::wait;
use serde::Serialize;

use super::account::{self, Account, Span};
use super::capture::Capture;
use super::farm::{Farm, Secrets};
use super::faults::{self, FAULTS, Fault, Kind};
use super::network::Network;
use super::proxies::{self, Job, Proxy, Purpose, Targets};
use super::{circumstances, dns, publish};
use crate::context::{Context, Figures, Outcome, Stage, ensure, ensure_no_panic};

const BACKENDS: u8 = 10;
/// Requests per second of all strands: a small part of what the machine can do.
const RATE: f64 = 400.0;
/// Milliseconds that each answer takes, so that whatever breaks has requests in flight.
const WORK: &str = "50";
/// Longer than any proxy lets a request take.
const PATIENCE: Duration = Duration::from_secs(8);
/// Before the first fault all is well for so long.
const CALM: Duration = Duration::from_secs(1);
const START: Duration = Duration::from_secs(20);

/// All accounts of a run.
#[derive(Serialize)]
struct Report {
    circumstances: String,
    network: &'static str,
    skipped: Vec<String>,
    /// By fault, then by proxy.
    faults: Vec<(String, BTreeMap<String, Account>)>,
}

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let (network, why) = Network::new(BACKENDS);
    let network = Arc::new(network);
    let (proxies, mut skipped) = proxies::find(context)?;
    skipped.push("for tls-*, what a capture tells: it sees no requests".to_owned());
    skipped.extend(why.map(|why| format!("no network namespace, so no capture: {why}")));
    let mut chosen = choose(context)?;
    chosen.retain(|fault| {
        let possible = network.is_real() || !fault.needs_hosts();
        if !possible {
            skipped.push(format!("{}: needs a network namespace", fault.name));
        }
        possible
    });
    let mut report = Report {
        circumstances: circumstances(&proxies),
        network: if network.is_real() { "a network namespace behind a veth pair" } else { "loopback" },
        skipped,
        faults: chosen.iter().map(|fault| (fault.name.to_owned(), BTreeMap::new())).collect(),
    };
    let mut failed = Vec::new();
    for proxy in &proxies {
        for (fault, (_, accounts)) in chosen.iter().zip(&mut report.faults) {
            let account = play(context, &stage, &network, proxy, fault)
                .map_err(|error| format!("{}, {}: {error}", proxy.name, fault.name))?;
            eprintln!("     {}, {}: {}", proxy.name, fault.name, describe(&account));
            if proxy.name == "fieldgate" && account.avoidable > 0 {
                failed.push(format!(
                    "{}: {} avoidable errors, such as {}",
                    fault.name,
                    account.avoidable,
                    account.examples.join("; ")
                ));
            }
            accounts.insert(proxy.name.to_owned(), account);
        }
    }
    let table = markdown(&report, &proxies);
    publish(context, "chaos", &report, &table)?;
    let mut figures = Figures::default();
    table.lines().for_each(|line| figures.add(line));
    if !failed.is_empty() {
        figures.lines.iter().for_each(|line| println!("     {line}"));
    }
    ensure(failed.is_empty(), || failed.join("\n"))?;
    Ok(figures)
}

fn choose(context: &Context) -> Result<Vec<Fault>, String> {
    if let Some(unknown) = context.cases.iter().find(|name| FAULTS.iter().all(|fault| fault.name != **name)) {
        let known: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        return Err(format!("no fault {unknown}; there are {}", known.join(", ")));
    }
    let wanted = |fault: &&Fault| {
        if context.cases.is_empty() {
            fault.quick || !context.ci
        } else {
            context.cases.iter().any(|name| name == fault.name)
        }
    };
    Ok(FAULTS.iter().filter(wanted).copied().collect())
}

/// One fault, with a proxy and backends that know nothing of those before.
fn play(
    context: &Context,
    stage: &Stage,
    network: &Arc<Network>,
    proxy: &Proxy,
    fault: &Fault,
) -> Result<Account, String> {
    let seconds = u64::from(context.seconds);
    let (lasting, after) = (context.count(seconds + 3, 3), context.count(seconds + 7, 3));
    let directory = stage.path().join(format!("{}-{}", proxy.name, fault.name));
    std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let tls = fault.is_of_tls().then(|| Secrets::new(&directory)).transpose()?;
    let options = ["--service", WORK];
    let mut farm = Farm::start(network, usize::from(BACKENDS), &directory, &options, tls.clone())?;
    let dns = (fault.kind == Kind::Dns).then(|| dns::Server::start(network.gateway(), faults::all(&farm)));
    let dns = dns.transpose()?;
    let targets = match &dns {
        None => Targets::Addresses(farm.addresses()),
        Some(dns) => Targets::Name { name: dns::NAME, port: network.address(0).port(), server: dns.address },
    };
    let job = Job { targets, purpose: Purpose::Availability, cpu: None, tls };
    let running = proxy.start(&job, &directory)?;
    warm_up(running.address)?;
    let capture = if fault.is_of_tls() { None } else { Capture::start(network)? };
    let load = Recorded::start(usual_strands(running.address, RATE, PATIENCE))?;
    std::thread::sleep(CALM);
    let begin = Instant::now();
    fault.begin(&mut farm)?;
    Fault::last(&farm, dns.as_ref(), fault.lasts(Duration::from_secs(lasting)));
    // What heals at once does so before this returns; what starts anew is there when it does.
    fault.end(&mut farm)?;
    let end = Instant::now();
    std::thread::sleep(Duration::from_secs(after));
    let records = load.stop();
    let sent = capture.map(Capture::stop);
    if proxy.name == "fieldgate" {
        ensure_no_panic(&running.process)?;
    }
    let span = Span { begin, end, victims: fault.hosts(farm.len()) };
    Ok(account::account(fault, &span, &records, sent.as_deref()))
}

/// A proxy may take connections before its first checks have passed; its clients come after.
fn warm_up(address: std::net::SocketAddr) -> Result<(), String> {
    wait::until_true(START, "the proxy to serve all strands", || {
        let load = Recorded::start(usual_strands(address, RATE, PATIENCE));
        let Ok(load) = load else { return false };
        std::thread::sleep(CALM);
        load.stop().iter().all(|record| record.succeeded)
    })
}

fn describe(account: &Account) -> String {
    let Account { requests, errors, failed, avoidable, hidden, repeated, .. } = account;
    let mut text = format!("{requests} requests, {failed} failed ({avoidable} avoidable)");
    if let Some(hidden) = hidden {
        let _ = write!(text, ", {hidden} hidden");
    }
    if repeated.is_some_and(|repeated| repeated > 0) {
        let _ = write!(text, ", {} sent twice that must not be", repeated.unwrap_or_default());
    }
    for (kind, count) in errors {
        let _ = write!(text, "; {count} x {kind}");
    }
    text
}

fn markdown(report: &Report, proxies: &[Proxy]) -> String {
    let mut text = format!("{} Backends on {}.\n\n", report.circumstances, report.network);
    for skipped in &report.skipped {
        let _ = writeln!(text, "Left out: {skipped}.");
    }
    text.push_str(
        "\n| fault | proxy | requests | errors | avoidable | hidden | sent twice | ejection s | recovery s | p50 ms | p99 ms |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for (fault, accounts) in &report.faults {
        for proxy in proxies {
            let Some(account) = accounts.get(proxy.name) else { continue };
            let count = |value: Option<usize>| value.map_or("-".to_owned(), |value| value.to_string());
            let seconds = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
            let Account {
                requests, failed, avoidable, hidden, repeated, ejection, recovery, latency, ..
            } = account;
            let _ = writeln!(
                text,
                "| {fault} | {} | {requests} | {failed} | {avoidable} | {} | {} | {} | {} | {:.1} | {:.1} |",
                proxy.name,
                count(*hidden),
                count(*repeated),
                seconds(*ejection),
                seconds(*recovery),
                latency.p50,
                latency.p99
            );
        }
    }
    text
}
