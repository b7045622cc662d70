//! A chunked body is the same body with the same end in whatever packets it comes and however little of it is taken at
//! a time; and it is refused if and only if the grammar or a bound says so.

#![no_main]

use fieldgate_fuzz::input::Input;
use fieldgate_fuzz::rfc9112::{Chunked, chunked};
use fieldgate_wire::h1::{ChunkedDecoder, Decoded, write_chunk_size};
use libfuzzer_sys::fuzz_target;

/// Enough to pass every bound of the decoder.
const LONG: usize = 20_000;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (repeat, steps) = (input.rarely(8), [input.byte(), input.byte(), input.byte()]);
    let wire = if repeat { long(&mut input) } else { input.0.to_vec() };
    let expected = chunked(&wire);
    check(&wire, &expected, [wire.len().max(1); 3], usize::MAX);
    check(
        &wire,
        &expected,
        steps.map(|s| usize::from(s) + if repeat { 64 } else { 1 }),
        usize::from(steps[0]) + 1,
    );
    if wire.len() < 512 {
        check(&wire, &expected, [1; 3], 1);
    }
    written_and_read(input.0, steps);
});

/// A head and a middle that is repeated until it is long: no fuzzer finds 16 KiB by itself.
fn long(input: &mut Input<'_>) -> Vec<u8> {
    let (head, middle) = (input.line(), input.line());
    let mut wire = head.to_vec();
    let long = LONG - 300 * input.below(16);
    while !middle.is_empty() && wire.len() < long {
        wire.extend_from_slice(middle);
    }
    wire.extend_from_slice(input.0);
    wire
}

/// Feeds `steps` bytes at a time and takes at most `take` bytes of data at once.
fn check(wire: &[u8], expected: &Chunked, steps: [usize; 3], take: usize) {
    let mut decoder = ChunkedDecoder::default();
    let (mut data, mut from, mut to, mut fed) = (Vec::new(), 0, 0, 0);
    let found = loop {
        assert!(!decoder.is_done());
        match decoder.decode(&wire[from..to]) {
            Err(_) => break Chunked::Malformed,
            Ok(Decoded::NeedMore) if to == wire.len() => break Chunked::Incomplete,
            Ok(Decoded::NeedMore) => {
                to = (to + steps[fed % 3]).min(wire.len());
                fed += 1;
            }
            Ok(Decoded::Data { skip, len }) => {
                assert!(len > 0 && from + skip + len <= to);
                let taken = len.min(take);
                data.extend_from_slice(&wire[from + skip..from + skip + taken]);
                decoder.used(taken);
                from += skip + taken;
            }
            Ok(Decoded::End { skip, trailers }) => {
                assert!(decoder.is_done());
                break Chunked::Whole { data, trailers: from + trailers, end: from + skip };
            }
        }
    };
    assert_eq!(&found, expected, "{steps:?} {take}");
}

fn written_and_read(data: &[u8], steps: [u8; 3]) {
    let mut wire = Vec::new();
    for chunk in data.chunks(usize::from(steps[0]) * 7 + 1) {
        write_chunk_size(&mut wire, chunk.len());
        wire.extend_from_slice(chunk);
        wire.extend_from_slice(b"\r\n");
    }
    let trailers = wire.len() + 3;
    wire.extend_from_slice(b"0\r\n\r\n");
    let expected = Chunked::Whole { data: data.to_vec(), trailers, end: wire.len() };
    check(&wire, &expected, steps.map(|s| usize::from(s) + 1), usize::MAX);
}
