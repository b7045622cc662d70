//! One route changed among many under load: how long until clients see it, whether a request fails, and what CPU a change
//! costs.
//!
//! The time counts from the moment that the change is there for the proxy to see - a file in its place, a command about
//! to be sent - to the first answer by the other backend on a new connection. CPU is measured apart, without the load,
//! over many changes, so that it holds what the change costs and nothing else.

use std::time::{Duration, Instant};

use fieldgate_loadtests::load::{Plan, Tally};
use fieldgate_loadtests::rig::{http, ports, wait};
use serde_json::{Value, json};

use super::limits::{self, Pinned};
use super::proxies::{self, Kind, Proxy, Site, Way};
use super::table::{self, BENCH, OTHER, Table};
use super::{Backends, account, median};
use crate::bench;
use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

const SIZES: [usize; 2] = [10_000, 100_000];
/// Changes made under load: so many, unless that takes longer than the time for them; and never fewer than the least.
const CHANGES: usize = 50;
/// Changes made for their CPU. The operating system counts in hundredths of a second.
const CHANGES_FOR_CPU: usize = 200;
const TIME: Duration = Duration::from_secs(12);
const LEAST: usize = 4;
/// The longest that a change may take.
const VISIBLE: Duration = Duration::from_mins(1);
/// After so long without effect a reload is asked for again: HAProxy's master loses a signal that comes while it starts itself anew.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks whether it is seen.
const LOOK: Duration = Duration::from_micros(500);
const CONNECTIONS: usize = 16;
/// What the load may use of the proxy's core.
const SHARE: f64 = 0.3;
/// Load to learn from what a request costs.
const TRIAL_RATE: f64 = 2000.0;
const TRIAL: Duration = Duration::from_secs(1);
/// What goes on after a change without the client seeing it, as old workers that end.
const AFTERWARDS: Duration = Duration::from_millis(500);

pub fn run(context: &Context) -> Outcome {
    let _pinned = Pinned::new()?;
    let sizes = context.routes.map_or(SIZES.to_vec(), |routes| vec![routes]);
    let mut figures = Figures::default();
    let (kinds, versions) = super::present(context, &mut figures);
    let mut rows = Vec::new();
    for routes in sizes {
        for &kind in &kinds {
            for way in proxies::ways(kind) {
                let what = format!("{} by {way} with {routes} routes", kind.name());
                match measure(context, kind, way, Table { routes }) {
                    Ok(row) => rows.push(row),
                    Err(error) if kind == Kind::Fieldgate => return Err(format!("{what}: {error}")),
                    // A peer that could not be measured says nothing about the gateway.
                    Err(error) => figures.add(format!("{what}: not measured: {error}")),
                }
            }
        }
    }
    table_of(&mut figures, &rows);
    let report: Vec<Value> = rows.iter().map(Row::json).collect();
    bench::write_json(context, &json!({"scenario": "change", "versions": versions, "rows": report}))?;
    for row in rows.iter().filter(|row| row.kind == Kind::Fieldgate) {
        ensure_flawless(
            &format!("load with {} routes, changed by {}", row.table.routes, row.way),
            &row.load,
        )?;
    }
    Ok(figures)
}

struct Row {
    kind: Kind,
    way: &'static str,
    table: Table,
    /// Milliseconds until each change was seen.
    visible: Vec<f64>,
    load: Tally,
    rate: f64,
    /// CPU milliseconds of one change.
    cpu: f64,
    changes_for_cpu: usize,
}

fn measure(context: &Context, kind: Kind, name: &'static str, table: Table) -> Result<Row, String> {
    let stage = context.stage()?;
    let backends = Backends::start(&stage)?;
    let site = Site {
        directory: stage.path().join("proxy"),
        table,
        backends: backends.addresses(),
        plain: ports::free(),
        tls: None,
        connections: CONNECTIONS,
        descriptors: limits::descriptors(CONNECTIONS)?,
        reloads: name == "reload",
    };
    let proxy = proxies::start(context, kind, &site)?;
    let way = proxies::way(kind, name, &site)?;
    let processes = account::processes(proxy.process.pid());
    let mut changer = Changer { proxy: &proxy, way: &way, table, turn: 0, processes };
    changer.change(Duration::ZERO)?;
    let rate = bearable_rate(&proxy)?;
    let load = Plan { rate: Some(rate), ..load(&proxy) }.start()?;
    let started = Instant::now();
    let mut visible = Vec::new();
    while visible.len() < CHANGES && (visible.len() < LEAST || started.elapsed() < TIME) {
        visible.push(changer.change(Duration::ZERO)?.as_secs_f64() * 1000.0);
    }
    let load = load.stop();
    let (cpu, changes_for_cpu) = cpu_of_change(&mut changer, median(&visible))?;
    Ok(Row { kind, way: name, table, visible, load, rate, cpu, changes_for_cpu })
}

/// Makes changes, one after the other.
struct Changer<'a> {
    proxy: &'a Proxy,
    way: &'a Way,
    table: Table,
    turn: usize,
    /// Processes of the proxy while nothing changes.
    processes: usize,
}

