//! The chunked transfer coding (RFC 9112 section 7.1), strict: CRLF only, sizes bounded, extensions dropped.

use super::Malformed;

/// Longest chunk-size line, extensions included.
const MAX_SIZE_LINE: usize = 256;
/// Largest trailer section in bytes.
const MAX_TRAILERS: usize = 16 * 1024;

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// More bytes are needed.
    NeedMore,
    /// The first `skip` bytes are framing; the `len` that follow (at least one) are data.
    Data {
        /// Bytes to drop.
        skip: usize,
        /// Bytes of data that are there.
        len: usize,
    },
    /// The body is over: `skip` bytes of framing, of which those from `trailers` on are trailer lines (ending with the empty line).
    End {
        /// Bytes to drop.
        skip: usize,
        /// Where the trailer section starts.
        trailers: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a chunk-size line; `true` if the CRLF that ends the chunk before is still to come.
    Size(bool),
    /// In a chunk with so many bytes to come.
    Data(u64),
    Done,
}

/// Decodes in place: it says which bytes of the caller's buffer are data and keeps no copy.
#[derive(Clone, Copy, Debug)]
pub struct ChunkedDecoder {
    state: State,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self { state: State::Size(false) }
    }
}

impl ChunkedDecoder {
    /// Looks at the bytes that are there. The caller drops `skip` bytes, uses data, and tells how many by `used`.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, Malformed> {
        match self.state {
            State::Data(left) => {
                let len = left.min(input.len() as u64) as usize;
                Ok(if len == 0 { Decoded::NeedMore } else { Decoded::Data { skip: 0, len } })
            }
            State::Done => Ok(Decoded::End { skip: 0, trailers: 0 }),
            State::Size(after_chunk) => self.size_line(input, after_chunk),
        }
    }

    /// `count` bytes of data were taken.
    pub fn used(&mut self, count: usize) {
        if let State::Data(left) = self.state {
            debug_assert!(count as u64 <= left);
            let left = left - count as u64;
            self.state = if left == 0 { State::Size(true) } else { State::Data(left) };
        }
    }

    /// Whether the whole body was seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn size_line(&mut self, input: &[u8], after_chunk: bool) -> Result<Decoded, Malformed> {
        let start = if after_chunk {
            match input {
                [b'\r', b'\n', ..] => 2,
                [] | [b'\r'] => return Ok(Decoded::NeedMore),
                _ => return Err(Malformed::Chunk),
            }
        } else {
            0
        };
        let Some(end) = line_end(&input[start..], MAX_SIZE_LINE, Malformed::Chunk)? else {
            return Ok(Decoded::NeedMore);
        };
        let size = chunk_size(&input[start..start + end])?;
        let skip = start + end + 2;
        if size == 0 {
            return self.trailers(input, skip);
        }
        let len = size.min((input.len() - skip) as u64) as usize;
        if len == 0 {
            // The line is parsed again once there is data: simpler than a state, and it happens only at a packet's edge.
            return Ok(Decoded::NeedMore);
        }
        self.state = State::Data(size);
        Ok(Decoded::Data { skip, len })
    }

    fn trailers(&mut self, input: &[u8], start: usize) -> Result<Decoded, Malformed> {
        let mut at = start;
        loop {
            // The bound is on the whole section, and the same whether it comes at once or in pieces.
            let left = MAX_TRAILERS.saturating_sub(at - start);
            let Some(end) = line_end(&input[at..], left, Malformed::Trailer)? else {
                return Ok(Decoded::NeedMore);
            };
            at += end + 2;
            if end == 0 {
                self.state = State::Done;
                return Ok(Decoded::End { skip: at, trailers: start });
            }
        }
    }
}

/// Appends `SIZE CRLF`.
pub fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    out.extend((0..digits).rev().map(|d| HEX[(size >> (d * 4)) & 15]));
    out.extend_from_slice(b"\r\n");
}

/// Where the CRLF of the first line is. A bare CR or LF is malformed.
fn line_end(input: &[u8], max: usize, why: Malformed) -> Result<Option<usize>, Malformed> {
    match input.iter().position(|b| matches!(b, b'\r' | b'\n')) {
        Some(at) if at > max || input[at] == b'\n' => Err(why),
        Some(at) => match input.get(at + 1) {
            Some(b'\n') => Ok(Some(at)),
            Some(_) => Err(why),
            None => Ok(None),
        },
        None if input.len() > max => Err(why),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    if digits == 0 || digits > 15 {
        return Err(Malformed::Chunk);
    }
    // An extension follows `;`, with optional white space before it (BWS); no control byte in it.
    let white = line[digits..].iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let rest = &line[digits + white..];
    let extension = rest.is_empty() && digits == line.len() || rest.first() == Some(&b';');
    if !extension || rest.iter().any(|b| b.is_ascii_control() && *b != b'\t') {
        return Err(Malformed::Chunk);
    }
    Ok(line[..digits].iter().fold(0, |n, d| n * 16 + u64::from((*d as char).to_digit(16).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes `wire`, given `step` bytes more each time.
    fn decode(wire: &[u8], step: usize) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let (mut decoder, mut data, mut from, mut to) = (ChunkedDecoder::default(), Vec::new(), 0, 0);
        loop {
            match decoder.decode(&wire[from..to])? {
                Decoded::NeedMore if to == wire.len() => return Ok(None),
                Decoded::NeedMore => to = (to + step).min(wire.len()),
                Decoded::Data { skip, len } => {
                    data.extend_from_slice(&wire[from + skip..from + skip + len]);
                    decoder.used(len);
                    from += skip + len;
                }
                Decoded::End { skip, .. } => return Ok(Some((data, from + skip))),
            }
        }
    }

    #[test]
    fn bad_framing_is_refused() {
        for bad in [
            "g\r\n",
            "\r\n",
            "3\nabc\r\n",
            "3\rabc",
            "3 \r\nabc\r\n",
            "3\x0c;a\r\nabc\r\n",
            "3\r\nabcX\r\n",
            "3;\x01\r\n",
            "+3\r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "fffffffffffffffff\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "0\r\na: b\n\r\n",
        ] {
            assert!(decode(bad.as_bytes(), 1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn trailers_and_extensions() {
        let wire = b"3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\nNEXT";
        assert_eq!(decode(wire, 1), Ok(Some((b"abc".to_vec(), wire.len() - 4))));
    }

    #[test]
    fn the_bound_of_trailers_is_the_same_whatever_the_packets() {
        for (lines, fits) in [(4000, true), (4200, false)] {
            let wire = format!("0\r\n{}\r\n", "a:\r\n".repeat(lines));
            for step in [wire.len(), 1000] {
                let decoded = decode(wire.as_bytes(), step);
                assert_eq!(decoded.is_ok(), fits, "{lines} lines, {step} bytes at a time: {decoded:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_whatever_the_packets(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8), step in 1usize..500) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                write_chunk_size(&mut wire, chunk.len());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(decode(&wire, step), Ok(Some((chunks.concat(), wire.len()))));
        }

        #[test]
        fn never_panics(wire in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..50) {
            let _ = decode(&wire, step);
        }
    }
}
