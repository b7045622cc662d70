//! What the control side publishes and the workers read: one pointer, swapped whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use fieldgate_core::Snapshot;
use fieldgate_core::guard::Guard;
use fieldgate_core::ir::{ClientCertDetails, ClientValidation, GuardRef, ListenerKey};
use fieldgate_plugins::authz::Authorizer;
use fieldgate_plugins::jwt::Authenticator;
use fieldgate_wire::tls::Patterns;
use rustc_hash::FxHashMap;
use rustls::ServerConfig;
use tokio::sync::Notify;

use crate::overload::Overload;
use crate::telemetry::Telemetry;
use crate::telemetry::access_log::AccessLog;

/// A snapshot with what goes with it; routes, policies and certificates change in the same swap.
pub struct Published {
    /// Routes, pools, listeners.
    pub snapshot: Arc<Snapshot>,
    /// What a request of a listener has to pass, for those that ask for anything.
    pub policies: FxHashMap<ListenerKey, Arc<ListenerPolicy>>,
    /// Guards of rules and listeners, by [`GuardRef::id`](fieldgate_core::ir::GuardRef).
    pub guards: FxHashMap<u64, Arc<dyn Guard>>,
    /// TLS per bound address, or why it cannot be served.
    pub tls: FxHashMap<SocketAddr, Result<ServedTls, String>>,
    /// Where requests are logged.
    pub access_log: Option<Arc<AccessLog>>,
}

impl Published {
    /// A guard by its name. The number finds it, and the name decides: whoever can make up objects could make up one whose
    /// number is another's.
    pub fn guard(&self, named: &GuardRef) -> Option<&Arc<dyn Guard>> {
        self.guards.get(&named.id).filter(|guard| *guard.key() == named.key)
    }

    /// Nothing is configured yet.
    pub fn nothing(access_log: Option<Arc<AccessLog>>) -> Self {
        Self {
            snapshot: Arc::new(Snapshot::empty()),
            policies: FxHashMap::default(),
            guards: FxHashMap::default(),
            tls: FxHashMap::default(),
            access_log,
        }
    }
}

/// TLS of an address.
#[derive(Clone)]
pub enum ServedTls {
    /// The same for whatever name a client asks for.
    Same(Arc<ServerConfig>),
    /// By the name, since listeners ask clients for other certificates, or only some for any.
    ByName(Arc<Patterns<Arc<ClientTerms>>>),
}

/// What a listener asks of clients.
pub struct ClientTerms {
    /// Whose terms they are.
    pub listener: ListenerKey,
    /// What a certificate is held against; `None` asks for none.
    pub clients: Option<Arc<ClientValidation>>,
    /// What backends are told of it.
    pub details: ClientCertDetails,
    /// `None`: nobody can be judged, so nobody is let in.
    pub config: Option<Arc<ServerConfig>>,
}

/// What the requests of a listener have to pass before a route is looked for, in this order.
#[derive(Debug, Default)]
pub struct ListenerPolicy {
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step of a [`ListenerPolicy`].
#[derive(Debug)]
pub enum Step {
    /// A guard.
    Guard(Arc<dyn Guard>),
    /// CUSTOM authorization policies: what the provider at this place among those of the authorizer is asked about.
    Custom(Arc<Authorizer>, usize),
    /// Tokens.
    Authenticate(Arc<Authenticator>),
    /// Authorization policies.
    Authorize(Arc<Authorizer>),
}

/// What all threads share.
pub struct Shared {
    /// The current configuration.
    pub published: Arc<ArcSwap<Published>>,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// When the process started.
    pub started: Instant,
    /// How many workers there are.
    pub workers: usize,
    /// Wakes workers when requests of one wait for connections that others keep, or some were given up.
    pub room_news: Arc<Notify>,
    /// The gateway's own limits, and what is known of its load.
    pub overload: Arc<Overload>,
    /// Set once, when the process begins to drain.
    pub draining: AtomicBool,
}
