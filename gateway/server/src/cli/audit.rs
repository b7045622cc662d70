//! `fieldgate audit`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::audit::verify;

/// Check an audit log.
#[derive(Args)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Whether no line was changed, taken out or put in. Exits with 1 if one was.
    #[command(after_help = "Example:
  fieldgate audit verify audit.log.1 audit.log --ends-with HASH

That lines are missing at the end shows only beside a hash that was kept elsewhere: what an earlier check printed.")]
    Verify {
        /// Files that follow one another, the oldest first.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// The hash of the last line, as it was noted.
        #[arg(long, value_name = "HASH")]
        ends_with: Option<String>,
    },
}

impl Audit {
    pub(super) fn run(self) -> Result<ExitCode, String> {
        let Command::Verify { files, ends_with } = self.command;
        let verified = match verify(&files) {
            Ok(verified) => verified,
            Err(message) => {
                eprintln!("fieldgate: {message}");
                return Ok(ExitCode::FAILURE);
            }
        };
        let begins = if verified.is_from_the_start() {
            "from its beginning"
        } else {
            "after lines that are not in these files"
        };
        println!("{} lines, unbroken, {begins}; the last is {}", verified.lines, verified.last);
        match ends_with {
            Some(hash) if hash != verified.last => {
                eprintln!("fieldgate: the last line is not the one with hash {hash}");
                Ok(ExitCode::FAILURE)
            }
            _ => Ok(ExitCode::SUCCESS),
        }
    }
}
