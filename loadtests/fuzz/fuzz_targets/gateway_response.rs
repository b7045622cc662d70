//! What the gateway takes from an upstream and writes to an HTTP/1 client is one response with the framing that was taken.

#![no_main]

use fieldgate::worker::fuzzing::{connection_option, http2_response, prepare_response, write_response};
use fieldgate_core::{ResponseHead, Version};
use fieldgate_fuzz::input::Input;
use fieldgate_fuzz::rfc9112::{Framing, Lines, framing, status_line};
use fieldgate_wire::h1::{BodyKind, HeadLimits, parse_response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (answers_head, keep, old) = (input.rarely(4), input.rarely(2), input.rarely(4));
    let mut head = ResponseHead::default();
    let parsed = parse_response(input.0, HeadLimits::default(), |name, value| head.headers.push(name, value));
    let Ok(Some(parsed)) = parsed else { return };
    head.status = parsed.status;
    prepare_response(&mut head);
    let body = match parsed.body {
        _ if answers_head => BodyKind::None,
        BodyKind::Chunked | BodyKind::UntilClose if old => BodyKind::UntilClose,
        BodyKind::UntilClose => BodyKind::Chunked,
        body => body,
    };
    let version = if old { Version::Http10 } else { Version::Http11 };
    let mut wire = Vec::new();
    write_response(&mut wire, &head, body, connection_option(version, keep), None);
    let text = String::from_utf8_lossy(&wire);
    let sent = Lines::read(&wire, false).unwrap_or_else(|| panic!("not a response: {text}"));
    assert_eq!(sent.len, wire.len(), "two responses: {text}");
    let (status, http10) = status_line(sent.start).expect("a status line");
    assert_eq!((status, http10), (parsed.status, false));
    let framing = framing(&sent).unwrap_or_else(|| panic!("ambiguous: {text}"));
    match body {
        BodyKind::Length(n) => assert_eq!(framing, Framing::Length(n)),
        BodyKind::Chunked => assert_eq!(framing, Framing::Chunked),
        BodyKind::UntilClose => assert_eq!(framing, Framing::Silent),
        // RFC 9110 section 8.6.
        BodyKind::None if matches!(status, 100..=199 | 204) => assert_eq!(framing, Framing::Silent, "{text}"),
        BodyKind::None => assert_ne!(framing, Framing::Chunked, "{text}"),
    }
    assert!(
        sent.all("connection").len() <= 1
            && sent.all("keep-alive").is_empty()
            && sent.all("upgrade").is_empty()
    );
    if let Ok(response) = http2_response(head.status, &head.headers) {
        assert!(
            !response.headers().contains_key("connection")
                && !response.headers().contains_key("transfer-encoding")
        );
    }
});
