//! Users log in: by API key, by password, in a browser at an OpenID provider.
//!
//! A credential that is presented counts: a wrong one is refused, whatever else would let the request in. What a client
//! says of its user itself is taken off in any case. Random numbers that must be secret are drawn here, from the library
//! that does the cryptography: those of a worker are not made for it.

mod api_key;
mod basic;
mod cookies;
mod oidc;
mod password;
mod url;

use std::borrow::Cow;
use std::sync::Arc;

use fieldgate_core::filter::LocalResponse;
use fieldgate_core::guard::{Answered, Guard, Guarded, NoAnswer, Verdict};
use fieldgate_core::ir::{self, ObjectKey};

use crate::jwt::KeySources;

/// Makes a login ready, or says why it cannot be.
pub fn ready(
    guard: &ir::Guard,
    login: &ir::Login,
    sources: KeySources<'_>,
) -> Result<Arc<dyn Guard>, String> {
    Ok(Arc::new(Login {
        key: guard.key.clone(),
        api_keys: login.api_keys.as_ref().map(api_key::ApiKeys::new),
        basic: login.basic.as_ref().map(basic::Basic::new).transpose()?,
        oidc: login.oidc.as_deref().map(|oidc| oidc::Oidc::new(&guard.key, oidc, sources)).transpose()?,
        user_header: login.user_header.clone(),
    }))
}

#[derive(Debug)]
struct Login {
    key: ObjectKey,
    api_keys: Option<api_key::ApiKeys>,
    basic: Option<basic::Basic>,
    oidc: Option<oidc::Oidc>,
    user_header: Option<Arc<str>>,
}

/// What one way to log in says of a request.
enum Found {
    /// It has nothing that this way looks at.
    Nothing,
    /// It is this user's.
    User(Box<str>),
    /// It needs no user.
    Free,
    /// Not yet known, or refused.
    Verdict(Verdict),
}

impl Guard for Login {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn name(&self) -> &'static str {
        "login"
    }

    fn begin(&self, request: &mut Guarded<'_>) -> Verdict {
        if let Some(name) = &self.user_header {
            request.head.headers.remove(name);
        }
        if let Some(keys) = &self.api_keys {
            match keys.look(request.head) {
                Found::Nothing => {}
                found => return self.end(request, found, "api-key"),
            }
        }
        if let Some(basic) = &self.basic {
            match basic.look(request) {
                Found::Nothing => {}
                found => return self.end(request, found, "basic"),
            }
        }
        let found = self.oidc.as_ref().map_or(Found::Nothing, |oidc| oidc.look(request));
        self.end(request, found, "oidc")
    }

    fn resume(&self, request: &mut Guarded<'_>, step: u8, answer: Result<Answered, NoAnswer>) -> Verdict {
        let (found, how) = match (step, &self.basic, &self.oidc) {
            (basic::STEP, Some(basic), _) => (basic.answered(request, answer), "basic"),
            (_, _, Some(oidc)) => (oidc.answered(request, step, answer), "oidc"),
            _ => (Found::Nothing, "oidc"),
        };
        self.end(request, found, how)
    }
}

impl Login {
    fn end(&self, request: &mut Guarded<'_>, found: Found, how: &'static str) -> Verdict {
        match found {
            Found::Verdict(verdict) => verdict,
            Found::Free => Verdict::Continue,
            Found::User(user) => {
                if let Some(name) = &self.user_header {
                    request.head.headers.push(name.as_bytes(), user.as_bytes());
                }
                request.metadata.user = Some((user, how));
                Verdict::Continue
            }
            Found::Nothing => Verdict::Respond(self.unauthorized()),
        }
    }

    /// Nothing was presented.
    fn unauthorized(&self) -> Box<LocalResponse> {
        let challenges = [
            self.basic.as_ref().map(basic::Basic::challenge),
            self.api_keys.as_ref().map(|_| "ApiKey".to_owned()),
        ];
        let headers = challenges.into_iter().flatten().map(|c| ("www-authenticate", c)).collect();
        refusal(401, "login_required", headers, "log in first\n")
    }
}

fn refusal(
    status: u16,
    details: &'static str,
    headers: Vec<(&'static str, String)>,
    body: &'static str,
) -> Box<LocalResponse> {
    Box::new(LocalResponse { status, headers, body: Cow::Borrowed(body), flags: "-", details })
}

/// Whether a user's name can be the value of a header, whole.
fn is_field_value(user: &str) -> bool {
    !user.is_empty() && user.trim() == user && !user.bytes().any(|b| b.is_ascii_control())
}

#[cfg(test)]
mod tests;
