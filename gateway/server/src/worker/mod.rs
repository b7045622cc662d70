//! Workers: one thread each, with its own sockets, upstream connections, timers and buffers.
//!
//! Nothing on a worker's request path takes a lock or writes memory that another thread reads per request. Configuration
//! arrives through one shared pointer, commands through a channel. Nothing is compiled or resolved here.

mod accept;
mod admission;
mod callout;
mod capacity;
mod exchange;
mod forward;
#[cfg(fuzzing)]
pub mod fuzzing;
#[doc(hidden)]
pub mod guarded;
mod h1;
mod h2;
mod local;
mod mirror;
mod mutual;
mod replay;
mod reply;
mod shed;
mod side;
mod tunnel;
mod upstream;
mod work;

pub(crate) use self::h1::set_target;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use fieldgate_core::balance::{CompiledPool, PoolState};
use fieldgate_core::identity::PeerIdentity;
use fieldgate_core::ir::PoolKey;
use fieldgate_core::snapshot::CompiledRule;
use fieldgate_core::split::SplitState;
use fieldgate_core::{HeaderId, Headers, RequestHead, ResponseHead};
use fieldgate_wire::buffer::BufferPool;
use fieldgate_wire::stock::Stock;
use fieldgate_wire::timer::Wheel;
use smallvec::SmallVec;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::overload::{self, Connections, Gate, Overload, Pressure};
use crate::published::{Published, Shared};
use crate::telemetry::access_log::{AccessLog, Batch};
use crate::telemetry::{Outcome, Recorder};

/// Size of a connection's read buffer in bytes.
const BUFFER: usize = 16 * 1024;
/// A head that grew larger than this, in bytes, is not kept for the next message.
const HEAD: usize = 4 * 1024;
/// Events taken from the kernel at once. A larger batch starts more requests before it sees the first response: more
/// upstream connections in use at a time, each colder in every cache.
const EVENTS: usize = 64;
/// Buffers and output vectors kept per worker when not in use.
const RETAINED: usize = 512;

/// How long lines of the access log are gathered.
const LINES: Duration = Duration::from_millis(100);

/// From the drain's deadline to the worker's end: for those cut off to be told, and to be on record.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// What a worker is told.
pub enum Command {
    /// Accept on this socket.
    Listen {
        /// Names the socket in `Unlisten`.
        id: u64,
        /// The address as configured.
        address: SocketAddr,
        /// A bound, listening, non-blocking socket.
        socket: std::net::TcpListener,
    },
    /// Stop accepting on it. Its connections go on.
    Unlisten {
        /// As given in `Listen`.
        id: u64,
    },
    /// Memory is as scarce as this from now on.
    Pressure(Pressure),
    /// Push local metrics to the shared ones.
    Flush(oneshot::Sender<()>),
    /// Say what is going on.
    Report(oneshot::Sender<WorkerReport>),
    /// Accept nothing more, let requests in flight finish, then end.
    Drain {
        /// When it is over at the latest.
        deadline: Duration,
    },
}

/// An endpoint, its requests in flight, its idle connections.
pub type EndpointReport = (SocketAddr, u32, u32);

/// What is going on in a worker.
#[derive(Debug, Default)]
pub struct WorkerReport {
    /// Open downstream connections.
    pub connections: u64,
    /// Requests in flight.
    pub requests: u64,
    /// Per rule, how often each backend was chosen since the rule has had its backends and weights.
    pub splits: Vec<(String, Vec<(String, u64)>)>,
    /// Per pool and endpoint: requests in flight, idle connections.
    pub pools: Vec<(PoolKey, Vec<EndpointReport>)>,
}

/// A running worker.
pub struct WorkerHandle {
    commands: mpsc::UnboundedSender<Command>,
    thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
    finished: Arc<std::sync::atomic::AtomicBool>,
}

