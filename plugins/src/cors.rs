//! Cross-origin resource sharing as Gateway API's `HTTPCORSFilter` has it (GEP-1767), and the Fetch standard behind it.
//!
//! The gateway answers preflights itself. It never refuses anything: a request from an origin that is not allowed is
//! served without the fields that would let the browser hand over the response, and that is what the standard asks for.
//!
//! Credentials: whether a browser sends any cannot be seen (a preflight never has them), so when the policy allows them
//! every answer is made as for a request with credentials: the origin is named and no field's value is `*`, which a
//! browser would not take as a wildcard then.

use std::borrow::Cow;

use fieldgate_core::filter::LocalResponse;
use fieldgate_core::ir::Cors;
use fieldgate_core::{HeaderId, Headers, Method, RequestHead};

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const ALLOW_METHODS: &str = "access-control-allow-methods";
const ALLOW_HEADERS: &str = "access-control-allow-headers";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";
const MAX_AGE: &str = "access-control-max-age";
const REQUEST_METHOD: &str = "access-control-request-method";
const REQUEST_HEADERS: &str = "access-control-request-headers";

/// All response fields of the protocol; those of the upstream are removed, since the policy speaks for the route.
const RESPONSE_FIELDS: [&str; 6] =
    [ALLOW_ORIGIN, ALLOW_CREDENTIALS, ALLOW_METHODS, ALLOW_HEADERS, EXPOSE_HEADERS, MAX_AGE];

/// The answer to a preflight; `None` if the request is none (an OPTIONS request with Origin and
/// Access-Control-Request-Method, by the Fetch standard) and goes on to the backend.
///
/// An origin that is not allowed gets the same 204 without the fields, and its browser stops there.
pub fn preflight(policy: &Cors, request: &RequestHead) -> Option<LocalResponse> {
    let origin = text(request.headers.get_id(HeaderId::Origin)?)?;
    let method = text(request.headers.get(REQUEST_METHOD)?)?;
    if request.method != Method::Options {
        return None;
    }
    let mut headers = vec![("vary", vary(policy).to_owned())];
    if let Some(allowed) = allowed_origin(policy, origin) {
        headers.push((ALLOW_ORIGIN, allowed.to_owned()));
        if policy.allow_credentials {
            headers.push((ALLOW_CREDENTIALS, "true".to_owned()));
        }
        let asked = request.headers.get(REQUEST_HEADERS).and_then(text);
        let methods = listed(&policy.allow_methods, policy.allow_credentials, Some(method));
        headers.extend(methods.map(|v| (ALLOW_METHODS, v)));
        let names = listed(&policy.allow_headers, policy.allow_credentials, asked);
        headers.extend(names.map(|v| (ALLOW_HEADERS, v)));
        headers.push((MAX_AGE, policy.max_age.to_string()));
    }
    Some(LocalResponse {
        status: 204,
        headers,
        body: Cow::Borrowed(""),
        flags: "-",
        details: "cors_preflight",
    })
}

/// Puts the policy's fields into the response to a request that was no preflight.
pub fn apply(policy: &Cors, request: &RequestHead, response: &mut Headers) {
    response.remove_if(|_, name, _| RESPONSE_FIELDS.iter().any(|field| field.as_bytes() == name));
    // A cache must not give one origin what was made for another, nor for none.
    if depends_on_origin(policy) && !varies_by_origin(response) {
        response.push(b"vary", b"Origin");
    }
    let origin = request.headers.get_id(HeaderId::Origin).and_then(text);
    let Some(allowed) = origin.and_then(|origin| allowed_origin(policy, origin)) else { return };
    response.push(ALLOW_ORIGIN.as_bytes(), allowed.as_bytes());
    if policy.allow_credentials {
        response.push(ALLOW_CREDENTIALS.as_bytes(), b"true");
    }
    // With credentials there is no way to say "all": the names are not known here.
    if let Some(names) = listed(&policy.expose_headers, policy.allow_credentials, None) {
        response.push(EXPOSE_HEADERS.as_bytes(), names.as_bytes());
    }
}

/// A list's value. `*` stays `*` without credentials; with them it is what the client asked for, or no field.
fn listed(allowed: &[std::sync::Arc<str>], credentials: bool, asked: Option<&str>) -> Option<String> {
    if !allowed.iter().any(|v| &**v == "*") {
        return (!allowed.is_empty()).then(|| allowed.join(", "));
    }
    if credentials { asked.filter(|a| !a.is_empty()).map(str::to_owned) } else { Some("*".to_owned()) }
}

/// What Access-Control-Allow-Origin says to this origin, if it is allowed.
fn allowed_origin<'a>(policy: &Cors, origin: &'a str) -> Option<&'a str> {
    if takes_any_origin(policy) {
        // No origin is `*`, and named back it would be the wildcard that credentials rule out.
        if policy.allow_credentials && origin == "*" {
            return None;
        }
        return Some(if policy.allow_credentials { origin } else { "*" });
    }
    policy.allow_origins.iter().any(|pattern| origin_matches(pattern, origin)).then_some(origin)
}

