//! What the control side knows, for the admin server: a value, replaced whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use fieldgate_config::Diagnostic;
use fieldgate_core::ir::ListenerKey;
use fieldgate_core::snapshot::Rejection;

use super::{DrainedEndpoint, Expiry};
use crate::health::Verdicts;
use crate::jwks::KeySetsView;

/// The state of the configuration.
pub struct View {
    /// Goes up by one with each publication; 0 is "nothing published yet".
    pub generation: u64,
    /// When it was published.
    pub loaded: SystemTime,
    /// What is wrong with files and objects.
    pub diagnostics: Vec<Diagnostic>,
    /// What could not be compiled.
    pub rejections: Vec<Rejection>,
    /// Certificates that cannot be used, by where they come from.
    pub refused_certificates: Vec<Arc<str>>,
    /// Certificates, authorities and revocation lists in use, with the time when each expires.
    pub expiries: Vec<Expiry>,
    /// One per address.
    pub listeners: Vec<ListenerView>,
    /// Changes of objects that the admin server was asked for.
    pub changes: ChangeCounts,
    /// What active checks have seen; it follows them by itself.
    pub verdicts: Verdicts,
    /// Keys that tokens are checked with; it follows them by itself.
    pub keys: KeySetsView,
    /// Endpoints that an operator has taken out of service, those that are away at present among them.
    pub drained: Vec<DrainedEndpoint>,
}

/// What became of changes by the admin server since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChangeCounts {
    /// Made.
    pub accepted: u64,
    /// Refused.
    pub refused: u64,
}

/// An address to listen on.
pub struct ListenerView {
    /// As configured.
    pub address: SocketAddr,
    /// The listeners that share it.
    pub listeners: Vec<ListenerKey>,
    /// How many sockets listen, or why none does (the listener's `Programmed` is `False` then).
    pub state: Result<usize, String>,
    /// `None` without TLS; else whether it has a certificate to show.
    pub tls: Option<Result<(), String>>,
}

impl View {
    /// Whether something is published and everything that it names listens.
    pub fn is_ready(&self) -> bool {
        self.generation > 0 && self.listeners.iter().all(|listener| listener.state.is_ok())
    }
}

impl Default for View {
    fn default() -> Self {
        Self {
            generation: 0,
            loaded: SystemTime::UNIX_EPOCH,
            diagnostics: Vec::new(),
            rejections: Vec::new(),
            refused_certificates: Vec::new(),
            expiries: Vec::new(),
            listeners: Vec::new(),
            changes: ChangeCounts::default(),
            verdicts: Verdicts::default(),
            keys: KeySetsView::default(),
            drained: Vec::new(),
        }
    }
}
