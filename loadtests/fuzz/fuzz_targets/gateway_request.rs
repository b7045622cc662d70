//! What the gateway takes from a client, by HTTP/1 or HTTP/2, and writes to an HTTP/1 upstream is one unambiguous request:
//! its framing is the one that was taken, its path is canonical, and nothing of the client's connection is left in it.

#![no_main]

use fieldgate::worker::fuzzing::{
    ClientCert, Received, http2_request, prepare_request, request, stream, trailers, write_request,
};
use fieldgate_core::Method;
use fieldgate_fuzz::input::Input;
use fieldgate_fuzz::rfc9112::{Framing, Lines, framing, is_authority, is_token, request_line};
use fieldgate_wire::h1::{BodyKind, HeadLimits, parse_request};
use libfuzzer_sys::fuzz_target;

/// Of one connection, or the gateway's own word (RFC 9110 section 7.6.1, RFC 9113 section 8.2.2).
const STAYS: [&str; 6] =
    ["keep-alive", "proxy-connection", "te", "http2-settings", "proxy-authorization", "x-envoy-internal"];

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (kind, hops) = (input.byte(), u32::from(input.byte() % 3));
    let received = match kind % 4 {
        0 => from_stream(&mut input, kind & 4 > 0),
        1 => return check_trailers(input.0),
        _ => request(input.0, kind & 4 > 0).ok().flatten(),
    };
    if let Some(received) = received {
        check(received, hops);
    }
});

fn check(mut received: Received, hops: u32) {
    let head = &received.head;
    assert!(head.headers.get("host").is_none());
    assert_eq!(head.authority, head.authority.to_ascii_lowercase());
    assert!(head.authority.is_empty() || is_authority(head.authority.as_bytes()));
    let path = head.path().to_owned();
    match head.method {
        Method::Connect => assert!(head.target.is_empty()),
        _ => assert!(path.starts_with('/') || path == "*" && head.method == Method::Options),
    }
    assert!(path.split('/').all(|s| s != "." && s != "..") && !path.contains(['\\', '#', '?']));
    assert!(head.target.bytes().all(|b| b.is_ascii_graphic()) && !head.target.contains('#'));
    if head.method == Method::Connect {
        return;
    }
    prepare_request(&mut received.head, [192, 0, 2, 7].into(), hops, ClientCert::default(), || 7);
    let head = &received.head;
    assert!(head.headers.get_all("x-forwarded-for").last().is_some_and(|v| v.ends_with(b"192.0.2.7")));
    assert!(head.headers.get("x-request-id").is_some());
    let mut wire = Vec::new();
    write_request(&mut wire, head, received.body, received.upgrade.as_deref());
    check_wire(&wire, &received);
    if let Ok(request) = http2_request(head) {
        assert_eq!(request.method().as_str(), head.method.as_str());
        assert!(request.headers().keys().all(|n| !STAYS.contains(&n.as_str()) || n == "te"));
        assert!(
            !request.headers().contains_key("connection")
                && !request.headers().contains_key("transfer-encoding")
        );
    }
}

fn check_wire(wire: &[u8], received: &Received) {
    let text = String::from_utf8_lossy(wire);
    let sent = Lines::read(wire, false).unwrap_or_else(|| panic!("not a request: {text}"));
    assert_eq!(sent.len, wire.len(), "two requests: {text}");
    let (method, target, http10) = request_line(sent.start).expect("a request line");
    assert_eq!(
        (method, target, http10),
        (received.head.method.as_str().as_bytes(), received.head.target.as_bytes(), false)
    );
    let expected = match received.body {
        BodyKind::None => vec![Framing::Silent, Framing::Length(0)],
        BodyKind::Length(n) => vec![Framing::Length(n)],
        BodyKind::Chunked | BodyKind::UntilClose => vec![Framing::Chunked],
    };
    assert!(framing(&sent).is_some_and(|f| expected.contains(&f)), "{text}");
    assert_eq!(sent.all("host"), [received.head.authority.as_bytes()]);
    assert!(sent.all("cookie").len() <= 1 && STAYS.iter().all(|name| sent.all(name).is_empty()), "{text}");
    assert_eq!(sent.all("connection").len(), usize::from(received.upgrade.is_some()), "{text}");
    let again = parse_request(wire, HeadLimits { max_bytes: 2 * wire.len() }, |_, _| {});
    assert!(again.is_ok_and(|r| r.is_some_and(|r| r.keep_alive)) || sent.fields.len() > 128, "{text}");
}

/// A head as the `http` crate lets it through.
fn from_stream(input: &mut Input<'_>, ended: bool) -> Option<Received> {
    let mut request =
        http::Request::builder().method(input.line()).uri(input.line()).version(http::Version::HTTP_2);
    while !input.is_empty() {
        request = request.header(input.line(), input.line());
    }
    let (parts, ()) = request.body(()).ok()?.into_parts();
    stream(&parts, ended).ok()
}

fn check_trailers(lines: &[u8]) {
    let Ok(Some(trailers)) = trailers(lines) else { return };
    let mut wire = b"x\r\n".to_vec();
    for (_, name, value) in trailers.iter() {
        assert!(is_token(name));
        assert!(!matches!(
            name,
            b"content-length" | b"transfer-encoding" | b"host" | b"connection" | b"trailer"
        ));
        wire.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
    }
    wire.extend_from_slice(b"\r\n");
    let read = Lines::read(&wire, false).expect("fields");
    assert_eq!((read.len, read.fields.len()), (wire.len(), trailers.len()));
}
