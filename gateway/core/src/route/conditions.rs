//! Whether a request fits a match, and if not, what is missing.
//!
//! One walk serves lookups and explanations, so that they cannot disagree.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::head::RequestHead;
use crate::ir::{Match, PathMatch, ValueMatch};

/// Bytes that a compiled regular expression may take, and those of its lazy automaton.
const REGEX_SIZE: usize = 256 * 1024;

/// A match, ready to be asked.
#[derive(Debug)]
pub(super) struct Conditions {
    pub path: Path,
    /// Most matches have none.
    rest: Option<Box<Rest>>,
}

#[derive(Debug)]
pub(super) enum Path {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Box<(Arc<str>, Regex)>),
}

#[derive(Debug)]
struct Rest {
    method: Option<Arc<str>>,
    headers: Box<[Named]>,
    query: Box<[Named]>,
}

type Named = (Arc<str>, Value);

/// A field of the match and what is wrong with it.
type Bad = (String, String);

#[derive(Debug)]
pub(super) enum Value {
    Exact(Arc<str>),
    Regex(Box<Regex>),
}

/// The first condition that does not hold, and what there is instead.
pub(super) enum Unmet<'e, 'h> {
    Path(&'e Path, &'h str),
    Method(&'e str, &'h str),
    Header(&'e str, &'e Value, Option<Cow<'h, [u8]>>),
    Query(&'e str, &'e Value, Option<&'h str>),
}

impl Conditions {
    /// Compiles a match.
    pub fn new(matched: &Match) -> Result<Self, Bad> {
        let path = match &matched.path {
            PathMatch::Exact(p) => Path::Exact(p.clone()),
            PathMatch::Prefix(p) => Path::Prefix(p.clone()),
            PathMatch::Regex(p) => {
                let regex = whole(p).map_err(|e| ("path.value".to_owned(), e))?;
                Path::Regex(Box::new((p.clone(), regex)))
            }
        };
        let rest = Rest {
            method: matched.method.clone(),
            headers: values("headers", &matched.headers)?,
            query: values("queryParams", &matched.query)?,
        };
        let none = rest.method.is_none() && rest.headers.is_empty() && rest.query.is_empty();
        Ok(Self { path, rest: (!none).then(|| Box::new(rest)) })
    }

    /// Whether all but the path holds.
    pub fn rest_fits(&self, head: &RequestHead) -> bool {
        self.rest.as_ref().is_none_or(|rest| rest.unmet(head).is_none())
    }

    /// The first condition that does not hold.
    pub fn unmet<'e, 'h>(&'e self, head: &'h RequestHead) -> Option<Unmet<'e, 'h>> {
        if !self.path.fits(head.path()) {
            return Some(Unmet::Path(&self.path, head.path()));
        }
        self.rest.as_ref()?.unmet(head)
    }
}

impl Path {
    pub fn fits(&self, path: &str) -> bool {
        match self {
            Self::Exact(p) => **p == *path,
            Self::Prefix(p) => prefix_fits(p, path),
            Self::Regex(r) => r.1.is_match(path),
        }
    }

    /// What is written in the configuration.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(p) | Self::Prefix(p) => p,
            Self::Regex(r) => &r.0,
        }
    }
}

impl Rest {
    fn unmet<'e, 'h>(&'e self, head: &'h RequestHead) -> Option<Unmet<'e, 'h>> {
        if let Some(wanted) = &self.method
            && **wanted != *head.method.as_str()
        {
            return Some(Unmet::Method(wanted, head.method.as_str()));
        }
        for (name, wanted) in &self.headers {
            let got = header(head, name);
            if !got.as_deref().is_some_and(|v| wanted.fits(v)) {
                return Some(Unmet::Header(name, wanted, got));
            }
        }
        for (name, wanted) in &self.query {
            let got = head.query().and_then(|q| parameter(q, name));
            if !got.is_some_and(|v| wanted.fits(v.as_bytes())) {
                return Some(Unmet::Query(name, wanted, got));
            }
        }
        None
    }
}

impl Value {
    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(v) => v.as_bytes() == value,
            Self::Regex(r) => std::str::from_utf8(value).is_ok_and(|v| r.is_match(v)),
        }
    }
}

