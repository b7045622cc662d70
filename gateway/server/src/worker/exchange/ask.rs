//! Requests about which guards ask somebody: the question and the answer carried between them, the client's body kept for
//! those that want to see it, and a client that goes away noticed meanwhile. What is asked is the guards' to say.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use fieldgate_core::guard::{Answered, BodyWish, NoAnswer};
use fieldgate_core::{HeaderId, Version};
use fieldgate_wire::h1::BodyKind;
use fieldgate_wire::timer::Deadline;

use super::decide::decide;
use super::retries::client_error;
use super::tries::unless_gone;
use super::{Decision, Log, Question, Request, STREAM_IDLE, Walk};
use crate::worker::local::Answer;
use crate::worker::replay::Replay;
use crate::worker::side::{Piece, Side, SideError};
use crate::worker::{Connection, Current, Worker, callout, work};

/// Asks what is to be asked, until the request is decided on; nothing if the client goes away meanwhile.
#[allow(clippy::too_many_arguments)]
pub(super) async fn ask_around<'p>(
    worker: &Rc<Worker>,
    conn: &Connection,
    published: &'p Current,
    down: &mut Side,
    request: &mut Request,
    log: &mut Log<'p>,
    mut walk: Walk<'p>,
    mut question: Question,
    deadline: &Deadline,
) -> Option<Decision<'p>> {
    let Some(_under_way) = worker.callouts.enter() else {
        return Some(Decision::Answer(overflow("callouts_overflow")));
    };
    let mut kept: Option<Rc<Replay>> = None;
    let decision = loop {
        let (step, wish) = match &question {
            Question::Callout(callout) => (callout.step, callout.client_body),
            Question::Work(work) => (work.step, None),
        };
        let answer = match (question, wish) {
            (Question::Work(work), _) => unless_gone(down, request, work::done(*work)).await?,
            (Question::Callout(callout), None) => {
                unless_gone(down, request, callout::ask(worker, published, *callout)).await?
            }
            (_, Some(wish)) => {
                let kept = kept.get_or_insert_with(|| {
                    Rc::new(Replay::counted(wish.limit, worker.callouts.kept.clone()))
                });
                let read = keep_body(worker, down, request, kept, wish, deadline).await;
                log.bytes_received = kept.received();
                match read {
                    Ok(body) => Err(body),
                    Err(NoBody::Gone) => return None,
                    Err(NoBody::Answer(answer)) => break Decision::Answer(answer),
                    Err(NoBody::Malformed(error)) => {
                        break Decision::Answer(client_error(request, log, &error));
                    }
                }
            }
        };
        log.failure = no_answer(&answer).or(log.failure.take());
        walk.known.get_or_insert_default().answer = Some((step, answer));
        match decide(worker, conn, published, request, log, &mut walk) {
            Decision::Ask(next) => question = next,
            decision => break decision,
        }
    };
    Some(match (decision, kept) {
        (Decision::Forward(mut to), Some(kept)) => {
            to.replay = Some(kept);
            Decision::Forward(to)
        }
        (Decision::Answer(answer), Some(kept)) if kept.has_ended() => {
            // Nothing of it is left on the connection, which can go on.
            request.body = BodyKind::None;
            Decision::Answer(answer)
        }
        (decision, _) => decision,
    })
}

/// Why nobody answered, for the log.
fn no_answer(answer: &Result<Answered, NoAnswer>) -> Option<String> {
    match answer {
        Err(NoAnswer::Unreachable(why)) => Some(why.clone()),
        Err(NoAnswer::Timeout) => Some("no answer to a guard's question in time".into()),
        Err(NoAnswer::TooLong) => Some("an answer to a guard's question is too long".into()),
        Ok(_) | Err(NoAnswer::Body(..) | NoAnswer::BodyTooLong) => None,
    }
}

/// What the gateway itself has too much of is no question of whether a guard lets requests pass without an answer.
fn overflow(details: &'static str) -> Answer {
    let mut answer = Answer::new(503, details, "UO", "too many requests wait for an answer\n");
    answer.headers.push(b"retry-after", b"1");
    answer
}

