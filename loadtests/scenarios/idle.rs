//! What a connection costs that nobody uses: memory of the gateway and its peers, on fresh processes, by the operating
//! system's account of them. What the kernel keeps for sockets is not in it, and the same for all.

mod client;

use std::time::Duration;

use fieldgate_loadtests::rig::ports;
use serde_json::{Value, json};

use crate::bench;
use crate::context::{Context, Figures, Outcome, Stage, ensure};
use crate::scale::account::{self, Memory};
use crate::scale::limits::{self, Pinned};
use crate::scale::proxies::{self, Certificate, Kind, Proxy, Site};
use crate::scale::table::Table;
use crate::scale::{self, Backends};
use client::{Client, Protocol};

const SIZES: [usize; 2] = [5_000, 15_000];
const PROTOCOLS: [Protocol; 3] = [Protocol::Plain, Protocol::Tls, Protocol::Http2];
/// Connections that a process has seen before it is looked at, so that what it needs once is there.
const WARM_UP: usize = 8;
const OPENING: Duration = Duration::from_mins(2);

pub fn run(context: &Context) -> Outcome {
    let _pinned = Pinned::new()?;
    let cases = cases(context)?;
    let most = cases.iter().map(|case| case.connections).max().unwrap_or_default();
    let descriptors = match limits::descriptors(most) {
        Ok(descriptors) => descriptors,
        Err(why) => return Ok(Figures::skipped(why)),
    };
    limits::raise_own(descriptors)?;
    let stage = context.stage()?;
    let backends = Backends::start(&stage)?;
    let certificate = Certificate::new(stage.path())?;
    let scene = Scene { context, stage: &stage, backends: &backends, certificate: &certificate, descriptors };
    let mut figures = Figures::default();
    let (mut kinds, versions) = scale::present(context, &mut figures);
    // With so few routes both are the same.
    kinds.retain(|kind| *kind != Kind::EnvoyMatcher);
    let mut report = Vec::new();
    for case in cases {
        let measure = |&kind: &Kind| {
            let at = |error| format!("{} {}: {error}", kind.name(), case.name());
            scene.measure(kind, case).map_err(at)
        };
        let rows: Vec<Row> = kinds.iter().map(measure).collect::<Result<_, String>>()?;
        table_of(&mut figures, case, &rows);
        report.extend(rows.iter().map(|row| row.json(case, &rows)));
    }
    figures.add("");
    figures.add(format!(
        "KiB of resident memory per connection, on fresh processes that had {WARM_UP} connections before, once memory has come \
         to rest. Memory of the kernel's sockets is not counted. Each process may have {descriptors} file descriptors."
    ));
    bench::write_json(context, &json!({"scenario": "idle", "versions": versions, "rows": report}))?;
    Ok(figures)
}

#[derive(Clone, Copy)]
struct Case {
    protocol: Protocol,
    connections: usize,
}

impl Case {
    fn name(self) -> String {
        format!("{}-{}", self.protocol.name(), self.connections)
    }
}

/// All, or those that were asked for.
fn cases(context: &Context) -> Result<Vec<Case>, String> {
    let all =
        SIZES.into_iter().flat_map(|connections| PROTOCOLS.map(|protocol| Case { protocol, connections }));
    let all: Vec<Case> = all.collect();
    let known = || all.iter().map(|case| case.name()).collect::<Vec<_>>();
    if let Some(unknown) = context.cases.iter().find(|name| !known().contains(name)) {
        return Err(format!("no case {unknown}; there are {}", known().join(", ")));
    }
    let wanted = |case: &&Case| context.cases.is_empty() || context.cases.contains(&case.name());
    Ok(all.iter().filter(wanted).copied().collect())
}

struct Scene<'a> {
    context: &'a Context,
    stage: &'a Stage,
    backends: &'a Backends,
    certificate: &'a Certificate,
    descriptors: u64,
}

