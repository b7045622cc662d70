//! A TCP connection whose long input is read in large pieces, for a reader that asks for small ones.
//!
//! rustls asks for 4 KiB at a time, which makes five system calls of a record of 16 KiB. A reader that got all that it asked
//! for gets the rest from a borrowed buffer, filled by one system call. Short messages, and connections that wait, never
//! touch it. Nothing is interpreted here, and output passes straight through.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::PooledBuf;

/// The connection.
#[derive(Debug)]
pub struct Staged {
    tcp: TcpStream,
    ahead: PooledBuf,
    /// The reader got all that it asked for: there may be more.
    more: bool,
}

impl Staged {
    /// A connection that has not been read from. `ahead`: an empty buffer of the worker's.
    pub fn new(tcp: TcpStream, ahead: PooledBuf) -> Self {
        Self { tcp, ahead, more: false }
    }

    /// The connection itself. What was read ahead of the reader is not in it.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl AsyncRead for Staged {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, ahead, more } = self.get_mut();
        if ahead.is_empty() {
            if !*more {
                ready!(Pin::new(tcp).poll_read(cx, buf))?;
                *more = buf.remaining() == 0;
                return Poll::Ready(Ok(()));
            }
            // A buffer is borrowed only for what is there.
            ready!(tcp.poll_read_ready(cx))?;
            let read = ready!(ahead.poll_read_from(cx, tcp))?;
            *more = read > buf.remaining();
        }
        let now = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead.filled()[..now]);
        ahead.consume(now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Staged {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferPool;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_reader_of_small_pieces_gets_all_in_order_and_then_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let pool = BufferPool::new(256, 4);
        let mut staged = Staged::new(listener.accept().await.unwrap().0, pool.take());
        let sent: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let writer = async move {
            client.write_all(&sent).await.unwrap();
            drop(client);
        };
        let reader = async {
            let mut got = Vec::new();
            let mut piece = [0; 100];
            loop {
                match staged.read(&mut piece).await.unwrap() {
                    0 => return got,
                    n => got.extend_from_slice(&piece[..n]),
                }
            }
        };
        let ((), got) = tokio::join!(writer, reader);
        assert_eq!(got, expected);
        assert_eq!(pool.outstanding(), 0, "at the end nothing is borrowed");
    }

    #[tokio::test]
    async fn a_short_message_borrows_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let pool = BufferPool::new(256, 4);
        let mut staged = Staged::new(listener.accept().await.unwrap().0, pool.take());
        client.write_all(b"short").await.unwrap();
        let mut piece = [0; 100];
        assert_eq!(staged.read(&mut piece).await.unwrap(), 5);
        assert_eq!((pool.outstanding(), pool.idle()), (0, 0));
    }
}