impl Changer<'_> {
    /// Makes the next change and looks, after a time, until it is seen.
    fn change(&mut self, before_first_look: Duration) -> Result<Duration, String> {
        self.turn += 1;
        let (host, path) = (table::host(self.table.middle()), table::path(self.table.middle()));
        let target = if self.turn % 2 == 1 { OTHER } else { BENCH };
        self.way.prepare(self.turn)?;
        let (first, mut started) = (Instant::now(), Instant::now());
        self.way.make(self.proxy, self.turn)?;
        std::thread::sleep(before_first_look);
        // A reload may refuse a connection or two, which is no reason to look no more; the load counts what fails.
        while !http::get_host(self.proxy.plain, &host, &path)
            .is_ok_and(|answer| answer.header("x-backend") == Some(target))
        {
            ensure(first.elapsed() < VISIBLE, || {
                format!("the change was not seen; {}", self.proxy.process.log_tail())
            })?;
            if started.elapsed() > ASK_AGAIN {
                started = Instant::now();
                self.way.make(self.proxy, self.turn)?;
            }
            std::thread::sleep(LOOK);
        }
        let visible = started.elapsed();
        self.wait_for_old_workers()?;
        Ok(visible)
    }

    /// Waits until the processes are as many as at first. HAProxy forgets a reload that it is told of before its master
    /// has done with the one before.
    fn wait_for_old_workers(&self) -> Result<(), String> {
        let pid = self.proxy.process.pid();
        wait::until_true(VISIBLE, "the old workers to end", || account::processes(pid) == self.processes)
    }
}

fn load(proxy: &Proxy) -> Plan {
    Plan { host: table::host(0), path: table::path(0), connections: CONNECTIONS, ..Plan::new(proxy.plain) }
}

/// Requests per second that use a share of the proxy's core, by what they cost at a low rate.
fn bearable_rate(proxy: &Proxy) -> Result<f64, String> {
    let before = account::cpu_seconds(proxy.process.pid())?;
    let tally = Plan { rate: Some(TRIAL_RATE), duration: Some(TRIAL), ..load(proxy) }.run()?;
    ensure_flawless("trial load", &tally)?;
    let used = account::cpu_seconds(proxy.process.pid())? - before;
    Ok(SHARE * tally.completed() as f64 / used.max(0.01))
}

/// CPU milliseconds of a change, and how many it was measured by. The first look is late, so that looking costs little.
fn cpu_of_change(changer: &mut Changer<'_>, visible_millis: f64) -> Result<(f64, usize), String> {
    let pid = changer.proxy.process.pid();
    let late = Duration::from_secs_f64(visible_millis * 1.5 / 1000.0);
    std::thread::sleep(AFTERWARDS);
    let (before, started) = (account::cpu_seconds(pid)?, Instant::now());
    let mut changes = 0;
    while changes < CHANGES_FOR_CPU && (changes < LEAST || started.elapsed() < TIME) {
        changer.change(late)?;
        changes += 1;
    }
    std::thread::sleep(AFTERWARDS);
    Ok(((account::cpu_seconds(pid)? - before) * 1000.0 / changes as f64, changes))
}

fn table_of(figures: &mut Figures, rows: &[Row]) {
    figures.add("");
    figures.add("| proxy | changed by | routes | visible ms, median | slowest | CPU ms per change | errors of requests | changes |");
    figures.add("|---|---|---|---|---|---|---|---|");
    for row in rows {
        figures.add(format!(
            "| {} | {} | {} | {:.1} | {:.1} | {:.2} | {} of {} | {} |",
            row.kind.name(),
            row.way,
            row.table.routes,
            median(&row.visible),
            row.slowest(),
            row.cpu,
            row.load.failures(),
            row.load.sent,
            row.visible.len(),
        ));
    }
    figures.add("");
    for row in rows.iter().filter(|row| row.load.failures() > 0) {
        let failures = row.load.describe_failures();
        figures.add(format!("{} by {}, {} routes: {failures}", row.kind.name(), row.way, row.table.routes));
    }
    figures.add(format!(
        "One worker on one core, about {:.0} % of it used by requests on {CONNECTIONS} connections. Visible: from the file in \
         place, or the command about to be sent, to the first answer by the other backend. CPU: of all processes of the \
         proxy, measured over many changes without other requests.",
        SHARE * 100.0
    ));
}

impl Row {
    fn slowest(&self) -> f64 {
        self.visible.iter().copied().fold(0.0, f64::max)
    }

    fn json(&self) -> Value {
        json!({
            "proxy": self.kind.name(), "way": self.way, "routes": self.table.routes,
            "visible_ms_median": median(&self.visible), "visible_ms_slowest": self.slowest(),
            "visible_ms": self.visible, "cpu_ms_per_change": self.cpu, "changes_for_cpu": self.changes_for_cpu,
            "requests": self.load.sent, "failures": self.load.failures(),
            "failed": self.load.describe_failures(), "requests_per_second": self.rate,
        })
    }
}
