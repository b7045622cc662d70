//! The byte stream of one connection: plain TCP, or TLS from either side.
//!
//! One enum, so that the request path calls no virtual function. It adds to tokio's traits what a proxy needs and they
//! lack: waiting for data without holding a buffer, and noticing that the peer has gone without taking
//! what it sent. Deadlines are the caller's; so is what to do about a peer that went.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::staged::Staged;

/// The transport of a connection.
#[derive(Debug)]
pub enum Io {
    /// Plain TCP, from either side.
    Tcp(TcpStream),
    /// TLS of a connection that was accepted.
    Tls(Box<server::TlsStream<Staged>>),
    /// TLS of a connection that was opened to an upstream.
    ClientTls(Box<client::TlsStream<Staged>>),
}

/// What [`Io::poll_peer_closed`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// It sent something that was not read yet. What comes after that cannot be seen before it is read.
    SentData,
    /// It will send nothing more: FIN, or TLS close_notify. It may still be reading (a half-closed connection).
    Closed,
    /// The connection is broken: reset, timed out, or TLS that makes no sense.
    Broken,
}

impl Io {
    /// Ready when a read would give data, the end, or an error. Consumes nothing and needs no buffer.
    ///
    /// With TLS this means decrypted data: a record that carries none, as a session ticket, does not count. After it,
    /// read with `poll_read` rather than [`Io::try_read`]: a read that comes back short of its buffer spares
    /// the next wait a system call.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(tls) => poll_plaintext(tls, cx),
            Self::ClientTls(tls) => poll_plaintext(tls, cx),
        }
    }

    /// Waits as [`Io::poll_readable`] does.
    pub async fn readable(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_readable(cx)).await
    }

    /// Reads what is there already, or fails with `WouldBlock`. Not to be called while a task waits to read.
    pub fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Self::Tcp(tcp) = self {
            return tcp.try_read(buf);
        }
        let mut target = ReadBuf::new(buf);
        match Pin::new(self).poll_read(&mut Context::from_waker(Waker::noop()), &mut target) {
            Poll::Ready(done) => done.map(|()| target.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Ready when the peer sent something, closed or broke the connection; pending while it is silent. What it sent stays
    /// to be read.
    ///
    /// For a pooled connection any answer means that it must not be used again: a server has nothing to
    /// say before a request. For a client whose request is under way, `SentData` is a pipelined request; read it (within
    /// bounds) to see a close behind it. Needs no system call as long as the runtime saw no event.
    pub fn poll_peer_closed(&mut self, cx: &mut Context<'_>) -> Poll<PeerState> {
        match self {
            Self::Tcp(tcp) => {
                let mut byte = [0];
                tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)).map(|peeked| match peeked {
                    Ok(0) => PeerState::Closed,
                    Ok(_) => PeerState::SentData,
                    Err(_) => PeerState::Broken,
                })
            }
            Self::Tls(tls) => poll_tls_peer_closed(tls, cx),
            Self::ClientTls(tls) => poll_tls_peer_closed(tls, cx),
        }
    }

    /// Whether a pooled connection is no longer fit for a request, as far as is known without waiting. Not to be called
    /// while a task waits to read.
    pub fn is_stale(&mut self) -> bool {
        self.poll_peer_closed(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Sends what is buffered, then the end of our side (close_notify with TLS, and FIN). Reading goes on.
    pub async fn shutdown_write(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_shutdown(cx)).await
    }

    /// Breaks the connection off with RST and without close_notify, so that the peer cannot take what it has received
    /// for complete.
    pub fn abort(self) {
        // If this fails the connection is gone already, or closes with FIN but still without close_notify.
        let _ = self.tcp().set_zero_linger();
    }

    /// The TCP connection underneath.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0.tcp(),
            Self::ClientTls(tls) => tls.get_ref().0.tcp(),
        }
    }

    /// Whether the bytes on the wire are encrypted.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::ClientTls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Self::ClientTls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Self::ClientTls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    /// All of them gather: TCP in the kernel, TLS into one record.
    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Needed after writes with TLS, where a write may leave records buffered; free of cost with TCP.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::ClientTls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::ClientTls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// A transport with the addresses of its two ends, which are asked for once.
