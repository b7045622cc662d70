//! Request and response heads.

use std::fmt;
use std::mem::MaybeUninit;

/// Most header fields of one head.
pub const MAX_FIELDS: usize = 128;

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of start line and fields together.
    pub max_bytes: usize,
}

impl Default for HeadLimits {
    /// 60 KiB, as Envoy.
    fn default() -> Self {
        Self { max_bytes: 60 * 1024 }
    }
}

/// How a body is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// A response that ends when the connection does.
    UntilClose,
}

/// What is wrong with a head. The text goes into the log, not to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not the grammar of RFC 9112.
    Syntax,
    /// A line ends with a bare LF.
    BareLf,
    /// More bytes than the limit.
    TooLarge,
    /// More fields than the limit.
    TooManyFields,
    /// HTTP/2 preface or a version other than 1.0 and 1.1.
    Version,
    /// Content-Length that is not a number, or is there twice.
    ContentLength,
    /// Content-Length together with Transfer-Encoding.
    LengthAndEncoding,
    /// A Transfer-Encoding that frames nothing for certain, or with HTTP/1.0.
    TransferEncoding,
    /// `chunked` around another coding, which nobody here undoes.
    TransferCoding,
    /// No Host, several, or an invalid one.
    Host,
    /// A target that is not a valid path, absolute form or authority.
    Target,
    /// A chunk size, extension or delimiter that is not the grammar.
    Chunk,
    /// Trailer fields that are malformed or too large.
    Trailer,
    /// A switch to another protocol that nobody asked for, that failed its handshake, or that is not done here.
    Upgrade,
}

impl Malformed {
    /// A short name in the style of Envoy's response code details.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "http1.codec_error",
            Self::BareLf => "http1.bare_lf",
            Self::TooLarge => "request_headers_too_large",
            Self::TooManyFields => "http1.too_many_headers",
            Self::Version => "http1.unsupported_version",
            Self::ContentLength => "http1.content_length_invalid",
            Self::LengthAndEncoding => "http1.content_length_and_chunked_not_allowed",
            Self::TransferEncoding => "http1.invalid_transfer_encoding",
            Self::TransferCoding => "http1.unknown_transfer_coding",
            Self::Upgrade => "request_upgrade_invalid",
            Self::Host => "http1.invalid_host",
            Self::Target => "http1.invalid_url",
            Self::Chunk => "http1.invalid_chunk",
            Self::Trailer => "http1.invalid_trailer",
        }
    }

    /// The status that tells the client.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLarge | Self::TooManyFields => 431,
            Self::Version => 505,
            // RFC 9112 section 6.1, RFC 9220 section 3.
            Self::TransferCoding | Self::Upgrade => 501,
            _ => 400,
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Malformed {}

/// A request head; slices point into the input.
#[derive(Debug)]
pub struct ParsedRequest<'b> {
    /// The method, a token.
    pub method: &'b str,
    /// The target as sent: visible ASCII.
    pub target: &'b str,
    /// Whether it is HTTP/1.0.
    pub http10: bool,
    /// The body that follows.
    pub body: BodyKind,
    /// The one Host; `None` only for HTTP/1.0.
    pub host: Option<&'b str>,
    /// Whether the connection may go on after this exchange, as far as the client says.
    pub keep_alive: bool,
    /// `expect: 100-continue`.
    pub expects_continue: bool,
    /// `connection: upgrade` with an `upgrade` field.
    pub upgrade: bool,
    /// Bytes of the head.
    pub len: usize,
}

/// A response head.
#[derive(Debug)]
pub struct ParsedResponse {
    /// Status code, 100 to 999.
    pub status: u16,
    /// Whether it is HTTP/1.0.
    pub http10: bool,
    /// The body that follows, not yet knowing whether it answers HEAD.
    pub body: BodyKind,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// Bytes of the head.
    pub len: usize,
}

