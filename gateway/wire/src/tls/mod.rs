//! TLS of both sides, on rustls with aws-lc-rs.
//!
//! Everything here is made once and then immutable: to change a certificate, the owner makes a new configuration and
//! swaps it; connections that are open keep the old one, and [`TicketKeys`] shared between the two let
//! clients resume across the change. Which certificate belongs to which listener is the caller's policy.

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

mod certificate;
mod client;
mod info;
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
pub use info::{Alpn, HandshakeInfo};
pub use server::{ClientAuth, ServerTls, ServerTlsError, TlsVersion, accept};
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