fn takes_any_origin(policy: &Cors) -> bool {
    policy.allow_origins.iter().any(|pattern| &**pattern == "*")
}

fn depends_on_origin(policy: &Cors) -> bool {
    policy.allow_credentials || !takes_any_origin(policy)
}

fn varies_by_origin(response: &Headers) -> bool {
    response.get_all("vary").flat_map(|value| value.split(|b| *b == b',')).any(|name| {
        let name = name.trim_ascii();
        name == b"*" || name.eq_ignore_ascii_case(b"origin")
    })
}

/// What the answer to a preflight depends on.
fn vary(policy: &Cors) -> &'static str {
    if depends_on_origin(policy) {
        "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
    } else {
        "Access-Control-Request-Method, Access-Control-Request-Headers"
    }
}

/// Compares scheme, host and port, each port with its scheme's default. A `*` in the pattern's host, which stands at its
/// beginning, takes any characters there, dots included.
fn origin_matches(pattern: &str, origin: &str) -> bool {
    let (Some(pattern), Some(origin)) = (parts(pattern), parts(origin)) else { return false };
    let host = match pattern.host.strip_prefix('*') {
        Some(suffix) => {
            origin.host.len() > suffix.len()
                && origin.host.as_bytes()[origin.host.len() - suffix.len()..]
                    .eq_ignore_ascii_case(suffix.as_bytes())
        }
        None => origin.host.eq_ignore_ascii_case(pattern.host),
    };
    host && pattern.scheme.eq_ignore_ascii_case(origin.scheme) && pattern.port == origin.port
}

struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

/// `null` and what is malformed have no parts.
fn parts(origin: &str) -> Option<Origin<'_>> {
    let (scheme, authority) = origin.split_once("://")?;
    let (host, port) = fieldgate_core::head::split_port(authority);
    if port.is_none() && host.len() != authority.len()
        || host.is_empty()
        || host.contains(['/', '?', '#', '@'])
    {
        return None;
    }
    let default = match scheme {
        s if s.eq_ignore_ascii_case("https") => Some(443),
        s if s.eq_ignore_ascii_case("http") => Some(80),
        _ => None,
    };
    Some(Origin { scheme, host, port: port.or(default) })
}

