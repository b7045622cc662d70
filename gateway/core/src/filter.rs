//! What filters do to heads: pure functions, called in the order of the rule.
//!
//! Names and values have been checked where the configuration is read: no `host`, no framing or hop-by-hop fields, no
//! control bytes. Nothing is decided here.

use std::borrow::Cow;

use crate::head::{Headers, RequestHead, split_port};
use crate::ir::{HeaderEdit, PathRewrite, Redirect, Rewrite};

/// A response that is made here, without an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalResponse {
    /// The status.
    pub status: u16,
    /// Header fields.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Cow<'static, str>,
    /// Envoy's response flags, `-` for none.
    pub flags: &'static str,
    /// Envoy's response code details.
    pub details: &'static str,
}

/// Set, then add, then remove (Gateway API `HTTPHeaderFilter`).
pub fn edit_headers(edit: &HeaderEdit, headers: &mut Headers) {
    for (name, value) in &edit.set {
        headers.set(name, value.as_bytes());
    }
    for (name, value) in &edit.add {
        headers.push(name.as_bytes(), value.as_bytes());
    }
    for name in &edit.remove {
        headers.remove(name);
    }
}

/// Changes host and path. `prefix_len` is what the prefix match took of the path.
/// The path before goes into `x-envoy-original-path`, as Envoy does it, over one that the client may have sent.
pub fn rewrite(rewrite: &Rewrite, prefix_len: usize, head: &mut RequestHead) {
    if let Some(host) = &rewrite.hostname {
        head.authority.clear();
        head.authority.push_str(host);
    }
    if let Some(path) = &rewrite.path {
        let target = rewritten(path, prefix_len, head);
        let original = std::mem::take(&mut head.target);
        head.headers.set("x-envoy-original-path", original.as_bytes());
        head.set_target(&target);
    }
}

/// The answer that sends the client elsewhere (Gateway API `HTTPRequestRedirectFilter`).
///
/// The port: as given; else, with a scheme given, that scheme's own; else the listener's. A scheme's own port is not written.
pub fn redirect(
    redirect: &Redirect,
    prefix_len: usize,
    head: &RequestHead,
    listener_port: u16,
) -> LocalResponse {
    let scheme = redirect.scheme.as_deref().unwrap_or(if head.https { "https" } else { "http" });
    let host = redirect.hostname.as_deref().unwrap_or_else(|| split_port(&head.authority).0);
    let own_port = if scheme == "https" { 443 } else { 80 };
    let port = redirect.port.unwrap_or(if redirect.scheme.is_some() { own_port } else { listener_port });
    let target = match &redirect.path {
        Some(path) => Cow::Owned(rewritten(path, prefix_len, head)),
        // `OPTIONS *` has no path to send to.
        None if head.target.starts_with('/') => Cow::Borrowed(head.target.as_str()),
        None => Cow::Borrowed("/"),
    };
    let location = if host.is_empty() {
        // HTTP/1.0 without Host: a reference within the same host is all that can be said (RFC 9110 section 10.2.2).
        format!("/{}", target.trim_start_matches('/'))
    } else if port == own_port {
        format!("{scheme}://{host}{target}")
    } else {
        format!("{scheme}://{host}:{port}{target}")
    };
    LocalResponse {
        status: redirect.status,
        headers: vec![("location", location)],
        body: Cow::Borrowed(""),
        flags: "-",
        details: "direct_response",
    }
}

/// Path and query after a rewrite.
fn rewritten(rewrite: &PathRewrite, prefix_len: usize, head: &RequestHead) -> String {
    let query = &head.target[head.path_len..];
    let path = match rewrite {
        PathRewrite::Full(path) => Cow::Borrowed(&**path),
        PathRewrite::Prefix(prefix) => replace_prefix(head.path(), prefix_len, prefix),
    };
    // `*` and the empty path of CONNECT have no prefix that could be replaced.
    let slash = if path.starts_with('/') { "" } else { "/" };
    format!("{slash}{path}{query}")
}

