//! The cases that proxies are compared in.

use super::load::Load;
use super::setup::{Identities, Setup, Split, Upstream};

/// One job, given to all who can do it.
pub struct Case {
    /// Short, for `--cases`.
    pub name: String,
    /// For the heading of its table.
    pub about: String,
    /// What is done and measured.
    pub job: Job,
}

/// What is measured.
#[derive(Clone, Copy)]
pub enum Job {
    /// CPU per request, under as much load as the machine gives.
    Load {
        load: Load,
        setup: Setup,
        /// What each proxy is also compared with: itself, set up like this.
        plain: Option<Setup>,
    },
    /// Latency at this share of what the slowest peer can do.
    Rate { percent: u32 },
    /// Latency of small requests beside slow clients and uploads.
    Fairness,
    /// CPU per request of the gateway with one worker and with two.
    Workers,
}

const MIB: usize = 1024 * 1024;

/// All of them.
pub fn all() -> Vec<Case> {
    let small = |tls, connections| Load::Http1 { tls, connections, path: "/", upload: 0, close: false };
    let http2 = |connections, streams, path| Load::Http2 { connections, streams, path, grpc: false };
    let grpc = |each, path| Load::Http2 { connections: each, streams: each, path, grpc: true };
    let body = |tls, path, upload| Load::Http1 { tls, connections: 16, path, upload, close: false };
    let download = "/bytes/1048576";
    let closing = Load::Http1 { tls: false, connections: 64, path: "/", upload: 0, close: true };
    let plain = Setup::PLAIN;
    let h2_up = Setup { upstream: Upstream::Http2, ..plain };
    let grpc_up = Setup { upstream: Upstream::Grpc, ..plain };
    let split = |split| Setup { split, ..plain };
    let denied = |denials| Setup { denials, ..plain };
    let load = |load| Job::Load { load, setup: plain, plain: None };
    let upstream = |load, setup| Job::Load { load, setup, plain: None };
    let against = |load, setup, plain| Job::Load { load, setup, plain: Some(plain) };
    let rate = |percent| Job::Rate { percent };
    let identified = Load::Identified { connections: 64 };
    let identities = |identities| Setup { denials: 0, identities, ..plain };
    let cases = [
        ("h1-64", "HTTP/1.1, 128 bytes, 64 connections", load(small(false, 64))),
        ("h1-512", "HTTP/1.1, 128 bytes, 512 connections", load(small(false, 512))),
        ("h1-5000", "HTTP/1.1, 128 bytes, 5,000 connections", load(small(false, 5000))),
        ("h1-tls", "HTTP/1.1 over TLS, 128 bytes, 64 connections", load(small(true, 64))),
        ("h2-16x16", "HTTP/2 over TLS, 128 bytes, 16 connections of 16 streams", load(http2(16, 16, "/"))),
        ("h2-64x1", "HTTP/2 over TLS, 128 bytes, 64 connections of 1 stream", load(http2(64, 1, "/"))),
        (
            "h2-up",
            "HTTP/2 over TLS, and HTTP/2 in plaintext to the backend, 128 bytes, 16 connections of 16 streams",
            upstream(http2(16, 16, "/"), h2_up),
        ),
        (
            "grpc",
            "gRPC over TLS, one message of 128 bytes each way, 16 connections of 16 streams",
            upstream(grpc(16, "/grpc/1"), grpc_up),
        ),
        (
            "grpc-stream",
            "gRPC over TLS, 1,000 messages of 128 bytes from the server per request, 4 connections of 4 streams",
            upstream(grpc(4, "/grpc/1000"), grpc_up),
        ),
        ("down", "HTTP/1.1, 1 MiB down, 16 connections", load(body(false, download, 0))),
        ("down-tls", "HTTP/1.1 over TLS, 1 MiB down, 16 connections", load(body(true, download, 0))),
        ("down-h2", "HTTP/2 over TLS, 1 MiB down, 4 connections of 4 streams", load(http2(4, 4, download))),
        ("up", "HTTP/1.1, 1 MiB up, 16 connections", load(body(false, "/upload", MIB))),
        ("up-tls", "HTTP/1.1 over TLS, 1 MiB up, 16 connections", load(body(true, "/upload", MIB))),
        ("connections", "HTTP/1.1, a connection per request, 64 at a time", load(closing)),
        ("tls-full", "TLS, a full handshake and one request", load(Load::Handshakes { resumed: false })),
        ("tls-resumed", "TLS, a resumed handshake and one request", load(Load::Handshakes { resumed: true })),
        (
            "split-90-10",
            "HTTP/1.1, 128 bytes, 64 connections: split by weight, 90 to 10",
            against(small(false, 64), split(Split::Weighted), plain),
        ),
        (
            "split-sticky",
            "HTTP/1.1, 128 bytes, 64 connections, 1,000 users: split by weight, each user on one side",
            against(Load::Users { connections: 64 }, split(Split::Sticky), plain),
        ),
        (
            "policies-100",
            "HTTP/1.1, 128 bytes, 64 connections: 100 authorization policies",
            against(small(false, 64), denied(100), denied(0)),
        ),
        (
            "identities",
            "HTTP/1.1 over TLS with client certificates, 128 bytes, 64 connections: a token of RS256 in each request, \
             20 policies about both, as istiod sets up Envoy",
            upstream(identified, identities(Identities::Mesh)),
        ),
        (
            "identities-remembered",
            "the same, and Envoy remembers verified tokens (`jwt_cache_config`), as the gateway does",
            upstream(identified, identities(Identities::Remembered)),
        ),
        (
            "access-log",
            "HTTP/1.1, 128 bytes, 64 connections: each request logged to a file",
            against(small(false, 64), Setup { access_log: true, ..plain }, plain),
        ),
        ("rate-30", "HTTP/1.1, 128 bytes, at 30 % of the slowest peer's maximum", rate(30)),
        ("rate-60", "HTTP/1.1, 128 bytes, at 60 % of the slowest peer's maximum", rate(60)),
        ("rate-90", "HTTP/1.1, 128 bytes, at 90 % of the slowest peer's maximum", rate(90)),
        (
            "fairness",
            "HTTP/1.1, 128 bytes at 1,000 a second, alone and beside 300 uploads of 1 MiB a second and 8 clients that \
             download at 64 KiB a second",
            Job::Fairness,
        ),
        (
            "two-workers",
            "HTTP/1.1, 128 bytes, 128 connections: two workers against one, generator and backend on the same cores",
            Job::Workers,
        ),
    ];
    cases.map(|(name, about, job)| Case { name: name.to_owned(), about: about.to_owned(), job }).into()
}

/// The small HTTP/1.1 job at these numbers of connections.
pub fn small(connections: &[usize]) -> Vec<Case> {
    let case = |&connections: &usize| Case {
        name: format!("h1-{connections}"),
        about: format!("HTTP/1.1, 128 bytes, {connections} connections"),
        job: Job::Load {
            load: Load::Http1 { tls: false, connections, path: "/", upload: 0, close: false },
            setup: Setup::PLAIN,
            plain: None,
        },
    };
    connections.iter().map(case).collect()
}
