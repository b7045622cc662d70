//! A transport that closes so that what was sent last arrives.
//!
//! A socket that is closed with unread input resets its connection, and the reset takes with it what the peer has not
//! received yet (RFC 9112 section 9.6 describes it for HTTP/1; HTTP/2 has it with every late WINDOW_UPDATE). So after the end
//! of our side, input is read and thrown away until the peer's end, for a bounded time. This is for whoever hands a
//! transport to a codec that closes by itself; it must not be used where input still matters after the shutdown.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;
use crate::timer::Deadline;

/// What is thrown away at most, in bytes: a peer that goes on sending is not read for as long as it likes to.
pub const MOST: usize = 1024 * 1024;

/// An [`Io`] whose shutdown waits for the peer's end.
pub struct Lingering {
    io: Io,
    deadline: Deadline,
    bound: Duration,
    /// What was read before, to be read again.
    ahead: Bytes,
    /// Our side has ended.
    ended: bool,
    /// Bytes that may still be thrown away.
    left: usize,
}

impl Lingering {
    /// Waits at most `bound` for the peer. The deadline must be this connection's alone.
    pub fn new(io: Io, deadline: Deadline, bound: Duration) -> Self {
        Self { io, deadline, bound, ahead: Bytes::new(), ended: false, left: MOST }
    }

    /// Has these bytes, which were taken from the transport already, read first.
    #[must_use]
    pub fn read_ahead(self, ahead: Bytes) -> Self {
        Self { ahead, ..self }
    }

    /// Ready when the peer has ended, broken off, or taken too long.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                // A peer that does not stop sending is not waited for longer than a silent one.
                Poll::Ready(Ok(()))
                    if (1..self.left).contains(&buf.filled().len()) && !self.deadline.expired() =>
                {
                    self.left -= buf.filled().len();
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.deadline.poll_expired(cx),
            }
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let now = this.ahead.split_to(this.ahead.len().min(buf.remaining()));
            buf.put_slice(&now);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
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
        let this = self.get_mut();
        if !this.ended {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.ended = true;
            this.deadline.set(this.bound);
        }
        this.poll_drain(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::Wheel;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Io, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Io::Tcp(listener.accept().await.unwrap().0), client)
    }

    /// More than the two sockets' buffers hold, so that the tail is still to be sent when the shutdown begins.
    const LONG: usize = 8 * 1024 * 1024;

    #[tokio::test]
    async fn what_was_sent_last_arrives_although_the_peer_goes_on_sending() {
        let (io, mut client) = pair().await;
        let wheel = Wheel::default();
        let mut lingering = Lingering::new(io, wheel.register(), Duration::from_mins(1));
        let server = async {
            lingering.write_all(&vec![7; LONG]).await.unwrap();
            lingering.shutdown().await.unwrap();
            drop(lingering);
        };
        let reader = async move {
            let mut got = 0;
            let mut buf = vec![0; 64 * 1024];
            loop {
                client.write_all(b"window update").await.unwrap();
                match client.read(&mut buf).await.unwrap() {
                    0 => return got,
                    n => got += n,
                }
            }
        };
        let ((), got) = tokio::join!(server, reader);
        assert_eq!(got, LONG);
    }

    #[tokio::test]
    async fn what_was_read_before_comes_first() {
        let (io, mut client) = pair().await;
        let deadline = Wheel::default().register();
        let mut stream =
            Lingering::new(io, deadline, Duration::ZERO).read_ahead(Bytes::from_static(b"PRI * HTTP"));
        client.write_all(b"/2.0").await.unwrap();
        let mut got = [0; 14];
        // In pieces smaller than what was read before.
        stream.read_exact(&mut got[..4]).await.unwrap();
        stream.read_exact(&mut got[4..]).await.unwrap();
        assert_eq!(&got, b"PRI * HTTP/2.0");
    }

    #[tokio::test]
    async fn a_peer_that_sends_without_end_is_not_read_without_end() {
        let (io, mut client) = pair().await;
        let wheel = Wheel::default();
        let mut lingering = Lingering::new(io, wheel.register(), Duration::from_mins(1));
        let sender = async move {
            let piece = vec![0; 64 * 1024];
            let mut sent = 0;
            while let Ok(n) = client.write(&piece).await {
                sent += n;
            }
            sent
        };
        let closing = async move {
            lingering.shutdown().await.unwrap();
            drop(lingering);
        };
        let (sent, ()) = tokio::join!(sender, closing);
        assert!(sent >= MOST, "it was not read at all: {sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stays_is_not_waited_for_without_end() {
        let (io, _client) = pair().await;
        let wheel = Wheel::default();
        let mut lingering = Lingering::new(io, wheel.register(), Duration::from_secs(2));
        tokio::select! {
            ended = lingering.shutdown() => ended.unwrap(),
            _ = wheel.run() => unreachable!("the wheel turns for ever"),
        }
    }
}
