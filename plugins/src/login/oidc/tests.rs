//! Logins from a browser's first request to its logout, against a provider that is played here.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use fieldgate_core::guard::{Callout, Guard};
use fieldgate_core::ir::{Jwks, PoolKey, StringMatch};
use fieldgate_core::{Headers, path};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{Way, guard, request, secret};
use super::*;

const ISSUER: &str = "https://id.example";
const NOW: u64 = 1_800_000_000;
const KEY: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

fn oidc() -> ir::Oidc {
    let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "id".into() };
    ir::Oidc {
        issuer: ISSUER.into(),
        authorization_endpoint: "https://id.example/auth".into(),
        token_endpoint: ("https://id.example/token".into(), Arc::new(PoolKey { object, port: 0 })),
        end_session_endpoint: Some("https://id.example/end".into()),
        jwks: Jwks::Inline("".into()),
        client_id: "shop".into(),
        client_secret: secret("p&w"),
        scopes: vec!["email".into()],
        callback_path: "/callback".into(),
        logout_path: "/logout".into(),
        after_logout: "/bye".into(),
        cookie_secrets: vec![secret("a secret of more than 32 bytes, is it not?")],
        cookie_name: "fg".into(),
        cookie_domain: None,
        session: Duration::from_hours(1),
        user_claim: "sub".into(),
        external_url: None,
        forward_access_token: true,
        pass_through: vec![StringMatch::Prefix("/public/".into())],
    }
}

fn of(oidc: ir::Oidc) -> Arc<dyn Guard> {
    let keys = json!({"keys": [{"kty": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(KEY)}]});
    let login =
        ir::Login { oidc: Some(Arc::new(oidc)), user_header: Some("x-user".into()), ..ir::Login::default() };
    guard(&login, &keys.to_string())
}

/// A cookie jar.
#[derive(Clone, Default)]
struct Browser(Vec<(String, String)>);

impl Browser {
    fn take(&mut self, cookies: impl Iterator<Item = String>) {
        for cookie in cookies {
            let (pair, attributes) = cookie.split_once(';').expect("attributes");
            let (name, value) = pair.split_once('=').expect("a pair");
            self.0.retain(|(own, _)| own != name);
            if !attributes.contains("Max-Age=0") {
                self.0.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    fn ask(&self, target: &str) -> RequestHead {
        let cookies: Vec<String> = self.0.iter().map(|(n, v)| format!("{n}={v}")).collect();
        request(target, &[("accept", "text/html,*/*;q=0.8"), ("cookie", &cookies.join("; "))])
    }

    fn at(&self, target: &str, now: u64) -> Way {
        let mut way = Way::new(self.ask(target));
        way.wall = UNIX_EPOCH + Duration::from_secs(now);
        way
    }
}

struct Told {
    status: u16,
    details: &'static str,
    location: String,
    cookies: Vec<String>,
}

fn told(verdict: Verdict) -> Told {
    let Verdict::Respond(response) = verdict else { panic!("{verdict:?}") };
    let of = |name: &str| {
        let all = response.headers.iter().filter(|(n, _)| *n == name).map(|(_, v)| v.clone());
        all.collect::<Vec<_>>()
    };
    Told {
        status: response.status,
        details: response.details,
        location: of("location").pop().unwrap_or_default(),
        cookies: of("set-cookie"),
    }
}

fn asked(verdict: Verdict) -> Box<Callout> {
    match verdict {
        Verdict::Ask(callout) => callout,
        other => panic!("{other:?}"),
    }
}

fn cookies_of(headers: &Headers) -> impl Iterator<Item = String> {
    let all: Vec<_> =
        headers.get_all("set-cookie").map(|c| String::from_utf8(c.to_vec()).expect("text")).collect();
    all.into_iter()
}

fn param(url: &str, name: &str) -> String {
    url::only(url.split_once('?').expect("a query").1, name).expect("a parameter").into_owned()
}

fn id_token(claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&json!({"alg": "HS256"})), encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn claims(nonce: &str, now: u64) -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": "shop", "exp": now + 300, "iat": now, "nonce": nonce})
}

fn tokens(id_token: &str, refresh: &str) -> Result<Answered, NoAnswer> {
    let body =
        json!({"id_token": id_token, "access_token": "at", "refresh_token": refresh, "expires_in": 600});
    Ok(Answered { status: 200, body: Bytes::from(body.to_string()), ..Answered::default() })
}

/// Begins a login: the browser, where it was sent.
fn begin(guard: &dyn Guard, target: &str) -> (Browser, String) {
    let mut browser = Browser::default();
    let told = told(browser.at(target, NOW).begin(guard));
    assert_eq!((told.status, told.details), (302, "oidc_login"));
    browser.take(told.cookies.into_iter());
    (browser, told.location)
}

/// A browser that has logged in.
fn logged_in(guard: &dyn Guard) -> Browser {
    let (mut browser, location) = begin(guard, "/cart?x=1");
    let back = format!("/callback?code=c%2F1&state={}", param(&location, "state"));
    let mut way = browser.at(&back, NOW);
    let callout = asked(way.begin(guard));
    let told = told(way.resume(
        guard,
        callout.step,
        tokens(&id_token(&claims(&param(&location, "nonce"), NOW)), "r1"),
    ));
    assert_eq!((told.status, told.details), (302, "oidc_logged_in"));
    assert_eq!(told.location, "https://shop.example/cart?x=1");
    browser.take(told.cookies.into_iter());
    assert!(browser.0.iter().all(|(name, _)| name.starts_with("__Host-fg")), "{:?}", browser.0);
    browser
}

#[test]
fn a_login_from_beginning_to_end() {
    let guard = of(oidc());
    let (browser, location) = begin(&*guard, "/cart");
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "shop"),
        ("redirect_uri", "https://shop.example/callback"),
        ("scope", "openid email"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(param(&location, name), value);
    }
    let mut way = browser.at(&format!("/callback?code=c&state={}", param(&location, "state")), NOW);
    let callout = asked(way.begin(&*guard));
    assert_eq!((&*callout.head.authority, &*callout.head.target), ("id.example", "/token"));
    let credentials = format!("Basic {}", STANDARD.encode("shop:p%26w"));
    assert_eq!(callout.head.headers.get("authorization"), Some(credentials.as_bytes()));
    let form = String::from_utf8(callout.body.to_vec()).unwrap();
    let verifier = url::only(&form, "code_verifier").unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, verifier.as_bytes());
    assert_eq!(param(&location, "code_challenge"), URL_SAFE_NO_PAD.encode(digest));
    assert_eq!(url::only(&form, "redirect_uri").as_deref(), Some("https://shop.example/callback"));

