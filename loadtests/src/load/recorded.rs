//! A load at a fixed rate that keeps a record of each request: when, by which protocol, to what end.
//!
//! Open-loop: a request is sent when it is due, on a connection that is free or a new one, whatever became of those
//! before. Nothing is retried, and nothing is judged here: what a record means is the caller's to say.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep_until, timeout};

use super::client::{Answer, Connector, Extra, error_kind};
use super::{Plan, Version, h1, h2 as http2};

/// The header that numbers requests: `h1-get-17`.
pub const ID: &str = "x-load-id";
/// HTTP/2 connections, which requests take in turn.
const MULTIPLEXED: usize = 4;
/// So often a request may find its connection ended before it was sent.
const OPENINGS: usize = 3;

/// One of the kinds of requests that are sent at the same time.
#[derive(Clone, Debug)]
pub struct Strand {
    /// Its name, which begins its requests' ids.
    pub name: &'static str,
    /// Protocol, path, method, headers, timeout.
    pub plan: Plan,
    /// Requests per second.
    pub rate: f64,
    /// Whether a request may be processed twice.
    pub idempotent: bool,
    /// Whether `grpc-status` decides on success.
    pub grpc: bool,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its strand.
    pub strand: &'static str,
    /// As [`ID`] says it.
    pub id: String,
    /// When it was due.
    pub due: Instant,
    /// When its answer was complete, or it failed.
    pub end: Instant,
    /// Status, 0 if no head came.
    pub status: u16,
    /// Of gRPC.
    pub grpc_status: Option<u16>,
    /// `x-backend` of the answer.
    pub backend: String,
    /// What broke it off; empty for a complete answer.
    pub error: &'static str,
    /// Whether it may be processed twice.
    pub idempotent: bool,
    /// Whether all was well.
    pub succeeded: bool,
}

impl Record {
    /// Whether an answer was under way when it ended.
    pub fn was_cut(&self) -> bool {
        self.status != 0 && !self.error.is_empty()
    }

    /// What went wrong, in a word or two.
    pub fn failure(&self) -> String {
        match (self.error, self.grpc_status) {
            ("", Some(status)) if status != 0 => format!("grpc-status {status}"),
            ("", _) => self.status.to_string(),
            (error, _) => error.to_owned(),
        }
    }
}

/// A load of several strands on one address.
pub struct Recorded {
    stop: Arc<AtomicBool>,
    records: Arc<Mutex<Vec<Record>>>,
    thread: JoinHandle<()>,
}

impl Recorded {
    /// Starts it on a thread of its own.
    pub fn start(strands: Vec<Strand>) -> Result<Self, String> {
        let connectors =
            strands.iter().map(|strand| Connector::new(&strand.plan)).collect::<Result<Vec<_>, _>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let records = Arc::new(Mutex::new(Vec::new()));
        let (stopped, written) = (Arc::clone(&stop), Arc::clone(&records));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let local = LocalSet::new();
            for (strand, connector) in strands.into_iter().zip(connectors) {
                let lane = Rc::new(Lane::new(strand, connector, Arc::clone(&written)));
                local.spawn_local(lane.run(Arc::clone(&stopped)));
            }
            runtime.expect("a runtime can be built").block_on(local);
        });
        Ok(Self { stop, records, thread })
    }

    /// Whether all that ended since `since` was well, and something did.
    pub fn is_well_since(&self, since: Instant) -> bool {
        let records = self.records.lock().expect("nobody panics with the lock");
        let mut recent = records.iter().filter(|record| record.end >= since).peekable();
        recent.peek().is_some() && recent.all(|record| record.succeeded)
    }

    /// Sends nothing more, waits for the answers that are due, and gives all records.
    pub fn stop(self) -> Vec<Record> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the load's thread panicked");
        std::mem::take(&mut self.records.lock().expect("nobody panics with the lock"))
    }
}

