//! `fieldgate top`

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::widgets::Paragraph;
use serde_json::Value;

use super::client::{get, get_json};
use super::status::{list, percent, pool_notes, pool_rows, split_rows, string, summary};
use super::{DEFAULT_ADMIN, duration, table};

/// Show a running gateway live: request rates, errors, latency, splits, pools.
#[derive(Args)]
#[command(after_help = "q or Ctrl-C ends it.

Examples:
  fieldgate top
  fieldgate top --every 500ms --admin 10.0.0.5:15000
  fieldgate top --once             one page, for scripts; rates are over one interval")]
pub(super) struct Top {
    /// The gateway's admin address.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// How often it is asked.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    every: Duration,
    /// Print one page and end.
    #[arg(long)]
    once: bool,
}

/// What was read at one moment.
struct Sample {
    at: Instant,
    status: Value,
    splits: Value,
    pools: Value,
    services: BTreeMap<String, Service>,
}

/// Counts of one destination since the gateway started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Service {
    requests: f64,
    errors: f64,
    /// Upper bound in milliseconds, and requests at or below it.
    buckets: BTreeMap<u64, f64>,
}

impl Top {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let first = self.sample()?;
        if self.once {
            std::thread::sleep(self.every);
            print!("{}", page(&first, &self.sample()?));
            return Ok(ExitCode::SUCCESS);
        }
        let mut terminal =
            ratatui::try_init().map_err(|error| format!("cannot use the terminal: {error}"))?;
        let result = self.live(&mut terminal, first);
        ratatui::restore();
        result.map(|()| ExitCode::SUCCESS)
    }

    fn live(&self, terminal: &mut ratatui::DefaultTerminal, mut before: Sample) -> Result<(), String> {
        let mut text = page(&before, &before);
        loop {
            terminal
                .draw(|frame| frame.render_widget(Paragraph::new(text.as_str()), frame.area()))
                .map_err(|error| format!("cannot draw: {error}"))?;
            if asked_to_end(before.at + self.every)? {
                return Ok(());
            }
            match self.sample() {
                Ok(sample) => {
                    text = page(&before, &sample);
                    before = sample;
                }
                Err(message) => {
                    before.at = Instant::now();
                    text = format!("{message}\n(asking again; q ends)");
                }
            }
        }
    }

    fn sample(&self) -> Result<Sample, String> {
        let api = |what: &str| get_json(self.admin, &format!("/api/v1/{what}"));
        Ok(Sample {
            at: Instant::now(),
            status: api("status")?,
            splits: api("splits")?,
            pools: api("pools")?,
            services: services(&get(self.admin, "/metrics")?),
        })
    }
}

