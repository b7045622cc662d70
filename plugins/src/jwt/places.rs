//! Where tokens are looked for in a request, and how they are taken out of it, as Envoy does both; only that every token of
//! a place counts here, not just the first of a query or of cookies: an upstream may read another one than the gateway.

use std::borrow::Cow;

use fieldgate_core::ir::TokenPlace;
use fieldgate_core::{HeaderId, RequestHead};
use memchr::memmem;

/// Calls `each` with what stands in a place, tokens or not.
pub(super) fn find<E>(
    head: &RequestHead,
    place: &TokenPlace,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    match place {
        TokenPlace::Header(name, prefix) => {
            head.headers.get_all(name).filter_map(|value| in_header(value, prefix)).try_for_each(each)
        }
        TokenPlace::Param(name) => {
            let pairs = head.query().into_iter().flat_map(|query| query.split('&'));
            pairs.filter_map(|pair| in_param(pair, name)).try_for_each(|value| each(&value))
        }
        TokenPlace::Cookie(name) => {
            let fields = head.headers.get_all_id(HeaderId::Cookie);
            let pairs = fields.flat_map(|field| field.split(|byte| *byte == b';'));
            pairs.filter_map(|pair| in_cookie(pair, name)).try_for_each(each)
        }
    }
}

/// Takes everything out that [`find`] finds in a place, and what else the same field of the head has.
pub(super) fn strip(head: &mut RequestHead, place: &TokenPlace) {
    match place {
        TokenPlace::Header(name, _) => head.headers.remove(name),
        TokenPlace::Param(name) => {
            let Some(query) = head.query() else { return };
            let kept: Vec<&str> = query.split('&').filter(|pair| in_param(pair, name).is_none()).collect();
            let mark = if kept.is_empty() { "" } else { "?" };
            let target = format!("{}{mark}{}", head.path(), kept.join("&"));
            head.set_target(&target);
        }
        TokenPlace::Cookie(name) => {
            let all = head.headers.get_all_id(HeaderId::Cookie);
            let pairs = all.flat_map(|field| field.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
            let kept: Vec<&[u8]> =
                pairs.filter(|pair| !pair.is_empty() && in_cookie(pair, name).is_none()).collect();
            let kept = kept.join(&b"; "[..]);
            head.headers.remove_id(HeaderId::Cookie);
            if !kept.is_empty() {
                head.headers.push_known(HeaderId::Cookie, "cookie", &kept);
            }
        }
    }
}

/// What follows the prefix, wherever that stands, from the first byte on that a token may have. Where none follows, it is
/// the whole value, which is no token and is refused.
fn in_header<'v>(value: &'v [u8], prefix: &str) -> Option<&'v [u8]> {
    if prefix.is_empty() {
        return Some(value);
    }
    let after = memmem::find(value, prefix.as_bytes())? + prefix.len();
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let begin = value[after..].iter().position(of_token).map_or(0, |at| after + at);
    Some(&value[begin..])
}

fn in_param<'p>(pair: &'p str, name: &str) -> Option<Cow<'p, [u8]>> {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    (*decoded(key) == *name.as_bytes()).then(|| decoded(value))
}

fn in_cookie<'c>(pair: &'c [u8], name: &str) -> Option<&'c [u8]> {
    let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?;
    let value = value.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// `%41` is `A`; what is no valid escape stands for itself.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_target(target);
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        head
    }

    fn found(head: &RequestHead, place: &TokenPlace) -> Vec<String> {
        let mut found = Vec::new();
        let all = find(head, place, |token| {
            found.push(String::from_utf8_lossy(token).into_owned());
            Ok::<_, ()>(())
        });
        all.expect("nothing stops it");
        found
    }

    #[test]
    fn headers_are_searched_for_the_prefix() {
        let bearer = TokenPlace::Header("authorization".into(), "Bearer ".into());
        for (value, expected) in [
            ("Bearer a.b.c", Some("a.b.c")),
            ("Bearer   a.b.c", Some("a.b.c")),
            ("Basic Bearer a.b.c", Some("a.b.c")),
            ("Bearer a.b.c, more", Some("a.b.c, more")),
            ("Bearer ++", Some("Bearer ++")),
            ("bearer a.b.c", None),
            ("Bearer", None),
            ("Basic YTpi", None),
        ] {
            let found = found(&head("/", &[("authorization", value)]), &bearer);
            assert_eq!(found.first().map(String::as_str), expected, "{value}");
        }
        let plain = TokenPlace::Header("x-token".into(), "".into());
        let two = [("x-token", "a.b.c"), ("x-other", "y"), ("x-token", "d.e.f")];
        assert_eq!(found(&head("/", &two), &plain), ["a.b.c", "d.e.f"]);
        let mut stripped = head("/", &two);
        strip(&mut stripped, &plain);
        assert_eq!(stripped.headers.len(), 1);
    }

    #[test]
    fn parameters_are_decoded_found_and_taken_out() {
        let place = TokenPlace::Param("access_token".into());
        let check = |target: &str, expected: &[&str], rest: &str| {
            let mut head = head(target, &[]);
            assert_eq!(found(&head, &place), expected, "{target}");
            strip(&mut head, &place);
            assert_eq!(head.target, rest, "{target}");
        };
        check("/p?a=1&access_token=x.y.z&b=2", &["x.y.z"], "/p?a=1&b=2");
        check("/p?access_token=x%2Ey.z", &["x.y.z"], "/p");
        check("/p?access%5ftoken=x&access_token=y", &["x", "y"], "/p");
        check("/p?access_token", &[""], "/p");
        check("/p?a=%zz", &[], "/p?a=%zz");
        check("/p", &[], "/p");
    }

    #[test]
    fn cookies_are_found_and_taken_out() {
        let place = TokenPlace::Cookie("jwt".into());
        let mut head = head("/", &[("cookie", "a=1; jwt=x.y.z;b=2"), ("cookie", "jwt=\"u.v.w\"")]);
        assert_eq!(found(&head, &place), ["x.y.z", "u.v.w"]);
        strip(&mut head, &place);
        assert_eq!(head.headers.get("cookie"), Some(&b"a=1; b=2"[..]));
        assert_eq!(found(&head, &TokenPlace::Cookie("b".into())), ["2"]);
        strip(&mut head, &TokenPlace::Cookie("a".into()));
        strip(&mut head, &TokenPlace::Cookie("b".into()));
        assert_eq!(head.headers.get("cookie"), None);
    }
}
