//! Proxies against each other: one worker each on one core, generator and backend on the other, rounds interleaved so
//! that a machine's moods meet all alike. Ratios are the result; absolutes are the machine's.

mod cases;
mod fairness;
pub mod find;
pub mod load;
mod measure;
mod peers;
mod plots;
mod rates;
mod report;
mod setup;
mod workers;

use std::cell::Cell;
use std::net::SocketAddr;

use fieldgate_loadtests::rig::{Backend, GatewayOptions, Process, ports};
use serde_json::Value;

use crate::context::{Context, Figures, Outcome, Stage};
use cases::{Case, Job};
use peers::{Certificate, Peer, Subject};
use report::{Report, Table};
use setup::{Setup, Site};

pub use measure::{Sample, median};

/// Where proxies run.
const PROXY_CPU: usize = 0;
/// Where generators and the backend run.
const LOAD_CPU: usize = 1;
const WARM_UP_SECONDS: u32 = 1;

/// The small HTTP/1.1 job, at the numbers of connections that were asked for.
pub fn small(context: &Context) -> Outcome {
    compare(context, &cases::small(&context.connections))
}

/// All cases, or those that were asked for; or tables and plots anew from what earlier runs wrote with `--json`.
pub fn all(context: &Context) -> Outcome {
    if !context.reports.is_empty() {
        return finish(context, &Report::read(&context.reports)?);
    }
    let mut cases = cases::all();
    if !context.cases.is_empty() {
        if let Some(unknown) = context.cases.iter().find(|name| cases.iter().all(|case| case.name != **name))
        {
            let known: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            return Err(format!("no case {unknown}; there are {}", known.join(", ")));
        }
        cases.retain(|case| context.cases.contains(&case.name));
    }
    compare(context, &cases)
}

/// All peers there can be: what is measured where nobody names some.
pub fn peer_names() -> Vec<String> {
    peers::names()
}

/// What runs a role of a bench in a process of its own, so that it can be pinned beside the backend.
pub fn helper(name: &str, arguments: &[String]) -> Option<Result<(), String>> {
    match name {
        "paced" => Some(load::paced_main(arguments)),
        "trickle" => Some(fairness::trickle_main(arguments)),
        _ => None,
    }
}

fn compare(context: &Context, cases: &[Case]) -> Outcome {
    let bench = Bench::new(context)?;
    let mut report = Report::new(context);
    report.versions.insert("fieldgate".to_owned(), bench.gateway_version());
    report.versions.extend(bench.peers.iter().map(|peer| (peer.name.to_owned(), peer.version.clone())));
    report.skipped.clone_from(&bench.skipped);
    let mut failed = Vec::new();
    for case in cases {
        match bench.run(case) {
            Ok(table) => {
                eprintln!("     {}: measured", case.name);
                report.cases.push(table);
            }
            Err(error) => failed.push(format!("{}: {error}", case.name)),
        }
    }
    let figures = finish(context, &report)?;
    if failed.is_empty() {
        return Ok(figures);
    }
    // What the other cases took an hour to measure is not lost with one.
    figures.lines.iter().for_each(|line| println!("     {line}"));
    Err(failed.join("\n"))
}

/// Prints a report, and writes it where that was asked for.
fn finish(context: &Context, report: &Report) -> Outcome {
    let mut figures = Figures::default();
    report.markdown().lines().for_each(|line| figures.add(line));
    let json = serde_json::to_value(report).map_err(|error| error.to_string())?;
    write_json(context, &json)?;
    if let Some(path) = &context.markdown {
        std::fs::write(path, report.markdown()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if let Some(directory) = &context.plots {
        plots::write(report, directory)?;
        figures.add(format!("plots: {}", directory.display()));
    }
    Ok(figures)
}

/// What all cases of a run share.
struct Bench<'a> {
    context: &'a Context,
    stage: Stage,
    backend: Backend,
    certificate: Certificate,
    peers: Vec<Peer>,
    /// Peers that are not here, with the reason.
    skipped: Vec<String>,
    /// Requests per second of the slowest peer, once it was measured.
    slowest: Cell<Option<f64>>,
    /// Directories that were given out.
    sites: Cell<usize>,
}

impl<'a> Bench<'a> {
    fn new(context: &'a Context) -> Result<Self, String> {
        let stage = context.stage()?;
        let (peers, skipped) = peers::find(&context.peers, context.peers_named)?;
        Ok(Self {
            context,
            backend: measured_backend(&stage)?,
            certificate: Certificate::new(stage.path())?,
            stage,
            peers,
            skipped,
            slowest: Cell::new(None),
            sites: Cell::new(0),
        })
    }

    fn run(&self, case: &Case) -> Result<Table, String> {
        match case.job {
            Job::Load { load, setup, plain } => measure::run(self, case, load, setup, plain),
            Job::Rate { percent } => rates::run(self, case, percent),
            Job::Fairness => fairness::run(self, case),
            Job::Workers => workers::run(self, case),
        }
    }

    /// Starts the gateway, and each peer that can do what is asked for. The gateway is the first.
    fn start_all(&self, setup: Setup) -> Result<Vec<Subject>, String> {
        let mut subjects = vec![self.start_gateway(setup)?];
        for peer in &self.peers {
            if let Some(subject) = peer.start(&self.site(peer.name, setup)?)? {
                subjects.push(subject);
            }
        }
        Ok(subjects)
    }

    fn start_gateway(&self, setup: Setup) -> Result<Subject, String> {
        peers::fieldgate::start(&measured_options(self.context), &self.site("fieldgate", setup)?)
    }

    /// A directory of its own for a proxy, and what it has to serve.
    fn site(&self, name: &str, setup: Setup) -> Result<Site<'_>, String> {
        let number = self.sites.replace(self.sites.get() + 1);
        let directory = self.stage.path().join(format!("{number}-{name}"));
        std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        Ok(Site { directory, backend: self.backend.address, certificate: &self.certificate, setup })
    }

    fn gateway_version(&self) -> String {
        find::version(&self.context.gateway, "--version")
    }
}

/// Options for a gateway that is measured: one worker, pinned.
pub fn measured_options(context: &Context) -> GatewayOptions {
    GatewayOptions { workers: 1, cpu: Some(PROXY_CPU), ..context.options() }
}

/// Starts a backend beside the generator.
pub fn measured_backend(stage: &Stage) -> Result<Backend, String> {
    Backend::start_at("bench", ports::free(), stage.path(), Some(LOAD_CPU))
}

/// What the generator asks for.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub host: String,
    pub path: String,
}

/// Runs the HTTP/1.1 generator once against a proxy.
pub fn sample(proxy: &Process, target: &Target, connections: usize, seconds: u32) -> Result<Sample, String> {
    let url = format!("http://{}{}", target.address, target.path);
    let wrk = load::Wrk { connections, seconds, host: Some(&target.host), ..load::Wrk::default() };
    // wrk's script needs a place; the directory of temporary files is one for every caller.
    let scratch = tempfile::tempdir().map_err(|error| format!("temporary directory: {error}"))?;
    measure::observe(proxy, None, || wrk.run(&url, scratch.path()))
}

/// Writes a bench's figures to the file that was asked for.
pub fn write_json(context: &Context, report: &Value) -> Result<(), String> {
    let Some(path) = &context.json else { return Ok(()) };
    std::fs::write(path, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
}
