//! As `request_head`, for what upstreams answer.

#![no_main]

use fieldgate_fuzz::input::cuts;
use fieldgate_fuzz::rfc9112::{Framing, Lines, framing, status_line};
use fieldgate_wire::h1::{BodyKind, HeadLimits, MAX_FIELDS, Malformed, ParsedResponse, parse_response};
use libfuzzer_sys::fuzz_target;

type Fields<'b> = Vec<(&'b [u8], &'b [u8])>;

fn parse(input: &[u8], max_bytes: usize) -> Result<Option<(ParsedResponse, Fields<'_>)>, Malformed> {
    let mut fields = Vec::new();
    let parsed = parse_response(input, HeadLimits { max_bytes }, |name, value| fields.push((name, value)))?;
    Ok(parsed.map(|parsed| (parsed, fields)))
}

fuzz_target!(|input: &[u8]| {
    let max = HeadLimits::default().max_bytes;
    let parsed = parse(input, max);
    let Ok(Some((response, fields))) = &parsed else {
        if let Some(head) = allowed(input) {
            panic!("refused as {:?}: {head:?}", parsed.err());
        }
        return;
    };
    let head = Lines::read(input, false).expect("what is accepted is the grammar");
    let (status, http10) = status_line(head.start).expect("a status line");
    assert_eq!((response.status, response.http10), (status, http10));
    assert_eq!((response.len, fields), (head.len, &head.fields));
    let bodiless = matches!(status, 100..=199 | 204 | 304);
    let framing = framing(&head);
    let body = match framing {
        // Whatever the fields say, none follows (section 6.3, rule 1).
        _ if bodiless => BodyKind::None,
        Some(Framing::Silent) => BodyKind::UntilClose,
        Some(Framing::Length(0)) => BodyKind::None,
        Some(Framing::Length(n)) => BodyKind::Length(n),
        Some(Framing::Chunked) => BodyKind::Chunked,
        None => panic!("accepted with ambiguous framing: {head:?}"),
    };
    assert_eq!(response.body, body);
    // A coding in HTTP/1.0 is faulty framing: the connection must not be used again (section 6.1).
    let faulty = http10 && !head.all("transfer-encoding").is_empty();
    let (close, keep) = (head.lists("connection", "close"), head.lists("connection", "keep-alive"));
    assert_eq!(response.keep_alive, !close && !faulty && (keep || !http10) && body != BodyKind::UntilClose);
    for cut in cuts(head.len, input.len() as u64) {
        assert!(matches!(parse(&input[..cut], max), Ok(None)), "{cut} of {} bytes", head.len);
    }
    assert_eq!(parse(&input[..head.len], max).ok().flatten().map(|p| p.0.len), Some(head.len));
    assert_eq!(parse(input, head.len - 1).err(), Some(Malformed::TooLarge));
});

/// The head, if a strict reading allows it.
fn allowed(input: &[u8]) -> Option<Lines<'_>> {
    let head = Lines::read(input, false)?;
    status_line(head.start)?;
    framing(&head)?;
    (head.fields.len() <= MAX_FIELDS && head.len <= HeadLimits::default().max_bytes).then_some(head)
}
