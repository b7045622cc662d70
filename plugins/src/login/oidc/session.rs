//! A session: who it is, for how long, and what the provider gave for it.

use fieldgate_core::identity::Token;
use fieldgate_core::ir;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::flow::secret;
use super::provider::Granted;
use crate::login::cookies::Sealer;
use crate::login::is_field_value;

const PURPOSE: &str = "session";

/// See the module.
#[derive(Clone, Serialize, Deserialize)]
pub struct Session {
    /// Tells it from others, of the same user too.
    #[serde(rename = "i")]
    pub id: String,
    #[serde(rename = "u")]
    pub user: String,
    #[serde(rename = "c")]
    claims: Map<String, Value>,
    /// Seconds since the epoch.
    #[serde(rename = "x")]
    pub expires: u64,
    /// When it is to be refreshed.
    #[serde(rename = "d")]
    due: u64,
    #[serde(rename = "r", skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    #[serde(rename = "a", skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// What tells the provider whose session is to be ended.
    #[serde(rename = "t", skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
}

/// Not what it holds.
impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl Session {
    /// Nothing if the provider does not name the user, or names another than before.
    pub fn new(granted: Granted, before: Option<&Self>, ir: &ir::Oidc, now: u64) -> Option<Self> {
        let claims = match (granted.claims, before) {
            (Some(claims), Some(before)) if claims.get("sub") != before.claims.get("sub") => {
                drop(claims);
                return None;
            }
            (Some(claims), _) => claims,
            (None, Some(before)) => before.claims.clone(),
            (None, None) => return None,
        };
        let user = claims.get(&*ir.user_claim)?.as_str().filter(|user| is_field_value(user))?.to_owned();
        // An address that nobody has shown to be theirs is nobody's name.
        if &*ir.user_claim == "email" && claims.get("email_verified") == Some(&Value::Bool(false)) {
            return None;
        }
        let session = ir.session.as_secs();
        // What the upstream is to be shown must be good.
        let life = granted.expires_in.filter(|_| ir.forward_access_token).map_or(session, |s| s.min(session));
        let refresh_token =
            granted.refresh_token.or_else(|| before.and_then(|before| before.refresh_token.clone()));
        let token_life = granted.expires_in.map_or(life, |s| s.min(life));
        Some(Self {
            id: secret()?,
            user,
            claims,
            expires: now + life,
            // Early enough that a provider that is away for a while ends nothing.
            due: now + token_life - token_life / 5,
            refresh_token,
            access_token: granted.access_token.filter(|_| ir.forward_access_token),
            id_token: granted
                .id_token
                .or_else(|| before.and_then(|before| before.id_token.clone()))
                .filter(|_| ir.end_session_endpoint.is_some()),
        })
    }

    /// Smaller, and as good but for the provider's logout, which then asks whose session is meant.
    pub fn without_id_token(mut self) -> Self {
        self.id_token = None;
        self
    }

    /// Whether it is time to refresh it, if that can be done.
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.due && self.refresh_token.is_some()
    }

    /// What policies see of it.
    pub fn token(&self, issuer: &str) -> Token {
        let subject = self.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let audiences = match self.claims.get("aud") {
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        Token {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            principal: if subject.is_empty() { String::new() } else { format!("{issuer}/{subject}") },
            audiences,
            claims: self.claims.clone(),
        }
    }

    pub fn seal(&self, sealer: &Sealer) -> Option<String> {
        sealer.seal(PURPOSE, &serde_json::to_vec(self).ok()?)
    }

    pub fn open(sealer: &Sealer, sealed: &[u8]) -> Option<Self> {
        serde_json::from_slice(&sealer.open(PURPOSE, sealed)?).ok()
    }
}
