//! `application/x-www-form-urlencoded` (WHATWG URL section 5), which queries, forms and OAuth speak.

use std::borrow::Cow;

/// Appends `name=value`.
pub fn push_pair(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() && !out.ends_with(['?', '&']) {
        out.push('&');
    }
    encode(out, name);
    out.push('=');
    encode(out, value);
}

/// Appends a text in its encoded form.
pub fn encode(out: &mut String, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

/// The only value of a parameter; `None` also if there are several, or one that is no text.
pub fn only<'q>(query: &'q str, name: &str) -> Option<Cow<'q, str>> {
    let mut values = query.split('&').filter_map(|pair| {
        let (own, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(own).as_deref() == Some(name)).then_some(value)
    });
    let value = values.next()?;
    if values.next().is_some() { None } else { decode(value) }
}

/// The query without the parameters of these names; the others as they stand.
pub fn without(query: &str, is_out: impl Fn(&str) -> bool) -> String {
    let name = |pair: &str| decode(pair.split_once('=').map_or(pair, |(name, _)| name)).map(Cow::into_owned);
    let kept = query.split('&').filter(|pair| !name(pair).is_some_and(|name| is_out(&name)));
    kept.collect::<Vec<_>>().join("&")
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                (digit(rest.next()?)? * 16 + digit(rest.next()?)?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters() {
        assert_eq!(only("a=1&b=x%20y+z&c", "b").as_deref(), Some("x y z"));
        assert_eq!(only("a=1&c", "c").as_deref(), Some(""));
        assert_eq!(only("%61=1", "a").as_deref(), Some("1"));
        assert_eq!(only("a=1&a=2", "a"), None, "which of the two would be a matter of taste");
        assert_eq!(only("a=%zz", "a"), None);
        assert_eq!(without("a=1&k%65y=2&c=%2F", |name| name == "key"), "a=1&c=%2F");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(name in "[a-z]{1,5}", value in "\\PC*") {
            let mut out = String::new();
            push_pair(&mut out, &name, &value);
            let read = only(&out, &name);
            prop_assert_eq!(read.as_deref(), Some(value.as_str()));
        }
    }
}
