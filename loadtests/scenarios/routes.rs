//! What 100,000 routes cost: the start, one change, and a lookup against ten routes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{Gateway, config, http, wait};
use serde_json::json;

use crate::bench::{self, Sample, Target};
use crate::context::{Context, Figures, Outcome, Stage, ensure, ensure_flawless};
use crate::scale::table::{self, BENCH, OTHER, Table};

const FEW: usize = 10;
/// Changes made and waited for.
const CHANGES: usize = 20;
const CHANGE: Duration = Duration::from_mins(1);
/// Requests per second of the load that must not notice the changes.
const LIGHT: f64 = 200.0;
const CONNECTIONS: usize = 64;

pub fn run(context: &Context) -> Outcome {
    let many = context.routes.unwrap_or(context.count(100_000, 5_000));
    let few = Scene::start(context, FEW)?;
    let scene = Scene::start(context, many)?;
    let mut figures = Figures::default();
    let memory = scene.gateway.process.memory_mib()?;
    figures
        .add(format!("{many} routes: ready after {:.2} s with {memory:.0} MiB", scene.start.as_secs_f64()));
    let mut changes = scene.changes()?;
    changes.sort();
    let (middle, slowest) = (millis(changes[changes.len() / 2]), millis(changes[changes.len() - 1]));
    figures.add(format!(
        "one changed route is served after {middle:.0} ms (median of {CHANGES}; slowest {slowest:.0} ms)"
    ));
    let lookup = if context.ci { None } else { Some(lookup(context, &few, &scene)?) };
    if let Some((few, many)) = lookup {
        let ratio = many.micros / few.micros;
        figures.add(format!(
            "CPU per request: {:.2} us with {FEW} routes, {:.2} us with all: {ratio:.3} times",
            few.micros, many.micros
        ));
    }
    bench::write_json(
        context,
        &json!({
            "routes": many, "start_seconds": scene.start.as_secs_f64(), "memory_mib": memory,
            "change_ms_median": middle, "change_ms_slowest": slowest,
            "cpu_us_few": lookup.map(|(few, _)| few.micros), "cpu_us_many": lookup.map(|(_, many)| many.micros),
        }),
    )?;
    Ok(figures)
}

struct Scene {
    stage: Stage,
    address: SocketAddr,
    gateway: Gateway,
    start: Duration,
    table: Table,
    _backends: Vec<fieldgate_loadtests::rig::Backend>,
}

impl Scene {
    fn start(context: &Context, routes: usize) -> Result<Self, String> {
        let stage = context.stage()?;
        let address = stage.plain_edge()?;
        let backends = vec![bench::measured_backend(&stage)?, stage.backend("other")?];
        for (backend, name) in backends.iter().zip([BENCH, OTHER]) {
            stage.config.write(&format!("pool-{name}"), &config::pool(name, &[backend.address], "http1"))?;
        }
        let table = Table { routes };
        for object in 0..table.objects() {
            stage.config.write(&format!("route-{object}"), &table.object(object, None))?;
        }
        let started = Instant::now();
        let gateway = stage.gateway(&bench::measured_options(context))?;
        Ok(Self { start: started.elapsed(), stage, address, gateway, table, _backends: backends })
    }

    /// Moves one rule to the other backend and back, under light load; how long each took to be served.
    fn changes(&self) -> Result<Vec<Duration>, String> {
        let rule = self.table.middle();
        let object = table::object_of(rule);
        let load = Plan {
            host: table::host(0),
            path: table::path(0),
            rate: Some(LIGHT),
            connections: 2,
            ..Plan::new(self.address)
        }
        .start()?;
        let mut took = Vec::new();
        for change in 0..CHANGES {
            let target = if change % 2 == 0 { OTHER } else { BENCH };
            let text = self.table.object(object, Some((rule, target)));
            let started = Instant::now();
            self.stage.config.write(&format!("route-{object}"), &text)?;
            wait::until_true(CHANGE, "the changed route to be served", || {
                http::get_host(self.address, &table::host(rule), &table::path(rule))
                    .is_ok_and(|answer| answer.header("x-backend") == Some(target))
            })?;
            took.push(started.elapsed());
        }
        let tally = load.stop();
        ensure_flawless("light load", &tally)?;
        Ok(took)
    }

    /// What the last route matches.
    fn last(&self) -> Target {
        let last = self.table.routes - 1;
        Target { address: self.address, host: table::host(last), path: table::path(last) }
    }
}

fn lookup(context: &Context, few: &Scene, many: &Scene) -> Result<(Sample, Sample), String> {
    let mut samples = (Vec::new(), Vec::new());
    for _ in 0..context.rounds {
        samples.0.push(measure(context, few)?);
        samples.1.push(measure(context, many)?);
    }
    Ok((bench::median(samples.0), bench::median(samples.1)))
}

fn measure(context: &Context, scene: &Scene) -> Result<Sample, String> {
    let target = scene.last();
    let answer = http::get_host(target.address, &target.host, &target.path)?;
    ensure(answer.status == 200, || format!("{}{} gives {}", target.host, target.path, answer.status))?;
    bench::sample(&scene.gateway.process, &target, CONNECTIONS, context.seconds)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
