//! A request's body, kept as far as it was sent, so that another try can send it again.
//!
//! Bounded: a body that grows beyond the bound is let go of, whole, and its request has no other try from then on. Nothing
//! is kept unless a try may follow (`exchange::tries` decides), and nothing is decided here.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use fieldgate_core::Headers;

use super::mirror::Tee;

/// What was sent of one request's body.
#[derive(Debug)]
pub struct Replay {
    /// In bytes.
    limit: Cell<usize>,
    kept: RefCell<Vec<u8>>,
    trailers: RefCell<Option<Headers>>,
    received: Cell<u64>,
    ended: Cell<bool>,
    given_up: Cell<bool>,
    /// What all that are counted together hold.
    total: Option<Rc<Cell<usize>>>,
}

impl Replay {
    /// Keeps up to so many bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit: Cell::new(limit),
            kept: RefCell::default(),
            trailers: RefCell::default(),
            received: Cell::new(0),
            ended: Cell::new(false),
            given_up: Cell::new(false),
            total: None,
        }
    }

    /// The same, counted in a total for as long as it lives.
    pub fn counted(limit: usize, total: Rc<Cell<usize>>) -> Self {
        let mut replay = Self::new(limit);
        replay.total = Some(total);
        replay
    }

    /// Keeps at least so many bytes from now on.
    pub fn raise(&self, limit: usize) {
        self.limit.set(self.limit.get().max(limit));
    }

    /// Bytes that are kept.
    pub fn held(&self) -> usize {
        self.kept.borrow().len()
    }

    /// The first bytes, so many at most.
    pub fn first(&self, count: usize) -> Bytes {
        let kept = self.kept.borrow();
        Bytes::copy_from_slice(&kept[..kept.len().min(count)])
    }

    /// Gives what is kept to those who look on, who see what follows as it is sent.
    pub fn show(&self, tee: &Tee) {
        tee.push(&self.kept.borrow());
        if self.has_ended() {
            tee.finish(self.trailers.borrow().as_ref());
        }
    }

    fn count(&self, before: usize, after: usize) {
        if let Some(total) = &self.total {
            total.set(total.get() - before + after);
        }
    }

    /// Whether all that was sent is still here.
    pub fn is_whole(&self) -> bool {
        !self.given_up.get()
    }

    /// Whether so many bytes more would be kept.
    pub fn has_room(&self, count: usize) -> bool {
        self.is_whole() && self.kept.borrow().len() + count <= self.limit.get()
    }

    /// Body bytes that came from the client.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// The next bytes from the client, which an upstream has taken.
    pub fn push(&self, data: &[u8]) {
        self.received.set(self.received.get() + data.len() as u64);
        if self.given_up.get() {
            return;
        }
        let mut kept = self.kept.borrow_mut();
        let before = kept.len();
        if before + data.len() > self.limit.get() {
            self.given_up.set(true);
            *kept = Vec::new();
        } else {
            kept.extend_from_slice(data);
        }
        self.count(before, kept.len());
    }

    /// The body is over.
    pub fn finish(&self, trailers: Option<&Headers>) {
        self.ended.set(true);
        *self.trailers.borrow_mut() = trailers.cloned();
    }

    /// Whether the client has sent all of it.
    pub fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Its trailers.
    pub fn trailers(&self) -> Option<Headers> {
        self.trailers.borrow().clone()
    }

    /// Whether nothing follows the bytes that are kept.
    pub fn ends_with_bytes(&self) -> bool {
        self.ended.get() && self.trailers.borrow().is_none()
    }

    /// What is kept behind the first `sent` bytes; nothing once a try has caught up.
    pub fn rest(&self, sent: usize) -> Option<Ref<'_, [u8]>> {
        let kept = self.kept.borrow();
        (sent < kept.len()).then(|| Ref::map(kept, |kept| &kept[sent..]))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.count(self.held(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_kept_up_to_the_bound() {
        let replay = Replay::new(5);
        replay.push(b"abc");
        replay.push(b"de");
        assert_eq!(replay.rest(1).as_deref(), Some(&b"bcde"[..]));
        assert!(replay.is_whole() && replay.rest(5).is_none());
        replay.push(b"f");
        assert!(!replay.is_whole() && replay.rest(0).is_none());
        assert_eq!(replay.received(), 6);
    }

    #[test]
    fn a_total_knows_what_is_kept() {
        let total = Rc::new(Cell::new(0));
        let (one, other) = (Replay::counted(2, total.clone()), Replay::counted(9, total.clone()));
        one.push(b"ab");
        other.push(b"cde");
        assert_eq!(total.get(), 5);
        one.raise(1);
        one.push(b"x");
        assert_eq!((one.is_whole(), total.get()), (false, 3));
        assert_eq!(&*other.first(2), b"cd");
        drop(other);
        assert_eq!(total.get(), 0);
    }

    #[test]
    fn trailers_come_after_the_bytes() {
        let replay = Replay::new(5);
        replay.finish(None);
        assert!(replay.has_ended() && replay.ends_with_bytes());
        let mut trailers = Headers::new();
        trailers.push(b"grpc-status", b"0");
        replay.finish(Some(&trailers));
        assert!(replay.has_ended() && !replay.ends_with_bytes());
        assert_eq!(replay.trailers().unwrap().get("grpc-status"), Some(&b"0"[..]));
    }
}