/// Joins by path element, whether or not either side ends with a slash (`HTTPPathModifier.replacePrefixMatch`).
fn replace_prefix<'p>(path: &'p str, prefix_len: usize, prefix: &str) -> Cow<'p, str> {
    let rest = path.get(prefix_len..).filter(|r| r.is_empty() || r.starts_with('/')).unwrap_or(path);
    match prefix.trim_end_matches('/') {
        // `//x` would be read as the host `x` by those who take the target for a URL.
        "" => Cow::Borrowed(rest.trim_start_matches('/')),
        prefix => Cow::Owned(format!("{prefix}{rest}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn head(authority: &str, target: &str) -> RequestHead {
        let mut head = RequestHead { authority: authority.into(), ..RequestHead::default() };
        head.set_target(target);
        head
    }

    #[test]
    fn replaced_prefixes_keep_their_slashes_right() {
        // The table of Gateway API's HTTPPathModifier.replacePrefixMatch; a matched prefix is stored without its last slash.
        let documented = [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
        ];
        let others = [
            ("/foo?a=b", "/foo", "/", "/?a=b"),
            ("/foo/bar?a=/b", "/foo", "/x", "/x/bar?a=/b"),
            ("/a/b", "", "/x", "/x/a/b"),
            ("/a/b", "", "/", "/a/b"),
            ("/foo//bar", "/foo", "/x", "/x//bar"),
            ("/foo//bar", "/foo", "/", "/bar"),
            // What an earlier rewrite left is not cut in the middle of an element, nor beyond its end.
            ("/longer/bar", "/foo", "/x", "/x/longer/bar"),
            ("/a", "/foo", "/x", "/x/a"),
            ("*", "", "/", "/*"),
        ];
        for (target, matched, to, expected) in documented.into_iter().chain(others) {
            let mut h = head("a", target);
            h.headers.push(b"x-envoy-original-path", b"/forged");
            let path = Some(PathRewrite::Prefix(to.into()));
            rewrite(&Rewrite { hostname: None, path }, matched.len(), &mut h);
            assert_eq!(h.target, expected, "{target} {matched} -> {to:?}");
            assert_eq!(h.path(), expected.split('?').next().unwrap());
            assert_eq!(
                h.headers.get_all("x-envoy-original-path").collect::<Vec<_>>(),
                [target.as_bytes()],
                "{target}"
            );
        }
    }

    #[test]
    fn a_full_path_replaces_the_path_and_keeps_the_query() {
        for (target, to, expected) in
            [("/a/b?q=1", "/one", "/one?q=1"), ("/a?", "/one/", "/one/?"), ("/a", "", "/")]
        {
            let mut h = head("a", target);
            let path = Some(PathRewrite::Full(to.into()));
            rewrite(&Rewrite { hostname: None, path }, 0, &mut h);
            assert_eq!(h.target, expected, "{target} -> {to}");
        }
    }

    #[test]
    fn a_new_host_leaves_the_path_alone() {
        let mut h = head("old.example:8080", "/a?b");
        rewrite(&Rewrite { hostname: Some("new.example".into()), path: None }, 0, &mut h);
        assert_eq!((&*h.authority, &*h.target), ("new.example", "/a?b"));
        assert!(h.headers.is_empty());
    }

    /// A redirect of `http://a:9/x/y?q`, or of `https`, that arrived at a port of ours.
    fn location(to: &Redirect, https: bool, listener: u16) -> String {
        let mut head = head("a:9", "/x/y?q");
        head.https = https;
        let response = redirect(to, 2, &head, listener);
        assert_eq!(response.status, to.status);
        response.headers[0].1.clone()
    }

    fn to(scheme: Option<&str>, port: Option<u16>) -> Redirect {
        Redirect { scheme: scheme.map(Arc::from), hostname: None, path: None, port, status: 302 }
    }

    #[test]
    fn redirects_name_a_port_only_where_it_says_something() {
        // "If redirect scheme is not-empty, the redirect port MUST be the well-known port associated with the redirect
        // scheme"; "if redirect scheme is empty, the redirect port MUST be the Gateway Listener port"; 80 for http and 443
        // for https are not written.
        for (scheme, port, https, listener, expected) in [
            (None, None, false, 80, "http://a/x/y?q"),
            (None, None, false, 8080, "http://a:8080/x/y?q"),
            (None, None, true, 443, "https://a/x/y?q"),
            (None, None, true, 8443, "https://a:8443/x/y?q"),
            (None, Some(80), false, 8080, "http://a/x/y?q"),
            (None, Some(8083), false, 80, "http://a:8083/x/y?q"),
            (None, Some(443), true, 8443, "https://a/x/y?q"),
            (None, Some(80), true, 443, "https://a:80/x/y?q"),
            (Some("http"), None, true, 443, "http://a/x/y?q"),
            (Some("http"), None, false, 8080, "http://a/x/y?q"),
            (Some("http"), Some(80), true, 443, "http://a/x/y?q"),
            (Some("http"), Some(443), false, 80, "http://a:443/x/y?q"),
            (Some("https"), None, false, 80, "https://a/x/y?q"),
            (Some("https"), None, false, 8080, "https://a/x/y?q"),
            (Some("https"), Some(443), false, 80, "https://a/x/y?q"),
            (Some("https"), Some(8443), false, 80, "https://a:8443/x/y?q"),
        ] {
            let given = location(&to(scheme, port), https, listener);
            assert_eq!(given, expected, "{scheme:?} {port:?} {https} {listener}");
        }
    }

    #[test]
    fn redirects_change_host_and_path_and_keep_the_query() {
        let redirect = |hostname: Option<&str>, path| Redirect {
            hostname: hostname.map(Arc::from),
            path,
            status: 301,
            ..to(None, None)
        };
        for (redirect, expected) in [
            (redirect(Some("b.example"), None), "http://b.example/x/y?q"),
            (redirect(None, Some(PathRewrite::Full("/new".into()))), "http://a/new?q"),
            (redirect(None, Some(PathRewrite::Prefix("/new/".into()))), "http://a/new/y?q"),
            (redirect(Some("b"), Some(PathRewrite::Prefix("/".into()))), "http://b/y?q"),
        ] {
            assert_eq!(location(&redirect, false, 80), expected);
        }
    }

    #[test]
    fn redirects_of_odd_requests_lead_nowhere_else() {
        let given = |authority, target| {
            redirect(&to(None, None), 0, &head(authority, target), 80).headers[0].1.clone()
        };
        assert_eq!(given("[::1]:80", "/"), "http://[::1]/");
        assert_eq!(given("a", "*"), "http://a/");
        assert_eq!(given("", "/x"), "/x");
        // Not the host `evil.example`.
        assert_eq!(given("", "//evil.example/"), "/evil.example/");
    }

    #[test]
    fn edits_go_set_add_remove() {
        let mut headers = Headers::new();
        headers.push(b"a", b"1");
        headers.push(b"a", b"2");
        headers.push(b"gone", b"x");
        let edit = HeaderEdit {
            set: vec![("a".into(), "3".into())],
            add: vec![("a".into(), "4".into())],
            remove: vec!["gone".into()],
        };
        edit_headers(&edit, &mut headers);
        assert_eq!(headers.get_all("a").collect::<Vec<_>>(), [b"3", b"4"]);
        assert!(headers.get("gone").is_none());
    }
}
