//! RequestMirror: copies of requests for pools whose answers nobody waits for.
//!
//! A copy is a task of its own on the worker. It shares with the primary a bounded queue and nothing else, so that
//! whatever the mirror does, the primary neither waits nor fails; what cannot be copied within the bounds is dropped
//! and counted. A route without mirrors pays for a look at an empty list. Which requests are copied is core's to decide.

mod queue;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fieldgate_core::balance::{CompiledPool, Wish};
use fieldgate_core::mirror::{CompiledMirror, MirrorState};
use fieldgate_core::retry::UNASKED_TRIES;
use fieldgate_core::snapshot::CompiledRule;
use fieldgate_core::{HeaderId, Method, RequestHead};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::Deadline;
use h2::Reason;
use smallvec::SmallVec;

use self::queue::Queue;
pub use self::queue::Tee;
use super::capacity::{self, NoPlace};
use super::exchange::{self, Failure, Opened, STALE_TRIES};
use super::reply::Reply;
use super::side::{Piece, Side, SideError};
use super::{Current, Worker};
use crate::telemetry::{MirrorCounts, MirrorOutcome};

/// Copies under way at once on a worker. With a buffer and a connection each, they bound what a slow mirror costs.
const IN_FLIGHT: u32 = 1024;
/// From the end of a copy to the end of its answer, where the route sets no timeout (Envoy's default).
const TIMEOUT: Duration = Duration::from_secs(15);

/// What a worker knows about mirrors.
#[derive(Default)]
pub struct Mirrors {
    /// By the rule's slot, then by the mirror's place in it.
    turns: RefCell<Vec<Vec<MirrorState>>>,
    in_flight: Cell<u32>,
    /// Bytes in all queues.
    bytes: Rc<Cell<usize>>,
}

/// The copies of one request.
pub struct Copies(SmallVec<[Copied; 1]>);

struct Copied {
    head: Rc<RequestHead>,
    pool: u32,
    timeout: Duration,
    counts: Rc<MirrorCounts>,
}

/// Copies a head, as it is now, for those of `mirrors` whose turn it is. Nothing is sent yet.
pub fn copy(
    worker: &Worker,
    rule: &CompiledRule,
    mirrors: &[CompiledMirror],
    head: &RequestHead,
    copies: &mut Option<Box<Copies>>,
) {
    let mut shared: Option<Rc<RequestHead>> = None;
    for mirror in mirrors {
        // A mirror that does not exist is left out (Gateway API); the route's status says so.
        let Ok(pool) = mirror.pool else { continue };
        if !worker.mirrors.takes(rule.slot, mirror) {
            continue;
        }
        let head = shared.get_or_insert_with(|| {
            let mut head = head.clone();
            // The mirror has no say in whether the client goes on.
            head.headers.remove_id(HeaderId::Expect);
            Rc::new(head)
        });
        let timeout = rule.ir.timeouts.request.filter(|t| !t.is_zero()).unwrap_or(TIMEOUT);
        let counts = worker.recorder.mirror(&mirror.ir, &rule.ir.id);
        let copied = Copied { head: head.clone(), pool, timeout, counts };
        copies.get_or_insert_with(|| Box::new(Copies(SmallVec::new()))).0.push(copied);
    }
}

impl Copies {
    /// Sends them off. Gives what the body must go through too, if one follows.
    pub fn send(self, worker: &Rc<Worker>, published: &Current, body: BodyKind) -> Option<Rc<Tee>> {
        let mut queues = SmallVec::new();
        for copied in self.0 {
            if worker.mirrors.in_flight.get() >= IN_FLIGHT {
                copied.counts.add(MirrorOutcome::Dropped);
                continue;
            }
            let queue = Queue::new(worker.mirrors.bytes.clone());
            if body == BodyKind::None {
                queue.end(None);
            } else {
                queues.push(queue.clone());
            }
            let flight = Flight::begin(worker.clone(), queue, copied.counts.clone());
            let published = published.clone();
            tokio::task::spawn_local(async move { flight.run(&published, &copied, body).await });
        }
        (!queues.is_empty()).then(|| Rc::new(Tee::new(queues)))
    }
}

