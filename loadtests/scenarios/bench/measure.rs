//! Rounds of one load over several proxies, and what may be said of them: medians, ratios of rounds that lie side by
//! side, what was saturated, and whether the figures can be trusted.

use fieldgate_loadtests::load::paced::Percentiles;
use fieldgate_loadtests::rig::{Process, cpu};
use serde::{Deserialize, Serialize};

use super::cases::Case;
use super::load::{Counted, Load};
use super::peers::{self, Subject};
use super::report::{Row, Table};
use super::setup::Setup;
use super::{Bench, LOAD_CPU, PROXY_CPU};

/// Who used this much of a core had it for themselves: they were the limit.
const SATURATED: f64 = 0.95;
/// Samples of one proxy that differ by more, against their median, say little.
pub const UNSTEADY: f64 = 0.3;
/// Others that used more of a core than this have changed what was measured. Below it is what ticks cannot tell.
const DISTURBED: f64 = 0.15;

/// One run of a generator against one proxy.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// CPU microseconds of the proxy per request.
    pub micros: f64,
    /// Requests per second.
    pub per_second: f64,
    /// Milliseconds, where the generator tells.
    pub latency: Option<Percentiles>,
    /// How late the generator itself was, where it has a schedule.
    pub late: Option<Percentiles>,
    /// Share of its core that the proxy used.
    pub proxy_busy: f64,
    /// Share of their core that the generator and the backend used.
    pub load_busy: f64,
    /// The larger share of either core that somebody else used.
    pub disturbed: f64,
}

/// The median, by CPU, of some samples.
pub fn median(mut samples: Vec<Sample>) -> Sample {
    samples.sort_by(|a, b| a.micros.total_cmp(&b.micros));
    samples[samples.len() / 2]
}

/// Runs a generator and sees what the proxy, the backend and everybody else used meanwhile.
pub fn observe(
    proxy: &Process,
    backend: Option<&Process>,
    load: impl FnOnce() -> Result<Counted, String>,
) -> Result<Sample, String> {
    let seconds = || -> Result<[f64; 4], String> {
        let backend = backend.map_or(Ok(0.0), Process::cpu_seconds)?;
        Ok([proxy.cpu_seconds()?, backend, cpu::of_core(PROXY_CPU)?, cpu::of_core(LOAD_CPU)?])
    };
    let before = seconds()?;
    let Counted { requests, per_second, latency, late, cpu, elapsed } = load()?;
    // What the generator was at work for: its start and its end are left out.
    let window = requests / per_second;
    let after = seconds()?;
    let [proxy, backend, proxy_core, load_core] = std::array::from_fn(|i| after[i] - before[i]);
    let loading = cpu + backend;
    let others = f64::max(proxy_core - proxy, load_core - loading);
    Ok(Sample {
        micros: proxy * 1e6 / requests,
        per_second,
        latency,
        late,
        proxy_busy: proxy / window,
        load_busy: loading / window,
        disturbed: others / elapsed,
    })
}

/// A proxy's samples, a round each.
pub struct Measured {
    /// The proxy.
    pub name: String,
    /// Its samples.
    pub samples: Vec<Sample>,
    /// Resident memory at its most, in MiB.
    pub memory_mib: f64,
}

impl Measured {
    /// The median of what `of` sees in each sample; nothing if it sees nothing in one.
    pub fn median(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        middle(self.samples.iter().map(of).collect::<Option<Vec<_>>>()?)
    }

    /// The median of the ratios to another's sample of the same round.
    pub fn ratio(&self, to: &Self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let pairs = self.samples.iter().zip(&to.samples);
        middle(pairs.map(|(mine, theirs)| Some(of(mine)? / of(theirs)?)).collect::<Option<Vec<_>>>()?)
    }

    /// Whether the rounds differ by at most this share of their median, and nobody else was at work in most of them.
    pub fn is_trusted(&self, of: impl Fn(&Sample) -> Option<f64>, share: f64) -> bool {
        let others = self.median(|sample| Some(sample.disturbed));
        self.is_steady(of, share) && others.is_none_or(|others| others <= DISTURBED)
    }

    /// Whether the rounds differ by at most this share of their median.
    pub fn is_steady(&self, of: impl Fn(&Sample) -> Option<f64>, share: f64) -> bool {
        let values: Vec<f64> = self.samples.iter().filter_map(of).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        middle(values).is_none_or(|middle| most - least <= middle * share)
    }

    /// What was busy all the time.
    pub fn limit(&self) -> &'static str {
        let is = |of: fn(&Sample) -> f64| self.median(|s| Some(of(s))).is_some_and(|busy| busy >= SATURATED);
        match (is(|sample| sample.proxy_busy), is(|sample| sample.load_busy)) {
            (true, true) => "both",
            (true, false) => "proxy",
            (false, true) => "load",
            (false, false) => "neither",
        }
    }
}

/// The peer that is least by what `of` sees. The first of them is the gateway, which is no peer, nor are floors.
pub fn best(all: &[Measured], of: impl Fn(&Sample) -> Option<f64>) -> Option<&Measured> {
    let peers = all.iter().skip(1).filter(|peer| !peers::is_floor(&peer.name));
    let seen = peers.filter_map(|peer| Some((peer.median(&of)?, peer)));
    seen.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, peer)| peer)
}

/// The peer of this name.
pub fn named<'a>(all: &'a [Measured], name: &str) -> Option<&'a Measured> {
    all.iter().skip(1).find(|peer| peer.name == name)
}

