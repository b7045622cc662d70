//! Downstream HTTP/2: a connection with many requests at once, each an exchange of its own.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_core::{HeaderId, Method, Version};
use fieldgate_wire::h1::{BodyKind, MAX_FIELDS, Malformed, valid_authority};
use fieldgate_wire::io::Stream;
use fieldgate_wire::linger::Lingering;
use fieldgate_wire::metered::Metered;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};

use super::exchange::{self, Request};
use super::local::{self, Answer};
use super::side::{H2Side, Side, fill_headers};
use super::{Connection, Worker, h1, shed, tunnel};

/// Streams that a client may have open at once.
const STREAMS: u32 = 128;
/// What a client may send before we have forwarded it, per stream and per connection, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What may wait to be sent per stream, in bytes.
const SEND_BUFFER: usize = 128 * 1024;
/// Handshake, and a connection without streams.
const HANDSHAKE: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_mins(5);

/// How long a client's end is waited for after ours, so that what was sent last arrives.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection without a request may still send its first one while the gateway drains.
const FIRST_REQUEST: Duration = Duration::from_secs(2);

/// How long the peer of a connection that was told to go may take to hear it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves a connection to its end. `ahead`: what was read of it already.
pub async fn serve(worker: &Rc<Worker>, conn: Rc<Connection>, stream: Stream, ahead: Bytes) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(60 * 1024)
        .max_send_buffer_size(SEND_BUFFER)
        // WebSocket and other upgrades (RFC 8441 section 3).
        .enable_connect_protocol()
        // The rapid-reset attack (CVE-2023-44487): streams reset by the peer before we took them.
        .max_pending_accept_reset_streams(50)
        .max_local_error_reset_streams(Some(100));
    let transport = Lingering::new(stream.into_io(), worker.wheel.register(), LINGER).read_ahead(ahead);
    let transport = Metered::new(transport, (*worker.wheel).clone());
    let meter = transport.meter();
    let handshake = Box::pin(tokio::time::timeout(HANDSHAKE, builder.handshake::<_, Bytes>(transport)));
    let Ok(Ok(mut connection)) = handshake.await else { return };
    let deadline = worker.wheel.register();
    deadline.set(IDLE);
    let drain = worker.drain.notified();
    tokio::pin!(drain);
    let (mut told, mut draining, mut served, mut flooded) = (false, false, false, false);
    loop {
        let accepted = poll_fn(|cx| {
            meter.begin_turn();
            while !draining && (worker.draining.get() || drain.as_mut().poll(cx).is_ready()) {
                if worker.draining.get() {
                    draining = true;
                    deadline.set(FIRST_REQUEST);
                    break;
                }
                if !told && !connection.has_streams() && worker.room.wants_it_closed() {
                    told = true;
                    connection.graceful_shutdown();
                    deadline.set(FAREWELL);
                }
                drain.set(worker.drain.notified());
            }
            // A connection that was just opened is not told to go before it could ask for anything: a client may
            // count what it had ready to send as failed.
            if draining && served && !told {
                told = true;
                connection.graceful_shutdown();
            }
            if let Poll::Ready(accepted) = connection.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
            if let Some(flood) = meter.flood()
                && !flooded
            {
                (flooded, told) = (true, true);
                worker.recorder.flooded(flood.as_str());
                strike(worker, &conn);
                tracing::debug!(peer = %conn.peer, kind = flood.as_str(), "an HTTP/2 connection floods; ended");
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                deadline.set(FAREWELL);
                cx.waker().wake_by_ref();
            }
            if connection.has_streams() && !flooded {
                deadline.set(IDLE);
            }
            if deadline.poll_expired(cx).is_ready() {
                if told {
                    // It does not even take that it is to go.
                    return Poll::Ready(None);
                }
                told = true;
                connection.graceful_shutdown();
                deadline.set(FAREWELL);
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
        let (request, respond) = match accepted {
            Some(Ok(accepted)) => accepted,
            // What the codec itself ends a connection for no client does by accident three times in a minute.
            Some(Err(error)) if error.is_library() && error.is_go_away() => return strike(worker, &conn),
            _ => return,
        };
        served = true;
        deadline.set(IDLE);
        if !start_exchange(worker, &conn, request, respond, meter.saw_resets()) {
            meter.malformed();
        }
    }
}

/// Holds it against the source of a connection that it flooded, unless that is a proxy with clients of its own behind it.
fn strike(worker: &Worker, conn: &Connection) {
    let published = worker.published();
    let table = published.snapshot.address(conn.bound);
    let proxied = table.is_some_and(|t| t.listeners.iter().any(|l| l.ir.client.trusted_hops > 0));
    if worker.overload.limits().hold_back_floods
        && !proxied
        && worker.overload.strikes.strike(conn.peer.ip(), worker.now_ms())
    {
        tracing::warn!(source = %conn.peer.ip(), "a source floods; held back to two new connections per second");
    }
}

/// `resets`: the client has reset streams lately. `false`: the request was malformed.
fn start_exchange(
    worker: &Rc<Worker>,
    conn: &Rc<Connection>,
    incoming: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    resets: bool,
) -> bool {
    let started = Instant::now();
    let (parts, recv) = incoming.into_parts();
    let mut request = Request { started, head: worker.take_request_head(), ..Request::default() };
    request.head.https = conn.tls;
    if let Err(why) = read_head(&mut request, &parts, recv.is_end_stream(), || worker.random()) {
        let answer = Answer::new(why.status(), why.as_str(), "DPE", "bad request\n");
        exchange::record_refusal(worker, conn, &request, &answer);
        local::send_h2(respond, answer, &request.head);
        return false;
    }
    if let Some(why) = worker.gate.refuses(|| worker.random()) {
        shed::http2(worker, conn, respond, request, why);
        return true;
    }
    let recv = match request.upgrade {
        Some(_) => {
            request.tunnel = Some(recv);
            None
        }
        None => (request.body != BodyKind::None).then_some(recv),
    };
    request.respond = Some(respond);
    let side = Side::H2(Box::new(H2Side::new(recv, None)));
    // In a box, for the runtime moves a task three times on its way to its place.
    tokio::task::spawn_local(Box::pin(stream_exchange(worker.clone(), conn.clone(), request, side, resets)));
    true
}

async fn stream_exchange(
    worker: Rc<Worker>,
    conn: Rc<Connection>,
    mut request: Request,
    side: Side,
    resets: bool,
) {
    // Who resets streams has perhaps reset this one in the same breath: then no upstream is to hear of it.
    if resets && poll_fn(|cx| Poll::Ready(request.poll_reset(cx).is_ready())).await {
        exchange::record_gone(&worker, &conn, &request);
        return worker.give_request_head(request.head);
    }
    let deadline = worker.wheel.register();
    // The side that comes back is dropped: a request body not read to its end is then reset, as it should be.
    let _ = exchange::exchange(&worker, &conn, side, &mut request, &deadline).await;
    worker.give_request_head(request.head);
}

/// The same rules as for HTTP/1, before the head can become HTTP/1 (RFC 9113 section 8.3).
pub(super) fn read_head(
    request: &mut Request,
    parts: &http::request::Parts,
    ended: bool,
    random: impl Fn() -> u64,
) -> Result<(), Malformed> {
    // As many as HTTP/1 may have: the size alone would allow thousands of short ones.
    if parts.headers.len() > MAX_FIELDS {
        return Err(Malformed::TooManyFields);
    }
    let head = &mut request.head;
    head.version = Version::Http2;
    head.method = Method::from_bytes(parts.method.as_str().as_bytes());
    fill_headers(&mut head.headers, &parts.headers);
    if let Some(protocol) = parts.extensions.get::<h2::ext::Protocol>() {
        tunnel::from_extended_connect(request, protocol, random)?;
    }
    let head = &mut request.head;
    if head.headers.get_all_id(HeaderId::Host).count() > 1 {
        return Err(Malformed::Host);
    }
    let host = head.headers.get_id(HeaderId::Host).map(<[u8]>::to_ascii_lowercase);
    let authority = parts.uri.authority().map(|a| a.as_str().to_ascii_lowercase());
    let authority = match (authority, host) {
        (Some(a), Some(h)) if a.as_bytes() != h => return Err(Malformed::Host),
        (Some(a), _) => a,
        (None, Some(h)) => String::from_utf8(h).map_err(|_| Malformed::Host)?,
        (None, None) => return Err(Malformed::Host),
    };
    if !valid_authority(&authority) {
        return Err(Malformed::Host);
    }
    head.headers.remove_id(HeaderId::Host);
    head.authority = authority;
    head.drop_trailing_dot();
    if head.method != Method::Connect {
        let target = parts.uri.path_and_query().map_or("", |t| t.as_str());
        if !target.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Malformed::Target);
        }
        h1::set_target(head, target)?;
    }
    let mut lengths = head.headers.get_all_id(HeaderId::ContentLength);
    let length = match (lengths.next(), lengths.next()) {
        (None, _) => None,
        (Some(v), None) if !v.is_empty() && v.iter().all(u8::is_ascii_digit) => {
            Some(std::str::from_utf8(v).ok().and_then(|v| v.parse().ok()).ok_or(Malformed::ContentLength)?)
        }
        _ => return Err(Malformed::ContentLength),
    };
    request.body = match length {
        _ if ended || request.upgrade.is_some() => BodyKind::None,
        Some(n) => BodyKind::Length(n),
        None => BodyKind::Chunked,
    };
    Ok(())
}