/// Waits for the next turn; whether a key asked to end.
fn asked_to_end(until: Instant) -> Result<bool, String> {
    let failed = |error: std::io::Error| format!("cannot read the terminal: {error}");
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !event::poll(left).map_err(failed)? {
            return Ok(false);
        }
        if let Event::Key(key) = event::read().map_err(failed)? {
            let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
}

fn page(before: &Sample, now: &Sample) -> String {
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let mut out = summary(&now.status);
    let rejected = now.status["rejected"].as_array().map_or(0, Vec::len);
    let problems = now.status["diagnostics"].as_array().map_or(0, Vec::len) + rejected;
    if problems > 0 {
        out.push_str(&format!("{problems} problems in the configuration; `fieldgate status` shows them\n"));
    }
    for rows in [service_rows(before, now, seconds), recent_splits(before, now), pool_rows(&now.pools)] {
        if rows.len() > 1 {
            out.push('\n');
            out.push_str(&table(&rows));
        }
    }
    out.push_str(&pool_notes(&now.pools));
    out
}

fn service_rows(before: &Sample, now: &Sample, seconds: f64) -> Vec<Vec<String>> {
    let titles = ["DESTINATION", "REQ/S", "ERR/S", "P50 MS", "P99 MS", "REQUESTS", "ERRORS"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for (name, service) in &now.services {
        let none = Service::default();
        let old = before.services.get(name).unwrap_or(&none);
        let rate = |now: f64, old: f64| if seconds > 0.0 { (now - old).max(0.0) / seconds } else { 0.0 };
        let window = window(&service.buckets, &old.buckets);
        rows.push(vec![
            name.clone(),
            format!("{:.0}", rate(service.requests, old.requests)),
            format!("{:.0}", rate(service.errors, old.errors)),
            quantile(&window, 0.5),
            quantile(&window, 0.99),
            service.requests.to_string(),
            service.errors.to_string(),
        ]);
    }
    rows
}

/// The splits with a last column: what was achieved between the two samples, which is what follows a change of weights.
fn recent_splits(before: &Sample, now: &Sample) -> Vec<Vec<String>> {
    let old: BTreeMap<_, _> =
        backends(&before.splits).map(|(rule, b)| ((rule, string(&b["backend"])), b)).collect();
    let new: Vec<_> = backends(&now.splits)
        .map(|(rule, b)| {
            let since = old.get(&(rule, string(&b["backend"]))).map_or(0, |b| requests(b));
            // Fewer than before: the weights were changed between the samples, and all of these came since.
            (rule, requests(b).checked_sub(since).unwrap_or(requests(b)))
        })
        .collect();
    let mut rows = split_rows(&now.splits);
    let recent = new.iter().map(|(rule, count)| {
        let total: u64 = new.iter().filter(|(other, _)| other == rule).map(|(_, count)| count).sum();
        if total == 0 { "-".to_owned() } else { percent(*count as f64 / total as f64) }
    });
    for (row, cell) in rows.iter_mut().zip(std::iter::once("NOW".to_owned()).chain(recent)) {
        row.push(cell);
    }
    rows
}

fn backends(splits: &Value) -> impl Iterator<Item = (&str, &Value)> {
    list(splits).flat_map(|rule| list(&rule["backends"]).map(|b| (string(&rule["rule"]), b)))
}

fn requests(backend: &Value) -> u64 {
    backend["requests"].as_u64().unwrap_or(0)
}

/// The buckets of what came between two samples.
fn window(now: &BTreeMap<u64, f64>, old: &BTreeMap<u64, f64>) -> BTreeMap<u64, f64> {
    now.iter().map(|(bound, count)| (*bound, count - old.get(bound).unwrap_or(&0.0))).collect()
}

/// The quantile by linear interpolation in its bucket, as Prometheus' `histogram_quantile` does it.
fn quantile(buckets: &BTreeMap<u64, f64>, q: f64) -> String {
    let total = buckets.values().next_back().copied().unwrap_or(0.0);
    if total <= 0.0 {
        return "-".to_owned();
    }
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        let high = f64::from_bits(*bound);
        if *count >= q * total {
            if high.is_infinite() {
                return format!(">{low}");
            }
            let share = if *count > below { (q * total - below) / (count - below) } else { 1.0 };
            return format!("{:.1}", low + (high - low) * share);
        }
        (low, below) = (high, *count);
    }
    "-".to_owned()
}

/// Sums up Istio's metrics by destination.
pub(super) fn services(metrics: &str) -> BTreeMap<String, Service> {
    let mut services: BTreeMap<String, Service> = BTreeMap::new();
    for line in metrics.lines() {
        let Some((name, labels, value)) = sample_of(line) else { continue };
        if name != "istio_requests_total" && name != "istio_request_duration_milliseconds_bucket" {
            continue;
        }
        let destination = match label(labels, "destination_service") {
            Some("unknown") | None => "(none)",
            Some(name) => name,
        };
        let service = services.entry(destination.to_owned()).or_default();
        if name == "istio_requests_total" {
            service.requests += value;
            if label(labels, "response_code").is_some_and(|code| code.starts_with('5') || code == "0") {
                service.errors += value;
            }
        } else if let Some(le) = label(labels, "le").and_then(|le| le.parse::<f64>().ok()) {
            // Bits of non-negative floats sort as the floats do; infinity is the last.
            *service.buckets.entry(le.to_bits()).or_default() += value;
        }
    }
    services
}

/// Name, text of the labels, and value of a line.
fn sample_of(line: &str) -> Option<(&str, &str, f64)> {
    let (name, rest) = line.split_once('{')?;
    let (labels, value) = rest.rsplit_once("} ")?;
    Some((name, labels, value.parse().ok()?))
}

/// The value of a label. The gateway's values of the labels asked for here hold no quotes.
fn label<'l>(labels: &'l str, name: &str) -> Option<&'l str> {
    labels.split("\",").find_map(|pair| {
        let (key, value) = pair.split_once("=\"")?;
        (key == name).then(|| value.trim_end_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = "\
# HELP istio_requests_total R.
istio_requests_total{destination_service=\"a\",response_code=\"200\"} 10
istio_requests_total{destination_service=\"a\",response_code=\"503\"} 2
istio_requests_total{destination_service=\"unknown\",response_code=\"404\"} 1
istio_request_duration_milliseconds_bucket{destination_service=\"a\",le=\"1\"} 6
istio_request_duration_milliseconds_bucket{destination_service=\"a\",le=\"5\"} 11
istio_request_duration_milliseconds_bucket{destination_service=\"a\",le=\"+Inf\"} 12
";

    #[test]
    fn metrics_are_summed_up_by_destination() {
        let services = services(METRICS);
        let a = &services["a"];
        assert_eq!((a.requests, a.errors), (12.0, 2.0));
        assert_eq!(services["(none)"].requests, 1.0);
        assert_eq!(quantile(&a.buckets, 0.5), "1.0");
        assert_eq!(quantile(&a.buckets, 0.75), "3.4");
        assert_eq!(quantile(&a.buckets, 0.99), ">5");
        assert_eq!(quantile(&BTreeMap::new(), 0.5), "-");
    }

    #[test]
    fn rates_are_of_the_interval() {
        let sample = |at, services| Sample {
            at,
            status: Value::Null,
            splits: Value::Null,
            pools: Value::Null,
            services,
        };
        let now = Instant::now();
        let later = sample(now + Duration::from_secs(2), services(METRICS));
        let page = page(&sample(now, BTreeMap::new()), &later);
        let row = page.lines().find(|line| line.starts_with("a ")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["a", "6", "1", "1.0", ">5", "12", "2"]);
    }

    #[test]
    fn the_split_of_the_interval_stands_beside_that_of_the_process() {
        let split = |a: u64, b: u64| {
            let backend = |name: &str, requests: u64| serde_json::json!({"backend": name, "weight": 1, "desired": 0.5, "achieved": 0.5, "requests": requests});
            serde_json::json!([{"rule": "r", "backends": [backend("a", a), backend("b", b)]}])
        };
        let sample = |splits| Sample {
            at: Instant::now(),
            status: Value::Null,
            splits,
            pools: Value::Null,
            services: BTreeMap::new(),
        };
        let rows = recent_splits(&sample(split(100, 0)), &sample(split(101, 3)));
        let last: Vec<_> = rows.iter().filter_map(|row| row.last()).collect();
        assert_eq!(last, ["NOW", "25.00 %", "75.00 %"]);
    }
}
