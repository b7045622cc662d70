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
    /// Whether clients prove who they are, by certificate and token, and are judged by [`grants`].
    pub identities: Identities,
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

/// What is asked of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identities {
    None,
    /// A certificate and a token, with peers set up as istiod does it.
    Mesh,
    /// The same, and a peer that can remember verified tokens does.
    Remembered,
}

impl Setup {
    /// What most cases use.
    pub const PLAIN: Self = Self {
        upstream: Upstream::Http1,
        denials: 1,
        split: Split::None,
        access_log: false,
        identities: Identities::None,
    };
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

/// The identity of the client's certificate, and what its token says beside the issuer.
pub const PRINCIPAL: &str = "cluster.local/ns/shop/sa/web";
/// The group of its token.
pub const GROUP: &str = "buyers";

/// One of the policies of [`Setup::identities`]: whom, and what for.
pub struct Grant {
    /// Refuses; else allows.
    pub denies: bool,
    /// The identity of the certificate.
    pub principal: String,
    /// The group of the token.
    pub group: String,
    /// The path and all below it.
    pub path: String,
}

/// Ten that refuse, none of which fits what is asked, and ten that allow, of which the last does.
pub fn grants() -> Vec<Grant> {
    let other = |denies: bool, n: usize| Grant {
        denies,
        principal: format!("cluster.local/ns/team-{n}/sa/app"),
        group: format!("group-{n}"),
        path: format!("/r{n}/"),
    };
    let fitting = Grant {
        denies: false,
        principal: PRINCIPAL.to_owned(),
        group: GROUP.to_owned(),
        path: "/".to_owned(),
    };
    (0..10).map(|n| other(true, n)).chain((0..9).map(|n| other(false, n))).chain([fitting]).collect()
}
