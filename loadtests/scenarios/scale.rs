//! What many routes cost the gateway and its peers: a lookup against ten routes, memory, the time from start until one
//! answers. And what it costs to change one of them under load.

pub mod account;
mod change;
pub mod limits;
pub mod proxies;
pub mod table;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fieldgate_loadtests::rig::{Backend, http, ports};
use serde_json::{Value, json};

use crate::bench;
use crate::context::{Context, Figures, Outcome, Stage, ensure};
use limits::Pinned;
use proxies::{Kind, Proxy, Site};
use table::{BENCH, OTHER, Table};

pub use change::run as change;

/// What all others are compared to.
const FEW: Table = Table { routes: 10 };
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
const CONNECTIONS: usize = 64;
/// Starts whose median is told, where more rounds are asked for.
const STARTS: usize = 3;
const WARM_UP_SECONDS: u32 = 1;

pub fn run(context: &Context) -> Outcome {
    let _pinned = Pinned::new()?;
    let sizes = context.routes.map_or(SIZES.to_vec(), |routes| vec![routes]);
    let tables: Vec<Table> =
        std::iter::once(FEW).chain(sizes.into_iter().map(|routes| Table { routes })).collect();
    let mut figures = Figures::default();
    let (kinds, versions) = present(context, &mut figures);
    let mut rows = Vec::new();
    for kind in kinds {
        rows.extend(measure(context, kind, &tables).map_err(|error| format!("{}: {error}", kind.name()))?);
    }
    table_of(&mut figures, context, &rows);
    let report: Vec<Value> = rows.iter().map(Row::json).collect();
    bench::write_json(context, &json!({"scenario": "scale", "versions": versions, "rows": report}))?;
    Ok(figures)
}

/// Those of the proxies that can be started here; says of each which it is, or why it is not there.
pub fn present(context: &Context, figures: &mut Figures) -> (Vec<Kind>, Value) {
    let mut versions = json!({});
    let mut kinds = Vec::new();
    for kind in Kind::chosen(&context.peers) {
        match kind.version(context) {
            Ok(version) => {
                figures.add(format!("{}: {version}", kind.name()));
                versions[kind.name()] = version.into();
                kinds.push(kind);
            }
            Err(why) => figures.add(format!("{}: left out: {why}", kind.name())),
        }
    }
    (kinds, versions)
}

/// The two backends that routes lead to.
pub struct Backends {
    bench: Backend,
    other: Backend,
}

impl Backends {
    /// Starts them beside the generator.
    pub fn start(stage: &Stage) -> Result<Self, String> {
        let start = |name| Backend::start_at(name, ports::free(), stage.path(), None);
        Ok(Self { bench: start(BENCH)?, other: start(OTHER)? })
    }

    /// Where they listen.
    pub fn addresses(&self) -> [std::net::SocketAddr; 2] {
        [self.bench.address, self.other.address]
    }
}

struct Row {
    kind: Kind,
    table: Table,
    starts: Vec<Duration>,
    /// At rest after start.
    memory: account::Memory,
    /// Memory beyond that with ten routes, by the routes beyond ten.
    kib_per_route: Option<f64>,
    /// CPU microseconds per request, of each round.
    micros: Vec<f64>,
    /// Against ten routes, of each round.
    ratios: Vec<f64>,
}

/// All sizes of one kind of proxy run at once, so that their lookups can be measured in turn.
fn measure(context: &Context, kind: Kind, tables: &[Table]) -> Result<Vec<Row>, String> {
    let stage = context.stage()?;
    let backends = Backends::start(&stage)?;
    let runtime = runtime()?;
    let (mut proxies, mut rows) = (Vec::new(), Vec::new());
    for &table in tables {
        let site = Site {
            directory: stage.path().join(table.routes.to_string()),
            table,
            backends: backends.addresses(),
            plain: ports::free(),
            tls: None,
            connections: CONNECTIONS,
            descriptors: limits::descriptors(CONNECTIONS)?,
            reloads: false,
        };
        let mut proxy = proxies::start(context, kind, &site)?;
        let mut starts = vec![proxy.ready];
        while starts.len() < context.rounds.min(STARTS) {
            proxy.process.kill();
            proxy = proxies::start(context, kind, &site)?;
            starts.push(proxy.ready);
        }
        let memory = runtime.block_on(account::settled(proxy.process.pid()))?;
        rows.push(Row {
            kind,
            table,
            starts,
            memory,
            kib_per_route: None,
            micros: Vec::new(),
            ratios: Vec::new(),
        });
        proxies.push(proxy);
    }
    lookups(context, stage.path(), &proxies, &mut rows)?;
    let few = rows[0].memory.rss;
    for row in rows.iter_mut().skip(1) {
        row.kib_per_route = Some((row.memory.rss - few) / (row.table.routes - FEW.routes).max(1) as f64);
    }
    Ok(rows)
}

