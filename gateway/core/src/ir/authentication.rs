//! Tokens: who may issue them, where they are looked for, what becomes of them (Istio's RequestAuthentication).

use std::sync::Arc;
use std::time::Duration;

use super::{Jwks, ListenerKey, ObjectKey};

/// A RequestAuthentication that applies to listeners. A request without a token passes it; one with a bad token does not.
#[derive(Clone, Debug, PartialEq)]
pub struct Authentication {
    /// Its name.
    pub key: ObjectKey,
    /// To which listeners it applies.
    pub listeners: Vec<ListenerKey>,
    /// Issuers. A token is judged by the rule of its issuer.
    pub rules: Vec<Arc<JwtRule>>,
}

/// An issuer (Istio's `JWTRule`).
#[derive(Clone, Debug, PartialEq)]
pub struct JwtRule {
    /// The `iss` of its tokens.
    pub issuer: Arc<str>,
    /// Any one must be among a token's `aud`; empty takes all.
    pub audiences: Vec<Arc<str>>,
    /// Its keys.
    pub keys: Jwks,
    /// Where tokens are looked for. Never empty: without a word it is `Authorization: Bearer` and `access_token`.
    pub from: Vec<TokenPlace>,
    /// Whether the token goes upstream.
    pub forward: bool,
    /// The header, in lower case, in which the payload goes upstream as base64url.
    pub payload_header: Option<Arc<str>>,
    /// Claims that go upstream as headers: the header in lower case, the claim's path.
    pub claim_headers: Vec<(Arc<str>, Vec<Arc<str>>)>,
    /// How far clocks may be apart.
    pub clock_skew: Duration,
}

/// Where a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// A header, name in lower case, with what stands before the token.
    Header(Arc<str>, Arc<str>),
    /// A query parameter.
    Param(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}
