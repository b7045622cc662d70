//! A certificate with its chain and key, from PEM to what a handshake needs.
//!
//! Must not decide whether a certificate that has expired is served: that is a warning, because an outage helps nobody.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::client_certificate::is_clean;
use super::distinguished_name::rfc2253;
use super::provider;

/// Every scheme that a key may sign with, to ask each key which it can.
const SCHEMES: [SignatureScheme; 10] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// A certificate that can be served: chain, private key, and what was read from the first certificate.
pub struct Certificate {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    uris: Vec<Box<str>>,
    subject: Box<str>,
    schemes: Vec<SignatureScheme>,
    not_before: ASN1Time,
    not_after: ASN1Time,
}

impl Certificate {
    /// Reads a chain, leaf first, and the leaf's private key (PKCS#8, PKCS#1 or SEC1).
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = parse_chain(chain)?;
        let signer = provider()
            .key_provider
            .load_private_key(parse_key(key)?)
            .map_err(|error| CertificateError::UnsupportedKey(error.to_string()))?;
        let leaf = Leaf::parse(&chain[0])?;
        check_match(&chain, &signer)?;
        Ok(Self {
            schemes: schemes_of(&*signer),
            certified: Arc::new(CertifiedKey::new(chain, signer)),
            names: leaf.names,
            uris: leaf.uris,
            subject: leaf.subject,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }

    /// The form that rustls serves.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The DNS names in lower case: the subject alternative names, or the common name where there are none.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The URI names that can go into a header field as they are.
    pub fn uris(&self) -> &[Box<str>] {
        &self.uris
    }

    /// Whose it is, RFC 2253 form.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Whether one of the names stands for `host`, which is in lower case. A wildcard stands for one label (RFC 6125,
    /// section 6.4.3).
    pub fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| name_covers(name, host))
    }

    /// What is wrong with it at `now`, without keeping it from being served.
    pub fn warnings(&self, now: SystemTime) -> Vec<CertificateWarning> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let mut warnings = Vec::new();
        if now > self.not_after.timestamp() {
            warnings.push(CertificateWarning::Expired { since: self.not_after.to_string() });
        }
        if now < self.not_before.timestamp() {
            warnings.push(CertificateWarning::NotYetValid { until: self.not_before.to_string() });
        }
        if self.names.is_empty() {
            warnings.push(CertificateWarning::NoNames);
        }
        warnings
    }

    /// Seconds since 1970 when it expires.
    pub fn expires_at(&self) -> i64 {
        self.not_after.timestamp()
    }

    /// Whether it can sign with one of the schemes that a client offered.
    pub(super) fn can_sign(&self, offered: &[SignatureScheme]) -> bool {
        self.schemes.iter().any(|scheme| offered.contains(scheme))
    }

    pub(super) fn is_rsa(&self) -> bool {
        self.certified.key.algorithm() == SignatureAlgorithm::RSA
    }
}

impl fmt::Debug for Certificate {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("not_after", &self.not_after.to_string())
            .finish_non_exhaustive()
    }
}

/// Why a certificate cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// The chain holds no certificate.
    NoCertificate,
    /// The key's PEM holds no private key.
    NoKey,
    /// The private key is encrypted.
    EncryptedKey,
    /// Something is not PEM: what, and why.
    BadPem(&'static str, String),
    /// The first certificate is not X.509.
    BadCertificate(String),
    /// The key is of a kind or size that cannot be used.
    UnsupportedKey(String),
    /// The key is that of another certificate.
    KeyMismatch,
    /// The key is that of a later certificate of the chain (counted from one).
    LeafNotFirst(usize),
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCertificate => {
                f.write_str("no certificate in the PEM; expected a section -----BEGIN CERTIFICATE-----")
            }
            Self::NoKey => f.write_str(
                "no private key in the PEM; expected a section BEGIN PRIVATE KEY, BEGIN RSA PRIVATE KEY or BEGIN EC PRIVATE KEY",
            ),
            Self::EncryptedKey => f.write_str(
                "the private key is encrypted, and there is no passphrase to open it with; decrypt it with `openssl pkey`",
            ),
            Self::BadPem(what, why) => write!(f, "the PEM of the {what} cannot be read: {why}"),
            Self::BadCertificate(why) => write!(f, "the first certificate is not valid X.509: {why}"),
            Self::UnsupportedKey(why) => write!(
                f,
                "the private key cannot be used: {why}; supported are RSA of 2048 to 8192 bits, ECDSA P-256, P-384 and P-521, and Ed25519"
            ),
            Self::KeyMismatch => f.write_str("the private key does not belong to the certificate"),
            Self::LeafNotFirst(position) => write!(
                f,
                "the private key belongs to certificate {position} of the chain; the server's own certificate must come first"
            ),
        }
    }
}

