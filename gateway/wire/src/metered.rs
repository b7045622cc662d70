//! A transport that counts the frames of an HTTP/2 connection, for the floods that the codec behind it lets through.
//!
//! The `h2` crate bounds what frames make it hold: concurrent streams, header lists and their continuations, streams reset
//! before they were taken, small DATA frames that wait. It does not bound frames that ask for nothing and are cheap one
//! by one (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA), nor streams that are reset after they were taken, over and
//! over (CVE-2023-44487). Here such frames are paid from an account, which grows by what a connection is for (new streams,
//! bytes sent to the client) and slowly with time. A connection whose account is empty is flooding.
//!
//! Only the nine bytes before each frame are looked at. What to do about a flood is the caller's; so is telling when a
//! turn of the event loop begins: no connection has more than its share of frames read in one turn.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::timer::Wheel;

/// The client's connection preface (RFC 9113 section 3.4), which is no frame.
const PREFACE: usize = 24;
/// Type, flags, stream and length of a frame.
const HEADER: usize = 9;

/// Frames that carry nothing, on credit: a burst of so many is nobody's attack.
pub const SPARE_FRAMES: i64 = 1_000;
/// As many more per second.
pub const SPARE_FRAMES_PER_SECOND: i64 = 500;
/// As many more for each stream that a client opens, and one for each 32 bytes that are sent to it.
const FRAMES_PER_STREAM: i64 = 4;
/// DATA frames with less than this, in bytes, count too: an eighth of a frame each.
pub const TINY: usize = 32;
/// Streams that a client may reset on credit; beyond, no more than every second one.
pub const SPARE_RESETS: i64 = 200;
/// As many more per second.
pub const SPARE_RESETS_PER_SECOND: i64 = 100;
/// A request that is malformed counts as so many frames: on HTTP/1 it would have ended the connection.
const MALFORMED: i64 = 50;
/// Frames of any kind that are read in one turn of the event loop, before others have theirs. Those with a head count as
/// `HEAD`, and as one more for each `HEAD_PIECE` bytes. A read that begins within this bound is not cut short, but
/// after one with a frame for less than `DENSE` bytes, reads are of `PIECE` bytes at most.
pub const FRAMES_PER_TURN: u32 = 128;
const HEAD: u32 = 4;
const HEAD_PIECE: usize = 128;
const DENSE: usize = 64;
const PIECE: usize = 2048;

/// Parts of a frame that the account is kept in.
const UNIT: i64 = 16;

/// What a connection does too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames that carry nothing.
    Frames,
    /// Streams that are reset.
    Resets,
}

impl Flood {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Resets => "resets",
        }
    }
}

/// The accounts of one connection.
pub struct Meter {
    wheel: Wheel,
    frames: Account,
    resets: Account,
    last_stream: Cell<u32>,
    turn: Cell<u32>,
    flood: Cell<Option<Flood>>,
}

impl Meter {
    fn new(wheel: Wheel) -> Rc<Self> {
        let now = wheel.millis();
        Rc::new(Self {
            frames: Account::new(SPARE_FRAMES * UNIT, SPARE_FRAMES_PER_SECOND * UNIT, now),
            // In halves, for a new stream pays for half a reset.
            resets: Account::new(SPARE_RESETS * 2, SPARE_RESETS_PER_SECOND * 2, now),
            last_stream: Cell::new(0),
            turn: Cell::new(0),
            flood: Cell::new(None),
            wheel,
        })
    }

    /// The connection's task has come round: it may read its share again.
    pub fn begin_turn(&self) {
        self.turn.set(0);
    }

    /// Whether the client has reset streams, and not paid for them since by new ones.
    pub fn saw_resets(&self) -> bool {
        self.resets.left.get() < self.resets.most
    }

    /// Set once the connection floods. Nothing is read any more then.
    pub fn flood(&self) -> Option<Flood> {
        self.flood.get()
    }

    /// One of the requests was malformed.
    pub fn malformed(&self) {
        self.pay(MALFORMED * UNIT);
    }

    fn frame(&self, header: &[u8; HEADER]) {
        const END_STREAM: u8 = 1;
        let [a, b, c, kind, flags, stream @ ..] = *header;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let weight = match kind {
            1 | 9 => HEAD + (length / HEAD_PIECE) as u32,
            _ => 1,
        };
        self.turn.set(self.turn.get().saturating_add(weight));
        match kind {
            // DATA
            0 if flags & END_STREAM != 0 || length >= TINY => {}
            0 => self.pay(if length == 0 { UNIT } else { UNIT / 8 }),
            // HEADERS; those of a stream that is open are trailers
            1 => {
                let stream = u32::from_be_bytes(stream);
                if stream > self.last_stream.get() {
                    self.last_stream.set(stream);
                    self.frames.earn(FRAMES_PER_STREAM * UNIT);
                    self.resets.earn(1);
                }
            }
            // RST_STREAM
            3 => {
                if !self.resets.pay(2, self.wheel.millis()) {
                    self.flood.set(Some(Flood::Resets));
                }
            }
            _ => self.pay(UNIT),
        }
    }

