//! Counts the pieces: one run of their program under callgrind, which writes a profile after each piece.

use std::path::Path;
use std::process::Command;

use super::Keep;
use super::baseline::{Figure, Figures};
use super::profile::Profile;

/// The function of the program within which a piece's instructions are counted.
const COUNTED: &str = "*fieldgate_guard_pieces::counted*";
/// The functions at whose ends a profile is written: the first begins a piece, the second ends it.
const CUTS: [&str; 2] = ["*fieldgate_guard_pieces::warm_up*", "*fieldgate_guard_pieces::measure*"];

/// Counts all pieces whose names begin with `only`.
pub fn count(program: &Path, only: &str, keep: &Keep<'_>) -> Result<Figures, String> {
    if only.starts_with("exchange/") {
        return Ok(Figures::new());
    }
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let out = scratch.path().join("piece");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .args(CUTS.map(|function| format!("--dump-after={function}")))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} ended ({}):\n{said}", program.display(), output.status));
    }
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut figures = Figures::new();
    for (at, line) in names.lines().enumerate() {
        let dump = scratch.path().join(format!("piece.{}", (at + 1) * CUTS.len()));
        let (name, times) = line.split_once(' ').ok_or_else(|| format!("no piece: {line}"))?;
        let times: u64 = times.parse().map_err(|_| format!("no number of runs: {line}"))?;
        if !name.starts_with(only) {
            continue;
        }
        let profile = Profile::read(&dump)?;
        if profile.instructions() < times {
            return Err(format!(
                "{name}: nothing was counted; was a function that callgrind knows by name renamed or inlined?"
            ));
        }
        keep.profile(name, &dump)?;
        figures.insert(name.to_owned(), Figure::of(profile.instructions(), profile.allocations(), times));
    }
    Ok(figures)
}
