//! Attacks, one after the other, beside clients who only want their answers: each attack ends or is bounded, the gateway's
//! memory too, and the others hardly notice.
//!
//! The attacker is a process of its own and of low priority: on a machine that it shares with gateway and clients, what it
//! takes of the processors for itself is none of the gateway's doing.

mod frames;
mod limits;
mod overload;
mod shortage;
mod tools;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::{Plan, Running, Tally};
use fieldgate_loadtests::rig::{Gateway, config};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless, ensure_no_panic};
use crate::edge::{Edge, HOST};

pub use limits::run as limits;
pub use overload::run as overload;
pub use shortage::run as files;
pub use tools::{ATTACKS, Attack, Report, attack};

/// What the attacker asks for.
const ATTACKED: &str = "attacked.test";
/// Requests per second of each kind of client.
const RATE: f64 = 150.0;
/// What other clients may wait at the 99th percentile: twice what they wait without an attack, and this at least, for
/// so much is noise where all of it runs on a few cores.
const FLOOR: Duration = Duration::from_millis(20);
/// Resident memory of the gateway in MiB, whatever is done to it.
const MEMORY: f64 = 400.0;
/// From one look at its memory to the next.
const LOOK: Duration = Duration::from_millis(50);
/// Pages of TCP memory that count as none, and how long they are waited for.
const QUIET: u64 = 10_000;
const SETTLES: Duration = Duration::from_secs(10);
/// What ends a flood may take, beside a busy machine's time.
const MARGIN: Duration = Duration::from_secs(3);

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    // What an attack does to a service is not what is measured: it has one of its own.
    let backends = stage.pools(&["shop", "attacked"])?;
    lower_priority(backends[1].process.pid())?;
    stage.config.write("route", &config::route_for_host("shop", HOST, &[("shop", 1)]))?;
    stage.config.write("attacked", &config::route_for_host("attacked", ATTACKED, &[("attacked", 1)]))?;
    let gateway = stage.gateway(&context.options())?;
    let ca = edge.authority.file.clone();
    let span = context.count(Duration::from_secs(15), Duration::from_secs(3));

    let normal = Clients::start(&edge)?.during(span)?;
    normal.ensure_served("without an attack")?;
    let mut figures = Figures::default();
    figures.add(format!(
        "{:<16} {:>9} {:>9} {:>8} {:>8} {:>8} {:>9} {:>7}",
        "attack", "h1 p99 ms", "h2 p99 ms", "opened", "ended", "refused", "longest s", "MiB"
    ));
    figures.add(format!("{:<16} {:>9.1} {:>9.1}", "none", millis(normal.p99(0)), millis(normal.p99(1))));
    let mut wrong = Vec::new();
    for attack in ATTACKS
        .iter()
        .filter(|attack| context.cases.is_empty() || context.cases.contains(&attack.name.into()))
    {
        settle();
        let (line, problem) = under(context, attack, &edge, &ca, &gateway, span, &normal)?;
        figures.add(line);
        wrong.extend(problem.err().map(|problem| format!("{}: {problem}", attack.name)));
    }
    let floods = gateway.metric("fieldgate_http2_floods_total", "")?;
    figures.add(format!("HTTP/2 connections ended because of a flood: {floods}"));
    wrong.extend(ensure_no_panic(&gateway.process).err());
    if gateway.metric("fieldgate_panics_total", "")? > 0.0 {
        wrong.push("the gateway counts panics".to_owned());
    }
    if wrong.is_empty() {
        return Ok(figures);
    }
    Err(format!("{}\n{}", wrong.join("\n"), figures.lines.join("\n")))
}

/// Waits until what the last attack left in the kernel is gone: buffers of its connections are memory that all TCP of the
/// machine shares.
fn settle() {
    let pages = || {
        let text = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default().to_owned();
        line.rsplit(' ').next().and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default()
    };
    let begun = Instant::now();
    while pages() > QUIET && begun.elapsed() < SETTLES {
        std::thread::sleep(LOOK);
    }
}