impl std::error::Error for CertificateError {}

/// What is wrong with a certificate that is served all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateWarning {
    /// Its time is over.
    Expired {
        /// Since when, for people.
        since: String,
    },
    /// Its time has not come.
    NotYetValid {
        /// Until when, for people.
        until: String,
    },
    /// It names no host, so no client will accept it.
    NoNames,
}

impl fmt::Display for CertificateWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { since } => {
                write!(f, "the certificate expired on {since}; clients will refuse it")
            }
            Self::NotYetValid { until } => write!(
                f,
                "the certificate is not valid before {until}; clients will refuse it (is this machine's clock right?)"
            ),
            Self::NoNames => f.write_str("the certificate names no host; clients will refuse it"),
        }
    }
}

fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::BadPem("certificate", describe(&error)))?;
    if chain.is_empty() { Err(CertificateError::NoCertificate) } else { Ok(chain) }
}

fn parse_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            let marker = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
            let encrypted = pem.windows(marker.len()).any(|window| window == marker);
            if encrypted { CertificateError::EncryptedKey } else { CertificateError::NoKey }
        }
        other => CertificateError::BadPem("private key", describe(&other)),
    })
}

/// Without the bytes, which rustls' own text shows as numbers and which may be part of a key.
fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no -----END line".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a -----BEGIN line is malformed".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        other => other.to_string(),
    }
}

struct Leaf {
    names: Vec<String>,
    uris: Vec<Box<str>>,
    subject: Box<str>,
    not_before: ASN1Time,
    not_after: ASN1Time,
}

impl Leaf {
    fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        let bad = |error: &dyn fmt::Display| CertificateError::BadCertificate(error.to_string());
        let (_, leaf) = X509Certificate::from_der(der).map_err(|error| bad(&error))?;
        let alternative = leaf.subject_alternative_name().map_err(|error| bad(&error))?;
        let mut names: Vec<String> = alternative
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            })
            .collect();
        if alternative.is_none() {
            let common = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names.extend(common.map(str::to_ascii_lowercase));
        }
        let uris = alternative.iter().flat_map(|extension| &extension.value.general_names);
        let uris = uris.filter_map(|name| match name {
            GeneralName::URI(uri) if is_clean(uri) => Some((*uri).into()),
            _ => None,
        });
        Ok(Self {
            uris: uris.collect(),
            subject: rfc2253(leaf.subject()).into(),
            not_before: leaf.validity().not_before,
            not_after: leaf.validity().not_after,
            names,
        })
    }
}

fn check_match(
    chain: &[CertificateDer<'static>],
    signer: &Arc<dyn SigningKey>,
) -> Result<(), CertificateError> {
    let matches = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(signer)).keys_match()
    };
    match matches(&chain[0]) {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(chain
            .iter()
            .position(|certificate| matches(certificate).is_ok())
            .map_or(CertificateError::KeyMismatch, |index| CertificateError::LeafNotFirst(index + 1))),
        Err(error) => Err(CertificateError::BadCertificate(error.to_string())),
    }
}

fn schemes_of(signer: &dyn SigningKey) -> Vec<SignatureScheme> {
    SCHEMES.into_iter().filter(|scheme| signer.choose_scheme(&[*scheme]).is_some()).collect()
}

