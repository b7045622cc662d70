//! A browser's login at an OpenID provider: authorization code with PKCE (OpenID Connect Core 1.0 section 3.1, RFC 7636).
//!
//! The gateway keeps nothing of a session: it is in the browser's cookies, encrypted. What is kept for a moment is which
//! sessions are being refreshed, so that requests that come together use a refresh token once.

mod flow;
mod provider;
mod refreshing;
mod session;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use fieldgate_core::filter::LocalResponse;
use fieldgate_core::guard::{Answered, Guarded, NoAnswer, Verdict};
use fieldgate_core::ir::{self, ObjectKey};
use fieldgate_core::{HeaderId, Method, RequestHead};

use self::flow::Flow;
use self::provider::{Granted, Provider, Refused};
use self::refreshing::{Outcome, Refreshing, Turn};
use self::session::Session;
use super::cookies::{Jar, Sealer, take_off};
use super::{Found, refusal, url};
use crate::authz::text::{Star, Text};
use crate::jwt::KeySources;

/// The code was exchanged.
const CODE: u8 = 2;
/// The session was refreshed.
const REFRESH: u8 = 3;

/// Logins of one browser that may be under way at once, in several tabs.
const MAX_FLOWS: usize = 5;

/// Login at a provider, ready.
#[derive(Debug)]
pub struct Oidc {
    ir: ir::Oidc,
    provider: Provider,
    jar: Jar,
    sealer: Sealer,
    free: Vec<Text>,
    refreshing: Refreshing,
}

impl Oidc {
    pub fn new(key: &ObjectKey, ir: &ir::Oidc, sources: KeySources<'_>) -> Result<Self, String> {
        // A session of one issuer must not become one of another, nor one client's another's.
        let context = format!("{}/{} {} {}", key.namespace, key.name, ir.client_id, ir.issuer);
        let free: Result<Vec<Text>, _> = ir.pass_through.iter().map(Text::new).collect();
        Ok(Self {
            provider: Provider::new(ir, sources(&ir.jwks))?,
            jar: Jar {
                name: ir.cookie_name.to_string(),
                domain: ir.cookie_domain.as_ref().map(ToString::to_string),
            },
            sealer: Sealer::new(&ir.cookie_secrets, &context)?,
            free: free.map_err(|_| "a path template of passThrough is not sound".to_owned())?,
            refreshing: Refreshing::default(),
            ir: ir.clone(),
        })
    }

    pub fn look(&self, request: &mut Guarded<'_>) -> Found {
        let path = request.head.path();
        if *path == *self.ir.logout_path {
            return respond(self.log_out(request.head));
        }
        if *path == *self.ir.callback_path {
            return self.call_back(request);
        }
        let free = self.free.iter().any(|text| text.matches(path.as_bytes(), Star::NotEmpty));
        let now = seconds(request.wall);
        match self.session(request.head).filter(|session| now < session.expires) {
            Some(session) if session.is_due(now) && !free => self.refresh(request, session),
            Some(session) => self.accept(request, session),
            None if free => {
                self.take_off(request.head);
                Found::Free
            }
            None => respond(self.begin(request)),
        }
    }

    pub fn answered(&self, request: &mut Guarded<'_>, step: u8, answer: Result<Answered, NoAnswer>) -> Found {
        if step == CODE { respond(self.granted(request, answer)) } else { self.refreshed(request, answer) }
    }

    /// Sends a browser to the provider. Whoever would not follow is told so at once.
    fn begin(&self, request: &Guarded<'_>) -> Box<LocalResponse> {
        let head = &*request.head;
        if !is_navigation(head) {
            let challenge = vec![("www-authenticate", "Cookie realm=\"login\"".to_owned()), NO_STORE()];
            return refusal(401, "oidc_login_required", challenge, "log in first\n");
        }
        let Some(base) = self.base(head) else { return bad_request() };
        let secure = self.is_secure(head);
        let flow = Flow::new(&head.target, seconds(request.wall));
        let Some((flow, sealed)) = flow.and_then(|flow| Some((flow.seal(&self.sealer)?, flow))).map(swap)
        else {
            return refusal(500, "oidc_no_randomness", vec![NO_STORE()], "no random numbers\n");
        };
        let mut headers = self.too_many_flows(head, secure);
        let kept = self.jar.set(secure, &flow.suffix(), &sealed, flow::LIFETIME);
        headers.push(("location", self.provider.authorization(&flow, &self.redirect_uri(&base))));
        headers.push(("set-cookie", kept));
        headers.push(NO_STORE());
        refusal(302, "oidc_login", headers, "")
    }

