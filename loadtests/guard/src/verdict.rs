//! Figures against the baseline: what is worse, what is better, what is new, and the words for it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::baseline::{Figure, Figures};

/// What repeated counts of the same code stay within, with room: for pieces ...
const PIECE: Tolerance = Tolerance { share: 0.03, instructions: 4, allocations: 0.05 };
/// ... for exchanges, in which timers tick, too ...
const EXCHANGE: Tolerance = Tolerance { share: 0.02, instructions: 0, allocations: 0.3 };
/// ... and for those of several streams, which depend on which of them arrive together.
const STREAMS: Tolerance = Tolerance { share: 0.05, instructions: 0, allocations: 0.6 };

/// How much more than in the baseline is no regression.
#[derive(Clone, Copy)]
struct Tolerance {
    /// Of the instructions.
    share: f64,
    /// Instructions, where the share is less.
    instructions: u64,
    allocations: f64,
}

impl Tolerance {
    fn of(name: &str) -> Self {
        match name {
            _ if name.ends_with("-streams") => STREAMS,
            _ if name.starts_with("exchange/") => EXCHANGE,
            _ => PIECE,
        }
    }
}

/// What became of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Same,
    Better,
    Worse,
    New,
    Gone,
}

struct Line {
    name: String,
    now: Option<Figure>,
    before: Option<Figure>,
    verdict: Verdict,
}

/// All figures, judged.
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// Judges.
    pub fn new(baseline: &Figures, counted: &Figures) -> Self {
        let names: BTreeSet<&String> = baseline.keys().chain(counted.keys()).collect();
        let line = |name: &String| {
            let (now, before) = (counted.get(name).copied(), baseline.get(name).copied());
            Line { name: name.clone(), now, before, verdict: judge(name, now, before) }
        };
        Self { lines: names.into_iter().map(line).collect() }
    }

    /// Whether nothing is worse, and the baseline has just what was counted.
    pub fn passes(&self) -> bool {
        self.lines.iter().all(|line| matches!(line.verdict, Verdict::Same | Verdict::Better))
    }

    /// Every figure beside its baseline.
    pub fn table(&self) -> String {
        let mut text =
            format!("{:<28} {:>12} {:>12} {:>9}   allocations\n", "", "instructions", "baseline", "change");
        for line in &self.lines {
            let _ = writeln!(text, "{}", line.row());
        }
        text
    }

    /// The table, and what to do about it. `profiles`: where there is more to see.
    pub fn text(&self, profiles: &Path) -> String {
        let mut text = self.table() + "\n";
        for line in &self.lines {
            text.push_str(&line.advice(profiles));
        }
        if !self.passes() {
            text.push_str(
                "FAIL: what costs more has to be worth it. docs/guard.md says how to find where it comes from. To accept it: \
                 make guard-accept, and commit baseline.json with the reason.\n",
            );
        } else if self.lines.iter().any(|line| line.verdict == Verdict::Better) {
            text.push_str(
                "note: what costs less is not held until it is accepted: make guard-accept, and commit baseline.json.\n",
            );
        }
        text
    }
}

fn judge(name: &str, now: Option<Figure>, before: Option<Figure>) -> Verdict {
    let (now, before) = match (now, before) {
        (Some(now), Some(before)) => (now, before),
        (None, _) => return Verdict::Gone,
        (_, None) => return Verdict::New,
    };
    let tolerance = Tolerance::of(name);
    let instructions = tolerance.instructions.max((before.instructions as f64 * tolerance.share) as u64);
    let more = |now: Figure, before: Figure| {
        now.instructions > before.instructions + instructions
            || now.allocations > before.allocations + tolerance.allocations
    };
    // Fewer instructions do not make up for more allocations: those cost what instructions do not show.
    if more(now, before) {
        Verdict::Worse
    } else if more(before, now) {
        Verdict::Better
    } else {
        Verdict::Same
    }
}

impl Line {
    fn row(&self) -> String {
        let number = |figure: Option<Figure>| {
            figure.map_or_else(|| "-".to_owned(), |figure| figure.instructions.to_string())
        };
        let change = match (self.now, self.before) {
            (Some(now), Some(before)) => format!("{:+.1} %", share(now, before) * 100.0),
            _ => String::new(),
        };
        let allocations = match (self.now, self.before) {
            (Some(now), Some(before)) if now.allocations == before.allocations => now.allocations.to_string(),
            (Some(now), Some(before)) => format!("{} (baseline {})", now.allocations, before.allocations),
            (now, before) => now.or(before).map(|figure| figure.allocations.to_string()).unwrap_or_default(),
        };
        let mark = match self.verdict {
            Verdict::Same => "",
            Verdict::Better => "  less",
            Verdict::Worse => "  MORE",
            Verdict::New => "  NEW",
            Verdict::Gone => "  GONE",
        };
        format!(
            "{:<28} {:>12} {:>12} {change:>9}   {allocations}{mark}",
            self.name,
            number(self.now),
            number(self.before)
        )
    }