    fn pay(&self, units: i64) {
        if !self.frames.pay(units, self.wheel.millis()) {
            self.flood.set(Some(Flood::Frames));
        }
    }

    fn sent(&self, bytes: usize) {
        self.frames.earn(bytes as i64 / 2);
    }
}

/// What may be spent.
struct Account {
    left: Cell<i64>,
    most: i64,
    per_second: i64,
    /// When time was last paid for, in milliseconds.
    paid_at: Cell<u64>,
}

impl Account {
    fn new(most: i64, per_second: i64, now: u64) -> Self {
        Self { left: Cell::new(most), most, per_second, paid_at: Cell::new(now) }
    }

    fn earn(&self, units: i64) {
        self.left.set((self.left.get() + units).min(self.most));
    }

    /// `false`: there was not enough. What time has brought is looked at only then.
    fn pay(&self, units: i64, now: u64) -> bool {
        if self.left.get() < units {
            let passed = now.saturating_sub(self.paid_at.get()).min(3_600_000) as i64;
            let earned = passed * self.per_second / 1000;
            if earned > 0 {
                self.paid_at.set(now);
                self.earn(earned);
            }
        }
        let left = self.left.get() - units;
        if left < 0 {
            return false;
        }
        self.left.set(left);
        true
    }
}

/// A transport whose incoming frames are counted. It must see the connection from the preface on.
pub struct Metered<T> {
    inner: T,
    meter: Rc<Meter>,
    /// Bytes to the end of the frame, or of the preface.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
    /// The last read had many frames for its bytes.
    dense: bool,
}

impl<T> Metered<T> {
    /// Counts from now on, by the worker's time.
    pub fn new(inner: T, wheel: Wheel) -> Self {
        Self { inner, meter: Meter::new(wheel), skip: PREFACE, header: [0; HEADER], have: 0, dense: false }
    }

    /// What is counted.
    pub fn meter(&self) -> Rc<Meter> {
        Rc::clone(&self.meter)
    }

