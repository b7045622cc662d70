//! The form of tokens: three parts, of which the first says how the third signs the first two (RFC 7515). What the second
//! means is not known here.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::algorithm::Algorithm;
use super::keys::KeySet;
use super::{Refusal, json};

/// Bytes of a token.
pub const MAX_TOKEN_BYTES: usize = 32 << 10;

/// A token taken apart; nothing of it is to be believed before [`Jws::verify`].
pub(super) struct Jws<'t> {
    algorithm: Algorithm,
    kid: Option<String>,
    /// Header and payload as they were sent.
    signed: &'t str,
    signature: Vec<u8>,
    /// The payload's bytes.
    pub payload: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Takes a token apart.
    pub fn parse(token: &'t str) -> Result<Self, Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::TooLong);
        }
        let (header, rest) = token.split_once('.').ok_or(Refusal::NotThreeParts)?;
        let (payload, signature) = rest.split_once('.').ok_or(Refusal::NotThreeParts)?;
        match signature.bytes().filter(|byte| *byte == b'.').count() {
            0 => {}
            2 => return Err(Refusal::Nested),
            _ => return Err(Refusal::NotThreeParts),
        }
        let fields = decode(header).ok_or(Refusal::HeaderBadBase64)?;
        let (algorithm, kid) = read_header(&json::object(&fields).ok_or(Refusal::HeaderNotJson)?)?;
        let signed = &token[..header.len() + 1 + payload.len()];
        let payload = decode(payload).ok_or(Refusal::PayloadBadBase64)?;
        let signature = decode(signature).ok_or(Refusal::SignatureBadBase64)?;
        Ok(Self { algorithm, kid, signed, signature, payload })
    }

    /// Whether the token says which key has signed it.
    pub fn names_key(&self) -> bool {
        self.kid.is_some()
    }

    /// Whether one of the keys has signed it.
    pub fn verify(&self, keys: &KeySet) -> Result<(), Refusal> {
        let mut refusal = Refusal::NoSuchKey;
        for key in keys.candidates(self.algorithm, self.kid.as_deref()) {
            if key.verifies(self.algorithm, self.signed.as_bytes(), &self.signature) {
                return Ok(());
            }
            // A key without a name that fails is not the one that the token names.
            if self.kid.is_none() || key.is_named() {
                refusal = Refusal::BadSignature;
            }
        }
        Err(refusal)
    }
}

/// Only the one way of writing bytes that RFC 4648 section 5 has: no padding, no line ends, no bits that mean nothing.
fn decode(part: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(part).ok()
}

/// Algorithm and key. What the header says of keys to be fetched or taken from it (`jku`, `jwk`, `x5u`, `x5c`) is not
/// looked at: whoever makes a token does not choose who is believed.
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, Option<String>), Refusal> {
    let algorithm = match header.get("alg") {
        Some(Value::String(name)) => Algorithm::named(name).ok_or(Refusal::HeaderUnknownAlgorithm)?,
        _ => return Err(Refusal::HeaderBadAlgorithm),
    };
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) => Some(kid.clone()).filter(|kid| !kid.is_empty()),
        Some(_) => return Err(Refusal::HeaderBadKeyId),
    };
    // RFC 7515 section 4.1.11: an extension that is not understood makes the token invalid, and none is. `b64` (RFC 7797)
    // would change what is signed, and must not be there without `crit` either.
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(Refusal::HeaderCritical);
    }
    let nested = header.get("cty").is_some_and(|cty| cty.as_str().is_none_or(is_token_type));
    if nested || header.contains_key("enc") || header.contains_key("zip") {
        return Err(Refusal::Nested);
    }
    Ok((algorithm, kid))
}

/// RFC 7519 section 5.2.
fn is_token_type(cty: &str) -> bool {
    let cty =
        cty.get(..12).filter(|start| start.eq_ignore_ascii_case("application/")).map_or(cty, |_| &cty[12..]);
    cty.eq_ignore_ascii_case("jwt")
}
