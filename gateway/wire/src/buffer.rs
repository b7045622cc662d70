//! Byte buffers of one worker: borrowed for as long as bytes are in flight, then given back.
//!
//! A buffer has storage only while there is something in it, so memory follows the bytes in flight and not the number of
//! connections, and what is taken next is what was just given back: warm in every cache. Storage is
//! zeroed once, when it is allocated, and never again: reads write into initialised memory, which keeps this
//! module free of `unsafe` at no cost per use. A pool belongs to one thread. It must not limit how many buffers are
//! out at once; that bound belongs to whoever admits connections and requests.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::stock::Stock;

/// Size of a buffer unless the pool is told otherwise: one TLS record, or a generous request head.
pub const DEFAULT_SIZE: usize = 16 * 1024;

/// Buffers kept for reuse unless the pool is told otherwise: 4 MiB of the default size.
pub const DEFAULT_RETAINED: usize = 256;

/// How much larger the storage is that a buffer gets after a read that filled the usual one: a long body then takes a
/// quarter of the system calls, and leaves in segments as large as they may be.
const LARGE: usize = 4;

/// A worker's stock of buffers.
pub struct BufferPool {
    free: Stock<Storage>,
    free_large: Stock<Storage>,
    size: usize,
    outstanding: Cell<usize>,
}

impl BufferPool {
    /// A pool of buffers of `size` bytes, of which at most `retained` are kept while nobody uses them, and a quarter of
    /// that in buffers four times as large.
    pub fn new(size: usize, retained: usize) -> Rc<Self> {
        assert!(size > 0, "a buffer of no bytes cannot be read into");
        let (free, free_large) = (Stock::new(retained), Stock::new(retained / (LARGE * LARGE)));
        Rc::new(Self { free, free_large, size, outstanding: Cell::new(0) })
    }

    /// Frees the buffers that nobody took since the last call. To be called now and then: a burst is over at some time.
    pub fn trim(&self) {
        self.free.trim();
        self.free_large.trim();
    }

    /// An empty buffer. It has no storage until something is put into it.
    pub fn take(self: &Rc<Self>) -> PooledBuf {
        PooledBuf { storage: Storage::default(), start: 0, end: 0, large: false, pool: Rc::clone(self) }
    }

    fn storage(&self, large: bool) -> Storage {
        self.outstanding.set(self.outstanding.get() + 1);
        let (free, size) =
            if large { (&self.free_large, self.size * LARGE) } else { (&self.free, self.size) };
        free.take().unwrap_or_else(|| Storage::new(size))
    }

    /// The size of a buffer as it is taken.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Buffers that hold something, or did when last read into.
    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// Buffers that wait to be used again.
    pub fn idle(&self) -> usize {
        self.free.len() + self.free_large.len()
    }

    fn give_back(&self, storage: Storage) {
        if storage.is_empty() {
            return;
        }
        self.outstanding.set(self.outstanding.get() - 1);
        match storage.len() {
            len if len == self.size => self.free.give(storage),
            len if len == self.size * LARGE => self.free_large.give(storage),
            _ => {}
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("size", &self.size)
            .field("outstanding", &self.outstanding())
            .field("idle", &self.idle())
            .finish_non_exhaustive()
    }
}

/// A buffer with bytes that were read and not yet used (`filled`) and room for more (`spare`).
///
/// ```text
/// |  consumed  |  filled  |  spare  |
/// 0          start       end    capacity
/// ```
/// What is consumed becomes room again by [`PooledBuf::compact`], or by itself once nothing is left filled. As a
/// [`Buf`] it is its filled part.
pub struct PooledBuf {
    storage: Storage,
    start: usize,
    end: usize,
    /// The next storage is a large one.
    large: bool,
    pool: Rc<BufferPool>,
}

impl PooledBuf {
    /// The bytes that were read and not yet consumed.
    pub fn filled(&self) -> &[u8] {
        &self.storage[self.start..self.end]
    }

    /// The same, to change in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.end]
    }

    /// Number of filled bytes.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes that the buffer holds at most before it grows, consumed ones included.
    pub fn capacity(&self) -> usize {
        match self.storage.len() {
            0 if self.large => self.pool.size * LARGE,
            0 => self.pool.size,
            len => len,
        }
    }

    /// The room after the filled bytes. Its content is whatever was there before.
    pub fn spare(&mut self) -> &mut [u8] {
        self.hold();
        &mut self.storage[self.end..]
    }

