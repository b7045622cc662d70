//! A load client that accounts for every request it sends.
//!
//! Closed-loop or at a fixed rate, over HTTP/1.1 or HTTP/2, plain or TLS, on connections that stay open. An error is
//! any request that failed or was reset; nothing is retried, ever. A request that was never sent (the server had
//! closed or said GOAWAY before) is not an error: the worker opens a new connection, as any client would.

pub(crate) mod client;
mod h1;
mod h2;
mod histogram;
pub mod paced;
pub(crate) mod reader;
pub mod recorded;
mod tally;
mod worker;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use histogram::Histogram;
pub use tally::{Outcome, Tally, UserRecord};

/// The protocol that requests are sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, one request at a time per connection.
    Http1,
    /// HTTP/2: by prior knowledge on plaintext, by ALPN on TLS.
    Http2,
}

/// How a request says which user it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// In the header of this name: `u-7`.
    Header(String),
    /// In the cookie of this name: `u-7`.
    Cookie(String),
    /// By the cookies that the server has set for it.
    CookieJar,
}

/// The simulated users; each is one worker's, so the requests of one user never overlap.
#[derive(Clone, Debug)]
pub struct Users {
    /// How many.
    pub count: usize,
    /// How they are told apart.
    pub identity: Identity,
}

/// What to send, where, and for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where connections go.
    pub address: SocketAddr,
    /// `Host`, `:authority` and the TLS server name.
    pub host: String,
    /// Request target.
    pub path: String,
    /// Request method.
    pub method: String,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Bytes of request body.
    pub body: usize,
    /// Protocol version.
    pub version: Version,
    /// The CA to trust; TLS is spoken when it is there.
    pub ca: Option<PathBuf>,
    /// The certificate to show, by the PEM files of its chain and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Connections kept open.
    pub connections: usize,
    /// Concurrent streams on each HTTP/2 connection.
    pub streams: usize,
    /// Client threads.
    pub threads: usize,
    /// Stop after this many requests.
    pub requests: Option<u64>,
    /// Stop after this long.
    pub duration: Option<Duration>,
    /// Requests per second of all connections together; as fast as answers come without it.
    pub rate: Option<f64>,
    /// Simulated users.
    pub users: Option<Users>,
    /// Open a new connection when the server ended one in good order.
    pub reconnect: bool,
    /// Wait as long as an answer's `Retry-After` asks for.
    pub patient: bool,
    /// How long an answer may take before it counts as the error `timeout`.
    pub timeout: Duration,
}

impl Plan {
    /// `GET /` by HTTP/1.1 in plaintext on 16 connections, until stopped.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            host: address.to_string(),
            path: "/".to_owned(),
            method: "GET".to_owned(),
            headers: Vec::new(),
            body: 0,
            version: Version::Http1,
            ca: None,
            certificate: None,
            connections: 16,
            streams: 1,
            threads: 1,
            requests: None,
            duration: None,
            rate: None,
            users: None,
            reconnect: true,
            patient: false,
            timeout: Duration::from_secs(10),
        }
    }

    /// By HTTP/2, with so many streams on each connection.
    pub fn http2(mut self, streams: usize) -> Self {
        self.version = Version::Http2;
        self.streams = streams;
        self
    }

    /// Starts the load on threads of its own.
    pub fn start(self) -> Result<Running, String> {
        let control = Arc::new(Control::new(&self));
        let connector = client::Connector::new(&self)?;
        let plan = Arc::new(self);
        let threads = plan.threads.clamp(1, plan.connections.max(1));
        let mut tallies = Vec::new();
        let mut handles = Vec::new();
        for thread in 0..threads {
            let tally = Arc::new(Mutex::new(Tally::default()));
            tallies.push(Arc::clone(&tally));
            let context = worker::Context {
                plan: Arc::clone(&plan),
                control: Arc::clone(&control),
                connector: connector.clone(),
                tally,
            };
            handles.push(std::thread::spawn(move || worker::run_thread(thread, threads, context)));
        }
        Ok(Running { control, tallies, handles, started: Instant::now() })
    }

    /// Runs to the end of its requests or duration.
    pub fn run(self) -> Result<Tally, String> {
        assert!(
            self.requests.is_some() || self.duration.is_some(),
            "a plan that never ends must be started instead"
        );
        Ok(self.start()?.join())
    }
}

/// A load that is being sent.
pub struct Running {
    control: Arc<Control>,
    tallies: Vec<Arc<Mutex<Tally>>>,
    handles: Vec<JoinHandle<()>>,
    started: Instant,
}

impl Running {
    /// What has happened so far.
    pub fn snapshot(&self) -> Tally {
        let mut total = Tally::default();
        for tally in &self.tallies {
            total.merge(&tally.lock().expect("no worker panics with the lock"));
        }
        total.seconds = self.started.elapsed().as_secs_f64();
        total
    }

    /// Whether every worker has ended.
    pub fn is_finished(&self) -> bool {
        self.handles.iter().all(JoinHandle::is_finished)
    }

    /// Sends nothing more, waits for the answers that are due, and reports.
    pub fn stop(self) -> Tally {
        self.control.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Waits for the plan's end and reports.
    pub fn join(mut self) -> Tally {
        for handle in std::mem::take(&mut self.handles) {
            handle.join().expect("a load thread panicked");
        }
        self.snapshot()
    }
}

/// What tells workers when to send and when to stop.
struct Control {
    stop: AtomicBool,
    issued: AtomicU64,
    requests: u64,
    rate: Option<f64>,
    started: Instant,
    end: Option<Instant>,
}

impl Control {
    fn new(plan: &Plan) -> Self {
        let started = Instant::now();
        Self {
            stop: AtomicBool::new(false),
            issued: AtomicU64::new(0),
            requests: plan.requests.unwrap_or(u64::MAX),
            rate: plan.rate,
            started,
            end: plan.duration.map(|duration| started + duration),
        }
    }

    /// A permit for one request, with the moment that it is due, or `None` at the end. At a fixed rate latency counts
    /// from that moment, so that a stalled server cannot hide the requests that it kept from being sent.
    fn permit(&self) -> Option<Instant> {
        if self.stopped() {
            return None;
        }
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        if number >= self.requests {
            return None;
        }
        Some(match self.rate {
            Some(rate) => self.started + Duration::from_secs_f64(number as f64 / rate),
            None => Instant::now(),
        })
    }

    /// Gives back a permit whose request could not be sent.
    fn refund(&self) {
        self.issued.fetch_sub(1, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.end.is_some_and(|end| Instant::now() >= end)
    }
}
