//! What filters make of any request: a rewritten path is still a path, a redirect goes to one place, and CORS allows an
//! origin exactly when the policy names it.

#![no_main]

use std::sync::Arc;

use fieldgate_core::filter::{edit_headers, redirect, rewrite};
use fieldgate_core::ir::{Cors, HeaderEdit, PathRewrite, Redirect, Rewrite};
use fieldgate_core::{Headers, Method, RequestHead};
use fieldgate_fuzz::input::Input;
use fieldgate_plugins::cors;
use libfuzzer_sys::fuzz_target;

const PATHS: [&str; 7] = ["/", "/a", "/a/b", "/a/b/", "//a", "/a//b", "/ab"];
const ORIGINS: [&str; 9] = [
    "https://a.example",
    "http://a.example",
    "https://*.example",
    "https://a.example:8443",
    "*",
    "https://*",
    "https://[::1]:9",
    "null",
    "https://a.example:443",
];

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    if input.rarely(2) {
        check_cors(&mut input);
    } else {
        check_paths(&mut input);
    }
});

fn check_paths(input: &mut Input<'_>) {
    let mut head = RequestHead {
        authority: "shop.example:8080".into(),
        https: input.rarely(2),
        ..RequestHead::default()
    };
    head.set_target(&target(input));
    let before = head.target.clone();
    let path = if input.rarely(2) {
        PathRewrite::Full(target(input).into())
    } else {
        PathRewrite::Prefix(target(input).into())
    };
    let prefix_len = input.below(8);
    let hostname = input.rarely(2).then(|| Arc::from("other.example"));
    let answer = redirect(
        &Redirect {
            scheme: input.rarely(2).then(|| "https".into()),
            hostname: hostname.clone(),
            path: Some(path.clone()),
            port: input.rarely(3).then(|| input.u16()),
            status: 302,
        },
        prefix_len,
        &head,
        8080,
    );
    let location = &answer.headers[0].1;
    let (scheme, rest) = location.split_once("://").expect("an absolute URL");
    assert!(matches!(scheme, "http" | "https"), "{location}");
    let host = rest.split(['/', ':']).next();
    assert_eq!(host, Some(hostname.as_deref().unwrap_or("shop.example")), "{location}");
    let query = head.query().map(str::to_owned);
    rewrite(&Rewrite { hostname: hostname.clone(), path: Some(path.clone()) }, prefix_len, &mut head);
    assert!(head.target.starts_with('/'), "{before} {path:?} -> {}", head.target);
    assert!(location.ends_with(&head.target), "{location} {}", head.target);
    assert_eq!(head.headers.get("x-envoy-original-path"), Some(before.as_bytes()));
    assert!(query.is_none_or(|q| head.target.ends_with(&format!("?{q}"))));
    assert_eq!(head.authority, hostname.as_deref().unwrap_or("shop.example:8080"));
    check_edits(input);
}

/// As the paths of a configuration are: without a query.
fn target(input: &mut Input<'_>) -> String {
    if !input.rarely(3) {
        return input.one_of(&PATHS).to_owned();
    }
    let text: String =
        input.text().chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#')).collect();
    format!("/{text}")
}

fn check_edits(input: &mut Input<'_>) {
    let names = ["a", "b", "content-type"];
    let mut headers = Headers::new();
    let mut pairs = |n: usize| -> Vec<(Arc<str>, Arc<str>)> {
        (0..input.below(n)).map(|_| (input.one_of(&names).into(), input.text().into())).collect()
    };
    let (sent, set, add, remove) = (pairs(6), pairs(4), pairs(4), pairs(3));
    let mut expected: Vec<(Arc<str>, Arc<str>)> = Vec::new();
    for (name, value) in &sent {
        headers.push(name.as_bytes(), value.as_bytes());
        expected.push((name.clone(), value.clone()));
    }
    for (name, value) in &set {
        expected.retain(|(n, _)| n != name);
        expected.push((name.clone(), value.clone()));
    }
    expected.extend(add.iter().cloned());
    let remove: Vec<Arc<str>> = remove.into_iter().map(|(name, _)| name).collect();
    expected.retain(|(n, _)| !remove.contains(n));
    edit_headers(&HeaderEdit { set, add, remove }, &mut headers);
    let found: Vec<_> = headers.iter().map(|(_, n, v)| (n.to_vec(), v.to_vec())).collect();
    let expected: Vec<_> =
        expected.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    assert_eq!(found, expected);
}