/// Values that are echoed are text.
fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Default)]
    struct P {
        origins: &'static [&'static str],
        credentials: bool,
        methods: &'static [&'static str],
        headers: &'static [&'static str],
        expose: &'static [&'static str],
    }

    fn policy(p: P) -> Cors {
        let list = |texts: &[&str]| texts.iter().map(|t| std::sync::Arc::from(*t)).collect();
        Cors {
            allow_origins: list(p.origins),
            allow_credentials: p.credentials,
            allow_methods: list(p.methods),
            allow_headers: list(p.headers),
            expose_headers: list(p.expose),
            max_age: 5,
        }
    }

    fn head(method: Method, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead { method, ..RequestHead::default() };
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    /// The response fields of a preflight, without `vary`.
    fn answered(p: P, fields: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let response = preflight(&policy(p), &head(Method::Options, fields)).unwrap();
        assert_eq!((response.status, &*response.body), (204, ""));
        response.headers.into_iter().filter(|(name, _)| *name != "vary").collect()
    }

    fn check(p: P, fields: &[(&str, &str)], expected: &[(&str, &str)]) {
        let answered = answered(p, fields);
        assert_eq!(answered.iter().map(|(n, v)| (*n, &**v)).collect::<Vec<_>>(), expected);
    }

    const ASKS: [(&str, &str); 3] =
        [("origin", "https://a.example"), (REQUEST_METHOD, "PUT"), (REQUEST_HEADERS, "x-a, x-b")];

    #[test]
    fn only_a_preflight_is_answered() {
        let any = policy(P { origins: &["*"], ..P::default() });
        for request in [
            head(Method::Get, &ASKS),
            head(Method::Options, &ASKS[..1]),
            head(Method::Options, &ASKS[1..]),
            head(Method::Options, &[]),
        ] {
            assert_eq!(preflight(&any, &request), None);
        }
    }

    #[test]
    fn an_allowed_origin_is_named() {
        let p = P {
            origins: &["https://a.example"],
            methods: &["GET", "PUT"],
            headers: &["X-A"],
            ..P::default()
        };
        let expected = [
            (ALLOW_ORIGIN, "https://a.example"),
            (ALLOW_METHODS, "GET, PUT"),
            (ALLOW_HEADERS, "X-A"),
            (MAX_AGE, "5"),
        ];
        check(p, &ASKS, &expected);
    }

    #[test]
    fn any_origin_is_a_wildcard_without_credentials_and_named_with_them() {
        let p = P { origins: &["*"], methods: &["*"], headers: &["*"], ..P::default() };
        check(p, &ASKS, &[(ALLOW_ORIGIN, "*"), (ALLOW_METHODS, "*"), (ALLOW_HEADERS, "*"), (MAX_AGE, "5")]);
        let p = P { credentials: true, ..p };
        check(
            p,
            &ASKS,
            &[
                (ALLOW_ORIGIN, "https://a.example"),
                (ALLOW_CREDENTIALS, "true"),
                (ALLOW_METHODS, "PUT"),
                (ALLOW_HEADERS, "x-a, x-b"),
                (MAX_AGE, "5"),
            ],
        );
        // Nothing was asked for, so nothing is listed.
        assert!(answered(p, &ASKS[..2]).iter().all(|(name, _)| *name != ALLOW_HEADERS));
    }

    #[test]
    fn a_star_for_an_origin_is_not_named_back_with_credentials() {
        let star = [("origin", "*"), ASKS[1]];
        check(P { origins: &["*"], credentials: true, ..P::default() }, &star, &[]);
        check(P { origins: &["*"], ..P::default() }, &star, &[(ALLOW_ORIGIN, "*"), (MAX_AGE, "5")]);
    }

    #[test]
    fn empty_lists_add_no_field() {
        check(P { origins: &["*"], ..P::default() }, &ASKS, &[(ALLOW_ORIGIN, "*"), (MAX_AGE, "5")]);
    }

    #[test]
    fn an_origin_that_is_not_allowed_gets_an_answer_without_fields() {
        check(
            P { origins: &["https://b.example"], credentials: true, methods: &["*"], ..P::default() },
            &ASKS,
            &[],
        );
        check(P { methods: &["*"], ..P::default() }, &ASKS, &[]);
    }

    #[test]
    fn origins() {
        for (pattern, origin, expected) in [
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "HTTPS://A.Example", true),
            ("https://a.example", "http://a.example", false),
            ("https://a.example", "https://a.example:443", true),
            ("https://a.example:443", "https://a.example", true),
            ("https://a.example", "https://a.example:8443", false),
            ("http://a.example:80", "http://a.example", true),
            ("https://*.example", "https://a.example", true),
            ("https://*.example", "https://x.y.example", true),
            ("https://*.example", "https://example", false),
            ("https://*.example", "https://.example", false),
            ("https://*.a.example:8443", "https://b.a.example:8443", true),
            ("https://*", "https://anything", true),
            ("https://*", "http://anything", false),
            ("https://a.example", "null", false),
            ("https://*.example", "https://evil.test/.example", false),
            ("https://*.example", "https://evil.test:x.example", false),
            ("https://[::1]:9", "https://[::1]:9", true),
            ("https://\u{e9}.example", "https://a.example", false),
        ] {
            assert_eq!(origin_matches(pattern, origin), expected, "{pattern} {origin}");
        }
    }

    fn applied(p: P, request: &[(&str, &str)], response: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut headers = head(Method::Get, response).headers;
        apply(&policy(p), &head(Method::Get, request), &mut headers);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        headers.iter().map(|(_, n, v)| (text(n), text(v))).collect()
    }

    #[test]
    fn a_response_gets_the_policys_fields_and_no_others() {
        let p = P {
            origins: &["https://a.example"],
            credentials: true,
            expose: &["X-Total", "X-Page"],
            ..P::default()
        };
        let upstream =
            [("Access-Control-Allow-Origin", "*"), ("access-control-max-age", "9"), ("x-total", "3")];
        let fields = applied(p, &ASKS[..1], &upstream);
        let expected = [
            ("x-total", "3"),
            ("vary", "Origin"),
            (ALLOW_ORIGIN, "https://a.example"),
            (ALLOW_CREDENTIALS, "true"),
            (EXPOSE_HEADERS, "X-Total, X-Page"),
        ];
        assert_eq!(fields.iter().map(|(n, v)| (&**n, &**v)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn without_an_allowed_origin_a_response_loses_the_upstreams_fields() {
        let p = P { origins: &["https://b.example"], ..P::default() };
        for request in [&ASKS[..1], &[]] {
            let fields = applied(p, request, &[(ALLOW_ORIGIN, "*")]);
            assert_eq!(fields, [("vary".to_owned(), "Origin".to_owned())]);
        }
    }

    #[test]
    fn exposing_all_needs_no_credentials() {
        let p = P { origins: &["*"], expose: &["*"], ..P::default() };
        assert!(applied(p, &ASKS[..1], &[]).contains(&(EXPOSE_HEADERS.to_owned(), "*".to_owned())));
        let fields = applied(P { credentials: true, ..p }, &ASKS[..1], &[]);
        assert!(fields.iter().all(|(name, _)| name != EXPOSE_HEADERS));
    }

    #[test]
    fn vary_is_said_once_and_not_where_all_get_the_same() {
        let named = P { origins: &["https://a.example"], ..P::default() };
        let vary = |p, upstream: &[(&str, &str)]| {
            applied(p, &ASKS[..1], upstream)
                .into_iter()
                .filter(|(n, _)| n == "vary")
                .map(|(_, v)| v)
                .collect::<Vec<_>>()
        };
        assert_eq!(vary(named, &[("vary", "Accept-Encoding, origin")]), ["Accept-Encoding, origin"]);
        assert_eq!(vary(named, &[("vary", "Accept")]), ["Accept", "Origin"]);
        assert!(vary(P { origins: &["*"], ..P::default() }, &[]).is_empty());
    }
}