/// Why a body was not kept.
enum NoBody {
    Gone,
    Malformed(SideError),
    Answer(Answer),
}

/// Reads as much of the client's body as is wanted, into what is kept to be forwarded.
async fn keep_body(
    worker: &Worker,
    down: &mut Side,
    request: &mut Request,
    kept: &Replay,
    wish: BodyWish,
    deadline: &Deadline,
) -> Result<NoAnswer, NoBody> {
    match request.body {
        BodyKind::None => return Ok(NoAnswer::Body(Bytes::new(), true)),
        // Known before the client is told to send it.
        BodyKind::Length(length) if !wish.partial && length > wish.limit as u64 => {
            return Ok(NoAnswer::BodyTooLong);
        }
        _ => {}
    }
    kept.raise(wish.limit);
    if kept.received() == 0 {
        invite(down, request).await;
    }
    deadline.set(STREAM_IDLE);
    poll_fn(|cx| {
        if request.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(NoBody::Gone));
        }
        let before = kept.held();
        if let Poll::Ready(read) = poll_keep(worker, cx, down, kept, wish) {
            return Poll::Ready(read);
        }
        if kept.held() > before {
            deadline.set(STREAM_IDLE);
        }
        deadline.poll_expired(cx).map(|()| {
            let text = "the request's body did not come in time\n";
            Err(NoBody::Answer(Answer::new(408, "stream_idle_timeout", "SI", text)))
        })
    })
    .await
}

fn poll_keep(
    worker: &Worker,
    cx: &mut Context<'_>,
    down: &mut Side,
    kept: &Replay,
    wish: BodyWish,
) -> Poll<Result<NoAnswer, NoBody>> {
    let mut trailers = None;
    loop {
        if kept.has_ended() || kept.held() > wish.limit {
            break;
        }
        let read = match down.poll_body(cx, &mut trailers) {
            // What is wanted is here; whether more follows is not worth waiting for.
            Poll::Pending if wish.partial && kept.held() == wish.limit => break,
            read => ready!(read),
        };
        match read.map_err(no_body)? {
            Piece::Data(len) => {
                let take = len.min(wish.limit - kept.held());
                if take == 0 {
                    return Poll::Ready(Ok(more_than(kept, wish)));
                }
                if worker.callouts.kept.get() + take > callout::KEPT {
                    return Poll::Ready(Err(NoBody::Answer(overflow("callouts_body_overflow"))));
                }
                kept.push(&down.data(len)[..take]);
                down.consume(take);
            }
            Piece::End => kept.finish(trailers.as_deref()),
        }
    }
    let whole = kept.has_ended() && kept.held() <= wish.limit;
    Poll::Ready(Ok(if whole { NoAnswer::Body(kept.first(wish.limit), true) } else { more_than(kept, wish) }))
}

fn no_body(error: SideError) -> NoBody {
    if matches!(error, SideError::Io(_) | SideError::Reset(_)) {
        NoBody::Gone
    } else {
        NoBody::Malformed(error)
    }
}

fn more_than(kept: &Replay, wish: BodyWish) -> NoAnswer {
    if wish.partial { NoAnswer::Body(kept.first(wish.limit), false) } else { NoAnswer::BodyTooLong }
}

/// Tells a client that waits for it to send its body (RFC 9110 section 10.1.1). An upstream has no more say in that.
async fn invite(down: &mut Side, request: &mut Request) {
    let expects = request.head.headers.get_id(HeaderId::Expect);
    if !expects.is_some_and(|value| value.eq_ignore_ascii_case(b"100-continue")) {
        return;
    }
    request.head.headers.remove_id(HeaderId::Expect);
    request.expects_continue = false;
    match down {
        Side::H1(side) if request.head.version == Version::Http11 => {
            side.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            // That it failed is found out by reading.
            let _ = poll_fn(|cx| side.poll_flush(cx)).await;
        }
        Side::H1(_) => {}
        Side::H2(_) => {
            let mut head = http::Response::new(());
            *head.status_mut() = http::StatusCode::CONTINUE;
            if let Some(respond) = &mut request.respond {
                let _ = respond.send_informational(head);
            }
        }
    }
}
