//! More clients than a gateway can carry: it goes on to serve as many as it can, in a time that does not grow with their
//! number, and tells the others so at once.
//!
//! The gateway is made slow by being stopped most of the time, so that its clients are not the ones who cannot keep up:
//! what it does, and what it refuses, costs the same share of its time as it always does. Clients ask again as soon as they
//! are answered, or after as many seconds as `Retry-After` says; or, at their worst, at once in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use fieldgate_loadtests::load::{Plan, Tally};
use fieldgate_loadtests::rig::{Gateway, GatewayOptions, config};

use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::edge::{Edge, HOST};

/// How long the gateway runs, and how long it does not, over and over.
const RUNS: Duration = Duration::from_millis(4);
const RESTS: Duration = Duration::from_millis(16);
/// Clients who keep it busy and no more.
const ENOUGH: usize = 32;
/// What requests would wait for if none were refused, in seconds: many times the delay that is allowed.
const CROWD: f64 = 1.0;
/// The least share of the most that can be served which is served in a crowd.
const GOODPUT: f64 = 0.9;
/// What served requests may take at the 99th percentile: the delay allowed (100 ms) once for each time that a request
/// waits for the worker, which is when it comes and when its answer does, and as much again for a queue that is being noticed.
const P99: Duration = Duration::from_millis(600);
/// Before clients are counted: the gateway has noticed by then.
const SETTLE: Duration = Duration::from_secs(3);

pub fn run(context: &Context) -> Outcome {
    let span = context.count(Duration::from_secs(10), Duration::from_secs(4));
    let mut figures = Figures::default();
    let mut wrong = Vec::new();
    for http2 in [false, true] {
        let what = if http2 { "h2" } else { "h1" };
        let enough = measure(context, http2, ENOUGH, true, span, &[])?;
        let most = served(&enough);
        let crowd = ((most * CROWD) as usize).clamp(4 * ENOUGH, 6_000);
        let held = measure(context, http2, crowd, true, span, &["--max-delay", "off"])?;
        let rude = measure(context, http2, crowd, false, span, &[])?;
        let shed = measure(context, http2, crowd, true, span, &[])?;
        figures.add(line(what, ENOUGH, "", &enough));
        figures.add(line(what, crowd, ", refusing none", &held));
        figures.add(line(what, crowd, ", who do not wait when asked to", &rude));
        figures.add(line(what, crowd, ", who do", &shed));
        let judged = judge(context, most, &enough, &rude, &shed);
        wrong.extend(judged.err().map(|problem| format!("{what}: {problem}")));
    }
    if wrong.is_empty() {
        Ok(figures)
    } else {
        Err(format!("{}\n{}", wrong.join("\n"), figures.lines.join("\n")))
    }
}

fn judge(context: &Context, most: f64, enough: &Tally, rude: &Tally, shed: &Tally) -> Result<(), String> {
    ensure(enough.failures() == 0, || format!("with few clients: {}", enough.describe_failures()))?;
    ensure(shed.errors() == 0, || format!("in a crowd: {}", shed.describe_failures()))?;
    ensure(shed.status(503) > 0, || "nobody was refused in a crowd".to_owned())?;
    if context.ci {
        return Ok(());
    }
    for crowd in [rude, shed] {
        let share = served(crowd) / most;
        ensure(share >= GOODPUT, || {
            format!("only {:.0} % of the most were served in a crowd", share * 100.0)
        })?;
    }
    let p99 = Duration::from_micros(shed.served.percentile(0.99));
    ensure(p99 <= P99, || format!("the p99 of served requests was {p99:?}"))
}

fn served(tally: &Tally) -> f64 {
    tally.status(200) as f64 / tally.seconds
}

fn line(what: &str, clients: usize, how: &str, tally: &Tally) -> String {
    format!(
        "{what}, {clients} clients{how}: {:.0} served and {:.0} refused per second, p50 {:.0} ms, p99 {:.0} ms",
        served(tally),
        tally.status(503) as f64 / tally.seconds,
        tally.served.percentile(0.5) as f64 / 1000.0,
        tally.served.percentile(0.99) as f64 / 1000.0
    )
}

/// What clients see once the gateway has had time to notice them.
fn measure(
    context: &Context,
    http2: bool,
    clients: usize,
    patient: bool,
    span: Duration,
    flags: &[&str],
) -> Result<Tally, String> {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _backends = stage.pools(&["shop"])?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let gateway = start(context, &stage, flags)?;
    let plan =
        Plan { host: HOST.to_owned(), timeout: Duration::from_mins(1), patient, ..Plan::new(edge.plain) };
    let plan = if http2 {
        Plan { connections: clients.div_ceil(100), ..plan }.http2(clients.min(100))
    } else {
        Plan { connections: clients, ..plan }
    };
    let slow = Slow::down(&gateway);
    let load = plan.clone().start()?;
    std::thread::sleep(SETTLE);
    let before = load.snapshot();
    std::thread::sleep(span);
    let after = load.snapshot();
    drop(slow);
    load.stop();
    Ok(after.since(&before))
}

fn start(context: &Context, stage: &Stage, flags: &[&str]) -> Result<Gateway, String> {
    let flags = flags.iter().map(ToString::to_string).collect();
    stage.gateway(&GatewayOptions { workers: 1, flags, ..context.options() })
}

/// Stops a gateway most of the time for as long as this lives.
struct Slow {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    fn down(gateway: &Gateway) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let pid = i32::try_from(gateway.process.pid()).ok().and_then(rustix::process::Pid::from_raw);
        let over = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            use rustix::process::{Signal, kill_process};
            let Some(pid) = pid else { return };
            while !over.load(Ordering::Relaxed) {
                // It fails only if the gateway has ended, which shows by itself.
                let _ = kill_process(pid, Signal::STOP);
                std::thread::sleep(RESTS);
                let _ = kill_process(pid, Signal::CONT);
                std::thread::sleep(RUNS);
            }
        });
        Self { ended, thread: Some(thread) }
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
