//! Heads on their way: what is taken off, what is added, and how they are written for the other side.

use std::net::IpAddr;

use fieldgate_core::ir::ForwardedClientCert;
use fieldgate_core::{HeaderId, Headers, Method, RequestHead, ResponseHead, Version};
use fieldgate_wire::h1::BodyKind;

use super::local::write_status;
use super::side::{fill_headers, header_map, write_field};

/// What becomes of `x-forwarded-client-cert`.
#[derive(Clone, Copy, Default)]
pub struct ClientCert<'a> {
    /// How it is treated.
    pub mode: ForwardedClientCert,
    /// The element of ours, of a client that has proved who it is.
    pub own: Option<&'a [u8]>,
}

impl ClientCert<'_> {
    /// Whether what the client sent stays.
    fn stays(self) -> bool {
        match self.mode {
            ForwardedClientCert::Sanitize | ForwardedClientCert::SanitizeSet => false,
            ForwardedClientCert::ForwardOnly | ForwardedClientCert::AppendForward => self.own.is_some(),
            ForwardedClientCert::AlwaysForwardOnly => true,
        }
    }

    /// What is added.
    fn added(&self) -> Option<&[u8]> {
        let adds = matches!(self.mode, ForwardedClientCert::AppendForward | ForwardedClientCert::SanitizeSet);
        self.own.filter(|_| adds)
    }
}

