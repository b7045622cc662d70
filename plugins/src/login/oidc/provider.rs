//! What is said to a provider, and what its answers mean (RFC 6749, OpenID Connect Core 1.0).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldgate_core::guard::{Answered, Callout, NoAnswer};
use fieldgate_core::identity::Token;
use fieldgate_core::ir::{self, PoolKey};
use fieldgate_core::{Method, RequestHead};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::flow::Flow;
use crate::jwt::{KeySource, Refusal, verify};
use crate::login::url::{encode, push_pair};

/// How long the token endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of its answer.
const MAX_ANSWER: usize = 256 * 1024;

/// A provider as its configuration has it.
pub struct Provider {
    issuer: Arc<str>,
    client_id: Arc<str>,
    /// `Authorization` at the token endpoint; a public client has none.
    credentials: Option<String>,
    authorization_endpoint: Arc<str>,
    end_session_endpoint: Option<Arc<str>>,
    pool: Arc<PoolKey>,
    /// Host and target of the token endpoint.
    token: (String, String),
    scope: String,
    keys: Arc<KeySource>,
}

/// Without what is secret.
impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// What the token endpoint gave.
pub struct Granted {
    /// Of the ID token, if there is one.
    pub claims: Option<Map<String, Value>>,
    pub id_token: Option<String>,
    pub access_token: Option<String>,
    pub refresh_token: Option<String>,
    /// Seconds that the access token is good for.
    pub expires_in: Option<u64>,
}

/// Why it gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not answer, or not as it should.
    Unreachable,
    /// It does not take the code, or the refresh token, any more.
    Grant,
    /// The ID token is not good.
    Token,
    /// What it is signed with is not known, yet.
    NoKeys,
}

#[derive(Deserialize)]
struct TokenResponse {
    id_token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<f64>,
}

impl Provider {
    pub fn new(ir: &ir::Oidc, keys: Arc<KeySource>) -> Result<Self, String> {
        let (url, pool) = &ir.token_endpoint;
        let token = split(url).ok_or_else(|| format!("\"{url}\" is not the URL of a token endpoint"))?;
        let mut scope = "openid".to_owned();
        for more in ir.scopes.iter().filter(|scope| ***scope != *"openid") {
            scope.push(' ');
            scope.push_str(more);
        }
        Ok(Self {
            issuer: ir.issuer.clone(),
            client_id: ir.client_id.clone(),
            credentials: credentials(&ir.client_id, &ir.client_secret.0)?,
            authorization_endpoint: ir.authorization_endpoint.clone(),
            end_session_endpoint: ir.end_session_endpoint.clone(),
            pool: pool.clone(),
            token,
            scope,
            keys,
        })
    }

    /// Where a browser is sent to log in.
    pub fn authorization(&self, flow: &Flow, redirect_uri: &str) -> String {
        let mut url = begin_query(&self.authorization_endpoint);
        let pairs = [
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", redirect_uri),
            ("scope", &self.scope),
            ("state", &flow.state),
            ("nonce", &flow.nonce),
            ("code_challenge", &flow.challenge()),
            ("code_challenge_method", "S256"),
        ];
        pairs.into_iter().for_each(|(name, value)| push_pair(&mut url, name, value));
        url
    }

    /// Where a browser is sent to end the provider's session, if the provider has such a place.
    pub fn end_session(&self, id_token: Option<&str>, after: &str) -> Option<String> {
        let mut url = begin_query(self.end_session_endpoint.as_ref()?);
        if let Some(token) = id_token {
            push_pair(&mut url, "id_token_hint", token);
        }
        push_pair(&mut url, "client_id", &self.client_id);
        push_pair(&mut url, "post_logout_redirect_uri", after);
        Some(url)
    }

