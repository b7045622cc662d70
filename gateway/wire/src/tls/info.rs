//! What a TLS handshake agreed on, in a form that is cheap to keep for as long as the connection lives.

use rustls::pki_types::CertificateDer;
use rustls::{CipherSuite, CommonState, HandshakeKind, NamedGroup, ProtocolVersion};

use crate::io::Io;

/// The protocol that ALPN chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `h2`.
    Http2,
    /// `http/1.1`.
    Http1,
    /// Something else that the configuration lists.
    Other,
    /// The client offered nothing.
    None,
}

/// The result of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeInfo {
    /// The name that the client asked for, in lower case. Always `None` on connections to an upstream.
    pub sni: Option<Box<str>>,
    /// The protocol inside.
    pub alpn: Alpn,
    /// The version of TLS.
    pub version: Option<ProtocolVersion>,
    /// The cipher suite.
    pub cipher: Option<CipherSuite>,
    /// The key exchange; `None` where TLS 1.2 resumed.
    pub group: Option<NamedGroup>,
    /// Whether an earlier session went on.
    pub resumed: bool,
}

impl HandshakeInfo {
    /// Of a connection whose handshake is over; `None` for one without TLS.
    pub fn of(io: &Io) -> Option<Self> {
        let state = state(io)?;
        let sni = match io {
            Io::Tls(tls) => tls.get_ref().1.server_name().map(|name| name.to_ascii_lowercase().into()),
            _ => None,
        };
        Some(Self {
            sni,
            alpn: match state.alpn_protocol() {
                Some(b"h2") => Alpn::Http2,
                Some(b"http/1.1") => Alpn::Http1,
                Some(_) => Alpn::Other,
                None => Alpn::None,
            },
            version: state.protocol_version(),
            cipher: state.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: state.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name),
            resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }

    /// The name of the protocol that ALPN chose, as it is on the wire.
    pub fn alpn_of(io: &Io) -> Option<&[u8]> {
        state(io)?.alpn_protocol()
    }

    /// The chain that the peer showed, leaf first; empty if it showed none. Borrowed from the connection.
    pub fn peer_certificates(io: &Io) -> &[CertificateDer<'static>] {
        state(io).and_then(CommonState::peer_certificates).unwrap_or_default()
    }
}

fn state(io: &Io) -> Option<&CommonState> {
    match io {
        Io::Tcp(_) => None,
        Io::Tls(tls) => Some(tls.get_ref().1),
        Io::ClientTls(tls) => Some(tls.get_ref().1),
    }
}