/// `GET` and `POST` by HTTP/1.1, `GET` by HTTP/2 and unary gRPC, with so many requests per second in all.
pub fn usual_strands(address: SocketAddr, rate: f64, timeout: Duration) -> Vec<Strand> {
    let plan = Plan { timeout, ..Plan::new(address) };
    let post = Plan { method: "POST".to_owned(), body: 64, ..plan.clone() };
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let grpc = Plan {
        path: "/grpc/1".to_owned(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..post.clone().http2(1)
    };
    let strand = |name, plan, share, idempotent| Strand {
        name,
        plan,
        rate: rate * share,
        idempotent,
        grpc: name == "grpc",
    };
    vec![
        strand("h1-get", plan.clone(), 0.35, true),
        strand("h1-post", post, 0.1, false),
        strand("h2-get", plan.http2(1), 0.35, true),
        strand("grpc", grpc, 0.2, true),
    ]
}

struct Lane {
    strand: Strand,
    template: h1::Template,
    connector: Connector,
    free: RefCell<Vec<h1::Connection>>,
    multiplexed: [tokio::sync::Mutex<Option<SendRequest<Bytes>>>; MULTIPLEXED],
    records: Arc<Mutex<Vec<Record>>>,
}

impl Lane {
    fn new(strand: Strand, connector: Connector, records: Arc<Mutex<Vec<Record>>>) -> Self {
        Self {
            template: h1::Template::new(&strand.plan),
            strand,
            connector,
            free: RefCell::default(),
            multiplexed: Default::default(),
            records,
        }
    }

    async fn run(self: Rc<Self>, stop: Arc<AtomicBool>) {
        let started = Instant::now();
        let mut running = Vec::new();
        for number in 0_u32.. {
            let due = started + Duration::from_secs_f64(f64::from(number) / self.strand.rate);
            sleep_until(due.into()).await;
            if stop.load(Ordering::Relaxed) {
                break;
            }
            running.push(spawn_local(Rc::clone(&self).request(number, due)));
            running.retain(|task| !task.is_finished());
        }
        for task in running {
            task.await.expect("a request's task panicked");
        }
    }

    async fn request(self: Rc<Self>, number: u32, due: Instant) {
        let strand = &self.strand;
        let id = format!("{}-{number}", strand.name);
        let extra = Extra { header: Some((ID.to_owned(), id.clone())) };
        let exchange = async {
            match strand.plan.version {
                Version::Http1 => self.by_http1(&extra).await,
                Version::Http2 => self.by_http2(number as usize % MULTIPLEXED, &extra).await,
            }
        };
        let answer = timeout(strand.plan.timeout, exchange).await;
        let answer = answer.unwrap_or_else(|_| failed("timeout"));
        let well = answer.error.is_empty() && (200..300).contains(&answer.status);
        let record = Record {
            strand: strand.name,
            id,
            due,
            end: Instant::now(),
            status: answer.status,
            grpc_status: answer.grpc_status,
            backend: answer.backend,
            error: answer.error,
            idempotent: strand.idempotent,
            succeeded: well && (!strand.grpc || answer.grpc_status == Some(0)),
        };
        self.records.lock().expect("nobody panics with the lock").push(record);
    }

    async fn by_http1(&self, extra: &Extra) -> Answer {
        let mut connection = loop {
            let free = self.free.borrow_mut().pop();
            match free {
                Some(mut connection) => {
                    if !connection.is_closed().await {
                        break connection;
                    }
                }
                None => match self.connector.connect().await {
                    Ok(stream) => break h1::Connection::new(stream),
                    Err(error) => return failed(error_kind(&error)),
                },
            }
        };
        let answer = connection.exchange(&self.template, extra).await;
        if answer.error.is_empty() && !answer.close {
            self.free.borrow_mut().push(connection);
        }
        answer
    }

    async fn by_http2(&self, number: usize, extra: &Extra) -> Answer {
        for _ in 0..OPENINGS {
            let connection = match self.connection(number).await {
                Ok(connection) => connection,
                Err(kind) => return failed(kind),
            };
            match http2::exchange(connection, &self.strand.plan, extra, || {}).await {
                Ok(answer) => return answer,
                // It took no more requests; this one was not sent.
                Err(_) => *self.multiplexed[number].lock().await = None,
            }
        }
        failed("closed")
    }

    async fn connection(&self, number: usize) -> Result<SendRequest<Bytes>, &'static str> {
        let mut connection = self.multiplexed[number].lock().await;
        if let Some(open) = &*connection {
            return Ok(open.clone());
        }
        let open = async { http2::handshake(self.connector.connect().await?).await };
        let (open, driver) = open.await.map_err(|error| error_kind(&error))?;
        spawn_local(async move {
            // How it ends is told by the requests on it.
            let _ = driver.await;
        });
        *connection = Some(open.clone());
        Ok(open)
    }
}

fn failed(error: &'static str) -> Answer {
    Answer { error, ..Answer::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend;

    #[test]
    fn each_strand_is_recorded_by_its_outcome() {
        let address = crate::rig::ports::free();
        let options = backend::Options::at(address, "one");
        std::thread::spawn(move || backend::serve(&options));
        crate::rig::wait::until_true(Duration::from_secs(10), "the backend", || {
            crate::rig::http::connect(address).is_ok()
        })
        .unwrap();
        let mut strands = usual_strands(address, 200.0, Duration::from_secs(10));
        strands[0].plan.path = "/status/503".to_owned();
        strands[2].plan.path = "/truncate".to_owned();
        let load = Recorded::start(strands).unwrap();
        let started = Instant::now();
        std::thread::sleep(Duration::from_millis(500));
        assert!(!load.is_well_since(started));
        let records = load.stop();
        for (strand, failure, was_cut) in [
            ("h1-get", Some("503"), false),
            ("h1-post", None, false),
            ("h2-get", Some("truncated"), true),
            ("grpc", None, false),
        ] {
            let mut of = records.iter().filter(|record| record.strand == strand).peekable();
            assert!(of.peek().is_some(), "{strand}");
            for record in of {
                assert_eq!(record.succeeded, failure.is_none(), "{record:?}");
                assert_eq!(record.was_cut(), was_cut, "{record:?}");
                assert!(failure.is_none_or(|failure| record.failure() == failure), "{record:?}");
            }
        }
    }
}