/// Makes a client's head fit to be forwarded (RFC 9110 section 7.6; forwarded fields as Envoy writes them).
pub fn prepare_request(
    head: &mut RequestHead,
    peer: IpAddr,
    trusted_hops: u32,
    client_cert: ClientCert<'_>,
    random: impl FnMut() -> u64,
) {
    let te_trailers = head
        .headers
        .get_id(HeaderId::Te)
        .is_some_and(|te| te.split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers")));
    let trusted = trusted_hops > 0;
    remove_hop_by_hop(&mut head.headers, |id, name| match id {
        HeaderId::Te => true,
        HeaderId::XForwardedClientCert => !client_cert.stays(),
        HeaderId::XForwardedProto | HeaderId::XRequestId => !trusted,
        _ => super::h1::is_internal(id, name),
    });
    if te_trailers && head.version >= Version::Http2 {
        head.headers.push_known(HeaderId::Te, "te", b"trailers");
    }
    if let Some(own) = client_cert.added() {
        head.headers.append_list(HeaderId::XForwardedClientCert, "x-forwarded-client-cert", own);
    }
    let mut text = AddressText { bytes: [0; 46], len: 0 };
    head.headers.append_list(HeaderId::XForwardedFor, "x-forwarded-for", text.of(peer));
    if !head.headers.has(HeaderId::XForwardedProto) {
        let scheme: &[u8] = if head.https { b"https" } else { b"http" };
        head.headers.push_known(HeaderId::XForwardedProto, "x-forwarded-proto", scheme);
    }
    if !head.headers.has(HeaderId::XRequestId) {
        head.headers.push_known(HeaderId::XRequestId, "x-request-id", &uuid(random));
    }
}

/// Takes off what is of the client's connection, or only the gateway may write, before guards see a head and write into it:
/// a client must not be able to name in `connection` what they add.
pub fn disconnect(headers: &mut Headers) {
    // A route may match it.
    let upgrade = headers.get_id(HeaderId::Upgrade).map(<[u8]>::to_vec);
    remove_hop_by_hop(headers, |_, name| name.starts_with(b"x-envoy-"));
    if let Some(upgrade) = upgrade {
        headers.push_known(HeaderId::Upgrade, "upgrade", &upgrade);
    }
}

/// Makes an upstream's head fit for the client.
pub fn prepare_response(head: &mut ResponseHead) {
    let ours = |id, _: &[u8]| matches!(id, HeaderId::PeerMetadata | HeaderId::PeerMetadataId);
    remove_hop_by_hop(&mut head.headers, ours);
}

/// Takes off the fields of one connection, the well-known ones and those that `connection` names, and what else is to go.
fn remove_hop_by_hop(headers: &mut Headers, also: impl Fn(HeaderId, &[u8]) -> bool) {
    if headers.has(HeaderId::Connection) {
        let named: Vec<Vec<u8>> = headers
            .get_all_id(HeaderId::Connection)
            .flat_map(|v| v.split(|b| *b == b','))
            .map(|t| t.trim_ascii().to_ascii_lowercase())
            // Naming these would take away what the gateway or the message needs.
            .filter(|t| {
                !matches!(
                    &t[..],
                    b"" | b"content-length"
                        | b"cookie"
                        | b"te"
                        | b"host"
                        | b"authorization"
                        | b"x-forwarded-for"
                        | b"x-forwarded-proto"
                )
            })
            .collect();
        headers.remove_if(|_, name, _| named.iter().any(|n| n == name));
    }
    headers.remove_if(|id, name, _| id.is_hop_by_hop() || also(id, name));
}

/// Writes a request head for an HTTP/1.1 upstream.
pub fn write_request(out: &mut Vec<u8>, head: &RequestHead, body: BodyKind, upgrade: Option<&[u8]>) {
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_field(out, b"host", head.authority.as_bytes());
    let mut cookies = 0;
    for (id, name, value) in head.headers.iter() {
        match id {
            HeaderId::ContentLength | HeaderId::Te => {}
            HeaderId::Cookie => cookies += 1,
            _ => write_field(out, name, value),
        }
    }
    if cookies > 0 {
        // HTTP/2 may have split it; HTTP/1 wants one field (RFC 9113 section 8.2.3).
        out.extend_from_slice(b"cookie: ");
        for (at, value) in head.headers.get_all_id(HeaderId::Cookie).enumerate() {
            if at > 0 {
                out.extend_from_slice(b"; ");
            }
            out.extend_from_slice(value);
        }
        out.extend_from_slice(b"\r\n");
    }
    match body {
        BodyKind::Chunked | BodyKind::UntilClose => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyKind::Length(n) => write_length(out, n),
        BodyKind::None if matches!(head.method, Method::Post | Method::Put | Method::Patch) => {
            write_length(out, 0);
        }
        BodyKind::None => {}
    }
    if let Some(protocol) = upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
        write_field(out, b"upgrade", protocol);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a response head for an HTTP/1 client. `length`: what to announce, for bodies and for HEAD alike.
pub fn write_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    body: BodyKind,
    connection: Option<&str>,
    upgrade: Option<&[u8]>,
) {
    write_status(out, head.status);
    // Its own content-length is kept where it says something although there is no body (HEAD, 304), which it must not do
    // in 1xx and 204 (RFC 9110 section 8.6).
    let own_length = body == BodyKind::None && !matches!(head.status, 100..=199 | 204);
    for (id, name, value) in head.headers.iter() {
        if id != HeaderId::ContentLength || own_length {
            write_field(out, name, value);
        }
    }
    match body {
        BodyKind::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyKind::Length(n) => write_length(out, n),
        BodyKind::None | BodyKind::UntilClose => {}
    }
    if let Some(protocol) = upgrade {
        out.extend_from_slice(b"connection: upgrade\r\n");
        write_field(out, b"upgrade", protocol);
    } else if let Some(connection) = connection {
        write_field(out, b"connection", connection.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// What to say of the connection: persistence goes without saying in HTTP/1.1, closing in HTTP/1.0 (RFC 9112 section 9.3).
pub fn connection_option(version: Version, keep_alive: bool) -> Option<&'static str> {
    match (version, keep_alive) {
        (Version::Http10, true) => Some("keep-alive"),
        (Version::Http10, false) | (_, true) => None,
        (_, false) => Some("close"),
    }
}

fn write_length(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(b"content-length: ");
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = n;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

/// The head for an HTTP/2 upstream.
pub fn http2_request(head: &RequestHead) -> Result<http::Request<()>, http::Error> {
    let uri = http::Uri::builder()
        .scheme(if head.https { "https" } else { "http" })
        .authority(if head.authority.is_empty() { "unknown" } else { head.authority.as_str() })
        .path_and_query(if head.target.is_empty() { "/" } else { head.target.as_str() })
        .build()?;
    let mut request = http::Request::new(());
    *request.method_mut() = http::Method::from_bytes(head.method.as_str().as_bytes())?;
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = header_map(&head.headers);
    Ok(request)
}

/// The head for an HTTP/2 client.
pub fn http2_response(status: u16, headers: &Headers) -> Result<http::Response<()>, http::Error> {
    let mut response = http::Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(status)?;
    *response.headers_mut() = header_map(headers);
    Ok(response)
}

/// Fills a response head from HTTP/2.
pub fn read_http2_response(head: &mut ResponseHead, parts: &http::response::Parts) {
    head.status = parts.status.as_u16();
    head.version = Version::Http2;
    head.headers.clear();
    fill_headers(&mut head.headers, &parts.headers);
}

/// The textual form of an address without an allocation.
struct AddressText {
    bytes: [u8; 46],
    len: usize,
}

impl AddressText {
    fn of(&mut self, address: IpAddr) -> &[u8] {
        match address {
            IpAddr::V4(v4) => v4.octets().into_iter().enumerate().for_each(|(at, octet)| {
                if at > 0 {
                    self.push(b'.');
                }
                self.decimal(octet);
            }),
            IpAddr::V6(_) => {
                use std::io::Write;
                let capacity = self.bytes.len();
                let mut rest = &mut self.bytes[..];
                // 46 bytes hold any address (INET6_ADDRSTRLEN).
                let _ = write!(rest, "{address}");
                self.len = capacity - rest.len();
            }
        }
        &self.bytes[..self.len]
    }

    fn decimal(&mut self, octet: u8) {
        if octet >= 100 {
            self.push(b'0' + octet / 100);
        }
        if octet >= 10 {
            self.push(b'0' + octet / 10 % 10);
        }
        self.push(b'0' + octet % 10);
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }
}

/// A version 4 UUID (RFC 9562). It tells requests apart and is no secret.
fn uuid(mut random: impl FnMut() -> u64) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = (u128::from(random()) << 64 | u128::from(random())) & !(0xf << 76) & !(0x3 << 62)
        | (0x4 << 76)
        | (0x2 << 62);
    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (at, byte) in text.iter_mut().enumerate() {
        if !matches!(at, 8 | 13 | 18 | 23) {
            shift -= 4;
            *byte = HEX[(bits >> shift) as usize & 15];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_usual() {
        for address in ["0.0.0.0", "10.9.100.255", "127.0.0.1", "::1", "2001:db8::42", "ffff:ffff::"] {
            let parsed: IpAddr = address.parse().unwrap();
            let mut text = AddressText { bytes: [0; 46], len: 0 };
            assert_eq!(text.of(parsed), address.as_bytes());
        }
    }

    #[test]
    fn uuids_have_version_and_variant() {
        let text = uuid(|| u64::MAX);
        assert_eq!(std::str::from_utf8(&text), Ok("ffffffff-ffff-4fff-bfff-ffffffffffff"));
    }

    fn forwarded(fields: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        head.set_target("/");
        for (n, v) in fields {
            head.headers.push(n.as_bytes(), v.as_bytes());
        }
        prepare_request(&mut head, "10.0.0.1".parse().unwrap(), 0, ClientCert::default(), || 1);
        head
    }

    #[test]
    fn a_connections_own_fields_stay_behind() {
        let head = forwarded(&[
            ("connection", "close, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            ("proxy-connection", "x"),
            ("x-forwarded-client-cert", "forged"),
            ("x-envoy-internal", "true"),
            ("x-request-id", "theirs"),
            ("a", "b"),
        ]);
        let names: Vec<_> =
            head.headers.iter().map(|(_, n, _)| String::from_utf8_lossy(n).into_owned()).collect();
        assert_eq!(names, ["a", "x-forwarded-for", "x-forwarded-proto", "x-request-id"]);
        assert_ne!(head.headers.get("x-request-id"), Some(&b"theirs"[..]));
    }

    #[test]
    fn connection_cannot_take_away_what_guards_add() {
        let mut head = RequestHead::default();
        for (name, value) in [
            ("connection", "x-user, upgrade"),
            ("upgrade", "websocket"),
            ("x-user", "forged"),
            ("x-envoy-a", "1"),
        ] {
            head.headers.push(name.as_bytes(), value.as_bytes());
        }
        disconnect(&mut head.headers);
        assert_eq!(head.headers.get("upgrade"), Some(&b"websocket"[..]));
        assert_eq!(head.headers.len(), 1);
        head.headers.push(b"x-user", b"alice");
        prepare_request(&mut head, "10.0.0.1".parse().unwrap(), 0, ClientCert::default(), || 1);
        assert_eq!(head.headers.get("x-user"), Some(&b"alice"[..]));
    }

    #[test]
    fn connection_cannot_take_away_what_frames_or_identifies() {
        let head = forwarded(&[
            ("connection", "cookie, x-forwarded-for"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "1.1.1.1"),
        ]);
        assert_eq!(head.headers.get("cookie"), Some(&b"a=b"[..]));
        assert_eq!(head.headers.get("x-forwarded-for"), Some(&b"1.1.1.1,10.0.0.1"[..]));
    }

    #[test]
    fn a_clients_certificate_is_told_as_the_listener_says() {
        use ForwardedClientCert::*;
        let told = |mode, own: Option<&'static [u8]>, sent: &[&str]| {
            let mut head = RequestHead::default();
            head.set_target("/");
            for value in sent {
                head.headers.push(b"x-forwarded-client-cert", value.as_bytes());
            }
            let client_cert = ClientCert { mode, own };
            prepare_request(&mut head, "10.0.0.1".parse().unwrap(), 0, client_cert, || 1);
            let all = head.headers.get_all_id(HeaderId::XForwardedClientCert);
            all.map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>()
        };
        let own = Some(&b"Hash=1"[..]);
        for (mode, known, unknown) in [
            (Sanitize, vec![], vec![]),
            (ForwardOnly, vec!["a"], vec![]),
            (AppendForward, vec!["a,Hash=1"], vec![]),
            (SanitizeSet, vec!["Hash=1"], vec![]),
            (AlwaysForwardOnly, vec!["a"], vec!["a"]),
        ] {
            assert_eq!(told(mode, own, &["a"]), known, "{mode:?}");
            assert_eq!(told(mode, None, &["a"]), unknown, "{mode:?}");
        }
        assert_eq!(told(AppendForward, own, &[]), ["Hash=1"]);
        assert_eq!(told(AppendForward, own, &["a", "b"]), ["a", "b,Hash=1"]);
    }

    #[test]
    fn a_response_that_never_has_a_body_announces_none() {
        for (status, kept) in [(103, false), (204, false), (304, true), (200, true)] {
            let mut head = ResponseHead { status, ..ResponseHead::default() };
            head.headers.push(b"content-length", b"4");
            let mut out = Vec::new();
            write_response(&mut out, &head, BodyKind::None, None, None);
            let text = String::from_utf8(out).unwrap();
            assert_eq!(text.contains("content-length: 4"), kept, "{text}");
        }
    }

    #[test]
    fn one_length_and_one_cookie() {
        let mut head = forwarded(&[("content-length", "3"), ("cookie", "a=1"), ("cookie", "b=2")]);
        head.method = Method::Post;
        let mut out = Vec::new();
        write_request(&mut out, &head, BodyKind::Length(3), None);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("content-length: 3\r\n").count(), 1);
        assert!(text.contains("cookie: a=1; b=2\r\n"), "{text}");
    }
}
