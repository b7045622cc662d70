//! The way back: an upstream's response, or one of our own, to the client.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use fieldgate_core::outlier::Seen;
use fieldgate_core::{HeaderId, Headers, Method, ResponseHead, Version};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::{Deadline, with_deadline};
use h2::Reason;

use super::decide::apply_to_response;
use super::tries::{InFlight, recycle};
use super::{Forward, Log, Request, Responding, STREAM_IDLE};
use crate::worker::local::{self, Answer};
use crate::worker::side::{Piece, Side, SideError, Transfer, TransferError};
use crate::worker::{Worker, forward};

/// How long a client may take to accept the last of a response that is cut short.
const FAREWELL: Duration = Duration::from_secs(2);

/// Bytes of a body that are read although nobody wants them.
const UNWANTED: usize = 1024 * 1024;

/// Turns that an HTTP/2 connection gets to send what it has before a stream of it is reset.
const TURNS: usize = 2;

/// Sends a response of our own.
pub(super) async fn send_answer(
    mut down: Side,
    request: &mut Request,
    answer: Answer,
    log: &mut Log<'_>,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    log.answer(&answer);
    // A client that is misdirected needs another connection (RFC 9110 section 15.5.20): on this one it would be for ever.
    let keep = request.body == BodyKind::None && request.keep_alive && answer.status != 421;
    match &mut down {
        Side::H1(side) => {
            local::write_h1(side, &answer, &request.head, keep);
            deadline.set(STREAM_IDLE);
            with_deadline(deadline, poll_fn(|cx| down.poll_flush(cx))).await.ok()?.ok()?;
            Some((down, keep))
        }
        Side::H2(_) => {
            local::send_h2(request.respond.take()?, answer, &request.head)?;
            if request.body != BodyKind::None {
                log.ended = Some(Instant::now());
                read_off(&mut down, deadline).await;
            }
            None
        }
    }
}

/// Reads what is on its way of a body that nobody wants: a reset might reach the client before the answer does.
async fn read_off(down: &mut Side, deadline: &Deadline) {
    deadline.set(FAREWELL);
    let (mut left, mut trailers) = (UNWANTED, None);
    let read = poll_fn(|cx| {
        loop {
            match ready!(down.poll_body(cx, &mut trailers)) {
                Ok(Piece::Data(count)) if count <= left => {
                    left -= count;
                    down.consume(count);
                }
                _ => return Poll::Ready(()),
            }
        }
    });
    let _ = with_deadline(deadline, read).await;
}

/// As [`send_answer`], for a request that was on its way: the guards that follow it see this, too.
pub(super) async fn send_failure(
    down: Side,
    request: &mut Request,
    to: &Forward<'_>,
    mut answer: Answer,
    log: &mut Log<'_>,
    deadline: &Deadline,
) -> Option<(Side, bool)> {
    for guard in to.rare.iter().flat_map(|rare| &rare.following) {
        guard.receive(request.head.https, &mut answer.headers);
    }
    let answer = if request.head.is_grpc() { answer.into_grpc() } else { answer };
    send_answer(down, request, answer, log, deadline).await
}

