//! Counts whole exchanges: a real gateway under callgrind, real sockets, and only its worker's thread.
//!
//! Each figure is the difference between a long run and a short one, so that opening connections, handshakes and the
//! first use of everything cancel out. What is done at a tick of the clock is left out as far as it is known by name.

use std::path::{Path, PathBuf};
use std::process::Command;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::certificates::Authority;
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{Backend, ConfigDir, Gateway, Process, ports};

use super::Keep;
use super::baseline::{Figure, Figures};
use super::profile::Profile;

/// Requests before anything is counted.
const WARM_UP: u64 = 200;
/// Requests of the run that is taken off.
const SHORT: u64 = 500;
/// Requests of the run that it is taken off from.
const LONG: u64 = 2500;
/// Routes besides those that the exchanges take.
const ROUTES: usize = 8;
/// What is done by time and not by request: the slower the machine, the more of it falls on one exchange. Without it a
/// machine under load counts what one at rest counts.
const BY_THE_CLOCK: [&str; 1] = ["fieldgate_wire::timer::Shared::poll_drive"];
/// Begins what goes to an upstream that speaks HTTP/2.
const HTTP2_UPSTREAM: &str = "/h2";

const ALL: [&str; 6] = [
    "exchange/h1",
    "exchange/h1-tls",
    "exchange/h1-to-h2",
    "exchange/h2-tls",
    "exchange/h2-tls-16-streams",
    "exchange/h2-tls-to-h2",
];

/// Counts all exchanges whose names begin with `only`.
pub fn count(gateway: &Path, only: &str, keep: &Keep<'_>) -> Result<Figures, String> {
    let wanted: Vec<&str> = ALL.into_iter().filter(|name| name.starts_with(only)).collect();
    if wanted.is_empty() {
        return Ok(Figures::new());
    }
    let mut stage = Stage::start(gateway)?;
    let mut figures = Figures::new();
    for name in wanted {
        let plan = stage.plan(name);
        let figure = stage.figure(&plan, |long| keep.profile(name, long));
        figures.insert(name.to_owned(), figure.map_err(|error| format!("{name}: {error}"))?);
    }
    Ok(figures)
}

/// A gateway under callgrind with a backend behind it.
struct Stage {
    // In the order in which they have to go.
    gateway: Gateway,
    _backend: Backend,
    plain: std::net::SocketAddr,
    tls: std::net::SocketAddr,
    ca: PathBuf,
    dumps: u32,
    directory: tempfile::TempDir,
}

