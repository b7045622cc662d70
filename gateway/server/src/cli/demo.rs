//! `fieldgate demo`: hands over to the demo program that is shipped beside this binary.
//!
//! The demo drives a gateway from outside, as an operator does, so it is a program of its own and no part of the gateway.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Args;

/// A shop moves from VMs to pods under load, one backend is killed, every request is accounted for.
///
/// Starts five backends, a gateway and a load on loopback (ports 8080, 9101-9103, 9201-9202, 15000).
/// `fieldgate demo -- --help` lists what can be set; `fieldgate demo -- --keep` leaves everything running.
#[derive(Args)]
pub struct Demo {
    /// Passed on to the demo.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Demo {
    /// Does not return unless the demo program cannot be started.
    pub fn run(self) -> Result<ExitCode, String> {
        let own =
            std::env::current_exe().map_err(|e| format!("the path of this program is not known: {e}"))?;
        let demo = own.with_file_name("fieldgate-demo");
        let error = Command::new(&demo).args(&self.arguments).exec();
        Err(format!(
            "{}: {error}; it is built by `cargo build --release -p fieldgate-loadtests`",
            demo.display()
        ))
    }
}