pub struct Stream {
    io: Io,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Stream {
    /// For a connection whose addresses are known, as `accept` tells the peer's.
    pub fn new(io: Io, peer: SocketAddr, local: SocketAddr) -> Self {
        Self { io, peer, local }
    }

    /// For a TCP connection just accepted from `peer`. Asks the kernel for the local address.
    pub fn accepted(tcp: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        let local = tcp.local_addr()?;
        Ok(Self::new(Io::Tcp(tcp), peer, local))
    }

    /// The address of the other end of the TCP connection.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// The address of our end of the TCP connection.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The transport.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// The transport, to read and write.
    pub fn io_mut(&mut self) -> &mut Io {
        &mut self.io
    }

    /// Takes the transport, for instance to put TLS on it.
    pub fn into_io(self) -> Io {
        self.io
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("peer", &self.peer)
            .field("local", &self.local)
            .field("tls", &self.io.is_tls())
            .finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

fn poll_plaintext<T: AsyncBufRead + Unpin>(tls: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    Pin::new(tls).poll_fill_buf(cx).map_ok(|_| ())
}

fn poll_tls_peer_closed<T: AsyncBufRead + Unpin>(tls: &mut T, cx: &mut Context<'_>) -> Poll<PeerState> {
    Poll::Ready(match ready!(Pin::new(tls).poll_fill_buf(cx)) {
        Ok([]) => PeerState::Closed,
        Ok(_) => PeerState::SentData,
        // FIN without close_notify. Whether that truncates anything is for the protocol inside to say.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => PeerState::Closed,
        Err(_) => PeerState::Broken,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferPool;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, peer) = listener.accept().await.unwrap();
        (Stream::accepted(tcp, peer).unwrap(), client)
    }

    async fn peer_event(io: &mut Io) -> PeerState {
        std::future::poll_fn(|cx| io.poll_peer_closed(cx)).await
    }

    #[tokio::test]
    async fn addresses_are_those_of_the_two_ends() {
        let (stream, client) = pair().await;
        assert_eq!(stream.peer_addr(), client.local_addr().unwrap());
        assert_eq!(stream.local_addr(), client.peer_addr().unwrap());
    }

    #[tokio::test]
    async fn waits_without_a_buffer_and_reads_into_a_pooled_one() {
        let (mut stream, mut client) = pair().await;
        let pool = BufferPool::new(16, 1);
        let wait = tokio::spawn(async move {
            client.write_all(b"hello").await.unwrap();
            client
        });
        stream.io_mut().readable().await.unwrap();
        let mut buf = pool.take();
        assert_eq!(buf.read_from(&mut stream).await.unwrap(), 5);
        assert_eq!(buf.filled(), b"hello");
        let mut rest = [0; 4];
        assert_eq!(stream.io_mut().try_read(&mut rest).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(wait.await.unwrap());
        stream.io_mut().readable().await.unwrap();
        assert_eq!(buf.read_from(&mut stream).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn looking_for_a_close_takes_nothing() {
        let (mut stream, mut client) = pair().await;
        assert!(!stream.io_mut().is_stale());
        client.write_all(b"x").await.unwrap();
        assert_eq!(peer_event(stream.io_mut()).await, PeerState::SentData);
        assert!(stream.io_mut().is_stale());
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1);
        assert_eq!(&byte, b"x");
        drop(client);
        assert_eq!(peer_event(stream.io_mut()).await, PeerState::Closed);
        assert!(stream.io_mut().is_stale());
    }

    #[tokio::test]
    async fn a_waiting_task_is_woken_by_the_close() {
        let (mut stream, client) = pair().await;
        let watched = async {
            let watch = tokio::task::spawn_local(async move { peer_event(stream.io_mut()).await });
            tokio::task::yield_now().await;
            assert!(!watch.is_finished());
            drop(client);
            watch.await.unwrap()
        };
        assert_eq!(tokio::task::LocalSet::new().run_until(watched).await, PeerState::Closed);
    }

    #[tokio::test]
    async fn a_reset_is_told_from_a_close() {
        let (mut stream, client) = pair().await;
        Io::Tcp(client).abort();
        assert_eq!(peer_event(stream.io_mut()).await, PeerState::Broken);
    }

    #[tokio::test]
    async fn shutdown_ends_our_side_only() {
        let (mut stream, mut client) = pair().await;
        stream.write_all(b"bye").await.unwrap();
        stream.io_mut().shutdown_write().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
        client.write_all(b"late").await.unwrap();
        let mut late = [0; 4];
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"late");
    }

    #[tokio::test]
    async fn vectored_writes_are_one_write() {
        let (mut stream, mut client) = pair().await;
        assert!(stream.is_write_vectored());
        let parts = [IoSlice::new(b"head"), IoSlice::new(b"body")];
        assert_eq!(stream.write_vectored(&parts).await.unwrap(), 8);
        let mut got = [0; 8];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"headbody");
    }
}