fn check_cors(input: &mut Input<'_>) {
    let list =
        |input: &mut Input<'_>, all: &[&str]| (0..input.below(3)).map(|_| input.one_of(all).into()).collect();
    let policy = Cors {
        allow_origins: list(input, &ORIGINS),
        allow_credentials: input.rarely(2),
        allow_methods: list(input, &["GET", "PUT", "*"]),
        allow_headers: list(input, &["x-a", "*"]),
        expose_headers: list(input, &["x-b", "*"]),
        max_age: input.u16().into(),
    };
    let origin = if input.rarely(2) { input.text() } else { input.one_of(&ORIGINS).to_owned() };
    let mut head = RequestHead { method: Method::Options, ..RequestHead::default() };
    head.headers.push(b"origin", origin.as_bytes());
    head.headers.push(b"access-control-request-method", input.one_of(&["GET", "PUT", "x"]).as_bytes());
    // `*` is no origin, and named back it would be a wildcard.
    let wildcard = policy.allow_credentials && origin == "*";
    let allowed = !wildcard && policy.allow_origins.iter().any(|pattern| takes(pattern, &origin));
    let answer = cors::preflight(&policy, &head).expect("a preflight");
    let named =
        answer.headers.iter().find(|(n, _)| *n == "access-control-allow-origin").map(|(_, v)| v.clone());
    let mut response = Headers::new();
    response.push(b"Access-Control-Allow-Origin", b"https://upstreams.own");
    response.push(b"Access-Control-Allow-Credentials", b"true");
    cors::apply(&policy, &head, &mut response);
    let applied = response.get("access-control-allow-origin").map(<[u8]>::to_vec);
    assert_eq!(applied, named.clone().map(String::into_bytes), "both say the same");
    assert_eq!(named.is_some(), allowed, "{policy:?} {origin}");
    let credentials = response.get("access-control-allow-credentials").is_some();
    assert_eq!(credentials, allowed && policy.allow_credentials);
    // A browser takes no wildcard with credentials, and a cache must know what depends on the origin.
    assert!(!credentials || named.as_deref() != Some("*"));
    assert!(named.as_deref().is_none_or(|n| n == "*" || n == origin));
    let any = policy.allow_origins.iter().any(|o| &**o == "*") && !policy.allow_credentials;
    assert!(any || response.get_all("vary").any(|v| v.eq_ignore_ascii_case(b"origin")));
}

/// Scheme, host and port are equal, a port left out being the scheme's own; a `*` before a host takes any beginning.
fn takes(pattern: &str, origin: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let parts = |text: &str| {
        let (scheme, authority) =
            text.to_ascii_lowercase().split_once("://").map(|(s, a)| (s.to_owned(), a.to_owned()))?;
        let own = match &*scheme {
            "https" => Some(443),
            "http" => Some(80),
            _ => None,
        };
        // The last `]` ends an address in brackets, in which colons are no ports.
        let colon = match authority.rfind(']') {
            Some(end) => authority[end..].find(':').map(|at| end + at),
            None => authority.rfind(':'),
        };
        let (host, port) = match colon {
            Some(at) => (&authority[..at], Some(authority[at + 1..].parse::<u16>().ok()?)),
            None => (&*authority, own),
        };
        (!host.is_empty() && !host.contains(['/', '?', '#', '@'])).then(|| (scheme, host.to_owned(), port))
    };
    let (Some(pattern), Some(origin)) = (parts(pattern), parts(origin)) else { return false };
    let host = match pattern.1.strip_prefix('*') {
        Some(suffix) => origin.1.len() > suffix.len() && origin.1.ends_with(suffix),
        None => pattern.1 == origin.1,
    };
    host && pattern.0 == origin.0 && pattern.2 == origin.2
}
