//! Callgrind's profiles: what was spent where, and how often what was called.
//!
//! Read as the manual's "Callgrind Format Specification" has it, as far as our own options make use of it: one event
//! (`Ir`), positions by line, names compressed.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Functions whose calls are allocations: those of mimalloc, jemalloc and the C library.
const ALLOCATES: [&str; 18] = [
    "mi_malloc",
    "mi_malloc_aligned",
    "mi_zalloc",
    "mi_zalloc_aligned",
    "mi_calloc",
    "mi_realloc",
    "mi_realloc_aligned",
    "_rjem_malloc",
    "_rjem_mallocx",
    "_rjem_calloc",
    "_rjem_realloc",
    "_rjem_rallocx",
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
];
/// Functions that a comparison names at most, per profile.
const NAMED: usize = 15;

/// One profile.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Instructions of each function itself, without those that it calls.
    functions: HashMap<String, u64>,
    /// How often each function was called.
    calls: HashMap<String, u64>,
}

impl Profile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// All instructions.
    pub fn instructions(&self) -> u64 {
        self.functions.values().sum()
    }

    /// All instructions but those of these functions themselves.
    pub fn instructions_without(&self, functions: &[&str]) -> u64 {
        let left_out: u64 = functions.iter().filter_map(|name| self.functions.get(*name)).sum();
        self.instructions() - left_out
    }

    /// All calls of functions that allocate.
    pub fn allocations(&self) -> u64 {
        ALLOCATES.iter().filter_map(|name| self.calls.get(*name)).sum()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut profile = Self::default();
        let mut names = Names::default();
        let (mut function, mut called) = (String::new(), String::new());
        // After `calls=` comes one line with the cost of the call, which is that of the functions called.
        let mut of_call = false;
        for (at, line) in text.lines().enumerate() {
            let wrong = || format!("line {}: not callgrind's format: {line}", at + 1);
            if let Some(name) = line.strip_prefix("fn=") {
                function = names.resolve(name).ok_or_else(wrong)?;
            } else if let Some(name) = line.strip_prefix("cfn=") {
                called = names.resolve(name).ok_or_else(wrong)?;
            } else if let Some(calls) = line.strip_prefix("calls=") {
                let count: u64 = calls.split(' ').next().and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
                *profile.calls.entry(called.clone()).or_default() += count;
                of_call = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '*')) {
                // A position alone stands for a cost of 0.
                let cost = line.split(' ').nth(1).map_or(Some(0), |cost| cost.parse().ok());
                let cost: u64 = cost.ok_or_else(wrong)?;
                if !std::mem::take(&mut of_call) {
                    *profile.functions.entry(function.clone()).or_default() += cost;
                }
            }
        }
        Ok(profile)
    }
}

/// Compressed names: `(7) name` the first time, `(7)` from then on.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    /// The name without the mark of recursion (`'2`) that callgrind adds.
    fn resolve(&mut self, text: &str) -> Option<String> {
        let Some((number, name)) = text.strip_prefix('(').and_then(|rest| rest.split_once(')')) else {
            return Some(text.to_owned());
        };
        if let Some(name) = name.strip_prefix(' ') {
            let plain = match name.rsplit_once('\'') {
                Some((plain, depth)) if depth.bytes().all(|b| b.is_ascii_digit()) => plain,
                _ => name,
            };
            self.0.insert(number.to_owned(), plain.to_owned());
        }
        self.0.get(number).cloned()
    }
}

/// Prints which functions cost more and less, for two profiles or all that two directories have in common.
pub fn compare(before: &Path, after: &Path) -> Result<(), String> {
    if before.is_file() {
        print!("{}", differences(&Profile::read(before)?, &Profile::read(after)?));
        return Ok(());
    }
    for file in files(after)? {
        let (Some(name), true) = (file.file_name(), file.is_file()) else { continue };
        let earlier = before.join(name);
        if earlier.is_file() {
            let changes = differences(&Profile::read(&earlier)?, &Profile::read(&file)?);
            println!("{}\n{changes}", name.to_string_lossy());
        }
    }
    Ok(())
}

fn files(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    Ok(files)
}

fn differences(before: &Profile, after: &Profile) -> String {
    let mut changes: BTreeMap<&str, i64> = BTreeMap::new();
    for (name, cost) in &after.functions {
        *changes.entry(name).or_default() += *cost as i64;
    }
    for (name, cost) in &before.functions {
        *changes.entry(name).or_default() -= *cost as i64;
    }
    let total = before.instructions().max(1) as f64;
    let mut changes: Vec<(&str, i64)> = changes.into_iter().filter(|(_, change)| *change != 0).collect();
    changes.sort_by_key(|(_, change)| std::cmp::Reverse(change.abs()));
    let mut text = String::new();
    for (name, change) in changes.iter().take(NAMED) {
        let _ = writeln!(text, "{change:+12}  {:+6.2} %  {name}", *change as f64 / total * 100.0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# callgrind format\nversion: 1\nevents: Ir\nsummary: 100\n\n\
        ob=(1) /bin/x\nfl=(1) x.rs\nfn=(1) outer\n1 10\n+2 5\ncfi=(2) y.rs\ncfn=(2) mi_malloc\ncalls=3 7\n* 60\n-1\n\n\
        fn=(2)\n7 60\n\nfn=(3) walk'2\n9 4\ncfn=(3)\ncalls=2 9\n9 4\ncfn=(4) realloc\ncalls=1 0\n9 21\n\nfn=(4)\n0 21\n\ntotals: 100\n";

    #[test]
    fn costs_of_calls_are_counted_where_they_are_spent() {
        let profile = Profile::parse(TEXT).unwrap();
        assert_eq!(profile.instructions(), 100);
        assert_eq!(profile.instructions_without(&["outer", "unknown"]), 85);
        assert_eq!(profile.functions["outer"], 15);
        assert_eq!(profile.functions["walk"], 4);
        assert_eq!(profile.allocations(), 4);
    }

    #[test]
    fn what_is_no_profile_is_refused_with_its_line() {
        let error = Profile::parse("fn=(1) a\n1 x\n").unwrap_err();
        assert_eq!(error, "line 2: not callgrind's format: 1 x");
        assert!(Profile::parse("fn=(9)\n").is_err());
    }

    #[test]
    fn a_comparison_names_what_changed_most_first() {
        let after =
            Profile::parse(&TEXT.replace("1 10\n", "1 12\n").replace("0 21\n\ntotals", "0 71\n\ntotals"));
        let text = differences(&Profile::parse(TEXT).unwrap(), &after.unwrap());
        assert_eq!(text, "         +50  +50.00 %  realloc\n          +2   +2.00 %  outer\n");
    }
}
