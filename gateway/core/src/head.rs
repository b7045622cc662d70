//! Message heads: one type for every protocol version, so that everything after the codec sees the same thing.
//!
//! Header fields live in one byte buffer that is reused from message to message; a field is a pair of ranges into it.
//! There is no hash map: a head has a dozen fields, and a scan over well-known ids is cheaper than building a map.
//! Names are stored in lower case. Parsing and serialising wire formats is not done here.

/// Names that the gateway itself acts on. A field's id is found once, when it is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HeaderId {
    /// Any name that has no id.
    Other,
    /// `connection`
    Connection,
    /// `content-length`
    ContentLength,
    /// `cookie`
    Cookie,
    /// `date`
    Date,
    /// `expect`
    Expect,
    /// `grpc-status`
    GrpcStatus,
    /// `grpc-timeout`
    GrpcTimeout,
    /// `host`
    Host,
    /// `http2-settings`
    Http2Settings,
    /// `keep-alive`
    KeepAlive,
    /// `content-type`
    ContentType,
    /// `origin`
    Origin,
    /// `proxy-authenticate`
    ProxyAuthenticate,
    /// `proxy-authorization`
    ProxyAuthorization,
    /// `proxy-connection`
    ProxyConnection,
    /// `server`
    Server,
    /// `set-cookie`
    SetCookie,
    /// `te`
    Te,
    /// `trailer`
    Trailer,
    /// `transfer-encoding`
    TransferEncoding,
    /// `upgrade`
    Upgrade,
    /// `user-agent`
    UserAgent,
    /// `via`
    Via,
    /// `x-envoy-peer-metadata`
    PeerMetadata,
    /// `x-envoy-peer-metadata-id`
    PeerMetadataId,
    /// `x-forwarded-for`
    XForwardedFor,
    /// `x-forwarded-proto`
    XForwardedProto,
    /// `x-forwarded-host`
    XForwardedHost,
    /// `x-forwarded-client-cert`
    XForwardedClientCert,
    /// `x-request-id`
    XRequestId,
    /// `x-envoy-upstream-service-time`
    UpstreamServiceTime,
    /// `x-envoy-original-path`
    OriginalPath,
    /// `x-envoy-attempt-count`
    AttemptCount,
}

impl HeaderId {
    /// The id of a lower-case name.
    pub fn of(name: &[u8]) -> Self {
        #[allow(clippy::enum_glob_use)] // every name is listed below
        use HeaderId::*;
        // By length first: most names are told apart without a comparison.
        match name.len() {
            2 if name == b"te" => Te,
            3 if name == b"via" => Via,
            4 => match name {
                b"host" => Host,
                b"date" => Date,
                _ => Other,
            },
            6 => match name {
                b"cookie" => Cookie,
                b"expect" => Expect,
                b"origin" => Origin,
                b"server" => Server,
                _ => Other,
            },
            7 => match name {
                b"upgrade" => Upgrade,
                b"trailer" => Trailer,
                _ => Other,
            },
            10 => match name {
                b"connection" => Connection,
                b"user-agent" => UserAgent,
                b"keep-alive" => KeepAlive,
                b"set-cookie" => SetCookie,
                _ => Other,
            },
            11 if name == b"grpc-status" => GrpcStatus,
            12 => match name {
                b"content-type" => ContentType,
                b"x-request-id" => XRequestId,
                b"grpc-timeout" => GrpcTimeout,
                _ => Other,
            },
            14 => match name {
                b"content-length" => ContentLength,
                b"http2-settings" => Http2Settings,
                _ => Other,
            },
            15 if name == b"x-forwarded-for" => XForwardedFor,
            16 => match name {
                b"x-forwarded-host" => XForwardedHost,
                b"proxy-connection" => ProxyConnection,
                _ => Other,
            },
            17 => match name {
                b"transfer-encoding" => TransferEncoding,
                b"x-forwarded-proto" => XForwardedProto,
                _ => Other,
            },
            18 if name == b"proxy-authenticate" => ProxyAuthenticate,
            19 if name == b"proxy-authorization" => ProxyAuthorization,
            21 => match name {
                b"x-envoy-peer-metadata" => PeerMetadata,
                b"x-envoy-original-path" => OriginalPath,
                b"x-envoy-attempt-count" => AttemptCount,
                _ => Other,
            },
            23 if name == b"x-forwarded-client-cert" => XForwardedClientCert,
            24 if name == b"x-envoy-peer-metadata-id" => PeerMetadataId,
            29 if name == b"x-envoy-upstream-service-time" => UpstreamServiceTime,
            _ => Other,
        }
    }

