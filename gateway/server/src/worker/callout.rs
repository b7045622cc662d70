//! Questions of guards to other parties, asked over the ordinary pools: balanced, on kept connections, within the pools'
//! limits, with what is learned about endpoints told to them. What is asked and what an answer means is the guard's.
//!
//! A question is put once. It is put again only where its endpoint cannot have seen it: no connection, or a kept one that
//! the peer had closed.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_core::balance::{CompiledPool, Wish};
use fieldgate_core::guard::{Answered, Callout, NoAnswer};
use fieldgate_core::retry::UNASKED_TRIES;
use fieldgate_core::{HeaderId, Method, RequestHead, Version};
use fieldgate_wire::h1::BodyKind;
use h2::Reason;
use smallvec::SmallVec;

use super::capacity::{self, NoPlace, Queued};
use super::exchange::{self, Failure, InFlight, Opened, STALE_TRIES};
use super::reply::Reply;
use super::side::{Piece, Side, SideError};
use super::{Current, Worker};
use crate::overload::out_of_files;

/// Requests of a worker that may wait for guards' answers at once, their bodies being read included.
const UNDER_WAY: u32 = 8192;
/// Bytes of clients' bodies that a worker keeps for guards at once.
pub(super) const KEPT: usize = 64 * 1024 * 1024;

/// What a worker knows about the questions of its guards.
#[derive(Default)]
pub struct Callouts {
    under_way: Cell<u32>,
    /// See [`KEPT`].
    pub kept: Rc<Cell<usize>>,
}

impl Callouts {
    /// A place for a request that has something to ask, for as long as it lives; nothing if there are too many.
    pub fn enter(&self) -> Option<UnderWay<'_>> {
        let under_way = self.under_way.get();
        (under_way < UNDER_WAY).then(|| {
            self.under_way.set(under_way + 1);
            UnderWay(&self.under_way)
        })
    }
}

/// See [`Callouts::enter`].
pub struct UnderWay<'a>(&'a Cell<u32>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Asks and waits for the whole answer. Whoever does not want to wait any longer drops it.
pub(super) async fn ask(
    worker: &Worker,
    published: &Current,
    callout: Callout,
) -> Result<Answered, NoAnswer> {
    let snapshot = &published.snapshot;
    let pool = snapshot.pool_slot(&callout.pool).and_then(|slot| snapshot.pool(slot));
    let Some(pool) = pool else {
        return Err(NoAnswer::Unreachable(format!("there is no {}", callout.pool)));
    };
    Question::new(worker, pool, callout).put().await
}

/// A question that is ready to be put to an endpoint.
struct Question<'a> {
    worker: &'a Worker,
    pool: &'a CompiledPool,
    head: RequestHead,
    body: Bytes,
    http2: bool,
    grpc: bool,
    limit: usize,
    until: Instant,
}

impl<'a> Question<'a> {
    fn new(worker: &'a Worker, pool: &'a CompiledPool, callout: Callout) -> Self {
        let Callout { mut head, body, grpc, timeout, limit, .. } = callout;
        head.version = Version::Http11;
        let http2 = grpc || exchange::speaks_http2(pool, &head, false);
        if http2 {
            head.version = Version::Http2;
        }
        head.https = pool.ir.tls.is_some();
        if head.authority.is_empty() {
            head.authority = authority_of(pool);
        }
        if grpc {
            let fields = &mut head.headers;
            fields.push(b"te", b"trailers");
            if !fields.has(HeaderId::ContentType) {
                fields.push(b"content-type", b"application/grpc");
            }
            fields.set("grpc-timeout", grpc_timeout(timeout).as_bytes());
        }
        Self { worker, pool, head, body, http2, grpc, limit, until: Instant::now() + timeout }
    }