    /// The provider has sent the browser back.
    fn call_back(&self, request: &mut Guarded<'_>) -> Found {
        let head = &*request.head;
        let query = head.query().unwrap_or_default();
        let (Some(flow), Some(base)) = (self.flow(head, seconds(request.wall)), self.base(head)) else {
            return respond(bad_state());
        };
        // The answer of another provider, given to us for this one's (RFC 9207).
        let foreign = url::only(query, "iss").is_some_and(|issuer| *issuer != *self.ir.issuer);
        if url::only(query, "error").is_some() || foreign {
            let headers = vec![self.forget(head, &flow), NO_STORE()];
            let body = "the provider did not let you in\n";
            return respond(refusal(403, "oidc_refused_by_provider", headers, body));
        }
        let Some(code) = url::only(query, "code").filter(|code| !code.is_empty()) else {
            return respond(bad_state());
        };
        let callout = self.provider.exchange(&code, &flow.verifier, &self.redirect_uri(&base), CODE);
        Found::Verdict(Verdict::Ask(Box::new(callout)))
    }

    /// The token endpoint has answered to a code.
    fn granted(&self, request: &Guarded<'_>, answer: Result<Answered, NoAnswer>) -> Box<LocalResponse> {
        let (head, now) = (&*request.head, seconds(request.wall));
        let (Some(flow), Some(base)) = (self.flow(head, now), self.base(head)) else { return bad_state() };
        let granted = match self.provider.read(answer, Some(&flow.nonce), request.wall) {
            Ok(granted) => granted,
            Err(refused) => return self.refuse(head, Some(&flow), refused),
        };
        let Some(session) = self.new_session(granted, None, now) else {
            return self.refuse(head, Some(&flow), Refused::Token);
        };
        let Some(mut headers) = self.keep(head, &session, now) else { return too_large() };
        headers.push(("set-cookie", self.forget(head, &flow).1));
        headers.push(("location", format!("{base}{}", flow.target)));
        headers.push(NO_STORE());
        refusal(302, "oidc_logged_in", headers, "")
    }

    fn refresh(&self, request: &mut Guarded<'_>, session: Session) -> Found {
        match self.refreshing.turn(&session.id, request.now) {
            Turn::Ours => match session.refresh_token.as_deref() {
                Some(token) => {
                    let callout = self.provider.refresh(token, REFRESH);
                    Found::Verdict(Verdict::Ask(Box::new(callout)))
                }
                None => self.accept(request, session),
            },
            Turn::Others => self.accept(request, session),
            Turn::Done(Outcome::Renewed(new)) => self.go_on(request, Session::clone(&new)),
            Turn::Done(Outcome::Over) => self.over(request),
        }
    }

    /// The token endpoint has answered to a refresh token.
    fn refreshed(&self, request: &mut Guarded<'_>, answer: Result<Answered, NoAnswer>) -> Found {
        let now = seconds(request.wall);
        let Some(old) = self.session(request.head).filter(|session| now < session.expires) else {
            return respond(self.begin(request));
        };
        let id = old.id.clone();
        match self.provider.read(answer, None, request.wall) {
            Ok(granted) => match self.new_session(granted, Some(&old), now) {
                Some(new) => {
                    self.refreshing.done(&id, Outcome::Renewed(Arc::new(new.clone())), request.now);
                    self.go_on(request, new)
                }
                None => self.over(request),
            },
            // It goes on as long as it would have without being refreshed, and is tried again before.
            Err(Refused::Unreachable | Refused::NoKeys) => self.accept(request, old),
            Err(Refused::Grant | Refused::Token) => {
                self.refreshing.done(&id, Outcome::Over, request.now);
                self.over(request)
            }
        }
    }