    fn count(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                self.have = 0;
                self.skip = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]) as usize;
                self.meter.frame(&self.header);
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.meter.flood.get().is_some() || this.meter.turn.get() >= FRAMES_PER_TURN {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (before, frames) = (buf.filled().len(), this.meter.turn.get());
        if this.dense && buf.remaining() > PIECE {
            let mut piece = ReadBuf::new(buf.initialize_unfilled_to(PIECE));
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut piece))?;
            let read = piece.filled().len();
            buf.advance(read);
        } else {
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        }
        let read = &buf.filled()[before..];
        this.count(read);
        this.dense = read.len() < (this.meter.turn.get() - frames) as usize * DENSE;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.meter.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        this.meter.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags];
        frame.extend(stream.to_be_bytes());
        frame.resize(HEADER + payload, 0);
        frame
    }

    fn metered() -> Metered<tokio::io::Empty> {
        let mut metered = Metered::new(tokio::io::empty(), Wheel::default());
        metered.count(&[b'P'; PREFACE]);
        metered
    }

    /// How many of these frames a connection gets away with at one moment, up to a hundred thousand.
    fn allowed(mut frames: impl FnMut(u32) -> Vec<u8>) -> u32 {
        let mut metered = metered();
        (0..100_000)
            .find(|n| {
                metered.count(&frames(*n));
                metered.meter.flood().is_some()
            })
            .unwrap_or(u32::MAX)
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_carry_nothing_are_bounded_whatever_they_are() {
        for (kind, payload) in [(PING, 8), (4, 0), (2, 5), (8, 4), (0, 0), (99, 3)] {
            assert_eq!(allowed(|_| frame(kind, 0, 1, payload)), SPARE_FRAMES as u32, "type {kind}");
        }
        assert_eq!(allowed(|_| frame(0, 0, 1, 1)), (SPARE_FRAMES * 8) as u32, "tiny DATA");
    }

    #[tokio::test(start_paused = true)]
    async fn what_connections_are_for_is_not_bounded() {
        assert_eq!(allowed(|_| frame(0, 0, 1, 1000)), u32::MAX, "DATA");
        assert_eq!(allowed(|n| frame(1, 5, n * 2 + 1, 20)), u32::MAX, "requests");
        let with_updates = |n: u32| {
            let updates = [frame(8, 0, 0, 4), frame(8, 0, n * 2 + 1, 4)].concat();
            [frame(1, 5, n * 2 + 1, 20), updates, frame(PING, 0, 0, 8)].concat()
        };
        assert_eq!(allowed(with_updates), u32::MAX, "requests with what clients send around them");
        assert_eq!(allowed(|n| frame(0, 1, n * 2 + 1, 0)), u32::MAX, "ends of bodies");
    }

    #[tokio::test(start_paused = true)]
    async fn two_updates_for_each_small_message_received_are_no_flood() {
        let mut metered = metered();
        for _ in 0..100_000 {
            metered.meter.sent(HEADER + 64);
            metered.count(&[frame(8, 0, 0, 4), frame(8, 0, 1, 4)].concat());
        }
        assert_eq!(metered.meter.flood(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn every_second_stream_may_be_reset_and_no_more() {
        let rapid = |n: u32| [frame(1, 5, n * 2 + 1, 20), frame(3, 0, n * 2 + 1, 4)].concat();
        assert!((390..410).contains(&allowed(rapid)));
        let every_second = |n: u32| if n.is_multiple_of(2) { rapid(n) } else { frame(1, 5, n * 2 + 1, 20) };
        assert_eq!(allowed(every_second), u32::MAX);
        // Trailers open nothing.
        let trailers = |n: u32| [rapid(n), frame(1, 5, n * 2 + 1, 20)].concat();
        assert!((390..410).contains(&allowed(trailers)));
    }

    #[tokio::test(start_paused = true)]
    async fn time_pays() {
        let mut metered = metered();
        for _ in 0..60 {
            for _ in 0..SPARE_RESETS_PER_SECOND {
                metered.count(&frame(3, 0, 1, 4));
            }
            for _ in 0..SPARE_FRAMES_PER_SECOND {
                metered.count(&frame(PING, 0, 0, 8));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(metered.meter.flood(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn malformed_requests_are_bounded() {
        let metered = metered();
        let before = (0..1000).take_while(|_| {
            metered.meter.malformed();
            metered.meter.flood().is_none()
        });
        assert_eq!(before.count() as i64, SPARE_FRAMES / MALFORMED);
    }

    #[test]
    fn heads_weigh_more_in_a_turn() {
        let wheel = Wheel::default();
        let mut metered = Metered::new(tokio::io::empty(), wheel);
        metered.count(&[&[b'P'; PREFACE][..], &frame(1, 5, 1, 20), &frame(9, 4, 1, 1280)].concat());
        assert_eq!(metered.meter.turn.get(), 4 + 4 + 10);
    }

    #[tokio::test]
    async fn a_turn_has_an_end() {
        let input = [vec![b'P'; PREFACE], frame(PING, 0, 0, 8).repeat(1000)].concat();
        let mut metered = Metered::new(&input[..], Wheel::default());
        let meter = metered.meter();
        let mut piece = [0; 512];
        let mut read = 0;
        loop {
            let next = futures_now(metered.read(&mut piece));
            match next {
                Some(n) => read += n.unwrap(),
                None => break,
            }
        }
        let frames = (read - PREFACE) / 17;
        assert!((128..128 + 512 / 17 + 1).contains(&frames), "{frames}");
        meter.begin_turn();
        assert!(futures_now(metered.read(&mut piece)).is_some());
    }

    #[tokio::test]
    async fn reads_of_many_frames_are_short_and_those_of_bodies_are_not() {
        let pings = frame(PING, 0, 0, 8).repeat(2000);
        let body = frame(0, 0, 1, 16_384).repeat(4);
        let input = [vec![b'P'; PREFACE], pings.clone(), body.clone()].concat();
        let mut metered = Metered::new(&input[..], Wheel::default());
        let meter = metered.meter();
        let mut piece = vec![0; 10_000];
        let (mut got, mut reads) = (Vec::new(), Vec::new());
        while got.len() < input.len() {
            meter.begin_turn();
            // What the account says is another matter.
            meter.frames.left.set(meter.frames.most);
            let n = futures_now(metered.read(&mut piece)).unwrap().unwrap();
            got.extend_from_slice(&piece[..n]);
            reads.push(n);
        }
        assert_eq!(got, input);
        let (first, rest) = reads.split_first().unwrap();
        assert_eq!(*first, 10_000);
        assert!(rest[..6].iter().all(|n| *n == PIECE), "{reads:?}");
        assert!(rest.contains(&10_000), "{reads:?}");
    }

    fn futures_now<F: Future>(future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        match future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    proptest! {
        /// However the bytes are cut, the same frames are seen.
        #[test]
        fn pieces_do_not_matter(
            frames in prop::collection::vec((0_u8..12, 0_u8..2, 0_usize..80), 1..200),
            cuts in prop::collection::vec(1_usize..40, 1..20),
        ) {
            let bytes: Vec<u8> =
                frames.iter().enumerate().flat_map(|(n, (k, f, l))| frame(*k, *f, n as u32, *l)).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (mut whole, mut cut) = (metered(), metered());
                whole.count(&bytes);
                let mut rest = &bytes[..];
                for at in cuts.iter().cycle() {
                    let (piece, more) = rest.split_at((*at).min(rest.len()));
                    cut.count(piece);
                    rest = more;
                    if rest.is_empty() {
                        break;
                    }
                }
                prop_assert!(whole.meter.turn.get() >= frames.len() as u32);
                prop_assert_eq!(whole.meter.turn.get(), cut.meter.turn.get());
                prop_assert_eq!(whole.meter.frames.left.get(), cut.meter.frames.left.get());
                prop_assert_eq!(whole.meter.resets.left.get(), cut.meter.resets.left.get());
                Ok(())
            })?;
        }
    }
}
