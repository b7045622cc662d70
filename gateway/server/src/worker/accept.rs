//! From a listening socket to a connection with a protocol: accept, TLS, ALPN or preface.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_wire::buffer::PooledBuf;
use fieldgate_wire::io::{Io, Stream};
use fieldgate_wire::staged::Staged;
use fieldgate_wire::tls::{self, Alpn, HandshakeInfo};
use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::{Connection, Worker, h1, h2, mutual, shed};
use crate::overload::{Permit, Place, Pressure, Refusal, out_of_files};
use crate::published::ServedTls;

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The same while more than half of [`HANDSHAKES`] are under way: many that do not get on are an attack.
const HANDSHAKE_IN_A_CROWD: Duration = Duration::from_secs(3);
/// TLS handshakes under way, per worker.
const HANDSHAKES: u32 = 2048;
/// A step of a handshake that takes longer than this computes; others have their turn before the next one does.
const COMPUTES: Duration = Duration::from_micros(100);
/// Connections accepted in one turn of the event loop, before others have theirs.
const BURST: u32 = 16;
/// Pause after an accept that failed for want of a resource: the queue keeps what waits.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until stopped; what waits in the queue then is still taken, for to the client it is connected already.
pub async fn accept(worker: Rc<Worker>, bound: SocketAddr, socket: TcpListener, stop: Rc<Notify>) {
    let place = worker.all_connections().place(bound);
    let mut burst = 0;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.notified() => break,
        };
        match accepted {
            Ok((tcp, peer)) => {
                start(&worker, &place, bound, tcp, peer);
                if worker.lacks_files() && !enough_files(&worker, &socket, &stop).await {
                    break;
                }
                burst += 1;
                if burst == BURST {
                    burst = 0;
                    tokio::task::yield_now().await;
                }
            }
            // The peer gave up while it waited; nothing is wrong here.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) if out_of_files(&error) => {
                worker.short_of_files(bound, &error);
                if !enough_files(&worker, &socket, &stop).await {
                    break;
                }
            }
            Err(error) => {
                tracing::warn!(address = %bound, %error, "cannot accept connections; trying again shortly");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while let Some(Ok((tcp, peer))) = socket.accept().now_or_never() {
        start(&worker, &place, bound, tcp, peer);
    }
}

/// Waits until there are files for new connections. `false`: the socket is to accept nothing more.
async fn enough_files(worker: &Worker, socket: &TcpListener, stop: &Notify) -> bool {
    while !worker.has_files() {
        worker.refuse_waiting(socket);
        if tokio::time::timeout(PAUSE, stop.notified()).await.is_ok() {
            return false;
        }
    }
    true
}

/// Whether a connection may begin. One that may not is reset: the answer that costs least, for us and on the way.
fn admit(worker: &Worker, place: &Rc<Place>, peer: SocketAddr, tls: bool) -> Result<Permit, Refusal> {
    if worker.gate.pressure() >= Pressure::Tight {
        return Err(Refusal::Memory);
    }
    if tls && worker.handshakes.get() >= HANDSHAKES {
        return Err(Refusal::Handshakes);
    }
    // A handshake costs as much as many requests. Who is here already goes first; in plaintext the request decides.
    if tls && worker.gate.refuses(|| worker.random()).is_some() {
        return Err(Refusal::Delay);
    }
    if !worker.overload.strikes.may_open(peer.ip(), worker.now_ms()) {
        return Err(Refusal::Floods);
    }
    let permit = place.admit(peer.ip());
    if let Err(Refusal::Connections) = &permit {
        worker.close_idle();
    }
    permit
}

