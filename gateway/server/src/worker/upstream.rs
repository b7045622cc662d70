//! Upstream connections of one worker: opened, kept, reused.
//!
//! HTTP/1 connections wait in a stack per endpoint (the last used first: the others may go idle and be closed); HTTP/2
//! connections are shared, and another is opened when the peer's stream limit is reached. Every open connection has a
//! [`Lease`], which is how pools limit them. Which endpoint is asked is decided elsewhere.

mod lease;
mod tls;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_core::balance::{CompiledPool, EndpointState};
use fieldgate_core::ir::{PoolLimits, Protocol};
use fieldgate_wire::buffer::BufferPool;
use fieldgate_wire::io::{Io, Stream};
use fieldgate_wire::tls::HandshakeInfo;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use rustc_hash::FxHashMap;
use tokio::net::TcpStream;
use tokio::sync::Notify;

pub use self::lease::{Lease, Room};
use self::lease::{Limit, may_open};
pub use self::tls::Secured;
pub use self::tls::Wanted;
use self::tls::failed;
use super::Worker;
use crate::upstream_tls::{Chosen, Client, PoolClients};

/// Streams that one HTTP/2 connection carries at most, whatever the peer allows.
const STREAMS: usize = 100;
/// Idle HTTP/1 connections per endpoint and worker.
const IDLE: usize = 512;
/// HTTP/2 receive windows in bytes: a stream's bounds what a slow client makes us hold. The connection's has room for all
/// of its streams: with less, a few slow clients would stop everybody else's responses on it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;

/// All upstream connections of a worker.
pub struct Upstreams {
    endpoints: RefCell<FxHashMap<(u32, SocketAddr), Endpoint>>,
    /// By the pool's slot.
    rooms: RefCell<FxHashMap<u32, Rc<Room>>>,
    workers: u32,
    /// The worker's.
    buffers: Rc<BufferPool>,
    /// Tells all workers that requests wait for connections that others keep, or that some were given up.
    news: Arc<Notify>,
}

/// Why there is no connection.
#[derive(Debug)]
pub enum NoConnection {
    /// It could not be opened.
    Failed(io::Error),
    /// The pool's limit is reached.
    Full,
}

/// An HTTP/1 connection for a request.
pub struct Http1 {
    /// The connection.
    pub stream: Stream,
    /// The right to hold it.
    pub lease: Lease,
    /// Its TLS.
    pub secured: Secured,
    /// Whether it was kept.
    pub reused: bool,
}

/// A stream's worth of an HTTP/2 connection; `true`: the connection was open before.
pub type Http2 = (Shared, StreamGuard, bool);

/// What an endpoint chose.
pub enum Either {
    /// HTTP/1.1.
    Http1(Http1),
    /// HTTP/2.
    Http2(Http2),
}

/// An HTTP/1 connection that a request has done with.
pub struct Kept {
    /// The connection.
    pub stream: Stream,
    /// The right to hold it.
    pub lease: Lease,
    /// Its TLS.
    pub secured: Secured,
}

/// What will be spoken on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    /// As the endpoint chooses.
    Either,
}

#[derive(Default)]
struct Endpoint {
    idle: Vec<Idle>,
    shared: Vec<Shared>,
    /// This worker's connections, in use or not.
    open: Rc<Cell<u32>>,
}

struct Idle {
    stream: Stream,
    lease: Lease,
    secured: Secured,
    since: Instant,
    keep: Duration,
}

/// An HTTP/2 connection that requests share.
#[derive(Clone)]
pub struct Shared {
    /// Opens streams.
    pub send: SendRequest<Bytes>,
    settings: Rc<Settings>,
    streams: Rc<Cell<usize>>,
    alive: Rc<Cell<bool>>,
    answers: Rc<Cell<u64>>,
    used: Rc<Cell<Instant>>,
    secured: Rc<Secured>,
    /// The connection's task has it, and lets go of it when the connection is closed.
    lease: Weak<Lease>,
    room: Rc<Room>,
}

/// What the peer announced. Its settings are the first thing that it sends (RFC 9113 section 3.4), so once it has answered
/// a ping they are here.
struct Settings {
    ping: RefCell<Option<PingPong>>,
    known: Cell<bool>,
    arrived: Notify,
}