impl WorkerHandle {
    /// Sends a command; one that comes too late is dropped, which closes the reply channel in it.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Waits until the worker has drained. Blocks the thread.
    pub fn join(&self) {
        let thread = self.thread.lock().ok().and_then(|mut thread| thread.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Whether the worker has ended.
    pub fn is_finished(&self) -> bool {
        self.finished.load(std::sync::atomic::Ordering::Acquire)
    }
}

/// Starts a worker.
pub fn spawn(index: usize, shared: Arc<Shared>) -> io::Result<WorkerHandle> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let finished = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let end = finished.clone();
    let (started, ready) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let runtime = runtime();
        let failed = runtime.as_ref().err().map(|e| io::Error::new(e.kind(), e.to_string()));
        let _ = started.send(failed);
        if let Ok(runtime) = runtime {
            runtime.block_on(run(Worker::new(index, shared), receiver));
        }
        end.store(true, std::sync::atomic::Ordering::Release);
    })?;
    if let Some(error) = ready.recv().map_err(io::Error::other)? {
        return Err(error);
    }
    Ok(WorkerHandle { commands, thread: std::sync::Mutex::new(Some(thread)), finished })
}

/// A worker's runtime. It belongs to the thread, so its tasks need be neither `Send` nor woken through a second queue.
fn runtime() -> io::Result<tokio::runtime::LocalRuntime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .event_interval(61)
        .max_io_events_per_tick(EVENTS)
        .build_local(tokio::runtime::LocalOptions::default())
}

/// The state of one worker.
pub(crate) struct Worker {
    pub wheel: Rc<Wheel>,
    pub buffers: Rc<BufferPool>,
    outs: Stock<Vec<u8>>,
    request_heads: Stock<RequestHead>,
    response_heads: Stock<ResponseHead>,
    cache: RefCell<Cache<Arc<ArcSwap<Published>>, Arc<Published>>>,
    current: RefCell<Current>,
    pub recorder: Recorder,
    origin: Instant,
    random: Cell<u64>,
    pub splits: RefCell<Vec<SplitState>>,
    pub chosen: RefCell<Vec<Chosen>>,
    pub pools: RefCell<Vec<PoolState>>,
    pub upstreams: upstream::Upstreams,
    pub mirrors: mirror::Mirrors,
    pub callouts: callout::Callouts,
    /// Tokens whose signature is known to be good.
    pub tokens: RefCell<fieldgate_plugins::jwt::Cache>,
    /// Lines of the access log that were not handed over yet.
    lines: RefCell<Batch>,
    index: usize,
    overload: Arc<Overload>,
    /// Whether new requests are taken.
    pub gate: Gate,
    pub pace: shed::Pace,
    pub room: shed::Room,
    /// TLS handshakes under way, and whose turn it is.
    pub handshakes: Cell<u32>,
    pub handshake_turn: tokio::sync::Semaphore,
    pub connections: Cell<u64>,
    pub requests: Cell<u64>,
    /// Connections and requests taken so far.
    pub taken: Cell<u64>,
    /// The same a second ago.
    taken_before: Cell<u64>,
    /// The same when memory was last given back to the system.
    given_back_at: Cell<u64>,
    pub draining: Cell<bool>,
    /// Wakes connections that are idle: the worker drains, or some are to make room.
    pub drain: Notify,
    /// The drain's deadline has passed: what is still in flight is cut off.
    pub over: Cell<bool>,
}

/// A worker's own count of users of the shared configuration, so that requests do not touch the shared count.
#[allow(clippy::redundant_allocation)]
pub(crate) type Current = Rc<Arc<Published>>;

/// How often each backend of a split was chosen; at its rule's slot.
#[derive(Default)]
pub(crate) struct Chosen {
    split: u64,
    counts: Vec<u64>,
}

impl Chosen {
    fn count(&mut self, split: u64, backend: usize) {
        if self.split != split {
            self.split = split;
            self.counts.clear();
        }
        if self.counts.len() <= backend {
            self.counts.resize(backend + 1, 0);
        }
        self.counts[backend] += 1;
    }
}