/// By path element: `/a` takes `/a` and `/a/b`, not `/ab`.
fn prefix_fits(prefix: &str, path: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Several fields of one name count as one, joined with `,` (RFC 9110 section 5.3; Envoy does the same).
fn header<'h>(head: &'h RequestHead, name: &str) -> Option<Cow<'h, [u8]>> {
    if name == "host" {
        return Some(Cow::Borrowed(head.authority.as_bytes())).filter(|a| !a.is_empty());
    }
    let mut fields = head.headers.iter().filter(|(_, n, _)| *n == name.as_bytes()).map(|(_, _, v)| v);
    let mut value = Cow::Borrowed(fields.next()?);
    for more in fields {
        let joined = value.to_mut();
        joined.push(b',');
        joined.extend_from_slice(more);
    }
    Some(value)
}

/// The first value of a parameter, raw, as Envoy does it: neither names nor values are percent-decoded.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (n, v) = pair.split_once('=').unwrap_or((pair, ""));
        (n == name).then_some(v)
    })
}

fn values(field: &str, list: &[(Arc<str>, ValueMatch)]) -> Result<Box<[Named]>, Bad> {
    list.iter()
        .enumerate()
        .map(|(at, (name, value))| {
            let value = match value {
                ValueMatch::Exact(v) => Value::Exact(v.clone()),
                ValueMatch::Regex(p) => {
                    let regex = whole(p).map_err(|e| (format!("{field}[{at}].value"), e))?;
                    Value::Regex(Box::new(regex))
                }
            };
            Ok((name.clone(), value))
        })
        .collect()
}

/// A regular expression that must match the whole text.
pub(super) fn whole(pattern: &str) -> Result<Regex, String> {
    // Alone first: `a)|(b` is none, though it would be one with the group around it.
    build(pattern)?;
    // In verbose mode a comment at the end would hide the closing bracket; there, a line's end means nothing.
    build(&format!("^(?:{pattern})$")).or_else(|e| build(&format!("^(?:{pattern}\n)$")).map_err(|_| e))
}

fn build(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern).size_limit(REGEX_SIZE).dfa_size_limit(REGEX_SIZE).build().map_err(
        |e| match e {
            regex::Error::CompiledTooBig(limit) => {
                format!(
                    "the regular expression takes more than {limit} bytes when compiled; repeat less in it"
                )
            }
            e => format!("not a regular expression: {e}"),
        },
    )
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::Exact(_) => "path =",
            Self::Prefix(_) => "path prefix",
            Self::Regex(_) => "path ~",
        };
        write!(f, "{kind} {}", self.text())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(v) => write!(f, "`{v}`"),
            // Without the group that was put around it.
            Self::Regex(r) => {
                let text = r.as_str();
                write!(
                    f,
                    "a match of `{}`",
                    text.get(4..text.len() - 2).unwrap_or(text).trim_end_matches('\n')
                )
            }
        }
    }
}