    let browser = logged_in(&*guard);
    let mut way = browser.at("/cart", NOW + 60);
    way.head.headers.push(b"cookie", b"app=1");
    way.head.headers.push(b"x-user", b"root");
    assert!(matches!(way.begin(&*guard), Verdict::Continue));
    assert_eq!(way.head.headers.get_all("cookie").collect::<Vec<_>>(), [&b"app=1"[..]]);
    assert_eq!(way.head.headers.get_all("x-user").collect::<Vec<_>>(), [&b"alice"[..]]);
    assert_eq!(way.head.headers.get("authorization"), Some(&b"Bearer at"[..]));
    assert_eq!(way.metadata.user, Some(("alice".into(), "oidc")));
    assert_eq!(way.metadata.tokens[0].principal, "https://id.example/alice");
}

#[test]
fn what_comes_back_must_be_what_was_sent_for() {
    let guard = of(oidc());
    let (browser, location) = begin(&*guard, "/");
    let state = param(&location, "state");
    let other = param(&begin(&*guard, "/").1, "state");
    let details = |browser: &Browser, target: &str, now| told(browser.at(target, now).begin(&*guard)).details;
    let good = format!("/callback?code=c&state={state}");
    for (target, now, expected) in [
        ("/callback?code=c".to_owned(), NOW, "oidc_bad_state"),
        (format!("/callback?code=c&state={other}"), NOW, "oidc_bad_state"),
        (format!("/callback?code=c&state={state}x"), NOW, "oidc_bad_state"),
        (format!("/callback?code=c&state={state}&state={state}"), NOW, "oidc_bad_state"),
        (format!("/callback?state={state}"), NOW, "oidc_bad_state"),
        (good.clone(), NOW + 601, "oidc_bad_state"),
        (format!("{good}&iss=https%3A%2F%2Fevil.example"), NOW, "oidc_refused_by_provider"),
        (format!("/callback?error=access_denied&state={state}"), NOW, "oidc_refused_by_provider"),
    ] {
        assert_eq!(details(&browser, &target, now), expected, "{target}");
    }
    assert_eq!(details(&Browser::default(), &good, NOW), "oidc_bad_state", "another browser's");
    // A login is ended once: its cookie is gone, and who kept it has a code that the provider takes no more.
    let mut way = browser.at(&good, NOW);
    let step = asked(way.begin(&*guard)).step;
    let refused = Ok(Answered { status: 400, ..Answered::default() });
    assert_eq!(told(way.resume(&*guard, step, refused)).details, "oidc_code_refused");
    assert_eq!(details(&logged_in(&*guard), &good, NOW), "oidc_bad_state");
}

