//! One try at one endpoint: a connection, the request, the response's head.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::Protocol;
use fieldgate_core::{HeaderId, Headers, Method, RequestHead, ResponseHead, Version};
use fieldgate_wire::h1::{BodyKind, HeadLimits, parse_response};
use fieldgate_wire::timer::{Deadline, with_deadline};

use super::{Failure, Forward, Log, Request, Responding};
use crate::worker::side::{H1Side, H2Side, Side, SideError, Transfer, TransferError};
use crate::worker::tunnel::{self, Asked};
use crate::worker::upstream::{Either, Http1, Http2, NoConnection, StreamGuard, Wanted};
use crate::worker::{Worker, forward};

/// One try at one endpoint, up to and including the response's head.
#[allow(clippy::too_many_arguments)]
pub(super) async fn attempt(
    worker: &Rc<Worker>,
    down: &mut Side,
    request: &mut Request,
    to: &Forward<'_>,
    address: SocketAddr,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
) -> Result<Responding, Failure> {
    let begun = Instant::now();
    if log.attempts == 1 {
        log.stages.queue = Some(begun - request.started);
    }
    let limit = to.limit_of_try(begun);
    let upgrading = request.upgrade.is_some().then_some(&*request);
    match limit {
        Some(limit) => deadline.set_at(limit.into()),
        None => deadline.set(to.idle),
    }
    let opened = {
        // Pinned here: given away, it would be kept twice.
        let opening = open(worker, to.pool, &request.head, request.body, upgrading, address);
        with_deadline(deadline, std::pin::pin!(opening)).await
    };
    let Opened { side, response: h2_response, guard, reused, asked } = opened
        .unwrap_or_else(|_| Err(if to.client_gave_up() { Failure::ClientSlow } else { Failure::Timeout }))?;
    // It has what it waited for.
    drop(to.waiting.take());
    let sent = if reused { begun } else { Instant::now() };
    if !reused {
        log.stages.connect = Some(sent - begun);
    }
    if let Side::H1(s) = &side {
        log.upstream_local = Some(s.stream.local_addr());
    }
    let mut wait = Waiting {
        worker,
        side,
        h2_response,
        upload: Transfer::upload(to.tee.clone(), to.replay.clone(), to.body_limit()),
        upload_failed: false,
        reused,
        any: false,
        idle: to.idle,
    };
    let http2 = matches!(wait.side, Side::H2(_));
    let expects_continue = request.expects_continue;
    if http2 && expects_continue {
        interim_continue(down).await;
    }
    let answered = loop {
        let got = poll_fn(|cx| wait.poll(cx, down, request, response, deadline, limit, log)).await;
        let got = match got {
            Ok(got) => got,
            Err(failure) => {
                if let Failure::Timeout = failure {
                    let starved = wait.upload.starved && !wait.upload.done && !wait.upload_failed;
                    if starved || to.client_gave_up() {
                        return Err(Failure::ClientSlow);
                    }
                    match &guard {
                        Some(guard) => guard.timed_out(),
                        None if reused => worker.upstreams.distrust(to.pool, address, begun),
                        None => {}
                    }
                }
                return Err(failure);
            }
        };
        if response.status >= 200 || response.status == 101 {
            break got;
        }
        // Of its own 100 and the upstream's the client gets one.
        if !(http2 && expects_continue && response.status == 100) {
            interim(down, request, response).await;
        }
    };
    let switched = tunnel::agreed(asked, &mut wait.side, request, response)
        .map_err(|error| Failure::Broken { error, stale: false, unsent: false })?;
    if let Some(guard) = &guard {
        guard.answered();
    }
    let answered_at = Instant::now();
    log.stages.first_byte = Some(answered_at - sent);
    if to.pool.wants_latency() {
        let took = answered_at - begun;
        worker.with_pool(to.pool, |state| state.observe(address, took, worker.now_ms()));
    }
    Ok(Responding {
        at: answered_at,
        side: wait.side,
        guard,
        keep_alive: answered.0,
        body: answered.1,
        upload: wait.upload,
        upload_failed: wait.upload_failed,
        switched,
    })
}

impl From<NoConnection> for Failure {
    fn from(why: NoConnection) -> Self {
        match why {
            NoConnection::Failed(error) => Self::Connect(error),
            NoConnection::Full => Self::Full,
        }
    }
}

/// An upstream that is about to get the request, its head first.
pub struct Opened {
    pub side: Side,
    /// HTTP/2: where the response comes from.
    pub response: Option<h2::client::ResponseFuture>,
    pub guard: Option<StreamGuard>,
    /// Whether the connection was open before.
    pub reused: bool,
    /// The upgrade that it was asked for.
    asked: Option<Asked>,
}