    /// Asks for tokens for a code.
    pub fn exchange(&self, code: &str, verifier: &str, redirect_uri: &str, step: u8) -> Callout {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", verifier),
        ];
        self.ask(&pairs, step)
    }

    /// Asks for tokens for a refresh token.
    pub fn refresh(&self, token: &str, step: u8) -> Callout {
        self.ask(&[("grant_type", "refresh_token"), ("refresh_token", token)], step)
    }

    fn ask(&self, pairs: &[(&str, &str)], step: u8) -> Callout {
        let mut form = String::new();
        pairs.iter().for_each(|(name, value)| push_pair(&mut form, name, value));
        let (authority, target) = self.token.clone();
        let mut head = RequestHead { method: Method::Post, authority, ..RequestHead::default() };
        head.set_target(&target);
        head.headers.push(b"content-type", b"application/x-www-form-urlencoded");
        head.headers.push(b"accept", b"application/json");
        match &self.credentials {
            Some(credentials) => head.headers.push(b"authorization", credentials.as_bytes()),
            None => push_pair(&mut form, "client_id", &self.client_id),
        }
        Callout {
            pool: self.pool.clone(),
            head,
            body: Bytes::from(form),
            client_body: None,
            grpc: false,
            timeout: TIMEOUT,
            limit: MAX_ANSWER,
            step,
        }
    }

    /// Reads an answer. `nonce`: that of a login, whose answer must have an ID token with it.
    pub fn read(
        &self,
        answer: Result<Answered, NoAnswer>,
        nonce: Option<&str>,
        wall: SystemTime,
    ) -> Result<Granted, Refused> {
        let answered = answer.map_err(|_| Refused::Unreachable)?;
        match answered.status {
            200 => {}
            // RFC 6749 section 5.2; other failures are not about the grant.
            400 | 401 => return Err(Refused::Grant),
            _ => return Err(Refused::Unreachable),
        }
        let response: TokenResponse =
            serde_json::from_slice(&answered.body).map_err(|_| Refused::Unreachable)?;
        let claims = match (&response.id_token, nonce) {
            (Some(token), nonce) => Some(self.verify(token, nonce, wall)?),
            (None, Some(_)) => return Err(Refused::Token),
            (None, None) => None,
        };
        let is_sound = |token: &String| token.bytes().all(|b| b.is_ascii_graphic());
        Ok(Granted {
            claims: claims.map(|token| token.claims),
            id_token: response.id_token,
            access_token: response.access_token.filter(is_sound),
            refresh_token: response.refresh_token,
            expires_in: response.expires_in.filter(|s| *s >= 0.0).map(|s| s as u64),
        })
    }

    /// OpenID Connect Core 1.0 section 3.1.3.7.
    fn verify(&self, token: &str, nonce: Option<&str>, wall: SystemTime) -> Result<Token, Refused> {
        let Some(keys) = self.keys.current() else {
            self.keys.wish_for_newer();
            return Err(Refused::NoKeys);
        };
        let verified = verify(token, &keys, &self.issuer, &[&self.client_id], wall).map_err(|why| {
            if why == Refusal::NoSuchKey {
                self.keys.wish_for_newer();
                return Refused::NoKeys;
            }
            Refused::Token
        })?;
        let text = |name: &str| verified.claims.get(name).and_then(Value::as_str);
        let same_nonce = nonce.is_none_or(|nonce| text("nonce") == Some(nonce));
        let for_us = match verified.claims.get("azp") {
            Some(party) => party.as_str() == Some(&self.client_id),
            None => verified.audiences.len() <= 1,
        };
        // An ID token without an end, or about nobody, is none.
        let whole = verified.claims.contains_key("exp") && !verified.subject.is_empty();
        if same_nonce && for_us && whole { Ok(verified) } else { Err(Refused::Token) }
    }
}

/// `client_secret_basic`: both are form-encoded first (RFC 6749 section 2.3.1).
fn credentials(client: &str, secret: &[u8]) -> Result<Option<String>, String> {
    if secret.is_empty() {
        return Ok(None);
    }
    let secret = std::str::from_utf8(secret).map_err(|_| "the client secret is no text".to_owned())?;
    let mut pair = String::new();
    encode(&mut pair, client);
    pair.push(':');
    encode(&mut pair, secret);
    Ok(Some(format!("Basic {}", STANDARD.encode(pair))))
}

/// Host, with its port if it names one, and target.
fn split(url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    (!host.is_empty()).then(|| (host.to_ascii_lowercase(), path.to_owned()))
}

/// An endpoint may have a query of its own (RFC 6749 section 3.1).
fn begin_query(endpoint: &str) -> String {
    format!("{endpoint}{}", if endpoint.contains('?') { '&' } else { '?' })
}
