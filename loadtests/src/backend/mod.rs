//! A backend server that a proxy can be measured and tested against: HTTP/1.1 and HTTP/2 by prior knowledge on one
//! port, one thread per core, cheap enough that its cost does not hide the proxy's.
//!
//! It is a test instrument. It is not hardened and must never face a network.

mod answer;
mod faults;
mod h1;
mod h2;
mod rewound;
mod tls;
mod websocket;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use clap::{Args, ValueEnum};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const BACKLOG: i32 = 4096;
/// Receipts that are kept.
const RECEIPTS: usize = 4096;
/// Longer than any scenario.
const NEVER: Duration = Duration::from_hours(24);

/// How a backend is started.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// Name that every answer carries in `x-backend`.
    #[arg(long, default_value = "backend")]
    pub name: String,
    /// Protocols to speak.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,
    /// Threads, each with its own listening socket.
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Close each connection after so many answers, without a word in HTTP/1.1, with GOAWAY in HTTP/2.
    #[arg(long)]
    pub close_after: Option<u64>,
    /// Close each connection after so many milliseconds without a request.
    #[arg(long)]
    pub close_idle: Option<u64>,
    /// The path that every request is answered for, whatever it asks, apart from `/stats` and `/received`.
    #[arg(long, value_name = "PATH")]
    pub always: Option<String>,
    /// A Unix socket to take faults at: a line each of `delay MS`, `cold MS`, `resets PER_MILLE`, `status CODE`,
    /// `truncate`, `refuse` (no listening socket) and `heal`.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Work on so many requests at once; others wait in the order that they came in.
    #[arg(long, value_name = "REQUESTS")]
    pub capacity: Option<usize>,
    /// Milliseconds of work in each request.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub service: u64,
    /// Speak TLS, with the certificate of this PEM file.
    #[arg(long, value_name = "PATH", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, value_name = "PATH")]
    pub key: Option<PathBuf>,
    /// What becomes of TLS handshakes.
    #[arg(long, value_enum, default_value_t = Handshakes::Done)]
    pub handshakes: Handshakes,
}

/// What becomes of TLS handshakes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Handshakes {
    /// They succeed.
    #[default]
    Done,
    /// They are never answered.
    Stalled,
    /// A RST answers them.
    Reset,
}

impl Options {
    /// A backend at this address that closes nothing by itself.
    pub fn at(listen: SocketAddr, name: &str) -> Self {
        let name = name.to_owned();
        Self {
            listen,
            name,
            mode: Mode::Auto,
            threads: 1,
            close_after: None,
            close_idle: None,
            always: None,
            control: None,
            capacity: None,
            service: 0,
            certificate: None,
            key: None,
            handshakes: Handshakes::Done,
        }
    }
}

/// The protocols that a backend speaks on its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// HTTP/2 when the connection starts with its preface, HTTP/1.1 otherwise.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 by prior knowledge only.
    Http2,
}

/// Serves until the process ends; an error means that the port could not be bound.
pub fn serve(options: &Options) -> io::Result<()> {
    let state = Arc::new(State::new(options)?);
    // All sockets are bound before any thread accepts, so that a port in use fails the start.
    let sockets =
        (0..options.threads.max(1)).map(|_| bind(options.listen)).collect::<io::Result<Vec<_>>>()?;
    if let Some(path) = &options.control {
        faults::listen(path, Arc::clone(&state))?;
    }
    let (mode, address) = (options.mode, options.listen);
    let threads: Vec<_> = sockets
        .into_iter()
        .map(|socket| {
            let state = Arc::clone(&state);
            std::thread::spawn(move || block_on(accept(socket, address, mode, state)))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a backend thread panicked"))??;
    }
    Ok(())
}

/// Counters since the start, answered by `/stats`.
#[derive(Debug, Default, Serialize)]
struct Counters {
    connections: AtomicU64,
    /// Open now.
    open: AtomicU64,
    /// The most that were open at once.
    most_open: AtomicU64,
    requests: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Exchanges that the client broke off.
    cancelled: AtomicU64,
}

/// What all connections of a backend share.
struct State {
    name: String,
    healthy: AtomicBool,
    /// Wakes what stalls.
    resumed: watch::Sender<u64>,
    counters: Counters,
    close_after: u64,
    close_idle: Duration,
    always: Option<String>,
    faults: faults::Faults,
    /// Places at work, if they are counted.
    places: Option<Semaphore>,
    service: Duration,
    /// Whether nothing but the path decides on an answer, so that the hot path may be taken.
    is_plain: bool,
    /// Requests whose bodies were summed up, the latest last.
    received: Mutex<VecDeque<answer::Receipt>>,
    /// The whole HTTP/1.1 answer to `/`, so that the hot path is one copy.
    root_h1: Vec<u8>,
    tls: Option<tls::Acceptor>,
}

/// What a connection is carried by.
trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// The connection underneath.
    fn tcp(&self) -> &TcpStream;
}

