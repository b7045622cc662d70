//! Where backends live: a network namespace of their own behind a veth pair, so that a host can fall silent as a dead
//! one does; or, where that is not permitted, addresses of loopback, where it cannot.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The port of all backends: one name of DNS stands for all of them.
const PORT: u16 = 8080;

/// A network of hosts, numbered from 0.
pub struct Network {
    /// The namespace's name.
    namespace: Option<String>,
    /// The first three bytes of all addresses.
    prefix: [u8; 3],
}

impl Network {
    /// A network for so many hosts; and why it is loopback, if it is.
    pub fn new(hosts: u8) -> (Self, Option<String>) {
        // Two runs at once rarely meet.
        let number = (std::process::id() % 250) as u8;
        let name = format!("fg{}", std::process::id());
        let network = Self { namespace: Some(name), prefix: [10, 233, number] };
        match network.set_up(hosts) {
            Ok(()) => (network, None),
            Err(error) => {
                drop(network);
                (Self { namespace: None, prefix: [127, 88, number] }, Some(error))
            }
        }
    }

    /// Whether hosts can fall silent, and packets be seen.
    pub fn is_real(&self) -> bool {
        self.namespace.is_some()
    }

    /// Where a host serves.
    pub fn address(&self, host: usize) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.host(host)), PORT)
    }

    /// The host that has an address.
    pub fn host_of(&self, address: Ipv4Addr) -> Option<usize> {
        let [a, b, c, d] = address.octets();
        ([a, b, c] == self.prefix).then(|| usize::from(d).checked_sub(1)).flatten()
    }

    /// Where the proxy's side can serve hosts that ask, and itself.
    pub fn gateway(&self) -> IpAddr {
        IpAddr::V4(self.at(254))
    }

    /// The command line that runs a program on these hosts.
    pub fn command(&self, program: &Path) -> (PathBuf, Vec<String>) {
        match &self.namespace {
            None => (program.to_owned(), Vec::new()),
            Some(name) => {
                let words = ["netns", "exec", name, &program.display().to_string()];
                ("ip".into(), words.map(str::to_owned).into())
            }
        }
    }

    /// From now on a host neither hears nor says anything; nobody is told.
    pub fn silence(&self, host: usize) -> Result<(), String> {
        self.inside(&format!("addr del {}/32 dev {}", self.host(host), self.far()))
    }

    /// The end of [`Network::silence`].
    pub fn restore(&self, host: usize) -> Result<(), String> {
        self.inside(&format!("addr add {}/32 dev {}", self.host(host), self.far()))
    }

    /// Moves the calling thread to the hosts' side.
    pub fn enter(&self) -> Result<(), String> {
        let Some(name) = &self.namespace else { return Err("loopback has no namespace".to_owned()) };
        let path = format!("/var/run/netns/{name}");
        let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        let kind = rustix::thread::LinkNameSpaceType::Network;
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind))
            .map_err(|error| format!("{path}: {error}"))
    }

    fn set_up(&self, hosts: u8) -> Result<(), String> {
        let (near, far, router) = (self.near(), self.far(), self.at(253));
        let Some(name) = &self.namespace else { return Ok(()) };
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add {near} type veth peer name {far}"))?;
        ip(&format!("link set {far} netns {name}"))?;
        ip(&format!("addr add {}/32 dev {near}", self.gateway()))?;
        ip(&format!("link set {near} up"))?;
        // Hosts are reached through one neighbour that always answers: one that is silent looks like a black hole, not
        // like an address that nobody has.
        let [a, b, c] = self.prefix;
        self.inside(&format!("addr add {router}/32 dev {far}"))?;
        self.inside(&format!("link set {far} up"))?;
        self.inside("link set lo up")?;
        self.inside(&format!("route add {} dev {far}", self.gateway()))?;
        ip(&format!("route add {a}.{b}.{c}.0/25 via {router} dev {near} onlink"))?;
        ip(&format!("netns exec {name} sysctl -qw net.ipv4.ip_forward=0 net.ipv4.tcp_orphan_retries=1"))?;
        (0..usize::from(hosts)).try_for_each(|host| self.restore(host))
    }

    fn inside(&self, words: &str) -> Result<(), String> {
        match &self.namespace {
            Some(name) => ip(&format!("-n {name} {words}")),
            None => Err("loopback cannot fall silent".to_owned()),
        }
    }

    fn host(&self, host: usize) -> Ipv4Addr {
        self.at(host as u8 + 1)
    }

    fn at(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, last)
    }

    fn near(&self) -> String {
        format!("{}a", self.namespace.as_deref().unwrap_or_default())
    }

    fn far(&self) -> String {
        format!("{}b", self.namespace.as_deref().unwrap_or_default())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(name) = &self.namespace {
            // Either may be missing where the set-up failed. The link's other end goes with it.
            let _ = ip(&format!("link del {}", self.near()));
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(words: &str) -> Result<(), String> {
    let output =
        Command::new("ip").args(words.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {words}: {said}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_by_their_addresses() {
        let network = Network { namespace: None, prefix: [127, 88, 7] };
        assert_eq!(network.address(9).to_string(), "127.88.7.10:8080");
        assert_eq!(network.host_of(Ipv4Addr::new(127, 88, 7, 10)), Some(9));
        assert_eq!(network.host_of(Ipv4Addr::new(127, 88, 8, 10)), None);
        assert_eq!(network.host_of(Ipv4Addr::new(127, 88, 7, 0)), None);
    }
}
