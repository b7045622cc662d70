//! From a listening socket to a connection with a protocol: accept, TLS, ALPN or preface.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_wire::buffer::PooledBuf;
use fieldgate_wire::io::{Io, Stream};
use fieldgate_wire::staged::Staged;
use fieldgate_wire::tls::{self, Alpn, HandshakeInfo};
use futures_util::FutureExt;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::{Connection, Worker, h1, h2};

/// Longest TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of a resource: the queue keeps what waits.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until stopped; what waits in the queue then is still taken, for to the client it is connected already.
pub async fn accept(worker: Rc<Worker>, bound: SocketAddr, socket: TcpListener, stop: Rc<Notify>) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.notified() => break,
        };
        match accepted {
            Ok((tcp, peer)) => start(&worker, bound, tcp, peer),
            // The peer gave up while it waited; nothing is wrong here.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(address = %bound, %error, "cannot accept connections; trying again shortly");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while let Some(Ok((tcp, peer))) = socket.accept().now_or_never() {
        start(&worker, bound, tcp, peer);
    }
}

fn start(worker: &Rc<Worker>, bound: SocketAddr, tcp: TcpStream, peer: SocketAddr) {
    worker.taken.set(worker.taken.get() + 1);
    let Some((listener, config)) = terms(worker, bound) else { return };
    // A socket of one address has that one; the kernel need not be asked.
    let local = if bound.ip().is_unspecified() { tcp.local_addr() } else { Ok(bound) };
    let Ok(local) = local else { return };
    let info = Connection { bound, peer, local, tls: config.is_some(), sni: None };
    let served = match config {
        None => plain(worker.clone(), Rc::new(info), Stream::new(Io::Tcp(tcp), peer, local)),
        Some(config) => secure(worker.clone(), Box::pin(handshake(config, worker.buffers.take(), tcp, info))),
    };
    worker.connections.set(worker.connections.get() + 1);
    if let Some(listener) = &listener {
        worker.recorder.connection_opened(&listener.ir.key);
    }
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        served.await;
        if let Some(listener) = listener {
            worker.recorder.connection_closed(&listener.ir.key);
        }
        worker.connections.set(worker.connections.get() - 1);
    });
}

type Terms = (Option<Arc<CompiledListener>>, Option<Arc<ServerConfig>>);

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

async fn handshake(
    config: Arc<ServerConfig>,
    ahead: PooledBuf,
    tcp: TcpStream,
    mut info: Connection,
) -> Option<Opened> {
    let accept = tls::accept(config, Staged::new(tcp, ahead));
    let io = tokio::time::timeout(HANDSHAKE, accept).await.ok()?.ok()?;
    let agreed = HandshakeInfo::of(&io)?;
    info.sni = agreed.sni.map(String::from);
    let stream = Stream::new(io, info.peer, info.local);
    Some((Rc::new(info), Some(stream), agreed.alpn == Alpn::Http2))
}