fn start(worker: &Rc<Worker>, place: &Rc<Place>, bound: SocketAddr, tcp: TcpStream, peer: SocketAddr) {
    worker.taken.set(worker.taken.get() + 1);
    let Some((listener, config)) = terms(worker, bound) else { return };
    let permit = match admit(worker, place, peer, config.is_some()) {
        Ok(permit) => permit,
        Err(why) => return shed::reset(worker, tcp, why),
    };
    // A socket of one address has that one; the kernel need not be asked.
    let local = if bound.ip().is_unspecified() { tcp.local_addr() } else { Ok(bound) };
    let Ok(local) = local else { return };
    let info =
        Connection { bound, peer, local, tls: config.is_some(), sni: None, identity: None, proof: None };
    let served = match config {
        None => plain(worker.clone(), Rc::new(info), Stream::new(Io::Tcp(tcp), peer, local)),
        Some(config) => {
            let handshake = handshake(worker.clone(), config, worker.buffers.take(), tcp, info);
            secure(worker.clone(), Box::pin(handshake))
        }
    };
    let open = Open::begin(worker.clone(), listener, permit);
    tokio::task::spawn_local(async move {
        served.await;
        drop(open);
    });
}

/// Counts a connection for as long as its task lives, however that ends: a panic must not leave it counted for ever.
struct Open {
    worker: Rc<Worker>,
    listener: Option<Arc<CompiledListener>>,
    _permit: Permit,
}

impl Open {
    fn begin(worker: Rc<Worker>, listener: Option<Arc<CompiledListener>>, permit: Permit) -> Self {
        worker.connections.set(worker.connections.get() + 1);
        if let Some(listener) = &listener {
            worker.recorder.connection_opened(&listener.ir.key);
        }
        Self { worker, listener, _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            self.worker.recorder.connection_closed(&listener.ir.key);
        }
        self.worker.connections.set(self.worker.connections.get() - 1);
    }
}

type Terms = (Option<Arc<CompiledListener>>, Option<ServedTls>);

/// What holds for connections to an address as of now: whose they are, and their TLS.
fn terms(worker: &Worker, bound: SocketAddr) -> Option<Terms> {
    let published = worker.published();
    let config = match published.tls.get(&bound) {
        None => None,
        Some(Ok(config)) => Some(config.clone()),
        // No certificate, no conversation. The control side has said so loudly.
        Some(Err(_)) => return None,
    };
    let table = published.snapshot.address(bound);
    Some((table.and_then(|table| table.listeners.first().cloned()), config))
}

/// A connection from its first byte to its last.
///
/// Most of its time it waits for a request, so each state that needs more than that lies in a box of its own, and no argument
/// is kept twice: that is why these are blocks that own what they use, and not async functions.
type Served = Pin<Box<dyn Future<Output = ()>>>;

fn plain(worker: Rc<Worker>, info: Rc<Connection>, stream: Stream) -> Served {
    let mut stream = Some(stream);
    Box::pin(async move {
        let ahead = h1::serve(&worker, &info, &mut stream).await;
        if let (Some(ahead), Some(stream)) = (ahead, stream.take()) {
            Box::pin(h2::serve(&worker, info, stream, ahead)).await;
        }
    })
}

fn secure(worker: Rc<Worker>, handshake: Pin<Box<impl Future<Output = Option<Opened>> + 'static>>) -> Served {
    Box::pin(async move {
        let Some((info, mut stream, http2)) = finished(handshake).await else { return };
        if http2 {
            if let Some(stream) = stream.take() {
                Box::pin(h2::serve(&worker, info, stream, Bytes::new())).await;
            }
        } else {
            // HTTP/2's preface is no request of a client that agreed on HTTP/1.
            h1::serve(&worker, &info, &mut stream).await;
        }
    })
}

/// Who, the stream, and whether HTTP/2 was agreed on.
type Opened = (Rc<Connection>, Option<Stream>, bool);

/// Lets go of a future's memory once it is ready.
async fn finished<F: Future>(future: Pin<Box<F>>) -> F::Output {
    future.await
}

/// Counts a handshake for as long as it is under way.
struct UnderWay<'w>(&'w Worker);

