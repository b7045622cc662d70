//! The proxies that are compared at scale, each with the same routes in the form that suits it best: one worker on one
//! core, two backends, no access log.

mod envoy;
mod fieldgate;
mod haproxy;
mod nginx;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fieldgate_loadtests::rig::certificates::Authority;
use fieldgate_loadtests::rig::{Process, http, ports};

use super::limits::{PROXY_CPU, limited};
use super::table::{self, Table};
use crate::context::{Context, ensure};

/// A program with one way to be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTPRoutes in files.
    Fieldgate,
    /// A map file, looked up by the longest prefix.
    Haproxy,
    /// A server per host with a location per route.
    Nginx,
    /// A virtual host per host with its list of routes, as everybody writes it.
    Envoy,
    /// A virtual host per host with a matcher tree.
    EnvoyMatcher,
}

impl Kind {
    /// The gateway, then those of these peers that have a configuration here.
    pub fn chosen(peers: &[String]) -> Vec<Self> {
        let mut chosen = vec![Self::Fieldgate];
        for peer in peers {
            match peer.as_str() {
                "haproxy" => chosen.push(Self::Haproxy),
                "nginx" => chosen.push(Self::Nginx),
                "envoy" => chosen.extend([Self::Envoy, Self::EnvoyMatcher]),
                _ => {}
            }
        }
        chosen
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fieldgate => "fieldgate",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::EnvoyMatcher => "envoy-matcher",
        }
    }

    /// What the program says of itself; an error if it is missing.
    pub fn version(self, context: &Context) -> Result<String, String> {
        let (program, flag) = match self {
            Self::Fieldgate => (context.gateway.clone(), "--version"),
            Self::Haproxy => ("haproxy".into(), "-v"),
            Self::Nginx => ("nginx".into(), "-v"),
            Self::Envoy | Self::EnvoyMatcher => (envoy::binary()?, "--version"),
        };
        let output = Command::new(&program).arg(flag).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("unknown");
        // Envoy names itself by its path, nginx before its version.
        let words = line.trim_start_matches(&program.display().to_string()).trim();
        Ok(words.trim_start_matches("version:").trim().to_owned())
    }
}

/// What a proxy is to do.
pub struct Site<'a> {
    /// For its files; no other proxy has the same.
    pub directory: PathBuf,
    /// Its routes.
    pub table: Table,
    /// Where they lead.
    pub backends: [SocketAddr; 2],
    /// Where it listens, in plaintext.
    pub plain: SocketAddr,
    /// Where it listens with TLS, and what it shows.
    pub tls: Option<(SocketAddr, &'a Certificate)>,
    /// Connections that it must be able to hold.
    pub connections: usize,
    /// File descriptors that it may have.
    pub descriptors: u64,
    /// With the process beside the worker that a reload needs.
    pub reloads: bool,
}

impl Site<'_> {
    /// A file of this proxy's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<String, String> {
        let path = self.file(name);
        let parent = path.parent().unwrap_or(&self.directory);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path.display().to_string())
    }
}

/// A certificate in the files that peers want.
pub struct Certificate {
    /// What clients trust it by.
    pub authority: Authority,
    certified: fieldgate_loadtests::rig::certificates::Certified,
    chain: String,
    key: String,
    both: String,
}

impl Certificate {
    /// The host it is for.
    pub const HOST: &str = "edge.example.com";

    /// A new one, in files below `directory`.
    pub fn new(directory: &Path) -> Result<Self, String> {
        let authority = Authority::new(directory)?;
        let certified = authority.issue(&[Self::HOST])?;
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<_, String>(path.display().to_string())
        };
        let chain = write("edge.crt", &certified.certificate)?;
        let key = write("edge.key", &certified.key)?;
        let both = write("edge.pem", &(certified.certificate.clone() + &certified.key))?;
        Ok(Self { authority, certified, chain, key, both })
    }
}

/// A proxy that runs.
pub struct Proxy {
    /// Its process, which may have children.
    pub process: Process,
    /// Where it listens, in plaintext.
    pub plain: SocketAddr,
    /// Where it can be asked and told things, if that is a port.
    pub admin: SocketAddr,
    /// From its start until it answered a request for its last route.
    pub ready: Duration,
}

