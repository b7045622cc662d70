//! A request that somebody asks about.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldgate_core::head::split_port;
use fieldgate_core::identity::{Metadata, PeerIdentity, Token};
use fieldgate_core::{Method, RequestHead};
use fieldgate_wire::h1::valid_authority;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::worker::set_target;

/// A request that was never sent.
#[derive(Clone, Debug)]
pub struct Question {
    /// The head as a worker would see it.
    pub head: RequestHead,
    /// The port of the URL, or the well-known one of its scheme.
    pub port: u16,
    /// Whether the URL named the port.
    pub port_given: bool,
    /// The client's address.
    pub client: IpAddr,
    /// Who the client's certificate would say that it is.
    pub identity: Option<PeerIdentity>,
    /// What tokens would have said.
    pub metadata: Metadata,
    /// What should be known about what was understood.
    pub notes: Vec<String>,
}

impl Question {
    /// From a method, a URL and fields written as `name: value`.
    pub fn new(method: &str, url: &str, headers: &[String], client: Option<&str>) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let https = match scheme {
            "http" => false,
            "https" => true,
            other => return Err(format!("the scheme `{other}` is not http or https")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(format!("`{url}` has no host; write http://shop.example/path"));
        }
        let authority = authority.to_ascii_lowercase();
        let (host, port) = split_port(&authority);
        if port.is_none() && host.len() != authority.len() {
            return Err(format!("`{authority}` has no valid port"));
        }
        if !valid_authority(&authority) {
            return Err(format!("`{authority}` is not a host that a request can name"));
        }
        if http::Method::from_bytes(method.as_bytes()).is_err() {
            return Err(format!("`{method}` is not a method"));
        }
        let mut head =
            RequestHead { method: Method::from_bytes(method.as_bytes()), https, ..RequestHead::default() };
        // The same steps as for a request that is sent, or the answer would be about another path.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        if !target.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("`{target}` holds what must be percent-encoded in a URL"));
        }
        if head.method == Method::Connect {
            head.set_target(&target);
        } else {
            set_target(&mut head, &target)
                .map_err(|_| format!("`{target}` is refused with 400: it has no canonical form"))?;
        }
        let (port, port_given) = (port.unwrap_or(if https { 443 } else { 80 }), port.is_some());
        head.authority = authority;
        for header in headers {
            let (name, value) = header
                .split_once(':')
                .ok_or_else(|| format!("`{header}` is not a header; write 'name: value'"))?;
            match name.trim().to_ascii_lowercase().as_str() {
                "host" if valid_authority(value.trim()) => {
                    value.trim().to_ascii_lowercase().clone_into(&mut head.authority);
                }
                name if name == "host"
                    || HeaderName::from_bytes(name.as_bytes()).is_err()
                    || HeaderValue::from_str(value.trim()).is_err() =>
                {
                    return Err(format!("`{header}` cannot be a header of a request"));
                }
                name => head.headers.push(name.as_bytes(), value.trim().as_bytes()),
            }
        }
        head.drop_trailing_dot();
        let client = match client {
            Some(text) => text.parse().map_err(|_| format!("`{text}` is not an IP address"))?,
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let mut question = Self {
            head,
            port,
            port_given,
            client,
            identity: None,
            metadata: Metadata::default(),
            notes: Vec::new(),
        };
        question.read_token();
        Ok(question)
    }

    /// As of a client with a certificate of this identity; a SPIFFE identity without its scheme is one, too.
    #[must_use]
    pub fn with_principal(mut self, principal: Option<&str>) -> Self {
        self.identity = principal.map(|name| {
            let uri = if name.contains("://") { name.to_owned() } else { format!("spiffe://{name}") };
            PeerIdentity { uris: vec![uri.into()], ..PeerIdentity::default() }
        });
        self
    }

    /// As with a verified token of these claims, written `name=value`; a value may be JSON. They are put over those of a
    /// token that the request has.
    pub fn with_claims(mut self, claims: &[String]) -> Result<Self, String> {
        if claims.is_empty() {
            return Ok(self);
        }
        let known = self.metadata.tokens.pop().map(|token| token.claims.clone());
        let mut all = known.unwrap_or_default();
        for claim in claims {
            let (name, value) = claim
                .split_once('=')
                .ok_or_else(|| format!("`{claim}` is not a claim; write 'name=value'"))?;
            let value = match serde_json::from_str(value) {
                Ok(json @ (Value::Array(_) | Value::Object(_))) => json,
                _ => Value::String(value.to_owned()),
            };
            all.insert(name.to_owned(), value);
        }
        self.metadata.tokens = vec![Arc::new(token(all))];
        Ok(self)
    }

