//! What a run came to: figures by case and proxy with the machine and the versions they hold for, as JSON, which can be
//! read again, and as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::measure::{Measured, Sample};
use crate::context::Context;

/// All figures there are, in the order of a table's columns. A table has those that any of its rows has.
const COLUMNS: [(&str, &str); 18] = [
    ("cpu_us", "CPU us per request"),
    ("ratio_to_best_peer", "to best peer"),
    ("ratio_to_envoy", "to Envoy"),
    ("against_plain", "against plain"),
    ("carries", "carries, one worker is 1"),
    ("requests_per_second", "requests/s"),
    ("alone_p99_ms", "p99 ms alone"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("p999_ms", "p99.9 ms"),
    ("p99_growth", "p99 against alone"),
    ("p99_to_best_peer", "p99 to best peer"),
    ("p99_to_envoy", "p99 to Envoy"),
    ("p999_to_best_peer", "p99.9 to best peer"),
    ("p999_to_envoy", "p99.9 to Envoy"),
    ("late_p999_ms", "p99.9 ms late"),
    ("memory_mib", "memory MiB"),
    ("limit", "limit"),
];

/// How the tables are to be read.
const LEGEND: &str = "CPU is user and system time of the proxy, from the operating system. Figures are medians of the \
rounds; ratios are medians of the ratios of rounds side by side, and less than 1 is less than the other. `~`: not to be \
trusted, because the rounds differ too much, or something else used the cores, or (latency at a fixed rate) half of it may be \
the generator's. Limit: what used 95 % of its core or more: the proxy, or generator and backend together (load). Late: \
how long after its moment the generator sent a request; that is part of the latency. Memory is the most that was \
resident in that case.";

/// A run.
#[derive(Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How it was asked for.
    pub command: Vec<String>,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// Seconds of each.
    pub seconds: u32,
    /// Of each proxy, as it says itself.
    pub versions: BTreeMap<String, String>,
    /// Peers that were not there.
    pub skipped: Vec<String>,
    /// What was measured.
    pub cases: Vec<Table>,
}

/// The machine that all figures are of.
#[derive(Default, Serialize, Deserialize)]
pub struct Machine {
    /// As its CPU calls itself.
    pub cpu: String,
    /// Cores that may be used.
    pub cores: usize,
    /// Linux's release.
    pub kernel: String,
}

/// A case's figures.
#[derive(Serialize, Deserialize)]
pub struct Table {
    /// The case.
    pub name: String,
    /// What is done in it.
    pub about: String,
    /// The peer that ratios to the best are of.
    pub best_peer: Option<String>,
    /// By proxy; the gateway is the first.
    pub rows: Vec<Row>,
}

/// A proxy's figures in a case.
#[derive(Serialize, Deserialize)]
pub struct Row {
    /// The proxy.
    pub proxy: String,
    /// By the keys of [`COLUMNS`]: numbers, and words.
    pub figures: BTreeMap<String, Value>,
    /// Keys of figures that are not to be trusted.
    pub doubtful: Vec<String>,
    /// What they are the medians of.
    pub rounds: Vec<Sample>,
}

impl Report {
    /// Without a case yet.
    pub fn new(context: &Context) -> Self {
        Self {
            machine: Machine::this(),
            command: std::env::args().collect(),
            rounds: context.rounds,
            seconds: context.seconds,
            versions: BTreeMap::new(),
            skipped: Vec::new(),
            cases: Vec::new(),
        }
    }

    /// Reads what earlier runs wrote, as one. A case of a later file takes the place of an earlier file's.
    pub fn read(files: &[PathBuf]) -> Result<Self, String> {
        let mut whole: Option<Self> = None;
        for path in files {
            let at = |error: String| format!("{}: {error}", path.display());
            let text = std::fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
            let report: Self = serde_json::from_str(&text).map_err(|error| at(error.to_string()))?;
            match &mut whole {
                None => whole = Some(report),
                Some(whole) => whole.add(report),
            }
        }
        let mut whole = whole.ok_or("which reports? --from FILE,...")?;
        let order: Vec<String> = super::cases::all().into_iter().map(|case| case.name).collect();
        let place = |name: &String| order.iter().position(|known| known == name).unwrap_or(usize::MAX);
        whole.cases.sort_by_key(|case| place(&case.name));
        Ok(whole)
    }

    fn add(&mut self, other: Self) {
        self.versions.extend(other.versions);
        self.skipped.extend(other.skipped);
        self.skipped.sort();
        self.skipped.dedup();
        for case in other.cases {
            self.cases.retain(|known| known.name != case.name);
            self.cases.push(case);
        }
    }