/// Has a connection to an endpoint and puts the head on it. `upgrading`: the request, if it asks for an upgrade.
pub async fn open(
    worker: &Worker,
    pool: &CompiledPool,
    head: &RequestHead,
    body: BodyKind,
    upgrading: Option<&Request>,
    address: SocketAddr,
) -> Result<Opened, Failure> {
    let (upgrades, wanted) = (upgrading.is_some(), Wanted::of(pool, head, address));
    if pool.ir.protocol == Protocol::Auto && wanted.is_some() && !upgrades {
        return match worker.upstreams.either(pool, address, wanted).await? {
            Either::Http1(opened) => Ok(begin_http1(worker, opened, head, body, None)),
            Either::Http2(opened) => begin_http2(pool, opened, head, body, None).await,
        };
    }
    let http2 = speaks_http2(pool, head, upgrades);
    open_speaking(worker, pool, http2, head, body, upgrading, address).await
}

/// The same, by HTTP/2 or HTTP/1 whatever the pool says.
pub async fn open_speaking(
    worker: &Worker,
    pool: &CompiledPool,
    http2: bool,
    head: &RequestHead,
    body: BodyKind,
    upgrading: Option<&Request>,
    address: SocketAddr,
) -> Result<Opened, Failure> {
    let wanted = Wanted::of(pool, head, address);
    if http2 {
        let opened = worker.upstreams.http2(pool, address, wanted).await?;
        begin_http2(pool, opened, head, body, upgrading).await
    } else {
        let opened = worker.upstreams.http1(pool, address, wanted).await?;
        Ok(begin_http1(worker, opened, head, body, upgrading))
    }
}

/// Whether the request goes to this pool by HTTP/2.
pub fn speaks_http2(pool: &CompiledPool, head: &RequestHead, upgrades: bool) -> bool {
    match pool.ir.protocol {
        Protocol::Http1 => false,
        Protocol::Http2 => true,
        // Who speaks either takes an upgrade by HTTP/1.1 in any case. With TLS the endpoint has the last word.
        Protocol::Auto => head.version >= Version::Http2 && !upgrades,
    }
}

fn begin_http1(
    worker: &Worker,
    opened: Http1,
    head: &RequestHead,
    body: BodyKind,
    upgrading: Option<&Request>,
) -> Opened {
    let Http1 { stream, lease, secured, reused } = opened;
    let mut side = H1Side::new(stream, worker.buffers.take(), worker.take_out());
    let body = match body {
        BodyKind::UntilClose => BodyKind::Chunked,
        body => body,
    };
    side.held = Some((lease, secured));
    let upgrade = upgrading.and_then(|request| request.upgrade.as_deref());
    forward::write_request(&mut side.out, head, body, upgrade);
    side.begin_body(body);
    let asked = upgrading.map(|_| Asked::default());
    Opened { side: Side::H1(Box::new(side)), response: None, guard: None, reused, asked }
}

async fn begin_http2(
    pool: &CompiledPool,
    opened: Http2,
    head: &RequestHead,
    body: BodyKind,
    upgrading: Option<&Request>,
) -> Result<Opened, Failure> {
    let (shared, guard, reused) = opened;
    let broken = |error: h2::Error| {
        // It takes no more streams, however long those that are open may last.
        guard.retire();
        Failure::Broken { error: SideError::Reset(error), stale: reused, unsent: true }
    };
    let upgrade = match upgrading {
        Some(request) => Box::pin(tunnel::check_upstream(request, &shared, &pool.ir.limits)).await?,
        None => None,
    };
    let mut send = shared.send.ready().await.map_err(broken)?;
    let mut head = forward::http2_request(head)
        .map_err(|e| Failure::ClientError(SideError::Io(std::io::Error::other(e))))?;
    if let Some(protocol) = upgrade {
        tunnel::extend_connect(&mut head, protocol);
        let (response, stream) = send.send_request(head, false).map_err(broken)?;
        let asked = Some(Asked::on(stream));
        let side = Side::H2(Box::default());
        return Ok(Opened { side, response: Some(response), guard: Some(guard), reused, asked });
    }
    let (response, stream) = send.send_request(head, body == BodyKind::None).map_err(broken)?;
    let stream = (body != BodyKind::None).then_some(stream);
    let side = Side::H2(Box::new(H2Side::new(None, stream)));
    Ok(Opened { side, response: Some(response), guard: Some(guard), reused, asked: None })
}

/// The time between the request's head sent and the response's head read, the body flowing meanwhile.
struct Waiting<'w> {
    worker: &'w Worker,
    side: Side,
    h2_response: Option<h2::client::ResponseFuture>,
    upload: Transfer,
    upload_failed: bool,
    reused: bool,
    /// Whether the upstream sent any byte.
    any: bool,
    /// Longest time without a byte.
    idle: Duration,
}

