//! Who somebody has proved to be: the peer of a connection by its certificate, the bearer of a token. How it was proved is
//! not known here.

use std::sync::Arc;

use serde_json::{Map, Value};

/// What a verified certificate says of its holder. Made once per connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// URI names, as they stand: `spiffe://cluster.local/ns/shop/sa/web`.
    pub uris: Vec<Box<str>>,
    /// DNS names.
    pub dns: Vec<Box<str>>,
    /// The subject, RFC 2253 form, as Envoy writes it: `CN=web,O=Shop`.
    pub subject: Box<str>,
    /// SHA-256 of the certificate, hexadecimal in lower case.
    pub hash: Box<str>,
    /// The certificate, DER.
    pub der: Arc<[u8]>,
    /// The chain as shown, DER, leaf first.
    pub chain: Vec<Arc<[u8]>>,
}

impl PeerIdentity {
    /// The name that policies see (`source.principal`): a SPIFFE identity without its scheme.
    pub fn principal(&self) -> Option<&str> {
        self.uris.iter().find_map(|uri| uri.strip_prefix("spiffe://"))
    }

    /// Trust domain, namespace and service account of an identity as Istio forms them.
    pub fn workload(&self) -> Option<(&str, &str, &str)> {
        let (domain, path) = self.principal()?.split_once('/')?;
        let (namespace, account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
        Some((domain, namespace, account))
    }
}

/// A verified token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// `iss`.
    pub issuer: String,
    /// `sub`; empty without one.
    pub subject: String,
    /// `iss/sub`, which policies see as `request.auth.principal`; empty if either is missing.
    pub principal: String,
    /// `aud`.
    pub audiences: Vec<String>,
    /// All claims.
    pub claims: Map<String, Value>,
}

impl Token {
    /// A claim by its path.
    pub fn claim<S: AsRef<str>>(&self, path: &[S]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let mut value = self.claims.get(first.as_ref())?;
        for name in rest {
            value = value.get(name.as_ref())?;
        }
        Some(value)
    }
}

/// What was learned about a request from guards and tokens on its way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// Verified tokens, in the order of their rules.
    pub tokens: Vec<Arc<Token>>,
    /// The user that logged in, and how: `basic`, `api-key`, `oidc`.
    pub user: Option<(Box<str>, &'static str)>,
    /// Envoy's dynamic metadata by namespace.
    pub dynamic: Map<String, Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_by_its_spiffe_identity() {
        let of = |uri: &str| PeerIdentity { uris: vec![uri.into()], ..PeerIdentity::default() };
        let web = of("spiffe://td/ns/shop/sa/web");
        assert_eq!(web.principal(), Some("td/ns/shop/sa/web"));
        assert_eq!(web.workload(), Some(("td", "shop", "web")));
        assert_eq!(of("spiffe://td/other").workload(), None);
        assert_eq!(of("https://td/ns/shop/sa/web").principal(), None);
    }

    #[test]
    fn claims_are_found_by_path() {
        let claims = serde_json::json!({"a": {"b": [1]}, "c": "x"});
        let Value::Object(claims) = claims else { unreachable!() };
        let token = Token { claims, ..Token::default() };
        assert_eq!(token.claim(&["a", "b"]), Some(&serde_json::json!([1])));
        assert_eq!(token.claim(&["c", "b"]), None);
        assert_eq!(token.claim::<&str>(&[]), None);
    }
}
