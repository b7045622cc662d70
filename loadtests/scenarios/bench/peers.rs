//! The proxies that are compared. Each is told to do the same job by its own best configuration, in a file of its own:
//! one worker, a plaintext and a TLS address, ten routes by path, and what the case asks for. One more peer is one more
//! file and one more entry of [`KINDS`].

mod caddy;
mod envoy;
pub mod fieldgate;
mod floor;
mod haproxy;
mod nginx;
mod pingora;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use fieldgate_loadtests::rig::certificates::{Authority, Certified};
use fieldgate_loadtests::rig::tokens::Issuer;
use fieldgate_loadtests::rig::{Process, ports};
use serde_json::json;

use super::load::{Addresses, CLIENT_CHAIN, CLIENT_KEY, CLIENT_TOKEN};
use super::setup::{GROUP, Identities, PRINCIPAL, Site};
use super::{PROXY_CPU, find};

/// Routes by path that a proxy has, besides the one for everything else.
const ROUTES: usize = 9;

/// A kind of peer.
struct Kind {
    name: &'static str,
    find: fn() -> Result<PathBuf, String>,
    /// What makes it say its version and end.
    version: &'static str,
    /// Writes its configuration and gives the arguments it is started with, or nothing if it cannot do this job.
    configure: fn(&Site<'_>, Addresses) -> Configured,
}

/// Arguments for a peer, if it can do the job.
type Configured = Result<Option<Vec<String>>, String>;

const KINDS: [Kind; 5] = [
    Kind { name: "haproxy", find: || find::on_path("haproxy"), version: "-v", configure: haproxy::configure },
    Kind { name: "nginx", find: || find::on_path("nginx"), version: "-v", configure: nginx::configure },
    Kind { name: "envoy", find: find::envoy, version: "--version", configure: envoy::configure },
    Kind { name: "caddy", find: find::caddy, version: "version", configure: caddy::configure },
    Kind { name: "pingora", find: find::pingora, version: "--version", configure: pingora::configure },
];

/// Relays that do not know HTTP: what no proxy can be cheaper than. No peers, so they are there only when named.
const FLOORS: [Kind; 3] = [
    Kind { name: "floor", find: find::floor, version: "--version", configure: floor::epoll },
    Kind { name: "floor-splice", find: find::floor, version: "--version", configure: floor::splice },
    Kind { name: "floor-uring", find: find::floor, version: "--version", configure: floor::uring },
];

/// Whether this is a floor, and so no peer to be measured against.
pub fn is_floor(name: &str) -> bool {
    FLOORS.iter().any(|floor| floor.name == name)
}

/// A peer that is here.
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// As it says itself.
    pub version: String,
    program: PathBuf,
    kind: &'static Kind,
}

/// All peers there can be.
pub fn names() -> Vec<String> {
    KINDS.iter().map(|kind| kind.name.to_owned()).collect()
}

/// Finds peers by name, and says why others are skipped. One that somebody `named` must be there.
pub fn find(names: &[String], named: bool) -> Result<(Vec<Peer>, Vec<String>), String> {
    let (mut peers, mut skipped) = (Vec::new(), Vec::new());
    for name in names {
        let kind = KINDS.iter().chain(&FLOORS).find(|kind| kind.name == name);
        let kind = kind.ok_or_else(|| format!("no peer {name}; there are {}", self::names().join(", ")))?;
        match (kind.find)() {
            Ok(program) => {
                let version = find::version(&program, kind.version);
                peers.push(Peer { name: kind.name, version, program, kind });
            }
            Err(why) if named => return Err(format!("peer {name}: {why}")),
            Err(why) => skipped.push(format!("{name} is left out: {why}")),
        }
    }
    Ok((peers, skipped))
}

impl Peer {
    /// Starts it, if it can do what the site asks for.
    pub fn start(&self, site: &Site<'_>) -> Result<Option<Subject>, String> {
        let mut to = addresses();
        if is_floor(self.name) {
            // Without TLS: cases that speak it fail.
            to.tls = to.plain;
        }
        if site.setup.identities != Identities::None && self.name != "envoy" {
            // None of the others verifies tokens without something that is not part of it.
            return Ok(None);
        }
        let Some(arguments) = (self.kind.configure)(site, to)? else { return Ok(None) };
        let mut process =
            Process::start(self.name, &site.directory, Some(PROXY_CPU), &self.program, &arguments)?;
        process.wait_listening(to.plain)?;
        process.wait_listening(to.tls)?;
        Ok(Some(Subject { name: self.name.to_owned(), process, to }))
    }
}

/// A proxy under measurement.
pub struct Subject {
    /// What it is.
    pub name: String,
    /// Its process.
    pub process: Process,
    /// Where it listens.
    pub to: Addresses,
}

/// The certificate that all of them show, and what clients prove who they are by.
pub struct Certificate {
    certified: Certified,
    chain: String,
    key: String,
    both: String,
    authority: Authority,
    issuer: Issuer,
}

impl Certificate {
    /// A new one, in files below `directory`.
    pub fn new(directory: &Path) -> Result<Self, String> {
        let authority = Authority::new(directory)?;
        let certified = authority.issue(&["edge.example.com", "127.0.0.1"])?;
        let file = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<_, String>(path.display().to_string())
        };
        let chain = file("edge.crt", &certified.certificate)?;
        let key = file("edge.key", &certified.key)?;
        let both = file("edge.pem", &(certified.certificate.clone() + &certified.key))?;
        let client = authority.issue_client(&format!("spiffe://{PRINCIPAL}"))?;
        file(CLIENT_CHAIN, &client.certificate)?;
        file(CLIENT_KEY, &client.key)?;
        let issuer = Issuer::new("https://issuer.example.com", "bench")?;
        let claims =
            json!({"sub": "u-1", "aud": "shop", "groups": ["staff", GROUP], "exp": 4_102_444_800_u64});
        file(CLIENT_TOKEN, &issuer.token(&claims)?)?;
        Ok(Self { certified, chain, key, both, authority, issuer })
    }
}

fn addresses() -> Addresses {
    Addresses { plain: ports::free(), tls: ports::free() }
}

/// Writes a configuration; gives its path.
fn write(site: &Site<'_>, name: &str, text: &str) -> Result<String, String> {
    let path = site.file(name);
    std::fs::write(&path, text).map_err(|error| format!("{path}: {error}"))?;
    Ok(path)
}

/// A text for each of the routes by path.
fn each_route(line: impl Fn(usize) -> String) -> String {
    (0..ROUTES).fold(String::new(), |mut text, route| {
        let _ = write!(text, "{}", line(route));
        text
    })
}
