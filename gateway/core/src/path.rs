//! The one place where a path is made canonical, before anything looks at it: routes, policies and the upstream must
//! all see the same path (RFC 3986 section 6.2.2; Envoy's `normalize_path`, `merge_slashes` and
//! `path_with_escaped_slashes_action`). How a request's target is told from other forms is the codecs' matter.

use std::borrow::Cow;

/// What becomes of paths beyond, or instead of, [`normalise`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// The path is left as the client wrote it, dot segments and all. For upstreams that sign or hash paths; policies on
    /// paths are no protection then.
    pub as_written: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What becomes of `%2F` and `%5C`.
    pub escaped_slashes: EscapedSlashes,
    /// The digits of escapes are put into upper case (RFC 3986 section 6.2.2.1); else they stay as they are, as in Envoy.
    pub upper_case_escapes: bool,
}

/// What becomes of a path with `%2F` or `%5C` in it (Envoy's `path_with_escaped_slashes_action`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// They stay.
    #[default]
    Keep,
    /// The request is refused with 400.
    Reject,
    /// They become slashes.
    Unescape,
    /// They become slashes, and the client is sent to the path that comes of it.
    Redirect,
}

/// What came of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request goes on with this path.
    Path(String),
    /// The client is to ask for this path.
    Redirect(String),
    /// The request is refused.
    Refused,
}

/// Canonical form of a path without its query, or `None` if it must be refused.
///
/// Backslashes become slashes, `%2E` and other escaped unreserved bytes are decoded, dot segments are removed. Escaped
/// slashes stay escaped and double slashes stay double, as in Istio's default. A malformed escape, `%00`, a fragment
/// or a path that does not begin with a slash is refused.
pub fn normalise(path: &str) -> Option<Cow<'_, str>> {
    if !path.starts_with('/') {
        return None;
    }
    let bytes = path.as_bytes();
    let dotted = bytes.windows(2).any(|w| w == b"/.");
    if !dotted && !bytes.iter().any(|b| matches!(b, b'%' | b'\\' | b'#')) {
        return Some(Cow::Borrowed(path));
    }
    Some(Cow::Owned(remove_dot_segments(&decode_unreserved(bytes, false)?)))
}

/// What these options make of a path as the client wrote it, its query taken off.
///
/// Slashes are unescaped first, then merged, then dot segments are removed: what is removed is what a reader of merged
/// slashes would remove.
pub fn with_options(written: &str, options: PathOptions) -> Outcome {
    if !written.starts_with('/') || normalise(written).is_none() {
        return Outcome::Refused;
    }
    let (unescaped, found) = unescape_slashes(written);
    let (path, redirected) = match options.escaped_slashes {
        EscapedSlashes::Keep => (Cow::Borrowed(written), false),
        EscapedSlashes::Reject if found => return Outcome::Refused,
        EscapedSlashes::Reject => (Cow::Borrowed(written), false),
        EscapedSlashes::Unescape => (unescaped, false),
        EscapedSlashes::Redirect => (unescaped, found),
    };
    let path = if options.as_written {
        path
    } else {
        match decode_unreserved(path.as_bytes(), options.upper_case_escapes) {
            Some(decoded) => Cow::Owned(decoded),
            None => return Outcome::Refused,
        }
    };
    let path = if options.merge_slashes { merge_slashes(&path) } else { path };
    let path = if options.as_written { path.into_owned() } else { remove_dot_segments(&path) };
    if redirected { Outcome::Redirect(path) } else { Outcome::Path(path) }
}

