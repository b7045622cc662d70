use std::net::{IpAddr, SocketAddr};
use std::time::{Instant, SystemTime};

use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{ConnectionFacts, GuardKind};
use fieldgate_core::path::EscapedSlashes;
use fieldgate_core::{AddressSet, Method};

use super::*;

fn guard(rules: EdgeRules) -> Arc<dyn Guard> {
    let key = ObjectKey { kind: "EdgePolicy", namespace: "default".into(), name: "edge".into() };
    let guard = ir::Guard { key, kind: GuardKind::Edge(Box::new(rules.clone())) };
    ready(&Arc::new(guard), &rules)
}

fn request(target: &str) -> RequestHead {
    let mut head = RequestHead { authority: "shop.example:8080".into(), ..RequestHead::default() };
    // As the codecs do it.
    let (path, query) = target.split_once('?').map_or((target, String::new()), |(p, q)| (p, format!("?{q}")));
    let canonical = path::normalise(path).unwrap().into_owned();
    head.set_target(&format!("{canonical}{query}"));
    head.written_path = (canonical != path).then(|| path.into());
    head
}

/// Status, details, and the first header of a refusal.
type Refused = (u16, &'static str, Option<String>);

fn ask(guard: &dyn Guard, head: &mut RequestHead, client: &str, body: Option<u64>) -> Result<(), Refused> {
    let facts = ConnectionFacts {
        peer: IpAddr::from([10, 0, 0, 1]),
        client: client.parse().unwrap(),
        local: SocketAddr::from(([10, 0, 0, 2], 8080)),
        sni: None,
        identity: None,
    };
    let verdict = guard.begin(&mut Guarded {
        head,
        facts,
        rule: None,
        metadata: &mut Metadata::default(),
        response_headers: &mut Headers::new(),
        body_length: body,
        now: Instant::now(),
        wall: SystemTime::UNIX_EPOCH,
        random: &mut || 4,
    });
    match verdict {
        Verdict::Continue | Verdict::FailOpen => Ok(()),
        Verdict::Respond(response) => {
            Err((response.status, response.details, response.headers.first().map(|(_, v)| v.clone())))
        }
        other => unreachable!("edge rules ask nobody: {other:?}"),
    }
}

fn set(blocks: &[&str]) -> Arc<AddressSet> {
    let blocks: Vec<_> = blocks.iter().map(|b| b.parse().unwrap()).collect();
    Arc::new(AddressSet::new(&blocks))
}

#[test]
fn addresses() {
    let rules = EdgeRules {
        allow: Some(set(&["192.0.2.0/24", "2001:db8::/32"])),
        deny: set(&["192.0.2.7/32"]),
        ..EdgeRules::default()
    };
    let denied = Err((403, "edge_address_denied", None));
    let guard = guard(rules);
    for (client, expected) in [
        ("192.0.2.1", Ok(())),
        ("2001:db8::1", Ok(())),
        ("192.0.2.7", denied.clone()),
        ("198.51.100.1", denied.clone()),
        ("2001:db9::1", denied),
    ] {
        assert_eq!(ask(&*guard, &mut request("/"), client, Some(0)), expected, "{client}");
    }
}

#[test]
fn an_empty_list_lets_nobody_in() {
    let none = EdgeRules { allow: Some(Arc::default()), ..EdgeRules::default() };
    assert!(ask(&*guard(none), &mut request("/"), "192.0.2.1", Some(0)).is_err());
    assert_eq!(ask(&*guard(EdgeRules::default()), &mut request("/"), "192.0.2.1", Some(0)), Ok(()));
}

#[test]
fn sizes() {
    let rules = EdgeRules { max_body: Some(10), max_target: Some(8), ..EdgeRules::default() };
    let guard = guard(rules);
    assert_eq!((guard.follows(), guard.body_limit()), (true, Some(10)));
    let ask = |target: &str, body| ask(&*guard, &mut request(target), "192.0.2.1", body).map_err(|e| e.0);
    assert_eq!(ask("/1234?67", Some(10)), Ok(()));
    assert_eq!(ask("/1234?678", Some(0)), Err(414));
    assert_eq!(ask("/%61%61%61", Some(0)), Err(414), "as it was written");
    assert_eq!(ask("/", Some(11)), Err(413));
    assert_eq!(ask("/", None), Ok(()), "the server counts it");
}

#[test]
fn methods() {
    let guard = guard(EdgeRules { methods: vec!["GET".into(), "PURGE".into()], ..EdgeRules::default() });
    let ask = |method: &[u8]| {
        let mut head = request("/");
        head.method = Method::from_bytes(method);
        ask(&*guard, &mut head, "192.0.2.1", Some(0))
    };
    assert_eq!(ask(b"PURGE"), Ok(()));
    assert_eq!(ask(b"POST"), Err((405, "edge_method_not_allowed", Some("GET, PURGE".into()))));
}

#[test]
fn only_the_clients_own_fields_are_taken_off() {
    let names = ["x-mine", "content-type"].map(|n| StringMatch::Exact(n.into()));
    let others = [StringMatch::Prefix("x-trace-".into())];
    let names = names.into_iter().chain(others).collect();
    let guard = guard(EdgeRules { request_headers: Some(names), ..EdgeRules::default() });
    let mut head = request("/");
    let clients = ["x-mine", "x-other", "cookie", "content-type", "content-length", "te", "x-trace-id"];
    for name in clients.into_iter().chain(["grpc-encoding", "sec-websocket-key", "x-forwarded-for", "x-user"])
    {
        head.headers.push(name.as_bytes(), b"1");
    }
    let mark = head.headers.byte_len();
    head.headers.set("x-user", b"bob");
    guard.send(&mut head, mark);
    let left: Vec<_> =
        head.headers.iter().map(|(_, n, _)| std::str::from_utf8(n).unwrap().to_owned()).collect();
    let expected = ["x-mine", "content-type", "content-length", "te", "x-trace-id", "grpc-encoding"];
    let expected = expected.into_iter().chain(["sec-websocket-key", "x-forwarded-for", "x-user"]);
    assert_eq!(left, expected.collect::<Vec<_>>());
    assert_eq!(head.headers.get("x-user"), Some(&b"bob"[..]));
}

#[test]
fn responses_get_what_they_lack() {
    let rules = EdgeRules {
        response_headers: vec![("x-frame-options".into(), "DENY".into())],
        transport_security: Some("max-age=1".into()),
        ..EdgeRules::default()
    };
    let guard = guard(rules);
    let mut plain = Headers::new();
    plain.push(b"x-frame-options", b"SAMEORIGIN");
    guard.receive(false, &mut plain);
    assert_eq!(plain.len(), 1, "what the application says stays");
    let mut tls = Headers::new();
    guard.receive(true, &mut tls);
    assert_eq!(tls.get("x-frame-options"), Some(&b"DENY"[..]));
    assert_eq!(tls.get("strict-transport-security"), Some(&b"max-age=1"[..]));
}

#[test]
fn paths() {
    let of = |escaped_slashes, merge_slashes, as_written| {
        let options = PathOptions { escaped_slashes, merge_slashes, as_written, ..PathOptions::default() };
        guard(EdgeRules { paths: Some(options), ..EdgeRules::default() })
    };
    let ask = |guard: &Arc<dyn Guard>, target: &str| {
        let mut head = request(target);
        ask(&**guard, &mut head, "192.0.2.1", Some(0)).map(|()| head.target)
    };
    let unescape = of(EscapedSlashes::Unescape, true, false);
    assert_eq!(ask(&unescape, "/x/a%2fb/../c?q=%2f//"), Ok("/x/a/c?q=%2f//".into()));
    assert_eq!(ask(&unescape, "//a//b"), Ok("/a/b".into()));
    assert_eq!(ask(&of(EscapedSlashes::Keep, false, true), "/a/../%62?x"), Ok("/a/../%62?x".into()));
    let redirect = of(EscapedSlashes::Redirect, false, false);
    let to = |location: &str| Err((307, "path_normalization_redirect", Some(location.to_owned())));
    // Another host's, were it not for the name in front.
    assert_eq!(ask(&redirect, "/%2fevil.example/"), to("http://shop.example:8080//evil.example/"));
    let refused = Err((400, "path_normalization_failed", None));
    assert_eq!(ask(&of(EscapedSlashes::Reject, false, false), "/a%5cb"), refused);
}

#[test]
fn ports() {
    for (what, authority, expected) in [
        (StripPort::Matching, "a.example:8080", "a.example"),
        (StripPort::Matching, "a.example:81", "a.example:81"),
        (StripPort::Any, "[::1]:81", "[::1]"),
        (StripPort::No, "a.example:8080", "a.example:8080"),
    ] {
        let mut head = RequestHead { authority: authority.into(), ..request("/") };
        ask(&*guard(EdgeRules { strip_port: what, ..EdgeRules::default() }), &mut head, "::1", Some(0))
            .unwrap();
        assert_eq!(head.authority, expected);
    }
}