impl Stage {
    fn start(binary: &Path) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = directory.path();
        let backend = Backend::start("guard", path)?;
        let (plain, tls, admin) = (ports::free(), ports::free(), ports::free());
        let authority = Authority::new(path)?;
        let objects = ConfigDir::new(path)?;
        let listeners = [Listener::http("web", plain.port()), Listener::https("secure", tls.port(), "edge")];
        objects.write("gateway", &config::gateway("edge", &listeners))?;
        objects.write("secret", &config::secret("edge", &authority.issue(&["127.0.0.1"])?))?;
        objects.write("policy", POLICY)?;
        for (pool, protocol) in [("http1", "http1"), ("http2", "http2")] {
            objects.write(pool, &config::pool(pool, &[backend.address], protocol))?;
        }
        objects.write("route", &config::route("all", &[("http1", 1)]))?;
        objects.write("route-http2", &route("http2", "http2", HTTP2_UPSTREAM))?;
        for n in 0..ROUTES {
            objects.write(&format!("route-{n}"), &route(&format!("r{n}"), "http1", &format!("/r{n}")))?;
        }
        let arguments = [
            "--tool=callgrind".to_owned(),
            "--separate-threads=yes".to_owned(),
            format!("--callgrind-out-file={}", path.join("dump").display()),
            format!("--vgdb-prefix={}", path.join("vgdb").display()),
            binary.display().to_string(),
            "run".to_owned(),
            format!("--config={}", objects.path().display()),
            format!("--admin={admin}"),
            "--workers=1".to_owned(),
        ];
        let process = Process::start("gateway", path, None, Path::new("valgrind"), &arguments)?;
        let mut gateway = Gateway { process, admin };
        gateway.wait_ready()?;
        Ok(Self { gateway, _backend: backend, plain, tls, ca: authority.file, dumps: 0, directory })
    }

    /// How an exchange is asked for.
    fn plan(&self, name: &str) -> Plan {
        let tls = name.contains("-tls");
        let mut plan = Plan::new(if tls { self.tls } else { self.plain });
        plan.connections = 1;
        plan.ca = tls.then(|| self.ca.clone());
        if name.ends_with("-to-h2") {
            HTTP2_UPSTREAM.clone_into(&mut plan.path);
        }
        if name.starts_with("exchange/h2") {
            plan = plan.http2(if name.ends_with("-16-streams") { 16 } else { 1 });
        }
        plan
    }

    /// `keep` is given the profile of the long run.
    fn figure(
        &mut self,
        plan: &Plan,
        keep: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<Figure, String> {
        run(plan, WARM_UP)?;
        let (short, _) = self.counted(plan, SHORT)?;
        let (long, file) = self.counted(plan, LONG)?;
        keep(&file)?;
        // The short run opened connections; one that did so without memory would not have been seen to allocate.
        if short.allocations() == 0 {
            return Err("no allocation was seen; is the allocator's name among those known?".to_owned());
        }
        let over = |of: &dyn Fn(&Profile) -> u64| of(&long).saturating_sub(of(&short));
        let instructions = over(&|profile| profile.instructions_without(&BY_THE_CLOCK));
        Ok(Figure::of(instructions, over(&Profile::allocations), LONG - SHORT))
    }

    /// What the worker did for so many requests, and the file that says it.
    fn counted(&mut self, plan: &Plan, requests: u64) -> Result<(Profile, PathBuf), String> {
        self.tell("zero")?;
        run(plan, requests)?;
        self.tell("dump")?;
        self.dumps += 1;
        self.worker_dump()
    }

    /// Of a dump's files, one per thread, that of the thread that did the most.
    fn worker_dump(&self) -> Result<(Profile, PathBuf), String> {
        let beginning = format!("dump.{}-", self.dumps);
        let directory = self.directory.path();
        let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
        let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let of_dump = files.filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&beginning))
        });
        let profiles: Vec<_> =
            of_dump.map(|path| Ok((Profile::read(&path)?, path))).collect::<Result<_, String>>()?;
        let most = profiles.into_iter().max_by_key(|(profile, _)| profile.instructions());
        most.ok_or_else(|| format!("callgrind wrote no {beginning}*"))
    }

    /// Gives callgrind a command, and returns when it has been carried out.
    fn tell(&self, command: &str) -> Result<(), String> {
        let output = Command::new("vgdb")
            .arg(format!("--vgdb-prefix={}", self.directory.path().join("vgdb").display()))
            .arg(format!("--pid={}", self.gateway.process.pid()))
            .arg(command)
            .output()
            .map_err(|error| format!("vgdb: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("vgdb {command}: {said}\n{}", self.gateway.process.log_tail()))
    }
}

/// Sends so many requests, of which none may fail.
fn run(plan: &Plan, requests: u64) -> Result<(), String> {
    let plan = Plan { requests: Some(requests), ..plan.clone() };
    let tally = plan.run()?;
    if tally.failures() > 0 || tally.completed() != requests {
        return Err(format!("not all of {requests} requests were answered: {:#}", tally.report()));
    }
    Ok(())
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin, /admin/*]}}]}]
";

fn route(name: &str, pool: &str, prefix: &str) -> String {
    let matches = format!("    matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n");
    config::route_with_rule(name, &[(pool, 1)], &matches)
}