/// Runs `sample` on each subject, in so many rounds. Who is first changes with the round.
pub fn rounds<S>(
    bench: &Bench<'_>,
    subjects: &[Subject],
    mut sample: impl FnMut(&Subject) -> Result<S, String>,
) -> Result<Vec<Vec<S>>, String> {
    let mut samples: Vec<Vec<S>> = subjects.iter().map(|_| Vec::new()).collect();
    for round in 0..bench.context.rounds {
        for turn in 0..subjects.len() {
            let index = (round + turn) % subjects.len();
            let subject = &subjects[index];
            samples[index].push(sample(subject).map_err(|error| format!("{}: {error}", subject.name))?);
        }
    }
    Ok(samples)
}

/// Names samples by their subjects.
pub fn measured(subjects: &[Subject], samples: Vec<Vec<Sample>>) -> Result<Vec<Measured>, String> {
    let one = |(subject, samples): (&Subject, Vec<Sample>)| {
        let memory_mib = subject.process.peak_memory_mib()?;
        Ok(Measured { name: subject.name.clone(), samples, memory_mib })
    };
    subjects.iter().zip(samples).map(one).collect()
}

/// CPU per request under a load, and against another setup of the same proxy if there is one.
pub fn run(
    bench: &Bench<'_>,
    case: &Case,
    load: Load,
    setup: Setup,
    plain: Option<Setup>,
) -> Result<Table, String> {
    let mut subjects = bench.start_all(setup)?;
    let count = subjects.len();
    if let Some(plain) = plain {
        let able: Vec<String> = subjects.iter().map(|subject| subject.name.clone()).collect();
        subjects.extend(bench.start_all(plain)?.into_iter().filter(|subject| able.contains(&subject.name)));
    }
    // Each beside its other self, so that they meet the same moods.
    let order: Vec<usize> = (0..count).flat_map(|i| (i..subjects.len()).step_by(count)).collect();
    let mut slots: Vec<Option<Subject>> = subjects.into_iter().map(Some).collect();
    let subjects: Vec<Subject> = order.iter().filter_map(|i| slots[*i].take()).collect();
    let scratch = bench.stage.path();
    for subject in &subjects {
        let warm = load
            .check(subject.to, scratch)
            .and_then(|()| load.run(subject.to, load.warm_up_seconds(), scratch));
        warm.map_err(|error| format!("{}: {error}\n{}", subject.name, subject.process.log_tail()))?;
    }
    let backend = &bench.backend.process;
    let samples = rounds(bench, &subjects, |subject| {
        observe(&subject.process, Some(backend), || load.run(subject.to, bench.context.seconds, scratch))
    })?;
    let mut all = measured(&subjects, samples)?;
    let mut plains = Vec::new();
    if plain.is_some() {
        let mut turn = 0;
        (all, plains) = all.into_iter().partition(|_| {
            turn += 1;
            turn % 2 == 1
        });
    }
    Ok(table(case, &all, &plains))
}

fn table(case: &Case, all: &[Measured], plains: &[Measured]) -> Table {
    let micros = |sample: &Sample| Some(sample.micros);
    let (best, envoy) = (best(all, micros), named(all, "envoy"));
    let mut table = Table::new(&case.name, &case.about);
    for (index, one) in all.iter().enumerate() {
        let mut row = Row::new(&one.name);
        row.number("cpu_us", one.median(micros), one.is_trusted(micros, UNSTEADY));
        row.number("ratio_to_best_peer", best.and_then(|best| one.ratio(best, micros)), true);
        row.number("ratio_to_envoy", envoy.and_then(|envoy| one.ratio(envoy, micros)), true);
        let plain = plains.get(index);
        row.number("against_plain", plain.and_then(|plain| one.ratio(plain, micros)), true);
        row.shared(one);
        table.rows.push(row);
    }
    table.best_peer = best.map(|best| best.name.clone());
    table
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[half]),
        _ => Some(f64::midpoint(values[half - 1], values[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str, micros: &[f64]) -> Measured {
        let sample = |&micros| Sample { micros, proxy_busy: 1.0, ..Sample::default() };
        Measured { name: name.to_owned(), samples: micros.iter().map(sample).collect(), memory_mib: 0.0 }
    }

    fn micros(sample: &Sample) -> Option<f64> {
        Some(sample.micros)
    }

    #[test]
    fn ratios_are_of_rounds_side_by_side() {
        // In the second round the machine was half as fast for both.
        let (ours, theirs) = (proxy("a", &[8.0, 16.0, 9.0]), proxy("b", &[10.0, 20.0, 10.0]));
        assert_eq!(ours.ratio(&theirs, micros), Some(0.8));
        assert_eq!(ours.median(micros), Some(9.0));
        assert!(!ours.is_trusted(micros, UNSTEADY));
        assert!(proxy("c", &[9.0, 10.0, 11.0]).is_trusted(micros, UNSTEADY));
    }

    #[test]
    fn the_gateway_is_no_peer() {
        let all = [proxy("ours", &[1.0]), proxy("b", &[3.0]), proxy("c", &[2.0])];
        assert_eq!(best(&all, micros).map(|best| best.name.as_str()), Some("c"));
        assert!(named(&all, "ours").is_none());
        assert!(best(&all[..1], micros).is_none());
    }

    #[test]
    fn a_limit_is_what_was_busy() {
        let mut one = proxy("a", &[1.0]);
        assert_eq!(one.limit(), "proxy");
        one.samples[0].load_busy = 0.97;
        assert_eq!(one.limit(), "both");
        one.samples[0].proxy_busy = 0.9;
        assert_eq!(one.limit(), "load");
        one.samples[0].load_busy = 0.9;
        assert_eq!(one.limit(), "neither");
    }
}
