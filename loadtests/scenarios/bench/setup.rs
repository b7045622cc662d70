//! What a proxy is set up to do in a case, in terms that every proxy can be configured by.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::peers::Certificate;

/// Beside what all have: a plaintext and a TLS address, ten routes by path to one backend, keep-alive to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// What is spoken to the backend.
    pub upstream: Upstream,
    /// Rules that deny, none of which fits what is asked.
    pub denials: usize,
    /// How the requests of the last route are divided.
    pub split: Split,
    /// Whether each request is logged to a file.
    pub access_log: bool,
}

/// The protocol to the backend, always in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// The same, by peers that have a way of their own for gRPC.
    Grpc,
}

/// Both sides of a split are the same backend, so that only deciding is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    None,
    /// By weight, 90 to 10.
    Weighted,
    /// The same, and a user's cookie always on one side.
    Sticky,
}

impl Setup {
    /// What most cases use.
    pub const PLAIN: Self =
        Self { upstream: Upstream::Http1, denials: 1, split: Split::None, access_log: false };
}

/// A proxy's place: what it is to serve and where its files go.
pub struct Site<'a> {
    /// For configuration and logs; nobody else's.
    pub directory: PathBuf,
    /// The backend.
    pub backend: SocketAddr,
    /// What it shows to TLS clients.
    pub certificate: &'a Certificate,
    /// What it is to do.
    pub setup: Setup,
}

impl Site<'_> {
    /// A file in the proxy's directory.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

/// What the rules of [`Setup::denials`] look at, in turn: a path, a method at a path, the client's address. The first
/// is the one rule that a proxy has in most cases.
pub enum Denial {
    /// This path and all below it.
    Path(String),
    /// This method below this path.
    Method(&'static str, String),
    /// Clients in this IPv4 network.
    Source(String),
}

/// So many rules.
pub fn denials(count: usize) -> Vec<Denial> {
    let one = |number| match number {
        0 => Denial::Path("/admin".to_owned()),
        _ if number % 3 == 0 => Denial::Path(format!("/internal-{number}")),
        _ if number % 3 == 1 => Denial::Method("DELETE", format!("/records-{number}")),
        _ => Denial::Source(format!("10.{number}.0.0/16")),
    };
    (0..count).map(one).collect()
}