    /// Size of [`PooledBuf::spare`].
    pub fn spare_len(&self) -> usize {
        self.capacity() - self.end
    }

    /// Counts the first `count` bytes of the spare part as filled.
    pub fn fill(&mut self, count: usize) {
        assert!(count <= self.spare_len(), "filled {count} bytes into {} bytes of room", self.spare_len());
        self.end += count;
    }

    /// Drops the first `count` filled bytes.
    pub fn consume(&mut self, count: usize) {
        assert!(count <= self.len(), "consumed {count} bytes of {}", self.len());
        self.start += count;
        if self.start == self.end {
            self.clear();
        }
    }

    /// Forgets all filled bytes, and lets go of the storage.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        self.pool.give_back(std::mem::take(&mut self.storage));
    }

    fn hold(&mut self) {
        if self.storage.is_empty() {
            self.storage = self.pool.storage(self.large);
        }
    }

    /// Moves the filled bytes to the front, so that all room is spare.
    pub fn compact(&mut self) {
        if self.start > 0 {
            self.storage.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Makes room for at least `additional` bytes: by moving if that is enough, else by growing. A grown buffer is
    /// kept by the pool only if it is just as large as its large ones.
    pub fn reserve(&mut self, additional: usize) {
        if self.spare_len() >= additional {
            return;
        }
        self.hold();
        if self.storage.len() - self.len() >= additional {
            self.compact();
            return;
        }
        let capacity = (self.len() + additional).max(self.storage.len() * 2);
        let mut grown = Storage::new(capacity);
        grown[..self.len()].copy_from_slice(self.filled());
        self.end = self.len();
        self.start = 0;
        self.storage = grown;
    }

    /// Appends `bytes`, growing where there is no room.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.spare()[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// Reads once into the spare part. `Ok(0)` is the end of the stream, so there must be room.
    pub fn poll_read_from<R>(&mut self, cx: &mut Context<'_>, reader: &mut R) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        if self.spare_len() == 0 {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no room left in the buffer",
            )));
        }
        let mut target = ReadBuf::new(self.spare());
        let read = Pin::new(reader).poll_read(cx, &mut target);
        let count = target.filled().len();
        if count > 0 {
            self.fill(count);
            self.large = count >= self.pool.size && self.end == self.storage.len() || count > self.pool.size;
        } else if self.is_empty() {
            self.clear();
        }
        read.map_ok(|()| count)
    }

    /// Reads once into the spare part. `Ok(0)` is the end of the stream, so there must be room.
    pub async fn read_from<R>(&mut self, reader: &mut R) -> io::Result<usize>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        std::future::poll_fn(|cx| self.poll_read_from(cx, reader)).await
    }
}

impl Buf for PooledBuf {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        self.filled()
    }

    fn advance(&mut self, count: usize) {
        self.consume(count);
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledBuf")
            .field("len", &self.len())
            .field("spare", &self.spare_len())
            .finish_non_exhaustive()
    }
}

/// Zeroed memory that begins a little behind the start of its page.
///
/// Some processors (AMD Zen 4 among them) copy thirty times slower with `rep movsb`, glibc's choice for long copies, where the
/// target lies a few bytes further into its page than the source does into its own. That is what putting a header before a
/// body means: TLS does it with every record. From behind the lead all such targets lie before the source.
#[derive(Default)]
struct Storage(Box<[u8]>);

/// In bytes. More than any header that is put before a copy of what was read.
pub const LEAD: usize = 64;

impl Storage {
    fn new(size: usize) -> Self {
        Self(vec![0; LEAD + size].into_boxed_slice())
    }
}

impl Deref for Storage {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.get(LEAD..).unwrap_or_default()
    }
}

impl DerefMut for Storage {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.get_mut(LEAD..).unwrap_or_default()
    }
}

