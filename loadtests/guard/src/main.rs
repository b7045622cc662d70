//! The instruction guard: counts what the gateway's hot pieces and whole exchanges cost, in instructions and
//! allocations, and fails when one costs more than the committed baseline allows.
//!
//! Counts come from valgrind's callgrind, so that neither a noisy machine nor its speed changes them.
//! How to read and accept them is in `docs/guard.md`, why it is done this way in `docs/decisions/0005-instruction-guard.md`.

mod baseline;
mod exchanges;
mod pieces;
mod profile;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fieldgate_loadtests::backend;

use baseline::{Baseline, Figures, Toolchain};
use verdict::Report;

/// Counts instructions and allocations against a baseline.
#[derive(Parser)]
#[command(name = "fieldgate-guard")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Count and compare with the baseline; fails if anything costs more than is tolerated.
    Check(Options),
    /// Count and write the baseline.
    Accept(Options),
    /// Say which functions cost more or less in one profile, or directory of profiles, than in another.
    Compare {
        /// Before.
        before: PathBuf,
        /// After.
        after: PathBuf,
    },
    /// The backend of the exchanges, which the guard starts for itself.
    #[command(hide = true)]
    Backend(backend::Options),
}

#[derive(Args)]
struct Options {
    /// The gateway, built with `--profile guard`.
    #[arg(long, default_value = "target/guard/fieldgate")]
    gateway: PathBuf,
    /// The pieces, built with `--profile guard`.
    #[arg(long, default_value = "target/guard/fieldgate-guard-pieces")]
    pieces: PathBuf,
    /// The committed figures.
    #[arg(long, default_value = "loadtests/guard/baseline.json")]
    baseline: PathBuf,
    /// Where callgrind's profiles are left.
    #[arg(long, default_value = "target/guard/profiles")]
    profiles: PathBuf,
    /// Only what begins with this: `parse/`, `exchange/h2`.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check(options) => check(&options),
        Command::Accept(options) => accept(&options).map(|()| true),
        Command::Compare { before, after } => profile::compare(&before, &after).map(|()| true),
        Command::Backend(options) => {
            backend::serve(&options).map(|()| true).map_err(|error| format!("{}: {error}", options.listen))
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fieldgate-guard: {error}");
            ExitCode::from(2)
        }
    }
}

fn check(options: &Options) -> Result<bool, String> {
    let baseline = Baseline::read(&options.baseline)?;
    let toolchain = Toolchain::here()?;
    let counted = count(options)?;
    let report = Report::new(&baseline.only(&options.only), &counted);
    for difference in toolchain.differences(&baseline.toolchain) {
        println!("note: {difference}");
    }
    if toolchain.processor != baseline.toolchain.processor {
        print!("{}", report.table());
        println!("skipped: counts of another kind of processor say nothing against this baseline");
        return Ok(true);
    }
    print!("{}", report.text(&options.profiles));
    Ok(report.passes())
}

fn accept(options: &Options) -> Result<(), String> {
    let counted = count(options)?;
    let before = Baseline::read(&options.baseline).unwrap_or_default();
    print!("{}", Report::new(&before.only(&options.only), &counted).table());
    let mut figures = before.figures;
    figures.retain(|name, _| !name.starts_with(&options.only));
    figures.extend(counted);
    Baseline { toolchain: Toolchain::here()?, figures }.write(&options.baseline)?;
    println!("accepted: {}", options.baseline.display());
    Ok(())
}

/// Both kinds at the same time: callgrind counts the same however busy the machine is.
fn count(options: &Options) -> Result<Figures, String> {
    for (what, path) in [("gateway", &options.gateway), ("pieces", &options.pieces)] {
        if !path.is_file() {
            return Err(format!("no {what} at {}: `make guard` builds it", path.display()));
        }
    }
    fresh_directory(&options.profiles)?;
    let keep = Keep { directory: &options.profiles };
    let (pieces, exchanges) = std::thread::scope(|scope| {
        let pieces = scope.spawn(|| pieces::count(&options.pieces, &options.only, &keep));
        let exchanges = exchanges::count(&options.gateway, &options.only, &keep);
        (pieces.join().expect("the pieces' thread does not panic"), exchanges)
    });
    let mut figures = pieces?;
    figures.extend(exchanges?);
    if figures.is_empty() {
        return Err(format!("nothing begins with {:?}", options.only));
    }
    Ok(figures)
}

fn fresh_directory(path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if path.exists() {
        std::fs::remove_dir_all(path).map_err(failed)?;
    }
    std::fs::create_dir_all(path).map_err(failed)
}

/// Where profiles are left for people to look into.
struct Keep<'a> {
    directory: &'a Path,
}

impl Keep<'_> {
    /// Leaves one under the name of its figure.
    fn profile(&self, name: &str, from: &Path) -> Result<(), String> {
        let to = profile_of(self.directory, name);
        std::fs::copy(from, &to).map(|_| ()).map_err(|error| format!("{}: {error}", to.display()))
    }
}

/// The profile of a figure.
fn profile_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(name.replace('/', "-"))
}