    /// The claims of a bearer's token, if there is one. Nothing here has keys.
    fn read_token(&mut self) {
        let header = self.head.headers.get("authorization").and_then(|value| std::str::from_utf8(value).ok());
        let bearer = header.and_then(|text| text.strip_prefix("Bearer ").or(text.strip_prefix("bearer ")));
        let Some(payload) = bearer.and_then(|text| text.trim().split('.').nth(1)) else { return };
        let decoded = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok();
        match decoded.and_then(|json| serde_json::from_slice(&json).ok()) {
            Some(Value::Object(claims)) => {
                self.metadata.tokens = vec![Arc::new(token(claims))];
                self.notes.push("the token was read and not verified; a gateway verifies it first".into());
            }
            _ => self.notes.push("the Authorization header has no token that can be read".into()),
        }
    }
}

fn token(claims: Map<String, Value>) -> Token {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (issuer, subject) = (text("iss"), text("sub"));
    let principal = match (&*issuer, &*subject) {
        ("", _) | (_, "") => String::new(),
        (issuer, subject) => format!("{issuer}/{subject}"),
    };
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Token { issuer, subject, principal, audiences, claims }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.head.https { "https" } else { "http" };
        write!(f, "{} {scheme}://{}{}", self.head.method.as_str(), self.head.authority, self.head.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (url, shown, port, given) in [
            ("http://Shop.example", "GET http://shop.example/", 80, false),
            ("shop.example:8080/a?b=c#d", "GET http://shop.example:8080/a?b=c", 8080, true),
            ("https://[::1]?q", "GET https://[::1]/?q", 443, false),
            ("http://a/x/../%61dmin?b=../c", "GET http://a/admin?b=../c", 80, false),
        ] {
            let question = Question::new("GET", url, &[], None).unwrap();
            assert_eq!(
                (question.to_string().as_str(), question.port, question.port_given),
                (shown, port, given)
            );
        }
        for bad in ["ftp://a/", "http:///a", "http://a:x/", "http://u@a/", "http://a/b c", "http://a/%zz"] {
            assert!(Question::new("GET", bad, &[], None).is_err(), "{bad}");
        }
        assert!(Question::new("G T", "http://a/", &[], None).is_err());
    }

    #[test]
    fn tokens_are_read() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"iss":"https://i","sub":"s","aud":"x"}"#);
        let headers = [format!("Authorization: Bearer e30.{payload}.x")];
        let question = Question::new("GET", "http://a/", &headers, None).unwrap();
        assert_eq!(question.metadata.tokens[0].principal, "https://i/s");
        assert!(question.notes[0].contains("not verified"));
        let claims = ["sub=other".to_owned(), r#"groups=["a"]"#.to_owned(), "n=7".to_owned()];
        let token = question.with_claims(&claims).unwrap().metadata.tokens[0].clone();
        assert_eq!(
            (token.principal.as_str(), &token.audiences[..]),
            ("https://i/other", &["x".to_owned()][..])
        );
        assert_eq!(token.claims["groups"], serde_json::json!(["a"]));
        assert_eq!(token.claims["n"], serde_json::json!("7"));
        let question = Question::new("GET", "http://a/", &[], None).unwrap();
        assert!(question.clone().with_claims(&["sub".to_owned()]).is_err());
        let question = question.with_principal(Some("td/ns/a/sa/b"));
        assert_eq!(question.identity.unwrap().principal(), Some("td/ns/a/sa/b"));
    }

    #[test]
    fn headers() {
        let headers = ["X-A: 1".to_owned(), "Host: Other.example".to_owned()];
        let question = Question::new("GET", "http://a/", &headers, Some("10.0.0.1")).unwrap();
        assert_eq!(question.head.authority, "other.example");
        assert_eq!(question.head.headers.get("x-a"), Some(&b"1"[..]));
        for bad in ["nope", "a b: c", "a: b\nc", "host: u@a"] {
            assert!(Question::new("GET", "http://a/", &[bad.to_owned()], None).is_err(), "{bad}");
        }
    }
}