/// One attack; gives its line of the table, and whether all was well.
fn under(
    context: &Context,
    attack: &Attack,
    edge: &Edge,
    ca: &Path,
    gateway: &Gateway,
    span: Duration,
    normal: &Served,
) -> Result<(String, Result<(), String>), String> {
    let attacker = start(attack, edge, ca, span, context.ci)?;
    let clients = Clients::start(edge)?;
    let mut most: f64 = 0.0;
    let begun = Instant::now();
    while begun.elapsed() < span {
        std::thread::sleep(LOOK);
        most = most.max(gateway.process.memory_mib()?);
    }
    let served = clients.stop();
    let report = finish(attacker, attack.name)?;
    let line = format!(
        "{:<16} {:>9.1} {:>9.1} {:>8} {:>8} {:>8} {:>9.1} {:>7.0}",
        attack.name,
        millis(served.p99(0)),
        millis(served.p99(1)),
        report.opened,
        report.ended,
        report.refused,
        report.longest,
        most
    );
    let judged = judge(context, attack, &report, &served, normal, most, span);
    Ok((line, judged))
}

fn judge(
    context: &Context,
    attack: &Attack,
    report: &Report,
    served: &Served,
    normal: &Served,
    memory: f64,
    span: Duration,
) -> Result<(), String> {
    ensure(report.opened + report.refused > 0, || "it could not begin".to_owned())?;
    served.ensure_served("beside it")?;
    ensure(memory <= MEMORY, || format!("{memory:.0} MiB are more than {MEMORY}"))?;
    if let Some(within) = attack.ends_within.filter(|within| *within + MARGIN < span || within.is_zero()) {
        ensure(report.ended > 0, || "no connection of it was ended".to_owned())?;
        let longest = Duration::from_secs_f64(report.longest);
        ensure(longest <= within + MARGIN, || {
            format!("a connection of it lasted {longest:?}, allowed are {within:?}")
        })?;
    }
    if context.ci {
        return Ok(());
    }
    for (index, name) in ["h1", "h2"].into_iter().enumerate() {
        let (now, before) = (served.p99(index), normal.p99(index));
        ensure(now <= (2 * before).max(FLOOR), || {
            format!("{name} clients' p99 is {:.1} ms, was {:.1} ms", millis(now), millis(before))
        })?;
    }
    Ok(())
}

/// Clients by HTTP/1.1 in plaintext and by HTTP/2 over TLS.
struct Clients([Running; 2]);

impl Clients {
    fn start(edge: &Edge) -> Result<Self, String> {
        let [h1, _, _, h2] = edge.ways();
        let steady = |plan: Plan| Plan { rate: Some(RATE), connections: 4, ..plan }.start();
        Ok(Self([steady(h1.plan)?, steady(Plan { streams: 4, ..h2.plan })?]))
    }

    fn stop(self) -> Served {
        Served(self.0.map(Running::stop))
    }

    fn during(self, span: Duration) -> Result<Served, String> {
        std::thread::sleep(span);
        Ok(self.stop())
    }
}

struct Served([Tally; 2]);

impl Served {
    fn p99(&self, index: usize) -> Duration {
        Duration::from_micros(self.0[index].latency.percentile(0.99))
    }

    fn ensure_served(&self, when: &str) -> Result<(), String> {
        ensure_flawless(&format!("h1 clients {when}"), &self.0[0])?;
        ensure_flawless(&format!("h2 clients {when}"), &self.0[1])
    }
}

fn lower_priority(pid: u32) -> Result<(), String> {
    let status =
        Command::new("renice").args(["-n", "19", "-p", &pid.to_string()]).stdout(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("renice: {other:?}")),
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn start(attack: &Attack, edge: &Edge, ca: &Path, span: Duration, small: bool) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    Command::new("nice")
        .args(["-n", "19"])
        .arg(program)
        .args(["attack", "--name", attack.name, "--host", ATTACKED])
        .args(["--plain", &edge.plain.to_string(), "--tls", &edge.tls.to_string()])
        .arg("--ca")
        .arg(ca)
        .args(["--millis", &span.as_millis().to_string()])
        .args(small.then_some("--small"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("the attacker cannot be started: {error}"))
}

fn finish(attacker: Child, name: &str) -> Result<Report, String> {
    let output = attacker.wait_with_output().map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("{name}: the attacker said nothing ({error})"))
}