/// What is known of a downstream connection.
pub(crate) struct Connection {
    /// The address as configured, which names the listeners.
    pub bound: SocketAddr,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub tls: bool,
    pub sni: Option<String>,
    /// Who the client has proved to be.
    pub identity: Option<Arc<PeerIdentity>>,
    /// How it was asked to, where listeners ask.
    pub proof: Option<Box<mutual::Proof>>,
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Rc<Self> {
        let mut cache = Cache::new(shared.published.clone());
        let current = Rc::new(cache.load().clone());
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), index);
        let buffers = BufferPool::new(BUFFER, RETAINED);
        Rc::new(Self {
            wheel: Rc::new(Wheel::new(Duration::from_millis(50))),
            buffers: buffers.clone(),
            outs: Stock::new(RETAINED),
            request_heads: Stock::new(RETAINED),
            response_heads: Stock::new(RETAINED),
            cache: RefCell::new(cache),
            current: RefCell::new(current),
            recorder: Recorder::new(&shared.telemetry, index),
            origin: shared.started,
            random: Cell::new(seed | 1),
            splits: RefCell::default(),
            chosen: RefCell::default(),
            pools: RefCell::default(),
            upstreams: upstream::Upstreams::new(shared.workers, shared.room_news.clone(), buffers.clone()),
            mirrors: mirror::Mirrors::default(),
            callouts: callout::Callouts::default(),
            tokens: RefCell::default(),
            lines: RefCell::default(),
            index,
            overload: shared.overload.clone(),
            gate: Gate::default(),
            pace: shed::Pace::default(),
            room: shed::Room::new(),
            handshakes: Cell::new(0),
            handshake_turn: tokio::sync::Semaphore::new(1),
            connections: Cell::new(0),
            requests: Cell::new(0),
            taken: Cell::new(0),
            taken_before: Cell::new(0),
            given_back_at: Cell::new(0),
            draining: Cell::new(false),
            drain: Notify::new(),
            over: Cell::new(false),
        })
    }

    /// Who is connected, on all workers.
    pub fn all_connections(&self) -> &Arc<Connections> {
        &self.overload.connections
    }

    /// The configuration as of now. A request asks once and keeps what it got.
    pub fn published(&self) -> Current {
        let mut cache = self.cache.borrow_mut();
        let latest = cache.load();
        let mut current = self.current.borrow_mut();
        if !Arc::ptr_eq(latest, &current) {
            *current = Rc::new(latest.clone());
        }
        current.clone()
    }

    /// Milliseconds since the process started: the clock that endpoint states are kept by.
    pub fn now_ms(&self) -> u64 {
        self.wheel.now().into_std().saturating_duration_since(self.origin).as_millis() as u64
    }

    /// A random number (xorshift64*): good for choices, not for secrets.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// With what this worker knows about a pool.
    pub fn with_pool<T>(&self, pool: &CompiledPool, then: impl FnOnce(&mut PoolState) -> T) -> T {
        let mut pools = self.pools.borrow_mut();
        let slot = pool.slot as usize;
        if pools.len() <= slot {
            pools.resize_with(slot + 1, Default::default);
        }
        then(&mut pools[slot])
    }

    pub fn take_out(&self) -> Vec<u8> {
        self.outs.take().unwrap_or_else(|| Vec::with_capacity(1024))
    }

    pub fn give_out(&self, mut out: Vec<u8>) {
        if (1..=BUFFER).contains(&out.capacity()) {
            out.clear();
            self.outs.give(out);
        }
    }

    /// An empty head, whose memory is that of the one given back last: warm in every cache.
    pub fn take_request_head(&self) -> RequestHead {
        self.request_heads.take().unwrap_or_default()
    }

    pub fn give_request_head(&self, mut head: RequestHead) {
        if head.headers.capacity() <= HEAD && head.target.capacity() <= HEAD {
            head.clear();
            self.request_heads.give(head);
        }
    }

    /// As for requests, once there is something to put into it.
    pub fn make_room(&self, head: &mut ResponseHead) {
        if head.headers.capacity() == 0 {
            *head = self.response_heads.take().unwrap_or_default();
        }
    }

    pub fn give_response_head(&self, mut head: ResponseHead) {
        if (1..=HEAD).contains(&head.headers.capacity()) {
            head.headers.clear();
            self.response_heads.give(head);
        }
    }

    /// Frees what was needed for a burst and is no longer. To be called once a second.
    fn trim(&self) {
        self.buffers.trim();
        self.outs.trim();
        self.request_heads.trim();
        self.response_heads.trim();
        let taken = self.taken.get();
        // The first quiet second after work is the time for what costs time.
        if self.taken_before.replace(taken) == taken && self.given_back_at.replace(taken) != taken {
            crate::memory::give_back();
        }
    }

    /// Gives what this worker saw of endpoints to all, and judges by it when it is time. To be called once a second.
    fn look_for_outliers(&self) {
        let published = self.published();
        for pool in published.snapshot.pools().filter(|pool| pool.ir.outlier.is_some()) {
            let ejections =
                self.with_pool(pool, |state| pool.tick(state, self.now_ms(), &mut || self.random()));
            for ejection in &ejections {
                exchange::tell(self, pool, ejection);
            }
        }
    }

    /// Writes a line of the access log. It is handed over soon, with those of other requests.
    pub fn log(self: &Rc<Self>, log: &Arc<AccessLog>, outcome: &Outcome<'_>) {
        let mut lines = self.lines.borrow_mut();
        let first = lines.is_empty();
        log.log(&mut lines, outcome);
        if first {
            let (worker, log) = (self.clone(), log.clone());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(LINES).await;
                log.hand_over(&mut worker.lines.borrow_mut());
            });
        }
    }

    /// Counts a choice. Counts begin anew with other weights: what was achieved is told beside what is wanted now.
    pub fn count_choice(&self, rule: &CompiledRule, backend: usize) {
        let mut chosen = self.chosen.borrow_mut();
        let slot = rule.slot as usize;
        if chosen.len() <= slot {
            chosen.resize_with(slot + 1, Chosen::default);
        }
        chosen[slot].count(rule.split.fingerprint(), backend);
    }

    fn report(&self) -> WorkerReport {
        let published = self.published();
        let chosen = self.chosen.borrow();
        let splits = published
            .snapshot
            .rules()
            .filter_map(|rule| {
                let split = rule.split.fingerprint();
                let chosen = chosen.get(rule.slot as usize).filter(|c| c.split == split)?;
                let counts = &chosen.counts;
                let names = rule.ir.backends.iter().map(|b| match &b.target {
                    fieldgate_core::ir::BackendTarget::Pool(key) => key.to_string(),
                    fieldgate_core::ir::BackendTarget::Invalid(why) => format!("invalid: {why}"),
                });
                Some((rule.ir.id.to_string(), names.zip(counts.iter().copied()).collect()))
            })
            .collect();
        let states = self.pools.borrow();
        let pools = published
            .snapshot
            .pools()
            .map(|pool| {
                let endpoints = pool.endpoints.iter().map(|e| {
                    let address = e.state.address;
                    let in_flight = states.get(pool.slot as usize).map_or(0, |s| s.in_flight(address));
                    (address, in_flight, self.upstreams.idle(pool.slot, address))
                });
                (pool.ir.key.clone(), endpoints.collect())
            })
            .collect();
        WorkerReport { connections: self.connections.get(), requests: self.requests.get(), splits, pools }
    }
}

