//! What the process takes from itself before it serves: privileges, files, system calls, core files.
//!
//! All of it is done by the main thread before there is any other, so that every thread inherits it, and none of it can be
//! undone. A control that the kernel does not know is left out and said to be missing: the gateway serves all the same.
//! What was done is not believed but tried, see `selftest`. Nothing here runs again after the start.

mod files;
mod selftest;
mod syscalls;
mod user;

use std::path::PathBuf;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde_json::{Value, json};

pub use files::Places;
pub use user::User;

/// What becomes of what the gateway never does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// The kernel logs system calls that would be refused; files are as without.
    Log,
    /// It is as the operating system has it.
    Off,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        }
    }
}

/// What the process was told about itself.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether refused things are refused.
    pub mode: Mode,
    /// Whom to become when started as root.
    pub user: Option<User>,
    /// Files and directories that are read beside those that other options name.
    pub readable: Vec<PathBuf>,
}

/// One control, as it turned out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// As `status` and metrics name it.
    pub name: &'static str,
    /// Whether it holds, as tried from inside.
    pub active: bool,
    /// What was tried, or why it is missing.
    pub detail: String,
}

impl Control {
    fn active(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, active: true, detail: detail.into() }
    }

    fn missing(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, active: false, detail: detail.into() }
    }

    fn of<E: std::fmt::Display>(name: &'static str, result: Result<(), E>, detail: &str) -> Self {
        match result {
            Ok(()) => Self::active(name, detail),
            Err(error) => Self::missing(name, error.to_string()),
        }
    }
}

/// What holds for this process.
#[derive(Clone, Debug, Default)]
pub struct Report {
    mode: Mode,
    controls: Vec<Control>,
}

impl Report {
    /// Every control.
    pub fn controls(&self) -> &[Control] {
        &self.controls
    }

    /// For `/api/v1/status`.
    pub fn json(&self) -> Value {
        let row = |c: &Control| json!({"name": c.name, "active": c.active, "detail": c.detail});
        json!({"mode": self.mode.as_str(), "controls": self.controls.iter().map(row).collect::<Vec<_>>()})
    }

    fn tell(&self) {
        let names = |active| {
            let of = self.controls.iter().filter(|control| control.active == active);
            of.map(|control| control.name).collect::<Vec<_>>().join(", ")
        };
        tracing::info!(mode = self.mode.as_str(), active = names(true), "the process is hardened");
        for missing in self.controls.iter().filter(|control| !control.active) {
            tracing::warn!("hardening without {}: {}", missing.name, missing.detail);
        }
    }
}

/// Takes from the process what it does not need. The only error is a user that cannot be become: going on as root would
/// be what nobody asked for.
pub fn enter(options: &Options, places: &Places) -> Result<Report, String> {
    if let Some(user) = &options.user {
        let given: Vec<_> = places.appended().collect();
        user.assume(&given)?;
    }
    if options.mode == Mode::Off {
        return Ok(Report::default_off());
    }
    let unprivileged = user::check_unprivileged();
    let no_core = no_core_files();
    let no_new = rustix::thread::set_no_new_privs(true);
    // The filter comes last: what precedes it needs calls that it refuses.
    let files = match options.mode {
        Mode::Enforce => files::restrict(places, &options.readable),
        _ => Err("left out with --hardening=log, as the kernel has no way to log only".to_owned()),
    };
    let calls = syscalls::restrict(options.mode);
    let report = Report {
        mode: options.mode,
        controls: vec![
            unprivileged,
            Control::of("no_new_privs", no_new, "execve grants nothing (PR_SET_NO_NEW_PRIVS)"),
            no_core,
            selftest::files(files),
            selftest::calls(options.mode, calls),
        ],
    };
    report.tell();
    Ok(report)
}

impl Report {
    fn default_off() -> Self {
        tracing::warn!("the process is not hardened (--hardening=off)");
        Self { mode: Mode::Off, controls: Vec::new() }
    }
}

/// A core file would hold every private key. Without dumps nobody but root can attach a debugger either.
fn no_core_files() -> Control {
    let limit = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let done = limit.and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    Control::of("no_core_dumps", done, "PR_SET_DUMPABLE 0 and RLIMIT_CORE 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_to_be() {
        let controls = vec![Control::active("a", "x"), Control::missing("b", "no kernel")];
        let report = Report { mode: Mode::Log, controls };
        let expected = json!({"mode": "log", "controls": [
            {"name": "a", "active": true, "detail": "x"},
            {"name": "b", "active": false, "detail": "no kernel"},
        ]});
        assert_eq!(report.json(), expected);
    }
}
