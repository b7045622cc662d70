//! CPU per proxied request, gateway against peers: one worker each on one core, generator and backend on the other,
//! rounds interleaved so that a machine's moods meet all alike. Ratios are the result; absolutes are the machine's.

mod cases;
mod load;
mod peers;

use std::net::SocketAddr;
use std::time::Instant;

use fieldgate_loadtests::rig::{Backend, GatewayOptions, Process, ports};
use serde_json::{Value, json};

use crate::context::{Context, Figures, Outcome, Stage};
use cases::Case;
use load::Counted;
use peers::{Certificate, Subject};

const PROXY_CPU: usize = 0;
const LOAD_CPU: usize = 1;
const WARM_UP_SECONDS: u32 = 1;
/// A proxy that used this much of its core was the limit; otherwise generator or backend were.
const SATURATED: f64 = 0.95;
/// Samples of one proxy that differ by more, against their median, say little.
const UNSTEADY: f64 = 0.3;

/// The small HTTP/1.1 job, at the numbers of connections that were asked for.
pub fn small(context: &Context) -> Outcome {
    compare(context, &cases::small(&context.connections))
}

/// All cases, or those that were asked for.
pub fn all(context: &Context) -> Outcome {
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

fn compare(context: &Context, cases: &[Case]) -> Outcome {
    let stage = context.stage()?;
    let backend = measured_backend(&stage)?;
    let certificate = Certificate::new(stage.path())?;
    let mut subjects = vec![peers::fieldgate(context, &stage, backend.address, &certificate)?];
    for peer in &context.peers {
        subjects.push(peers::start(peer, stage.path(), backend.address, &certificate)?);
    }
    let mut figures = Figures::default();
    for subject in &subjects {
        figures.add(format!("{}: {}", subject.name, subject.version));
    }
    let mut report = Vec::new();
    for case in cases {
        let rows =
            measure(context, &stage, &subjects, case).map_err(|error| format!("{}: {error}", case.name))?;
        table(&mut figures, case, &rows);
        report.extend(rows.iter().map(|row| row.json(&case.name, &rows)));
    }
    figures.add("");
    figures.add(format!(
        "Medians of {} rounds of {} s. Ratio: CPU per request against the best peer. ~: the rounds differ by more than \
         {:.0} %. Limit: what was busy, the proxy or the generator and the backend beside it.",
        context.rounds,
        context.seconds,
        UNSTEADY * 100.0
    ));
    write_json(context, &Value::Array(report))?;
    Ok(figures)
}

/// Options for a gateway that is measured: one worker, pinned.
pub fn measured_options(context: &Context) -> GatewayOptions {
    GatewayOptions { workers: 1, cpu: Some(PROXY_CPU), ..context.options() }
}

/// Starts a backend beside the generator.
pub fn measured_backend(stage: &Stage) -> Result<Backend, String> {
    Backend::start_at("bench", ports::free(), stage.path(), Some(LOAD_CPU))
}

/// CPU and throughput of a proxy under one run of the generator.
#[derive(Clone, Copy)]
pub struct Sample {
    /// CPU microseconds of the proxy per request.
    pub micros: f64,
    /// Requests per second.
    pub per_second: f64,
    /// Share of a core that the proxy used.
    busy: f64,
    p50: Option<f64>,
    p99: Option<f64>,
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
    let arguments = [
        format!("-c{connections}"),
        format!("-d{seconds}s"),
        // wrk adds its own Host unless it is given one in just this spelling.
        "-H".to_owned(),
        format!("Host: {}", target.host),
    ];
    observe(proxy, || load::wrk(&arguments, &url))
}

/// The median, by CPU, of some samples.
pub fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    samples[samples.len() / 2]
}

/// Writes a bench's figures to the file that was asked for.
pub fn write_json(context: &Context, report: &Value) -> Result<(), String> {
    let Some(path) = &context.json else { return Ok(()) };
    std::fs::write(path, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", path.display()))
}

fn observe(proxy: &Process, load: impl FnOnce() -> Result<Counted, String>) -> Result<Sample, String> {
    let (before, started) = (proxy.cpu_seconds()?, Instant::now());
    let Counted { requests, per_second, p50, p99 } = load()?;
    let used = proxy.cpu_seconds()? - before;
    let busy = used / started.elapsed().as_secs_f64();
    Ok(Sample { micros: used * 1e6 / requests, per_second, busy, p50, p99 })
}

struct Row {
    name: String,
    median: Sample,
    steady: bool,
    memory_mib: f64,
}

fn measure(context: &Context, stage: &Stage, subjects: &[Subject], case: &Case) -> Result<Vec<Row>, String> {
    let run = |subject: &Subject, seconds| {
        observe(&subject.process, || case.load.run(subject.to, seconds, stage.path()))
            .map_err(|error| format!("{}: {error}", subject.name))
    };
    for subject in subjects {
        run(subject, WARM_UP_SECONDS)?;
    }
    let mut samples: Vec<Vec<Sample>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..context.rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push(run(subject, context.seconds)?);
        }
    }
    let row = |(subject, samples): (&Subject, Vec<Sample>)| {
        let least = samples.iter().map(|s| s.micros).fold(f64::INFINITY, f64::min);
        let most = samples.iter().map(|s| s.micros).fold(0.0, f64::max);
        let median = median(samples);
        let steady = most - least <= median.micros * UNSTEADY;
        Ok(Row { name: subject.name.clone(), median, steady, memory_mib: subject.process.memory_mib()? })
    };
    subjects.iter().zip(samples).map(row).collect()
}

fn table(figures: &mut Figures, case: &Case, rows: &[Row]) {
    figures.add("");
    figures.add(format!("**{}** ({})", case.about, case.name));
    figures.add("");
    figures.add("| proxy | CPU us per request | ratio | requests/s | p50 ms | p99 ms | memory MiB | limit |");
    figures.add("|---|---|---|---|---|---|---|---|");
    let cell = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    for row in rows {
        let Sample { micros, per_second, busy, p50, p99 } = row.median;
        figures.add(format!(
            "| {} | {}{micros:.2} | {} | {per_second:.0} | {} | {} | {:.0} | {} |",
            row.name,
            if row.steady { "" } else { "~" },
            cell(row.ratio(rows)),
            cell(p50),
            cell(p99),
            row.memory_mib,
            if busy >= SATURATED { "proxy" } else { "load" },
        ));
    }
}

impl Row {
    /// CPU per request against the best peer; nothing if there is none. The first row is the gateway's own.
    fn ratio(&self, rows: &[Row]) -> Option<f64> {
        let best = rows.iter().skip(1).map(|row| row.median.micros).fold(f64::INFINITY, f64::min);
        best.is_finite().then(|| self.median.micros / best)
    }

    fn json(&self, case: &str, rows: &[Row]) -> Value {
        let Sample { micros, per_second, busy, p50, p99 } = self.median;
        json!({
            "case": case, "proxy": self.name, "cpu_us_per_request": micros, "ratio_to_best_peer": self.ratio(rows),
            "requests_per_second": per_second, "p50_ms": p50, "p99_ms": p99, "memory_mib": self.memory_mib,
            "proxy_busy": busy, "steady": self.steady,
        })
    }
}