    /// Fields that belong to one connection and are never forwarded (RFC 9110 section 7.6.1).
    /// `te` is not here: `te: trailers` has a meaning end to end in gRPC and is handled where heads are forwarded.
    pub fn is_hop_by_hop(self) -> bool {
        use HeaderId::{
            Connection, Http2Settings, KeepAlive, ProxyAuthenticate, ProxyAuthorization, ProxyConnection,
            TransferEncoding, Upgrade,
        };
        matches!(
            self,
            Connection
                | KeepAlive
                | ProxyConnection
                | TransferEncoding
                | Upgrade
                | Http2Settings
                | ProxyAuthenticate
                | ProxyAuthorization
        )
    }
}

/// A field: where its name and value lie in the buffer.
#[derive(Clone, Copy, Debug)]
struct Field {
    name: u32,
    value: u32,
    value_len: u32,
    name_len: u16,
    id: HeaderId,
}

/// Header fields in the order received.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

/// Room for a usual head, made at the first field rather than grown into.
const FIELDS: usize = 24;
const BYTES: usize = 768;

impl Headers {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes of names and values that there is room for without an allocation: 0 until the first field.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Bytes held by names and values, those of removed fields included.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a field at the end. The name is put into lower case; the caller has checked that both are valid.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.make_room();
        let at = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes[at..].make_ascii_lowercase();
        let id = HeaderId::of(&self.bytes[at..]);
        self.push_value(at, name.len(), value, id);
    }

    /// As `push`, for a name known to be in lower case with a known id.
    pub fn push_known(&mut self, id: HeaderId, name: &'static str, value: &[u8]) {
        debug_assert_eq!(HeaderId::of(name.as_bytes()), id);
        self.make_room();
        let at = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        self.push_value(at, name.len(), value, id);
    }

    fn push_value(&mut self, name: usize, name_len: usize, value: &[u8], id: HeaderId) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.fields.push(Field {
            name: name as u32,
            value: at as u32,
            value_len: value.len() as u32,
            name_len: name_len as u16,
            id,
        });
    }

    fn make_room(&mut self) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BYTES);
            self.fields.reserve(FIELDS);
        }
    }

    fn name_of(&self, f: &Field) -> &[u8] {
        &self.bytes[f.name as usize..f.name as usize + f.name_len as usize]
    }

    fn value_of(&self, f: &Field) -> &[u8] {
        &self.bytes[f.value as usize..f.value as usize + f.value_len as usize]
    }

    /// All fields: id, lower-case name, value.
    pub fn iter(&self) -> impl Iterator<Item = (HeaderId, &[u8], &[u8])> {
        self.fields.iter().map(|f| (f.id, self.name_of(f), self.value_of(f)))
    }

    /// The first value of a well-known field.
    pub fn get_id(&self, id: HeaderId) -> Option<&[u8]> {
        debug_assert_ne!(id, HeaderId::Other);
        self.fields.iter().find(|f| f.id == id).map(|f| self.value_of(f))
    }

    /// All values of a well-known field.
    pub fn get_all_id(&self, id: HeaderId) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |f| f.id == id).map(|f| self.value_of(f))
    }

    /// The first value of a field by its lower-case name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        self.fields
            .iter()
            .find(|f| f.name_len as usize == name.len() && self.name_of(f) == name)
            .map(|f| self.value_of(f))
    }

    /// All values of a field by its lower-case name.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let name = name.as_bytes();
        self.fields
            .iter()
            .filter(move |f| f.name_len as usize == name.len() && self.name_of(f) == name)
            .map(|f| self.value_of(f))
    }

    /// Whether a well-known field is there.
    pub fn has(&self, id: HeaderId) -> bool {
        self.fields.iter().any(|f| f.id == id)
    }

    /// Removes every field of that lower-case name.
    pub fn remove(&mut self, name: &str) {
        let bytes = &self.bytes;
        self.fields
            .retain(|f| bytes[f.name as usize..f.name as usize + f.name_len as usize] != *name.as_bytes());
    }

    /// Removes every field of a well-known name.
    pub fn remove_id(&mut self, id: HeaderId) {
        self.fields.retain(|f| f.id != id);
    }

    /// Removes every field for which `drop` says so.
    pub fn remove_if(&mut self, mut drop: impl FnMut(HeaderId, &[u8], &[u8]) -> bool) {
        let bytes = &self.bytes;
        self.fields.retain(|f| {
            let name = &bytes[f.name as usize..f.name as usize + f.name_len as usize];
            let value = &bytes[f.value as usize..f.value as usize + f.value_len as usize];
            !drop(f.id, name, value)
        });
    }

    /// Removes every field for which `drop` says so of those that were there when [`Headers::byte_len`] was `mark`.
    pub fn remove_before(&mut self, mark: usize, mut drop: impl FnMut(HeaderId, &[u8]) -> bool) {
        let bytes = &self.bytes;
        self.fields.retain(|f| {
            let name = &bytes[f.name as usize..f.name as usize + f.name_len as usize];
            f.name as usize >= mark || !drop(f.id, name)
        });
    }

    /// Replaces all fields of that name by one.
    pub fn set(&mut self, name: &str, value: &[u8]) {
        self.remove(name);
        self.push(name.as_bytes(), value);
    }

    /// Appends to a comma-separated list, or starts it.
    pub fn append_list(&mut self, id: HeaderId, name: &'static str, value: &[u8]) {
        let Some(at) = self.fields.iter().rposition(|f| f.id == id) else {
            return self.push_known(id, name, value);
        };
        let old = self.fields[at];
        let start = self.bytes.len();
        let from = old.value as usize;
        self.bytes.extend_from_within(from..from + old.value_len as usize);
        self.bytes.extend_from_slice(b",");
        self.bytes.extend_from_slice(value);
        self.fields[at].value = start as u32;
        self.fields[at].value_len = (self.bytes.len() - start) as u32;
    }
}