struct Row {
    kind: Kind,
    /// After one request on each connection.
    used: Cost,
    /// After nothing but the connect, and the handshakes that belong to it.
    silent: Cost,
}

#[derive(Clone, Copy)]
struct Cost {
    before: Memory,
    after: Memory,
    kib: f64,
}

impl Scene<'_> {
    fn measure(&self, kind: Kind, case: Case) -> Result<Row, String> {
        Ok(Row { kind, used: self.cost(kind, case, true)?, silent: self.cost(kind, case, false)? })
    }

    fn cost(&self, kind: Kind, case: Case, requests: bool) -> Result<Cost, String> {
        let tls = ports::free();
        let site = Site {
            directory: self.stage.path().join(format!("{}-{}-{requests}", kind.name(), case.name())),
            table: Table { routes: 10 },
            backends: self.backends.addresses(),
            plain: ports::free(),
            tls: Some((tls, self.certificate)),
            connections: case.connections,
            descriptors: self.descriptors,
            reloads: false,
        };
        let Proxy { process, plain, .. } = proxies::start(self.context, kind, &site)?;
        let pid = process.pid();
        let address = if case.protocol == Protocol::Plain { plain } else { tls };
        let client = Client::new(case.protocol, address, self.certificate)?;
        scale::runtime()?.block_on(async {
            drop(client.open(WARM_UP, true).await?);
            let before = account::settled(pid).await?;
            let opened = tokio::time::timeout(OPENING, client.open(case.connections, requests)).await;
            let mut held = opened.map_err(|_| format!("not open after {} s", OPENING.as_secs()))??;
            let after = account::settled(pid).await?;
            let open = held.iter_mut().filter_map(|connection| connection.is_open().then_some(())).count();
            ensure(open == case.connections, || format!("{open} of {} are still open", case.connections))?;
            Ok(Cost { before, after, kib: (after.rss - before.rss) / case.connections as f64 })
        })
    }
}

fn table_of(figures: &mut Figures, case: Case, rows: &[Row]) {
    figures.add("");
    figures.add(format!(
        "**{} idle connections, {}** ({})",
        case.connections,
        case.protocol.about(),
        case.name()
    ));
    figures.add("");
    figures.add("| proxy | KiB each after a request | ratio | KiB each without a request | ratio | MiB before | MiB after |");
    figures.add("|---|---|---|---|---|---|---|");
    let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        figures.add(format!(
            "| {} | {:.2} | {} | {:.2} | {} | {:.1} | {:.1} |",
            row.kind.name(),
            row.used.kib,
            cell(ratio(row, rows, |row| row.used.kib)),
            row.silent.kib,
            cell(ratio(row, rows, |row| row.silent.kib)),
            row.used.before.rss / 1024.0,
            row.used.after.rss / 1024.0,
        ));
    }
}

/// Against the best peer, if there is one.
fn ratio(row: &Row, rows: &[Row], of: impl Fn(&Row) -> f64) -> Option<f64> {
    let best = rows.iter().filter(|row| row.kind != Kind::Fieldgate).map(&of).fold(f64::INFINITY, f64::min);
    best.is_finite().then(|| of(row) / best)
}

impl Row {
    fn json(&self, case: Case, rows: &[Row]) -> Value {
        let cost = |cost: Cost| {
            json!({
                "kib_per_connection": cost.kib, "rss_before_kib": cost.before.rss, "rss_after_kib": cost.after.rss,
                "pss_before_kib": cost.before.pss, "pss_after_kib": cost.after.pss,
            })
        };
        json!({
            "case": case.name(), "proxy": self.kind.name(), "connections": case.connections,
            "after_request": cost(self.used), "without_request": cost(self.silent),
            "ratio_to_best_peer_after_request": ratio(self, rows, |row| row.used.kib),
            "ratio_to_best_peer_without_request": ratio(self, rows, |row| row.silent.kib),
        })
    }
}