    fn advice(&self, profiles: &Path) -> String {
        let name = &self.name;
        match (self.verdict, self.now, self.before) {
            (Verdict::Worse, Some(now), Some(before)) => format!(
                "{name}: {} instructions and {} allocations, {} and {} in the baseline ({:+.1} %; {:.0} % and {} are tolerated).\n  \
                 where: callgrind_annotate --auto=no {}\n",
                now.instructions,
                now.allocations,
                before.instructions,
                before.allocations,
                share(now, before) * 100.0,
                Tolerance::of(name).share * 100.0,
                Tolerance::of(name).allocations,
                super::profile_of(profiles, name).display(),
            ),
            (Verdict::New, ..) => format!("{name}: not in the baseline. make guard-accept puts it in.\n"),
            (Verdict::Gone, ..) => {
                format!("{name}: in the baseline, but no longer counted. make guard-accept takes it out.\n")
            }
            _ => String::new(),
        }
    }
}

/// The change of instructions.
fn share(now: Figure, before: Figure) -> f64 {
    now.instructions as f64 / before.instructions.max(1) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(instructions: u64, allocations: f64) -> Figure {
        Figure { instructions, allocations }
    }

    #[test]
    fn each_kind_has_its_tolerance() {
        use Verdict::*;
        let table = [
            // name, before, now, verdict
            ("parse/a", (1000, 0.0), (1030, 0.0), Same),
            ("parse/a", (1000, 0.0), (1031, 0.0), Worse),
            ("parse/a", (1000, 0.0), (969, 0.0), Better),
            // A share of a few instructions is less than one.
            ("path/a", (20, 0.0), (24, 0.0), Same),
            ("path/a", (20, 0.0), (25, 0.0), Worse),
            // One allocation is one too many, whatever was saved for it.
            ("parse/a", (1000, 1.0), (500, 2.0), Worse),
            ("parse/a", (1000, 2.0), (1000, 1.0), Better),
            ("exchange/h1", (24_000, 1.0), (24_480, 1.01), Same),
            ("exchange/h1", (24_000, 1.0), (24_481, 1.0), Worse),
            ("exchange/h1", (24_000, 1.0), (24_000, 2.0), Worse),
            ("exchange/h2-16-streams", (44_000, 14.0), (46_000, 14.5), Same),
            ("exchange/h2-16-streams", (44_000, 14.0), (46_300, 14.0), Worse),
            ("exchange/h2-16-streams", (44_000, 14.0), (44_000, 15.0), Worse),
        ];
        for (name, before, now, expected) in table {
            let verdict = judge(name, Some(figure(now.0, now.1)), Some(figure(before.0, before.1)));
            assert_eq!(verdict, expected, "{name} {before:?} -> {now:?}");
        }
    }

    fn report(baseline: &[(&str, u64)], counted: &[(&str, u64)]) -> Report {
        let figures = |of: &[(&str, u64)]| {
            of.iter().map(|(name, count)| ((*name).to_owned(), figure(*count, 0.0))).collect::<Figures>()
        };
        Report::new(&figures(baseline), &figures(counted))
    }

    #[test]
    fn one_that_costs_more_fails_and_is_named_with_what_to_do() {
        let report = report(&[("parse/a", 1000), ("route/b", 50)], &[("parse/a", 1200), ("route/b", 50)]);
        assert!(!report.passes());
        let text = report.text(Path::new("p"));
        for part in [
            "parse/a: 1200 instructions",
            "1000 and 0",
            "+20.0 %",
            "callgrind_annotate --auto=no p/parse-a",
            "make guard-accept",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("route/b:"), "{text}");
    }

    #[test]
    fn less_is_a_note_and_no_failure() {
        let report = report(&[("parse/a", 1000)], &[("parse/a", 800)]);
        assert!(report.passes());
        assert!(report.text(Path::new("p")).contains("note: what costs less"));
    }

    #[test]
    fn the_baseline_has_just_what_is_counted() {
        assert!(!report(&[], &[("parse/a", 1)]).passes());
        assert!(!report(&[("parse/a", 1)], &[]).passes());
        assert!(report(&[("parse/a", 1)], &[("parse/a", 1)]).passes());
    }
}