    /// With a session that the browser is to keep from now on.
    fn go_on(&self, request: &mut Guarded<'_>, session: Session) -> Found {
        let cookies = self.keep(request.head, &session, seconds(request.wall));
        for (name, value) in cookies.into_iter().flatten() {
            request.response_headers.push(name.as_bytes(), value.as_bytes());
        }
        self.accept(request, session)
    }

    /// The provider has ended the session.
    fn over(&self, request: &mut Guarded<'_>) -> Found {
        let mut response = self.begin(request);
        let cleared = self.jar.clear(request.head, self.is_secure(request.head));
        response.headers.extend(cleared.into_iter().map(|cookie| ("set-cookie", cookie)));
        respond(response)
    }

    fn accept(&self, request: &mut Guarded<'_>, session: Session) -> Found {
        self.take_off(request.head);
        if self.ir.forward_access_token
            && let Some(token) = &session.access_token
        {
            request.head.headers.set("authorization", format!("Bearer {token}").as_bytes());
        }
        request.metadata.tokens.push(Arc::new(session.token(&self.ir.issuer)));
        Found::User(session.user.into())
    }

    fn log_out(&self, head: &RequestHead) -> Box<LocalResponse> {
        // Another site may not log people out.
        let cross_site = head.headers.get("sec-fetch-site") == Some(b"cross-site");
        if cross_site || !matches!(head.method, Method::Get | Method::Head | Method::Post) {
            return refusal(403, "oidc_logout_refused", vec![NO_STORE()], "not from here\n");
        }
        let Some(base) = self.base(head) else { return bad_request() };
        let id_token = self.session(head).and_then(|session| session.id_token);
        let after = format!("{base}{}", self.ir.after_logout);
        let location = self.provider.end_session(id_token.as_deref(), &after).unwrap_or(after);
        let mut headers = vec![("location", location), NO_STORE()];
        let cleared = self.jar.clear(head, self.is_secure(head));
        headers.extend(cleared.into_iter().map(|cookie| ("set-cookie", cookie)));
        refusal(303, "oidc_logged_out", headers, "")
    }

    fn new_session(&self, granted: Granted, before: Option<&Session>, now: u64) -> Option<Session> {
        Session::new(granted, before, &self.ir, now)
    }

    fn session(&self, head: &RequestHead) -> Option<Session> {
        Session::open(&self.sealer, &self.jar.whole(head, self.is_secure(head))?)
    }

    /// `Set-Cookie` for a session; without what it can do without, if it would be too large.
    fn keep(&self, head: &RequestHead, session: &Session, now: u64) -> Option<Vec<(&'static str, String)>> {
        let secure = self.is_secure(head);
        let set = |session: &Session| {
            let seconds = session.expires.saturating_sub(now);
            self.jar.set_whole(head, secure, &session.seal(&self.sealer)?, seconds)
        };
        let smaller = || set(&session.clone().without_id_token());
        let cookies = set(session).or_else(smaller)?;
        Some(cookies.into_iter().map(|cookie| ("set-cookie", cookie)).collect())
    }

    /// The login that a browser comes back from: begun by this browser, for the state that it brings, not long ago.
    fn flow(&self, head: &RequestHead, now: u64) -> Option<Flow> {
        if !matches!(head.method, Method::Get) {
            return None;
        }
        let state = url::only(head.query()?, "state")?;
        let name = self.jar.name(self.is_secure(head), &flow::suffix(&state)?);
        Flow::open(&self.sealer, head.cookie(&name)?, &state, now)
    }

    fn forget(&self, head: &RequestHead, flow: &Flow) -> (&'static str, String) {
        ("set-cookie", self.jar.set(self.is_secure(head), &flow.suffix(), "", 0))
    }

