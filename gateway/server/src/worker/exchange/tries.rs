//! From a pool to an endpoint that has answered: choosing, trying, trying again.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use fieldgate_core::ResponseHead;
use fieldgate_core::balance::{CompiledPool, NoEndpoint, Wish};
use fieldgate_core::outlier::{Ejection, Seen};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::Deadline;
use h2::Reason;

use super::attempt::{attempt, speaks_http2};
use super::respond::{grpc_status, respond, send_failure};
use super::retries::{Next, Pass, Tries, unreachable_upstream};
use super::{Failure, Forward, Log, Request, Responding, fault, hedge};
use crate::overload::out_of_files;
use crate::telemetry::PoolEvent;
use crate::worker::admission::Admitted;
use crate::worker::capacity::{self, NoPlace, Queued};
use crate::worker::local::Answer;
use crate::worker::side::{H1Side, Side};
use crate::worker::upstream::{Kept, Room};
use crate::worker::{Worker, tunnel};

/// Tries endpoints until one answers, then streams the response.
pub(super) async fn forward_request(
    worker: &Rc<Worker>,
    mut down: Side,
    request: &mut Request,
    mut to: Forward<'_>,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    // What is rare is in a box below, not to make every exchange larger.
    if let Some(fault) = to.rare.as_mut().and_then(|rare| rare.fault.take())
        && let Err(answer) = Box::pin(fault::suffer(worker, &to, &fault, &mut down, request, log)).await
    {
        return send_failure(down, request, &to, answer, log, deadline).await;
    }
    let admitted = if to.pool.limits_requests() {
        match Box::pin(unless_gone(&mut down, request, Admitted::enter(worker, &to))).await {
            Some(Ok(admitted)) => Some(admitted),
            Some(Err(answer)) => return send_failure(down, request, &to, answer, log, deadline).await,
            None => return client_gone(down, log),
        }
    } else {
        None
    };
    if request.body != BodyKind::None {
        to.replay = Tries::replay(&to, request);
    }
    let found = match to.rule.ir.retry.as_deref().and_then(|retry| retry.hedge) {
        None => first_try(worker, &mut down, request, &to, log, response, deadline).await,
        Some(hedge) => {
            Box::pin(hedge::or_in_turn(worker, &mut down, request, &to, hedge, log, response, deadline)).await
        }
    };
    let Won { answered, in_flight, pass: _pass } = match found {
        Ok(won) => won,
        Err(Next::Answer(answer)) => {
            if let Some(admitted) = admitted {
                admitted.ended(answer.status);
            }
            return send_failure(down, request, &to, answer, log, deadline).await;
        }
        // The other has been done.
        Err(Next::ClientGone | Next::Again(_)) => return client_gone(down, log),
    };
    if answered.switched {
        // How long a tunnel lives says nothing of the pool's latency.
        let _counted = admitted.filter(|_| to.pool.ir.limits.adaptive.is_none());
        let tunnel =
            tunnel::carry(worker, down, request, &to, answered, log, response, deadline, in_flight.address);
        return Box::pin(tunnel).await;
    }
    let end = respond(worker, down, request, &to, answered, log, response, deadline, &in_flight).await;
    if let Some(admitted) = admitted {
        admitted.ended(log.grpc_status.map_or(log.status, http_status));
    }
    end
}

fn client_gone(down: Side, log: &mut Log<'_>) -> Option<(Side, bool)> {
    log.status = 0;
    log.flags = "DC";
    log.details = "downstream_remote_disconnect".into();
    down.abort(Reason::CANCEL);
    None
}

/// An answer to pass on, the endpoint at which it is still counted, and its part of the retry budget.
pub(super) struct Won<'w> {
    pub answered: Responding,
    pub in_flight: InFlight<'w>,
    pub pass: Option<Pass<'w>>,
}

/// Most requests need one try, and pay for no more.
async fn first_try<'w>(
    worker: &'w Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Result<Won<'w>, Next> {
    let http2 = speaks_http2(to.pool, &request.head, request.upgrade.is_some());
    let begun = match capacity::pick(worker, to.pool, http2, &to.wish(), false) {
        Err(NoPlace::NoEndpoint(none)) => return Err(Next::Answer(no_place(NoPlace::NoEndpoint(none)))),
        Err(NoPlace::Full(_)) => None,
        Ok(in_flight) => {
            log.attempts = 1;
            log.upstream = Some(in_flight.address);
            let outcome =
                attempt(worker, down, request, to, in_flight.address, log, response, deadline).await;
            match outcome {
                Ok(answered) if !Tries::is_unwanted(to, request, response) => {
                    in_flight.saw_response(to, request, response);
                    return Ok(Won { answered, in_flight, pass: None });
                }
                outcome => Some((in_flight, outcome)),
            }
        }
    };
    Box::pin(try_in_turn(worker, down, request, to, begun, log, response, deadline)).await
}

