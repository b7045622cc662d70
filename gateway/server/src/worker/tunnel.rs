//! Upgrades: from a request that asks for another protocol to bytes that flow both ways.
//!
//! Inside the gateway an upgrade always has HTTP/1.1's form: GET, `upgrade`, 101. An extended CONNECT (RFC 8441) is put
//! into it when it arrives and taken out of it where the upstream speaks HTTP/2, as Envoy does, so that policies and
//! routes know one form. What flows in a tunnel is never looked at, and not a byte of it goes to an upstream before that
//! has agreed: it might take it for another request.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use fieldgate_core::ir::PoolLimits;
use fieldgate_core::{HeaderId, Method, ResponseHead};
use fieldgate_wire::h1::{BodyKind, Malformed};
use fieldgate_wire::timer::Deadline;
use fieldgate_wire::websocket;
use h2::ext::Protocol;
use h2::{Reason, SendStream};

use super::exchange::{Failure, Forward, Log, Request, Responding, STREAM_IDLE, apply_to_response};
use super::local::Answer;
use super::side::{Side, SideError, Transfer, TransferError};
use super::upstream::Shared;
use super::{Worker, forward};

const WEBSOCKET: &str = "websocket";
const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";
const VERSION: &str = "sec-websocket-version";

/// What an `upgrade` field asks for, if it is something that can be tunnelled. `h2c` is not: behind it requests would
/// flow that no policy sees. To ignore the field is a server's right (RFC 9110 section 7.8).
pub fn asked_for(upgrade: &[u8]) -> Option<Vec<u8>> {
    let is_http = |protocol: &[u8]| {
        let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
        [&b"h2c"[..], b"h2", b"http"].iter().any(|http| name.eq_ignore_ascii_case(http))
    };
    let mut protocols = upgrade.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    (!upgrade.is_empty() && !protocols.any(is_http)).then(|| upgrade.to_vec())
}

/// Gives an extended CONNECT the form of HTTP/1.1 (RFC 8441 section 5, the other way round).
pub fn from_extended_connect(
    request: &mut Request,
    protocol: &Protocol,
    random: impl Fn() -> u64,
) -> Result<(), Malformed> {
    let name = protocol.as_ref();
    let is_token = name.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(b));
    let Some(upgrade) = asked_for(name).filter(|_| is_token) else { return Err(Malformed::Upgrade) };
    let head = &mut request.head;
    if head.headers.has(HeaderId::ContentLength) {
        return Err(Malformed::ContentLength);
    }
    head.method = Method::Get;
    head.headers.push_known(HeaderId::Connection, "connection", b"upgrade");
    head.headers.push_known(HeaderId::Upgrade, "upgrade", &upgrade);
    if name.eq_ignore_ascii_case(WEBSOCKET.as_bytes()) {
        // HTTP/2 has no use for a key, HTTP/1.1 no WebSocket without one.
        let nonce = (u128::from(random()) << 64 | u128::from(random())).to_be_bytes();
        head.headers.set(KEY, websocket::key(nonce).as_bytes());
        if head.headers.get(VERSION).is_none() {
            head.headers.push(VERSION.as_bytes(), b"13");
        }
    }
    request.upgrade = Some(upgrade);
    Ok(())
}

/// What to ask an HTTP/2 upstream for, if the request is an upgrade that HTTP/2 can express: a method other than GET or
/// a body has no place in it, and then the request goes as what it is without the upgrade.
pub async fn check_upstream(
    request: &Request,
    upstream: &Shared,
    limits: &PoolLimits,
) -> Result<Option<Protocol>, Failure> {
    let Some(upgrade) = &request.upgrade else { return Ok(None) };
    if request.head.method != Method::Get || request.body != BodyKind::None {
        return Ok(None);
    }
    let protocol = single(upgrade);
    if protocol == WEBSOCKET && !request.head.headers.get(KEY).is_some_and(websocket::is_key) {
        let why = "sec-websocket-key is missing or invalid\n";
        return Err(Failure::Refused(Answer::new(400, "websocket_key_invalid", "DPE", why)));
    }
    if !upstream.takes_extended_connect(limits).await {
        let details = "upstream_extended_connect_not_supported";
        let why = "the upstream takes no upgrades over HTTP/2\n";
        return Err(Failure::Refused(Answer::new(502, details, "UPE", why)));
    }
    Ok(Some(Protocol::from(&*protocol)))
}