/// Parses a request head. `Ok(None)` asks for more bytes. `field` gets every field in order.
pub fn parse_request<'b>(
    input: &'b [u8],
    limits: HeadLimits,
    mut field: impl FnMut(&'b [u8], &'b [u8]),
) -> Result<Option<ParsedRequest<'b>>, Malformed> {
    let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(input, &mut storage) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return need_more(input, limits),
        Err(error) => return Err(syntax(error)),
    };
    check_lines(input, len, limits)?;
    let target = request.path.ok_or(Malformed::Syntax)?;
    if target.is_empty() || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Malformed::Target);
    }
    let http10 = request.version == Some(0);
    let mut seen = Seen::default();
    let mut host = None;
    let mut expects_continue = false;
    let mut has_upgrade = false;
    for header in request.headers.iter() {
        let name = header.name.as_bytes();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if host.is_some() {
                    return Err(Malformed::Host);
                }
                host = Some(std::str::from_utf8(header.value).map_err(|_| Malformed::Host)?);
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                expects_continue = header.value.eq_ignore_ascii_case(b"100-continue");
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => has_upgrade = true,
            _ => seen.field(name, header.value)?,
        }
        field(name, header.value);
    }
    if host.is_some_and(|host| !host.is_empty() && !valid_authority(host)) || (host.is_none() && !http10) {
        return Err(Malformed::Host);
    }
    if http10 && seen.encoded {
        return Err(Malformed::TransferEncoding);
    }
    Ok(Some(ParsedRequest {
        method: request.method.ok_or(Malformed::Syntax)?,
        target,
        http10,
        body: seen.body()?.unwrap_or(BodyKind::None),
        host,
        keep_alive: if http10 { seen.keep_alive && !seen.close } else { !seen.close },
        expects_continue: expects_continue && !http10,
        upgrade: has_upgrade && seen.upgrade && !http10,
        len,
    }))
}

/// Parses a response head. `Ok(None)` asks for more bytes. `field` gets every field in order.
pub fn parse_response<'b>(
    input: &'b [u8],
    limits: HeadLimits,
    mut field: impl FnMut(&'b [u8], &'b [u8]),
) -> Result<Option<ParsedResponse>, Malformed> {
    // httparse skips empty lines, which only a server may (RFC 9112 section 2.2): here they are bytes that nobody asked for.
    if matches!(input.first(), Some(b'\r' | b'\n')) {
        return Err(Malformed::Syntax);
    }
    let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        input,
        &mut storage,
    );
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return need_more(input, limits),
        Err(error) => return Err(syntax(error)),
    };
    check_lines(input, len, limits)?;
    let http10 = response.version == Some(0);
    let status = response.code.filter(|code| (100..=999).contains(code)).ok_or(Malformed::Syntax)?;
    let mut seen = Seen::default();
    for header in response.headers.iter() {
        seen.field(header.name.as_bytes(), header.value)?;
        field(header.name.as_bytes(), header.value);
    }
    let body = match status {
        100..=199 | 204 | 304 => BodyKind::None,
        _ => seen.body()?.unwrap_or(BodyKind::UntilClose),
    };
    // A coding in HTTP/1.0 is faulty framing: read as it is meant, and the connection ended (RFC 9112 section 6.1).
    let keep_alive = !seen.close && (!http10 || seen.keep_alive && !seen.encoded);
    Ok(Some(ParsedResponse {
        status,
        http10,
        body,
        keep_alive: keep_alive && body != BodyKind::UntilClose,
        len,
    }))
}

/// Whether this can stand as Host or `:authority`: a registered name, IPv4 or bracketed IPv6, and an optional port
/// (RFC 9110 section 7.2). User information is refused.
pub fn valid_authority(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((v6, after)) => {
                if v6.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                ("v6", after.strip_prefix(':').or(if after.is_empty() { Some("0") } else { None }))
            }
            None => return false,
        },
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("0")),
        },
    };
    let name = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'));
    name && !host.is_empty()
        && port.is_some_and(|p| p.len() <= 5 && p.parse::<u16>().is_ok() && !p.starts_with('+'))
}

