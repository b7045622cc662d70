//! What a token's payload says (RFC 7519 section 4.1), and whether it holds now and for us.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fieldgate_core::identity::Token;
use serde_json::{Map, Value};

use super::{Refusal, json};

/// Claims with what is asked of them at each request.
#[derive(Clone, Debug)]
pub(super) struct Claims {
    pub token: Arc<Token>,
    exp: Option<u64>,
    nbf: Option<u64>,
    iat: Option<u64>,
}

impl Claims {
    /// Reads a payload.
    pub fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let claims = json::object(payload).ok_or(Refusal::PayloadNotJson)?;
        let issuer = text(&claims, "iss", Refusal::IssuerNotString)?;
        let subject = text(&claims, "sub", Refusal::SubjectNotString)?;
        text(&claims, "jti", Refusal::IdNotString)?;
        let audiences = audiences(&claims)?;
        let exp =
            seconds(&claims, "exp", f64::floor, [Refusal::ExpiryNotInteger, Refusal::ExpiryOutOfRange])?;
        let nbf =
            seconds(&claims, "nbf", f64::ceil, [Refusal::NotBeforeNotInteger, Refusal::NotBeforeOutOfRange])?;
        let iat =
            seconds(&claims, "iat", f64::floor, [Refusal::IssuedNotInteger, Refusal::IssuedOutOfRange])?;
        let both = !issuer.is_empty() && !subject.is_empty();
        let principal = if both { format!("{issuer}/{subject}") } else { String::new() };
        let token = Arc::new(Token { issuer, subject, principal, audiences, claims });
        Ok(Self { token, exp, nbf, iat })
    }

    /// Whether it is time. A token that was issued in the future is as good as one that is not valid yet.
    pub fn hold_at(&self, wall: SystemTime, skew: Duration) -> Result<(), Refusal> {
        let now = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let skew = skew.as_secs();
        let latest_begin = now.saturating_add(skew);
        if [self.nbf, self.iat].into_iter().flatten().any(|begin| begin > latest_begin) {
            return Err(Refusal::NotYetValid);
        }
        if self.exp.is_some_and(|end| now > end.saturating_add(skew)) {
            return Err(Refusal::Expired);
        }
        Ok(())
    }

    /// Whether it is for one of these; an empty list takes all.
    pub fn are_for<S: AsRef<str>>(
        &self,
        audiences: &[S],
        same: impl Fn(&str, &str) -> bool,
    ) -> Result<(), Refusal> {
        let named = |audience: &S| self.token.audiences.iter().any(|own| same(own, audience.as_ref()));
        if audiences.is_empty() || audiences.iter().any(named) {
            return Ok(());
        }
        Err(Refusal::AudienceNotAllowed)
    }
}

/// Whether two audiences are the same to Envoy: neither the scheme of a URL nor a slash at its end counts.
pub(super) fn same_audience(a: &str, b: &str) -> bool {
    fn bare(audience: &str) -> &str {
        let schemes = ["http://", "https://"];
        let bare = schemes.into_iter().find_map(|scheme| audience.strip_prefix(scheme)).unwrap_or(audience);
        bare.strip_suffix('/').unwrap_or(bare)
    }
    bare(a) == bare(b)
}

fn text(claims: &Map<String, Value>, name: &str, refusal: Refusal) -> Result<String, Refusal> {
    match claims.get(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(refusal),
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(Refusal::AudienceNotString);
    match claims.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(value) => Ok(vec![text(value)?]),
    }
}

/// Seconds since 1970. Fractions are allowed (RFC 7519 section 2, NumericDate) and are rounded against the token.
fn seconds(
    claims: &Map<String, Value>,
    name: &str,
    round: fn(f64) -> f64,
    [no_number, out_of_range]: [Refusal; 2],
) -> Result<Option<u64>, Refusal> {
    const TOO_MANY: f64 = 9_223_372_036_854_775_808.0;
    let Some(value) = claims.get(name) else { return Ok(None) };
    if let Some(whole) = value.as_u64() {
        return Ok(Some(whole));
    }
    let seconds = round(value.as_f64().ok_or(no_number)?);
    if (0.0..TOO_MANY).contains(&seconds) { Ok(Some(seconds as u64)) } else { Err(out_of_range) }
}
