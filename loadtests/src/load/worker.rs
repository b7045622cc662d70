//! The loops that send: one per HTTP/1.1 connection or HTTP/2 stream, on one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, sleep_until, timeout};

use super::client::{Answer, Connector, Ended, Extra, error_kind};
use super::{Control, Identity, Outcome, Plan, Tally, Version, h1, h2 as http2};

/// A server that refuses connections is asked again after this pause, so as not to be flooded.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What a thread's workers share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) plan: Arc<Plan>,
    pub(super) control: Arc<Control>,
    pub(super) connector: Connector,
    pub(super) tally: Arc<Mutex<Tally>>,
}

impl Context {
    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().expect("no worker panics with the lock")
    }
}

/// Runs the share of one thread to its end.
pub(super) fn run_thread(thread: usize, threads: usize, context: Context) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be built");
    let local = LocalSet::new();
    for connection in (thread..context.plan.connections).step_by(threads) {
        match context.plan.version {
            Version::Http1 => {
                let worker = Worker::new(context.clone(), connection, context.plan.connections);
                local.spawn_local(worker.run_h1());
            }
            Version::Http2 => {
                let shared = Rc::new(Shared::default());
                let streams = context.plan.streams.max(1);
                for stream in 0..streams {
                    let number = connection * streams + stream;
                    let worker = Worker::new(context.clone(), number, context.plan.connections * streams);
                    local.spawn_local(worker.run_h2(Rc::clone(&shared)));
                }
            }
        }
    }
    runtime.block_on(local);
}

/// The HTTP/2 connection that several workers send on.
#[derive(Default)]
struct Shared {
    connection: RefCell<Option<SendRequest<Bytes>>>,
    /// Counts connections, so that a worker drops only the one that failed it.
    generation: Cell<u64>,
    opening: tokio::sync::Mutex<()>,
}

struct Worker {
    context: Context,
    /// This worker's users with their cookies, taken in turn.
    users: Vec<(usize, Vec<(String, String)>)>,
    turn: usize,
    idle: bool,
}

impl Worker {
    fn new(context: Context, number: usize, workers: usize) -> Self {
        let users: Vec<_> = match &context.plan.users {
            None => Vec::new(),
            Some(users) => (number..users.count).step_by(workers).map(|user| (user, Vec::new())).collect(),
        };
        let idle = context.plan.users.is_some() && users.is_empty();
        Self { context, users, turn: 0, idle }
    }

    async fn run_h1(mut self) {
        let context = self.context.clone();
        let template = h1::Template::new(&context.plan);
        let mut connection: Option<h1::Connection> = None;
        let mut opened = false;
        while let Some(due) = self.next_due().await {
            if let Some(open) = &mut connection
                && open.is_closed().await
            {
                context.tally().ended += 1;
                connection = None;
            }
            if connection.is_none() {
                if opened && !context.plan.reconnect {
                    return context.control.refund();
                }
                match context.connector.connect().await {
                    Ok(stream) => connection = Some(h1::Connection::new(stream)),
                    Err(error) => {
                        self.connect_failed(error_kind(&error)).await;
                        continue;
                    }
                }
                opened = true;
                context.tally().connections += 1;
            }
            let open = connection.as_mut().expect("opened above");
            context.tally().sent += 1;
            let (user, extra) = self.next_user();
            let answer = timeout(context.plan.timeout, open.exchange(&template, &extra))
                .await
                .unwrap_or_else(|_| timed_out());
            if answer.close {
                context.tally().close_seen += 1;
            }
            if answer.close || !answer.error.is_empty() {
                connection = None;
            }
            let asked = answer.retry_after;
            self.record(answer, user, due);
            self.wait_as_asked(asked).await;
        }
    }

    async fn run_h2(mut self, shared: Rc<Shared>) {
        let context = self.context.clone();
        while let Some(due) = self.next_due().await {
            let mut attempt = 0;
            // Until the request is sent: a connection that takes no more is left, and nothing was lost.
            loop {
                if attempt > 0 && !context.plan.reconnect {
                    return context.control.refund();
                }
                attempt += 1;
                let (generation, connection) = match self.shared_connection(&shared).await {
                    Ok(Some(connection)) => connection,
                    Ok(None) => return context.control.refund(),
                    Err(kind) => {
                        self.connect_failed(kind).await;
                        break;
                    }
                };
                let (user, extra) = self.peek_user();
                let was_sent = Cell::new(false);
                let exchange = http2::exchange(connection, &context.plan, &extra, || was_sent.set(true));
                let result = timeout(context.plan.timeout, exchange).await;
                // One that waited in vain for its turn on the connection has failed like one that was sent.
                if was_sent.get() || result.is_err() {
                    context.tally().sent += 1;
                }
                match result {
                    Ok(Err(Ended::GoAway | Ended::Closed)) => shared.forget(generation),
                    Ok(Ok(answer)) => {
                        self.turn += 1;
                        let asked = answer.retry_after;
                        self.record(answer, user, due);
                        self.wait_as_asked(asked).await;
                        break;
                    }
                    Err(_) => {
                        self.turn += 1;
                        self.record(timed_out(), user, due);
                        break;
                    }
                }
            }
        }
    }

