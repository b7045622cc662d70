//! Istio's RequestAuthentication: a request's tokens are found, judged by the rule of their issuer, and put to use.
//!
//! Decides as Envoy's `jwt_authn` does with what istiod makes of the same objects: a request without a token passes, one
//! with a bad token does not, and of several tokens all must be good, or an upstream might read the bad one. An issuer's
//! rule counts only where that rule looks for tokens.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{Authentication, JwtRule, TokenPlace};
use fieldgate_core::{HeaderId, Method, RequestHead};
use serde_json::Value;

use super::cache::{Cache, Digest, Verified};
use super::claims::{Claims, same_audience};
use super::jws::{Jws, MAX_TOKEN_BYTES};
use super::source::{KeySource, KeySources};
use super::{Refusal, places};

/// Tokens that a request may have: each costs a signature check.
pub const MAX_TOKENS: usize = 8;

/// Bytes of a header made of a claim. A longer one is left out.
const MAX_CLAIM_BYTES: usize = 8 << 10;

/// The rules of one listener, ready to judge.
#[derive(Debug, Default)]
pub struct Authenticator {
    /// By issuer, as istiod orders them.
    rules: Vec<Rule>,
    places: Vec<Place>,
    /// Headers that only the gateway may set.
    own: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Rule {
    ir: Arc<JwtRule>,
    keys: Arc<KeySource>,
}

#[derive(Debug)]
struct Place {
    at: TokenPlace,
    rules: Vec<usize>,
}

/// What came of a request that may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Good tokens whose signature was checked now.
    pub checked: u32,
    /// Good tokens whose signature was checked before.
    pub known: u32,
    /// A preflight, which has no tokens.
    pub preflight: bool,
}

/// A good token.
struct Found {
    rule: usize,
    place: usize,
    verified: Arc<Verified>,
    /// As it was sent, if it is needed.
    payload: Option<String>,
}

impl Authenticator {
    /// Of what applies to a listener.
    pub fn compile<'a>(
        authentications: impl IntoIterator<Item = &'a Arc<Authentication>>,
        sources: KeySources<'_>,
    ) -> Self {
        let mut all: Vec<&Arc<JwtRule>> = authentications.into_iter().flat_map(|one| &one.rules).collect();
        all.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        let mut out = Self::default();
        for (index, ir) in all.into_iter().enumerate() {
            for at in &ir.from {
                match out.places.iter_mut().find(|place| place.at == *at) {
                    Some(place) => place.rules.push(index),
                    None => out.places.push(Place { at: at.clone(), rules: vec![index] }),
                }
            }
            out.own.extend(ir.payload_header.iter().cloned());
            out.own.extend(ir.claim_headers.iter().map(|(header, _)| Arc::clone(header)));
            out.rules.push(Rule { ir: Arc::clone(ir), keys: sources(&ir.keys) });
        }
        out.own.sort();
        out.own.dedup();
        out.places.sort_by(|a, b| in_order(&a.at, &b.at));
        out
    }

    /// Whether it has nothing to judge by.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Judges a request. What passes has the headers that its tokens make, none that a client made in their place, and its
    /// tokens in `metadata`.
    pub fn authenticate(
        &self,
        head: &mut RequestHead,
        metadata: &mut Metadata,
        cache: &mut Cache,
        wall: SystemTime,
    ) -> Result<Passed, Refusal> {
        let mut passed = Passed { preflight: is_preflight(head), ..Passed::default() };
        let mut found = Vec::new();
        if !passed.preflight {
            for (index, place) in self.places.iter().enumerate() {
                places::find(head, &place.at, |token| {
                    if found.len() == MAX_TOKENS {
                        return Err(Refusal::TooManyTokens);
                    }
                    let token = std::str::from_utf8(token).map_err(|_| Refusal::NotThreeParts)?;
                    let (rule, verified, known) = self.judge(token, place, cache, wall)?;
                    *if known { &mut passed.known } else { &mut passed.checked } += 1;
                    let wanted = self.rules[rule].ir.payload_header.is_some();
                    let payload = if wanted { token.split('.').nth(1).map(str::to_owned) } else { None };
                    found.push(Found { rule, place: index, verified, payload });
                    Ok(())
                })?;
            }
        }
        for name in &self.own {
            head.headers.remove(name);
        }
        found.sort_by_key(|found| found.rule);
        for found in &found {
            if !self.rules[found.rule].ir.forward {
                places::strip(head, &self.places[found.place].at);
            }
        }
        found.dedup_by(|a, b| a.rule == b.rule && Arc::ptr_eq(&a.verified, &b.verified));
        for found in found {
            self.tell_upstream(&found, head);
            metadata.tokens.push(Arc::clone(&found.verified.claims.token));
        }
        Ok(passed)
    }

    /// The rule that a token passes, and whether its signature was known to be good. If none, the first one's refusal.
    fn judge(
        &self,
        token: &str,
        place: &Place,
        cache: &mut Cache,
        wall: SystemTime,
    ) -> Result<(usize, Arc<Verified>, bool), Refusal> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Refusal::TooLong);
        }
        let digest = Digest::of(token.as_bytes());
        let known = cache.get(&digest, token.len());
        let mut parsed = None;
        let claims = match &known {
            Some(known) => known.claims.clone(),
            None => {
                let jws = parsed.insert(Jws::parse(token)?);
                Claims::read(&jws.payload)?
            }
        };
        let mut refusal = None;
        for &index in &place.rules {
            let rule = &self.rules[index];
            if claims.token.issuer != *rule.ir.issuer {
                continue;
            }
            let keys = rule.keys.load();
            let holds = claims
                .hold_at(wall, rule.ir.clock_skew)
                .and_then(|()| claims.are_for(&rule.ir.audiences, same_audience));
            if let (Ok(()), Some(known), Some(keys)) = (&holds, &known, &*keys)
                && known.keys == keys.id()
            {
                return Ok((index, Arc::clone(known), true));
            }
            let verified = holds.and_then(|()| {
                let keys = keys.as_ref().ok_or_else(|| rule.keys.refusal())?;
                let jws = match &parsed {
                    Some(jws) => jws,
                    None => parsed.insert(Jws::parse(token)?),
                };
                jws.verify(keys).inspect_err(|refusal| {
                    // A token that names no key may be of one that is not there yet, too.
                    if *refusal == Refusal::NoSuchKey || !jws.names_key() {
                        rule.keys.wish_for_newer();
                    }
                })?;
                Ok(keys.id())
            });
            match verified {
                Ok(keys) => {
                    let verified = Arc::new(Verified { claims, keys });
                    cache.insert(digest, Arc::clone(&verified), token.len());
                    return Ok((index, verified, false));
                }
                Err(why) => _ = refusal.get_or_insert(why),
            }
        }
        Err(refusal.unwrap_or(Refusal::UnknownIssuer))
    }

    fn tell_upstream(&self, found: &Found, head: &mut RequestHead) {
        let rule = &self.rules[found.rule].ir;
        if let (Some(name), Some(payload)) = (&rule.payload_header, &found.payload) {
            head.headers.push(name.as_bytes(), payload.as_bytes());
        }
        for (name, path) in &rule.claim_headers {
            let text = found.verified.claims.token.claim(path).and_then(header_value);
            if let Some(text) = text.filter(|text| is_field_value(text)) {
                head.headers.push(name.as_bytes(), text.as_bytes());
            }
        }
    }
}