/// A copy, laid out as in [`PooledBuf`]s.
pub fn copy_to_bytes(data: &[u8]) -> Bytes {
    let mut copy = Vec::with_capacity(LEAD + data.len());
    copy.resize(LEAD, 0);
    copy.extend_from_slice(data);
    let mut copy = Bytes::from(copy);
    copy.advance(LEAD);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_used_again_and_comes_back_empty() {
        let pool = BufferPool::new(8, 4);
        let mut first = pool.take();
        first.extend_from_slice(b"abc");
        let address = first.filled().as_ptr();
        drop(first);
        assert_eq!((pool.idle(), pool.outstanding()), (1, 0));

        let mut second = pool.take();
        assert!(second.is_empty());
        assert_eq!((second.spare_len(), pool.outstanding()), (8, 0));
        assert_eq!(second.spare().as_ptr(), address);
        assert_eq!(second.spare_len(), 8);
        assert_eq!((pool.idle(), pool.outstanding()), (0, 1));
    }

    #[test]
    fn the_stock_is_bounded() {
        let pool = BufferPool::new(8, 2);
        let mut taken: Vec<_> = (0..5).map(|_| pool.take()).collect();
        for buf in &mut taken {
            buf.extend_from_slice(b"x");
        }
        assert_eq!(pool.outstanding(), 5);
        drop(taken);
        assert_eq!((pool.idle(), pool.outstanding()), (2, 0));
    }

    #[test]
    fn what_a_burst_left_is_freed_by_the_second_trim() {
        let pool = BufferPool::new(8, 4);
        let mut taken = [pool.take(), pool.take(), pool.take()];
        for buf in &mut taken {
            buf.extend_from_slice(b"x");
        }
        drop(taken);
        pool.trim();
        let mut one = pool.take();
        one.extend_from_slice(b"x");
        drop(one);
        pool.trim();
        assert_eq!(pool.idle(), 1);
    }

    #[test]
    fn a_grown_buffer_is_not_kept() {
        let pool = BufferPool::new(4, 2);
        let mut buf = pool.take();
        buf.extend_from_slice(b"abcdefghij");
        assert_eq!(buf.filled(), b"abcdefghij");
        drop(buf);
        assert_eq!((pool.idle(), pool.outstanding()), (0, 0));
    }

    #[test]
    fn room_is_found_by_moving_before_growing() {
        let pool = BufferPool::new(8, 2);
        let mut buf = pool.take();
        buf.extend_from_slice(b"abcdef");
        buf.consume(4);
        buf.reserve(6);
        assert_eq!((buf.filled(), buf.spare_len(), buf.capacity()), (b"ef".as_slice(), 6, 8));
        buf.reserve(7);
        assert_eq!((buf.filled(), buf.capacity()), (b"ef".as_slice(), 16));
    }

    #[test]
    fn consuming_the_last_byte_gives_the_storage_back() {
        let pool = BufferPool::new(4, 2);
        let mut buf = pool.take();
        buf.extend_from_slice(b"abcd");
        Buf::advance(&mut buf, 3);
        assert_eq!((buf.chunk(), buf.spare_len()), (b"d".as_slice(), 0));
        buf.consume(1);
        assert_eq!((buf.spare_len(), pool.outstanding()), (4, 0));
    }

    #[test]
    #[should_panic(expected = "consumed 2 bytes of 1")]
    fn more_than_is_there_cannot_be_consumed() {
        let pool = BufferPool::new(4, 2);
        let mut buf = pool.take();
        buf.extend_from_slice(b"a");
        buf.consume(2);
    }

    #[tokio::test]
    async fn a_read_that_fills_the_storage_makes_the_next_one_large() {
        let pool = BufferPool::new(4, 32);
        let mut buf = pool.take();
        let mut source: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
        for expected in [4, 16, 6] {
            assert_eq!(buf.read_from(&mut source).await.unwrap(), expected);
            buf.clear();
        }
        assert_eq!(buf.capacity(), 16);
        assert_eq!((buf.read_from(&mut &b"ab"[..]).await.unwrap(), buf.capacity()), (2, 16));
        buf.clear();
        assert_eq!((buf.capacity(), pool.idle(), pool.outstanding()), (4, 2, 0));
    }

    #[tokio::test]
    async fn reads_append_until_the_end() {
        let pool = BufferPool::new(4, 2);
        let mut buf = pool.take();
        let mut source: &[u8] = b"abcdef";
        assert_eq!(buf.read_from(&mut source).await.unwrap(), 4);
        let full = buf.read_from(&mut source).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::InvalidInput);
        buf.consume(3);
        buf.compact();
        assert_eq!(buf.read_from(&mut source).await.unwrap(), 2);
        assert_eq!(buf.filled(), b"def");
        assert_eq!(buf.read_from(&mut source).await.unwrap(), 0);
    }
}
