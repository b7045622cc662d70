//! From a listening socket to a connection with a protocol: accept, TLS, ALPN or preface.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_wire::io::{Io, Stream};
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
    worker.connections.set(worker.connections.get() + 1);
    worker.taken.set(worker.taken.get() + 1);
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        if let Some((listener, config)) = terms(&worker, bound) {
            let key = listener.as_ref().map(|listener| &listener.ir.key);
            if let Some(key) = key {
                worker.recorder.connection_opened(key);
            }
            connection(&worker, bound, tcp, peer, config).await;
            if let Some(key) = key {
                worker.recorder.connection_closed(key);
            }
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

/// A connection from its first byte to its last. Most of its time it waits for a request, so what only a handshake or
/// another protocol needs lies in a box of its own.
async fn connection(
    worker: &Rc<Worker>,
    bound: SocketAddr,
    tcp: TcpStream,
    peer: SocketAddr,
    config: Option<Arc<ServerConfig>>,
) {
    // A socket of one address has that one; the kernel need not be asked.
    let local = if bound.ip().is_unspecified() { tcp.local_addr() } else { Ok(bound) };
    let Ok(local) = local else { return };
    let info = Connection { bound, peer, local, tls: config.is_some(), sni: None };
    let (info, stream, http2) = match config {
        None => (info, Stream::new(Io::Tcp(tcp), peer, local), false),
        Some(config) => match Box::pin(handshake(config, tcp, info)).await {
            Some(opened) => opened,
            None => return,
        },
    };
    let info = Rc::new(info);
    if http2 {
        return Box::pin(h2::serve(worker, info, stream, Bytes::new())).await;
    }
    if let Some((stream, ahead)) = Box::pin(h1::serve(worker, &info, stream)).await {
        Box::pin(h2::serve(worker, info, stream, ahead)).await;
    }
}

/// `true`: HTTP/2 was agreed on.
async fn handshake(
    config: Arc<ServerConfig>,
    tcp: TcpStream,
    mut info: Connection,
) -> Option<(Connection, Stream, bool)> {
    let accept = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
    let tls = tokio::time::timeout(HANDSHAKE, accept).await.ok()?.ok()?;
    let session = tls.get_ref().1;
    info.sni = session.server_name().map(str::to_ascii_lowercase);
    let http2 = session.alpn_protocol() == Some(b"h2");
    let stream = Stream::new(Io::Tls(Box::new(tls)), info.peer, info.local);
    Some((info, stream, http2))
}