/// Envoy looks into headers, then parameters, then cookies, each in the order of names.
fn in_order(a: &TokenPlace, b: &TokenPlace) -> Ordering {
    fn key(place: &TokenPlace) -> (u8, &str, &str) {
        match place {
            TokenPlace::Header(name, prefix) => (0, name, prefix),
            TokenPlace::Param(name) => (1, name, ""),
            TokenPlace::Cookie(name) => (2, name, ""),
        }
    }
    key(a).cmp(&key(b))
}

/// istiod sets `bypass_cors_preflight`: browsers send no credentials with them.
fn is_preflight(head: &RequestHead) -> bool {
    let some = |value: Option<&[u8]>| value.is_some_and(|value| !value.is_empty());
    head.method == Method::Options
        && some(head.headers.get_id(HeaderId::Origin))
        && some(head.headers.get("access-control-request-method"))
}

/// A claim as a header's value: text, numbers and booleans as they are, lists of them joined by commas, what has no such
/// form as base64 of its JSON, like Envoy (which writes all lists so).
fn header_value(claim: &Value) -> Option<String> {
    let plain = match claim {
        Value::Null => return None,
        Value::Array(list) => {
            let parts: Option<Vec<String>> = list.iter().map(scalar).collect();
            parts.map(|parts| parts.join(","))
        }
        value => scalar(value),
    };
    plain.or_else(|| Some(STANDARD.encode(claim.to_string())))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        // Envoy knows numbers as floating point only, and writes whole ones without a point.
        Value::Number(number) => Some(match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && (0.0..1e18).contains(&float) => {
                (float as u64).to_string()
            }
            _ => number.to_string(),
        }),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What a claim says is no reason to send what no header may have: a line's end would begin another header.
fn is_field_value(text: &str) -> bool {
    let sound = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    !text.is_empty() && text.len() <= MAX_CLAIM_BYTES && text.bytes().all(sound)
}