    /// Removes logins that were begun and not ended, once there are many.
    fn too_many_flows(&self, head: &RequestHead, secure: bool) -> Vec<(&'static str, String)> {
        let prefix = self.jar.name(secure, ".");
        let cookies = head.headers.get_all_id(HeaderId::Cookie).flat_map(|field| field.split(|b| *b == b';'));
        let names = cookies.filter_map(|pair| {
            let name = std::str::from_utf8(pair.split(|b| *b == b'=').next()?.trim_ascii()).ok()?;
            let id = name.strip_prefix(&*prefix)?;
            flow::is_id(id).then(|| format!(".{id}"))
        });
        let flows: Vec<String> = names.collect();
        if flows.len() < MAX_FLOWS {
            return Vec::new();
        }
        flows.iter().map(|suffix| ("set-cookie", self.jar.set(secure, suffix, "", 0))).collect()
    }

    fn refuse(&self, head: &RequestHead, flow: Option<&Flow>, why: Refused) -> Box<LocalResponse> {
        let mut headers = vec![NO_STORE()];
        let (status, details, body) = match why {
            Refused::Unreachable => (503, "oidc_provider_error", "the provider does not answer\n"),
            Refused::NoKeys => (503, "oidc_keys_error", "the provider's keys are not known yet\n"),
            Refused::Grant => (403, "oidc_code_refused", "the provider has refused the login\n"),
            Refused::Token => (403, "oidc_token_refused", "the provider's token is not valid\n"),
        };
        if status == 503 {
            headers.push(("retry-after", "2".to_owned()));
        }
        headers.extend(flow.map(|flow| self.forget(head, flow)));
        refusal(status, details, headers, body)
    }

    fn take_off(&self, head: &mut RequestHead) {
        take_off(&mut head.headers, |name| self.jar.owns(name));
    }

    /// Scheme and host as browsers see them; nothing if the request names none.
    fn base(&self, head: &RequestHead) -> Option<String> {
        match &self.ir.external_url {
            Some(url) => Some(url.trim_end_matches('/').to_owned()),
            None if head.authority.is_empty() => None,
            None if head.https => Some(format!("https://{}", head.authority)),
            None => Some(format!("http://{}", head.authority)),
        }
    }

    fn is_secure(&self, head: &RequestHead) -> bool {
        self.ir.external_url.as_ref().map_or(head.https, |url| url.starts_with("https://"))
    }

    fn redirect_uri(&self, base: &str) -> String {
        format!("{base}{}", self.ir.callback_path)
    }
}

/// A person who goes to a page, as against a script or an application that fetches something.
fn is_navigation(head: &RequestHead) -> bool {
    if !matches!(head.method, Method::Get | Method::Head) || head.is_grpc() {
        return false;
    }
    if let Some(mode) = head.headers.get("sec-fetch-mode") {
        return mode == b"navigate";
    }
    if head.headers.get("x-requested-with").is_some() {
        return false;
    }
    head.headers.get("accept").is_none_or(|accept| {
        let types = accept.split(|b| *b == b',').map(|t| t.split(|b| *b == b';').next().unwrap_or_default());
        types.map(<[u8]>::trim_ascii).any(|t| matches!(t, b"text/html" | b"text/*" | b"*/*"))
    })
}

#[allow(non_snake_case)] // a constant, but for its String
fn NO_STORE() -> (&'static str, String) {
    ("cache-control", "no-store".to_owned())
}

fn bad_state() -> Box<LocalResponse> {
    let body = "this login was not begun in this browser, or too long ago; go back and try again\n";
    refusal(400, "oidc_bad_state", vec![NO_STORE()], body)
}

fn bad_request() -> Box<LocalResponse> {
    refusal(400, "oidc_no_host", vec![NO_STORE()], "a host is needed\n")
}

fn too_large() -> Box<LocalResponse> {
    refusal(500, "oidc_session_too_large", vec![NO_STORE()], "the provider's tokens are too long\n")
}

fn respond(response: Box<LocalResponse>) -> Found {
    Found::Verdict(Verdict::Respond(response))
}

fn seconds(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn swap<A, B>((a, b): (A, B)) -> (B, A) {
    (b, a)
}

#[cfg(test)]
mod tests;