/// A try that was made.
type Tried<'w> = (InFlight<'w>, Result<Responding, Failure>);

/// One try after the other, until one has an answer to pass on. `begun`: the first has been made.
#[allow(clippy::too_many_arguments)]
pub(super) async fn try_in_turn<'w>(
    worker: &'w Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    mut begun: Option<Tried<'w>>,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Result<Won<'w>, Next> {
    let mut tries = Tries::new(worker);
    loop {
        let (in_flight, outcome) = match begun.take() {
            Some(tried) => tried,
            None => try_next(worker, down, request, to, &tries, log, response, deadline).await?,
        };
        let address = in_flight.address;
        let next = match outcome {
            Ok(answered) => {
                in_flight.saw_response(to, request, response);
                match tries.after_response(to, request, log, response, &answered, address) {
                    None => return Ok(Won { answered, in_flight, pass: tries.pass.take() }),
                    Some(pause) => {
                        discard(worker, answered, to, address);
                        Next::Again(pause)
                    }
                }
            }
            Err(failure) => {
                in_flight.failed(to.pool, &failure);
                tries.after_failure(to, request, log, failure, address)
            }
        };
        drop(in_flight);
        match next {
            Next::Again(Duration::ZERO) => {}
            Next::Again(pause) => {
                if unless_gone(down, request, tokio::time::sleep(pause)).await.is_none() {
                    return Err(Next::ClientGone);
                }
            }
            end => return Err(end),
        }
    }
}

/// Chooses an endpoint that was not tried, waits for a place there if need be, and tries it.
#[allow(clippy::too_many_arguments)]
async fn try_next<'w>(
    worker: &'w Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    tries: &Tries<'w>,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Result<Tried<'w>, Next> {
    let http2 = speaks_http2(to.pool, &request.head, request.upgrade.is_some());
    let wish = Wish { tried: &tries.tried, ..to.wish() };
    let mut waited = false;
    let in_flight = loop {
        match capacity::pick(worker, to.pool, http2, &wish, waited) {
            Ok(in_flight) => break in_flight,
            Err(NoPlace::Full(full)) => {
                let waiting = to
                    .waiting
                    .take()
                    .or_else(|| Queued::begin(worker, to.pool, full, to.limit).map(Box::new));
                let Some(waiting) = waiting else {
                    return Err(Next::Answer(capacity::overflow(worker, to.pool)));
                };
                match unless_gone(down, request, waiting.wait()).await {
                    None => return Err(Next::ClientGone),
                    Some(true) => to.waiting.set(Some(waiting)),
                    Some(false) => return Err(Next::Answer(capacity::overflow(worker, to.pool))),
                }
                waited = true;
            }
            Err(why) => return Err(Next::Answer(no_place(why))),
        }
    };
    let address = in_flight.address;
    log.attempts += 1;
    if log.attempts > 1 {
        worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::Retry);
    }
    log.upstream = Some(address);
    let outcome = attempt(worker, down, request, to, address, log, response, deadline).await;
    Ok((in_flight, outcome))
}

