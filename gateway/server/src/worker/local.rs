//! Responses that the gateway makes itself.

use std::borrow::Cow;

use bytes::Bytes;
use fieldgate_core::{HeaderId, Headers, Method, RequestHead};
use fieldgate_wire::h1::BodyKind;
use h2::server::SendResponse;

use super::forward::{connection_option, http2_response};
use super::side::{H1Side, write_field};

/// Bytes of a body that become a `grpc-message`.
const GRPC_MESSAGE: usize = 1024;

/// A response of the gateway's own, with who is to blame.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Envoy's response code details.
    pub details: Cow<'static, str>,
    /// Envoy's response flags, or `-`.
    pub flags: &'static str,
    /// More fields.
    pub headers: Headers,
    /// The body.
    pub body: Cow<'static, str>,
}

impl Answer {
    /// An answer without more fields than its body needs.
    pub fn new(
        status: u16,
        details: impl Into<Cow<'static, str>>,
        flags: &'static str,
        body: &'static str,
    ) -> Self {
        Self { status, details: details.into(), flags, headers: Headers::new(), body: Cow::Borrowed(body) }
    }

    /// A gRPC answer with this status.
    pub fn grpc(
        status: u16,
        details: impl Into<Cow<'static, str>>,
        flags: &'static str,
        body: &'static str,
    ) -> Self {
        Self { status: 200, ..Self::new(200, details, flags, body) }.with_grpc_status(status)
    }

    /// As a gRPC client can read it: status 200 and the status in the head ("trailers-only").
    pub fn into_grpc(self) -> Self {
        // It has its gRPC status already.
        if self.headers.has(HeaderId::GrpcStatus) {
            return self;
        }
        let code = match self.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            // A client that sets a deadline waits for this one.
            504 if self.flags == "UT" => 4,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        };
        self.with_grpc_status(code)
    }

    fn with_grpc_status(mut self, code: u16) -> Self {
        self.headers.push(b"content-type", b"application/grpc");
        self.headers.push(b"grpc-status", code.to_string().as_bytes());
        self.headers.push(b"grpc-message", percent_encoded(self.body.trim_end()).as_bytes());
        self.status = 200;
        self.body = Cow::Borrowed("");
        self
    }

    /// The fields to send, content-length included.
    pub fn fields(&self) -> Headers {
        let mut fields = self.headers.clone();
        if !matches!(self.status, 204 | 304) {
            fields.push(b"content-length", self.body.len().to_string().as_bytes());
        }
        if !self.body.is_empty() && !fields.has(HeaderId::ContentType) {
            fields.push(b"content-type", b"text/plain");
        }
        fields.push(b"server", b"fieldgate");
        fields
    }
}

/// A `grpc-message` as gRPC writes it in a header (its specification over HTTP/2, "Percent-Encoded"), of bounded length.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if encoded.len() > GRPC_MESSAGE {
            break;
        }
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Puts the answer into the side's output.
pub fn write_h1(side: &mut H1Side, answer: &Answer, request: &RequestHead, keep_alive: bool) {
    write_status(&mut side.out, answer.status);
    for (_, name, value) in answer.fields().iter() {
        write_field(&mut side.out, name, value);
    }
    if let Some(connection) = connection_option(request.version, keep_alive) {
        write_field(&mut side.out, b"connection", connection.as_bytes());
    }
    side.out.extend_from_slice(b"\r\n");
    if request.method != Method::Head && !matches!(answer.status, 204 | 205 | 304) {
        side.out.extend_from_slice(answer.body.as_bytes());
    }
    side.begin_body(BodyKind::None);
}

/// Sends the answer on an HTTP/2 stream; nothing if the stream is gone.
pub fn send_h2(mut respond: SendResponse<Bytes>, answer: Answer, request: &RequestHead) -> Option<()> {
    let head = http2_response(answer.status, &answer.fields()).ok()?;
    let empty =
        answer.body.is_empty() || request.method == Method::Head || matches!(answer.status, 204 | 205 | 304);
    let mut send = respond.send_response(head, empty).ok()?;
    if !empty {
        send.send_data(Bytes::from(answer.body.into_owned()), true).ok()?;
    }
    Some(())
}

/// Appends the status line.
pub fn write_status(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend([
        b'0' + (status / 100) as u8,
        b'0' + (status / 10 % 10) as u8,
        b'0' + (status % 10) as u8,
        b' ',
    ]);
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_message_cannot_end_its_field() {
        assert_eq!(percent_encoded("no way"), "no way");
        assert_eq!(percent_encoded("a\r\nx: 100% ä"), "a%0D%0Ax: 100%25 %C3%A4");
        assert!(percent_encoded(&"\n".repeat(10_000)).len() <= GRPC_MESSAGE + 3);
    }
}
