//! Bar charts of a report, as SVG that a browser shows on a light page. No figure is made here, only drawn.

use std::fmt::Write as _;
use std::path::Path;

use super::report::{Report, Row, Table, number};

const WIDTH: f64 = 720.0;
const MARGIN: f64 = 24.0;
const BAR: f64 = 20.0;
const STEP: f64 = 28.0;
const HEAD: f64 = 56.0;
/// Room for names at the left and for values at the right.
const NAMES: f64 = 150.0;
const VALUES: f64 = 90.0;
/// Room for the axis below.
const FOOT: f64 = 44.0;
/// Ticks of an axis, at the least.
const TICKS: f64 = 4.0;

const OURS: &str = "#0b6bcb";
/// Ours, where it is no better than the best peer.
const BEHIND: &str = "#d9822b";
const THEIRS: &str = "#9fb0c0";
/// p50, p99, p99.9, for ours and for others.
const SHADES: [(&str, &str); 3] = [("#8cc4f5", "#d7dee5"), ("#3d92e0", "#b3c0cc"), (OURS, "#7c8e9f")];
const PERCENTILES: [(&str, &str); 3] = [("p50_ms", "p50"), ("p99_ms", "p99"), ("p999_ms", "p99.9")];

/// Writes `cpu-CASE.svg` or `latency-CASE.svg` for each case, and `ratios.svg` over all of them.
pub fn write(report: &Report, directory: &Path) -> Result<(), String> {
    std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let save = |name: String, chart: Chart| {
        let path = directory.join(name);
        std::fs::write(&path, chart.svg()).map_err(|error| format!("{}: {error}", path.display()))
    };
    for case in &report.cases {
        if is_latency(case) {
            save(format!("latency-{}.svg", case.name), latency(case))?;
        } else {
            save(format!("cpu-{}.svg", case.name), cpu(case))?;
        }
    }
    let ratios = ratios(report);
    if ratios.bars.is_empty() { Ok(()) } else { save("ratios.svg".to_owned(), ratios) }
}

struct Chart {
    title: String,
    subtitle: String,
    /// What the axis counts.
    unit: &'static str,
    bars: Vec<Bar>,
    /// A value that a line is drawn at.
    line: Option<f64>,
}

struct Bar {
    name: String,
    value: f64,
    label: String,
    colour: &'static str,
    ours: bool,
    /// Belongs to the bar above it.
    joined: bool,
}

fn is_latency(case: &Table) -> bool {
    case.rows.iter().any(|row| row.value("late_p999_ms").is_some())
}

fn cpu(case: &Table) -> Chart {
    let bars = case.rows.iter().filter_map(|row| {
        let value = row.value("cpu_us")?;
        let ours = is_ours(row);
        let label = marked(row, "cpu_us", value);
        let colour = if ours { OURS } else { THEIRS };
        Some(Bar { name: row.proxy.clone(), value, label, colour, ours, joined: false })
    });
    Chart {
        title: format!("{}: CPU per request", case.name),
        subtitle: case.about.clone(),
        unit: "CPU microseconds of the proxy per request, less is better",
        bars: bars.collect(),
        line: None,
    }
}

fn latency(case: &Table) -> Chart {
    let mut bars = Vec::new();
    for row in &case.rows {
        let ours = is_ours(row);
        for (index, (key, name)) in PERCENTILES.iter().enumerate() {
            let Some(value) = row.value(key) else { continue };
            let (mine, other) = SHADES[index];
            let joined = index > 0;
            bars.push(Bar {
                name: if joined { (*name).to_owned() } else { format!("{}  {name}", row.proxy) },
                value,
                label: marked(row, key, value),
                colour: if ours { mine } else { other },
                ours,
                joined,
            });
        }
    }
    Chart {
        title: format!("{}: latency", case.name),
        subtitle: case.about.clone(),
        unit: "milliseconds from the moment that a request was due, less is better",
        bars,
        line: None,
    }
}

fn ratios(report: &Report) -> Chart {
    let bars = report.cases.iter().filter_map(|case| {
        let row = case.rows.first()?;
        let value = row.value("ratio_to_best_peer")?;
        let peer = case.best_peer.as_deref().unwrap_or_default();
        let label = format!("{value:.2}  {peer}");
        let colour = if value <= 1.0 { OURS } else { BEHIND };
        Some(Bar { name: case.name.clone(), value, label, colour, ours: false, joined: false })
    });
    Chart {
        title: "Fieldgate against the best peer".to_owned(),
        subtitle: "CPU per request, ours divided by that of the peer that used least, which is named"
            .to_owned(),
        unit: "ratio, less is better; 1 is as good as the best peer",
        bars: bars.collect(),
        line: Some(1.0),
    }
}

fn is_ours(row: &Row) -> bool {
    row.proxy.starts_with("fieldgate")
}

fn marked(row: &Row, key: &str, value: f64) -> String {
    let mark = if row.doubtful.iter().any(|known| known == key) { "~" } else { "" };
    mark.to_owned() + &number(value)
}

