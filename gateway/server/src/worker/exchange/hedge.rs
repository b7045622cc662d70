//! Hedged requests: a try that takes long gets another beside it; the first good answer wins (Envoy: `hedge_policy`).
//!
//! Only where the route asks for it. The body is there as a whole before the first try, so that each can have it; a body
//! that is larger than may be kept makes the request an ordinary one. Each try has a head and a response of its own, for
//! they run side by side.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fieldgate_core::ResponseHead;
use fieldgate_core::balance::Wish;
use fieldgate_core::ir::Hedge;
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::{Deadline, with_deadline};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep};

use super::attempt::{attempt, speaks_http2};
use super::retries::{Next, Pass, Tries, client_error};
use super::tries::{InFlight, Won, no_place, try_in_turn};
use super::{Failure, Forward, Log, Request, Responding};
use crate::telemetry::PoolEvent;
use crate::worker::Worker;
use crate::worker::capacity::{self, NoPlace};
use crate::worker::replay::Replay;
use crate::worker::side::{Piece, Side, SideError};

/// What came of one try.
struct Ended<'w> {
    outcome: Result<Responding, Failure>,
    in_flight: InFlight<'w>,
    response: ResponseHead,
    log: Log<'static>,
    /// It was begun beside another.
    beside: bool,
}

type Running<'a, 'w> = FuturesUnordered<Pin<Box<dyn Future<Output = Ended<'w>> + 'a>>>;

/// Tries side by side where the request can be hedged, one after the other where not.
#[allow(clippy::too_many_arguments)]
pub(super) async fn or_in_turn<'w>(
    worker: &'w Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    hedge: Hedge,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Result<Won<'w>, Next> {
    deadline.set(to.idle);
    match with_deadline(deadline, gather(down, request, to)).await {
        Ok(Ok(true)) => {
            let won = run(worker, down, request, to, hedge, log, response).await;
            // The tries had deadlines of their own; this one has stood still meanwhile.
            if !worker.over.get() {
                to.set(deadline);
            }
            match won {
                Ok(Some(won)) => Ok(won),
                // Who waits for a place cannot hedge: it has one try at a time.
                Ok(None) => try_in_turn(worker, down, request, to, None, log, response, deadline).await,
                Err(end) => Err(end),
            }
        }
        Ok(Ok(false)) => try_in_turn(worker, down, request, to, None, log, response, deadline).await,
        Ok(Err(error @ (SideError::Malformed(_) | SideError::TooLong))) => {
            Err(Next::Answer(client_error(request, log, &error)))
        }
        Ok(Err(_)) | Err(_) => Err(Next::ClientGone),
    }
}

/// Whether a request can be hedged: the whole of its body is kept now.
async fn gather(down: &mut Side, request: &Request, to: &Forward<'_>) -> Result<bool, SideError> {
    // Who waits for 100 waits for an upstream's.
    if request.upgrade.is_some() || request.expects_continue {
        return Ok(false);
    }
    if request.body == BodyKind::None {
        return Ok(true);
    }
    let Some(replay) = &to.replay else { return Ok(false) };
    if replay.has_ended() {
        return Ok(replay.is_whole());
    }
    poll_fn(|cx| poll_gather(cx, down, to, replay)).await
}

fn poll_gather(
    cx: &mut Context<'_>,
    down: &mut Side,
    to: &Forward<'_>,
    replay: &Replay,
) -> Poll<Result<bool, SideError>> {
    let mut trailers = None;
    loop {
        match ready!(down.poll_body(cx, &mut trailers))? {
            Piece::Data(len)
                if to.body_limit().is_some_and(|limit| replay.received() + len as u64 > limit) =>
            {
                return Poll::Ready(Err(SideError::TooLong));
            }
            Piece::Data(len) if !replay.has_room(len) => return Poll::Ready(Ok(false)),
            Piece::Data(len) => {
                let data = down.data(len);
                replay.push(data);
                if let Some(tee) = &to.tee {
                    tee.push(data);
                }
                down.consume(len);
            }
            Piece::End => {
                replay.finish(trailers.as_deref());
                if let Some(tee) = &to.tee {
                    tee.finish(trailers.as_deref());
                }
                return Poll::Ready(Ok(true));
            }
        }
    }
}