/// Makes an HTTP/2 request an extended CONNECT (RFC 8441 section 4).
pub fn extend_connect(head: &mut http::Request<()>, protocol: Protocol) {
    *head.method_mut() = http::Method::CONNECT;
    head.extensions_mut().insert(protocol);
    head.headers_mut().remove(KEY);
}

/// An upgrade that an upstream was asked for.
#[derive(Default)]
pub struct Asked {
    /// HTTP/2: where the client's bytes will go.
    send: Option<SendStream<Bytes>>,
}

impl Asked {
    /// On a stream of HTTP/2.
    pub fn on(send: SendStream<Bytes>) -> Self {
        Self { send: Some(send) }
    }
}

/// Whether the upstream agreed to what it was asked for. If so the response is a 101 that fits the client's handshake, and
/// the side is a tunnel.
pub fn agreed(
    asked: Option<Asked>,
    up: &mut Side,
    request: &Request,
    response: &mut ResponseHead,
) -> Result<bool, SideError> {
    match (up, asked) {
        (Side::H2(side), Some(asked)) if matches!(response.status, 200..=299) => {
            side.send = asked.send;
            response.status = 101;
            let protocol = single(request.upgrade.as_deref().unwrap_or_default());
            response.headers.remove_id(HeaderId::Upgrade);
            response.headers.push_known(HeaderId::Upgrade, "upgrade", protocol.as_bytes());
            response.headers.remove(ACCEPT);
            if let Some(key) = key_of(request, &protocol).filter(|_| request.tunnel.is_none()) {
                response.headers.push(ACCEPT.as_bytes(), websocket::accept(key).as_bytes());
            }
        }
        (Side::H1(side), Some(_)) if response.status == 101 => {
            if request.tunnel.is_some() {
                check_handshake(request, response)?;
            }
            side.switch();
        }
        // Nobody asked for it, or it is no part of HTTP/2 (RFC 9113 section 8.6).
        _ if response.status == 101 => return Err(Malformed::Upgrade.into()),
        (_, Some(Asked { send: Some(mut send) })) => {
            // Refused: the request, which has no content, ends here. The upstream may have closed the stream already.
            let _ = send.send_data(Bytes::new(), true);
            return Ok(false);
        }
        _ => return Ok(false),
    }
    response.headers.remove_id(HeaderId::ContentLength);
    Ok(true)
}

/// A client of HTTP/2 has no key to check the answer with, so that is done here.
fn check_handshake(request: &Request, response: &mut ResponseHead) -> Result<(), SideError> {
    let protocol = single(request.upgrade.as_deref().unwrap_or_default());
    let said = response.headers.get_id(HeaderId::Upgrade).unwrap_or_default();
    let accepted = key_of(request, &protocol)
        .is_none_or(|key| response.headers.get(ACCEPT) == Some(websocket::accept(key).as_bytes()));
    if !said.eq_ignore_ascii_case(protocol.as_bytes()) || !accepted {
        return Err(Malformed::Upgrade.into());
    }
    response.headers.remove(ACCEPT);
    Ok(())
}

fn key_of<'r>(request: &'r Request, protocol: &str) -> Option<&'r [u8]> {
    request.head.headers.get(KEY).filter(|_| protocol == WEBSOCKET)
}

/// HTTP/2 asks for one protocol, where HTTP/1.1 may offer several.
fn single(upgrade: &[u8]) -> String {
    let names = || upgrade.split(|b| *b == b',').map(<[u8]>::trim_ascii);
    if names().any(|name| name.eq_ignore_ascii_case(WEBSOCKET.as_bytes())) {
        return WEBSOCKET.to_owned();
    }
    String::from_utf8_lossy(names().next().unwrap_or_default()).into_owned()
}