/// What a wait brings, or nothing if the client goes away meanwhile.
pub(super) async fn unless_gone<T>(
    down: &mut Side,
    request: &mut Request,
    wait: impl Future<Output = T>,
) -> Option<T> {
    let mut wait = std::pin::pin!(wait);
    poll_fn(|cx| {
        if let Poll::Ready(brought) = wait.as_mut().poll(cx) {
            return Poll::Ready(Some(brought));
        }
        let gone = down.poll_gone(cx).is_ready() || request.poll_reset(cx).is_ready();
        if gone { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// What a client hears when no endpoint could have its request.
pub(super) fn no_place(why: NoPlace) -> Answer {
    let none = match why {
        NoPlace::NoEndpoint(none) => none,
        NoPlace::Full(_) => return capacity::full(),
    };
    match none {
        NoEndpoint::AllTried => unreachable_upstream(),
        _ => Answer::new(503, none.details(), none.flags(), "no healthy upstream\n"),
    }
}

/// A request at an endpoint, counted for as long as this lives, however it ends.
pub struct InFlight<'w> {
    worker: &'w Worker,
    slot: u32,
    /// Where requests wait for its end.
    pub room: Option<Rc<Room>>,
    /// Its place in the pool that it was chosen from.
    pub index: usize,
    pub address: SocketAddr,
}

impl InFlight<'_> {
    /// The endpoint has answered with this status, or failed in this way: its health depends on it.
    pub fn saw(&self, pool: &CompiledPool, seen: Seen) {
        let ejection = self.worker.with_pool(pool, |state| {
            pool.report(state, self.index, seen, self.worker.now_ms(), self.worker.random())
        });
        if let Some(ejection) = ejection {
            tell(self.worker, pool, &ejection);
        }
    }

    /// As a gRPC server says it, if its answer has no more than a head.
    pub(super) fn saw_response(&self, to: &Forward<'_>, request: &Request, response: &ResponseHead) {
        let status = match response.status {
            200 if to.pool.ir.outlier.is_some() && request.head.is_grpc() => {
                grpc_status(Some(&response.headers)).map_or(200, http_status)
            }
            status => status,
        };
        self.saw_status(to.pool, status);
    }

    /// It has answered with this status.
    pub fn saw_status(&self, pool: &CompiledPool, status: u16) {
        if pool.ir.outlier.is_none() {
            // All that is kept of an answer where nobody looks for outliers.
            return pool.endpoints[self.index].state.report_success();
        }
        self.saw(pool, Seen::Status(status));
    }

    /// A try at it had no response.
    pub fn failed(&self, pool: &CompiledPool, failure: &Failure) {
        match failure {
            // For want of descriptors or ports here, and no fault of the endpoint.
            Failure::Connect(error) if is_ours(error) => {}
            // The client has asked for a host that the endpoint is not.
            Failure::Connect(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Failure::Connect(_) => self.saw(pool, Seen::ConnectFailed),
            // The peer may close a connection that is not in use; and what it refuses it may refuse.
            Failure::Broken { stale: true, .. } => {}
            Failure::Broken { .. } => self.saw(pool, Seen::Reset),
            Failure::Timeout => self.saw(pool, Seen::TimedOut),
            Failure::Full
            | Failure::ClientSlow
            | Failure::ClientGone
            | Failure::ClientError(_)
            | Failure::Refused(_) => {}
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.worker.pools.borrow_mut()[self.slot as usize].finished(self.address);
        if let Some(room) = &self.room {
            room.freed();
        }
    }
}

pub fn pick<'w>(
    worker: &'w Worker,
    pool: &CompiledPool,
    wish: &Wish<'_>,
) -> Result<InFlight<'w>, NoEndpoint> {
    let index = worker.with_pool(pool, |state| {
        let index = pool.pick(state, worker.now_ms(), &mut || worker.random(), wish)?;
        state.started(index);
        Ok(index)
    })?;
    Ok(InFlight { worker, slot: pool.slot, index, room: None, address: pool.endpoints[index].state.address })
}

/// Whether a connection could not be opened for want of something on this side: descriptors, memory, local ports.
fn is_ours(error: &io::Error) -> bool {
    // ENOMEM, ENOBUFS, EADDRNOTAVAIL.
    out_of_files(error) || matches!(error.raw_os_error(), Some(12 | 105 | 99))
}

/// What a gRPC status says of a server's health, as an HTTP status (Envoy maps them so for outlier detection).
pub fn http_status(grpc: u16) -> u16 {
    match grpc {
        0 => 200,
        3 | 9 | 11 => 400,
        16 => 401,
        7 => 403,
        5 => 404,
        6 | 10 => 409,
        8 => 429,
        1 => 499,
        12 => 501,
        14 => 503,
        4 => 504,
        _ => 500,
    }
}

/// An ejection is news for operators.
pub fn tell(worker: &Worker, pool: &CompiledPool, ejection: &Ejection) {
    let (reason, enforced) = (ejection.reason.as_str(), ejection.enforced);
    worker.recorder.pool_event(&pool.ir.key, PoolEvent::Ejection(reason, enforced));
    let for_time = Duration::from_millis(ejection.until_ms.saturating_sub(worker.now_ms()));
    let (pool, endpoint) = (&pool.ir.key, ejection.address);
    if enforced {
        tracing::warn!(%pool, %endpoint, reason, ?for_time, "endpoint is ejected");
    } else {
        tracing::info!(%pool, %endpoint, reason, "endpoint would be ejected, but that is not enforced");
    }
}

/// Gets rid of a response that is to be tried again elsewhere.
fn discard(worker: &Worker, answered: Responding, to: &Forward<'_>, address: SocketAddr) {
    if answered.body == BodyKind::None && answered.keep_alive && answered.upload.done {
        recycle(worker, answered.side, to.pool, address);
    }
}

/// Returns an upstream connection to the pool.
pub fn recycle(worker: &Worker, side: Side, pool: &CompiledPool, address: SocketAddr) {
    if let Side::H1(side) = side
        && side.is_clean()
        && side.input.is_empty()
    {
        let H1Side { stream, out, held, .. } = *side;
        worker.give_out(out);
        if let Some((lease, secured)) = held {
            let used = Kept { stream, lease, secured };
            worker.upstreams.keep(pool, address, used, worker.wheel.now().into_std());
        }
    }
}