/// A program with its arguments.
struct Start {
    program: PathBuf,
    arguments: Vec<String>,
}

const READY: Duration = Duration::from_mins(2);

/// Writes a proxy's configuration, starts it and waits until it answers.
pub fn start(context: &Context, kind: Kind, site: &Site<'_>) -> Result<Proxy, String> {
    let admin = ports::free();
    std::fs::create_dir_all(&site.directory)
        .map_err(|error| format!("{}: {error}", site.directory.display()))?;
    let Start { program, arguments } = match kind {
        Kind::Fieldgate => fieldgate::configure(context, site, admin)?,
        Kind::Haproxy => haproxy::configure(site)?,
        Kind::Nginx => nginx::configure(site)?,
        Kind::Envoy | Kind::EnvoyMatcher => envoy::configure(site, kind)?,
    };
    let words = limited(site.descriptors, &program.display().to_string(), &arguments);
    let last = site.table.routes - 1;
    let (host, path) = (table::host(last), table::path(last));
    let started = Instant::now();
    let mut process =
        Process::start("proxy", &site.directory, Some(PROXY_CPU), Path::new("prlimit"), &words)?;
    process.wait_ready(READY, || {
        http::get_host(site.plain, &host, &path).is_ok_and(|answer| answer.status == 200)
    })?;
    Ok(Proxy { process, plain: site.plain, admin, ready: started.elapsed() })
}

/// How one route of a running proxy is changed.
pub enum Way {
    /// A file is replaced, whose content is one of these; then a signal is sent, if one is needed.
    File {
        /// Which.
        path: PathBuf,
        /// With the route to the one backend, and to the other.
        texts: [String; 2],
        /// Without SIG.
        signal: Option<&'static str>,
    },
    /// A command to HAProxy's socket.
    Socket {
        /// Where it is.
        path: PathBuf,
        /// As the texts of a file.
        commands: [String; 2],
    },
    /// An object is put to the gateway's admin port.
    Api {
        /// As the texts of a file.
        objects: [String; 2],
    },
}

/// The ways to change a route that a kind of proxy has, by their names.
pub fn ways(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Fieldgate => &["file", "api"],
        Kind::Haproxy => &["map", "reload"],
        Kind::Nginx => &["reload"],
        Kind::Envoy | Kind::EnvoyMatcher => &["rds file"],
    }
}

/// A way by its name.
pub fn way(kind: Kind, name: &str, site: &Site<'_>) -> Result<Way, String> {
    match (kind, name) {
        (Kind::Fieldgate, _) => Ok(fieldgate::way(name, site)),
        (Kind::Haproxy, _) => Ok(haproxy::way(name, site)),
        (Kind::Nginx, _) => Ok(nginx::way(site)),
        (Kind::Envoy | Kind::EnvoyMatcher, _) => Ok(envoy::way(site, kind)),
    }
}

/// The text for either backend that the middle route may lead to.
fn both(text: impl Fn(Option<(usize, &str)>) -> String, table: Table) -> [String; 2] {
    [table::BENCH, table::OTHER].map(|backend| text(Some((table.middle(), backend))))
}

impl Way {
    /// Does what needs not be part of the time that a change takes: a file is written beside its place.
    pub fn prepare(&self, turn: usize) -> Result<(), String> {
        let Self::File { path, texts, .. } = self else { return Ok(()) };
        let beside = beside(path);
        std::fs::write(&beside, &texts[turn % 2]).map_err(|error| format!("{}: {error}", beside.display()))
    }

    /// Makes the change. Odd turns lead to [`table::OTHER`], even ones back.
    pub fn make(&self, proxy: &Proxy, turn: usize) -> Result<(), String> {
        match self {
            Self::File { path, signal, .. } => {
                // Asked for again, the file is in its place already.
                if beside(path).exists() {
                    std::fs::rename(beside(path), path)
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                }
                signal.map_or(Ok(()), |signal| proxy.process.signal(signal))
            }
            Self::Socket { path, commands } => haproxy::command(path, &commands[turn % 2]),
            Self::Api { objects } => {
                let status = fieldgate::put(proxy.admin, &objects[turn % 2])?;
                ensure(status == 200, || format!("PUT {}: status {status}", fieldgate::OBJECTS))
            }
        }
    }
}

/// A name that every proxy leaves alone, in the same directory.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}