/// Tells the client that the upstream agreed and carries bytes until both have ended their side. Of the client's side
/// nothing is left then.
#[allow(clippy::too_many_arguments)]
pub async fn carry(
    worker: &Rc<Worker>,
    mut down: Side,
    request: &mut Request,
    to: &Forward<'_>,
    answered: Responding,
    log: &mut Log<'_>,
    response: &mut ResponseHead,
    deadline: &Deadline,
    address: SocketAddr,
) -> Option<(Side, bool)> {
    let Responding { side: up, guard: _guard, upload: body, .. } = answered;
    log.status = response.status;
    log.details = "via_upstream".into();
    let protocol = response.headers.get_id(HeaderId::Upgrade).map(<[u8]>::to_vec);
    forward::prepare_response(response);
    apply_to_response(to, address, &request.head, response);
    match &mut down {
        Side::H1(side) => {
            side.make_room(worker);
            forward::write_response(&mut side.out, response, BodyKind::None, None, protocol.as_deref());
            side.switch();
        }
        Side::H2(side) => {
            let head = forward::http2_response(200, &response.headers).ok()?;
            let Ok(send) = request.respond.take()?.send_response(head, false) else {
                log.flags = "DC";
                log.details = "downstream_remote_reset".into();
                up.abort(Reason::CANCEL);
                return None;
            };
            side.send = Some(send);
            side.recv = request.tunnel.take();
        }
    }
    deadline.set(STREAM_IDLE);
    let mut tunnel = Tunnel { down, up, upload: Way::default(), download: Way::default() };
    let end = poll_fn(|cx| tunnel.poll(cx, worker, deadline)).await;
    log.bytes_received = body.bytes + tunnel.upload.transfer.bytes;
    log.bytes_sent = tunnel.download.transfer.bytes;
    log.ended = Some(Instant::now());
    if let Err(end) = end {
        explain(end, worker, log);
        // What waits, the 101 perhaps, goes first if the client takes it at once.
        poll_fn(|cx| {
            let _ = tunnel.down.poll_flush(cx);
            Poll::Ready(())
        })
        .await;
        // RFC 8441 section 5: CANCEL is for HTTP/2 what RST is for TCP.
        tunnel.up.abort(Reason::CANCEL);
        tunnel.down.abort(Reason::CANCEL);
    }
    None
}

fn explain(end: End, worker: &Worker, log: &mut Log<'_>) {
    let (flags, details) = match &end {
        End::Client(_) => ("DC", "downstream_remote_disconnect"),
        End::Upstream(_) => ("UC", "upstream_reset_after_response_started{connection_termination}"),
        End::Idle if worker.over.get() => ("DT", "drain_deadline"),
        End::Idle => ("SI", "stream_idle_timeout"),
    };
    log.flags = flags;
    log.details = details.into();
    if let End::Client(error) | End::Upstream(error) = end {
        log.failure = Some(error.to_string());
    }
}

/// Who ended a tunnel before both sides had come to their end.
enum End {
    Client(SideError),
    Upstream(SideError),
    Idle,
}

/// Both ways of a tunnel.
struct Tunnel {
    down: Side,
    up: Side,
    upload: Way,
    download: Way,
}

/// One way: its bytes, and then its end.
#[derive(Default)]
struct Way {
    transfer: Transfer,
    ended: bool,
}

