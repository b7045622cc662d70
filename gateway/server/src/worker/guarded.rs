//! What the instruction guard counts of the workers' codecs, called as workers call it. Not an interface: it follows the
//! workers, and nothing but `loadtests/guard` may use it.

use fieldgate_wire::h1::Malformed;

pub use super::exchange::Request;
pub use super::forward::{
    ClientCert, http2_request, http2_response, prepare_request, prepare_response, write_request,
    write_response,
};
use super::{h1, h2};

/// Reads a head off an HTTP/1 connection into a request whose memory is that of the one before.
pub fn read_http1(input: &[u8], request: &mut Request) -> Result<Option<usize>, Malformed> {
    h1::parse(input, request, false)
}

/// The same for HTTP/2.
pub fn read_http2(parts: &http::request::Parts, request: &mut Request) -> Result<(), Malformed> {
    request.head.clear();
    h2::read_head(request, parts, true, || 7)
}
