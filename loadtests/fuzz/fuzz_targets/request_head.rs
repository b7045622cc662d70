//! A request head is accepted if RFC 9112 and the gateway's own promises allow it, and only then; in whatever pieces it
//! arrives; and what was read, written down again, reads the same.

#![no_main]

use fieldgate_fuzz::input::cuts;
use fieldgate_fuzz::rfc9112::{Framing, Lines, framing, is_authority, request_line};
use fieldgate_wire::h1::{BodyKind, HeadLimits, MAX_FIELDS, Malformed, ParsedRequest, parse_request};
use libfuzzer_sys::fuzz_target;

type Fields<'b> = Vec<(&'b [u8], &'b [u8])>;

fn parse(input: &[u8], max_bytes: usize) -> Result<Option<(ParsedRequest<'_>, Fields<'_>)>, Malformed> {
    let mut fields = Vec::new();
    let parsed = parse_request(input, HeadLimits { max_bytes }, |name, value| fields.push((name, value)))?;
    Ok(parsed.map(|parsed| (parsed, fields)))
}

fuzz_target!(|input: &[u8]| {
    let max = HeadLimits::default().max_bytes;
    let parsed = parse(input, max);
    let Ok(Some((request, fields))) = &parsed else {
        if let Some(head) = allowed(input) {
            panic!("refused as {:?}: {head:?}", parsed.err());
        }
        return;
    };
    let head = allowed(input).expect("what is accepted is allowed");
    let (method, target, http10) = request_line(head.start).expect("a request line");
    assert_eq!(
        (request.method.as_bytes(), request.target.as_bytes(), request.http10),
        (method, target, http10)
    );
    assert_eq!((request.len, fields), (head.len, &head.fields));
    assert_eq!(request.host.map(str::as_bytes), head.all("host").first().copied());
    assert_eq!(Some(request.body), body(&head));
    let (close, keep) = (head.lists("connection", "close"), head.lists("connection", "keep-alive"));
    assert_eq!(request.keep_alive, !close && (keep || !http10));
    let upgrade = !head.all("upgrade").is_empty() && head.lists("connection", "upgrade");
    assert_eq!(request.upgrade, upgrade && !http10);
    if let [expect] = head.all("expect")[..] {
        assert_eq!(request.expects_continue, expect.eq_ignore_ascii_case(b"100-continue") && !http10);
    }
    in_pieces(input, request.len);
    written_again(request, fields);
});

/// The head, if a strict reading allows it.
fn allowed(input: &[u8]) -> Option<Lines<'_>> {
    let head = Lines::read(input, true)?;
    let (_, _, http10) = request_line(head.start)?;
    let host = match head.all("host")[..] {
        [] => http10,
        [host] => host.is_empty() || is_authority(host),
        _ => false,
    };
    let coded = framing(&head)? == Framing::Chunked;
    let bounded = head.fields.len() <= MAX_FIELDS && head.len <= HeadLimits::default().max_bytes;
    (host && !(http10 && coded) && bounded).then_some(head)
}

fn body(head: &Lines<'_>) -> Option<BodyKind> {
    Some(match framing(head)? {
        Framing::Silent | Framing::Length(0) => BodyKind::None,
        Framing::Length(n) => BodyKind::Length(n),
        Framing::Chunked => BodyKind::Chunked,
    })
}

/// No beginning is taken for the whole or refused, what follows changes nothing, and the bound is kept.
fn in_pieces(input: &[u8], len: usize) {
    let max = HeadLimits::default().max_bytes;
    for cut in cuts(len, input.len() as u64) {
        assert!(matches!(parse(&input[..cut], max), Ok(None)), "{cut} of {len} bytes");
    }
    assert_eq!(parse(&input[..len], max).ok().flatten().map(|p| p.0.len), Some(len));
    assert_eq!(parse(input, len - 1).err(), Some(Malformed::TooLarge));
}

fn written_again(request: &ParsedRequest<'_>, fields: &Fields<'_>) {
    let version = if request.http10 { "1.0" } else { "1.1" };
    let mut wire = format!("{} {} HTTP/{version}\r\n", request.method, request.target).into_bytes();
    for (name, value) in fields {
        wire.extend_from_slice(&[name, &b": "[..], value, b"\r\n"].concat());
    }
    wire.extend_from_slice(b"\r\n");
    let (again, fields_again) = parse(&wire, 2 * wire.len()).expect("valid").expect("whole");
    assert_eq!((again.method, again.target, again.http10), (request.method, request.target, request.http10));
    assert_eq!((again.body, again.host, again.keep_alive), (request.body, request.host, request.keep_alive));
    assert_eq!(&fields_again, fields);
}
