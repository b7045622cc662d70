//! Whether the certificate that an upstream shows is to be believed: a chain to a known authority, not revoked, and one of
//! the names that are expected.
//!
//! Which names are expected is the caller's to say; how a name of a certificate stands for a host is said here.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::certificate::name_covers;

/// A name in a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerName<'a> {
    /// As it is written there; it may begin with `*.`.
    Dns(&'a str),
    /// `spiffe://cluster.local/ns/default/sa/shop`
    Uri(&'a str),
    /// An address.
    Ip(IpAddr),
    /// An e-mail address.
    Email(&'a str),
}

impl PeerName<'_> {
    /// Whether it is this very name. For a host a wildcard stands for one label (RFC 6125, section 6.4.3); what kind of
    /// name is meant is told from its form.
    pub fn is(&self, name: &str) -> bool {
        match self {
            Self::Ip(address) => name.parse() == Ok(*address),
            Self::Uri(uri) => *uri == name,
            Self::Email(email) => email.eq_ignore_ascii_case(name),
            Self::Dns(dns) => {
                !name.contains([':', '@'])
                    && name_covers(&dns.to_ascii_lowercase(), &name.to_ascii_lowercase())
            }
        }
    }
}

impl fmt::Display for PeerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(text) | Self::Uri(text) | Self::Email(text) => f.write_str(text),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Says whether a name of a certificate is one of those that are expected.
#[derive(Clone)]
pub struct NameCheck(Arc<dyn Fn(PeerName<'_>) -> bool + Send + Sync>);

impl NameCheck {
    /// By this rule.
    pub fn new(fits: impl Fn(PeerName<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(fits))
    }
}

impl fmt::Debug for NameCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameCheck")
    }
}

/// None of a certificate's names is expected.
#[derive(Debug)]
struct WrongName {
    presented: Vec<String>,
}

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.presented[..] {
            [] => f.write_str("the certificate has no name, so it has none of those that are expected"),
            names => write!(f, "the certificate is for {}, none of which is expected", names.join(", ")),
        }
    }
}

impl std::error::Error for WrongName {}

/// Judges chains as webpki does, and names by the server name or by a rule.
#[derive(Debug)]
pub(super) struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    /// The authorities themselves: a self-signed certificate that is given as an authority vouches for itself, even
    /// where it says that it is an authority (as OpenSSL makes them).
    roots: Vec<CertificateDer<'static>>,
    names: Option<NameCheck>,
}

impl Verifier {
    pub fn new(
        chain: Arc<WebPkiServerVerifier>,
        roots: Vec<CertificateDer<'static>>,
        names: Option<NameCheck>,
    ) -> Self {
        Self { chain, roots, names }
    }

    fn verify_name(
        &self,
        end_entity: &CertificateDer<'_>,
        server_name: &ServerName<'_>,
    ) -> Result<ServerCertVerified, Error> {
        match &self.names {
            None => verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?,
            Some(check) => check_names(end_entity, check)?,
        }
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.roots.iter().any(|root| root == end_entity) {
            in_time(end_entity, now)?;
            return self.verify_name(end_entity, server_name);
        }
        match self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is what is looked at last: the chain is good.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.names.is_some() => self.verify_name(end_entity, server_name),
            Ok(_) if self.names.is_some() => self.verify_name(end_entity, server_name),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn in_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let validity = &parsed.validity;
    let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
    let (from, to) = (seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp()));
    let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    if now.as_secs() > to {
        return Err(CertificateError::ExpiredContext { time: now, not_after: at(to) }.into());
    }
    if now.as_secs() < from {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: at(from) }.into());
    }
    Ok(())
}

fn check_names(certificate: &CertificateDer<'_>, check: &NameCheck) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let alternatives =
        parsed.subject_alternative_name().map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let mut presented = Vec::new();
    for name in alternatives.iter().flat_map(|found| &found.value.general_names) {
        let Some(name) = peer_name(name) else { continue };
        if (check.0)(name) {
            return Ok(());
        }
        presented.push(name.to_string());
    }
    Err(CertificateError::Other(OtherError(Arc::new(WrongName { presented }))).into())
}

fn peer_name<'a>(name: &GeneralName<'a>) -> Option<PeerName<'a>> {
    Some(match name {
        GeneralName::DNSName(text) => PeerName::Dns(text),
        GeneralName::URI(text) => PeerName::Uri(text),
        GeneralName::RFC822Name(text) => PeerName::Email(text),
        GeneralName::IPAddress(bytes) => PeerName::Ip(match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok()?.into(),
            16 => <[u8; 16]>::try_from(*bytes).ok()?.into(),
            _ => return None,
        }),
        _ => return None,
    })
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}
