//! Prometheus' text format, for what is written at the moment of a scrape.

use std::fmt::Write as _;

use super::series::Histogram;

/// One family of series: HELP, TYPE and samples.
pub struct Family<'a> {
    out: &'a mut String,
    name: &'a str,
}

impl<'a> Family<'a> {
    /// Begins a family. `kind` is `gauge`, `counter` or `histogram`.
    pub fn begin(out: &'a mut String, name: &'a str, kind: &str, help: &str) -> Self {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Self { out, name }
    }

    /// Adds a sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let text = label_text(labels.iter().copied());
        let braces = if text.is_empty() { text } else { format!("{{{text}}}") };
        let _ = writeln!(self.out, "{}{braces} {value}", self.name);
    }

    /// Adds all samples of a histogram. `labels` is already in text form, without braces.
    pub fn histogram(&mut self, labels: &str, histogram: &Histogram) {
        let (rows, count, sum) = histogram.cumulative();
        let comma = if labels.is_empty() { "" } else { "," };
        let name = self.name;
        for (bound, below) in rows {
            let _ = writeln!(self.out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(self.out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.out, "{name}_sum{braces} {sum}\n{name}_count{braces} {count}");
    }
}

/// `a="1",b="2"`, escaped.
pub fn label_text<'l>(labels: impl IntoIterator<Item = (&'l str, &'l str)>) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::series::LocalHistogram;

    #[test]
    fn samples_are_escaped() {
        let mut out = String::new();
        Family::begin(&mut out, "a_b", "gauge", "Things.").sample(&[("x", "q\"\\\n")], 1.5);
        assert_eq!(out, "# HELP a_b Things.\n# TYPE a_b gauge\na_b{x=\"q\\\"\\\\\\n\"} 1.5\n");
    }

    #[test]
    fn a_histogram_is_cumulative() {
        let shared = Histogram::new(&[1.0, 2.5], 1.0);
        let local = LocalHistogram::default();
        local.record(&shared, 1);
        local.record(&shared, 7);
        local.flush(&shared);
        let mut out = String::new();
        Family::begin(&mut out, "h", "histogram", "H.").histogram("k=\"v\"", &shared);
        let expected = "# HELP h H.\n# TYPE h histogram\n\
            h_bucket{k=\"v\",le=\"1\"} 1\nh_bucket{k=\"v\",le=\"2.5\"} 1\nh_bucket{k=\"v\",le=\"+Inf\"} 2\n\
            h_sum{k=\"v\"} 8\nh_count{k=\"v\"} 2\n";
        assert_eq!(out, expected);
    }
}