    /// As a page of tables.
    pub fn markdown(&self) -> String {
        let Machine { cpu, cores, kernel } = &self.machine;
        let mut text = format!("Machine: {cpu}, {cores} cores, Linux {kernel}.\n\n");
        for (proxy, version) in &self.versions {
            let _ = writeln!(text, "* {proxy}: {version}");
        }
        for line in &self.skipped {
            let _ = writeln!(text, "* {line}");
        }
        let command = self.command.iter().map(|word| word.rsplit('/').next().unwrap_or(word));
        let command: Vec<&str> = command.collect();
        let _ = writeln!(text, "\n`{}`: {} rounds of {} s.\n", command.join(" "), self.rounds, self.seconds);
        for case in &self.cases {
            case.markdown(&mut text);
        }
        text + LEGEND + "\n"
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: model.map_or("unknown CPU", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Table {
    /// Without a row yet.
    pub fn new(name: &str, about: &str) -> Self {
        Self { name: name.to_owned(), about: about.to_owned(), best_peer: None, rows: Vec::new() }
    }

    fn markdown(&self, text: &mut String) {
        let _ = writeln!(text, "**{}**: {}\n", self.name, self.about);
        let has = |key: &str| self.rows.iter().any(|row| row.figures.contains_key(key));
        let columns: Vec<_> = COLUMNS.iter().filter(|(key, _)| has(key)).collect();
        let titles: Vec<&str> = columns.iter().map(|(_, title)| *title).collect();
        let _ = writeln!(text, "| proxy | {} |", titles.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(columns.len()));
        for row in &self.rows {
            let cells: Vec<String> = columns.iter().map(|(key, _)| row.cell(key)).collect();
            let _ = writeln!(text, "| {} | {} |", row.proxy, cells.join(" | "));
        }
        text.push('\n');
    }
}

impl Row {
    /// Without a figure yet.
    pub fn new(proxy: &str) -> Self {
        let (figures, doubtful, rounds) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { proxy: proxy.to_owned(), figures, doubtful, rounds }
    }

    /// Sets a figure, if there is one.
    pub fn number(&mut self, key: &str, value: Option<f64>, trusted: bool) {
        self.remove(key);
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.figures.insert(key.to_owned(), value.into());
            if !trusted {
                self.doubtful.push(key.to_owned());
            }
        }
    }

    /// Takes a figure out that means nothing here.
    pub fn remove(&mut self, key: &str) {
        self.figures.remove(key);
        self.doubtful.retain(|known| known != key);
    }

    /// Sets what every measurement has.
    pub fn shared(&mut self, measured: &Measured) {
        self.number("requests_per_second", measured.median(|sample| Some(sample.per_second)), true);
        self.number("p50_ms", measured.median(|sample| sample.latency.map(|latency| latency.p50)), true);
        self.number("p99_ms", measured.median(|sample| sample.latency.map(|latency| latency.p99)), true);
        self.number("p999_ms", measured.median(|sample| sample.latency.map(|latency| latency.p999)), true);
        self.number("memory_mib", Some(measured.memory_mib), true);
        self.figures.insert("limit".to_owned(), measured.limit().into());
        self.rounds.clone_from(&measured.samples);
    }

    /// A number, if it is one.
    pub fn value(&self, key: &str) -> Option<f64> {
        self.figures.get(key)?.as_f64()
    }

    fn cell(&self, key: &str) -> String {
        let mark = if self.doubtful.iter().any(|known| known == key) { "~" } else { "" };
        match self.figures.get(key) {
            None => "-".to_owned(),
            Some(Value::String(word)) => word.clone(),
            Some(value) => mark.to_owned() + &number(value.as_f64().unwrap_or(f64::NAN)),
        }
    }
}

/// To about three digits.
pub fn number(value: f64) -> String {
    match value {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(case: &str, cpu: f64, trusted: bool) -> Report {
        let mut row = Row::new("fieldgate");
        row.number("cpu_us", Some(cpu), trusted);
        let table = Table { rows: vec![row], ..Table::new(case, "a job") };
        Report {
            machine: Machine::default(),
            command: vec!["/usr/bin/bench".to_owned()],
            rounds: 3,
            seconds: 2,
            versions: BTreeMap::new(),
            skipped: Vec::new(),
            cases: vec![table],
        }
    }

    #[test]
    fn a_table_has_the_columns_that_a_row_has_and_marks_what_is_doubtful() {
        let text = report("up", 12.345, false).markdown();
        assert!(text.contains("| proxy | CPU us per request |\n|---|---|\n| fieldgate | ~12.35 |"), "{text}");
        assert!(text.contains("`bench`: 3 rounds of 2 s."), "{text}");
    }

    #[test]
    fn reports_are_read_as_one() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, report: &Report| {
            let path = directory.path().join(name);
            std::fs::write(&path, serde_json::to_string(report).unwrap()).unwrap();
            path
        };
        let files = [
            write("a", &report("up", 1.0, true)),
            write("b", &report("h1-64", 2.0, true)),
            write("c", &report("up", 3.0, true)),
        ];
        let whole = Report::read(&files).unwrap();
        let cases: Vec<_> =
            whole.cases.iter().map(|case| (case.name.as_str(), case.rows[0].value("cpu_us"))).collect();
        assert_eq!(cases, [("h1-64", Some(2.0)), ("up", Some(3.0))]);
    }
}
