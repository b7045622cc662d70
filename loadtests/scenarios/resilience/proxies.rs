//! The proxies, each told to do the same job by its own good configuration, in a file of its own. What is the same for
//! all of them is here: times, numbers of tries, limits.

mod envoy;
mod fieldgate;
mod haproxy;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldgate_loadtests::rig::{Process, ports};

use super::farm::Secrets;
use crate::bench::find;
use crate::context::{Context, WORKERS};

/// Between two active checks, and the bound of each.
const CHECK_SECONDS: u32 = 1;
/// How long an endpoint that failed is left alone at first.
const EJECTION_SECONDS: u32 = 5;
/// Failures in a row that eject one.
const FAILURES: u32 = 5;
/// Tries after the first.
const RETRIES: u32 = 3;
/// One try.
const TRY_SECONDS: u32 = 1;
/// A whole request.
const REQUEST_SECONDS: u32 = 5;
/// Of a connection that is opened.
const CONNECT: Duration = Duration::from_millis(500);
/// How long an endpoint that is back gets less.
const SLOW_START_SECONDS: u32 = 5;
/// Retries in flight: percent of requests, and what is always allowed.
const BUDGET: (u32, u32) = (25, 20);
/// Paths of gRPC begin with it; its requests may be tried again.
const GRPC: &str = "/grpc";

/// What a proxy is to do.
#[derive(Clone, Debug)]
pub struct Job {
    pub targets: Targets,
    pub purpose: Purpose,
    /// The one CPU to run on; then with one thread.
    pub cpu: Option<usize>,
    /// Endpoints speak TLS, and show certificates by this authority for [`Secrets::NAME`].
    pub tls: Option<Secrets>,
}

/// The endpoints.
#[derive(Clone, Debug)]
pub enum Targets {
    Addresses(Vec<SocketAddr>),
    /// All that a name stands for, as this server says.
    Name {
        name: &'static str,
        port: u16,
        server: SocketAddr,
    },
}

/// What it is to be good at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Checks, ejection, retries: no error that can be hidden.
    Availability,
    /// So many requests at once at each endpoint and a bounded queue before them. With one thread.
    Capacity(Limits),
    /// As much as concurrency found by itself allows. With one thread.
    Adaptive,
    /// To carry what it can.
    Throughput,
}

/// Limits in front of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections, of a request each, per endpoint.
    pub concurrency: u32,
    /// Requests that wait.
    pub queue: u32,
    /// How long they do.
    pub wait: Duration,
}

impl Job {
    fn threads(&self) -> usize {
        if self.purpose == Purpose::Availability && self.cpu.is_none() { WORKERS } else { 1 }
    }
}

/// A proxy that is here.
pub struct Proxy {
    pub name: &'static str,
    /// As it says itself.
    pub version: String,
    program: PathBuf,
    configure: fn(&Self, &Job, &Path, SocketAddr) -> Result<Command, String>,
}

/// What starts a proxy.
struct Command {
    program: PathBuf,
    arguments: Vec<String>,
}

/// A proxy that runs.
pub struct Running {
    pub process: Process,
    pub address: SocketAddr,
}

/// The gateway, and those of the peers that were asked for and are here; and why others are not.
pub fn find(context: &Context) -> Result<(Vec<Proxy>, Vec<String>), String> {
    let gateway = Proxy {
        name: "fieldgate",
        version: find::version(&context.gateway, "--version"),
        program: context.gateway.clone(),
        configure: fieldgate::configure,
    };
    let (mut proxies, mut skipped) = (vec![gateway], Vec::new());
    if context.ci {
        return Ok((proxies, skipped));
    }
    for name in context.peers.iter().map(String::as_str) {
        let found = match name {
            "envoy" => find::envoy().map(|program| Proxy {
                name: "envoy",
                version: find::version(&program, "--version"),
                program,
                configure: envoy::configure,
            }),
            "haproxy" => find::on_path("haproxy").map(|program| Proxy {
                name: "haproxy",
                version: find::version(&program, "-v"),
                program,
                configure: haproxy::configure,
            }),
            // Peers of benches that do not do all of this.
            _ => continue,
        };
        match found {
            Ok(proxy) => proxies.push(proxy),
            Err(why) if context.peers_named => return Err(format!("peer {name}: {why}")),
            Err(why) => skipped.push(format!("{name} is left out: {why}")),
        }
    }
    Ok((proxies, skipped))
}

impl Proxy {
    /// Whether it can do a job at all.
    pub fn can(&self, purpose: Purpose) -> bool {
        !(self.name == "haproxy" && purpose == Purpose::Adaptive)
    }

    /// Starts it, with its files below `directory`.
    pub fn start(&self, job: &Job, directory: &Path) -> Result<Running, String> {
        std::fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        let address = ports::free();
        let Command { program, arguments } = (self.configure)(self, job, directory, address)?;
        let mut process = Process::start(self.name, directory, job.cpu, &program, &arguments)?;
        process.wait_listening(address)?;
        Ok(Running { process, address })
    }
}

fn write(directory: &Path, name: &str, text: &str) -> Result<String, String> {
    let path = directory.join(name);
    super::write(&path, text)?;
    Ok(path.display().to_string())
}
