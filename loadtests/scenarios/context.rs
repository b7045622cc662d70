//! What every scenario is given, and the stage that most of them play on.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use fieldgate_loadtests::load::Tally;
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Backend, ConfigDir, Gateway, GatewayOptions, Process, ports};
use tempfile::TempDir;

use crate::{Arguments, bench};

/// Workers of a gateway under test, where no bench says otherwise.
pub const WORKERS: usize = 2;

/// How the run was asked for.
pub struct Context {
    /// The gateway's binary.
    pub gateway: PathBuf,
    /// Reduced counts.
    pub ci: bool,
    /// Where a bench's figures go.
    pub json: Option<PathBuf>,
    /// Where its tables go.
    pub markdown: Option<PathBuf>,
    /// The directory that its plots go to.
    pub plots: Option<PathBuf>,
    /// Figures of earlier runs.
    pub reports: Vec<PathBuf>,
    /// Routes of routes-100k.
    pub routes: Option<usize>,
    /// Rounds of a bench.
    pub rounds: usize,
    /// Seconds of a measurement.
    pub seconds: u32,
    /// Connections of a bench.
    pub connections: Vec<usize>,
    /// Peers of a bench.
    pub peers: Vec<String>,
    /// Whether somebody named them, so that each has to be there.
    pub peers_named: bool,
    /// Whether the proxy itself is to be overloaded.
    pub gateway_itself: bool,
    /// Cases of a bench; all if empty.
    pub cases: Vec<String>,
    keep: bool,
}

/// A scenario's verdict: figures, or why it failed.
pub type Outcome = Result<Figures, String>;

/// What a scenario that did not fail has to say.
#[derive(Default)]
pub struct Figures {
    /// Lines to print.
    pub lines: Vec<String>,
    /// Why it could not run.
    pub skipped: Option<String>,
}

impl Figures {
    /// Adds a line.
    pub fn add(&mut self, line: impl Display) {
        self.lines.push(line.to_string());
    }

    /// The outcome of what cannot run here.
    pub fn skipped(why: impl Display) -> Self {
        Self { lines: Vec::new(), skipped: Some(why.to_string()) }
    }
}

impl Context {
    pub fn new(arguments: &Arguments) -> Result<Self, String> {
        let given =
            arguments.gateway.clone().or_else(|| std::env::var_os("FIELDGATE_BIN").map(PathBuf::from));
        let gateway = given.unwrap_or_else(|| PathBuf::from("target/release/fieldgate"));
        let gateway = std::fs::canonicalize(&gateway).map_err(|error| {
            format!("{}: {error}; build the gateway, or say with --gateway where it is", gateway.display())
        })?;
        Ok(Self {
            gateway,
            ci: arguments.ci,
            json: arguments.json.clone(),
            markdown: arguments.markdown.clone(),
            plots: arguments.plots.clone(),
            reports: arguments.from.clone(),
            routes: arguments.routes,
            rounds: arguments.rounds.max(1),
            seconds: arguments.seconds.max(1),
            connections: arguments.connections.clone(),
            peers: arguments.peers.clone().unwrap_or_else(bench::peer_names),
            peers_named: arguments.peers.is_some(),
            gateway_itself: arguments.gateway_itself,
            cases: arguments.cases.clone(),
            keep: arguments.keep,
        })
    }

    /// The full count, or the reduced one.
    pub fn count<T>(&self, full: T, reduced: T) -> T {
        if self.ci { reduced } else { full }
    }

    /// Options for a gateway with the usual number of workers.
    pub fn options(&self) -> GatewayOptions {
        GatewayOptions { binary: self.gateway.clone(), workers: WORKERS, cpu: None, flags: Vec::new() }
    }

    /// An empty stage.
    pub fn stage(&self) -> Result<Stage, String> {
        let mut builder = tempfile::Builder::new();
        let temporary = builder.prefix("fieldgate-").disable_cleanup(self.keep).tempdir();
        let temporary = temporary.map_err(|error| format!("temporary directory: {error}"))?;
        if self.keep {
            println!("     kept: {}", temporary.path().display());
        }
        let config = ConfigDir::new(temporary.path())?;
        Ok(Stage { config, temporary })
    }
}

/// A directory for one scenario: configuration, logs, files.
pub struct Stage {
    pub config: ConfigDir,
    temporary: TempDir,
}

impl Stage {
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    pub fn backend(&self, name: &str) -> Result<Backend, String> {
        Backend::start(name, self.path())
    }

    pub fn gateway(&self, options: &GatewayOptions) -> Result<Gateway, String> {
        Gateway::start(options, &self.config, self.path())
    }

    /// Writes Gateway `edge` with one plaintext listener; gives its address.
    pub fn plain_edge(&self) -> Result<std::net::SocketAddr, String> {
        let address = ports::free();
        self.config.write("gateway", &config::gateway("edge", &[Listener::http("web", address.port())]))?;
        Ok(address)
    }

    /// Starts backends and writes a Pool for each, of its name.
    pub fn pools(&self, names: &[&str]) -> Result<Vec<Backend>, String> {
        let start = |name: &&str| {
            let backend = self.backend(name)?;
            self.config.write(&format!("pool-{name}"), &config::pool(name, &[backend.address], "http1"))?;
            Ok(backend)
        };
        names.iter().map(start).collect()
    }
}

/// Fails unless the condition holds.
pub fn ensure(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise()) }
}

/// Fails if a gateway's log tells of a panic: none can be caused from outside.
pub fn ensure_no_panic(gateway: &Process) -> Result<(), String> {
    let log = gateway.log();
    let panic = log
        .lines()
        .find(|line| line.contains("panic, a mistake in this program") || line.contains("panicked at"));
    panic.map_or(Ok(()), |line| Err(format!("the gateway panicked: {line}")))
}

/// Fails unless the access log has one line for each of so many requests.
pub fn ensure_logged(log: &Path, requests: u64) -> Result<(), String> {
    let text = std::fs::read_to_string(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let lines = text.lines().count() as u64;
    ensure(lines == requests, || format!("{requests} requests, but {lines} lines in the access log"))
}

/// Fails unless every request of a load got its answer, and that was no refusal.
pub fn ensure_flawless(what: &str, tally: &Tally) -> Result<(), String> {
    let accounted: u64 = tally.outcomes.values().sum();
    ensure(tally.sent > 0, || format!("{what}: nothing was sent"))?;
    ensure(accounted == tally.sent, || {
        format!("{what}: {} sent, but {accounted} accounted for", tally.sent)
    })?;
    ensure(tally.failures() == 0, || {
        format!("{what}: {} of {} failed: {}", tally.failures(), tally.sent, tally.describe_failures())
    })
}