#[test]
fn only_a_token_for_this_login_counts() {
    let guard = of(oidc());
    let (browser, location) = begin(&*guard, "/");
    let back = format!("/callback?code=c&state={}", param(&location, "state"));
    let good = claims(&param(&location, "nonce"), NOW);
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        claims
    };
    let judged = |answer| {
        let mut way = browser.at(&back, NOW);
        let step = asked(way.begin(&*guard)).step;
        told(way.resume(&*guard, step, answer)).details
    };
    assert_eq!(judged(tokens(&id_token(&good), "r")), "oidc_logged_in");
    for bad in [
        with("nonce", json!("other")),
        without("nonce"),
        with("aud", json!("other")),
        with("aud", json!(["shop", "other"])),
        with("azp", json!("other")),
        with("iss", json!("https://evil.example")),
        with("exp", json!(NOW - 100)),
        without("exp"),
        without("sub"),
        with("sub", json!(" x")),
    ] {
        assert_eq!(judged(tokens(&id_token(&bad), "r")), "oidc_token_refused", "{bad}");
    }
    let parties = json!({"iss": ISSUER, "sub": "alice", "aud": ["shop", "b"], "azp": "shop", "exp": NOW + 9,
        "nonce": param(&location, "nonce")});
    assert_eq!(judged(tokens(&id_token(&parties), "r")), "oidc_logged_in");
    let forged = id_token(&good).replace('A', "B");
    assert_eq!(judged(tokens(&forged, "r")), "oidc_token_refused");
    let answer = |status, body: &'static str| {
        Ok(Answered { status, body: Bytes::from_static(body.as_bytes()), ..Answered::default() })
    };
    assert_eq!(judged(answer(200, "{\"access_token\": \"x\"}")), "oidc_token_refused");
    assert_eq!(judged(answer(200, "<html>")), "oidc_provider_error");
    assert_eq!(judged(answer(502, "")), "oidc_provider_error");
    assert_eq!(judged(Err(NoAnswer::Timeout)), "oidc_provider_error");
}

#[test]
fn a_session_is_refreshed_before_it_ends() {
    let guard = of(oidc());
    let mut browser = logged_in(&*guard);
    // The access token is good for 600 s.
    assert!(matches!(browser.at("/", NOW + 479).begin(&*guard), Verdict::Continue));
    let mut way = browser.at("/", NOW + 480);
    let callout = asked(way.begin(&*guard));
    let form = String::from_utf8(callout.body.to_vec()).unwrap();
    assert_eq!(url::only(&form, "grant_type").as_deref(), Some("refresh_token"));
    assert_eq!(url::only(&form, "refresh_token").as_deref(), Some("r1"));
    // Others of the same browser do not wait for it.
    assert!(matches!(browser.at("/", NOW + 480).begin(&*guard), Verdict::Continue));
    let answer = tokens(&id_token(&claims("-", NOW + 480)), "r2");
    assert!(matches!(way.resume(&*guard, callout.step, answer), Verdict::Continue));
    // Who comes late with the old cookie gets the new one, too.
    let mut late = browser.at("/", NOW + 500);
    assert!(matches!(late.begin(&*guard), Verdict::Continue));
    assert_eq!(cookies_of(&late.response).count(), cookies_of(&way.response).count());
    browser.take(cookies_of(&way.response));
    assert!(matches!(browser.at("/", NOW + 900).begin(&*guard), Verdict::Continue));
    let form = asked(browser.at("/", NOW + 1000).begin(&*guard)).body;
    assert_eq!(url::only(std::str::from_utf8(&form).unwrap(), "refresh_token").as_deref(), Some("r2"));
    assert_eq!(told(browser.at("/", NOW + 1080).begin(&*guard)).details, "oidc_login", "it is over");
}

#[test]
fn a_session_outlives_a_provider_that_is_away_but_not_its_word() {
    let guard = of(oidc());
    let browser = logged_in(&*guard);
    let mut way = browser.at("/", NOW + 480);
    let step = asked(way.begin(&*guard)).step;
    assert!(matches!(way.resume(&*guard, step, Err(NoAnswer::Timeout)), Verdict::Continue));
    let browser = logged_in(&*guard);
    let mut way = browser.at("/", NOW + 480);
    let step = asked(way.begin(&*guard)).step;
    let told_so = told(way.resume(&*guard, step, Ok(Answered { status: 400, ..Answered::default() })));
    assert_eq!(told_so.details, "oidc_login");
    assert!(told_so.cookies.iter().any(|c| c.starts_with("__Host-fg=;") && c.contains("Max-Age=0")));
    // The same cookie again, from a request that was on its way.
    assert_eq!(told(browser.at("/", NOW + 481).begin(&*guard)).details, "oidc_login");
    let browser = logged_in(&*guard);
    let mut way = browser.at("/", NOW + 480);
    let step = asked(way.begin(&*guard)).step;
    let mut other = claims("-", NOW + 480);
    other["sub"] = json!("mallory");
    assert_eq!(told(way.resume(&*guard, step, tokens(&id_token(&other), "r"))).details, "oidc_login");
}

