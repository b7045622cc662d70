//! A request's body on its way to mirrors: bounded queues that the primary fills and never waits for.
//!
//! A queue that would grow beyond a bound is given up, whole: a mirror gets a request as the client sent it, or a broken
//! one, but never one with a gap.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::{Buf, Bytes};
use fieldgate_core::Headers;
use smallvec::SmallVec;

/// What may wait for one mirror of one request, in bytes.
const QUEUE: usize = 1024 * 1024;
/// What may wait for all mirrors of a worker together, in bytes.
const TOTAL: usize = 32 * 1024 * 1024;
/// What a piece costs beside its bytes, so that many small ones are bounded too.
const PIECE: usize = 64;

/// The body's second way: to all mirrors of the request.
#[derive(Debug)]
pub struct Tee(SmallVec<[Rc<Queue>; 1]>);

impl Tee {
    /// To these.
    pub fn new(queues: SmallVec<[Rc<Queue>; 1]>) -> Self {
        Self(queues)
    }

    /// The next bytes of the body. They are copied once, however many mirrors there are, and not at all for mirrors that
    /// have ended.
    pub fn push(&self, data: &[u8]) {
        let mut copy: Option<Bytes> = None;
        for queue in self.0.iter().filter(|q| q.state.get() == State::Open) {
            if queue.has_room(data.len()) {
                queue.push(copy.get_or_insert_with(|| Bytes::copy_from_slice(data)).clone());
            } else {
                queue.give_up();
            }
        }
    }

    /// The body is over.
    pub fn finish(&self, trailers: Option<&Headers>) {
        self.0.iter().for_each(|queue| queue.end(trailers));
    }
}

impl Drop for Tee {
    // A request that ends without its body's end is not complete, and must not look so to a mirror.
    fn drop(&mut self) {
        self.0.iter().filter(|q| q.state.get() == State::Open).for_each(|q| q.give_up());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// More may come.
    Open,
    /// All is there.
    Ended,
    /// Nothing of it is of use any more.
    GivenUp,
}

/// What waits for one mirror.
#[derive(Debug)]
pub struct Queue {
    state: Cell<State>,
    pieces: RefCell<VecDeque<Bytes>>,
    trailers: RefCell<Option<Headers>>,
    held: Cell<usize>,
    /// What all queues of the worker hold.
    total: Rc<Cell<usize>>,
    untouched: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    /// An empty one. `total` is the worker's.
    pub fn new(total: Rc<Cell<usize>>) -> Rc<Self> {
        Rc::new(Self {
            state: Cell::new(State::Open),
            pieces: RefCell::default(),
            trailers: RefCell::default(),
            held: Cell::new(0),
            total,
            untouched: Cell::new(true),
            waker: RefCell::default(),
        })
    }

    /// The task to wake when there is something new.
    pub fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// The next bytes. They stay until they are consumed.
    pub fn front(&self) -> Option<Bytes> {
        self.pieces.borrow().front().cloned()
    }

    /// Takes so many bytes off the front.
    pub fn consume(&self, count: usize) {
        self.untouched.set(self.untouched.get() && count == 0);
        let mut pieces = self.pieces.borrow_mut();
        let Some(front) = pieces.front_mut() else { return };
        front.advance(count);
        let mut freed = count;
        if front.is_empty() {
            pieces.pop_front();
            freed += PIECE;
        }
        self.account(self.held.get() - freed);
    }

    /// Whether nothing was consumed, so that another try can begin at the beginning.
    pub fn is_untouched(&self) -> bool {
        self.untouched.get()
    }

    /// Whether all of the body is here or was.
    pub fn has_ended(&self) -> bool {
        self.state.get() == State::Ended
    }

    /// Whether the request is to be broken off.
    pub fn is_given_up(&self) -> bool {
        self.state.get() == State::GivenUp
    }

    /// The trailers, once the body has ended.
    pub fn trailers(&self) -> std::cell::Ref<'_, Option<Headers>> {
        self.trailers.borrow()
    }

    /// Nothing more comes.
    pub fn end(&self, trailers: Option<&Headers>) {
        if self.state.get() == State::Open {
            self.trailers.replace(trailers.cloned());
            self.state.set(State::Ended);
            self.wake();
        }
    }

    /// Forgets what waits and takes nothing more.
    pub fn give_up(&self) {
        self.state.set(State::GivenUp);
        self.pieces.take();
        self.account(0);
        self.wake();
    }

