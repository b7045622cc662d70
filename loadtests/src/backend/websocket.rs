//! The least of RFC 6455 that an echo needs: the handshake's key and unfragmented handling of each frame.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Transport;

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// `Sec-WebSocket-Accept` for a client's key (RFC 6455 section 4.2.2).
pub(super) fn accept_key(key: &str) -> String {
    let input = format!("{key}{GUID}");
    STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, input.as_bytes()))
}

/// Sends each frame back until the client closes.
pub(super) async fn echo<S: Transport>(stream: &mut S, input: &mut BytesMut) -> io::Result<()> {
    let mut output = Vec::new();
    loop {
        let closed = answer_frames(input, &mut output)?;
        stream.write_all(&output).await?;
        stream.flush().await?;
        if closed {
            return stream.shutdown().await;
        }
        output.clear();
        if stream.read_buf(input).await? == 0 {
            return Ok(());
        }
    }
}

/// Answers the frames that are there in full. `true`: the last of them was a close, after which nothing is said.
pub(super) fn answer_frames(input: &mut BytesMut, output: &mut Vec<u8>) -> io::Result<bool> {
    while let Some(frame) = Frame::parse(input)? {
        frame.answer(output);
        if frame.opcode == CLOSE {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Frame {
    last: bool,
    opcode: u8,
    payload: BytesMut,
}

impl Frame {
    /// Takes one frame off the front of `input`, when it is there in full.
    fn parse(input: &mut BytesMut) -> io::Result<Option<Self>> {
        let [first, second, ..] = input[..] else { return Ok(None) };
        if second & 0x80 == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a client's frame must be masked"));
        }
        let (extra, length) = match second & 0x7f {
            126 if input.len() >= 4 => (2, u64::from(u16::from_be_bytes([input[2], input[3]]))),
            127 if input.len() >= 10 => (8, (&input[2..10]).get_u64()),
            126 | 127 => return Ok(None),
            short => (0, u64::from(short)),
        };
        let head = 2 + extra + 4;
        let Some(total) = usize::try_from(length).ok().and_then(|length| length.checked_add(head)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame longer than memory"));
        };
        if input.len() < total {
            return Ok(None);
        }
        let mut payload = input.split_to(total);
        payload.advance(head - 4);
        let mask = payload.split_to(4);
        for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        Ok(Some(Self { last: first & 0x80 != 0, opcode: first & 0x0f, payload }))
    }

    fn answer(&self, output: &mut Vec<u8>) {
        let opcode = match self.opcode {
            PING => PONG,
            PONG => return,
            other => other,
        };
        output.push(u8::from(self.last) << 7 | opcode);
        match self.payload.len() {
            length @ 0..=125 => output.push(length as u8),
            length @ 126..=0xffff => {
                output.push(126);
                output.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                output.push(127);
                output.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        output.extend_from_slice(&self.payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_rfc_6455_section_1_3() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_masked_text_frame_is_echoed_unmasked() {
        // RFC 6455 section 5.7: a single-frame masked "Hello".
        let mut input =
            BytesMut::from(&[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58][..]);
        let frame = Frame::parse(&mut input).unwrap().unwrap();
        let mut output = Vec::new();
        frame.answer(&mut output);
        assert_eq!(output, b"\x81\x05Hello");
        assert!(input.is_empty());
    }

    #[test]
    fn an_incomplete_frame_is_left_in_the_buffer() {
        let mut input = BytesMut::from(&[0x81, 0xfe, 0x01][..]);
        assert!(Frame::parse(&mut input).unwrap().is_none());
        assert_eq!(input.len(), 3);
    }
}
