//! What is known about a request when it is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fieldgate_core::ir::{ListenerKey, Pool, Rule};
use fieldgate_core::{Headers, RequestHead};

/// One request from its first byte to its last. Built once, on every path, and recorded exactly once.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The listener that took it.
    pub listener: &'a ListenerKey,
    /// The rule that took it, if one did.
    pub rule: Option<&'a Arc<Rule>>,
    /// The index of the chosen backend in the rule.
    pub backend: Option<usize>,
    /// The pool behind that backend.
    pub pool: Option<&'a Arc<Pool>>,
    /// The endpoint of the last try.
    pub upstream: Option<SocketAddr>,
    /// Our address on that connection.
    pub upstream_local: Option<SocketAddr>,
    /// The request after filters.
    pub head: &'a RequestHead,
    /// Path and query as they were before a rewrite.
    pub original_path: Option<&'a str>,
    /// The status sent to the client; 0 if none was.
    pub status: u16,
    /// The fields sent to the client.
    pub response: Option<&'a Headers>,
    /// `grpc-status` from trailers or fields.
    pub grpc_status: Option<u16>,
    /// Envoy's response flags, `-` if none.
    pub flags: &'static str,
    /// Envoy's response code details: `via_upstream`, `route_not_found`, ...
    pub details: &'a str,
    /// Why the upstream's transport failed.
    pub failure: Option<&'a str>,
    /// When the first byte arrived.
    pub started: Instant,
    /// The same by the wall clock.
    pub started_wall: SystemTime,
    /// From the first byte received to the last byte sent.
    pub duration: Duration,
    /// Its parts.
    pub stages: Stages,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// Bytes of the response's body.
    pub bytes_sent: u64,
    /// The peer of the connection.
    pub peer: SocketAddr,
    /// Our address on it.
    pub local: SocketAddr,
    /// The server name of the TLS handshake.
    pub sni: Option<&'a str>,
    /// The generation of the configuration that decided.
    pub generation: u64,
    /// Tries at an upstream.
    pub attempts: u32,
}

/// Where the time went; a stage that did not take place has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Waiting for a place on a connection.
    pub queue: Option<Duration>,
    /// Opening the upstream connection.
    pub connect: Option<Duration>,
    /// The TLS handshake with the upstream.
    pub tls: Option<Duration>,
    /// From the request sent to the first byte of the response.
    pub first_byte: Option<Duration>,
    /// From the first to the last byte of the response.
    pub body: Option<Duration>,
}

/// The names of the stages in the order of [`Stages::parts`].
pub const STAGES: [&str; 5] = ["queue", "connect", "tls", "first_byte", "body"];

impl Stages {
    /// All stages in the order of [`STAGES`].
    pub fn parts(&self) -> [Option<Duration>; 5] {
        [self.queue, self.connect, self.tls, self.first_byte, self.body]
    }
}
