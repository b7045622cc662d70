//! The hash of a request, for balancers that choose by one. The same as Envoy's for the same policy, so that stickiness
//! survives a move from there.

use std::net::IpAddr;

use crate::head::RequestHead;
use crate::ir::{HashBy, HashKind};
use crate::split::hash::xxh64;

/// A request's hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestHash {
    /// `None`: the request has nothing of what is to be hashed.
    pub hash: Option<u64>,
    /// The value of a `Set-Cookie` field for a cookie that was missing.
    pub issue_cookie: Option<String>,
}

/// Hashes what is there, in order; each further hash is mixed into the one before it.
pub fn request_hash(
    by: &HashBy,
    head: &RequestHead,
    client: IpAddr,
    random: &mut dyn FnMut() -> u64,
) -> RequestHash {
    let mut out = RequestHash::default();
    for source in &by.sources {
        let hash = match &source.kind {
            HashKind::Header(name) => of_header(head, name),
            HashKind::Source => Some(xxh64(client.to_string().as_bytes(), 0)),
            HashKind::Query(name) => query(head, name).map(|value| xxh64(value.as_bytes(), 0)),
            HashKind::Cookie { name, ttl, path } => match head.cookie(name).filter(|value| !value.is_empty())
            {
                Some(value) => Some(xxh64(value, 0)),
                None => ttl.map(|ttl| {
                    let value = format!("{:016x}{:016x}", random(), random());
                    let age =
                        if ttl.is_zero() { String::new() } else { format!("; Max-Age={}", ttl.as_secs()) };
                    let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
                    out.issue_cookie = Some(format!("{name}={value}{age}{path}; HttpOnly"));
                    xxh64(value.as_bytes(), 0)
                }),
            },
        };
        if let Some(hash) = hash {
            out.hash = Some(out.hash.map_or(hash, |before| before.rotate_left(1) ^ hash));
            if source.terminal {
                break;
            }
        }
    }
    out
}

/// Several fields of the name count in whatever order they come.
fn of_header(head: &RequestHead, name: &str) -> Option<u64> {
    let mut values = head.headers.get_all(name);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(xxh64(first, 0)) };
    let mut all: Vec<&[u8]> = [first, second].into_iter().chain(values).collect();
    all.sort_unstable();
    Some(all.into_iter().fold(0, |seed, value| xxh64(value, seed)))
}

fn query<'h>(head: &'h RequestHead, name: &str) -> Option<&'h str> {
    head.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ir::HashSource;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 17));

    fn hash(kinds: &[(HashKind, bool)], fields: &[(&str, &str)], target: &str) -> RequestHash {
        let sources =
            kinds.iter().map(|(kind, terminal)| HashSource { kind: kind.clone(), terminal: *terminal });
        let by = HashBy { sources: sources.collect(), balance_factor: 0 };
        let mut head = RequestHead::default();
        head.set_target(target);
        for (name, value) in fields {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        request_hash(&by, &head, CLIENT, &mut || 7)
    }

    fn header(name: &str) -> HashKind {
        HashKind::Header(name.into())
    }

    fn cookie(ttl: Option<Duration>) -> HashKind {
        HashKind::Cookie { name: "user".into(), ttl, path: "/a".into() }
    }

    #[test]
    fn each_source() {
        let foo = xxh64(b"foo", 0);
        for (kind, fields, target, expected) in [
            (header("x-user"), &[("x-user", "foo")][..], "/", Some(foo)),
            (header("x-user"), &[], "/", None),
            (cookie(None), &[("cookie", "a=b; user=foo")], "/", Some(foo)),
            (cookie(None), &[("cookie", "user=")], "/", None),
            (HashKind::Query("q".into()), &[], "/?p=1&q=foo&q=bar", Some(foo)),
            (HashKind::Query("q".into()), &[], "/?qq=foo", None),
            (HashKind::Source, &[], "/", Some(xxh64(b"192.0.2.17", 0))),
        ] {
            assert_eq!(hash(&[(kind.clone(), false)], fields, target).hash, expected, "{kind:?} {fields:?}");
        }
    }

    #[test]
    fn values_of_one_header_count_in_any_order() {
        let of = |fields: &[(&str, &str)]| hash(&[(header("x"), false)], fields, "/").hash;
        assert_eq!(of(&[("x", "a"), ("x", "b")]), of(&[("x", "b"), ("x", "a")]));
        assert_eq!(of(&[("x", "b"), ("x", "a")]), Some(xxh64(b"b", xxh64(b"a", 0))));
        assert_ne!(of(&[("x", "a"), ("x", "b")]), of(&[("x", "a")]));
    }

    #[test]
    fn sources_are_mixed_until_a_terminal_one_is_there() {
        let (a, b) = (xxh64(b"1", 0), xxh64(b"2", 0));
        let both = [("a", "1"), ("b", "2")];
        let of = |terminal, fields| hash(&[(header("a"), terminal), (header("b"), false)], fields, "/").hash;
        assert_eq!(of(false, &both[..]), Some(a.rotate_left(1) ^ b));
        assert_eq!(of(true, &both[..]), Some(a));
        assert_eq!(of(true, &both[1..]), Some(b));
    }

    #[test]
    fn a_cookie_is_set_where_it_is_wanted_and_missing() {
        let set = hash(&[(cookie(Some(Duration::from_secs(9))), false)], &[], "/");
        let text = set.issue_cookie.unwrap();
        let value = "0000000000000007".repeat(2);
        assert_eq!(text, format!("user={value}; Max-Age=9; Path=/a; HttpOnly"));
        assert_eq!(set.hash, Some(xxh64(value.as_bytes(), 0)));
        let session = hash(&[(cookie(Some(Duration::ZERO)), false)], &[], "/").issue_cookie.unwrap();
        assert!(!session.contains("Max-Age"), "{session}");
        let there = hash(&[(cookie(Some(Duration::ZERO)), false)], &[("cookie", "user=x")], "/");
        assert_eq!(there.issue_cookie, None);
    }
}
