//! Istio's string patterns over bytes: exact, prefix, suffix, presence, path templates.

use fieldgate_core::ir::StringMatch;

/// A prepared pattern.
#[derive(Debug)]
pub enum Text {
    /// Equal.
    Exact(Box<[u8]>),
    /// At the beginning.
    Prefix(Box<[u8]>),
    /// At the end.
    Suffix(Box<[u8]>),
    /// Anything that is there.
    Present,
    /// A path template.
    Template(Template),
}

/// How the pattern `*` is read. Istio makes a presence test of it for headers (and `:authority`, `:method`), which an
/// empty value passes, and the regular expression `.+` for paths and server names, which it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Star {
    /// There, even if empty.
    There,
    /// Not empty.
    NotEmpty,
}

/// Why a pattern cannot be evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

impl Text {
    /// Prepares a pattern.
    pub fn new(pattern: &StringMatch) -> Result<Self, Invalid> {
        Ok(match pattern {
            StringMatch::Exact(s) => Self::Exact(s.as_bytes().into()),
            StringMatch::Prefix(s) => Self::Prefix(s.as_bytes().into()),
            StringMatch::Suffix(s) => Self::Suffix(s.as_bytes().into()),
            StringMatch::Present => Self::Present,
            StringMatch::Template(s) => Self::Template(Template::new(s)?),
        })
    }

    /// Prepares a pattern for values that are in lower case.
    pub fn lower_case(pattern: &StringMatch) -> Result<Self, Invalid> {
        let mut text = Self::new(pattern)?;
        if let Self::Exact(s) | Self::Prefix(s) | Self::Suffix(s) = &mut text {
            s.make_ascii_lowercase();
        }
        Ok(text)
    }

    /// The text in the pattern, if that is all there is to it.
    pub fn literal(&self) -> &[u8] {
        match self {
            Self::Exact(s) | Self::Prefix(s) | Self::Suffix(s) => s,
            Self::Present | Self::Template(_) => &[],
        }
    }

    /// Whether [`Text::literal`] and the way it stands in a value are all there is to it.
    pub fn is_indexable(&self) -> bool {
        !matches!(self, Self::Present | Self::Template(_))
    }

    /// Whether a value that is there fits.
    pub fn matches(&self, value: &[u8], star: Star) -> bool {
        match self {
            Self::Exact(s) => value == &**s,
            Self::Prefix(s) => value.starts_with(s),
            Self::Suffix(s) => value.ends_with(s),
            Self::Present => star == Star::There || !value.is_empty(),
            Self::Template(template) => template.matches(value),
        }
    }
}

/// Prepares patterns.
pub fn texts(patterns: &[StringMatch]) -> Result<Vec<Text>, Invalid> {
    patterns.iter().map(Text::new).collect()
}

/// A path template as Envoy's `uri_template` reads it: `{*}` takes one or more characters of one segment, `{**}` any number
/// of characters and slashes (so `/a/{**}` takes `/a/` and not `/a`). Both take only the characters that RFC 3986
/// allows in a segment; a path with others does not match.
#[derive(Debug)]
pub struct Template {
    /// Literals that are each followed by an operator, all of them `{*}` before the last.
    before: Vec<Box<[u8]>>,
    /// The last operator is `{**}`.
    many: bool,
    /// What follows the last operator.
    tail: Box<[u8]>,
}

impl Template {
    /// Istio's rules: operators are whole segments, nothing but literals follows `{**}`, and these have no `*`.
    fn new(template: &str) -> Result<Self, Invalid> {
        let mut before = Vec::new();
        let mut many = false;
        let mut rest = template;
        if !rest.starts_with('/') {
            return Err(Invalid);
        }
        while let Some(open) = rest.find('{') {
            let (literal, operator) = rest.split_at(open);
            // After `{**}` there is no operator.
            if many
                || !literal.ends_with('/')
                || !before.is_empty() && !literal.starts_with('/')
                || !is_literal(literal)
            {
                return Err(Invalid);
            }
            before.push(literal.as_bytes().into());
            (many, rest) = match (operator.strip_prefix("{*}"), operator.strip_prefix("{**}")) {
                (Some(rest), _) => (false, rest),
                (_, Some(rest)) => (true, rest),
                _ => return Err(Invalid),
            };
        }
        let ends_a_segment = rest.is_empty() || rest.starts_with('/');
        if before.is_empty() || !ends_a_segment || !is_literal(rest) {
            return Err(Invalid);
        }
        Ok(Self { before, many, tail: rest.as_bytes().into() })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let mut rest = path;
        for (at, literal) in self.before.iter().enumerate() {
            let Some(after) = rest.strip_prefix(&**literal) else { return false };
            if at + 1 == self.before.len() {
                let Some(taken) = after.strip_suffix(&*self.tail) else { return false };
                return taken.iter().all(|b| is_segment_byte(*b) || self.many && *b == b'/')
                    && (self.many || !taken.is_empty());
            }
            // The next literal begins with `/`, so `{*}` takes all up to there.
            let end = after.iter().position(|b| *b == b'/').unwrap_or(after.len());
            if end == 0 || !after[..end].iter().all(|b| is_segment_byte(*b)) {
                return false;
            }
            rest = &after[end..];
        }
        false
    }
}

/// Segments of literal characters; empty ones do not occur except at the end.
fn is_literal(text: &str) -> bool {
    text.bytes().all(|b| is_segment_byte(b) && b != b'*' || b == b'/') && !text.contains("//")
}

/// RFC 3986 section 3.3 `pchar`.
fn is_segment_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;:@=".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<Template, Invalid> {
        Template::new(text)
    }

    fn check(text: &str, takes: &[&str], leaves: &[&str]) {
        let template = template(text).unwrap();
        for path in takes {
            assert!(template.matches(path.as_bytes()), "{text} takes {path}");
        }
        for path in leaves {
            assert!(!template.matches(path.as_bytes()), "{text} leaves {path}");
        }
    }

    /// As Envoy 1.40 was seen to decide.
    #[test]
    fn one_segment() {
        let takes = ["/a/b", "/a/b=c%20,d", "/a/b*"];
        let leaves = ["/a/", "/a", "/a/b/", "/a/b/c", "/a/\"", "/a/|", "/b/c", "/a/\u{e9}"];
        check("/a/{*}", &takes, &leaves);
        check("/{*}/b/{*}/d", &["/a/b/c/d"], &["/a/b//d", "/a/b/c/d/", "/a/x/c/d", "//b/c/d"]);
    }

    #[test]
    fn any_segments() {
        check("/a/{**}", &["/a/", "/a/b", "/a/b/c/", "/a/*"], &["/a", "/b", "/a/\""]);
        let takes = ["//path/template", "/x/path/template", "/x/y/path/template"];
        check("/{**}/path/template", &takes, &["/path/template"]);
        check("/{*}/{**}", &["/a/", "/a/b/c"], &["/a", "//b"]);
        check("/a/{**}/", &["/a//", "/a/b/"], &["/a/", "/a/b"]);
    }

    #[test]
    fn what_istio_refuses() {
        for text in [
            "",
            "a/{*}",
            "/a",
            "/a{*}",
            "/{**}/{*}",
            "/{**}/a/{**}",
            "/{x}",
            "/{*}{*}",
            "/{*}a",
            "/{*}a/b",
            "/a b/{*}",
            "/{*}a{*}",
            "/a//{*}",
            "/{*",
            "/*/{*}",
            "/{*}/a*",
        ] {
            assert!(template(text).is_err(), "{text}");
        }
    }
}
