//! A request's body, kept as far as it was sent, so that another try can send it again.
//!
//! Bounded: a body that grows beyond the bound is let go of, whole, and its request has no other try from then on. Nothing
//! is kept unless a try may follow (`exchange::tries` decides), and nothing is decided here.

use std::cell::{Cell, Ref, RefCell};

use fieldgate_core::Headers;

/// What was sent of one request's body.
#[derive(Debug)]
pub struct Replay {
    /// In bytes.
    limit: usize,
    kept: RefCell<Vec<u8>>,
    trailers: RefCell<Option<Headers>>,
    received: Cell<u64>,
    ended: Cell<bool>,
    given_up: Cell<bool>,
}

impl Replay {
    /// Keeps up to so many bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: RefCell::default(),
            trailers: RefCell::default(),
            received: Cell::new(0),
            ended: Cell::new(false),
            given_up: Cell::new(false),
        }
    }

    /// Whether all that was sent is still here.
    pub fn is_whole(&self) -> bool {
        !self.given_up.get()
    }

    /// Whether so many bytes more would be kept.
    pub fn has_room(&self, count: usize) -> bool {
        self.is_whole() && self.kept.borrow().len() + count <= self.limit
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
        if kept.len() + data.len() > self.limit {
            self.given_up.set(true);
            *kept = Vec::new();
        } else {
            kept.extend_from_slice(data);
        }
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
