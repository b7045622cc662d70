//! One check of one endpoint: a connection, or a question and its answer. It keeps no state and makes no judgement.

mod grpc;
mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::head::split_port;
use fieldgate_core::ir::{HealthCheck, HealthKind, HealthTls, Protocol};
use fieldgate_wire::tls::{ClientTls, Verification, describe, server_name};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::upstream_tls::{Chosen, Client};

#[cfg(fuzzing)]
pub(super) use http::final_status;

/// How long a connection may take to end politely once the answer is known. It spares the endpoint a reset in its log, no
/// more.
const PATIENCE: Duration = Duration::from_millis(500);

/// Which HTTP an endpoint is asked in. What the check does not depend on is not in it, so that equal checks are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Version {
    /// HTTP/1.1, or no HTTP at all.
    One,
    /// HTTP/2; by prior knowledge without TLS, by ALPN with it.
    Two,
    /// What the endpoint chooses by ALPN.
    Either,
}

impl Version {
    /// Of a pool's check; `tls`: the endpoint is connected to by TLS.
    pub(super) fn of(check: &HealthCheck, protocol: Protocol, tls: bool) -> Self {
        match (&check.kind, protocol) {
            (HealthKind::Tcp, _) => Self::One,
            (HealthKind::Grpc { .. }, _) | (HealthKind::Http { .. }, Protocol::Http2) => Self::Two,
            (HealthKind::Http { .. }, Protocol::Auto) if tls || check.tls.is_some() => Self::Either,
            (HealthKind::Http { .. }, Protocol::Http1 | Protocol::Auto) => Self::One,
        }
    }

    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::One => &[b"http/1.1"],
            Self::Two => &[b"h2"],
            Self::Either => &[b"h2", b"http/1.1"],
        }
    }
}

/// A good answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The endpoint would rather not be asked (`x-envoy-degraded`).
    pub(super) degraded: bool,
}

/// How one endpoint is asked.
pub(super) struct Probe {
    target: SocketAddr,
    settings: Arc<HealthCheck>,
    version: Version,
    /// Made once, so that sessions are resumed; an error is that of every check.
    tls: Option<Result<Tls, String>>,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection, plain or not, and whether HTTP/2 was agreed on.
struct Opened {
    stream: Box<dyn Socket>,
    http2: bool,
}

impl Probe {
    /// `address` is the endpoint's; `transport` its TLS, used where the check has none of its own.
    pub(super) fn new(
        address: SocketAddr,
        settings: Arc<HealthCheck>,
        version: Version,
        transport: Option<&Client>,
    ) -> Self {
        let target = SocketAddr::new(address.ip(), settings.port.unwrap_or(address.port()));
        let http = !matches!(settings.kind, HealthKind::Tcp);
        let alpn = if http { version.alpn() } else { &[] };
        let own = settings.tls.as_deref().map(|tls| client(tls, address, alpn));
        let tls = own.or_else(|| Some(of_pool(transport?, &settings, address, http.then_some(alpn))));
        Self { target, settings, version, tls }
    }

    /// `Err` says why the check failed, in words that fit after "endpoint is unhealthy:".
    pub(super) async fn ask(&self) -> Result<Seen, String> {
        let deadline = Instant::now() + self.settings.timeout;
        let late = |_| format!("no answer within {:?}", self.settings.timeout);
        let authority = |given: &Option<Arc<str>>| {
            given.as_deref().map_or_else(|| self.target.to_string(), str::to_owned)
        };
        let opened = timeout_at(deadline, self.open()).await.map_err(late)??;
        let patience = PATIENCE.min(self.settings.timeout);
        match &self.settings.kind {
            HealthKind::Tcp => Ok(Seen::default()),
            HealthKind::Http { method, path, host, expected } => {
                let question = http::Question {
                    method,
                    path,
                    host: authority(host),
                    scheme: if self.tls.is_some() { "https" } else { "http" },
                };
                let (answer, rest) =
                    timeout_at(deadline, http::ask(opened, &question)).await.map_err(late)??;
                // The verdict stands already, whatever becomes of the connection.
                tokio::time::timeout(patience, rest.end()).await.ok();
                answer.judge(expected)
            }
            HealthKind::Grpc { service, authority: given } => {
                let question = grpc::Question {
                    service,
                    authority: authority(given),
                    scheme: if self.tls.is_some() { "https" } else { "http" },
                    timeout: self.settings.timeout,
                };
                timeout_at(deadline, grpc::ask(opened.stream, &question)).await.map_err(late)?
            }
        }
    }

    async fn open(&self) -> Result<Opened, String> {
        let tcp =
            TcpStream::connect(self.target).await.map_err(|error| format!("cannot connect: {error}"))?;
        let Some(tls) = &self.tls else {
            return Ok(Opened { stream: Box::new(tcp), http2: self.version == Version::Two });
        };
        let Tls { connector, name } = tls.as_ref().map_err(Clone::clone)?;
        let stream = connector
            .connect(name.clone(), tcp)
            .await
            .map_err(|error| format!("the TLS handshake failed: {}", describe(&error)))?;
        let chosen = Client::chosen(stream.get_ref().1.alpn_protocol());
        // An endpoint without ALPN is asked as requests are sent to it.
        let unsaid = chosen == Chosen::Nothing && self.settings.tls.is_none();
        let http2 = chosen == Chosen::Http2 || unsaid && self.version == Version::Two;
        if self.version == Version::Two && !http2 {
            return Err("the endpoint does not agree on HTTP/2 in the TLS handshake (ALPN h2)".to_owned());
        }
        Ok(Opened { stream: Box::new(stream), http2 })
    }
}

fn client(tls: &HealthTls, address: SocketAddr, alpn: &[&[u8]]) -> Result<Tls, String> {
    let verification = tls.ca_pem.as_deref().map_or(Verification::None, Verification::Roots);
    let config = ClientTls::new(verification).alpn(alpn).build().map_err(|error| error.to_string())?;
    let name = match &tls.server_name {
        Some(name) => server_name(name).map_err(|error| error.to_string())?,
        None => ServerName::from(address.ip()),
    };
    Ok(Tls { connector: TlsConnector::from(config), name })
}

/// TLS of the pool, as requests have it.
fn of_pool(
    transport: &Client,
    settings: &HealthCheck,
    address: SocketAddr,
    alpn: Option<&[&[u8]]>,
) -> Result<Tls, String> {
    let host = match &settings.kind {
        HealthKind::Tcp => None,
        HealthKind::Http { host, .. } => host.as_deref(),
        HealthKind::Grpc { authority, .. } => authority.as_deref(),
    };
    let config = transport.configuration_for_check(alpn)?;
    let name = transport.server_name(host.map(|host| split_port(host).0), address.ip());
    Ok(Tls { connector: TlsConnector::from(config), name })
}

#[cfg(test)]
mod tests;
