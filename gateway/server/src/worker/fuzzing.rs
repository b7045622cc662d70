//! What the fuzz targets reach of the workers' parsers and writers. Not in a build of the gateway.

use std::net::{IpAddr, SocketAddr};

use fieldgate_core::{Headers, RequestHead};
use fieldgate_wire::h1::{BodyKind, Malformed};

use super::exchange::Request;
pub use super::forward::{
    ClientCert, connection_option, http2_request, http2_response, prepare_request, prepare_response,
    read_http2_response, write_request, write_response,
};
use super::{Connection, h1, h2, side};

/// A request as a codec hands it over.
#[derive(Debug)]
pub struct Received {
    /// The head.
    pub head: RequestHead,
    /// The body that follows.
    pub body: BodyKind,
    /// Whether the client lets the connection go on.
    pub keep_alive: bool,
    /// The protocol that the client asks for.
    pub upgrade: Option<Vec<u8>>,
    /// Bytes of the head, for HTTP/1.
    pub len: usize,
}

/// A request of an HTTP/1 connection.
pub fn request(input: &[u8], https: bool) -> Result<Option<Received>, Malformed> {
    let mut request = Request::default();
    let len = h1::parse(input, &mut request, https)?;
    Ok(len.map(|len| received(request, len)))
}

/// A request of an HTTP/2 connection.
pub fn stream(parts: &http::request::Parts, ended: bool) -> Result<Received, Malformed> {
    let mut request = Request::default();
    h2::read_head(&mut request, parts, ended, || 7)?;
    Ok(received(request, 0))
}

/// The trailer section of a chunked body, from its first line to the empty one.
pub fn trailers(lines: &[u8]) -> Result<Option<Headers>, Malformed> {
    side::parse_trailers(lines)
}

/// The client's address, as the configured number of trusted proxies wrote it.
pub fn client(peer: SocketAddr, forwarded_for: Option<&[u8]>, trusted_hops: u32) -> IpAddr {
    let connection =
        Connection { bound: peer, peer, local: peer, tls: false, sni: None, identity: None, proof: None };
    let mut headers = Headers::new();
    if let Some(list) = forwarded_for {
        headers.push(b"x-forwarded-for", list);
    }
    connection.client(&headers, trusted_hops)
}

fn received(request: Request, len: usize) -> Received {
    let Request { head, body, keep_alive, upgrade, .. } = request;
    Received { head, body, keep_alive, upgrade, len }
}
