//! Whether a second worker costs: the gateway with one worker on one core against two workers on two, in CPU per
//! request. Generator and backend run on the same cores in both, so only CPU time can be compared, not requests.

use std::thread::available_parallelism;

use fieldgate_loadtests::rig::{Backend, GatewayOptions, ports};

use super::cases::Case;
use super::load::Wrk;
use super::measure::{self, Sample};
use super::peers::{Subject, fieldgate};
use super::report::{Row, Table};
use super::setup::Setup;
use super::{Bench, WARM_UP_SECONDS, measured_options};
use crate::context::ensure;

const CONNECTIONS: usize = 128;

/// Measures both.
pub fn run(bench: &Bench<'_>, case: &Case) -> Result<Table, String> {
    let cores = available_parallelism().map_or(1, std::num::NonZero::get);
    ensure(cores >= 2, || "two workers need two cores".to_owned())?;
    let load_cpus = if cores >= 4 { "2,3" } else { "0,1" };
    let directory = bench.stage.path();
    let backend = Backend::start_with("bench-two", ports::free(), directory, None, &["--threads", "2"])?;
    backend.process.confine(load_cpus)?;
    let mut subjects = Vec::new();
    for (workers, cpus) in [(1, "0"), (2, "0,1")] {
        let mut site = bench.site("fieldgate", Setup::PLAIN)?;
        site.backend = backend.address;
        let options = GatewayOptions { workers, cpu: None, ..measured_options(bench.context) };
        let subject = fieldgate::start(&options, &site)?;
        subject.process.confine(cpus)?;
        subjects.push(Subject { name: format!("fieldgate, {workers} on {cpus}"), ..subject });
    }
    let one = |subject: &Subject, seconds| {
        let wrk = Wrk { connections: CONNECTIONS, seconds, spread: Some(load_cpus), ..Wrk::default() };
        let url = format!("http://{}/", subject.to.plain);
        measure::observe(&subject.process, Some(&backend.process), || wrk.run(&url, directory))
    };
    for subject in &subjects {
        one(subject, WARM_UP_SECONDS)?;
    }
    let samples = measure::rounds(bench, &subjects, |subject| one(subject, bench.context.seconds))?;
    let all = measure::measured(&subjects, samples)?;
    let micros = |sample: &Sample| Some(sample.micros);
    let mut table = Table::new(&case.name, &case.about);
    for measured in &all {
        let mut row = Row::new(&measured.name);
        row.shared(measured);
        row.number("cpu_us", measured.median(micros), measured.is_steady(micros, measure::UNSTEADY));
        table.rows.push(row);
    }
    // Twice the work for twice the CPU would be 2.
    let scaling = all[0].ratio(&all[1], micros).map(|ratio| 2.0 * ratio);
    table.rows[1].number("carries", scaling, true);
    for row in &mut table.rows {
        // Shares of a core that both sides use.
        row.remove("limit");
    }
    Ok(table)
}