fn need_more<T>(input: &[u8], limits: HeadLimits) -> Result<Option<T>, Malformed> {
    if input.len() > limits.max_bytes { Err(Malformed::TooLarge) } else { Ok(None) }
}

fn syntax(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::TooManyHeaders => Malformed::TooManyFields,
        httparse::Error::Version => Malformed::Version,
        _ => Malformed::Syntax,
    }
}

/// httparse takes a bare LF for a line end; a peer behind us may not, and then sees another message than we do.
fn check_lines(input: &[u8], len: usize, limits: HeadLimits) -> Result<(), Malformed> {
    if len > limits.max_bytes {
        return Err(Malformed::TooLarge);
    }
    let head = &input[..len];
    let mut lines = head.iter().enumerate().filter(|(_, b)| **b == b'\n');
    if lines.any(|(at, _)| at == 0 || head[at - 1] != b'\r') { Err(Malformed::BareLf) } else { Ok(()) }
}

/// The fields that decide framing and persistence.
#[derive(Default)]
struct Seen {
    length: Option<u64>,
    encoded: bool,
    /// Other codings lie below the chunks.
    coded: bool,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Seen {
    fn field(&mut self, name: &[u8], value: &[u8]) -> Result<(), Malformed> {
        match name.len() {
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                    self.upgrade |= token.eq_ignore_ascii_case(b"upgrade");
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return Err(Malformed::ContentLength);
                }
                self.length = Some(decimal(value).ok_or(Malformed::ContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.encoded {
                    return Err(Malformed::TransferEncoding);
                }
                self.encoded = true;
                self.coded = is_coded(value)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn body(&self) -> Result<Option<BodyKind>, Malformed> {
        match (self.length, self.encoded) {
            (Some(_), true) => Err(Malformed::LengthAndEncoding),
            (None, true) if self.coded => Err(Malformed::TransferCoding),
            (None, true) => Ok(Some(BodyKind::Chunked)),
            (Some(0), false) => Ok(Some(BodyKind::None)),
            (Some(n), false) => Ok(Some(BodyKind::Length(n))),
            (None, false) => Ok(None),
        }
    }
}

/// Whether codings other than `chunked` were applied before it. An error where it is not certain that every reader finds
/// `chunked` to be the last, once: everything but plain tokens, `identity`, which some take for nothing, and white space
/// that some take for a part of the name.
fn is_coded(value: &[u8]) -> Result<bool, Malformed> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(false);
    }
    let token = |coding: &[u8]| {
        !coding.is_empty()
            && coding.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    let mut codings =
        value.split(|b| *b == b',').map(|coding| coding.strip_prefix(b" ").unwrap_or(coding)).rev();
    let last_is_chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let plain = |coding: &[u8]| {
        token(coding) && !coding.eq_ignore_ascii_case(b"chunked") && !coding.eq_ignore_ascii_case(b"identity")
    };
    if last_is_chunked && codings.all(plain) { Ok(true) } else { Err(Malformed::TransferEncoding) }
}

/// Digits only: no sign, no space, no list; bounded so that it cannot overflow.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<BodyKind, Malformed>) {
        let got = parse_request(text.as_bytes(), HeadLimits::default(), |_, _| {});
        assert_eq!(got.map(|r| r.expect("a whole head").body), expected, "{text:?}");
    }

    #[test]
    fn framing() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(BodyKind::None));
        check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", Ok(BodyKind::Length(3)));
        check("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Ok(BodyKind::Chunked));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let refused = [
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", Malformed::LengthAndEncoding),
            ("Content-Length: 3\r\nContent-Length: 3\r\n", Malformed::ContentLength),
            ("Content-Length: 3, 3\r\n", Malformed::ContentLength),
            ("Content-Length: +3\r\n", Malformed::ContentLength),
            ("Content-Length: 0x3\r\n", Malformed::ContentLength),
            ("Content-Length: \r\n", Malformed::ContentLength),
            ("Content-Length: 9999999999999999999\r\n", Malformed::ContentLength),
            ("Transfer-Encoding: chunked, chunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: gzip\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: chunked, gzip\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: identity, chunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: gzip;q=1, chunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: gzip,\tchunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: , chunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: gzip, chunked\r\nContent-Length: 3\r\n", Malformed::LengthAndEncoding),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Malformed::TransferEncoding),
            (
                "Transfer-Encoding: gzip, chunked\r\nTransfer-Encoding: chunked\r\n",
                Malformed::TransferEncoding,
            ),
            ("Transfer-Encoding: xchunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Malformed::TransferEncoding),
            ("Transfer-Encoding : chunked\r\n", Malformed::Syntax),
            ("X: a\r\n b\r\n", Malformed::Syntax),
            ("X: a\rb\r\n", Malformed::Syntax),
            ("X: a\0b\r\n", Malformed::Syntax),
            ("X: a\nY: b\r\n", Malformed::BareLf),
            ("Host: b\r\n", Malformed::Host),
        ];
        for (fields, why) in refused {
            check(&post(fields), Err(why));
        }
        check("GET / HTTP/1.1\r\n\r\n", Err(Malformed::Host));
        check("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Err(Malformed::Host));
        check("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Err(Malformed::Host));
        check("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(Malformed::TransferEncoding));
        check("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Err(Malformed::Version));
        check("GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n", Err(Malformed::Target));
    }

    #[test]
    fn a_coding_that_is_not_known_is_not_implemented() {
        for value in ["gzip, chunked", "gzip,chunked", "br, gzip, Chunked", "x-a_b.c, chunked"] {
            let post = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {value}\r\n\r\n");
            check(&post, Err(Malformed::TransferCoding));
        }
        assert_eq!(Malformed::TransferCoding.status(), 501);
    }

    #[test]
    fn heads_are_bounded() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(70_000));
        assert_eq!(
            parse_request(long.as_bytes(), HeadLimits::default(), |_, _| {}).unwrap_err(),
            Malformed::TooLarge
        );
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
        check(&many, Err(Malformed::TooManyFields));
    }

    #[test]
    fn persistence() {
        let keep = |text: &str| {
            parse_request(text.as_bytes(), HeadLimits::default(), |_, _| {}).unwrap().unwrap().keep_alive
        };
        assert!(keep("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
        assert!(keep("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
    }

    #[test]
    fn responses() {
        let body = |text: &str| {
            parse_response(text.as_bytes(), HeadLimits::default(), |_, _| {}).map(|r| r.unwrap().body)
        };
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\n"), Ok(BodyKind::UntilClose));
        assert_eq!(body("HTTP/1.1 204 No\r\nContent-Length: 4\r\n\r\n"), Ok(BodyKind::None));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"), Ok(BodyKind::Length(4)));
        assert_eq!(body("\r\nHTTP/1.1 200 OK\r\n\r\n"), Err(Malformed::Syntax));
        assert_eq!(
            body("HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"),
            Err(Malformed::LengthAndEncoding)
        );
    }

    #[test]
    fn a_connection_is_not_used_again_after_a_coding_in_http10() {
        let keep = |text: &str| {
            parse_response(text.as_bytes(), HeadLimits::default(), |_, _| {}).unwrap().unwrap().keep_alive
        };
        assert!(keep("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"));
        assert!(!keep("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"));
        assert!(keep("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn authorities() {
        for good in ["a", "a.example:80", "[::1]:443", "[::1]", "1.2.3.4:1"] {
            assert!(valid_authority(good), "{good}");
        }
        for bad in ["", ":80", "a:", "a:b", "a:99999", "[::1", "[x]", "a/b", "u@a", "a:+1", "a b", "[::1]x"] {
            assert!(!valid_authority(bad), "{bad}");
        }
    }
}
