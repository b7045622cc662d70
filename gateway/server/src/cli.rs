//! The command line. Each command is one file; what a command does is done elsewhere, here it is asked for and shown.

mod admin;
mod apply;
mod audit;
mod check;
mod client;
mod demo;
mod drain;
mod explain;
mod hardening;
mod overload;
mod run;
mod status;
mod top;
mod trust_domain;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use fieldgate_core::ir::Locality;

/// Where the admin server listens unless told otherwise: loopback only, as it shows and ends everything.
const DEFAULT_ADMIN: &str = "127.0.0.1:15000";

#[derive(Parser)]
#[command(name = "fieldgate", version, about = "An edge gateway in front of VMs and Kubernetes services.")]
#[command(after_help = "Examples:
  fieldgate check ./config                 say what is wrong with a configuration
  fieldgate run --config ./config          serve it, and follow its changes
  fieldgate apply -f route.yaml            change an object of the running gateway
  fieldgate explain GET http://shop.example/cart --config ./config
  fieldgate status                         what the running gateway does
  fieldgate top                            the same, live
  fieldgate drain shop-vms 10.0.1.11:8080  take a machine out of service
  fieldgate demo                           a service moves from VMs to pods under load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Check(check::Check),
    Apply(apply::Apply),
    Audit(audit::Audit),
    Delete(apply::Delete),
    Explain(explain::Explain),
    Status(status::Status),
    Top(top::Top),
    Drain(drain::Drain),
    Undrain(drain::Undrain),
    Demo(demo::Demo),
}

/// Runs the command that the arguments ask for.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => return run.run(),
        Command::Check(check) => check.run(),
        Command::Apply(apply) => apply.run(),
        Command::Audit(audit) => audit.run(),
        Command::Delete(delete) => delete.run(),
        Command::Explain(explain) => explain.run(),
        Command::Status(status) => status.run(),
        Command::Top(top) => top.run(),
        Command::Drain(drain) => drain.run(),
        Command::Undrain(undrain) => undrain.run(),
        Command::Demo(demo) => demo.run(),
    };
    result.unwrap_or_else(|message| {
        eprintln!("fieldgate: {message}");
        ExitCode::from(2)
    })
}

/// `eu-west-1/eu-west-1a`, with or without a rack behind it.
fn locality(text: &str) -> Result<Locality, String> {
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts[0].is_empty() {
        return Err("write region/zone/subzone, of which the later parts may be missing".to_owned());
    }
    Ok(Locality::parse(text))
}

/// `45s`, `500ms`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("write a number and a unit: 500ms, 45s, 2m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "the number is missing or too large".to_owned())?;
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

/// What the fuzz targets reach of the command line's parsers. Not in a build of the gateway.
#[cfg(fuzzing)]
pub mod fuzzing {
    use std::time::Duration;

    /// A duration of an option.
    pub fn duration(text: &str) -> Result<Duration, String> {
        super::duration(text)
    }

    /// A value for a query.
    pub fn encode(value: &str) -> String {
        super::client::encode(value)
    }

    /// Reads metrics as `top` does, and counts the services in them.
    pub fn services(metrics: &str) -> usize {
        super::top::services(metrics).len()
    }
}

/// Columns as wide as their widest cell, two spaces between.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations() {
        assert_eq!(duration("45s"), Ok(Duration::from_secs(45)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "s", "5 s", "-1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["ccc".to_owned(), String::new()]];
        assert_eq!(table(&rows), "a    b\nccc\n");
    }
}
