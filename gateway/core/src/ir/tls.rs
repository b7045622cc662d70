//! TLS on both sides: what is shown, what is believed, what is asked of the peer. Parsing of PEM happens where TLS is set
//! up; nothing here looks into a certificate.

use std::sync::Arc;

use super::StringMatch;

/// TLS termination.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    /// Certificates in order of preference.
    pub certificates: Vec<Arc<Certificate>>,
    /// TLS 1.2 is refused if set.
    pub min_tls13: bool,
    /// What is asked of clients; `None` asks for no certificate.
    pub clients: Option<Arc<ClientValidation>>,
}

/// A certificate with its key, as given. Parsing happens where TLS is set up; a bad one spoils its listener only.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Where it came from, for messages: `Secret default/shop-tls`.
    pub origin: Arc<str>,
    /// PEM chain, leaf first.
    pub chain_pem: Arc<[u8]>,
    /// PEM key.
    pub key_pem: Arc<[u8]>,
}

impl std::fmt::Debug for Certificate {
    // The key must never reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Public PEM: certificates of authorities, or revocation lists.
#[derive(Clone, PartialEq, Eq)]
pub struct PemBundle {
    /// Where it came from, for messages: `ConfigMap default/clients-ca`.
    pub origin: Arc<str>,
    /// The text.
    pub pem: Arc<[u8]>,
}

impl std::fmt::Debug for PemBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemBundle").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// How certificates of clients are judged (Gateway API `FrontendTLSValidation`, Istio's MUTUAL and OPTIONAL_MUTUAL,
/// Envoy's `CertificateValidationContext`).
#[derive(Clone, Debug, PartialEq)]
pub struct ClientValidation {
    /// Whether one must be shown.
    pub mode: ClientCertificates,
    /// Authorities. A chain must lead to one of them.
    pub roots: Vec<Arc<PemBundle>>,
    /// Revocation lists. A revoked certificate is refused; where a list is given, so is one whose issuer has none.
    pub revoked: Vec<Arc<PemBundle>>,
    /// Any one must fit a URI, DNS or e-mail name of the certificate; empty asks nothing.
    pub names: Vec<StringMatch>,
    /// Trust domains whose SPIFFE identities are accepted; empty accepts any that the authorities vouch for.
    pub trust_domains: Vec<Arc<str>>,
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None, or a wrong one: the handshake fails.
    #[default]
    Required,
    /// None is fine, a wrong one fails.
    Optional,
    /// None is fine, and a wrong one counts as none: such a client has no identity (Gateway API `AllowInsecureFallback`).
    Unverified,
}

/// TLS towards endpoints of a pool (Istio `ClientTLSSettings`, Gateway API `BackendTLSPolicy`).
#[derive(Clone, Debug, PartialEq)]
pub struct PoolTls {
    /// Which policy says so, for messages.
    pub origin: Arc<str>,
    /// Whom to believe.
    pub trust: ServerTrust,
    /// The server name to send. `None` sends the request's host where that is a name (Envoy's `auto_sni`).
    pub sni: Option<Arc<str>>,
    /// Any one must fit a name of the certificate. Empty: the server name must.
    pub names: Vec<StringMatch>,
    /// What to show where the endpoint asks for a certificate.
    pub identity: Option<Arc<Certificate>>,
    /// Protocols to offer; empty offers what the pool's protocol says.
    pub alpn: Vec<Arc<str>>,
}

/// Whom to believe about an endpoint's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerTrust {
    /// The authorities of the operating system.
    System,
    /// These, and revocation lists.
    Roots {
        /// Authorities; with none, nobody is believed and no connection is made.
        roots: Vec<Arc<PemBundle>>,
        /// Revocation lists.
        revoked: Vec<Arc<PemBundle>>,
    },
    /// Anybody: encrypted, but open to whoever can sit in between (Istio `insecureSkipVerify`).
    Anybody,
}

/// What of TLS holds for one endpoint of a pool that has [`PoolTls`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum EndpointTls {
    /// What the pool says.
    #[default]
    AsPool,
    /// None: a VM or a pod that has none yet.
    Plain,
    /// Its own.
    Own(Arc<PoolTls>),
}

/// How `x-forwarded-client-cert` is treated (Envoy's `ForwardClientCertDetails`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedClientCert {
    /// Never sent (Envoy's default).
    #[default]
    Sanitize,
    /// What the client sent is passed on if it has shown a certificate, and taken off else.
    ForwardOnly,
    /// As `ForwardOnly`, with an element of ours at the end.
    AppendForward,
    /// What the client sent is replaced by an element of ours (Istio's gateways).
    SanitizeSet,
    /// What the client sent is passed on, whoever it is: only behind a proxy that is to be believed.
    AlwaysForwardOnly,
}

/// What an element of `x-forwarded-client-cert` says of a certificate (Envoy's `SetCurrentClientCertDetails`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCertDetails {
    /// The certificate, PEM, percent-encoded.
    pub cert: bool,
    /// The chain as shown, leaf first, PEM, percent-encoded.
    pub chain: bool,
    /// The subject, RFC 2253 form.
    pub subject: bool,
    /// URI names.
    pub uri: bool,
    /// DNS names.
    pub dns: bool,
}

impl Default for ClientCertDetails {
    /// As Istio's gateways.
    fn default() -> Self {
        Self { cert: true, chain: false, subject: true, uri: true, dns: true }
    }
}
