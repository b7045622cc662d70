//! The committed figures and the toolchain that they are of.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Figures by name.
pub type Figures = BTreeMap<String, Figure>;

/// What one run of a piece, or one exchange, costs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Figure {
    /// Instructions in user space.
    pub instructions: u64,
    /// Calls of the allocator that ask for memory.
    pub allocations: f64,
}

/// What is committed.
#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Baseline {
    /// Built and counted with this.
    pub toolchain: Toolchain,
    /// The figures.
    pub figures: Figures,
}

/// What decides, besides our code, how many instructions there are.
#[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Toolchain {
    /// As the compiler says it.
    pub rustc: String,
    /// As valgrind says it.
    pub valgrind: String,
    /// The C library, whose functions are counted, too.
    pub libc: String,
    /// Ciphers and copies are chosen by what the processor can do.
    pub processor: String,
}

impl Figure {
    /// Of so many runs, rounded to what is worth committing.
    pub fn of(instructions: u64, allocations: u64, runs: u64) -> Self {
        Self {
            instructions: (instructions + runs / 2) / runs,
            allocations: (allocations as f64 / runs as f64 * 100.0).round() / 100.0,
        }
    }
}

impl Baseline {
    /// Reads the committed file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: String| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| failed(format!("{error}; `make guard-accept` writes it")))?;
        serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The figures whose names begin with this.
    pub fn only(&self, prefix: &str) -> Figures {
        let kept = self.figures.iter().filter(|(name, _)| name.starts_with(prefix));
        kept.map(|(name, figure)| (name.clone(), *figure)).collect()
    }
}

impl Toolchain {
    /// What there is here.
    pub fn here() -> Result<Self, String> {
        Ok(Self {
            rustc: said("rustc", &["--version"])?,
            valgrind: said("valgrind", &["--version"])?,
            libc: said("getconf", &["GNU_LIBC_VERSION"])?,
            processor: processor(),
        })
    }

    /// What differs from the toolchain of the baseline, in words.
    pub fn differences(&self, of_baseline: &Self) -> Vec<String> {
        let pairs = [
            (&self.rustc, &of_baseline.rustc),
            (&self.valgrind, &of_baseline.valgrind),
            (&self.libc, &of_baseline.libc),
            (&self.processor, &of_baseline.processor),
        ];
        let differ = pairs.into_iter().filter(|(here, there)| here != there);
        differ
            .map(|(here, there)| {
                format!(
                    "counted with {here}, the baseline with {there}: figures may differ for that reason alone"
                )
            })
            .collect()
    }
}

fn said(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}; `deploy/setup.sh guard` installs what is missing"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn processor() -> String {
    #[cfg(target_arch = "x86_64")]
    let can = if std::is_x86_feature_detected!("avx2") { " with avx2" } else { " without avx2" };
    #[cfg(not(target_arch = "x86_64"))]
    let can = "";
    format!("{}{can}", std::env::consts::ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baseline_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.json");
        let mut baseline = Baseline::default();
        baseline.toolchain.rustc = "rustc 1.95.0".to_owned();
        baseline.figures.insert("parse/a".to_owned(), Figure::of(123_456, 1_001, 1000));
        baseline.figures.insert("route/b".to_owned(), Figure::of(9, 0, 2));
        baseline.write(&path).unwrap();
        assert_eq!(Baseline::read(&path).unwrap(), baseline);
        assert_eq!(baseline.figures["parse/a"], Figure { instructions: 123, allocations: 1.0 });
        assert_eq!(baseline.only("route/").len(), 1);
    }

    #[test]
    fn another_compiler_is_named() {
        let baseline = Toolchain { rustc: "rustc 1.95.0".to_owned(), ..Toolchain::default() };
        let here = Toolchain { rustc: "rustc 1.96.0".to_owned(), ..Toolchain::default() };
        let differences = here.differences(&baseline);
        assert_eq!(differences.len(), 1);
        assert!(differences[0].contains("1.95.0") && differences[0].contains("1.96.0"), "{differences:?}");
        assert!(here.differences(&here).is_empty());
    }
}