/// Counts a stream of a shared connection for as long as it lives.
pub struct StreamGuard {
    streams: Rc<Cell<usize>>,
    alive: Rc<Cell<bool>>,
    room: Rc<Room>,
    /// Responses that the connection has brought.
    answers: Rc<Cell<u64>>,
    /// How many when the stream was opened.
    answers_before: u64,
}

impl StreamGuard {
    /// A response has come on the stream.
    pub fn answered(&self) {
        self.answers.set(self.answers.get() + 1);
    }

    /// No response came in time. If the connection brought nothing else since, its peer may have forgotten it, and
    /// nobody opens another stream on it.
    pub fn timed_out(&self) {
        if self.answers.get() == self.answers_before {
            self.retire();
        }
    }

    /// Nobody opens another stream on the connection. Those that are open go on.
    pub fn retire(&self) {
        self.alive.set(false);
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
        self.room.freed();
    }
}

impl Upstreams {
    /// No connections, on one of so many workers. `news` is shared by all of them.
    pub fn new(workers: usize, news: Arc<Notify>, buffers: Rc<BufferPool>) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        Self { endpoints: RefCell::default(), rooms: RefCell::default(), workers, buffers, news }
    }

    /// An HTTP/1 connection: a kept one that shows no sign of being closed, or a new one.
    pub async fn http1(
        &self,
        pool: &CompiledPool,
        address: SocketAddr,
        wanted: Wanted<'_>,
    ) -> Result<Http1, NoConnection> {
        if let Some(kept) = self.reuse(pool, address, wanted) {
            return Ok(kept);
        }
        let lease = self.lease(pool, address)?;
        // Rare, and not to make every exchange larger.
        let opened = Box::pin(self.connect(pool, address, wanted, Speaks::Http1)).await;
        let (stream, _) = opened.map_err(NoConnection::Failed)?;
        lease.carries_one_more();
        Ok(Http1 { stream, lease, secured: wanted.secured(), reused: false })
    }

    fn reuse(&self, pool: &CompiledPool, address: SocketAddr, wanted: Wanted<'_>) -> Option<Http1> {
        let mut endpoints = self.endpoints.borrow_mut();
        let idle = &mut endpoints.get_mut(&(pool.slot, address))?.idle;
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            // For another host, or from before the pool's TLS changed, which the sweep closes.
            if !wanted.is_met_by(&idle[at].secured) {
                continue;
            }
            let mut kept = idle.remove(at);
            // Readable means closed, or a response nobody asked for: neither can be used.
            if !kept.stream.io_mut().is_stale() {
                kept.lease.carries_one_more();
                let Idle { stream, lease, secured, .. } = kept;
                return Some(Http1 { stream, lease, secured, reused: true });
            }
        }
        None
    }

    /// Keeps an HTTP/1 connection for the next request.
    pub fn keep(&self, pool: &CompiledPool, address: SocketAddr, used: Kept, now: Instant) {
        let Kept { stream, lease, secured } = used;
        if lease.is_worn_out(&pool.ir.limits, now) {
            // Closed before it is counted as closed.
            return drop(stream);
        }
        if let Some(limit) = self.limit(pool)
            && lease.must_give_way(limit)
        {
            drop(stream);
            return lease.give_way();
        }
        lease.room().freed();
        let mut endpoints = self.endpoints.borrow_mut();
        let idle = &mut endpoints.entry((pool.slot, address)).or_default().idle;
        if idle.len() < IDLE {
            idle.push(Idle { stream, lease, secured, since: now, keep: pool.ir.limits.idle_timeout });
        }
    }

    /// A kept connection brought no answer: its peer, or something on the way, may have forgotten it. Those that have been
    /// idle at least as long are of the same time and are closed; a new one costs less than finding out one by one.
    pub fn distrust(&self, pool: &CompiledPool, address: SocketAddr, since: Instant) {
        if let Some(endpoint) = self.endpoints.borrow_mut().get_mut(&(pool.slot, address)) {
            endpoint.idle.retain(|kept| kept.since >= since);
        }
    }

    /// A stream's worth of an HTTP/2 connection, opened if need be. `true`: it was open before.
    pub async fn http2(
        &self,
        pool: &CompiledPool,
        address: SocketAddr,
        wanted: Wanted<'_>,
    ) -> Result<Http2, NoConnection> {
        if let Some(shared) = self.free_stream(pool, address, wanted) {
            let guard = shared.take();
            return Ok((shared, guard, true));
        }
        let lease = self.lease(pool, address)?;
        // Rare, and not to make every exchange larger.
        let opened = Box::pin(async {
            let (stream, _) = self.connect(pool, address, wanted, Speaks::Http2).await?;
            self.begin_http2(pool, address, wanted, lease, stream).await
        });
        let (shared, guard) = opened.await.map_err(NoConnection::Failed)?;
        Ok((shared, guard, false))
    }

    /// A connection by TLS that speaks what the endpoint prefers.
    pub async fn either(
        &self,
        pool: &CompiledPool,
        address: SocketAddr,
        wanted: Wanted<'_>,
    ) -> Result<Either, NoConnection> {
        if let Some(shared) = self.free_stream(pool, address, wanted) {
            let guard = shared.take();
            return Ok(Either::Http2((shared, guard, true)));
        }
        if let Some(kept) = self.reuse(pool, address, wanted) {
            return Ok(Either::Http1(kept));
        }
        let lease = self.lease(pool, address)?;
        let opened = Box::pin(async {
            let (stream, chosen) = self.connect(pool, address, wanted, Speaks::Either).await?;
            if chosen == Chosen::Http2 {
                let (shared, guard) = self.begin_http2(pool, address, wanted, lease, stream).await?;
                return Ok(Either::Http2((shared, guard, false)));
            }
            lease.carries_one_more();
            Ok(Either::Http1(Http1 { stream, lease, secured: wanted.secured(), reused: false }))
        });
        opened.await.map_err(NoConnection::Failed)
    }

    /// Opens a connection, with its TLS handshake if there is to be one.
    async fn connect(
        &self,
        pool: &CompiledPool,
        address: SocketAddr,
        wanted: Wanted<'_>,
        speaks: Speaks,
    ) -> io::Result<(Stream, Chosen)> {
        if pool.ir.tls.is_some() && !pool.transport.is_set() {
            return Err(failed(address, io::ErrorKind::InvalidData, "it was not made ready"));
        }
        let limit = pool.ir.limits.connect_timeout;
        let begun = Instant::now();
        let tcp = bounded(limit, TcpStream::connect(address)).await??;
        tcp.set_nodelay(true)?;
        let local = tcp.local_addr()?;
        if !wanted.is_some() {
            return Ok((Stream::new(Io::Tcp(tcp), address, local), Chosen::Nothing));
        }
        let handshake = wanted.handshake(tcp, address, self.buffers.take(), speaks == Speaks::Http1);
        let rest = if limit.is_zero() { limit } else { limit.saturating_sub(begun.elapsed()) };
        let io = if !limit.is_zero() && rest.is_zero() { None } else { bounded(rest, handshake).await.ok() };
        let io = io.unwrap_or_else(|| {
            let why = format!("the handshake was not over within the connect timeout of {limit:?}");
            Err(failed(address, io::ErrorKind::TimedOut, &why))
        })?;
        let chosen = Client::chosen(HandshakeInfo::alpn_of(&io));
        match (speaks, chosen) {
            (Speaks::Http2, Chosen::Http1) => {
                let why = "the endpoint chose HTTP/1.1 (ALPN), and the pool speaks HTTP/2";
                Err(failed(address, io::ErrorKind::InvalidData, why))
            }
            _ => Ok((Stream::new(io, address, local), chosen)),
        }
    }

    async fn begin_http2(
        &self,
        pool: &CompiledPool,
        address: SocketAddr,
        wanted: Wanted<'_>,
        lease: Lease,
        stream: Stream,
    ) -> io::Result<(Shared, StreamGuard)> {
        let limits = &pool.ir.limits;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 * 1024)
            .enable_push(false)
            .max_send_buffer_size(256 * 1024);
        let handshake = builder.handshake::<_, Bytes>(stream.into_io());
        let (send, mut connection) =
            bounded(limits.connect_timeout, handshake).await?.map_err(io::Error::other)?;
        let lease = Rc::new(lease);
        let shared = Shared {
            send,
            settings: Rc::new(Settings {
                ping: RefCell::new(connection.ping_pong()),
                known: Cell::new(false),
                arrived: Notify::new(),
            }),
            streams: Rc::default(),
            alive: Rc::new(Cell::new(true)),
            answers: Rc::default(),
            used: Rc::new(Cell::new(Instant::now())),
            secured: Rc::new(wanted.secured()),
            lease: Rc::downgrade(&lease),
            room: lease.room().clone(),
        };
        let alive = shared.alive.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%address, %error, "upstream HTTP/2 connection ended");
            }
            alive.set(false);
            drop(lease);
        });
        let guard = shared.take();
        // This request has one of its streams.
        let others = STREAMS.min(shared.send.current_max_send_streams()).saturating_sub(1);
        shared.room.freed_many(others);
        self.endpoints.borrow_mut().entry((pool.slot, address)).or_default().shared.push(shared.clone());
        Ok((shared, guard))
    }

    /// Where requests wait for a pool.
    pub fn room(&self, pool: &CompiledPool) -> Rc<Room> {
        let mut rooms = self.rooms.borrow_mut();
        let room = rooms.entry(pool.slot).or_insert_with(|| self.new_room(pool));
        // The slot was another pool's.
        if !room.is_of(&pool.shared) {
            *room = self.new_room(pool);
        }
        room.clone()
    }

    fn new_room(&self, pool: &CompiledPool) -> Rc<Room> {
        Rc::new(Room::new(pool.shared.clone(), self.news.clone()))
    }

    /// Whether an endpoint has a connection for one more request, or may get one.
    pub fn has_room(&self, pool: &CompiledPool, endpoint: &Arc<EndpointState>, http2: bool) -> bool {
        let Some(limit) = self.limit(pool) else { return true };
        let address = endpoint.address;
        let mut open = 0;
        if let Some(known) = self.endpoints.borrow().get(&(pool.slot, address)) {
            open = known.open.get();
            let by_http2 = || known.shared.iter().any(Shared::has_stream);
            let negotiated = pool.ir.protocol == Protocol::Auto && PoolClients::is_for(pool, address);
            if if http2 { by_http2() } else { !known.idle.is_empty() || negotiated && by_http2() } {
                return true;
            }
        }
        may_open(endpoint, open, &self.room(pool), limit)
    }

    /// Asks other workers to give way.
    pub fn call_for_room(&self) {
        self.news.notify_waiters();
    }

    /// Ready when a worker calls for room, or has made some.
    pub fn room_news(&self) -> impl Future<Output = ()> + use<> {
        self.news.clone().notified_owned()
    }

    /// What to do about it: connections that are not in use are closed for others, and those who wait here try again.
    pub fn share_room(&self, worker: &Worker) {
        self.give_way(worker);
        self.rooms.borrow().values().for_each(|room| room.freed());
    }

    fn give_way(&self, worker: &Worker) {
        let published = worker.published();
        for ((slot, _), endpoint) in self.endpoints.borrow_mut().iter_mut() {
            let Some(limit) = published.snapshot.pool(*slot).and_then(|pool| self.limit(pool)) else {
                continue;
            };
            // The oldest first: they are the likeliest to go unused.
            while endpoint.idle.first().is_some_and(|kept| kept.lease.must_give_way(limit)) {
                let Idle { stream, lease, .. } = endpoint.idle.remove(0);
                drop(stream);
                lease.give_way();
            }
            // They are counted until they are closed, which is a little later.
            let mut surplus = endpoint.open.get().saturating_sub(limit.share);
            endpoint.shared.retain(|shared| {
                let unused = surplus > 0 && shared.streams.get() == 0;
                let goes = unused && shared.lease.upgrade().is_some_and(|lease| lease.must_give_way(limit));
                surplus -= u32::from(goes);
                !goes
            });
        }
    }

    fn limit(&self, pool: &CompiledPool) -> Option<Limit> {
        Some(Limit::new(&pool.ir.limits, self.workers)).filter(Limit::is_any)
    }

    fn lease(&self, pool: &CompiledPool, address: SocketAddr) -> Result<Lease, NoConnection> {
        let endpoint = pool.endpoints.iter().find(|e| e.state.address == address);
        let Some(endpoint) = endpoint else {
            return Err(NoConnection::Failed(io::Error::other("the endpoint has left the pool")));
        };
        let open = self.endpoints.borrow_mut().entry((pool.slot, address)).or_default().open.clone();
        let limit = Limit::new(&pool.ir.limits, self.workers);
        Lease::take(&endpoint.state, &open, &self.room(pool), limit).ok_or(NoConnection::Full)
    }

    fn free_stream(&self, pool: &CompiledPool, address: SocketAddr, wanted: Wanted<'_>) -> Option<Shared> {
        let mut endpoints = self.endpoints.borrow_mut();
        let shared = &mut endpoints.get_mut(&(pool.slot, address))?.shared;
        shared.retain(|s| s.alive.get() && !s.is_worn_out(&pool.ir.limits));
        let usable = |s: &&Shared| s.has_stream() && wanted.is_met_by(&s.secured);
        shared.iter().filter(usable).min_by_key(|s| s.streams.get()).cloned()
    }

    /// Idle connections of an endpoint.
    pub fn idle(&self, slot: u32, address: SocketAddr) -> u32 {
        self.endpoints.borrow().get(&(slot, address)).map_or(0, |e| {
            e.idle.len() as u32 + e.shared.iter().filter(|s| s.streams.get() == 0).count() as u32
        })
    }

    /// Closes all connections that no request has used for so long.
    pub fn give_up_idle(&self, unused: Duration) {
        let now = Instant::now();
        let old = |since: Instant| now.saturating_duration_since(since) >= unused;
        for endpoint in self.endpoints.borrow_mut().values_mut() {
            endpoint.idle.retain(|kept| !old(kept.since));
            endpoint.shared.retain(|shared| shared.streams.get() > 0 || !old(shared.used.get()));
        }
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
                    && pool.is_some_and(|p| !kept.lease.is_worn_out(&p.ir.limits, now))
                    && pool.is_some_and(|p| kept.secured.is_current(p, *address))
                    && !kept.stream.io_mut().is_stale()
            });
            let keep = pool.map_or(Duration::ZERO, |p| p.ir.limits.idle_timeout);
            endpoint.shared.retain(|s| {
                let current = pool.is_some_and(|p| s.secured.is_current(p, *address));
                let idle = s.streams.get() == 0
                    && (!known || !current || !keep.is_zero() && now.duration_since(s.used.get()) >= keep);
                s.alive.get() && !idle
            });
            known || endpoint.open.get() > 0
        });
        self.rooms.borrow_mut().retain(|_, room| Rc::strong_count(room) > 1);
        self.give_way(worker);
    }
}

