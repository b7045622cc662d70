//! What an HTTP authorizer is asked: the client's own request, with as many of its fields as it is to see.

use std::sync::Arc;

use bytes::Bytes;
use fieldgate_core::ir;
use fieldgate_core::{HeaderId, RequestHead};

use super::{PARTIAL_BODY, fits, is_private};

/// The head of the question.
pub fn question(
    ir: &ir::ExtAuthz,
    path_prefix: &str,
    authority: Option<&str>,
    add: &[(Arc<str>, Arc<str>)],
    client: &RequestHead,
    body: Option<(&Bytes, bool)>,
) -> RequestHead {
    let mut head = RequestHead { method: client.method.clone(), ..RequestHead::default() };
    head.authority.push_str(authority.unwrap_or(&client.authority));
    // `OPTIONS *` has no path that something could stand before.
    let target = if client.target.starts_with('/') { &*client.target } else { "/" };
    head.set_target(&format!("{}{target}", path_prefix.trim_end_matches('/')));
    for (id, name, value) in client.headers.iter() {
        if is_private(id, name) || id == HeaderId::ContentLength {
            continue;
        }
        // Envoy sends it unasked: it is what most of them look at.
        if name == b"authorization" || fits(&ir.request_headers, name) {
            head.headers.push(name, value);
        }
    }
    for (name, value) in add {
        head.headers.set(name, value.as_bytes());
    }
    if let Some((_, whole)) = body {
        head.headers.set(PARTIAL_BODY, if whole { b"false" } else { b"true" });
    }
    head
}