impl Tunnel {
    fn poll(&mut self, cx: &mut Context<'_>, worker: &Worker, deadline: &Deadline) -> Poll<Result<(), End>> {
        if deadline.expired() {
            return Poll::Ready(Err(End::Idle));
        }
        let before = self.moved();
        match self.download.poll(cx, &mut self.up, &mut self.down) {
            Poll::Ready(Err(TransferError::Source(e))) => return Poll::Ready(Err(End::Upstream(e))),
            Poll::Ready(Err(TransferError::Sink(e))) => return Poll::Ready(Err(End::Client(e))),
            _ => {}
        }
        match self.upload.poll(cx, &mut self.down, &mut self.up) {
            Poll::Ready(Err(TransferError::Source(e))) => return Poll::Ready(Err(End::Client(e))),
            // It has said all it had to say, and left.
            Poll::Ready(Err(TransferError::Sink(_))) if self.download.ended => return Poll::Ready(Ok(())),
            Poll::Ready(Err(TransferError::Sink(e))) => return Poll::Ready(Err(End::Upstream(e))),
            _ => {}
        }
        if self.upload.ended && self.download.ended {
            return Poll::Ready(Ok(()));
        }
        if self.upload.ended && poll_reset(&mut self.down, cx).is_ready() {
            return Poll::Ready(Err(End::Client(reset())));
        }
        if self.download.ended && poll_reset(&mut self.up, cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.down.rest(worker);
        self.up.rest(worker);
        if self.moved() != before {
            deadline.set(STREAM_IDLE);
        }
        deadline.poll_expired(cx).map(|()| Err(End::Idle))
    }

    fn moved(&self) -> u64 {
        self.upload.transfer.bytes + self.download.transfer.bytes
    }
}

impl Way {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Side,
        to: &mut Side,
    ) -> Poll<Result<(), TransferError>> {
        if !self.transfer.done {
            ready!(self.transfer.poll(cx, from, to))?;
        }
        if !self.ended {
            ready!(to.poll_end(cx)).map_err(TransferError::Sink)?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// A peer that has ended its side can still break the stream off. Of HTTP/1 that shows when it is written to.
fn poll_reset(side: &mut Side, cx: &mut Context<'_>) -> Poll<()> {
    match side {
        Side::H2(_) => side.poll_gone(cx),
        Side::H1(_) => Poll::Pending,
    }
}

fn reset() -> SideError {
    SideError::Io(std::io::ErrorKind::ConnectionReset.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(upgrade: &str, asked: Option<&str>) {
        assert_eq!(asked_for(upgrade.as_bytes()).as_deref(), asked.map(str::as_bytes), "{upgrade}");
    }

    #[test]
    fn http_is_not_tunnelled_in_http() {
        check("websocket", Some("websocket"));
        check("SPDY/3.1", Some("SPDY/3.1"));
        check("foo, websocket", Some("foo, websocket"));
        check("", None);
        check("h2c", None);
        check("H2C", None);
        check("websocket, h2c", None);
        check("HTTP/2.0", None);
    }

    #[test]
    fn an_extended_connect_becomes_a_get_that_asks_for_an_upgrade() {
        let mut request = Request::default();
        request.head.method = Method::Connect;
        request.head.headers.push(b"sec-websocket-key", b"of the client's own");
        from_extended_connect(&mut request, &Protocol::from_static("websocket"), || 7).unwrap();
        let headers = &request.head.headers;
        assert_eq!(request.head.method, Method::Get);
        assert_eq!(headers.get("upgrade"), Some(&b"websocket"[..]));
        assert_eq!(headers.get("connection"), Some(&b"upgrade"[..]));
        assert_eq!(headers.get(VERSION), Some(&b"13"[..]));
        let keys: Vec<_> = headers.get_all(KEY).collect();
        assert!(keys.len() == 1 && websocket::is_key(keys[0]), "{keys:?}");
    }

    #[test]
    fn an_extended_connect_to_http_or_with_a_length_is_refused() {
        let refused = |protocol: &'static str, fields: &[(&str, &str)]| {
            let mut request = Request::default();
            for (name, value) in fields {
                request.head.headers.push(name.as_bytes(), value.as_bytes());
            }
            from_extended_connect(&mut request, &Protocol::from_static(protocol), || 7).unwrap_err()
        };
        assert_eq!(refused("h2c", &[]), Malformed::Upgrade);
        assert_eq!(refused("web socket", &[]), Malformed::Upgrade);
        assert_eq!(refused("websocket\r\nx: y", &[]), Malformed::Upgrade);
        assert_eq!(refused("websocket", &[("content-length", "3")]), Malformed::ContentLength);
    }

    #[test]
    fn one_protocol_of_several() {
        assert_eq!(single(b"foo, WebSocket"), "websocket");
        assert_eq!(single(b"SPDY/3.1, foo"), "SPDY/3.1");
    }

    fn answer(fields: &[(&str, &str)]) -> ResponseHead {
        let mut response = ResponseHead { status: 101, ..ResponseHead::default() };
        for (name, value) in fields {
            response.headers.push(name.as_bytes(), value.as_bytes());
        }
        response
    }

    #[test]
    fn the_answer_to_our_own_key_is_checked() {
        let mut request = Request::default();
        from_extended_connect(&mut request, &Protocol::from_static("websocket"), || 7).unwrap();
        let right = websocket::accept(request.head.headers.get(KEY).unwrap());
        let mut good = answer(&[("upgrade", "WebSocket"), (ACCEPT, &right)]);
        check_handshake(&request, &mut good).unwrap();
        assert_eq!(good.headers.get(ACCEPT), None, "HTTP/2 does not know it");
        for bad in [
            &[("upgrade", "websocket"), (ACCEPT, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")][..],
            &[("upgrade", "websocket")],
            &[("upgrade", "other"), (ACCEPT, &right)],
            &[(ACCEPT, &right)],
        ] {
            assert!(check_handshake(&request, &mut answer(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_switch_that_nobody_asked_for_is_an_error() {
        let mut h2 = Side::H2(Box::default());
        for asked in [None, Some(Asked::default())] {
            assert!(agreed(asked, &mut h2, &Request::default(), &mut answer(&[])).is_err());
        }
    }
}