    async fn put(&self) -> Result<Answered, NoAnswer> {
        let mut tried: SmallVec<[SocketAddr; 4]> = SmallVec::new();
        let mut stale_tries = 0;
        let mut why = None;
        loop {
            let in_flight = self.place(&tried, why.take()).await?;
            let address = in_flight.address;
            let failure = match self.attempt(address).await {
                Ok(Some(answered)) => {
                    in_flight.saw_status(self.pool, health_of(&answered, self.grpc));
                    return Ok(answered);
                }
                Ok(None) => return Err(NoAnswer::TooLong),
                Err(failure) => failure,
            };
            in_flight.failed(self.pool, &failure);
            match failure {
                Failure::Timeout => return Err(NoAnswer::Timeout),
                // Another worker was faster.
                Failure::Full => {}
                Failure::Broken { stale: true, .. } if stale_tries < STALE_TRIES => stale_tries += 1,
                // Some files are kept for this.
                Failure::Connect(error) if out_of_files(&error) && self.worker.lend_files() => {}
                Failure::Connect(error) => {
                    let said = format!("{}: {address}: {error}", self.pool.ir.key);
                    tried.push(address);
                    if tried.len() >= UNASKED_TRIES as usize {
                        return Err(NoAnswer::Unreachable(said));
                    }
                    why = Some(said);
                }
                Failure::Broken { error, .. } | Failure::ClientError(error) => {
                    return Err(NoAnswer::Unreachable(format!("{}: {address}: {error}", self.pool.ir.key)));
                }
                // These are of exchanges with a client.
                Failure::ClientGone | Failure::ClientSlow | Failure::Refused(_) => {
                    return Err(NoAnswer::Unreachable(format!("{}: {address}", self.pool.ir.key)));
                }
            }
        }
    }

    /// An endpoint, waited for if the pool has no place for one more now. `why`: what became of those tried.
    async fn place(&self, tried: &[SocketAddr], why: Option<String>) -> Result<InFlight<'a>, NoAnswer> {
        let wish = Wish { tried, ..Wish::default() };
        let mut waiting: Option<Queued> = None;
        loop {
            match capacity::pick(self.worker, self.pool, self.http2, &wish, waiting.is_some()) {
                Ok(in_flight) => return Ok(in_flight),
                Err(NoPlace::NoEndpoint(none)) => {
                    let why = why.unwrap_or_else(|| format!("{}: {none}", self.pool.ir.key));
                    return Err(NoAnswer::Unreachable(why));
                }
                Err(NoPlace::Full(full)) => {
                    let queue = waiting
                        .take()
                        .or_else(|| Queued::begin(self.worker, self.pool, full, Some(self.until)));
                    match queue {
                        Some(queue) if queue.wait().await => waiting = Some(queue),
                        _ if Instant::now() >= self.until => return Err(NoAnswer::Timeout),
                        _ => {
                            let why = format!("{}: too many connections", self.pool.ir.key);
                            return Err(NoAnswer::Unreachable(why));
                        }
                    }
                }
            }
        }
    }

    /// `Ok(None)`: the answer is too long.
    async fn attempt(&self, address: SocketAddr) -> Result<Option<Answered>, Failure> {
        let begun = Instant::now();
        let body = match self.body.len() as u64 {
            0 => BodyKind::None,
            length => BodyKind::Length(length),
        };
        let (worker, pool) = (self.worker, self.pool);
        let opening = exchange::open_speaking(worker, pool, self.http2, &self.head, body, None, address);
        let opened = tokio::time::timeout_at(self.until.into(), opening).await;
        let Opened { side, response, guard, reused, .. } = opened.unwrap_or(Err(Failure::Timeout))?;
        let mut call = Call {
            side,
            body: self.body.clone(),
            upload: if body == BodyKind::None { Upload::Ending } else { Upload::Flowing },
            limit: self.limit,
            reply: Reply::new(response, self.head.method == Method::Head),
            head: None,
            read: Vec::new(),
        };
        let mut expiry = pin!(tokio::time::sleep_until(self.until.into()));
        let outcome = poll_fn(|cx| match call.poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome.map_err(Some)),
            Poll::Pending => expiry.as_mut().poll(cx).map(|()| Err(None)),
        });
        let failure = match outcome.await {
            Ok(true) => {
                if let Some(guard) = &guard {
                    guard.answered();
                }
                if pool.wants_latency() {
                    let took = begun.elapsed();
                    worker.with_pool(pool, |state| state.observe(address, took, worker.now_ms()));
                }
                return Ok(Some(call.end(worker, pool, address)));
            }
            Ok(false) => {
                call.side.abort(Reason::CANCEL);
                return Ok(None);
            }
            Err(None) => {
                match &guard {
                    Some(guard) => guard.timed_out(),
                    None if reused => worker.upstreams.distrust(pool, address, begun),
                    None => {}
                }
                Failure::Timeout
            }
            Err(Some(error)) => {
                let stale = reused && !call.reply.any && error.may_be_stale();
                let unsent = error.is_unprocessed();
                Failure::Broken { error, stale, unsent }
            }
        };
        call.side.abort(Reason::CANCEL);
        Err(failure)
    }
}

/// One connection's or stream's worth of a question.
struct Call {
    side: Side,
    /// What is left to send.
    body: Bytes,
    upload: Upload,
    limit: usize,
    reply: Reply,
    /// The answer's head, and whether the connection can be used again.
    head: Option<(Answered, bool)>,
    read: Vec<u8>,
}

