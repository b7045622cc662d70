//! Upstream connections of one worker: opened, kept, reused.
//!
//! HTTP/1 connections wait in a stack per endpoint (the last used first: the others may go idle and be closed); HTTP/2
//! connections are shared, and another is opened when the peer's stream limit is reached. Which endpoint is asked is
//! decided elsewhere.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_core::ir::PoolLimits;
use fieldgate_wire::io::{Io, Stream};
use h2::client::SendRequest;
use rustc_hash::FxHashMap;
use tokio::net::TcpStream;

use super::Worker;

/// Streams that one HTTP/2 connection carries at most, whatever the peer allows.
const STREAMS: usize = 100;
/// Idle HTTP/1 connections per endpoint and worker.
const IDLE: usize = 512;
/// HTTP/2 receive windows in bytes: a stream's bounds what a slow client makes us hold. The connection's has room for all
/// of its streams: with less, a few slow clients would stop everybody else's responses on it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;

/// All upstream connections of a worker.
#[derive(Default)]
pub struct Upstreams {
    endpoints: RefCell<FxHashMap<(u32, SocketAddr), Endpoint>>,
}

#[derive(Default)]
struct Endpoint {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
}

struct Idle {
    stream: Stream,
    since: Instant,
    keep: Duration,
}

#[derive(Clone)]
struct Shared {
    send: SendRequest<Bytes>,
    streams: Rc<Cell<usize>>,
    alive: Rc<Cell<bool>>,
    used: Rc<Cell<Instant>>,
}

/// Counts a stream of a shared connection for as long as it lives.
pub struct StreamGuard {
    streams: Rc<Cell<usize>>,
    alive: Rc<Cell<bool>>,
}

impl StreamGuard {
    /// Nobody opens another stream on the connection. Those that are open go on.
    pub fn retire(&self) {
        self.alive.set(false);
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
    }
}

impl Upstreams {
    /// A kept HTTP/1 connection that shows no sign of being closed.
    pub fn reuse(&self, slot: u32, address: SocketAddr) -> Option<Stream> {
        let mut endpoints = self.endpoints.borrow_mut();
        let idle = &mut endpoints.get_mut(&(slot, address))?.idle;
        while let Some(mut kept) = idle.pop() {
            // Readable means closed, or a response nobody asked for: neither can be used.
            if !kept.stream.io_mut().is_stale() {
                return Some(kept.stream);
            }
        }
        None
    }

    /// Keeps an HTTP/1 connection for the next request.
    pub fn keep(&self, slot: u32, address: SocketAddr, stream: Stream, limits: &PoolLimits, now: Instant) {
        let mut endpoints = self.endpoints.borrow_mut();
        let idle = &mut endpoints.entry((slot, address)).or_default().idle;
        if idle.len() < IDLE {
            idle.push(Idle { stream, since: now, keep: limits.idle_timeout });
        }
    }

    /// A stream's worth of an HTTP/2 connection, opened if need be. `true`: it was open before.
    pub async fn http2(
        &self,
        slot: u32,
        address: SocketAddr,
        limits: &PoolLimits,
    ) -> io::Result<(SendRequest<Bytes>, StreamGuard, bool)> {
        if let Some(shared) = self.free_stream(slot, address) {
            return Ok((shared.send.clone(), shared.take(), true));
        }
        // Rare, and not to make every exchange larger.
        let (send, guard) = Box::pin(self.open_http2(slot, address, limits)).await?;
        Ok((send, guard, false))
    }

    async fn open_http2(
        &self,
        slot: u32,
        address: SocketAddr,
        limits: &PoolLimits,
    ) -> io::Result<(SendRequest<Bytes>, StreamGuard)> {
        let stream = connect(address, limits).await?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .enable_push(false)
            .max_send_buffer_size(256 * 1024);
        let handshake = builder.handshake::<_, Bytes>(stream.into_io());
        let (send, connection) =
            bounded(limits.connect_timeout, handshake).await?.map_err(io::Error::other)?;
        let shared = Shared {
            send,
            streams: Rc::default(),
            alive: Rc::new(Cell::new(true)),
            used: Rc::new(Cell::new(Instant::now())),
        };
        let alive = shared.alive.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "upstream HTTP/2 connection ended");
            }
            alive.set(false);
        });
        let guard = shared.take();
        let send = shared.send.clone();
        self.endpoints.borrow_mut().entry((slot, address)).or_default().shared.push(shared);
        Ok((send, guard))
    }

    fn free_stream(&self, slot: u32, address: SocketAddr) -> Option<Shared> {
        let mut endpoints = self.endpoints.borrow_mut();
        let shared = &mut endpoints.get_mut(&(slot, address))?.shared;
        shared.retain(|s| s.alive.get());
        shared
            .iter()
            .filter(|s| s.streams.get() < STREAMS.min(s.send.current_max_send_streams()))
            .min_by_key(|s| s.streams.get())
            .cloned()
    }

    /// Idle connections of an endpoint.
    pub fn idle(&self, slot: u32, address: SocketAddr) -> u32 {
        self.endpoints.borrow().get(&(slot, address)).map_or(0, |e| {
            e.idle.len() as u32 + e.shared.iter().filter(|s| s.streams.get() == 0).count() as u32
        })
    }

    /// Closes what was idle for too long, what the peer has closed, and what belongs to endpoints that are gone.
    pub fn sweep(&self, worker: &Worker) {
        let snapshot = worker.published().snapshot.clone();
        let now = Instant::now();
        self.endpoints.borrow_mut().retain(|(slot, address), endpoint| {
            let pool = snapshot.pool(*slot);
            let known = pool.is_some_and(|p| p.endpoints.iter().any(|e| e.state.address == *address));
            endpoint.idle.retain_mut(|kept| {
                known
                    && (kept.keep.is_zero() || now.duration_since(kept.since) < kept.keep)
                    && !kept.stream.io_mut().is_stale()
            });
            let keep = pool.map_or(Duration::ZERO, |p| p.ir.limits.idle_timeout);
            endpoint.shared.retain(|s| {
                let idle = s.streams.get() == 0
                    && (!known || !keep.is_zero() && now.duration_since(s.used.get()) >= keep);
                s.alive.get() && !idle
            });
            known || !endpoint.idle.is_empty() || !endpoint.shared.is_empty()
        });
    }
}

impl Shared {
    fn take(&self) -> StreamGuard {
        self.streams.set(self.streams.get() + 1);
        self.used.set(Instant::now());
        StreamGuard { streams: self.streams.clone(), alive: self.alive.clone() }
    }
}

/// Opens a connection.
pub async fn connect(address: SocketAddr, limits: &PoolLimits) -> io::Result<Stream> {
    let tcp = bounded(limits.connect_timeout, TcpStream::connect(address)).await??;
    tcp.set_nodelay(true)?;
    let local = tcp.local_addr()?;
    Ok(Stream::new(Io::Tcp(tcp), address, local))
}

async fn bounded<F: Future>(limit: Duration, future: F) -> io::Result<F::Output> {
    if limit.is_zero() {
        return Ok(future.await);
    }
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}")))
}
