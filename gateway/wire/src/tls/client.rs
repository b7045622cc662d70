//! TLS towards upstreams.
//!
//! Which certificate authorities to trust, and whether to verify at all, is the caller's to say; nothing is read
//! from the system.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
};
use tokio_rustls::TlsConnector;

use super::verify::{NameCheck, Verifier};
use super::{Certificate, provider};
use crate::io::Io;
use crate::staged::Staged;

/// How an upstream proves who it is.
#[derive(Clone, Debug)]
pub enum Verification<'a> {
    /// By a chain to one of these authorities (PEM).
    Roots(&'a [u8]),
    /// By a chain to one of these authorities, parsed before.
    Store(Arc<RootCertStore>),
    /// Not at all: encrypted, but open to whoever can sit in between.
    None,
}

/// A client configuration in the making.
#[derive(Debug)]
pub struct ClientTls<'a> {
    verification: Verification<'a>,
    revoked: Vec<&'a [u8]>,
    names: Option<NameCheck>,
    alpn: Vec<Vec<u8>>,
    identity: Option<Arc<Certificate>>,
}

impl<'a> ClientTls<'a> {
    /// TLS 1.2 and 1.3, for the server name that is connected to, without ALPN and without a client certificate.
    pub fn new(verification: Verification<'a>) -> Self {
        Self { verification, revoked: Vec::new(), names: None, alpn: Vec::new(), identity: None }
    }

    /// Revocation lists (PEM). A certificate whose issuer has none of them is refused, and so is one if they are
    /// too old.
    #[must_use]
    pub fn revoked(mut self, lists: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.revoked.extend(lists);
        self
    }

    /// Names that are expected in place of the server name.
    #[must_use]
    pub fn names(mut self, check: NameCheck) -> Self {
        self.names = Some(check);
        self
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
                let roots = parse_roots(pem).map_err(ClientTlsError::Roots)?;
                let given = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
                let chain = chain_verifier(Arc::new(roots), &self.revoked)?;
                Arc::new(Verifier::new(chain, given, self.names))
            }
            Verification::Store(roots) => {
                Arc::new(Verifier::new(chain_verifier(roots, &self.revoked)?, Vec::new(), self.names))
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

fn chain_verifier(
    roots: Arc<RootCertStore>,
    revoked: &[&[u8]],
) -> Result<Arc<WebPkiServerVerifier>, ClientTlsError> {
    let mut lists = Vec::new();
    for pem in revoked {
        lists.extend(parse_revocation_lists(pem).map_err(ClientTlsError::Revocation)?);
    }
    let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider())).with_crls(lists);
    let built = builder.enforce_revocation_expiration().build();
    built.map_err(|error| match error {
        VerifierBuilderError::InvalidCrl(_) => ClientTlsError::Revocation(error.to_string()),
        _ => ClientTlsError::Roots(error.to_string()),
    })
}

/// At least one list.
fn parse_revocation_lists(pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err("no X509 CRL in the PEM".to_owned()),
        Ok(lists) => Ok(lists),
        Err(error) => Err(format!("the PEM cannot be read: {error}")),
    }
}

/// Why there is no client configuration.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientTlsError {
    /// The certificate authorities cannot be used.
    Roots(String),
    /// The revocation lists cannot be used.
    Revocation(String),
    /// rustls refuses.
    Rustls(rustls::Error),
}

impl fmt::Display for ClientTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Roots(why) => write!(f, "the certificate authorities cannot be used: {why}"),
            Self::Revocation(why) => write!(f, "the revocation lists cannot be used: {why}"),
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

/// Does the handshake as a client. The caller bounds the time. What [`describe`] makes of an error is for people.
pub async fn connect(config: Arc<ClientConfig>, name: ServerName<'static>, tcp: Staged) -> io::Result<Io> {
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    Ok(Io::ClientTls(Box::new(tls)))
}

/// What went wrong with TLS towards an upstream, and whose fault it is, in words that follow its address.
pub fn describe(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => describe_certificate(why),
        Some(rustls::Error::AlertReceived(alert)) => describe_alert(*alert),
        Some(rustls::Error::NoApplicationProtocol) => {
            "the endpoint speaks none of the protocols offered (ALPN)".to_owned()
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("the endpoint does not seem to speak TLS ({error})")
        }
        Some(other) => format!("the handshake failed: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the endpoint closed the connection during the handshake".to_owned()
        }
        None => format!("the connection failed during the handshake: {error}"),
    }
}

/// Whether the upstream's certificate is good, but for another name than was asked for.
pub fn is_wrong_name(error: &io::Error) -> bool {
    matches!(
        error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        ))
    )
}

fn describe_certificate(why: &CertificateError) -> String {
    let date = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        x509_parser::time::ASN1Time::from_timestamp(seconds)
            .map_or_else(|_| seconds.to_string(), |t| t.to_string())
    };
    match why {
        CertificateError::Expired => "the certificate has expired".to_owned(),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the certificate has expired: it was valid until {}", date(not_after))
        }
        CertificateError::NotValidYet => "the certificate is not valid yet".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("the certificate is not valid yet: it will be from {}", date(not_before))
        }
        CertificateError::Revoked => "the certificate is revoked".to_owned(),
        CertificateError::UnknownIssuer => {
            "the certificate is not issued by an authority that is known here".to_owned()
        }
        CertificateError::BadSignature => {
            "the certificate is not signed by the authority of that name that is known here".to_owned()
        }
        CertificateError::UnknownRevocationStatus => {
            "there is no revocation list of the certificate's issuer".to_owned()
        }
        CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
            "the revocation list of the certificate's issuer is too old".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            // `DnsName("a.example")`, `IpAddress(10.0.0.1)`
            let inner = |name: &String| {
                let begin = name.find('(').map_or(0, |at| at + 1);
                name[begin..].trim_end_matches(')').trim_matches('"').to_owned()
            };
            let presented: Vec<String> = presented.iter().map(inner).collect();
            let presented = if presented.is_empty() { "no name".to_owned() } else { presented.join(", ") };
            format!("the certificate is not for {}, but for {presented}", expected.to_str())
        }
        CertificateError::Other(OtherError(inner)) if inner.to_string().contains("CaUsedAsEndEntity") => {
            "the certificate is that of an authority, and not one that is known here".to_owned()
        }
        CertificateError::Other(OtherError(inner)) => inner.to_string(),
        other => format!("the certificate is bad: {other}"),
    }
}

fn describe_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "the endpoint wants a client certificate (alert certificate_required)".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnknownCA
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => {
            format!(
                "the endpoint refused the gateway's client certificate, or the lack of one (alert {alert:?})"
            )
        }
        AlertDescription::UnrecognisedName => {
            "the endpoint does not know the server name (alert unrecognized_name)".to_owned()
        }
        AlertDescription::NoApplicationProtocol => {
            "the endpoint speaks none of the protocols offered (ALPN)".to_owned()
        }
        other => format!("the endpoint refused the handshake (alert {other:?})"),
    }
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
