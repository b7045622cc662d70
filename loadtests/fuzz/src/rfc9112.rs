//! RFC 9112 read aloud: heads and chunked bodies, as strictly as it allows and as the gateway promises.

/// A head's lines, none of them interpreted beyond the grammar.
#[derive(Debug)]
pub struct Lines<'b> {
    /// The start line.
    pub start: &'b [u8],
    /// Names and values, values without white space around them.
    pub fields: Vec<(&'b [u8], &'b [u8])>,
    /// Bytes of the head.
    pub len: usize,
}

impl<'b> Lines<'b> {
    /// A whole head, or nothing if it is not whole or not the grammar. A server skips empty lines before a request
    /// (section 2.2); a client skips none.
    pub fn read(input: &'b [u8], skip_empty: bool) -> Option<Self> {
        let mut at = 0;
        while skip_empty && input[at..].starts_with(b"\r\n") {
            at += 2;
        }
        let start = line(input, &mut at)?;
        let mut fields = Vec::new();
        loop {
            match line(input, &mut at)? {
                [] => return Some(Self { start, fields, len: at }),
                text => fields.push(field(text)?),
            }
        }
    }

    /// The values of a field.
    pub fn all(&self, name: &str) -> Vec<&'b [u8]> {
        let named = |f: &&(&[u8], &[u8])| f.0.eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(named).map(|f| f.1).collect()
    }

    /// Whether a comma-separated list of a field has an element.
    pub fn lists(&self, name: &str, element: &str) -> bool {
        let elements = self.all(name).into_iter().flat_map(|v| v.split(|b| *b == b','));
        elements.map(trim).any(|e| e.eq_ignore_ascii_case(element.as_bytes()))
    }
}

/// How a message's fields frame its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// They do not say.
    Silent,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Section 6.3, and nothing that anybody could read in another way.
pub fn framing(head: &Lines<'_>) -> Option<Framing> {
    let lengths = head.all("content-length");
    let encodings = head.all("transfer-encoding");
    match (&lengths[..], &encodings[..]) {
        ([], []) => Some(Framing::Silent),
        ([length], []) => {
            let digits = !length.is_empty() && length.len() <= 18 && length.iter().all(u8::is_ascii_digit);
            let text = digits.then(|| std::str::from_utf8(length).ok())??;
            Some(Framing::Length(text.parse().ok()?))
        }
        ([], [coding]) => coding.eq_ignore_ascii_case(b"chunked").then_some(Framing::Chunked),
        _ => None,
    }
}

/// Method, target and whether it is HTTP/1.0.
pub fn request_line(line: &[u8]) -> Option<(&[u8], &[u8], bool)> {
    let [method, target, version] = line.split(|b| *b == b' ').collect::<Vec<_>>()[..] else { return None };
    let graphic = !target.is_empty() && target.iter().all(u8::is_ascii_graphic);
    (is_token(method) && graphic).then_some(())?;
    Some((method, target, is_http10(version)?))
}

/// Status and whether it is HTTP/1.0.
pub fn status_line(line: &[u8]) -> Option<(u16, bool)> {
    let (version, rest) = line.split_at_checked(8)?;
    let (code, reason) = rest.strip_prefix(b" ")?.split_at_checked(3)?;
    let status: u16 =
        std::str::from_utf8(code).ok().filter(|c| c.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
    // The space before an absent reason phrase is left out by many servers, and nothing else can be meant.
    let reason = reason.is_empty() || reason[0] == b' ' && reason.iter().all(|b| is_text(*b));
    ((100..=999).contains(&status) && reason).then_some(())?;
    Some((status, is_http10(version)?))
}

/// `uri-host [ ":" port ]` without user information, and without what no DNS name or address has.
pub fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text.iter().rposition(|b| matches!(b, b':' | b']')) {
        Some(at) if text[at] == b':' => (&text[..at], Some(&text[at + 1..])),
        _ => (text, None),
    };
    let number =
        |p: &[u8]| std::str::from_utf8(p).ok().and_then(|p| p.parse::<u32>().ok()).filter(|p| *p < 65_536);
    let port = port.is_none_or(|p| {
        (1..=5).contains(&p.len()) && p.iter().all(u8::is_ascii_digit) && number(p).is_some()
    });
    let literal = host.strip_prefix(b"[").and_then(|h| h.strip_suffix(b"]"));
    let host = match literal {
        Some(v6) => std::str::from_utf8(v6).is_ok_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b)),
    };
    port && host
}

/// A token of RFC 9110 section 5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

/// What there is of a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunked {
    /// Not the grammar.
    Malformed,
    /// More is to come.
    Incomplete,
    /// All of it: data, where the trailer section starts and where it ends.
    Whole { data: Vec<u8>, trailers: usize, end: usize },
}

/// Section 7.1 with the gateway's bounds: 15 hexadecimal digits, 256 bytes of a size line, 16 KiB of trailers.
pub fn chunked(input: &[u8]) -> Chunked {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let size = match bounded_line(input, &mut at, 256) {
            Ok(line) => match chunk_size(line) {
                Some(size) => size,
                None => return Chunked::Malformed,
            },
            Err(state) => return state,
        };
        if size == 0 {
            break;
        }
        let left = (input.len() - at) as u64;
        if left < size {
            return Chunked::Incomplete;
        }
        data.extend_from_slice(&input[at..at + size as usize]);
        at += size as usize;
        match input.get(at..).unwrap_or_default() {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Chunked::Incomplete,
            _ => return Chunked::Malformed,
        }
    }
    let trailers = at;
    loop {
        let before = at;
        match bounded_line(input, &mut at, 16 * 1024 - (before - trailers).min(16 * 1024)) {
            Ok([]) => return Chunked::Whole { data, trailers, end: at },
            Ok(_) => {}
            Err(state) => return state,
        }
    }
}

/// A line of at most `max` bytes without its end; lines end with CRLF, and CR and LF stand nowhere else.
fn bounded_line<'b>(input: &'b [u8], at: &mut usize, max: usize) -> Result<&'b [u8], Chunked> {
    let rest = &input[*at..];
    let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(rest.len());
    if end > max {
        return Err(Chunked::Malformed);
    }
    match rest[end..] {
        [b'\r', b'\n', ..] => {
            *at += end + 2;
            Ok(&rest[..end])
        }
        [] | [b'\r'] => Err(Chunked::Incomplete),
        _ => Err(Chunked::Malformed),
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, rest) = line.split_at(digits);
    let extension = rest.is_empty() || trim(rest).starts_with(b";");
    if !(1..=15).contains(&digits) || !extension || !rest.iter().all(|b| is_text(*b)) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

fn line<'b>(input: &'b [u8], at: &mut usize) -> Option<&'b [u8]> {
    bounded_line(input, at, usize::MAX).ok()
}

fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|b| *b == b':')?;
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    (is_token(name) && value.iter().all(|b| is_text(*b))).then_some((name, value))
}

/// Without optional white space (OWS): spaces and tabs, nothing else.
fn trim(text: &[u8]) -> &[u8] {
    let ows = |b: &u8| matches!(b, b' ' | b'\t');
    let start = text.iter().position(|b| !ows(b)).unwrap_or(text.len());
    let end = text.iter().rposition(|b| !ows(b)).map_or(start, |at| at + 1);
    &text[start..end]
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || byte >= b' ' && byte != 0x7f
}

fn is_http10(version: &[u8]) -> Option<bool> {
    match version {
        b"HTTP/1.0" => Some(true),
        b"HTTP/1.1" => Some(false),
        _ => None,
    }
}
