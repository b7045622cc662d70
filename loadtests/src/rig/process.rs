//! Processes that end with the value that stands for them, and what `/proc` says of them.

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::cpu::TICKS_PER_SECOND;
use super::{ConfigDir, http, ports, wait};

/// A start may load a large configuration on a busy machine.
const START: Duration = Duration::from_mins(2);
const CHANGE: Duration = Duration::from_secs(10);

/// A child process. It is killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its output in `directory/NAME.log`, on one CPU if `cpu` says which.
    pub fn start(
        name: &str,
        directory: &Path,
        cpu: Option<usize>,
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
    ) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{name}: cannot start {}: {error}", program.display());
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).map_err(failed)?;
        let mut command = match cpu {
            None => Command::new(program),
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(program);
                command
            }
        };
        let child = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it run on these CPUs only (`0,1`), with all its threads.
    pub fn confine(&self, cpus: &str) -> Result<(), String> {
        let output = Command::new("taskset")
            .args(["-acp", cpus, &self.pid().to_string()])
            .output()
            .map_err(|error| format!("taskset: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{}: taskset -acp {cpus}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// Sends a signal by its name without SIG.
    pub fn signal(&self, signal: &str) -> Result<(), String> {
        let status = Command::new("kill")
            .args(["-s", signal, &self.pid().to_string()])
            .status()
            .map_err(|error| format!("kill: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("cannot send {signal} to {}", self.name)) }
    }

    /// Its exit status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub fn wait_exit(&mut self, bound: Duration) -> Result<ExitStatus, String> {
        let what = format!("the end of {}", self.name);
        wait::until(bound, &what, || self.exited())
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // Either fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Seconds of CPU that all its threads have used.
    pub fn cpu_seconds(&self) -> Result<f64, String> {
        let stat = self.proc_file("stat")?;
        // The name, in brackets, may hold spaces; utime and stime are fields 14 and 15.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => Ok((user + system) / TICKS_PER_SECOND),
            _ => Err(format!("{}: unreadable /proc/PID/stat: {stat}", self.name)),
        }
    }

    /// Its resident memory in MiB.
    pub fn memory_mib(&self) -> Result<f64, String> {
        self.status_mib("VmRSS:")
    }

    /// The most resident memory that it has ever had, in MiB.
    pub fn peak_memory_mib(&self) -> Result<f64, String> {
        self.status_mib("VmHWM:")
    }

    /// The last lines that it wrote.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// All that it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Polls until it is ready, or fails with its output as soon as it has ended.
    pub fn wait_ready(&mut self, bound: Duration, mut ready: impl FnMut() -> bool) -> Result<(), String> {
        let what = format!("{} to be ready", self.name);
        let outcome =
            wait::until(bound, &what, || if ready() { Some(Ok(())) } else { self.exited().map(Err) });
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => Err(format!("{} ended ({status}):\n{}", self.name, self.log_tail())),
            Err(error) => Err(format!("{error}; its output:\n{}", self.log_tail())),
        }
    }

    /// Polls until something accepts connections at `address`.
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<(), String> {
        self.wait_ready(START, || http::connect(address).is_ok())
    }

    fn proc_file(&self, file: &str) -> Result<String, String> {
        let path = format!("/proc/{}/{file}", self.pid());
        std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    }

    fn status_mib(&self, field: &str) -> Result<f64, String> {
        let status = self.proc_file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).ok_or_else(|| format!("{}: no {field} in /proc/PID/status", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A backend as a process: the running program started anew with the argument `backend`.
pub struct Backend {
    /// The process.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its `x-backend`.
    pub name: String,
}

impl Backend {
    /// Starts a backend and waits until it answers.
    pub fn start(name: &str, directory: &Path) -> Result<Self, String> {
        Self::start_at(name, ports::free(), directory, None)
    }

    /// Starts a backend at this address, on one CPU if `cpu` says which.
    pub fn start_at(
        name: &str,
        address: SocketAddr,
        directory: &Path,
        cpu: Option<usize>,
    ) -> Result<Self, String> {
        Self::start_with(name, address, directory, cpu, &[])
    }

    /// Starts a backend that answers every request as it would answer one for `path`.
    pub fn start_always(name: &str, path: &str, directory: &Path) -> Result<Self, String> {
        Self::start_with(name, ports::free(), directory, None, &["--always", path])
    }

    /// As [`Backend::start_at`], with options more.
    pub fn start_with(
        name: &str,
        address: SocketAddr,
        directory: &Path,
        cpu: Option<usize>,
        options: &[&str],
    ) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
        let listen = address.to_string();
        let arguments = [&["backend", "--listen", listen.as_str(), "--name", name], options].concat();
        let mut process = Process::start(name, directory, cpu, &program, &arguments)?;
        process.wait_listening(address)?;
        Ok(Self { process, address, name: name.to_owned() })
    }

    /// One of its counters.
    pub fn counter(&self, name: &str) -> Result<u64, String> {
        let stats = http::get_json(self.address, "/stats")?;
        stats[name].as_u64().ok_or_else(|| format!("{}: no counter {name}", self.name))
    }
}

/// How a gateway is started.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The binary.
    pub binary: PathBuf,
    /// Worker threads.
    pub workers: usize,
    /// The one CPU to run on, or all.
    pub cpu: Option<usize>,
    /// Flags more.
    pub flags: Vec<String>,
}

/// A gateway as a process.
pub struct Gateway {
    /// The process.
    pub process: Process,
    /// Its admin port.
    pub admin: SocketAddr,
}

impl Gateway {
    /// Starts a gateway on a directory and waits until it says that it is ready.
    pub fn start(options: &GatewayOptions, config: &ConfigDir, directory: &Path) -> Result<Self, String> {
        Self::start_named("gateway", options, config, directory)
    }

    /// As [`Gateway::start`], with a name for its log.
    pub fn start_named(
        name: &str,
        options: &GatewayOptions,
        config: &ConfigDir,
        directory: &Path,
    ) -> Result<Self, String> {
        let mut gateway = Self::launch(name, options, config.path(), directory, ports::free())?;
        gateway.wait_ready()?;
        Ok(gateway)
    }

    /// Starts a gateway on this configuration and this admin port, and waits for nothing.
    pub fn launch(
        name: &str,
        options: &GatewayOptions,
        config: &Path,
        directory: &Path,
        admin: SocketAddr,
    ) -> Result<Self, String> {
        let mut arguments: Vec<String> = vec![
            "run".to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
            "--admin".to_owned(),
            admin.to_string(),
            "--workers".to_owned(),
            options.workers.to_string(),
        ];
        arguments.extend(options.flags.iter().cloned());
        let process = Process::start(name, directory, options.cpu, &options.binary, &arguments)?;
        Ok(Self { process, admin })
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) -> Result<(), String> {
        let admin = self.admin;
        self.process
            .wait_ready(START, || http::get(admin, "/ready").is_ok_and(|response| response.status == 200))
    }

    /// The sum of a metric's series whose labels contain this text.
    pub fn metric(&self, name: &str, labels: &str) -> Result<f64, String> {
        let response = http::get(self.admin, "/metrics")?;
        let text = String::from_utf8_lossy(&response.body).into_owned();
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let series = rest.is_empty() || rest.starts_with(['{', ' ']);
            (series && rest.contains(labels)).then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        };
        Ok(text.lines().filter_map(value).sum())
    }

    /// The generation of the configuration that it runs.
    pub fn generation(&self) -> Result<u64, String> {
        let status = http::get_json(self.admin, "/api/v1/status")?;
        status["generation"].as_u64().ok_or_else(|| format!("no generation in /api/v1/status: {status}"))
    }

    /// Makes a change and waits until a later generation runs; gives that generation.
    pub fn change(&self, change: impl FnOnce() -> Result<(), String>) -> Result<u64, String> {
        let before = self.generation()?;
        change()?;
        let what = format!("a generation after {before}");
        wait::until(CHANGE, &what, || self.generation().ok().filter(|generation| *generation > before))
            .map_err(|error| format!("{error}; its log:\n{}", self.process.log_tail()))
    }
}
