//! Reads `x-forwarded-client-cert`. Strict: what could be read in two ways is not read at all.

use std::fmt;

/// Bytes that a field may have. Certificates with their chains fit in; headers have bounds of their own before.
const MOST_BYTES: usize = 256 * 1024;
/// Elements: proxies on the way.
const MOST_ELEMENTS: usize = 64;
/// Pairs in an element.
const MOST_PAIRS: usize = 256;

/// What one proxy says of its client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pairs: Vec<(Box<str>, Box<str>)>,
}

impl Element {
    /// The first value of a key, whatever its case.
    pub fn first(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| &**value)
    }

    /// All values of a key, in their order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| &**value)
    }

    /// Keys and values as written.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(key, value)| (&**key, &**value))
    }
}

/// Why a field cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XfccError {
    /// More bytes, elements or pairs than are read.
    TooLong,
    /// A byte that has no place in a field.
    BadByte,
    /// An element or a pair is empty.
    Empty,
    /// A pair has no `=`, or no key.
    NoKey,
    /// A quoted value has no end, or something after it.
    BadQuotes,
}

impl fmt::Display for XfccError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "too long",
            Self::BadByte => "a byte that has no place here",
            Self::Empty => "an empty element or pair",
            Self::NoKey => "a pair without a key",
            Self::BadQuotes => "quotes that do not end, or not where the value does",
        })
    }
}

impl std::error::Error for XfccError {}

/// The elements of a field, that of the first proxy first; none of an empty field.
pub fn parse(field: &[u8]) -> Result<Vec<Element>, XfccError> {
    if field.len() > MOST_BYTES {
        return Err(XfccError::TooLong);
    }
    let text = std::str::from_utf8(field).map_err(|_| XfccError::BadByte)?;
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err(XfccError::BadByte);
    }
    let mut rest = text.trim_matches(' ');
    let mut elements = Vec::new();
    if rest.is_empty() {
        return Ok(elements);
    }
    let mut element = Element::default();
    loop {
        let (key, value, after) = pair(rest)?;
        if element.pairs.len() == MOST_PAIRS {
            return Err(XfccError::TooLong);
        }
        element.pairs.push((key.into(), value.into()));
        let ends = !after.starts_with(';');
        if ends {
            if elements.len() == MOST_ELEMENTS {
                return Err(XfccError::TooLong);
            }
            elements.push(std::mem::take(&mut element));
        }
        if after.is_empty() {
            return Ok(elements);
        }
        rest = after[1..].trim_start_matches(' ');
    }
}

/// Key, value, and what follows: nothing, or something that begins with a separator.
fn pair(text: &str) -> Result<(&str, String, &str), XfccError> {
    let end = text.find(['=', ',', ';', '"']).unwrap_or(text.len());
    let key = &text[..end];
    if key.is_empty() && !text[end..].starts_with('=') {
        return Err(XfccError::Empty);
    }
    let named = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let Some(rest) = text[end..].strip_prefix('=').filter(|_| named) else { return Err(XfccError::NoKey) };
    if let Some(quoted) = rest.strip_prefix('"') {
        let (value, after) = unquote(quoted)?;
        return Ok((key, value, after));
    }
    let end = rest.find([',', ';']).unwrap_or(rest.len());
    let value = rest[..end].trim_end_matches(' ');
    if value.contains('"') {
        return Err(XfccError::BadQuotes);
    }
    Ok((key, value.to_owned(), &rest[end..]))
}

/// A value up to its closing quote, and what follows. A backslash keeps the character after it from ending the value; it goes
/// away only where that is a quote, for in a distinguished name it means something.
fn unquote(text: &str) -> Result<(String, &str), XfccError> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => {
                let after = text[at + 1..].trim_start_matches(' ');
                let ends = after.is_empty() || after.starts_with([',', ';']);
                return if ends { Ok((value, after)) } else { Err(XfccError::BadQuotes) };
            }
            '\\' => match chars.next() {
                Some((_, '"')) => value.push('"'),
                Some((_, other)) => value.extend(['\\', other]),
                None => return Err(XfccError::BadQuotes),
            },
            other => value.push(other),
        }
    }
    Err(XfccError::BadQuotes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_pairs_and_quotes() {
        let read = parse(
            b"By=http://frontend.lyft.com;Hash=468e;Subject=\"/C=US/OU=Lyft; x,y/CN=\\\"q\\\"\";URI=http://testclient, \
              By=b ; Hash=9; URI=\"a=b\"",
        )
        .unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].first("subject"), Some("/C=US/OU=Lyft; x,y/CN=\"q\""));
        assert_eq!(read[0].first("URI"), Some("http://testclient"));
        assert_eq!(read[1].pairs().collect::<Vec<_>>(), [("By", "b"), ("Hash", "9"), ("URI", "a=b")]);
        assert_eq!(parse(b""), Ok(vec![]));
        assert_eq!(parse(b"URI=;DNS=a").unwrap()[0].first("uri"), Some(""));
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for (field, error) in [
            (&b"By"[..], XfccError::NoKey),
            (b"=a", XfccError::NoKey),
            (b"B y=a", XfccError::NoKey),
            (b"By=a;", XfccError::Empty),
            (b"By=a,", XfccError::Empty),
            (b",By=a", XfccError::Empty),
            (b"By=a;;Hash=b", XfccError::Empty),
            (b"By=\"a", XfccError::BadQuotes),
            (b"By=\"a\\", XfccError::BadQuotes),
            (b"By=\"a\"b", XfccError::BadQuotes),
            (b"By=a\"b", XfccError::BadQuotes),
            (b"By=a\r\nx: y", XfccError::BadByte),
            (b"By=\xff", XfccError::BadByte),
        ] {
            assert_eq!(parse(field), Err(error), "{}", String::from_utf8_lossy(field));
        }
        let many = vec!["By=a"; MOST_ELEMENTS + 1].join(",");
        assert_eq!(parse(many.as_bytes()), Err(XfccError::TooLong));
        let many = vec!["By=a"; MOST_PAIRS + 1].join(";");
        assert_eq!(parse(many.as_bytes()), Err(XfccError::TooLong));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_every_pair_has_a_key(field in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(elements) = parse(&field) {
                prop_assert!(elements.iter().flat_map(Element::pairs).all(|(key, _)| !key.is_empty()));
            }
        }

        #[test]
        fn nor_with_what_looks_like_one(field in "([A-Za-z]{0,2}=?(\"?[a-z\\\\\" ]{0,4}\"?)?[,;]?){0,6}") {
            let _ = parse(field.as_bytes());
        }
    }
}