fn lookups(context: &Context, scratch: &Path, proxies: &[Proxy], rows: &mut [Row]) -> Result<(), String> {
    let load = |proxy: &Proxy, table, seconds| random_load(scratch, proxy, table, seconds);
    for (proxy, row) in proxies.iter().zip(rows.iter()) {
        every_kind_of_route_answers(proxy, row.table)?;
        load(proxy, row.table, WARM_UP_SECONDS)?;
    }
    for _ in 0..context.rounds {
        for (proxy, row) in proxies.iter().zip(rows.iter_mut()) {
            row.micros.push(load(proxy, row.table, context.seconds)?);
        }
        let few = rows[0].micros.last().copied().unwrap_or(f64::NAN);
        for row in rows.iter_mut() {
            row.ratios.extend(row.micros.last().map(|micros| micros / few));
        }
    }
    Ok(())
}

/// The first, the middle and the last route lead where they should, and what is no route is refused.
fn every_kind_of_route_answers(proxy: &Proxy, table: Table) -> Result<(), String> {
    for rule in [0, table.middle(), table.routes - 1] {
        let answer = http::get_host(proxy.plain, &table::host(rule), &table::path(rule))?;
        ensure(answer.status == 200 && answer.header("x-backend") == Some(BENCH), || {
            format!("route {rule} of {} gives {}", table.routes, answer.status)
        })?;
    }
    let answer = http::get_host(proxy.plain, &table::host(0), "/elsewhere")?;
    ensure(answer.status == 404, || format!("what is no route gives {}", answer.status))
}

/// CPU microseconds per request while wrk asks for routes at random.
fn random_load(scratch: &Path, proxy: &Proxy, table: Table, seconds: u32) -> Result<f64, String> {
    let script = scratch.join(format!("random-{}.lua", table.routes));
    std::fs::write(&script, table::random_requests(table))
        .map_err(|error| format!("{}: {error}", script.display()))?;
    let before = account::cpu_seconds(proxy.process.pid())?;
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s"), "-s"])
        .arg(&script)
        .arg(format!("http://{}/", proxy.plain))
        .output()
        .map_err(|error| format!("wrk: {error}; `deploy/setup.sh scenarios` installs it"))?;
    let used = account::cpu_seconds(proxy.process.pid())? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    for trouble in ["Non-2xx", "Socket errors"] {
        ensure(!text.contains(trouble), || format!("wrk saw failures:\n{text}"))?;
    }
    let line = text.lines().find(|line| line.contains(" requests in "));
    let requests: Option<f64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let requests = requests.filter(|requests| *requests > 0.0);
    requests
        .map(|requests| used * 1e6 / requests)
        .ok_or_else(|| format!("wrk said something unexpected:\n{text}"))
}

fn table_of(figures: &mut Figures, context: &Context, rows: &[Row]) {
    figures.add("");
    figures.add(
        "| proxy | routes | ready s | memory MiB | KiB per route | CPU us per request | against 10 routes |",
    );
    figures.add("|---|---|---|---|---|---|---|");
    for row in rows {
        figures.add(format!(
            "| {} | {} | {:.2} | {:.0} | {} | {:.1} | {:.2} |",
            row.kind.name(),
            row.table.routes,
            row.start_seconds(),
            row.memory.rss / 1024.0,
            row.kib_per_route.map_or("-".to_owned(), |kib| format!("{kib:.2}")),
            median(&row.micros),
            median(&row.ratios),
        ));
    }
    figures.add("");
    figures.add(format!(
        "One worker on one core. CPU: medians of {} rounds of {} s, one of the routes at random in each request. Ready: from \
         start until its last route answered, median of {}. Memory: resident, at rest after start.",
        context.rounds,
        context.seconds,
        context.rounds.min(STARTS)
    ));
}

impl Row {
    fn start_seconds(&self) -> f64 {
        median(&self.starts.iter().map(Duration::as_secs_f64).collect::<Vec<_>>())
    }

    fn json(&self) -> Value {
        json!({
            "proxy": self.kind.name(), "routes": self.table.routes, "ready_seconds": self.start_seconds(),
            "rss_kib": self.memory.rss, "pss_kib": self.memory.pss, "kib_per_route": self.kib_per_route,
            "cpu_us_per_request": median(&self.micros), "ratio_to_10_routes": median(&self.ratios),
            "cpu_us_rounds": self.micros,
        })
    }
}

/// The median; not a number if there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A runtime for what waits.
pub fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}
