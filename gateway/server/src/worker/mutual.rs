//! Handshakes in which clients may show who they are, and what the gateway remembers of it.
//!
//! The terms are those of the listener that the client's server name means. Requests are held to them: who was let in by one
//! listener is nobody at another that asks for something else.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::identity::PeerIdentity;
use fieldgate_core::ir::{ClientCertificates, ListenerKey};
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_core::xfcc;
use fieldgate_wire::io::Io;
use fieldgate_wire::staged::Staged;
use fieldgate_wire::tls::{self, ClientCertificate, Introduced, Patterns};

use super::{Connection, Worker};
use crate::published::ClientTerms;

/// How long a client that was refused may take to hear why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What a handshake came to.
pub(super) struct Mutual {
    pub io: Io,
    pub terms: Arc<ClientTerms>,
    pub identity: Option<Arc<PeerIdentity>>,
    /// The element of ours for `x-forwarded-client-cert`.
    pub element: Option<Box<[u8]>>,
}

/// What the requests of a connection may rely on.
pub(crate) struct Proof {
    /// What was asked for in the handshake.
    pub terms: Arc<ClientTerms>,
    /// The element of ours for `x-forwarded-client-cert`, if the client has proved who it is.
    pub element: Option<Box<[u8]>>,
}

/// Does a handshake by the terms of the listener that the client asks for.
pub(super) async fn handshake(
    worker: &Rc<Worker>,
    by_name: &Patterns<Arc<ClientTerms>>,
    tcp: Staged,
    info: &Connection,
    bound: Duration,
) -> Option<Mutual> {
    let both = async {
        let greeting = tls::greet(tcp).await.ok()?;
        let named = greeting.server_name();
        let own = named.as_deref().map_or_else(|| by_name.every(), |name| by_name.find(name)).cloned();
        // For a name that is nobody's there is no certificate in any configuration: TLS says that to the client.
        let terms = own.or_else(|| by_name.values().find(|terms| terms.config.is_some()).cloned())?;
        let config = terms.config.clone()?;
        Some((greeting.finish(config).await, terms))
    };
    let (done, terms) = tokio::time::timeout(bound, super::accept::in_turn(worker, both)).await.ok()??;
    let introduced = match done {
        Ok(introduced) => introduced,
        Err(failed) => {
            if let Some(refusal) = &failed.refusal {
                worker.recorder.client_refused(&terms.listener, info.peer, refusal, false);
                let _ = tokio::time::timeout(FAREWELL, failed.farewell()).await;
            }
            return None;
        }
    };
    if let Some(refusal) = &introduced.unbelieved {
        worker.recorder.client_refused(&terms.listener, info.peer, refusal, true);
    }
    let identity = identity(&introduced);
    let required = terms.clients.as_ref().is_some_and(|c| c.mode == ClientCertificates::Required);
    if required && identity.is_none() {
        return None;
    }
    if identity.is_some() {
        worker.recorder.client_verified(&terms.listener);
    }
    let by = introduced.shown.as_ref().map_or(&[][..], |shown| shown.uris());
    let element = identity.as_ref().map(|peer| xfcc::element(peer, by, terms.details).into());
    Some(Mutual { io: introduced.io, terms, identity, element })
}

fn identity(introduced: &Introduced) -> Option<Arc<PeerIdentity>> {
    let leaf = introduced.client.first()?;
    // Verified by way of the same reading, so it does not fail here.
    let read = ClientCertificate::parse(leaf).ok()?;
    let chain: Vec<Arc<[u8]>> = introduced.client.iter().map(|der| Arc::from(der.as_ref())).collect();
    Some(Arc::new(PeerIdentity {
        uris: read.uris,
        dns: read.dns,
        subject: read.subject,
        hash: read.hash,
        der: chain[0].clone(),
        chain,
    }))
}

/// Whether what a connection has proved is what a listener asks for. Where neither asks for anything it is.
pub(crate) fn admits(conn: &Connection, listener: &CompiledListener) -> bool {
    let asked = conn.proof.as_ref().and_then(|proof| proof.terms.clients.as_ref());
    let asks = listener.ir.tls.as_ref().and_then(|tls| tls.clients.as_ref());
    match (asked, asks) {
        (None, None) => true,
        (Some(asked), Some(asks)) if Arc::ptr_eq(asked, asks) || asked == asks => true,
        // The listener's rules have changed since. Connections go on, as they do when certificates change; but nobody who
        // has shown nothing where something must be shown now.
        (Some(_), Some(asks)) if is_of(conn, &listener.ir.key) => {
            conn.identity.is_some() || asks.mode != ClientCertificates::Required
        }
        (Some(_), None) => is_of(conn, &listener.ir.key),
        _ => false,
    }
}

fn is_of(conn: &Connection, listener: &ListenerKey) -> bool {
    conn.proof.as_ref().is_some_and(|proof| proof.terms.listener == *listener)
}
