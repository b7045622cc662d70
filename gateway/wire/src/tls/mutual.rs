//! Handshakes whose terms depend on the server name, and in which clients may show certificates.
//!
//! The client's first message is read before a configuration is chosen, so that each name can ask for other certificates.
//! Where no client is asked for any, [`accept`](super::accept) does with less.

use std::io;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::StartHandshake;

use super::introduction::{self, Introduction};
use super::{Certificate, Refusal};
use crate::io::Io;
use crate::staged::Staged;

/// Bytes of a refused client that are read, so that it gets to see why.
const FAREWELL_BYTES: usize = 64 * 1024;

/// A client that has said whom it wants to talk to.
pub struct Greeting(StartHandshake<Staged>);

/// A handshake that is done.
pub struct Introduced {
    /// The connection.
    pub io: Io,
    /// The chain that proves who the client is, leaf first; empty if nothing does.
    pub client: Vec<CertificateDer<'static>>,
    /// Why what the client showed is not believed, where it may go on all the same.
    pub unbelieved: Option<Refusal>,
    /// The certificate that it was shown, or would have been if no earlier session had gone on.
    pub shown: Option<Arc<Certificate>>,
    /// Whether an earlier session went on.
    pub resumed: bool,
}

/// A handshake that failed.
pub struct Failed {
    /// What TLS says.
    pub error: io::Error,
    /// Why the client's certificate was refused, if that was it.
    pub refusal: Option<Refusal>,
    left: Option<Staged>,
}

/// Waits for the client's first message. The caller bounds the time, here and below.
pub async fn greet(tcp: Staged) -> io::Result<Greeting> {
    LazyConfigAcceptor::new(Acceptor::default(), tcp).await.map(Greeting)
}

impl Greeting {
    /// The name that the client asks for, as it wrote it.
    pub fn server_name(&self) -> Option<String> {
        self.0.client_hello().server_name().map(str::to_owned)
    }

    /// Goes on by these terms.
    pub async fn finish(self, config: Arc<ServerConfig>) -> Result<Introduced, Box<Failed>> {
        // The client's first message is dealt with before the first poll, so that has to be inside as well.
        let handshake = async move { self.0.into_stream(config).into_fallible().await };
        let (done, found) = introduction::of(handshake).await;
        let Introduction { until, refusal, shown } = found;
        let tls = match done {
            Ok(tls) => tls,
            Err((error, left)) => {
                let refusal = refusal
                    .or_else(|| Refusal::of_handshake(error.get_ref()?.downcast_ref::<rustls::Error>()?));
                return Err(Box::new(Failed { error, refusal, left: Some(left) }));
            }
        };
        let session = tls.get_ref().1;
        let client = session.peer_certificates().filter(|_| until.is_some()).unwrap_or_default().to_vec();
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        Ok(Introduced { io: Io::Tls(Box::new(tls)), client, unbelieved: refusal, shown, resumed })
    }
}

impl Failed {
    #[cfg(test)]
    pub(super) fn bare(error: io::Error, refusal: Option<Refusal>) -> Self {
        Self { error, refusal, left: None }
    }

    /// Lets the client read the alert: a socket that is closed with unread input resets its connection, and the alert is lost.
    /// Ends when the client has; the caller bounds the time.
    pub async fn farewell(self) {
        let Some(mut tcp) = self.left else { return };
        if tcp.shutdown().await.is_err() {
            return;
        }
        let mut scratch = [0; 4096];
        let mut left = FAREWELL_BYTES;
        while let Ok(read @ 1..) = tcp.read(&mut scratch).await {
            match left.checked_sub(read) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    }
}
