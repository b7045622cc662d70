//! The two values of WebSocket's HTTP/1.1 handshake (RFC 6455), for where one side of the gateway has them and the other,
//! HTTP/2 (RFC 8441), has not. Frames are none of the gateway's business: it moves their bytes and never looks inside.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// `sec-websocket-key` of a nonce (RFC 6455 section 4.1).
pub fn key(nonce: [u8; 16]) -> String {
    STANDARD.encode(nonce)
}

/// The `sec-websocket-accept` that answers this `sec-websocket-key` (RFC 6455 section 4.2.2).
pub fn accept(key: &[u8]) -> String {
    // SHA-1 is what the RFC says. It shows that the peer speaks WebSocket and protects nothing.
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat()))
}

/// Whether this is the base64 of sixteen bytes, as a client's key has to be.
pub fn is_key(value: &[u8]) -> bool {
    STANDARD.decode(value).is_ok_and(|nonce| nonce.len() == 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_6455_section_1_3() {
        let key = key(*b"the sample nonce");
        assert_eq!(key, "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(key.as_bytes()), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn keys_are_sixteen_bytes() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        for bad in
            ["", "dGhl", "dGhlIHNhbXBsZSBub25jZQ", "not base64 at all, is it", "dGhlIHNhbXBsZSBub25jZTE="]
        {
            assert!(!is_key(bad.as_bytes()), "{bad}");
        }
    }
}
