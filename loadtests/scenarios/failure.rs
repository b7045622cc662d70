//! A backend that dies under load costs nobody a request; when all are down, the answer is 503 and comes at once.

use std::time::{Duration, Instant};

use fieldgate_loadtests::load::{Plan, Running};
use fieldgate_loadtests::rig::{Backend, config, http, wait};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

const RETRY: &str = "    retry: {attempts: 2, backoff: 1ms, codes: [502, 503]}\n";
const PROGRESS: Duration = Duration::from_secs(10);

pub fn run(context: &Context) -> Outcome {
    let rounds = context.count(10, 3);
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let names = ["one", "two", "three"];
    let mut backends: Vec<Backend> =
        names.iter().map(|name| stage.backend(name)).collect::<Result<_, _>>()?;
    let endpoints: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    stage.config.write("pool", &config::pool("shop", &endpoints, "http1"))?;
    stage.config.write("route", &config::route_with_rule("shop", &[("shop", 1)], RETRY))?;
    let _gateway = stage.gateway(&context.options())?;
    let load = Plan::new(address).start()?;
    await_progress(&load)?;
    for round in 0..rounds {
        let victim = round % backends.len();
        backends[victim].process.kill();
        await_progress(&load)?;
        backends[victim] = Backend::start_at(names[victim], endpoints[victim], stage.path(), None)?;
        await_return(&load, names[victim])?;
    }
    let tally = load.stop();
    ensure_flawless("kills", &tally)?;
    let mut figures = Figures::default();
    figures.add(format!("{rounds} kills, {} requests, none failed", tally.sent));
    for backend in &mut backends {
        backend.process.kill();
    }
    figures.add(all_down(address)?);
    Ok(figures)
}

fn await_progress(load: &Running) -> Result<(), String> {
    let before = load.snapshot().completed();
    wait::until_true(PROGRESS, "a thousand more answers", || load.snapshot().completed() >= before + 1000)
        .map_err(|error| format!("{error}; {}", load.snapshot().describe_failures()))
}

/// A backend that was left alone for having refused must be used again.
fn await_return(load: &Running, name: &str) -> Result<(), String> {
    let count = || load.snapshot().backends().get(name).copied().unwrap_or_default();
    let before = count();
    wait::until_true(6 * PROGRESS, &format!("{name} to be used again"), || count() > before)
}

fn all_down(address: std::net::SocketAddr) -> Result<String, String> {
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let started = Instant::now();
        let answer = http::get(address, "/")?;
        slowest = slowest.max(started.elapsed());
        ensure(answer.status == 503, || format!("with all backends down the answer is {}", answer.status))?;
    }
    Ok(format!("all down: 503 within {:.1} ms", slowest.as_secs_f64() * 1000.0))
}