impl Transport for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl State {
    fn new(options: &Options) -> io::Result<Self> {
        Ok(Self {
            name: options.name.clone(),
            healthy: AtomicBool::new(true),
            resumed: watch::Sender::new(0),
            counters: Counters::default(),
            close_after: options.close_after.unwrap_or(u64::MAX),
            close_idle: options.close_idle.map_or(NEVER, Duration::from_millis),
            always: options.always.clone(),
            faults: faults::Faults::default(),
            places: options.capacity.map(Semaphore::new),
            service: Duration::from_millis(options.service),
            is_plain: options.control.is_none() && options.capacity.is_none() && options.service == 0,
            received: Mutex::default(),
            root_h1: h1::root_answer(&options.name),
            tls: tls::Acceptor::of(options)?,
        })
    }

    fn receipt(&self, receipt: answer::Receipt) {
        let mut received = self.received.lock().expect("nobody panics with the lock");
        if received.len() == RECEIPTS {
            received.pop_front();
        }
        received.push_back(receipt);
    }

    /// What happens before a request is answered: its turn, its work, its delay. The permit is held until the end.
    async fn work(&self, path: &str) -> Option<SemaphorePermit<'_>> {
        if self.is_plain || is_exempt(path) {
            return None;
        }
        let place = match &self.places {
            Some(places) => places.acquire().await.ok(),
            None => None,
        };
        let pause = self.service + self.faults.delay();
        if !pause.is_zero() {
            sleep(pause).await;
        }
        place
    }

    /// Ends when `/resume` is asked for.
    async fn resumed(&self) {
        // The sender lives as long as the state.
        let _ = self.resumed.subscribe().changed().await;
    }
}

/// Whether a path tells of the backend itself, and so meets neither faults nor a queue.
fn is_exempt(path: &str) -> bool {
    path == "/stats" || path.starts_with("/healthz")
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn block_on<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future)
}

async fn accept(
    socket: std::net::TcpListener,
    address: SocketAddr,
    mode: Mode,
    state: Arc<State>,
) -> io::Result<()> {
    let mut listener = TcpListener::from_std(socket)?;
    let mut listens = state.faults.listens();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            _ = listens.wait_for(|listens| !listens) => None,
        };
        let Some(accepted) = accepted else {
            drop(listener);
            // The sender lives as long as the state.
            let _ = listens.wait_for(|listens| *listens).await;
            listener = TcpListener::from_std(bind(address)?)?;
            continue;
        };
        // A connection that died in the queue is its client's affair, not a reason to stop.
        let Ok((stream, _)) = accepted else { continue };
        count(&state.counters.connections, 1);
        let open = state.counters.open.fetch_add(1, Ordering::Relaxed) + 1;
        state.counters.most_open.fetch_max(open, Ordering::Relaxed);
        let state = Arc::clone(&state);
        spawn_local(async move {
            // How a connection ends is the client's to judge.
            let _ = connection(stream, mode, Arc::clone(&state)).await;
            state.counters.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn connection(stream: TcpStream, mode: Mode, state: Arc<State>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let Some(tls) = &state.tls else { return exchanges(stream, mode, state).await };
    let Some(stream) = tls.accept(stream).await? else { return Ok(()) };
    exchanges(stream, mode, Arc::clone(&state)).await
}

async fn exchanges<S: Transport>(mut stream: S, mode: Mode, state: Arc<State>) -> io::Result<()> {
    let mut input = BytesMut::with_capacity(h1::BUFFER);
    while mode == Mode::Auto && PREFACE.starts_with(&input) && input.len() < PREFACE.len() {
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
    }
    if mode == Mode::Http2 || input.starts_with(PREFACE) {
        h2::serve(rewound::Rewound::new(input.freeze(), stream), state).await
    } else {
        h1::serve(stream, input, &state).await
    }
}