impl fmt::Display for Unmet<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let got = |value: Option<&[u8]>| {
            value.map_or_else(|| "not there".to_owned(), |v| format!("`{}`", String::from_utf8_lossy(v)))
        };
        match self {
            Self::Path(wanted, path) => write!(f, "{wanted} does not take {path}"),
            Self::Method(wanted, method) => write!(f, "method: wants {wanted}, is {method}"),
            Self::Header(name, wanted, value) => {
                write!(f, "header {name}: wants {wanted}, is {}", got(value.as_deref()))
            }
            Self::Query(name, wanted, value) => {
                write!(f, "query parameter {name}: wants {wanted}, is {}", got(value.map(str::as_bytes)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use thin_vec::thin_vec;

    use super::*;
    use crate::head::Method;

    fn head(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead { authority: "shop.example:8080".into(), ..RequestHead::default() };
        head.set_target(target);
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn exact(value: &str) -> ValueMatch {
        ValueMatch::Exact(value.into())
    }

    fn regex(value: &str) -> ValueMatch {
        ValueMatch::Regex(value.into())
    }

    fn unmet(matched: &Match, head: &RequestHead) -> Option<String> {
        Conditions::new(matched).unwrap().unmet(head).map(|u| u.to_string())
    }

    #[test]
    fn paths() {
        for (path, takes, leaves) in [
            (PathMatch::Prefix("/".into()), vec!["/", "/a", "//"], vec![]),
            (
                PathMatch::Prefix("/a".into()),
                vec!["/a", "/a/", "/a/b", "/a//b", "/a?q"],
                vec!["/", "/ab", "/A"],
            ),
            (PathMatch::Exact("/a".into()), vec!["/a", "/a?q"], vec!["/a/", "/a/b", "/"]),
            (PathMatch::Regex("/a|/bc*".into()), vec!["/a", "/b", "/bcc"], vec!["/ax", "/x/b", "/a/b"]),
            // Verbose, with a comment at the end.
            (PathMatch::Regex("(?x) /a+ # all of it".into()), vec!["/aa"], vec!["/aab"]),
            // A line's end is not the text's end.
            (PathMatch::Regex("(?m)/a$".into()), vec!["/a"], vec!["/ab"]),
        ] {
            let conditions = Conditions::new(&Match { path, ..Match::default() }).unwrap();
            for target in takes {
                assert!(conditions.unmet(&head(target, &[])).is_none(), "{} {target}", conditions.path);
            }
            for target in leaves {
                assert!(conditions.unmet(&head(target, &[])).is_some(), "{} {target}", conditions.path);
            }
        }
    }

    #[test]
    fn headers_of_one_name_are_joined() {
        let m = |value| Match { headers: thin_vec![("x-a".into(), value)], ..Match::default() };
        let twice = head("/", &[("x-a", "1"), ("x-b", "0"), ("X-A", "2")]);
        assert_eq!(unmet(&m(exact("1,2")), &twice), None);
        assert_eq!(unmet(&m(regex("[0-9],2")), &twice), None);
        assert_eq!(unmet(&m(exact("1")), &twice).unwrap(), "header x-a: wants `1`, is `1,2`");
        assert_eq!(
            unmet(&m(regex("1")), &head("/", &[])).unwrap(),
            "header x-a: wants a match of `1`, is not there"
        );
    }

    #[test]
    fn host_is_a_header_too() {
        let m = Match { headers: thin_vec![("host".into(), exact("shop.example:8080"))], ..Match::default() };
        assert_eq!(unmet(&m, &head("/", &[])), None);
    }

    #[test]
    fn query_parameters_are_raw_and_the_first_counts() {
        let m = |name: &str, value| Match { query: thin_vec![(name.into(), value)], ..Match::default() };
        let h = head("/?a=1&a=2&b&c=%20&d==", &[]);
        for (name, value) in [("a", "1"), ("b", ""), ("c", "%20"), ("d", "=")] {
            assert_eq!(unmet(&m(name, exact(value)), &h), None, "{name}");
        }
        assert_eq!(unmet(&m("c", exact(" ")), &h).unwrap(), "query parameter c: wants ` `, is `%20`");
        assert_eq!(unmet(&m("e", exact("")), &h).unwrap(), "query parameter e: wants ``, is not there");
    }

    #[test]
    fn methods_are_told_apart_by_case() {
        let m = Match { method: Some("POST".into()), ..Match::default() };
        let mut h = head("/", &[]);
        assert_eq!(unmet(&m, &h).unwrap(), "method: wants POST, is GET");
        h.method = Method::from_bytes(b"POST");
        assert_eq!(unmet(&m, &h), None);
        h.method = Method::from_bytes(b"post");
        assert!(unmet(&m, &h).is_some());
    }

    #[test]
    fn a_bad_expression_is_told_by_field() {
        for (pattern, says) in [
            ("a)|(b", "not a regular expression"),
            ("(", "not a regular expression"),
            (r"(\w{500}){500}", "takes more than"),
        ] {
            let m = Match {
                headers: thin_vec![("x".into(), exact("")), ("y".into(), regex(pattern))],
                ..Match::default()
            };
            let (field, message) = Conditions::new(&m).unwrap_err();
            assert_eq!(field, "headers[1].value");
            assert!(message.contains(says), "{message}");
        }
    }
}
