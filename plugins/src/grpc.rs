//! gRPC as guards need it: one message asked, one answered, in the framing of HTTP/2. Connections and time are the server's.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use fieldgate_core::guard::{Answered, Callout};
use fieldgate_core::ir::PoolKey;
use fieldgate_core::{HeaderId, Method, RequestHead};

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A unary call. `path` is `/package.Service/Method`; what an answer may have at most is `limit`, in bytes.
pub fn call(
    pool: &Arc<PoolKey>,
    authority: Option<&str>,
    path: &str,
    message: &[u8],
    timeout: Duration,
    limit: usize,
) -> Callout {
    let mut head = RequestHead { method: Method::Post, ..RequestHead::default() };
    head.authority.push_str(authority.unwrap_or_default());
    head.set_target(path);
    Callout {
        pool: pool.clone(),
        head,
        body: frame(message),
        client_body: None,
        grpc: true,
        timeout,
        limit: limit + PREFIX,
        step: 0,
    }
}

/// A message as it is sent.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("messages are bounded far below 4 GiB"));
    framed.put_slice(message);
    framed.freeze()
}

/// The message of an answer whose call went well, or what went wrong.
pub fn message(answered: &Answered) -> Result<Bytes, String> {
    if answered.status != 200 {
        return Err(format!("HTTP status {} instead of a gRPC answer", answered.status));
    }
    let status = answered.headers.get_id(HeaderId::GrpcStatus).map(String::from_utf8_lossy);
    match status.as_deref() {
        Some("0") => {}
        None => return Err("an answer without grpc-status".into()),
        Some(status) => {
            let said = answered.headers.get("grpc-message").map(String::from_utf8_lossy);
            return Err(format!("gRPC status {status}: {}", said.unwrap_or_default()));
        }
    }
    let body = &answered.body;
    let Some((&[compressed, a, b, c, d], rest)) = body.split_first_chunk::<PREFIX>() else {
        return Err("an answer without a message".into());
    };
    if compressed != 0 {
        return Err("a compressed message, which was not asked for".into());
    }
    if u32::from_be_bytes([a, b, c, d]) as usize != rest.len() {
        return Err("a message of another length than announced".into());
    }
    Ok(body.slice(PREFIX..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, grpc: Option<&str>, body: &[u8]) -> Answered {
        let mut answered = Answered { status, body: Bytes::copy_from_slice(body), ..Answered::default() };
        if let Some(grpc) = grpc {
            answered.headers.push(b"grpc-status", grpc.as_bytes());
            answered.headers.push(b"grpc-message", b"why not");
        }
        answered
    }

    #[test]
    fn a_message_survives_its_frame() {
        let framed = frame(b"hello");
        assert_eq!(&framed[..], b"\0\0\0\0\x05hello");
        assert_eq!(message(&answer(200, Some("0"), &framed)).unwrap(), "hello");
    }

    #[test]
    fn what_is_no_good_answer_says_why() {
        for (answered, why) in [
            (answer(503, None, b""), "HTTP status 503 instead of a gRPC answer"),
            (answer(200, None, b"\0\0\0\0\0"), "an answer without grpc-status"),
            (answer(200, Some("14"), b""), "gRPC status 14: why not"),
            (answer(200, Some("0"), b"\0\0"), "an answer without a message"),
            (answer(200, Some("0"), b"\x01\0\0\0\0"), "a compressed message, which was not asked for"),
            (answer(200, Some("0"), b"\0\0\0\0\x02x"), "a message of another length than announced"),
            (answer(200, Some("0"), b"\0\0\0\0\x01xy"), "a message of another length than announced"),
        ] {
            assert_eq!(message(&answered).unwrap_err(), why);
        }
    }
}
