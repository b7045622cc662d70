//! HTTP/1.0 and HTTP/1.1 on the wire (RFC 9112): heads in, heads out, chunked bodies both ways.
//!
//! Pure functions over byte slices; the caller owns sockets, buffers and deadlines. Whatever two implementations could
//! read differently is refused here, so that nothing ambiguous is ever forwarded.

mod chunked;
mod head;

pub use chunked::{ChunkedDecoder, Decoded, write_chunk_size};
pub use head::{
    BodyKind, HeadLimits, MAX_FIELDS, Malformed, ParsedRequest, ParsedResponse, parse_request,
    parse_response, valid_authority,
};
