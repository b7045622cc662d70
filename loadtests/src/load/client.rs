//! Opening connections, and what an exchange over one may come to.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Plan, Version};
use crate::rig::certificates;

/// A byte stream, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// Opens connections as a plan says.
#[derive(Clone)]
pub(crate) struct Connector {
    address: std::net::SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    pub(crate) fn new(plan: &Plan) -> Result<Self, String> {
        let tls = match &plan.ca {
            None => None,
            Some(path) => {
                let identity = plan.certificate.as_ref().map(|(chain, key)| (chain.as_path(), key.as_path()));
                let mut config = certificates::client(path, rustls::DEFAULT_VERSIONS, identity)?;
                config.alpn_protocols = vec![match plan.version {
                    Version::Http1 => b"http/1.1".to_vec(),
                    Version::Http2 => b"h2".to_vec(),
                }];
                let host = plan.host.rsplit_once(':').map_or(plan.host.as_str(), |(host, _)| host);
                let name =
                    ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))?;
                Some((TlsConnector::from(Arc::new(config)), name))
            }
        };
        Ok(Self { address: plan.address, tls })
    }

    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), stream).await?),
        })
    }
}

impl Connector {
    /// The certificate that a handshake of its own shows. A resumed session would show the one that it began with, so
    /// each call is to be made on a connector that has not been used.
    pub(crate) async fn certificate(&self) -> io::Result<Vec<u8>> {
        let Some((connector, name)) = &self.tls else { return Err(io::ErrorKind::Unsupported.into()) };
        let stream = TcpStream::connect(self.address).await?;
        let stream = connector.connect(name.clone(), stream).await?;
        let chain = stream.get_ref().1.peer_certificates();
        let leaf = chain.and_then(<[_]>::first).ok_or(io::ErrorKind::InvalidData)?;
        Ok(leaf.to_vec())
    }
}

/// One request, apart from what the plan says of all.
#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    /// A header more, for the user's identity.
    pub(super) header: Option<(String, String)>,
}

/// A complete or failed answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) backend: String,
    pub(super) set_cookies: Vec<String>,
    /// Seconds.
    pub(super) retry_after: Option<u64>,
    pub(super) error: &'static str,
    /// `grpc-status`, wherever it stood.
    pub(super) grpc_status: Option<u16>,
    /// The server said that this connection ends with this answer.
    pub(super) close: bool,
}

/// Why a connection came to nothing or an end, without a request lost.
#[derive(Debug)]
pub(super) enum Ended {
    /// The server closed between two requests.
    Closed,
    /// The server said GOAWAY.
    GoAway,
}

/// The kind of an IO error, in the words of the report.
pub(super) fn error_kind(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            "reset"
        }
        io::ErrorKind::UnexpectedEof => "closed",
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::InvalidData => "protocol",
        io::ErrorKind::TimedOut => "timeout",
        _ => "io",
    }
}
