//! Options of `fieldgate run` for what the process may do.

use std::path::PathBuf;

use clap::Args;

use crate::hardening::{Mode, Options, User};

#[derive(Args)]
pub(super) struct HardeningArgs {
    /// Become this user after a start as root, and keep only the right to bind ports below 1024.
    #[arg(long, value_name = "NAME[:GROUP]", value_parser = str::parse::<User>)]
    user: Option<User>,
    /// What becomes of system calls and files that a gateway does not need: refused; logged by the kernel; or nothing.
    #[arg(long, value_name = "MODE", default_value = "enforce")]
    hardening: Mode,
    /// A file or directory that the configuration names and that lies elsewhere; may be given several times.
    #[arg(long, value_name = "PATH")]
    allow_read: Vec<PathBuf>,
}

impl HardeningArgs {
    pub(super) fn options(self) -> Options {
        Options { mode: self.hardening, user: self.user, readable: self.allow_read }
    }
}
