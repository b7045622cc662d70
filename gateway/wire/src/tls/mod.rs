//! TLS of both sides, on rustls with aws-lc-rs.
//!
//! Everything here is made once and then immutable: to change a certificate, the owner makes a new configuration and
//! swaps it; connections that are open keep the old one, and [`TicketKeys`] shared between the two let
//! clients resume across the change. Which certificate belongs to which listener is the caller's policy.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

mod certificate;
mod client;
mod client_certificate;
mod client_rules;
#[cfg(test)]
mod client_tests;
mod clients;
mod distinguished_name;
mod info;
mod introduction;
mod mutual;
mod patterns;
mod refusal;
mod server;
mod sni;
#[cfg(test)]
mod tests;
mod tickets;
mod verify;
#[cfg(test)]
mod verify_tests;

pub use certificate::{Certificate, CertificateError, CertificateWarning};
pub use client::{ClientTls, ClientTlsError, Verification, connect, describe, is_wrong_name, server_name};
pub use client_certificate::ClientCertificate;
pub use client_rules::{ClientMode, ClientRules, Dated, DatedKind, NamePattern};
pub use clients::ClientVerifier;
pub use info::{Alpn, HandshakeInfo};
pub use mutual::{Failed, Greeting, Introduced, greet};
pub use patterns::Patterns;
pub use refusal::{Refusal, RefusalReason};
pub use server::{ServerTls, ServerTlsError, TlsVersion, accept};
pub use sni::SniResolver;
pub use tickets::TicketKeys;
pub use verify::{NameCheck, PeerName};

/// The cryptography of every configuration. With rustls' feature `prefer-post-quantum` its first key exchange is
/// X25519MLKEM768.
fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    &PROVIDER
}
