//! What filters do to heads: pure functions, called in the order of the rule.

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
/// The path as the client sent it goes into `x-envoy-original-path`, as Envoy does it.
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
        None => Cow::Borrowed(head.target.as_str()),
    };
    let location = if port == own_port {
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

fn rewritten(rewrite: &PathRewrite, prefix_len: usize, head: &RequestHead) -> String {
    let query = &head.target[head.path_len..];
    match rewrite {
        PathRewrite::Full(path) => format!("{path}{query}"),
        PathRewrite::Prefix(prefix) => {
            let rest = head.path().get(prefix_len..).unwrap_or_default();
            let (prefix, rest) = (prefix.trim_end_matches('/'), rest.trim_start_matches('/'));
            match (rest.is_empty(), prefix.is_empty()) {
                (true, true) => format!("/{query}"),
                (true, false) if head.path().ends_with('/') && head.path_len > prefix_len => {
                    format!("{prefix}/{query}")
                }
                (true, false) => format!("{prefix}{query}"),
                (false, _) => format!("{prefix}/{rest}{query}"),
            }
        }
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
        // The examples of Gateway API's HTTPPathModifier.replacePrefixMatch.
        for (target, matched, to, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo?a=b", "/foo", "/", "/?a=b"),
            ("/foo/bar?a=b", "/foo", "/x", "/x/bar?a=b"),
            ("/a/b", "", "/x", "/x/a/b"),
        ] {
            let mut h = head("a", target);
            let path = Some(PathRewrite::Prefix(to.into()));
            rewrite(&Rewrite { hostname: None, path }, matched.len(), &mut h);
            assert_eq!(h.target, expected, "{target} {matched} -> {to:?}");
            assert_eq!(h.headers.get("x-envoy-original-path"), Some(target.as_bytes()));
        }
    }

    #[test]
    fn redirects_name_a_port_only_where_it_says_something() {
        let r = |scheme: Option<&str>, port| Redirect {
            scheme: scheme.map(Arc::from),
            hostname: None,
            path: None,
            port,
            status: 302,
        };
        for (redirect_to, listener, expected) in [
            (r(Some("https"), None), 80, "https://a/x?q"),
            (r(None, None), 80, "http://a/x?q"),
            (r(None, None), 8080, "http://a:8080/x?q"),
            (r(None, Some(8083)), 80, "http://a:8083/x?q"),
            (r(Some("https"), Some(443)), 80, "https://a/x?q"),
            (r(Some("http"), Some(443)), 80, "http://a:443/x?q"),
        ] {
            let location = redirect(&redirect_to, 0, &head("a:9", "/x?q"), listener).headers[0].1.clone();
            assert_eq!(location, expected);
        }
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
