//! TLS towards upstreams.
//!
//! Which certificate authorities to trust, and whether to verify at all, is the caller's to say; nothing is read
//! from the system.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::{Certificate, provider};
use crate::io::Io;
use crate::staged::Staged;

/// How an upstream proves who it is.
#[derive(Clone, Copy, Debug)]
pub enum Verification<'a> {
    /// By a chain to one of these authorities (PEM) and the server name.
    Roots(&'a [u8]),
    /// Not at all: encrypted, but open to whoever can sit in between.
    None,
}

/// A client configuration in the making.
#[derive(Debug)]
pub struct ClientTls<'a> {
    verification: Verification<'a>,
    alpn: Vec<Vec<u8>>,
    identity: Option<Arc<Certificate>>,
}

impl<'a> ClientTls<'a> {
    /// TLS 1.2 and 1.3, without ALPN and without a client certificate.
    pub fn new(verification: Verification<'a>) -> Self {
        Self { verification, alpn: Vec::new(), identity: None }
    }

    /// Protocols to offer, best first.
    #[must_use]
    pub fn alpn<P: AsRef<[u8]>>(mut self, protocols: impl IntoIterator<Item = P>) -> Self {
        self.alpn = protocols.into_iter().map(|protocol| protocol.as_ref().to_vec()).collect();
        self
    }

    /// The certificate to show where an upstream asks for one.
    #[must_use]
    pub fn identity(mut self, certificate: Arc<Certificate>) -> Self {
        self.identity = Some(certificate);
        self
    }

    /// The configuration, to be shared by all connections to the same kind of upstream: it remembers their sessions.
    pub fn build(self) -> Result<Arc<ClientConfig>, ClientTlsError> {
        let verifier: Arc<dyn ServerCertVerifier> = match self.verification {
            Verification::None => Arc::new(NoVerification),
            Verification::Roots(pem) => {
                let roots = Arc::new(parse_roots(pem).map_err(ClientTlsError::Roots)?);
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider()))
                    .build()
                    .map_err(|error| ClientTlsError::Roots(error.to_string()))?
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_safe_default_protocol_versions()
            .map_err(ClientTlsError::Rustls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_cert_resolver(Arc::new(
                rustls::sign::SingleCertAndKey::from(Arc::clone(identity.certified())),
            )),
        };
        config.alpn_protocols = self.alpn;
        Ok(Arc::new(config))
    }
}

/// Why there is no client configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientTlsError {
    /// The certificate authorities cannot be used.
    Roots(String),
    /// rustls refuses.
    Rustls(rustls::Error),
}

impl fmt::Display for ClientTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Roots(why) => write!(f, "the certificate authorities cannot be used: {why}"),
            Self::Rustls(error) => write!(f, "TLS cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for ClientTlsError {}

/// A DNS name or an IP address in the form that [`connect`] takes. An address is verified but not sent as SNI.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|_| {
        let text =
            format!("{host:?} is neither a DNS name nor an IP address, so it cannot be verified by TLS");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

/// Does the handshake as a client. The caller bounds the time.
pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, tcp: Staged) -> io::Result<Io> {
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    Ok(Io::ClientTls(Box::new(tls)))
}

/// At least one certificate, all of them usable.
pub(super) fn parse_roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("the PEM cannot be read: {error}"))?;
        roots.add(certificate).map_err(|error| format!("certificate {} is bad: {error}", roots.len() + 1))?;
    }
    if roots.is_empty() { Err("no certificate in the PEM".to_owned()) } else { Ok(roots) }
}

/// Takes any certificate, though the peer must still hold its key.
#[derive(Debug)]
pub(super) struct NoVerification;

impl ServerCertVerifier for NoVerification {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
