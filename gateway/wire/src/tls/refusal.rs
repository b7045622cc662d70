//! Why a client's certificate is refused: one reason for metrics and the log, one sentence for people.

use std::fmt;

use rustls::pki_types::UnixTime;
use rustls::{CertificateError, Error};
use webpki::Error as Pki;
use x509_parser::prelude::ASN1Time;

use super::ClientCertificate;

/// The kinds of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalReason {
    /// None was shown where one must be.
    NoCertificate,
    /// Its time, or that of an authority above it, is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// No chain leads to an authority that is believed.
    UnknownAuthority,
    /// The same, and it is signed by nobody but itself.
    SelfSigned,
    /// It, or an authority between, is on a revocation list.
    Revoked,
    /// There are revocation lists, and none is of its issuer.
    RevocationUnknown,
    /// The revocation list of its issuer is out of date.
    RevocationListExpired,
    /// None of its names is wanted.
    WrongName,
    /// It has no SPIFFE identity of a trust domain that is wanted.
    WrongTrustDomain,
    /// It may not be used as a client's.
    WrongKeyUsage,
    /// A signature in the chain is wrong, or the client does not hold the key.
    BadSignature,
    /// It cannot be read.
    Malformed,
    /// Something else.
    Other,
}

impl RefusalReason {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::NoCertificate,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownAuthority,
        Self::SelfSigned,
        Self::Revoked,
        Self::RevocationUnknown,
        Self::RevocationListExpired,
        Self::WrongName,
        Self::WrongTrustDomain,
        Self::WrongKeyUsage,
        Self::BadSignature,
        Self::Malformed,
        Self::Other,
    ];

    /// For metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownAuthority => "unknown_authority",
            Self::SelfSigned => "self_signed",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::RevocationListExpired => "revocation_list_expired",
            Self::WrongName => "wrong_name",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongKeyUsage => "wrong_key_usage",
            Self::BadSignature => "bad_signature",
            Self::Malformed => "malformed",
            Self::Other => "other",
        }
    }
}

/// A refusal of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of.
    pub reason: RefusalReason,
    /// For people. Names in it are escaped, whatever the certificate says.
    pub detail: String,
}

impl Refusal {
    pub(super) fn new(reason: RefusalReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    pub(super) fn none_shown() -> Self {
        Self::new(RefusalReason::NoCertificate, "the client showed no certificate")
    }

    /// Of an error in verifying a chain; `leaf` is whose.
    pub(super) fn of_chain(error: &Pki, leaf: &ClientCertificate) -> Self {
        let (reason, what) = match error {
            Pki::CertExpired { not_after, .. } => (
                RefusalReason::Expired,
                format!("the certificate, or one above it, expired on {}", date(*not_after)),
            ),
            Pki::InvalidCertValidity => (RefusalReason::Expired, "it is never valid".to_owned()),
            Pki::CertNotValidYet { not_before, .. } => {
                let why = format!("it is not valid before {} (are the clocks right?)", date(*not_before));
                (RefusalReason::NotYetValid, why)
            }
            Pki::UnknownIssuer | Pki::CaUsedAsEndEntity if leaf.self_issued => (
                RefusalReason::SelfSigned,
                "it is signed by itself, and not one of those that are believed".to_owned(),
            ),
            Pki::UnknownIssuer => {
                let why = "no chain of what the client showed leads to an authority of this listener";
                (RefusalReason::UnknownAuthority, why.to_owned())
            }
            Pki::CertRevoked => {
                (RefusalReason::Revoked, "it, or an authority between, is revoked".to_owned())
            }
            Pki::UnknownRevocationStatus => {
                (RefusalReason::RevocationUnknown, "there is no revocation list of its issuer".to_owned())
            }
            Pki::CrlExpired { next_update, .. } => {
                let why =
                    format!("the revocation list of its issuer is out of date since {}", date(*next_update));
                (RefusalReason::RevocationListExpired, why)
            }
            Pki::InvalidSignatureForPublicKey | Pki::InvalidCrlSignatureForPublicKey => {
                (RefusalReason::BadSignature, "a signature in its chain is wrong".to_owned())
            }
            Pki::RequiredEkuNotFoundContext(_) | Pki::EmptyEkuExtension => (
                RefusalReason::WrongKeyUsage,
                "its extended key usage does not say that it is for clients".to_owned(),
            ),
            Pki::CaUsedAsEndEntity => {
                (RefusalReason::WrongKeyUsage, "it is an authority's, and not a client's".to_owned())
            }
            Pki::EndEntityUsedAsCa => {
                (RefusalReason::WrongKeyUsage, "a certificate in its chain is no authority's".to_owned())
            }
            Pki::BadDer | Pki::BadDerTime | Pki::TrailingData(_) | Pki::MalformedExtensions => {
                (RefusalReason::Malformed, "it, or one in its chain, cannot be read".to_owned())
            }
            other => (RefusalReason::Other, format!("its chain is not acceptable: {other}")),
        };
        Self::new(reason, format!("{what}; subject {:?}, issuer {:?}", &*leaf.subject, &*leaf.issuer))
    }

    /// What rustls is told, which says it to the client in an alert.
    pub(super) fn as_error(&self) -> Error {
        let error = match self.reason {
            RefusalReason::NoCertificate => return Error::NoCertificatesPresented,
            RefusalReason::Expired => CertificateError::Expired,
            RefusalReason::NotYetValid => CertificateError::NotValidYet,
            RefusalReason::UnknownAuthority | RefusalReason::SelfSigned => CertificateError::UnknownIssuer,
            RefusalReason::Revoked => CertificateError::Revoked,
            RefusalReason::RevocationUnknown => CertificateError::UnknownRevocationStatus,
            RefusalReason::RevocationListExpired => CertificateError::ExpiredRevocationList,
            RefusalReason::WrongName | RefusalReason::WrongTrustDomain => {
                CertificateError::ApplicationVerificationFailure
            }
            RefusalReason::WrongKeyUsage => CertificateError::InvalidPurpose,
            RefusalReason::BadSignature => CertificateError::BadSignature,
            RefusalReason::Malformed | RefusalReason::Other => CertificateError::BadEncoding,
        };
        Error::InvalidCertificate(error)
    }

    /// Of a handshake that failed after everything was fine with the certificate, or before there was one.
    pub(super) fn of_handshake(error: &Error) -> Option<Self> {
        match error {
            Error::NoCertificatesPresented => Some(Self::none_shown()),
            Error::InvalidCertificate(error) => {
                Some(Self::new(RefusalReason::Other, format!("the certificate is not acceptable: {error}")))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

fn date(time: UnixTime) -> String {
    let seconds = time.as_secs() as i64;
    ASN1Time::from_timestamp(seconds)
        .map_or_else(|_| format!("{seconds} s after 1970"), |time| time.to_string())
}