/// Until one has an answer to pass on or there is nothing left to try. Nothing: there is no place for the first.
#[allow(clippy::too_many_arguments)]
async fn run<'w>(
    worker: &'w Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    hedge: Hedge,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
) -> Result<Option<Won<'w>>, Next> {
    let mut tries = Tries::new(worker);
    let mut running = Running::new();
    let mut under_way: SmallVec<[SocketAddr; 4]> = SmallVec::new();
    let mut timer: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(Duration::ZERO));
    let mut begun = 0;
    let mut spare: Option<Spare<'w>> = None;
    match begin(worker, request, to, &tries, &mut under_way, &running, &mut begun) {
        Ok(()) => {}
        Err(NoPlace::Full(_)) => return Ok(None),
        Err(none) => return Err(Next::Answer(no_place(none))),
    }
    timer.as_mut().reset(Instant::now() + hedge.after);
    loop {
        let event = poll_fn(|cx| {
            if let Poll::Ready(Some(ended)) = running.poll_next_unpin(cx) {
                return Poll::Ready(Event::Ended(Box::new(ended)));
            }
            if down.poll_gone(cx).is_ready() || request.poll_reset(cx).is_ready() {
                return Poll::Ready(Event::ClientGone);
            }
            timer.as_mut().poll(cx).map(|()| Event::Slow)
        });
        match event.await {
            Event::ClientGone => return Err(Next::ClientGone),
            Event::Slow => {
                // Far away, until another try begins.
                timer.as_mut().reset(Instant::now() + Duration::from_hours(24));
                let more = running.len() < hedge.at_once as usize && tries.may_hedge(to, begun, log);
                if more && begin(worker, request, to, &tries, &mut under_way, &running, &mut begun).is_ok() {
                    worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::Hedge);
                    timer.as_mut().reset(Instant::now() + hedge.after);
                }
            }
            Event::Ended(ended) => {
                let Ended { outcome, in_flight, response: got, log: own, beside } = *ended;
                let address = in_flight.address;
                under_way.retain(|a| *a != address);
                log.take_try(own);
                match outcome {
                    Ok(answered) => {
                        in_flight.saw_response(to, request, &got);
                        let again = tries.after_response(to, request, log, &got, &answered, address);
                        let Some(pause) = again else {
                            // A bad answer, but the others may have a better one.
                            if !running.is_empty() && Tries::is_unwanted(to, request, &got) {
                                spare.get_or_insert((answered, in_flight, got));
                                continue;
                            }
                            if beside {
                                worker.recorder.pool_event(&to.pool.ir.key, PoolEvent::HedgeWon);
                            }
                            let pass = tries.pass.take();
                            if !Tries::is_unwanted(to, request, &got) {
                                (log.exhausted, log.over_budget) = (false, false);
                            }
                            return Ok(Some(pass_on(log, response, (answered, in_flight, got), pass)));
                        };
                        drop(in_flight);
                        wait(pause, running.is_empty(), &mut timer).await;
                    }
                    Err(failure) => {
                        in_flight.failed(to.pool, &failure);
                        drop(in_flight);
                        match tries.after_failure(to, request, log, failure, address) {
                            Next::Again(pause) => wait(pause, running.is_empty(), &mut timer).await,
                            // Another one may yet answer.
                            Next::Answer(_) if !running.is_empty() => continue,
                            Next::Answer(answer) => {
                                let pass = tries.pass.take();
                                let found = spare.map(|spare| pass_on(log, response, spare, pass));
                                return found.map(Some).ok_or(Next::Answer(answer));
                            }
                            gone @ Next::ClientGone => return Err(gone),
                        }
                    }
                }
                if running.is_empty() {
                    let another = begin(worker, request, to, &tries, &mut under_way, &running, &mut begun);
                    if let Err(none) = another {
                        // A bad answer is better than none.
                        let pass = tries.pass.take();
                        let found = spare.map(|spare| pass_on(log, response, spare, pass));
                        return found.map(Some).ok_or_else(|| Next::Answer(no_place(none)));
                    }
                    timer.as_mut().reset(Instant::now() + hedge.after);
                }
            }
        }
    }
}

enum Event<'w> {
    Ended(Box<Ended<'w>>),
    Slow,
    ClientGone,
}

/// An answer that is passed on if no try has a better one.
type Spare<'w> = (Responding, InFlight<'w>, ResponseHead);

fn pass_on<'w>(
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    of: Spare<'w>,
    pass: Option<Pass<'w>>,
) -> Won<'w> {
    let (answered, in_flight, head) = of;
    log.upstream = Some(in_flight.address);
    *response = head;
    Won { answered, in_flight, pass }
}

/// A pause before another try. Beside tries that are under way it is the timer's.
async fn wait(pause: Duration, alone: bool, timer: &mut Pin<Box<Sleep>>) {
    if !alone {
        timer.as_mut().reset(Instant::now() + pause);
    } else if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
}

/// Begins one more try, at an endpoint that has none of them.
fn begin<'a, 'w: 'a>(
    worker: &'w Rc<Worker>,
    request: &Request,
    to: &'a Forward<'_>,
    tries: &Tries<'w>,
    under_way: &mut SmallVec<[SocketAddr; 4]>,
    running: &Running<'a, 'w>,
    begun: &mut u32,
) -> Result<(), NoPlace> {
    let http2 = speaks_http2(to.pool, &request.head, false);
    let mut passed = under_way.clone();
    passed.extend_from_slice(&tries.tried);
    let wish = Wish { tried: &passed, ..to.wish() };
    let in_flight = capacity::pick(worker, to.pool, http2, &wish, false)?;
    let beside = !running.is_empty();
    under_way.push(in_flight.address);
    *begun += 1;
    let mut own = Request {
        head: request.head.clone(),
        body: request.body,
        started: request.started,
        ..Request::default()
    };
    running.push(Box::pin(async move {
        // The body is kept; nothing is read from a client here.
        let mut nobody = Side::H2(Box::default());
        let (mut log, mut response) = (Log { attempts: 1, ..Log::default() }, ResponseHead::default());
        let deadline = worker.wheel.register();
        let address = in_flight.address;
        let outcome =
            attempt(worker, &mut nobody, &mut own, to, address, &mut log, &mut response, &deadline).await;
        Ended { outcome, in_flight, response, log, beside }
    }));
    Ok(())
}
