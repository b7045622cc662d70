//! The backends: real processes on the hosts of a network, each with a socket to take faults at.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_loadtests::rig::certificates::Authority;
use fieldgate_loadtests::rig::{Process, http, wait};

use super::network::Network;
use crate::context::ensure;

const START: Duration = Duration::from_secs(20);

/// How TLS handshakes with a backend end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Good,
    /// A certificate that has expired.
    Expired,
    /// A certificate for another name.
    WrongName,
    /// Never.
    Stalled,
    /// In a RST.
    Reset,
}

/// An authority, and files of certificates by it.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// The authority's certificate.
    pub authority: PathBuf,
    good: (PathBuf, PathBuf),
    expired: (PathBuf, PathBuf),
    wrong_name: (PathBuf, PathBuf),
}

impl Secrets {
    /// The name that good certificates are for.
    pub const NAME: &str = "backend.example";

    /// New ones, in this directory.
    pub fn new(directory: &Path) -> Result<Self, String> {
        let authority = Authority::new(directory)?;
        Ok(Self {
            good: authority.issue(&[Self::NAME])?.write(directory, "good")?,
            expired: authority.issue_expired(&[Self::NAME])?.write(directory, "expired")?,
            wrong_name: authority.issue(&["other.example"])?.write(directory, "wrong-name")?,
            authority: authority.file,
        })
    }

    fn options(&self, handshake: Handshake) -> Vec<String> {
        let (certificate, key) = match handshake {
            Handshake::Expired => &self.expired,
            Handshake::WrongName => &self.wrong_name,
            Handshake::Good | Handshake::Stalled | Handshake::Reset => &self.good,
        };
        let handshakes = match handshake {
            Handshake::Stalled => "stalled",
            Handshake::Reset => "reset",
            Handshake::Good | Handshake::Expired | Handshake::WrongName => "done",
        };
        let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
        ["--certificate", &certificate, "--key", &key, "--handshakes", handshakes].map(str::to_owned).into()
    }
}

/// Backends by their hosts' numbers; host 0 is named `b0`.
pub struct Farm {
    pub network: Arc<Network>,
    directory: PathBuf,
    options: Vec<String>,
    /// They speak TLS, by these files.
    tls: Option<Secrets>,
    backends: Vec<Process>,
}

impl Farm {
    /// Starts as many; each with these options.
    pub fn start(
        network: &Arc<Network>,
        count: usize,
        directory: &Path,
        options: &[&str],
        tls: Option<Secrets>,
    ) -> Result<Self, String> {
        let mut farm = Self {
            network: Arc::clone(network),
            directory: directory.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            tls,
            backends: Vec::new(),
        };
        for host in 0..count {
            let process = farm.launch(host, Handshake::Good)?;
            farm.backends.push(process);
        }
        (0..count).try_for_each(|host| farm.wait_serving(host))?;
        Ok(farm)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.backends.len()
    }

    /// Where all of them serve.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.len()).map(|host| self.network.address(host)).collect()
    }

    /// The process of a host.
    pub fn process(&self, host: usize) -> &Process {
        &self.backends[host]
    }

    /// Ends one at once.
    pub fn kill(&mut self, host: usize) {
        self.backends[host].kill();
    }

    /// Starts one anew that was killed, and waits until it takes orders.
    pub fn restart(&mut self, host: usize) -> Result<(), String> {
        self.restart_with(host, Handshake::Good)
    }

    /// Starts it with handshakes that end like this.
    pub fn restart_with(&mut self, host: usize, handshake: Handshake) -> Result<(), String> {
        self.backends[host] = self.launch(host, handshake)?;
        wait::until_true(START, &format!("b{host} to take orders"), || self.order(host, "heal").is_ok())
    }

    /// Tells one of a fault, or of its end.
    pub fn order(&self, host: usize, line: &str) -> Result<(), String> {
        let path = self.control(host);
        let ask = || {
            let stream = UnixStream::connect(&path)?;
            writeln!(&stream, "{line}")?;
            let mut answer = String::new();
            BufReader::new(&stream).read_line(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))?;
        ensure(answer.trim() == "ok", || format!("b{host}: {line}: {answer}"))
    }

    fn launch(&self, host: usize, handshake: Handshake) -> Result<Process, String> {
        let program = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
        let (program, mut words) = self.network.command(&program);
        let name = format!("b{host}");
        let control = self.control(host).display().to_string();
        let address = self.network.address(host).to_string();
        words.extend(
            ["backend", "--listen", &address, "--name", &name, "--control", &control].map(str::to_owned),
        );
        words.extend(self.options.iter().cloned());
        words.extend(self.tls.iter().flat_map(|tls| tls.options(handshake)));
        Process::start(&name, &self.directory, None, &program, &words)
    }

    fn wait_serving(&mut self, host: usize) -> Result<(), String> {
        let address = self.network.address(host);
        if self.tls.is_some() {
            return self.backends[host].wait_listening(address);
        }
        self.backends[host]
            .wait_ready(START, || http::get(address, "/healthz").is_ok_and(|r| r.status == 200))
    }

    fn control(&self, host: usize) -> PathBuf {
        self.directory.join(format!("b{host}.control"))
    }
}
