//! File descriptors and CPUs: what a measurement takes from the machine, and gives back.

use std::process::{Command, Stdio};

use crate::context::ensure;

/// The CPU that proxies have for themselves.
pub const PROXY_CPU: usize = 0;
/// Generators, backends and this program are here.
const LOAD_CPU: usize = 1;
/// Descriptors beside those of connections: upstream connections, files, the runtime's own.
const OTHERS: u64 = 2000;

/// The descriptors that a process may have, for so many connections: twice as many, for there are proxies that want one
/// for the upstream as well, or else what the machine allows, if that is enough for the connections themselves.
pub fn descriptors(connections: usize) -> Result<u64, String> {
    let connections = connections as u64;
    let wanted = 2 * connections + OTHERS;
    let can = |limit: u64| {
        let done = Command::new("prlimit").arg(nofile(limit)).arg("true").stderr(Stdio::null()).status();
        done.map(|status| status.success()).map_err(|error| format!("prlimit: {error}"))
    };
    if can(wanted)? {
        return Ok(wanted);
    }
    let hard = hard_limit()?;
    ensure(hard >= connections + OTHERS, || {
        format!(
            "{connections} connections need {} file descriptors; the hard limit is {hard} and cannot be raised here: \
             run as root, or raise it (ulimit -Hn)",
            connections + OTHERS
        )
    })?;
    Ok(hard)
}

/// The words that start a program with a limit of descriptors.
pub fn limited(descriptors: u64, program: &str, arguments: &[String]) -> Vec<String> {
    [&[nofile(descriptors), program.to_owned()], arguments].concat()
}

/// Lets this process have so many descriptors.
pub fn raise_own(descriptors: u64) -> Result<(), String> {
    let own = std::process::id().to_string();
    run("prlimit", &["--pid", &own, &nofile(descriptors)])
}

/// This process on the generator's CPU, until dropped.
pub struct Pinned;

impl Pinned {
    /// Moves all threads; those started later come along.
    pub fn new() -> Result<Self, String> {
        affinity(&LOAD_CPU.to_string()).map(|()| Self)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // If it fails the scenarios after this one have one CPU less, and say nothing wrong.
        let _ = affinity(&format!("{PROXY_CPU},{LOAD_CPU}"));
    }
}

fn affinity(cpus: &str) -> Result<(), String> {
    run("taskset", &["--all-tasks", "--cpu-list", "--pid", cpus, &std::process::id().to_string()])
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    ensure(output.status.success(), || {
        format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))
    })
}

fn nofile(limit: u64) -> String {
    format!("--nofile={limit}:{limit}")
}

fn hard_limit() -> Result<u64, String> {
    let limits = std::fs::read_to_string("/proc/self/limits").map_err(|error| format!("limits: {error}"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let hard = line.and_then(|line| line.split_whitespace().nth(4)?.parse().ok());
    hard.ok_or_else(|| format!("no limit of open files in {limits}"))
}
