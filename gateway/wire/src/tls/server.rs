//! TLS towards clients.
//!
//! Builds configurations and does handshakes. It must not be told about listeners: what differs between them comes in as
//! a resolver, a list of protocols, versions.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache, StoresServerSessions};
use rustls::version::{TLS12, TLS13};
use tokio_rustls::TlsAcceptor;

use super::{ClientVerifier, SniResolver, TicketKeys, provider};
use crate::io::Io;
use crate::staged::Staged;

/// Sessions of clients without ticket support that one configuration remembers, unless told otherwise.
const SESSIONS: usize = 1024;
/// Tickets after a TLS 1.3 handshake: a client uses each once (RFC 8446, appendix C.4), and browsers open
/// more than one connection.
const TICKETS: usize = 2;

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// A server configuration in the making.
#[derive(Debug)]
pub struct ServerTls {
    resolver: Arc<SniResolver>,
    alpn: Vec<Vec<u8>>,
    min: TlsVersion,
    max: TlsVersion,
    tickets: Option<Arc<TicketKeys>>,
    sessions: usize,
    clients: Option<Arc<ClientVerifier>>,
}

impl ServerTls {
    /// TLS 1.2 and 1.3 with these certificates; no ALPN, no tickets, no client certificates.
    pub fn new(resolver: impl Into<Arc<SniResolver>>) -> Self {
        Self {
            resolver: resolver.into(),
            alpn: Vec::new(),
            min: TlsVersion::Tls12,
            max: TlsVersion::Tls13,
            tickets: None,
            sessions: SESSIONS,
            clients: None,
        }
    }

    /// Protocols to accept, best first. A client that offers only others is refused.
    #[must_use]
    pub fn alpn<P: AsRef<[u8]>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.alpn = protocols.into_iter().map(|protocol| protocol.as_ref().to_vec()).collect();
        self
    }

    /// The oldest and the newest version to accept.
    #[must_use]
    pub fn versions(mut self, min: TlsVersion, max: TlsVersion) -> Self {
        (self.min, self.max) = (min, max);
        self
    }

    /// Lets clients resume with tickets of these keys, also those from another configuration that shares them and asks
    /// for the same client certificates.
    #[must_use]
    pub fn tickets(mut self, keys: &Arc<TicketKeys>) -> Self {
        self.tickets = Some(Arc::clone(keys));
        self
    }

    /// How many sessions to remember for TLS 1.2 clients that resume by id. They die with the configuration.
    #[must_use]
    pub fn session_cache(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Asks for client certificates. Handshakes of the configuration are done by way of a [`Greeting`](super::Greeting) only:
    /// elsewhere nobody would be told what became of a certificate.
    #[must_use]
    pub fn clients(mut self, clients: &Arc<ClientVerifier>) -> Self {
        self.clients = Some(Arc::clone(clients));
        self
    }

    /// The configuration. Early data is off: it can be replayed.
    pub fn build(self) -> Result<Arc<ServerConfig>, ServerTlsError> {
        let versions: &[_] = match (self.min, self.max) {
            (TlsVersion::Tls12, TlsVersion::Tls13) => &[&TLS13, &TLS12],
            (TlsVersion::Tls13, TlsVersion::Tls13) => &[&TLS13],
            (TlsVersion::Tls12, TlsVersion::Tls12) => &[&TLS12],
            (TlsVersion::Tls13, TlsVersion::Tls12) => return Err(ServerTlsError::NoVersion),
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(versions)
            .map_err(ServerTlsError::Rustls)?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let verifier: Arc<dyn ClientCertVerifier> = clients.clone();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(self.resolver);
        config.alpn_protocols = self.alpn;
        // What is remembered by id cannot be told when to be forgotten.
        config.session_storage = session_storage(if self.clients.is_some() { 0 } else { self.sessions });
        match (self.tickets, &self.clients) {
            (Some(keys), None) => config.ticketer = keys.scoped([]),
            (Some(keys), Some(clients)) => config.ticketer = keys.of_clients(clients.scope()),
            (None, _) => {}
        }
        config.send_tls13_tickets = TICKETS;
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }
}

/// Why there is no server configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerTlsError {
    /// The oldest version is newer than the newest.
    NoVersion,
    /// rustls refuses.
    Rustls(rustls::Error),
}

impl fmt::Display for ServerTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVersion => {
                f.write_str("no version of TLS is left: the oldest is TLS 1.3 and the newest TLS 1.2")
            }
            Self::Rustls(error) => write!(f, "TLS cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for ServerTlsError {}

/// Does the handshake as a server. The caller bounds the time.
pub async fn accept(config: Arc<ServerConfig>, tcp: Staged) -> io::Result<Io> {
    let tls = TlsAcceptor::from(config).accept(tcp).await?;
    Ok(Io::Tls(Box::new(tls)))
}

fn session_storage(sessions: usize) -> Arc<dyn StoresServerSessions> {
    if sessions == 0 { Arc::new(NoServerSessionStorage {}) } else { ServerSessionMemoryCache::new(sessions) }
}
