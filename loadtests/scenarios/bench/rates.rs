//! Latency at a fixed rate: the same requests at the same moments to every proxy, at a share of what the slowest peer
//! can do. Latency counts from the moment that a request was due (`load::paced` says why).

use fieldgate_loadtests::load::paced::Percentiles;

use super::cases::Case;
use super::load::{Load, PacedArguments};
use super::measure::{self, Measured, Sample};
use super::peers::Subject;
use super::report::{Row, Table};
use super::setup::Setup;
use super::{Bench, WARM_UP_SECONDS};

const CONNECTIONS: usize = 64;
/// Not counted at the start of each run.
const WARM_UP: f64 = 0.3;
/// Rounds' percentiles differ more than their CPU does.
const UNSTEADY: f64 = 1.0;
/// If so much of the latency may be the generator's own, it is no figure of the proxy.
const OWN_SHARE: f64 = 0.5;

/// Measures the slowest peer's maximum, once in a run, and then everybody at a share of it.
pub fn run(bench: &Bench<'_>, case: &Case, percent: u32) -> Result<Table, String> {
    let subjects = bench.start_all(Setup::PLAIN)?;
    let slowest = match bench.slowest.get() {
        Some(slowest) => slowest,
        None => slowest(bench, &subjects)?,
    };
    bench.slowest.set(Some(slowest));
    let rate = slowest * f64::from(percent) / 100.0;
    let one = |subject: &Subject, seconds: f64| {
        let paced = PacedArguments {
            address: subject.to.plain,
            path: "/".to_owned(),
            body: 0,
            connections: CONNECTIONS,
            rate,
            seconds: seconds + WARM_UP,
            warm_up: WARM_UP,
        };
        measure::observe(&subject.process, Some(&bench.backend.process), || paced.run())
    };
    for subject in &subjects {
        one(subject, WARM_UP).map_err(|error| format!("{}: {error}", subject.name))?;
    }
    let samples =
        measure::rounds(bench, &subjects, |subject| one(subject, f64::from(bench.context.seconds)))?;
    let all = measure::measured(&subjects, samples)?;
    let about = format!("{}: {rate:.0} a second on {CONNECTIONS} connections, at random moments", case.about);
    Ok(table(case, &about, &all))
}

fn table(case: &Case, about: &str, all: &[Measured]) -> Table {
    let micros = |sample: &Sample| Some(sample.micros);
    let p999 = |sample: &Sample| sample.latency.map(|latency| latency.p999);
    let own = |sample: &Sample| sample.late.map(|late| late.p999);
    let (best, envoy) = (measure::best(all, p999), measure::named(all, "envoy"));
    let mut table = Table::new(&case.name, about);
    for one in all {
        let mut row = Row::new(&one.name);
        row.number("cpu_us", one.median(micros), one.is_trusted(micros, measure::UNSTEADY));
        row.shared(one);
        let its_own = own_share(one.median(own), one.median(p999));
        for (key, of) in percentiles() {
            row.number(key, one.median(of), its_own <= OWN_SHARE && one.is_trusted(of, UNSTEADY));
        }
        row.number("p999_to_best_peer", best.and_then(|best| one.ratio(best, p999)), true);
        row.number("p999_to_envoy", envoy.and_then(|envoy| one.ratio(envoy, p999)), true);
        row.number("late_p999_ms", one.median(own), true);
        table.rows.push(row);
    }
    table.best_peer = best.map(|best| best.name.clone());
    table
}

type Of = fn(&Sample) -> Option<f64>;

fn percentiles() -> [(&'static str, Of); 3] {
    let of: [(_, Of); 3] = [
        ("p50_ms", |sample| sample.latency.map(|Percentiles { p50, .. }| p50)),
        ("p99_ms", |sample| sample.latency.map(|Percentiles { p99, .. }| p99)),
        ("p999_ms", |sample| sample.latency.map(|Percentiles { p999, .. }| p999)),
    ];
    of
}

fn own_share(own: Option<f64>, whole: Option<f64>) -> f64 {
    own.zip(whole).map_or(0.0, |(own, whole)| own / whole)
}

/// Requests per second of the slowest peer, or without peers the gateway's own.
fn slowest(bench: &Bench<'_>, subjects: &[Subject]) -> Result<f64, String> {
    let load = Load::Http1 { tls: false, connections: CONNECTIONS, path: "/", upload: 0, close: false };
    let scratch = bench.stage.path();
    let one = |subject: &Subject, seconds| {
        let backend = Some(&bench.backend.process);
        measure::observe(&subject.process, backend, || load.run(subject.to, seconds, scratch))
    };
    for subject in subjects {
        one(subject, WARM_UP_SECONDS)?;
    }
    let samples = measure::rounds(bench, subjects, |subject| one(subject, bench.context.seconds))?;
    let all = measure::measured(subjects, samples)?;
    let rates = all.iter().skip(usize::from(all.len() > 1));
    let slowest = rates.filter_map(|one| one.median(|sample| Some(sample.per_second)));
    Ok(slowest.fold(f64::INFINITY, f64::min))
}
