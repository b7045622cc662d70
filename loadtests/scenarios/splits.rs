//! Weights are exact over time: the count of each backend is off by no more than one request per worker.

use fieldgate_loadtests::load::{Plan, Tally};
use fieldgate_loadtests::rig::config;

use crate::context::{Context, Figures, Outcome, WORKERS, ensure, ensure_flawless};

/// The third backend is a Service, the others are Pools.
const SPLITS: [&[(&str, u32)]; 3] = [
    &[("one", 90), ("two", 10)],
    &[("one", 1), ("two", 99)],
    &[("one", 33), ("two", 33), ("service/three", 34)],
];

pub fn run(context: &Context) -> Outcome {
    let requests: u64 = context.count(100_000, 10_000);
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _pools = stage.pools(&["one", "two"])?;
    let three = stage.backend("three")?;
    stage.config.write("service", &config::service("three", three.address))?;
    stage.config.write("route", &config::route("shop", &[("two", 1)]))?;
    let gateway = stage.gateway(&context.options())?;
    let mut figures = Figures::default();
    for split in SPLITS {
        for http2 in [false, true] {
            // The sequence of a worker starts with its rule; an unchanged rule would go on where it stood.
            gateway.change(|| stage.config.write("route", &config::route("shop", &[("one", 1)])))?;
            gateway.change(|| stage.config.write("route", &config::route("shop", split)))?;
            let plan = Plan { requests: Some(requests), ..Plan::new(address) };
            let plan = if http2 { plan.http2(8) } else { plan };
            let tally = plan.run()?;
            let version = if http2 { "h2" } else { "h1" };
            figures.add(format!("{version}: {}", judge(split, requests, &tally)?));
        }
    }
    Ok(figures)
}

fn judge(split: &[(&str, u32)], requests: u64, tally: &Tally) -> Result<String, String> {
    ensure_flawless("split", tally)?;
    let total: u32 = split.iter().map(|(_, weight)| weight).sum();
    let counts = tally.backends();
    let mut parts = Vec::new();
    for (name, weight) in split {
        let name = name.trim_start_matches("service/");
        let expected = requests as f64 * f64::from(*weight) / f64::from(total);
        let count = counts.get(name).copied().unwrap_or_default();
        ensure((count as f64 - expected).abs() <= WORKERS as f64, || {
            format!("{split:?}: {name} got {count} of {requests}, expected {expected} within {WORKERS}")
        })?;
        parts.push(format!("{name} {count} (wanted {expected:.0})"));
    }
    Ok(parts.join(", "))
}