impl Chart {
    fn svg(&self) -> String {
        let subtitle = wrapped(&self.subtitle, 100);
        let top = MARGIN + HEAD + 16.0 * (subtitle.len().max(1) - 1) as f64;
        let (bars, height_of_bars) = self.placed(top);
        let bottom = top + height_of_bars;
        let height = bottom + FOOT;
        let left = MARGIN + NAMES;
        let room = WIDTH - left - VALUES - MARGIN;
        let most = self.bars.iter().map(|bar| bar.value).chain(self.line).fold(0.0, f64::max);
        let tick = tick(most);
        // The axis ends with the tick above the longest bar.
        let end = (most / tick).ceil().max(1.0) * tick;
        let x = |value: f64| left + room * value / end;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" font-family=\"system-ui, 'Helvetica Neue', Arial, sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        let title = escaped(&self.title);
        let _ = writeln!(svg, "<title>{title}</title>");
        text(&mut svg, MARGIN, MARGIN + 14.0, "start", 17, "#1c2733", true, &self.title);
        for (row, line) in subtitle.iter().enumerate() {
            text(&mut svg, MARGIN, MARGIN + 34.0 + 16.0 * row as f64, "start", 12, "#5a6875", false, line);
        }
        let ticks = (end / tick).round() as usize;
        for number_of_tick in 0..=ticks {
            let value = tick * number_of_tick as f64;
            let at = x(value);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{top:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"#e3e8ed\"/>"
            );
            text(&mut svg, at, bottom + 16.0, "middle", 11, "#5a6875", false, &axis_number(value, tick));
        }
        // Above the bars and the line, wherever that is.
        let mut words = String::new();
        for (bar, y) in self.bars.iter().zip(bars) {
            let length = (x(bar.value) - left).max(1.0);
            let middle = y + BAR / 2.0 + 4.0;
            let ink = if bar.ours { OURS } else { "#1c2733" };
            text(&mut words, left - 8.0, middle, "end", 12, ink, bar.ours, &bar.name);
            let _ = writeln!(
                svg,
                "<rect x=\"{left:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"/>",
                bar.colour
            );
            text(&mut words, left + length + 6.0, middle, "start", 12, ink, bar.ours, &bar.label);
        }
        if let Some(line) = self.line {
            let at = x(line);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{top:.1}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"#c0392b\" \
                 stroke-width=\"1.5\" stroke-dasharray=\"5 4\"/>"
            );
        }
        text(&mut words, left, bottom + 34.0, "start", 11, "#5a6875", false, self.unit);
        svg + &words + "</svg>\n"
    }

    /// Where each bar begins, and what all of them take.
    fn placed(&self, top: f64) -> (Vec<f64>, f64) {
        let mut y = top + (STEP - BAR) / 2.0;
        let mut places = Vec::new();
        for (index, bar) in self.bars.iter().enumerate() {
            if index > 0 {
                y += if bar.joined { BAR + 2.0 } else { STEP };
            }
            places.push(y);
        }
        (places, y - top + BAR + (STEP - BAR) / 2.0)
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, size: u32, ink: &str, bold: bool, words: &str) {
    let weight = if bold { " font-weight=\"600\"" } else { "" };
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{ink}\"{weight} \
         stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\" xml:space=\"preserve\">{}</text>",
        escaped(words)
    );
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Lines of about so many characters.
fn wrapped(words: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        if lines.last().is_some_and(|line| !line.is_empty() && line.len() + word.len() >= width) {
            lines.push(String::new());
        }
        let line = lines.last_mut().expect("there is always one");
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

/// A distance of 1, 2 or 5 times a power of ten that gives at least [`TICKS`] of them.
fn tick(most: f64) -> f64 {
    let rough = (most / TICKS).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [5.0, 2.0].into_iter().find(|factor| factor * power <= rough).unwrap_or(1.0);
    factor * power
}

fn axis_number(value: f64, tick: f64) -> String {
    let digits = if tick >= 1.0 { 0 } else { (-tick.log10()).ceil() as usize };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enough() {
        for (most, wanted) in [(100.0, 20.0), (37.0, 5.0), (1.0, 0.2), (0.9, 0.2), (8.1, 2.0), (0.05, 0.01)] {
            assert!((tick(most) - wanted).abs() < 1e-9, "{most}: {}", tick(most));
        }
        assert_eq!(axis_number(0.4, 0.2), "0.4");
        assert_eq!(axis_number(0.05, 0.01), "0.05");
        assert_eq!(axis_number(40.0, 20.0), "40");
    }

    #[test]
    fn ours_stands_out_and_names_are_escaped() {
        let mut table = Table::new("h1-64", "a < b");
        for (proxy, cpu) in [("fieldgate", 10.0), ("haproxy", 20.0)] {
            let mut row = Row::new(proxy);
            row.number("cpu_us", Some(cpu), proxy == "fieldgate");
            table.rows.push(row);
        }
        let svg = cpu(&table).svg();
        assert_eq!(svg.matches("rx=\"2\"").count(), 2);
        assert!(svg.contains("a &lt; b") && svg.contains(">~20.00<") && svg.contains(">10.00<"), "{svg}");
        assert_eq!(svg.matches("fill=\"#0b6bcb\"").count(), 3);
    }
}