/// The methods that the gateway tells apart.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Method {
    /// GET
    #[default]
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// PATCH
    Patch,
    /// CONNECT
    Connect,
    /// TRACE
    Trace,
    /// Any other token.
    Other(Box<str>),
}

impl Method {
    /// From the wire. The caller has checked that it is a token (RFC 9110 section 5.6.2).
    pub fn from_bytes(m: &[u8]) -> Self {
        match m {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"CONNECT" => Self::Connect,
            b"TRACE" => Self::Trace,
            other => Self::Other(String::from_utf8_lossy(other).into()),
        }
    }

    /// As written on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Patch => "PATCH",
            Self::Connect => "CONNECT",
            Self::Trace => "TRACE",
            Self::Other(m) => m,
        }
    }

    /// Whether repeating the request changes nothing more (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }
}

/// The protocol version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
    /// HTTP/2
    Http2,
    /// HTTP/3
    Http3,
}

impl Version {
    /// As access logs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Http3 => "HTTP/3",
        }
    }
}

/// A request's head as every room after the codec sees it.
///
/// Invariants, kept by the codecs: `path` begins with `/` (or is `*` for OPTIONS, or empty for CONNECT) and holds no
/// control byte, space or fragment; `authority` is valid and non-empty except for HTTP/1.0 without Host; `headers`
/// holds no `host` field (it is `authority`).
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Whether the client spoke TLS to us.
    pub https: bool,
    /// Host and optional port, as the client wrote it, in lower case.
    pub authority: String,
    /// Path and query, path normalised.
    pub target: String,
    /// Length of the path in `target`; what follows is `?query` or nothing.
    pub path_len: usize,
    /// The path as the client wrote it, where that is another: a listener may make something else of it.
    pub written_path: Option<Box<str>>,
    /// The version that the client spoke.
    pub version: Version,
    /// The fields.
    pub headers: Headers,
}

impl RequestHead {
    /// The path without the query.
    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// The query without `?`, if there is one.
    pub fn query(&self) -> Option<&str> {
        self.target[self.path_len..].strip_prefix('?')
    }

    /// Sets path and query from one string.
    pub fn set_target(&mut self, target: &str) {
        self.target.clear();
        self.target.push_str(target);
        self.path_len = target.find('?').unwrap_or(target.len());
    }

    /// The host without the port.
    pub fn host(&self) -> &str {
        split_port(&self.authority).0
    }

    /// Takes the dot off that says that a host name is complete: `shop.example.` is `shop.example`, and to no policy may
    /// they be two.
    pub fn drop_trailing_dot(&mut self) {
        let bytes = self.authority.as_bytes();
        // By the end alone: nearly no name has one, and every request is asked.
        let port = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let end = match bytes.len().checked_sub(port + 1) {
            Some(colon) if bytes[colon] == b':' => colon,
            _ => bytes.len(),
        };
        if end > 1 && bytes[end - 1] == b'.' {
            self.authority.remove(end - 1);
        }
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.method = Method::Get;
        self.authority.clear();
        self.target.clear();
        self.path_len = 0;
        self.written_path = None;
        self.headers.clear();
    }

    /// The value of a cookie, from any `cookie` field (RFC 6265 section 4.2.1).
    pub fn cookie(&self, name: &str) -> Option<&[u8]> {
        self.headers.get_all_id(HeaderId::Cookie).find_map(|field| {
            field.split(|b| *b == b';').find_map(|pair| {
                let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
            })
        })
    }

    /// Whether this is a gRPC call, by content type.
    pub fn is_grpc(&self) -> bool {
        is_grpc(&self.headers)
    }
}