impl Waiting<'_> {
    #[allow(clippy::too_many_arguments)]
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Side,
        request: &mut Request,
        response: &mut ResponseHead,
        deadline: &Deadline,
        limit: Option<Instant>,
        log: &mut Log<'_>,
    ) -> Poll<Result<(bool, BodyKind), Failure>> {
        if deadline.expired() {
            return Poll::Ready(Err(Failure::Timeout));
        }
        if !self.upload.done && !self.upload_failed {
            let moved = self.upload.poll(cx, down, &mut self.side);
            log.bytes_received = self.upload.bytes;
            match moved {
                Poll::Ready(Err(TransferError::Source(e))) => return Poll::Ready(Err(client_failure(e))),
                // The upstream takes no more: it may have answered already.
                Poll::Ready(Err(TransferError::Sink(e))) => {
                    self.upload_failed = true;
                    log.failure = Some(e.to_string());
                }
                _ => {}
            }
        }
        match self.poll_head(cx, request, response) {
            Poll::Ready(Ok(got)) => Poll::Ready(Ok(got)),
            Poll::Ready(Err(error)) => {
                let unsent = error.is_unprocessed();
                let stale = self.reused && !self.any && error.may_be_stale();
                Poll::Ready(Err(Failure::Broken { error, stale, unsent }))
            }
            Poll::Pending => {
                // Asked in the same poll that ends the upload: nothing else would wake us for it.
                let sent = self.upload.done || self.upload_failed;
                if sent && (down.poll_gone(cx).is_ready() || request.poll_reset(cx).is_ready()) {
                    return Poll::Ready(Err(Failure::ClientGone));
                }
                match limit {
                    Some(limit) => deadline.set_at(limit.into()),
                    None => deadline.set(self.idle),
                }
                deadline.poll_expired(cx).map(|()| Err(Failure::Timeout))
            }
        }
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        request: &Request,
        response: &mut ResponseHead,
    ) -> Poll<Result<(bool, BodyKind), SideError>> {
        match &mut self.side {
            Side::H1(side) => loop {
                if !side.input.is_empty() {
                    self.any = true;
                    self.worker.make_room(response);
                    let headers = &mut response.headers;
                    headers.clear();
                    let parsed = parse_response(side.input.filled(), HeadLimits::default(), |n, v| {
                        headers.push(n, v);
                    })?;
                    if let Some(parsed) = parsed {
                        side.input.consume(parsed.len);
                        response.status = parsed.status;
                        response.version = if parsed.http10 { Version::Http10 } else { Version::Http11 };
                        let body =
                            if request.head.method == Method::Head { BodyKind::None } else { parsed.body };
                        side.expect_body(body);
                        return Poll::Ready(Ok((parsed.keep_alive, body)));
                    }
                }
                match std::task::ready!(side.poll_read_more(cx)) {
                    Ok(0) => {
                        return Poll::Ready(Err(SideError::Io(std::io::ErrorKind::UnexpectedEof.into())));
                    }
                    Ok(_) => {}
                    Err(e) => return Poll::Ready(Err(e.into())),
                }
            },
            Side::H2(side) => {
                let Some(future) = &mut self.h2_response else { return Poll::Pending };
                if let Poll::Ready(Some(Ok(interim))) = future.poll_informational(cx) {
                    let (parts, ()) = interim.into_parts();
                    forward::read_http2_response(response, &parts);
                    return Poll::Ready(Ok((true, BodyKind::None)));
                }
                let got = std::task::ready!(std::pin::Pin::new(future).poll(cx))?;
                self.h2_response = None;
                let (parts, recv) = got.into_parts();
                self.worker.make_room(response);
                forward::read_http2_response(response, &parts);
                let body = if recv.is_end_stream() || request.head.method == Method::Head {
                    BodyKind::None
                } else {
                    length_of(&response.headers).map_or(BodyKind::Chunked, BodyKind::Length)
                };
                if !recv.is_end_stream() {
                    side.recv = Some(recv);
                }
                Poll::Ready(Ok((true, body)))
            }
        }
    }
}

fn length_of(headers: &Headers) -> Option<u64> {
    std::str::from_utf8(headers.get_id(HeaderId::ContentLength)?).ok()?.parse().ok()
}

fn client_failure(error: SideError) -> Failure {
    match error {
        SideError::Malformed(_) | SideError::TooLong => Failure::ClientError(error),
        SideError::Io(_) | SideError::Reset(_) => Failure::ClientGone,
    }
}

/// 100 by ourselves, where the upstream's protocol has no use for `expect`.
async fn interim_continue(down: &mut Side) {
    if let Side::H1(side) = down {
        side.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        let _ = poll_fn(|cx| side.poll_flush(cx)).await;
    }
}

/// Passes 100, 103 and their like on to clients that can take them (RFC 9110 section 15.2).
async fn interim(down: &mut Side, request: &mut Request, response: &mut ResponseHead) {
    forward::prepare_response(response);
    match down {
        Side::H1(side) if request.head.version == Version::Http11 => {
            forward::write_response(&mut side.out, response, BodyKind::None, None, None);
            let _ = poll_fn(|cx| side.poll_flush(cx)).await;
        }
        Side::H1(_) => {}
        Side::H2(_) => {
            if let (Some(respond), Ok(head)) =
                (&mut request.respond, forward::http2_response(response.status, &response.headers))
            {
                let _ = respond.send_informational(head);
            }
        }
    }
}