/// Sends the response's head and streams both bodies to their ends.
#[allow(clippy::too_many_arguments)]
pub(super) async fn respond(
    worker: &Rc<Worker>,
    mut down: Side,
    request: &mut Request,
    to: &Forward<'_>,
    answered: Responding,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
    in_flight: &InFlight<'_>,
) -> Option<(Side, bool)> {
    let address = in_flight.address;
    let Responding { at: begun, side: mut up, guard, keep_alive, body, mut upload, upload_failed, .. } =
        answered;
    log.status = response.status;
    log.details = "via_upstream".into();
    forward::prepare_response(response);
    apply_to_response(to, address, &request.head, response);
    let mut keep = request.keep_alive && !worker.draining.get();
    match &mut down {
        Side::H1(side) => {
            let out_body = match body {
                BodyKind::Chunked | BodyKind::UntilClose if request.head.version == Version::Http10 => {
                    BodyKind::UntilClose
                }
                BodyKind::Chunked | BodyKind::UntilClose => BodyKind::Chunked,
                body => body,
            };
            side.make_room(worker);
            keep &= out_body != BodyKind::UntilClose && (upload.done || !upload_failed);
            let said = response.headers.has(HeaderId::ContentLength);
            if body == BodyKind::None
                && !said
                && request.head.method != Method::Head
                && !matches!(response.status, 100..=199 | 204 | 304)
            {
                response.headers.push_known(HeaderId::ContentLength, "content-length", b"0");
            }
            let connection = forward::connection_option(request.head.version, keep && upload.done);
            forward::write_response(&mut side.out, response, out_body, connection, None);
            keep &= upload.done;
            side.begin_body(out_body);
        }
        Side::H2(side) => {
            let mut sender = request.respond.take()?;
            let head = forward::http2_response(response.status, &response.headers).ok()?;
            match sender.send_response(head, body == BodyKind::None) {
                Ok(send) => side.send = (body != BodyKind::None).then_some(send),
                Err(_) => {
                    log.flags = "DC";
                    log.details = "downstream_remote_reset".into();
                    return None;
                }
            }
        }
    }
    if upload_failed {
        upload.done = true;
    }
    let mut download = Transfer::default();
    let streamed =
        poll_fn(|cx| poll_streams(cx, &mut down, &mut up, &mut upload, &mut download, deadline, to)).await;
    log.bytes_received = upload.bytes;
    log.bytes_sent = download.bytes;
    let ended = Instant::now();
    log.stages.body = Some(ended - begun);
    log.ended = Some(ended);
    log.grpc_status = grpc_status(download.trailers()).or_else(|| grpc_status(Some(&response.headers)));
    match streamed {
        Ok(()) => {
            drop(guard);
            let complete = upload.done && !upload_failed;
            if complete && keep_alive {
                recycle(worker, up, to.pool, address);
            } else if let Side::H2(mut s) = up
                && let Some(send) = &mut s.send
            {
                // An early response: the rest of the request is of no use (RFC 9113 section 8.1).
                send.send_reset(Reason::NO_ERROR);
            }
            Some((down, keep && complete))
        }
        Err(end) => {
            match &end {
                End::Client(e @ SideError::TooLong) => {
                    log.details = "edge_body_too_large".into();
                    log.failure = Some(e.to_string());
                }
                End::Client(e) => {
                    log.flags = "DC";
                    log.details = "downstream_remote_disconnect".into();
                    log.failure = Some(e.to_string());
                }
                End::Upstream(e) => {
                    in_flight.saw(to.pool, Seen::Reset);
                    log.flags = "UC";
                    log.details = "upstream_reset_after_response_started{connection_termination}".into();
                    log.failure = Some(e.to_string());
                }
                End::Idle if worker.over.get() => {
                    log.flags = "DT";
                    log.details = "drain_deadline".into();
                }
                End::Idle => {
                    log.flags = if to.limit.is_some() { "UT" } else { "SI" };
                    log.details = "stream_idle_timeout".into();
                }
            }
            up.abort(Reason::CANCEL);
            match down {
                // What it lacks shows by its length or last chunk, so the connection can close in good order: a reset
                // would take with it what was sent and has not arrived.
                Side::H1(mut side) if !matches!(end, End::Client(_)) && !side.ends_with_connection() => {
                    deadline.set(FAREWELL);
                    let _ = with_deadline(deadline, poll_fn(|cx| side.poll_flush(cx))).await;
                    Some((Side::H1(side), false))
                }
                down => {
                    if matches!(down, Side::H2(_)) && !matches!(end, End::Client(_)) {
                        // A reset takes with it what waits to be sent, perhaps the head: the connection goes first.
                        for _ in 0..TURNS {
                            tokio::task::yield_now().await;
                        }
                    }
                    down.abort(Reason::INTERNAL_ERROR);
                    None
                }
            }
        }
    }
}

enum End {
    Client(SideError),
    Upstream(SideError),
    Idle,
}

#[allow(clippy::too_many_arguments)]
fn poll_streams(
    cx: &mut Context<'_>,
    down: &mut Side,
    up: &mut Side,
    upload: &mut Transfer,
    download: &mut Transfer,
    deadline: &Deadline,
    to: &Forward<'_>,
) -> Poll<Result<(), End>> {
    if deadline.expired() {
        return Poll::Ready(Err(End::Idle));
    }
    if !download.done {
        match download.poll(cx, up, down) {
            Poll::Ready(Err(TransferError::Source(e))) => return Poll::Ready(Err(End::Upstream(e))),
            Poll::Ready(Err(TransferError::Sink(e))) => return Poll::Ready(Err(End::Client(e))),
            _ => {}
        }
    }
    if !upload.done {
        match upload.poll(cx, down, up) {
            Poll::Ready(Err(TransferError::Source(e))) if !download.done => {
                return Poll::Ready(Err(End::Client(e)));
            }
            // The upstream has answered; that it wants no more of the request is its right.
            Poll::Ready(Err(_)) => upload.done = true,
            _ => {}
        }
    }
    if upload.done && !download.done && down.poll_gone(cx).is_ready() {
        return Poll::Ready(Err(End::Client(SideError::Io(std::io::ErrorKind::ConnectionReset.into()))));
    }
    // An exchange is over when the response is, whatever is left of the request.
    if download.done {
        return Poll::Ready(Ok(()));
    }
    to.set(deadline);
    deadline.poll_expired(cx).map(|()| Err(End::Idle))
}

pub fn grpc_status(headers: Option<&Headers>) -> Option<u16> {
    std::str::from_utf8(headers?.get_id(HeaderId::GrpcStatus)?).ok()?.parse().ok()
}
