//! The cases that proxies are compared in.

use super::load::Load;

/// One job, given to all.
pub struct Case {
    /// Short, for `--cases`.
    pub name: String,
    /// For the heading of its table.
    pub about: String,
    /// The load.
    pub load: Load,
}

const MIB: usize = 1024 * 1024;

/// All of them, the cheap ones first.
pub fn all() -> Vec<Case> {
    let small = |tls, connections| Load::Http1 { tls, connections, path: "/", upload: 0, close: false };
    let http2 = |connections, streams, path| Load::Http2 { connections, streams, path };
    let body = |tls, path, upload| Load::Http1 { tls, connections: 16, path, upload, close: false };
    let download = "/bytes/1048576";
    let closing = Load::Http1 { tls: false, connections: 64, path: "/", upload: 0, close: true };
    let cases = [
        ("h1-64", "HTTP/1.1, 128 bytes, 64 connections", small(false, 64)),
        ("h1-512", "HTTP/1.1, 128 bytes, 512 connections", small(false, 512)),
        ("h1-5000", "HTTP/1.1, 128 bytes, 5,000 connections", small(false, 5000)),
        ("h1-tls", "HTTP/1.1 over TLS, 128 bytes, 64 connections", small(true, 64)),
        ("h2-16x16", "HTTP/2 over TLS, 128 bytes, 16 connections of 16 streams", http2(16, 16, "/")),
        ("h2-64x1", "HTTP/2 over TLS, 128 bytes, 64 connections of 1 stream", http2(64, 1, "/")),
        ("down", "HTTP/1.1, 1 MiB down, 16 connections", body(false, download, 0)),
        ("down-tls", "HTTP/1.1 over TLS, 1 MiB down, 16 connections", body(true, download, 0)),
        ("down-h2", "HTTP/2 over TLS, 1 MiB down, 4 connections of 4 streams", http2(4, 4, download)),
        ("up", "HTTP/1.1, 1 MiB up, 16 connections", body(false, "/upload", MIB)),
        ("up-tls", "HTTP/1.1 over TLS, 1 MiB up, 16 connections", body(true, "/upload", MIB)),
        ("connections", "HTTP/1.1, a connection per request, 64 at a time", closing),
        ("tls-full", "TLS, a full handshake and one request", Load::Handshakes { resumed: false }),
        ("tls-resumed", "TLS, a resumed handshake and one request", Load::Handshakes { resumed: true }),
    ];
    cases.map(|(name, about, load)| Case { name: name.to_owned(), about: about.to_owned(), load }).into()
}

/// The small HTTP/1.1 job at these numbers of connections.
pub fn small(connections: &[usize]) -> Vec<Case> {
    let case = |&connections: &usize| Case {
        name: format!("h1-{connections}"),
        about: format!("HTTP/1.1, 128 bytes, {connections} connections"),
        load: Load::Http1 { tls: false, connections, path: "/", upload: 0, close: false },
    };
    connections.iter().map(case).collect()
}
