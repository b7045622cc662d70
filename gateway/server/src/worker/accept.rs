//! From a listening socket to a connection with a protocol: accept, TLS, ALPN or preface.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use fieldgate_wire::io::{Io, Stream};
use futures_util::FutureExt;
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
    let worker = worker.clone();
    tokio::task::spawn_local(async move {
        Box::pin(connection(&worker, bound, tcp, peer)).await;
        worker.connections.set(worker.connections.get() - 1);
    });
}

async fn connection(worker: &Rc<Worker>, bound: SocketAddr, tcp: TcpStream, peer: SocketAddr) {
    let Ok(local) = tcp.local_addr() else { return };
    let published = worker.published();
    let config = match published.tls.get(&bound) {
        None => None,
        Some(Ok(config)) => Some(config.clone()),
        // No certificate, no conversation. The control side has said so loudly.
        Some(Err(_)) => return,
    };
    let table = published.snapshot.address(bound).cloned();
    drop(published);
    let listener = table.and_then(|t| t.listeners.first().map(|l| l.ir.key.clone()));
    if let Some(key) = &listener {
        worker.recorder.connection_opened(key);
    }
    let mut info = Connection { bound, peer, local, tls: config.is_some(), sni: None };
    match config {
        None => {
            let stream = Stream::new(Io::Tcp(tcp), peer, local);
            if let Some((stream, http2)) = h1::await_preface(worker, stream).await {
                serve(worker, info, stream, http2).await;
            }
        }
        Some(config) => {
            let handshake = tokio_rustls::TlsAcceptor::from(config).accept(tcp);
            if let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE, handshake).await {
                let session = tls.get_ref().1;
                info.sni = session.server_name().map(str::to_ascii_lowercase);
                let http2 = session.alpn_protocol() == Some(b"h2");
                serve(worker, info, Stream::new(Io::Tls(Box::new(tls)), peer, local), http2).await;
            }
        }
    }
    if let Some(key) = &listener {
        worker.recorder.connection_closed(key);
    }
}

async fn serve(worker: &Rc<Worker>, info: Connection, stream: Stream, http2: bool) {
    let info = Rc::new(info);
    if http2 {
        Box::pin(h2::serve(worker, info, stream)).await;
    } else {
        h1::serve(worker, info, stream).await;
    }
}