impl Mirrors {
    fn takes(&self, rule: u32, mirror: &CompiledMirror) -> bool {
        let mut turns = self.turns.borrow_mut();
        let (rule, place) = (rule as usize, mirror.place as usize);
        if turns.len() <= rule {
            turns.resize_with(rule + 1, Vec::new);
        }
        let places = &mut turns[rule];
        if places.len() <= place {
            places.resize_with(place + 1, MirrorState::default);
        }
        mirror.takes(&mut places[place])
    }
}

/// A copy under way: counted once at its end, however it ends. One that is never polled again, because the worker has
/// drained, was dropped.
struct Flight {
    worker: Rc<Worker>,
    queue: Rc<Queue>,
    counts: Rc<MirrorCounts>,
    outcome: MirrorOutcome,
}

impl Drop for Flight {
    fn drop(&mut self) {
        // The primary need not copy for one that has ended.
        self.queue.give_up();
        let in_flight = &self.worker.mirrors.in_flight;
        in_flight.set(in_flight.get() - 1);
        self.counts.add(self.outcome);
    }
}

impl Flight {
    fn begin(worker: Rc<Worker>, queue: Rc<Queue>, counts: Rc<MirrorCounts>) -> Self {
        worker.mirrors.in_flight.set(worker.mirrors.in_flight.get() + 1);
        Self { worker, queue, counts, outcome: MirrorOutcome::Dropped }
    }

    async fn run(mut self, published: &Current, copied: &Copied, body: BodyKind) {
        self.outcome = match published.snapshot.pool(copied.pool) {
            Some(pool) => self.deliver(pool, copied, body).await,
            None => MirrorOutcome::Failed,
        };
    }

    /// Tries endpoints as the primary would, as long as nothing of the body is lost by it.
    async fn deliver(&self, pool: &CompiledPool, copied: &Copied, body: BodyKind) -> MirrorOutcome {
        let worker = &*self.worker;
        let deadline = worker.wheel.register();
        let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
        let mut stale_tries = 0;
        loop {
            let http2 = exchange::speaks_http2(pool, &copied.head, false);
            let in_flight = match capacity::pick(
                worker,
                pool,
                http2,
                &Wish { tried: &tried, ..Wish::default() },
                false,
            ) {
                Ok(in_flight) => in_flight,
                // Places for which requests wait are not for copies.
                Err(NoPlace::Full(_)) => return MirrorOutcome::Dropped,
                Err(NoPlace::NoEndpoint(_)) => return MirrorOutcome::Failed,
            };
            let address = in_flight.address;
            let trouble = match self.attempt(pool, address, copied, body, &deadline).await {
                Ok(()) => return MirrorOutcome::Sent,
                Err(trouble) => trouble,
            };
            // A copy that takes long, or is answered with an error, says little of an endpoint; one that cannot be sent does.
            if !matches!(trouble, Failure::Timeout) {
                in_flight.failed(pool, &trouble);
            }
            match trouble {
                Failure::ClientGone | Failure::Full => return MirrorOutcome::Dropped,
                Failure::Broken { stale: true, unsent, .. }
                    if self.queue.is_untouched()
                        && (unsent || copied.head.method.is_idempotent())
                        && stale_tries < STALE_TRIES =>
                {
                    stale_tries += 1;
                }
                Failure::Connect(_) => {
                    tried.push(address);
                    if tried.len() >= UNASKED_TRIES as usize {
                        return MirrorOutcome::Failed;
                    }
                }
                Failure::Broken { .. }
                | Failure::Timeout
                | Failure::ClientSlow
                | Failure::ClientError(_)
                | Failure::Refused(_) => {
                    return MirrorOutcome::Failed;
                }
            }
        }
    }