impl Shared {
    fn has_stream(&self) -> bool {
        self.alive.get() && self.streams.get() < STREAMS.min(self.send.current_max_send_streams())
    }

    /// Whether the peer takes extended CONNECT (RFC 8441 section 3). On a new connection its settings are waited for.
    pub async fn takes_extended_connect(&self, limits: &PoolLimits) -> bool {
        let settings = &self.settings;
        if !settings.known.get() && !self.send.is_extended_connect_protocol_enabled() {
            if let Some(mut ping) = settings.ping.take() {
                let settings = settings.clone();
                // A task of its own: a client that goes away must not take the answer with it.
                tokio::task::spawn_local(async move {
                    // If the connection breaks, who waits is to find that out.
                    let _ = ping.ping(Ping::opaque()).await;
                    settings.known.set(true);
                    settings.arrived.notify_waiters();
                });
            }
            // No answer in time is as good as a no.
            let _ = bounded(limits.connect_timeout, settings.arrived.notified()).await;
        }
        self.send.is_extended_connect_protocol_enabled()
    }

    /// Whether it has carried all that it may, or is as old as it may become. Its streams go on; it closes after them.
    fn is_worn_out(&self, limits: &PoolLimits) -> bool {
        let limited =
            limits.max_requests_per_connection != u32::MAX || !limits.max_connection_duration.is_zero();
        limited && self.lease.upgrade().is_some_and(|lease| lease.is_worn_out(limits, Instant::now()))
    }

    fn take(&self) -> StreamGuard {
        if let Some(lease) = self.lease.upgrade() {
            lease.carries_one_more();
        }
        self.streams.set(self.streams.get() + 1);
        self.used.set(Instant::now());
        StreamGuard {
            streams: self.streams.clone(),
            alive: self.alive.clone(),
            room: self.room.clone(),
            answers: self.answers.clone(),
            answers_before: self.answers.get(),
        }
    }
}

async fn bounded<F: Future>(limit: Duration, future: F) -> io::Result<F::Output> {
    if limit.is_zero() {
        return Ok(future.await);
    }
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}")))
}