#[derive(PartialEq)]
enum Upload {
    Flowing,
    /// Handed over, to be flushed.
    Ending,
    Done,
    /// The peer takes no more. It may have answered already.
    Refused,
}

impl Call {
    /// Ready when the answer is here; `false`: it is too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, SideError>> {
        if matches!(self.upload, Upload::Flowing | Upload::Ending) {
            match self.poll_upload(cx) {
                Poll::Ready(Ok(())) => self.upload = Upload::Done,
                Poll::Ready(Err(_)) => self.upload = Upload::Refused,
                Poll::Pending => {}
            }
        }
        if self.head.is_none() {
            let mut answered = Answered::default();
            let fields = Some(&mut answered.headers);
            let (status, keep) = ready!(self.reply.poll_head(cx, &mut self.side, fields))?;
            answered.status = status;
            self.head = Some((answered, keep));
        }
        self.poll_body(cx)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        while !self.body.is_empty() {
            let count = match &mut self.side {
                Side::H1(side) => ready!(side.poll_write_body(cx, &self.body))?,
                Side::H2(side) => {
                    let mut owned = self.body.clone();
                    ready!(side.poll_write_body(cx, &self.body, Some(&mut owned), true))?
                }
            };
            let _ = self.body.split_to(count);
        }
        if self.upload == Upload::Flowing {
            match &mut self.side {
                Side::H1(side) => side.finish(None)?,
                Side::H2(side) => side.finish(None)?,
            }
            self.upload = Upload::Ending;
        }
        self.side.poll_flush(cx)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, SideError>> {
        let mut trailers = None;
        loop {
            match ready!(self.side.poll_body(cx, &mut trailers))? {
                Piece::Data(count) if self.read.len() + count > self.limit => {
                    return Poll::Ready(Ok(false));
                }
                Piece::Data(count) => {
                    self.read.extend_from_slice(self.side.data(count));
                    self.side.consume(count);
                }
                Piece::End => {
                    if let (Some((answered, _)), Some(trailers)) = (&mut self.head, trailers) {
                        for (_, name, value) in trailers.iter() {
                            answered.headers.push(name, value);
                        }
                    }
                    return Poll::Ready(Ok(true));
                }
            }
        }
    }

    /// The answer; the connection is kept for the next question, if it can be.
    fn end(self, worker: &Worker, pool: &CompiledPool, address: SocketAddr) -> Answered {
        let (mut answered, keep) = self.head.unwrap_or_default();
        answered.body = self.read.into();
        if keep && self.upload == Upload::Done {
            exchange::recycle(worker, self.side, pool, address);
        }
        answered
    }
}

/// What the answer says of its server's health, as an HTTP status.
fn health_of(answered: &Answered, grpc: bool) -> u16 {
    match exchange::grpc_status(Some(&answered.headers)) {
        Some(status) if grpc && answered.status == 200 => exchange::http_status(status),
        _ => answered.status,
    }
}

/// How a pool is addressed where nobody says so: its service's name, or else its own.
fn authority_of(pool: &CompiledPool) -> String {
    let host = &pool.ir.service.host;
    let host = if **host == *"unknown" { &pool.ir.key.object.name } else { host };
    match pool.ir.key.port {
        0 => host.to_string(),
        port => format!("{host}:{port}"),
    }
}

/// The time that a gRPC server is told to have: at most eight digits with a unit.
fn grpc_timeout(timeout: Duration) -> String {
    let ms = timeout.as_millis();
    if ms < 100_000_000 { format!("{ms}m") } else { format!("{}S", timeout.as_secs().min(99_999_999)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back() {
        let callouts = Callouts::default();
        let places: Vec<_> = std::iter::from_fn(|| callouts.enter()).collect();
        assert_eq!(places.len(), UNDER_WAY as usize);
        drop(places);
        assert!(callouts.enter().is_some());
    }

    #[test]
    fn a_grpc_timeout_fits_its_eight_digits() {
        assert_eq!(grpc_timeout(Duration::from_millis(250)), "250m");
        assert_eq!(grpc_timeout(Duration::from_hours(100)), "360000S");
    }

    #[test]
    fn a_grpc_answer_is_judged_by_its_grpc_status() {
        let mut answered = Answered { status: 200, ..Answered::default() };
        assert_eq!(health_of(&answered, true), 200);
        answered.headers.push(b"grpc-status", b"14");
        assert_eq!((health_of(&answered, true), health_of(&answered, false)), (503, 200));
    }
}