impl<'w> UnderWay<'w> {
    fn begin(worker: &'w Worker) -> Self {
        worker.handshakes.set(worker.handshakes.get() + 1);
        Self(worker)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.handshakes.set(self.0.handshakes.get() - 1);
    }
}

/// Carries out a handshake such that all of them together compute once in each turn of the event loop: what they take is
/// a part of the worker's time then, however many there are, and requests are served in between.
pub(super) async fn in_turn<F: Future>(worker: &Worker, handshake: F) -> F::Output {
    let mut handshake = pin!(handshake);
    loop {
        let turn = worker.handshake_turn.acquire().await;
        let begun = Instant::now();
        let step = futures_util::poll!(handshake.as_mut());
        let computed = begun.elapsed() > COMPUTES;
        if computed {
            tokio::task::yield_now().await;
        }
        drop(turn);
        match step {
            Poll::Ready(output) => return output,
            // What it waits for may have come while others had their turn: it has to be asked again.
            Poll::Pending if computed => {}
            Poll::Pending => woken().await,
        }
    }
}

/// Until this task is woken by what it polled before.
async fn woken() {
    let mut polled = false;
    std::future::poll_fn(
        |_| if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending },
    )
    .await;
}

async fn handshake(
    worker: Rc<Worker>,
    config: ServedTls,
    ahead: PooledBuf,
    tcp: TcpStream,
    mut info: Connection,
) -> Option<Opened> {
    let tcp = Staged::new(tcp, ahead);
    let under_way = UnderWay::begin(&worker);
    let crowded = worker.handshakes.get() > HANDSHAKES / 2;
    let bound = if crowded { HANDSHAKE_IN_A_CROWD } else { HANDSHAKE };
    let io = match config {
        ServedTls::Same(config) => {
            let accept = tls::accept(config, tcp);
            tokio::time::timeout(bound, in_turn(&worker, accept)).await.ok()?.ok()?
        }
        ServedTls::ByName(terms) => {
            let done = Box::pin(mutual::handshake(&worker, &terms, tcp, &info, bound)).await?;
            info.identity = done.identity;
            info.proof = Some(Box::new(mutual::Proof { terms: done.terms, element: done.element }));
            done.io
        }
    };
    drop(under_way);
    let agreed = HandshakeInfo::of(&io)?;
    info.sni = agreed.sni.map(String::from);
    let stream = Stream::new(io, info.peer, info.local);
    Some((Rc::new(info), Some(stream), agreed.alpn == Alpn::Http2))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::overload::{Limits, Overload};
    use crate::published::{Published, Shared};
    use crate::telemetry::Telemetry;

    #[test]
    fn a_connection_that_ends_in_a_panic_is_given_back() {
        let limits = Limits { connections: Some(1), ..Limits::default() };
        let shared = Arc::new(Shared {
            published: Arc::new(ArcSwap::from_pointee(Published::nothing(None))),
            telemetry: Telemetry::new(),
            started: Instant::now(),
            workers: 1,
            room_news: Arc::default(),
            overload: Overload::new(limits, 1),
            draining: AtomicBool::new(false),
        });
        super::super::runtime().unwrap().block_on(async {
            let worker = Worker::new(0, shared);
            let (bound, peer): (SocketAddr, SocketAddr) =
                (([127, 0, 0, 1], 80).into(), ([192, 0, 2, 1], 5000).into());
            let place = worker.all_connections().place(bound);
            let open = Open::begin(worker.clone(), None, place.admit(peer.ip()).ok().unwrap());
            assert_eq!(worker.connections.get(), 1);
            assert!(matches!(place.admit(peer.ip()), Err(Refusal::Connections)));
            let task = tokio::task::spawn_local(async move {
                let _open = open;
                panic!("on purpose");
            });
            assert!(task.await.unwrap_err().is_panic());
            assert_eq!(worker.connections.get(), 0);
            assert!(place.admit(peer.ip()).is_ok(), "the next one comes in");
        });
    }
}