#[test]
fn logging_out_ends_both_sessions() {
    let guard = of(oidc());
    let browser = logged_in(&*guard);
    let out = told(browser.at("/logout", NOW).begin(&*guard));
    assert_eq!((out.status, out.details), (303, "oidc_logged_out"));
    assert!(out.location.starts_with("https://id.example/end?id_token_hint="));
    assert_eq!(param(&out.location, "post_logout_redirect_uri"), "https://shop.example/bye");
    assert!(out.cookies.iter().all(|c| c.contains("Max-Age=0")) && !out.cookies.is_empty());
    let mut forced = browser.at("/logout", NOW);
    forced.head.headers.push(b"sec-fetch-site", b"cross-site");
    assert_eq!(told(forced.begin(&*guard)).details, "oidc_logout_refused");
    let local = of(ir::Oidc { end_session_endpoint: None, ..oidc() });
    assert_eq!(told(browser.at("/logout", NOW).begin(&*local)).location, "https://shop.example/bye");
}

#[test]
fn who_would_not_follow_is_told_at_once() {
    let guard = of(oidc());
    for (method, fields) in [
        (Method::Post, vec![]),
        (Method::Get, vec![("x-requested-with", "XMLHttpRequest")]),
        (Method::Get, vec![("sec-fetch-mode", "cors")]),
        (Method::Get, vec![("accept", "application/json")]),
    ] {
        let mut way = Way::new(request("/", &fields));
        way.head.method = method;
        let told = told(way.begin(&*guard));
        assert_eq!((told.status, told.details), (401, "oidc_login_required"), "{fields:?}");
        assert_eq!(told.location, "");
    }
    let mut free = Way::new(request("/public/a", &[("x-user", "root"), ("cookie", "__Host-fg=1.x; b=1")]));
    assert!(matches!(free.begin(&*guard), Verdict::Continue));
    assert_eq!((free.head.headers.get("x-user"), free.metadata.user), (None, None));
    assert_eq!(free.head.headers.get("cookie"), Some(&b"b=1"[..]));
}

#[test]
fn logins_that_are_never_ended_do_not_fill_the_head() {
    let guard = of(oidc());
    let mut browser = Browser::default();
    for _ in 0..20 {
        let told = told(browser.at("/", NOW).begin(&*guard));
        browser.take(told.cookies.into_iter());
        assert!(browser.0.len() <= MAX_FLOWS + 1, "{}", browser.0.len());
    }
}

proptest! {
    /// Whatever a browser is asked to open, it comes back to this host.
    #[test]
    fn a_login_goes_back_to_the_same_host(written in "/[/\\\\a-z.@:%?#25cfeE&=]{0,20}") {
        let (raw, query) = written.split_once('?').map_or((&*written, ""), |(p, q)| (p, q));
        if let Some(path) = path::normalise(raw).filter(|_| !query.contains('#')) {
            prop_assume!(!path.starts_with("/callback") && !path.starts_with("/logout") && !path.starts_with("/public/"));
            let guard = of(oidc());
            let (browser, location) = begin(&*guard, &format!("{path}?{query}"));
            let mut way = browser.at(&format!("/callback?code=c&state={}", param(&location, "state")), NOW);
            let step = asked(way.begin(&*guard)).step;
            let claims = claims(&param(&location, "nonce"), NOW);
            let told = told(way.resume(&*guard, step, tokens(&id_token(&claims), "r")));
            prop_assert!(told.location.starts_with("https://shop.example/"), "{}", told.location);
        }
    }

    /// A session that somebody has changed is none.
    #[test]
    fn a_cookie_that_was_changed_is_no_session(at: prop::sample::Index, with in "[A-Za-z0-9_.-]") {
        let guard = of(oidc());
        let mut browser = logged_in(&*guard);
        let (_, value) = browser.0.iter_mut().find(|(name, _)| name == "__Host-fg").unwrap();
        let at = at.index(value.len() - 1);
        prop_assume!(value[at..=at] != *with);
        value.replace_range(at..=at, &with);
        prop_assert_eq!(told(browser.at("/", NOW).begin(&*guard)).details, "oidc_login");
    }
}
