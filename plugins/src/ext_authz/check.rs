//! What a gRPC authorizer is told of a request: Envoy's `CheckRequest`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldgate_core::guard::Guarded;
use fieldgate_core::identity::{Metadata, PeerIdentity};
use fieldgate_core::ir;
use fieldgate_core::{HeaderId, Headers};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use serde_json::Value as Json;

use super::proto::{
    self, Address, AttributeContext, CheckRequest, HttpRequest, Peer, Request, SocketAddress, TlsSession,
};
use super::{PARTIAL_BODY, fits, is_private};

/// Where verified tokens are, as Istio has Envoy put them.
const JWT: &str = "envoy.filters.http.jwt_authn";
/// Where the user of a login is.
const LOGIN: &str = "fieldgate.login";
/// A certificate's lines in PEM.
const PEM_LINE: usize = 64;

/// The question about a request. `body`: as much of it as was asked for, and whether that is all.
pub fn check_request(
    ir: &ir::ExtAuthz,
    context: HashMap<String, String>,
    request: &mut Guarded<'_>,
    body: Option<(&Bytes, bool)>,
) -> CheckRequest {
    let facts = request.facts;
    let identity = facts.identity;
    let source = Peer {
        address: Some(address(facts.peer.to_string(), None)),
        principal: identity.map(principal).unwrap_or_default().to_owned(),
        certificate: identity.filter(|_| ir.peer_certificate).map(certificate).unwrap_or_default(),
    };
    let destination = Peer {
        address: Some(address(facts.local.ip().to_canonical().to_string(), Some(facts.local.port()))),
        ..Peer::default()
    };
    let since = request.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32 };
    let http = http_request(ir, request, body);
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            destination: Some(destination),
            request: Some(Request { time: Some(time), http: Some(http) }),
            context_extensions: context,
            metadata_context: metadata(request.metadata),
            tls_session: facts.sni.map(|sni| TlsSession { sni: sni.to_owned() }),
        }),
    }
}

fn http_request(ir: &ir::ExtAuthz, request: &mut Guarded<'_>, body: Option<(&Bytes, bool)>) -> HttpRequest {
    let id = match request.head.headers.get_id(HeaderId::XRequestId) {
        Some(id) => text(id),
        None => (request.random)().to_string(),
    };
    let head = &*request.head;
    let scheme = if head.https { "https" } else { "http" };
    let mut headers =
        fields(&head.headers, |name| ir.request_headers.is_empty() || fits(&ir.request_headers, name));
    for (name, value) in [
        (":authority", &*head.authority),
        (":method", head.method.as_str()),
        (":path", &head.target),
        (":scheme", scheme),
    ] {
        headers.insert(name.to_owned(), value.to_owned());
    }
    let mut http = HttpRequest {
        id,
        method: head.method.as_str().to_owned(),
        path: head.target.clone(),
        host: head.authority.clone(),
        scheme: scheme.to_owned(),
        size: request.body_length.map_or(-1, |length| length as i64),
        protocol: head.version.as_str().to_owned(),
        ..HttpRequest::default()
    };
    if let Some((body, whole)) = body {
        headers.insert(PARTIAL_BODY.to_owned(), (!whole).to_string());
        if whole {
            http.size = body.len() as i64;
        }
        if ir.raw_body {
            http.raw_body = body.clone();
        } else {
            http.body = text(body);
        }
    }
    http.headers = headers;
    http
}

/// Fields of a head, those of one name put together as lists are (cookies: RFC 9113 section 8.2.3).
fn fields(headers: &Headers, wanted: impl Fn(&[u8]) -> bool) -> HashMap<String, String> {
    let mut fields: HashMap<String, String> = HashMap::with_capacity(headers.len() + 4);
    for (id, name, value) in headers.iter() {
        if is_private(id, name) || !wanted(name) {
            continue;
        }
        let value = text(value);
        fields
            .entry(text(name))
            .and_modify(|list| {
                list.push_str(if id == HeaderId::Cookie { "; " } else { "," });
                list.push_str(&value);
            })
            .or_insert(value);
    }
    fields
}

/// Protobuf strings are UTF-8: what is not is replaced, not left out.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn address(address: String, port: Option<u16>) -> Address {
    Address { socket_address: Some(SocketAddress { address, port_value: port.map(u32::from) }) }
}

/// URI, DNS name, subject, in that order.
fn principal(identity: &PeerIdentity) -> &str {
    identity.uris.first().or(identity.dns.first()).unwrap_or(&identity.subject)
}

/// The certificate as PEM, URL-encoded.
fn certificate(identity: &PeerIdentity) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in STANDARD.encode(&identity.der).as_bytes().chunks(PEM_LINE) {
        pem.push_str(&text(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    let mut encoded = String::with_capacity(pem.len() * 5 / 4);
    for byte in pem.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Tokens, the user of a login, and what guards before have said.
fn metadata(metadata: &Metadata) -> Option<proto::Metadata> {
    let mut filter_metadata: HashMap<String, Struct> = HashMap::new();
    for (namespace, value) in &metadata.dynamic {
        if let Json::Object(fields) = value {
            filter_metadata.insert(namespace.clone(), to_struct(fields));
        }
    }
    if let Some(first) = metadata.tokens.first() {
        let payloads = filter_metadata.entry(JWT.to_owned()).or_default();
        payloads.fields.insert("payload".to_owned(), of_struct(to_struct(&first.claims)));
        for token in &metadata.tokens {
            payloads.fields.insert(token.issuer.clone(), of_struct(to_struct(&token.claims)));
        }
    }
    if let Some((user, how)) = &metadata.user {
        let login = filter_metadata.entry(LOGIN.to_owned()).or_default();
        for (name, value) in [("user", &**user), ("method", how)] {
            login.fields.insert(name.to_owned(), Value { kind: Some(Kind::StringValue(value.to_owned())) });
        }
    }
    (!filter_metadata.is_empty()).then_some(proto::Metadata { filter_metadata })
}

fn of_struct(fields: Struct) -> Value {
    Value { kind: Some(Kind::StructValue(fields)) }
}

fn to_struct(fields: &serde_json::Map<String, Json>) -> Struct {
    Struct { fields: fields.iter().map(|(name, value)| (name.clone(), to_value(value))).collect() }
}

fn to_value(value: &Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(list) => Kind::ListValue(ListValue { values: list.iter().map(to_value).collect() }),
        Json::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    Value { kind: Some(kind) }
}

/// The reverse, for what an authorizer says. `None`: it is nested deeper than anybody needs.
pub fn from_struct(fields: Struct, depth: usize) -> Option<serde_json::Map<String, Json>> {
    let depth = depth.checked_sub(1)?;
    fields.fields.into_iter().map(|(name, value)| Some((name, from_value(value, depth)?))).collect()
}

fn from_value(value: Value, depth: usize) -> Option<Json> {
    Some(match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(b)) => b.into(),
        // JSON has no infinity; protobuf's has.
        Some(Kind::NumberValue(n)) => serde_json::Number::from_f64(n).map_or(Json::Null, Json::Number),
        Some(Kind::StringValue(s)) => s.into(),
        Some(Kind::StructValue(fields)) => Json::Object(from_struct(fields, depth)?),
        Some(Kind::ListValue(list)) => {
            let depth = depth.checked_sub(1)?;
            Json::Array(list.values.into_iter().map(|value| from_value(value, depth)).collect::<Option<_>>()?)
        }
    })
}
