//! Frames of HTTP/2 as only an attacker would write them, and what the other side answers.

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The beginning of a connection whose streams may be sent so many bytes at first.
pub fn opening(window: u32) -> Vec<u8> {
    let mut settings = vec![0, 4];
    settings.extend(window.to_be_bytes());
    [PREFACE, &frame(SETTINGS, 0, 0, &settings)].concat()
}

/// The header block of a request, with nothing put into the dynamic table.
pub fn request(post: bool, host: &str, path: &str) -> Vec<u8> {
    // Static table: `:method` GET and POST, `:scheme` http, the names `:path` and `:authority`.
    let mut block = vec![if post { 0x83 } else { 0x82 }, 0x86];
    block.push(0x04);
    string(&mut block, path.as_bytes());
    block.push(0x01);
    string(&mut block, host.as_bytes());
    block
}

/// A field that is put into the dynamic table (RFC 7541 section 6.2.1).
pub fn indexed_literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0x40);
    string(block, name);
    string(block, value);
}

/// A field that is not.
pub fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    string(block, name);
    string(block, value);
}

/// The entry put into the dynamic table last.
pub const NEWEST: u8 = 0x80 | 0x3E;

/// RFC 7541 section 5.2, without Huffman coding.
fn string(block: &mut Vec<u8>, text: &[u8]) {
    let mut left = text.len();
    if left < 127 {
        block.push(left as u8);
    } else {
        block.push(127);
        left -= 127;
        while left >= 128 {
            block.push((left % 128) as u8 | 128);
            left /= 128;
        }
        block.push(left as u8);
    }
    block.extend(text);
}