/// Whether the content type says gRPC (`application/grpc`, with `+proto` or parameters, but not `grpc-web`).
pub fn is_grpc(headers: &Headers) -> bool {
    headers.get_id(HeaderId::ContentType).is_some_and(|v| {
        v.strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// A token of RFC 9110 section 5.6.2: header, cookie and method names.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Splits `host:port`; an IPv6 literal keeps its brackets.
pub fn split_port(authority: &str) -> (&str, Option<u16>) {
    let bytes = authority.as_bytes();
    // One short loop: names are short, and a search made for long texts costs more than all of them.
    let Some(last) = bytes.iter().rposition(|b| matches!(b, b':' | b']')) else { return (authority, None) };
    if bytes[last] == b']' {
        return (authority, None);
    }
    let literal = if bytes[0] == b'[' { authority[..last].rfind(']') } else { None };
    let colon = literal.map_or(last, |end| authority[end..].find(':').map_or(last, |i| i + end));
    (&authority[..colon], authority[colon + 1..].parse().ok())
}

/// A response's head.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// Status code.
    pub status: u16,
    /// The version that the upstream spoke.
    pub version: Version,
    /// The fields.
    pub headers: Headers,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> RequestHead {
        let mut h = RequestHead::default();
        for (n, v) in fields {
            h.headers.push(n.as_bytes(), v.as_bytes());
        }
        h
    }

    #[test]
    fn names_are_lower_case_and_found_by_id_or_name() {
        let h = head(&[("Content-Length", "3"), ("X-Thing", "a"), ("x-thing", "b")]);
        assert_eq!(h.headers.get_id(HeaderId::ContentLength), Some(&b"3"[..]));
        assert_eq!(h.headers.get_all("x-thing").collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn removing_and_setting() {
        let mut h = head(&[("a", "1"), ("b", "2"), ("a", "3")]).headers;
        h.set("a", b"4");
        assert_eq!(
            h.iter().map(|(_, n, v)| (n, v)).collect::<Vec<_>>(),
            [(&b"b"[..], &b"2"[..]), (b"a", b"4")]
        );
        h.remove("b");
        assert_eq!(h.len(), 1);
    }

    #[test]
    fn lists_grow_at_the_last_field() {
        let mut h = Headers::new();
        h.append_list(HeaderId::XForwardedFor, "x-forwarded-for", b"1.1.1.1");
        h.append_list(HeaderId::XForwardedFor, "x-forwarded-for", b"2.2.2.2");
        assert_eq!(h.get("x-forwarded-for"), Some(&b"1.1.1.1,2.2.2.2"[..]));
        assert_eq!(h.len(), 1);
    }

    #[test]
    fn cookies() {
        let h = head(&[("cookie", "a=1; user=bob"), ("cookie", "c=\"q\"; userx=1")]);
        assert_eq!(h.cookie("user"), Some(&b"bob"[..]));
        assert_eq!(h.cookie("c"), Some(&b"q"[..]));
        assert_eq!(h.cookie("use"), None);
    }

    #[test]
    fn ports() {
        assert_eq!(split_port("a.example:80"), ("a.example", Some(80)));
        assert_eq!(split_port("[::1]:80"), ("[::1]", Some(80)));
        assert_eq!(split_port("[::1]"), ("[::1]", None));
        assert_eq!(split_port("a"), ("a", None));
        // What is no port is no part of the name either.
        assert_eq!(split_port("a:b.example"), ("a", None));
        assert_eq!(split_port("a:"), ("a", None));
        assert_eq!(split_port("[::1]:x:80"), ("[::1]", None));
    }

    #[test]
    fn a_complete_name_is_the_same_name() {
        for (given, expected) in
            [("a.b.", "a.b"), ("a.b.:80", "a.b:80"), ("a.b", "a.b"), (".", "."), ("", "")]
        {
            let mut head = RequestHead { authority: given.into(), ..RequestHead::default() };
            head.drop_trailing_dot();
            assert_eq!(head.authority, expected);
        }
    }

    #[test]
    fn what_came_after_a_mark_is_told_from_what_came_before() {
        let mut h = head(&[("a", "1"), ("x-forwarded-for", "2")]).headers;
        let mark = h.byte_len();
        h.push(b"a", b"3");
        h.append_list(HeaderId::XForwardedFor, "x-forwarded-for", b"4");
        h.remove_before(mark, |_, _| true);
        assert_eq!(h.iter().map(|(_, n, v)| (n, v)).collect::<Vec<_>>(), [(&b"a"[..], &b"3"[..])]);
    }

    #[test]
    fn grpc_is_told_from_grpc_web() {
        assert!(head(&[("content-type", "application/grpc+proto")]).is_grpc());
        assert!(!head(&[("content-type", "application/grpc-web")]).is_grpc());
    }
}