    fn has_room(&self, len: usize) -> bool {
        let more = len + PIECE;
        self.held.get() + more <= QUEUE && self.total.get() + more <= TOTAL
    }

    fn push(&self, piece: Bytes) {
        self.account(self.held.get() + piece.len() + PIECE);
        self.pieces.borrow_mut().push_back(piece);
        self.wake();
    }

    fn account(&self, held: usize) {
        self.total.set(self.total.get() - self.held.replace(held) + held);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.account(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    fn tee(mirrors: usize) -> (Tee, Vec<Rc<Queue>>, Rc<Cell<usize>>) {
        let total = Rc::new(Cell::new(0));
        let queues: Vec<_> = (0..mirrors).map(|_| Queue::new(total.clone())).collect();
        (Tee::new(queues.iter().cloned().collect()), queues, total)
    }

    fn drain(queue: &Queue, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = queue.front() {
            let taken = piece.len().min(step);
            all.extend_from_slice(&piece[..taken]);
            queue.consume(taken);
        }
        all
    }

    #[test]
    fn every_mirror_gets_the_body_at_its_own_pace() {
        let (tee, queues, total) = tee(2);
        tee.push(b"hello ");
        assert!(queues[0].is_untouched());
        assert_eq!(drain(&queues[0], 4), b"hello ");
        assert!(!queues[0].is_untouched() && queues[1].is_untouched());
        tee.push(b"world");
        let mut trailers = Headers::new();
        trailers.push(b"a", b"b");
        tee.finish(Some(&trailers));
        drop(tee);
        assert!(queues.iter().all(|q| q.has_ended() && q.trailers().as_ref().is_some_and(|t| t.len() == 1)));
        assert_eq!(drain(&queues[0], 100), b"world");
        assert_eq!(drain(&queues[1], 1), b"hello world");
        assert_eq!(total.get(), 0);
    }

    #[test]
    fn what_cannot_keep_up_is_given_up_and_the_other_goes_on() {
        let (tee, queues, total) = tee(2);
        let block = vec![0; 64 * 1024];
        let mut passed = 0;
        for _ in 0..100 {
            tee.push(&block);
            passed += drain(&queues[1], block.len()).len();
            assert!(total.get() <= QUEUE);
        }
        assert!(queues[0].is_given_up() && queues[0].front().is_none());
        assert_eq!((passed, total.get()), (100 * block.len(), 0));
        tee.finish(None);
        assert!(queues[0].is_given_up() && queues[1].has_ended());
    }

    #[test]
    fn small_pieces_are_bounded_too() {
        let (tee, queues, _) = tee(1);
        (0..QUEUE / PIECE).for_each(|_| tee.push(b"."));
        assert!(queues[0].is_given_up());
    }

    #[test]
    fn all_queues_of_a_worker_have_one_bound() {
        let total = Rc::new(Cell::new(0));
        let block = vec![0; QUEUE / 2];
        let queues: Vec<_> = (0..200).map(|_| Queue::new(total.clone())).collect();
        let tees: Vec<_> = queues.iter().map(|q| Tee::new(smallvec![q.clone()])).collect();
        for tee in &tees {
            tee.push(&block);
        }
        assert!(total.get() <= TOTAL && total.get() > TOTAL - QUEUE);
        assert_eq!(queues.iter().filter(|q| !q.is_given_up()).count(), TOTAL / (block.len() + PIECE));
        drop((tees, queues));
        assert_eq!(total.get(), 0);
    }

    #[test]
    fn a_request_that_breaks_off_is_not_complete() {
        let (tee, queues, total) = tee(1);
        tee.push(b"half");
        drop(tee);
        assert!(queues[0].is_given_up() && !queues[0].has_ended() && queues[0].front().is_none());
        assert_eq!(total.get(), 0);
    }

    #[test]
    fn news_wake_the_mirror() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
        #[derive(Default)]
        struct Count(AtomicU32);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Relaxed);
            }
        }
        let (tee, queues, _) = tee(1);
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let register = || queues[0].register(&Context::from_waker(&waker));
        register();
        tee.push(b"1");
        tee.push(b"2");
        assert_eq!(count.0.load(Relaxed), 1, "one registration, one wake");
        register();
        tee.finish(None);
        assert_eq!(count.0.load(Relaxed), 2);
        register();
        queues[0].give_up();
        assert_eq!(count.0.load(Relaxed), 3);
    }
}
