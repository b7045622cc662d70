//! A client's home among endpoints: what names it in a request, and what tells the client (Envoy: stateful session).
//!
//! The name is the endpoint's address in base64url: enough for every gateway to find it, without state. It is not a secret
//! and grants nothing, for an address that is not in the pool is ignored.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::head::RequestHead;
use crate::ir::{Affinity, AffinityCarrier};

/// The endpoint that a request names, if it names one.
pub fn named(affinity: &Affinity, head: &RequestHead) -> Option<SocketAddr> {
    let value = match &affinity.carrier {
        AffinityCarrier::Cookie { name, .. } => head.cookie(name)?,
        AffinityCarrier::Header(name) => head.headers.get(name)?,
    };
    // The longest name of an address with its port, and no more.
    let mut text = [0; 64];
    let length = URL_SAFE_NO_PAD.decode_slice(value, &mut text).ok()?;
    std::str::from_utf8(&text[..length]).ok()?.parse().ok()
}

/// The field that tells a client its endpoint. `secure`: the client came by TLS.
pub fn issue(affinity: &Affinity, endpoint: SocketAddr, secure: bool) -> (&str, String) {
    let value = URL_SAFE_NO_PAD.encode(endpoint.to_string());
    match &affinity.carrier {
        AffinityCarrier::Header(name) => (name, value),
        AffinityCarrier::Cookie { name, ttl, path } => {
            let age = ttl.map_or(String::new(), |ttl| format!("; Max-Age={}", ttl.as_secs()));
            let secure = if secure { "; Secure" } else { "" };
            let path = if path.is_empty() { "/" } else { path };
            ("set-cookie", format!("{name}={value}; Path={path}{age}; HttpOnly; SameSite=Lax{secure}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn cookie(ttl: Option<Duration>) -> Affinity {
        Affinity {
            carrier: AffinityCarrier::Cookie { name: "home".into(), ttl, path: "/shop".into() },
            strict: false,
        }
    }

    #[test]
    fn what_is_issued_names_the_endpoint() {
        let header = Affinity { carrier: AffinityCarrier::Header("x-home".into()), strict: false };
        for address in ["10.0.0.1:8080", "[2001:db8::1234:5678:9abc:def0]:65535"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut head = RequestHead::default();
            let (name, value) = issue(&header, address, false);
            head.headers.push(name.as_bytes(), value.as_bytes());
            assert_eq!(named(&header, &head), Some(address));

            let affinity = cookie(None);
            let (name, value) = issue(&affinity, address, false);
            assert_eq!(name, "set-cookie");
            let pair = value.split(';').next().unwrap();
            head.headers.push(b"cookie", format!("a=b; {pair}").as_bytes());
            assert_eq!(named(&affinity, &head), Some(address));
        }
    }

    #[test]
    fn attributes_of_the_cookie() {
        let address = "10.0.0.1:80".parse().unwrap();
        let value = issue(&cookie(None), address, false).1;
        assert!(value.ends_with("; Path=/shop; HttpOnly; SameSite=Lax"), "{value}");
        let value = issue(&cookie(Some(Duration::from_mins(1))), address, true).1;
        assert!(value.ends_with("; Path=/shop; Max-Age=60; HttpOnly; SameSite=Lax; Secure"), "{value}");
    }

    #[test]
    fn what_names_nothing_is_ignored() {
        for value in ["", "AAAA", "not base64!", "MTAuMC4wLjE", &"A".repeat(1000)] {
            let mut head = RequestHead::default();
            head.headers.push(b"cookie", format!("home={value}").as_bytes());
            assert_eq!(named(&cookie(None), &head), None, "{value}");
        }
    }
}