/// The target with each run of slashes in its path made one. The query stays as it is.
pub fn merge_slashes(target: &str) -> Cow<'_, str> {
    let (path, rest) = split_query(target);
    if !path.contains("//") {
        return Cow::Borrowed(target);
    }
    let mut out = String::with_capacity(target.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The target with `%2F` and `%5C` of its path decoded, and whether there were any. The query stays as it is.
pub fn unescape_slashes(target: &str) -> (Cow<'_, str>, bool) {
    let (path, rest) = split_query(target);
    let mut out = String::new();
    let mut left = path;
    while let Some(at) = left.find('%') {
        let escape = left.as_bytes().get(at + 1..at + 3);
        let decoded = match escape {
            Some(b"2f" | b"2F") => Some('/'),
            Some(b"5c" | b"5C") => Some('\\'),
            _ => None,
        };
        out.push_str(&left[..at]);
        out.push(decoded.unwrap_or('%'));
        left = &left[at + if decoded.is_some() { 3 } else { 1 }..];
    }
    out.push_str(left);
    if out.len() == path.len() {
        return (Cow::Borrowed(target), false);
    }
    out.push_str(rest);
    (Cow::Owned(out), true)
}

/// The path of a target, without query and fragment.
pub fn without_query(target: &str) -> &str {
    target.find(['?', '#']).map_or(target, |end| &target[..end])
}

fn split_query(target: &str) -> (&str, &str) {
    target.split_at(target.find('?').unwrap_or(target.len()))
}

fn decode_unreserved(bytes: &[u8], upper_case: bool) -> Option<String> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(b) = rest.next() {
        match b {
            b'#' => return None,
            b'\\' => out.push(b'/'),
            b'%' => {
                let (first, second) = (rest.next()?, rest.next()?);
                match hex(first)? * 16 + hex(second)? {
                    0 => return None,
                    byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                        out.push(byte);
                    }
                    _ if upper_case => {
                        out.extend([b'%', first.to_ascii_uppercase(), second.to_ascii_uppercase()]);
                    }
                    _ => out.extend([b'%', first, second]),
                }
            }
            _ => out.push(b),
        }
    }
    // Only ASCII was put in the place of ASCII, so this is text as before.
    String::from_utf8(out).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|d| d as u8)
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() { "/".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        let cases = [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a//b", Some("/a//b")),
            ("/a/./b", Some("/a/b")),
            ("/a/../b", Some("/b")),
            ("/a/b/..", Some("/a/")),
            ("/a/.", Some("/a/")),
            ("/..", Some("/")),
            ("/../../x", Some("/x")),
            ("/a/%2e%2E/b", Some("/b")),
            ("/a\\..\\b", Some("/b")),
            ("/%61%2f%7e", Some("/a%2f~")),
            ("/.well-known/x", Some("/.well-known/x")),
            ("/a/..b", Some("/a/..b")),
            ("/\u{e9}%2e", Some("/\u{e9}.")),
            ("/%", None),
            ("/%zz", None),
            ("/%00", None),
            ("/a#b", None),
            ("a", None),
            ("", None),
        ];
        for (given, expected) in cases {
            assert_eq!(normalise(given).as_deref(), expected, "{given}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing() {
        for path in ["/a/%2e%2e/b", "/%252e%252e/x", "/a/%2fb/../c", "/x/%25%32%65"] {
            let once = normalise(path).unwrap().into_owned();
            if !path.contains("%25") {
                assert_eq!(normalise(&once).as_deref(), Some(once.as_str()), "{path}");
            }
        }
    }

    #[test]
    fn options_are_applied_in_order() {
        use EscapedSlashes::{Keep, Redirect, Reject, Unescape};
        let of = |merge_slashes, escaped_slashes| PathOptions {
            merge_slashes,
            escaped_slashes,
            ..PathOptions::default()
        };
        let path = |text: &str| Outcome::Path(text.into());
        assert_eq!(with_options("/x/a%2fb/../c", of(false, Unescape)), path("/x/a/c"));
        assert_eq!(with_options("/x/a%2fb/../c", of(false, Keep)), path("/x/c"));
        assert_eq!(with_options("/a//../b", of(true, Keep)), path("/b"));
        assert_eq!(with_options("/a%5c..%5cb", of(false, Unescape)), path("/b"));
        assert_eq!(with_options("/a%252fb", of(true, Unescape)), path("/a%252fb"), "decoded once only");
        assert_eq!(with_options("/a%2fb", of(false, Reject)), Outcome::Refused);
        assert_eq!(with_options("/a%2f%2fb", of(true, Redirect)), Outcome::Redirect("/a/b".into()));
        assert_eq!(with_options("/a//b", of(true, Redirect)), path("/a/b"));
        let raw = PathOptions { as_written: true, ..PathOptions::default() };
        assert_eq!(with_options("/a/../%62", raw), path("/a/../%62"));
        assert_eq!(with_options("/%00", raw), Outcome::Refused);
    }

    proptest! {
        /// What one instance made canonical, the next leaves alone: nothing more comes out by asking again.
        #[test]
        fn what_is_merged_and_unescaped_stays(segments in prop::collection::vec("[a.%2fFcC5\\\\]{0,6}", 1..6)) {
            let options = PathOptions { merge_slashes: true, escaped_slashes: EscapedSlashes::Unescape, ..PathOptions::default() };
            let written = format!("/{}", segments.join("/"));
            if let Outcome::Path(path) = with_options(&written, options) {
                prop_assert!(!path.contains("//") && !path.contains('\\'), "{written} {path}");
                prop_assert!(!path.split('/').any(|s| s == "." || s == ".."), "{written} {path}");
            }
        }
    }
}