impl Connection {
    /// The client's address: the peer, or what trusted proxies in front wrote (Envoy's `xff_num_trusted_hops`), counted from
    /// the end of the list, which may be in several fields: a proxy may add one of its own behind the client's.
    pub fn client(&self, headers: &Headers, trusted_hops: u32) -> IpAddr {
        let peer = self.peer.ip().to_canonical();
        if trusted_hops == 0 {
            return peer;
        }
        let fields: SmallVec<[&[u8]; 4]> = headers.get_all_id(HeaderId::XForwardedFor).collect();
        let entries = fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
        let entry = entries.map(<[u8]>::trim_ascii).nth(trusted_hops as usize - 1);
        let address = entry.and_then(|entry| std::str::from_utf8(entry).ok()?.parse::<IpAddr>().ok());
        address.map_or(peer, |address| address.to_canonical())
    }
}

async fn watch_delay(worker: Rc<Worker>, target: Duration) {
    let taken = || worker.taken.get();
    let watched = overload::watch(&worker.overload, worker.index, &worker.gate, target, taken).await;
    if let Err(error) = watched {
        // What it refused last must not stay refused.
        worker.gate.set_admitted(1.0);
        tracing::error!(%error, "the delay of requests cannot be measured; --max-delay has no effect");
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

/// The worker's main loop: everything that can wake it, apart from connections.
async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let wheel = worker.wheel.clone();
    tokio::task::spawn_local(async move {
        wheel.run().await;
    });
    if let Some(target) = worker.overload.limits().delay {
        tokio::task::spawn_local(watch_delay(worker.clone(), target));
    }
    let mut listeners: HashMap<u64, Rc<Notify>> = HashMap::new();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut end: Option<Instant> = None;
    let mut room_news = Box::pin(worker.upstreams.room_news());
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = &mut room_news => {
                room_news.set(worker.upstreams.room_news());
                worker.upstreams.share_room(&worker);
                continue;
            }
            () = until(end), if !worker.over.get() => {
                worker.over.set(true);
                worker.wheel.expire_all();
                second.reset_after(LAST_WORDS);
                continue;
            }
            _ = second.tick() => {
                worker.recorder.flush();
                worker.upstreams.sweep(&worker);
                worker.look_for_outliers();
                if worker.lacks_files() {
                    worker.has_files();
                }
                worker.trim();
                if worker.over.get() || end.is_some() && worker.connections.get() == 0 {
                    break;
                }
                continue;
            }
        };
        match command {
            Some(Command::Listen { id, address, socket }) => {
                match tokio::net::TcpListener::from_std(socket) {
                    Ok(socket) => {
                        let stop = Rc::new(Notify::new());
                        tokio::task::spawn_local(accept::accept(
                            worker.clone(),
                            address,
                            socket,
                            stop.clone(),
                        ));
                        listeners.insert(id, stop);
                    }
                    Err(error) => tracing::error!(%address, %error, "cannot listen on the socket given"),
                }
            }
            Some(Command::Unlisten { id }) => {
                if let Some(stop) = listeners.remove(&id) {
                    stop.notify_one();
                }
            }
            Some(Command::Pressure(pressure)) => worker.set_pressure(pressure),
            Some(Command::Flush(done)) => {
                worker.recorder.flush();
                let _ = done.send(());
            }
            Some(Command::Report(reply)) => {
                let _ = reply.send(worker.report());
            }
            Some(Command::Drain { deadline }) => {
                for (_, stop) in listeners.drain() {
                    stop.notify_one();
                }
                worker.draining.set(true);
                worker.drain.notify_waiters();
                end = Some(Instant::now() + deadline);
                second.reset_after(Duration::from_millis(100));
            }
            None => break,
        }
    }
    worker.recorder.flush();
    if let Some(log) = &worker.published().access_log {
        log.hand_over(&mut worker.lines.borrow_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_present_weights() {
        let mut chosen = Chosen::default();
        for backend in [0, 2, 0] {
            chosen.count(7, backend);
        }
        assert_eq!(chosen.counts, [2, 0, 1]);
        chosen.count(8, 1);
        assert_eq!(chosen.counts, [0, 1]);
    }
}