    /// The open connection or a new one; `None` when there was one and it must not be replaced.
    async fn shared_connection(
        &self,
        shared: &Rc<Shared>,
    ) -> Result<Option<(u64, SendRequest<Bytes>)>, &'static str> {
        let _opening = shared.opening.lock().await;
        if let Some(connection) = &*shared.connection.borrow() {
            return Ok(Some((shared.generation.get(), connection.clone())));
        }
        if shared.generation.get() > 0 && !self.context.plan.reconnect {
            return Ok(None);
        }
        let open = async { http2::handshake(self.context.connector.connect().await?).await };
        let (connection, driver) = open.await.map_err(|error| error_kind(&error))?;
        let generation = shared.generation.get() + 1;
        shared.generation.set(generation);
        *shared.connection.borrow_mut() = Some(connection.clone());
        self.context.tally().connections += 1;
        let (context, shared) = (self.context.clone(), Rc::downgrade(shared));
        spawn_local(async move {
            let graceful = http2::is_graceful(&driver.await);
            // When no worker is left, it was this side that closed.
            if let Some(shared) = shared.upgrade() {
                context.tally().ended += 1;
                if graceful {
                    context.tally().goaway_seen += 1;
                }
                shared.forget(generation);
            }
        });
        Ok(Some((generation, connection)))
    }

    /// Waits until the next request is due; `None` at the end.
    async fn next_due(&self) -> Option<Instant> {
        if self.idle {
            return None;
        }
        let due = self.context.control.permit()?;
        if self.context.plan.rate.is_some() {
            sleep_until(due.into()).await;
            if self.context.control.stopped() {
                self.context.control.refund();
                return None;
            }
        }
        Some(due)
    }

    fn next_user(&mut self) -> (Option<usize>, Extra) {
        let user = self.peek_user();
        self.turn += 1;
        user
    }

    fn peek_user(&self) -> (Option<usize>, Extra) {
        let Some(users) = &self.context.plan.users else { return (None, Extra::default()) };
        let (user, cookies) = &self.users[self.turn % self.users.len()];
        let header = match &users.identity {
            Identity::Header(name) => Some((name.clone(), format!("u-{user}"))),
            Identity::Cookie(name) => Some(("cookie".to_owned(), format!("{name}=u-{user}"))),
            Identity::CookieJar if cookies.is_empty() => None,
            Identity::CookieJar => {
                let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
                Some(("cookie".to_owned(), pairs.join("; ")))
            }
        };
        (Some(*user), Extra { header })
    }

    async fn wait_as_asked(&self, seconds: Option<u64>) {
        let asked = seconds.filter(|_| self.context.plan.patient).map(Duration::from_secs);
        if let Some(asked) = asked
            && !self.context.control.stopped()
        {
            sleep(asked).await;
        }
    }

    async fn connect_failed(&self, kind: &str) {
        *self.context.tally().connect_failures.entry(kind.to_owned()).or_default() += 1;
        sleep(CONNECT_PAUSE).await;
    }

    fn record(&mut self, answer: Answer, user: Option<usize>, due: Instant) {
        if let Some(user) = user
            && let Some((_, jar)) = self.users.iter_mut().find(|(number, _)| *number == user)
        {
            answer.set_cookies.iter().for_each(|cookie| keep_cookie(jar, cookie));
        }
        let outcome =
            Outcome { status: answer.status, backend: answer.backend, error: answer.error.to_owned() };
        self.context.tally().record(outcome, user, due.elapsed());
    }
}

impl Shared {
    fn forget(&self, generation: u64) {
        if self.generation.get() == generation {
            self.connection.borrow_mut().take();
        }
    }
}

fn timed_out() -> Answer {
    Answer { error: "timeout", ..Answer::default() }
}

/// Keeps the name and value of a `Set-Cookie`; its attributes are for browsers.
fn keep_cookie(jar: &mut Vec<(String, String)>, set_cookie: &str) {
    let pair = set_cookie.split(';').next().unwrap_or_default();
    if let Some((name, value)) = pair.split_once('=') {
        jar.retain(|(known, _)| known != name);
        jar.push((name.to_owned(), value.to_owned()));
    }
}