pub(super) fn name_covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name == host,
        Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256};
    use std::time::Duration;

    /// A self-signed certificate and its key.
    pub fn self_signed(names: &[&str], key: &KeyPair) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub fn ecdsa(names: &[&str]) -> Arc<Certificate> {
        let (chain, key) = self_signed(names, &KeyPair::generate().unwrap());
        Arc::new(Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())
    }

    pub fn rsa(names: &[&str]) -> Arc<Certificate> {
        let (chain, key) = self_signed(names, &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
        Arc::new(Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())
    }

    fn error(chain: &str, key: &str) -> CertificateError {
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err()
    }

    #[test]
    fn names_are_the_alternative_ones_in_lower_case() {
        let certificate = ecdsa(&["Shop.Example.com", "*.example.org", "10.0.0.1"]);
        assert_eq!(certificate.names(), ["shop.example.com", "*.example.org"]);
    }

    #[test]
    fn the_common_name_counts_only_without_alternatives() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Old.Example.com");
        let pem = params.self_signed(&key).unwrap().pem();
        let certificate = Certificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        assert_eq!(certificate.names(), ["old.example.com"]);
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        for (name, host, covers) in [
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("*.a.example", "x.a.example", true),
            ("*.a.example", "x.y.a.example", false),
            ("*.a.example", "a.example", false),
            ("*.a.example", ".a.example", false),
        ] {
            assert_eq!(name_covers(name, host), covers, "{name} {host}");
        }
    }

    /// The key inside PKCS#8, which is PKCS#1 for RSA and SEC1 for elliptic curves, as PEM.
    fn inner_key(key: &KeyPair, label: &str) -> String {
        let (_, outer) = x509_parser::der_parser::parse_der(key.serialized_der()).unwrap();
        let inner = outer.as_sequence().unwrap()[2].as_slice().unwrap();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(inner))
    }

    #[test]
    fn the_three_encodings_of_keys_are_read() {
        let (ec, rsa) = (KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
        for (key, pem) in [
            (&ec, ec.serialize_pem()),
            (&ec, inner_key(&ec, "EC PRIVATE KEY")),
            (&rsa, rsa.serialize_pem()),
            (&rsa, inner_key(&rsa, "RSA PRIVATE KEY")),
        ] {
            let (chain, _) = self_signed(&["a.example"], key);
            let read = Certificate::from_pem(chain.as_bytes(), pem.as_bytes());
            assert!(read.is_ok(), "{read:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let (chain, key) = self_signed(&["a.example"], &KeyPair::generate().unwrap());
        let (other_chain, other_key) = self_signed(&["b.example"], &KeyPair::generate().unwrap());
        assert_eq!(error("", &key), CertificateError::NoCertificate);
        assert_eq!(error(&key, &key), CertificateError::NoCertificate);
        assert_eq!(error(&chain, ""), CertificateError::NoKey);
        assert_eq!(error(&chain, &chain), CertificateError::NoKey);
        assert_eq!(error(&chain, &other_key), CertificateError::KeyMismatch);
        assert_eq!(error(&format!("{other_chain}{chain}"), &key), CertificateError::LeafNotFirst(2));
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        assert_eq!(error(&chain, &encrypted), CertificateError::EncryptedKey);
        let cut = &chain[..chain.len() / 2];
        assert!(matches!(error(cut, &key), CertificateError::BadPem("certificate", _)));
        let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(error(empty, &key), CertificateError::BadCertificate(_)));
        let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(matches!(error(&chain, no_key), CertificateError::UnsupportedKey(_)));
    }

    #[test]
    fn messages_do_not_quote_the_key() {
        let (chain, key) = self_signed(&["a.example"], &KeyPair::generate().unwrap());
        let spoiled = key.replacen('M', "!", 1);
        let text = error(&chain, &spoiled).to_string();
        assert_eq!(text, "the PEM of the private key cannot be read: a section is not base64");
    }

    #[test]
    fn its_time_is_a_warning() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let pem = params.self_signed(&key).unwrap().pem();
        let certificate = Certificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let at = |seconds| certificate.warnings(UNIX_EPOCH + Duration::from_secs(seconds));
        assert!(matches!(at(1_500_000_000)[..], [CertificateWarning::NotYetValid { .. }]));
        assert!(at(1_600_000_000).is_empty());
        assert!(matches!(at(1_700_000_000)[..], [CertificateWarning::Expired { .. }]));
        assert!(at(1_700_000_000)[0].to_string().contains("2021"));
    }
}
