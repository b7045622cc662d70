//! Tokens (RFC 7519): who has signed them, what they say, and whether that holds now and for us.
//!
//! Refuses what Envoy's `jwt_authn` refuses, with its texts, and also what is ambiguous: names that an object has twice,
//! base64 that is not canonical, headers that change what the token means. There is no `none`, and no algorithm is ever used
//! with a key of another type. The crypto is aws-lc-rs's, as everywhere in the gateway; `jsonwebtoken` was not taken since
//! it has no ES512 and looks at neither `crit`, `use`, `key_ops` nor repeated names.
//!
//! Nothing is fetched here: keys come by way of a [`KeySource`], which others fill.

mod algorithm;
mod authenticator;
mod cache;
mod claims;
mod json;
mod jws;
mod keys;
mod places;
mod refusal;
mod rsa;
mod source;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fieldgate_core::identity::Token;

pub use authenticator::{Authenticator, MAX_TOKENS, Passed};
pub use cache::Cache;
use claims::Claims;
use jws::Jws;
pub use jws::MAX_TOKEN_BYTES;
pub use keys::{BadKeySet, KeyInfo, KeySet, MAX_DOCUMENT_BYTES, MAX_KEYS, Unusable};
pub use refusal::Refusal;
pub use source::{KeySource, KeySources};

/// How far clocks may be apart, as Envoy has it.
pub const CLOCK_SKEW: Duration = Duration::from_mins(1);

/// Checks a token from its form to its signature. Audiences are compared as they stand; an empty list takes all.
/// [`Refusal::NoSuchKey`] may mean that keys were rotated: [`KeySource::wish_for_newer`].
pub fn verify<S: AsRef<str>>(
    token: &str,
    keys: &KeySet,
    issuer: &str,
    audiences: &[S],
    wall: SystemTime,
) -> Result<Token, Refusal> {
    let jws = Jws::parse(token)?;
    let claims = Claims::read(&jws.payload)?;
    if claims.token.issuer != issuer {
        return Err(Refusal::UnknownIssuer);
    }
    claims.hold_at(wall, CLOCK_SKEW)?;
    claims.are_for(audiences, |own, audience| own == audience)?;
    jws.verify(keys)?;
    Ok(Arc::unwrap_or_clone(claims.token))
}

/// Checks the signature alone, and gives the payload as it is (RFC 7515).
pub fn verify_signature(token: &str, keys: &KeySet) -> Result<Vec<u8>, Refusal> {
    let jws = Jws::parse(token)?;
    jws.verify(keys)?;
    Ok(jws.payload)
}