    async fn attempt(
        &self,
        pool: &CompiledPool,
        address: SocketAddr,
        copied: &Copied,
        body: BodyKind,
        deadline: &Deadline,
    ) -> Result<(), Failure> {
        let Opened { side, response, guard, reused, .. } =
            exchange::open(&self.worker, pool, &copied.head, body, None, address).await?;
        let mut exchange = Exchange {
            side,
            queue: &self.queue,
            upload: Upload::Flowing,
            answer: Answer::Awaited,
            reply: Reply::new(response, copied.head.method == Method::Head),
        };
        match poll_fn(|cx| exchange.poll(cx, deadline, copied.timeout)).await {
            Ok(()) => {
                drop(guard);
                if matches!((&exchange.upload, &exchange.answer), (Upload::Done, Answer::Body { keep: true }))
                {
                    exchange::recycle(&self.worker, exchange.side, pool, address);
                }
                Ok(())
            }
            Err(failure) => {
                let any = exchange.reply.any;
                exchange.side.abort(Reason::CANCEL);
                Err(match failure {
                    Failure::Broken { error, unsent, .. } => {
                        let stale = reused && !any && error.may_be_stale();
                        Failure::Broken { error, stale, unsent }
                    }
                    other => other,
                })
            }
        }
    }
}

/// One connection's or stream's worth of a copy: the queue flows in, the answer flows out to nowhere.
struct Exchange<'q> {
    side: Side,
    queue: &'q Queue,
    upload: Upload,
    answer: Answer,
    reply: Reply,
}

enum Upload {
    Flowing,
    /// Handed over, to be flushed.
    Ending,
    Done,
    /// The mirror takes no more. It may have answered already.
    Refused,
}

enum Answer {
    Awaited,
    Body { keep: bool },
}

impl Exchange<'_> {
    /// Ready when the mirror has answered in full. [`Failure::ClientGone`] means that the queue was given up.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        deadline: &Deadline,
        timeout: Duration,
    ) -> Poll<Result<(), Failure>> {
        self.queue.register(cx);
        if self.queue.is_given_up() {
            return Poll::Ready(Err(Failure::ClientGone));
        }
        if matches!(self.upload, Upload::Flowing | Upload::Ending) {
            match self.poll_upload(cx) {
                Poll::Ready(Ok(())) => self.upload = Upload::Done,
                Poll::Ready(Err(_)) => self.upload = Upload::Refused,
                Poll::Pending => {}
            }
        }
        if let Poll::Ready(answered) = self.poll_answer(cx) {
            return Poll::Ready(answered.map_err(|error| {
                let unsent = error.is_unprocessed();
                Failure::Broken { error, stale: false, unsent }
            }));
        }
        // As long as the client sends, it sets the pace; a mirror that does not follow is given up by the queue.
        if self.queue.has_ended() && !deadline.is_set() {
            deadline.set(timeout);
        }
        deadline.poll_expired(cx).map(|()| Err(Failure::Timeout))
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        while let Some(piece) = self.queue.front() {
            let count = match &mut self.side {
                Side::H1(side) => ready!(side.poll_write_body(cx, &piece))?,
                Side::H2(side) => {
                    let mut owned = piece.clone();
                    ready!(side.poll_write_body(cx, &piece, Some(&mut owned), false))?
                }
            };
            self.queue.consume(count);
        }
        if matches!(self.upload, Upload::Flowing) && self.queue.has_ended() {
            let trailers = self.queue.trailers();
            match &mut self.side {
                Side::H1(side) => side.finish(trailers.as_ref())?,
                Side::H2(side) => side.finish(trailers.as_ref())?,
            }
            self.upload = Upload::Ending;
        }
        ready!(self.side.poll_flush(cx))?;
        if matches!(self.upload, Upload::Ending) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        if matches!(self.answer, Answer::Awaited) {
            let (_, keep) = ready!(self.reply.poll_head(cx, &mut self.side, None))?;
            self.answer = Answer::Body { keep };
        }
        let mut trailers = None;
        loop {
            match ready!(self.side.poll_body(cx, &mut trailers))? {
                Piece::Data(count) => self.side.consume(count),
                Piece::End => return Poll::Ready(Ok(())),
            }
        }
    }
}
