//! Things that one worker uses again rather than make anew, the last used first: warm in every cache.
//!
//! A stock is bounded, and what a burst has left in it is freed once nobody has needed it for a while. It knows nothing of
//! what it holds, and must not be where anything waits for its turn.

use std::cell::{Cell, RefCell};

/// Up to so many things of a kind that wait to be used again.
pub struct Stock<T> {
    waiting: RefCell<Vec<T>>,
    retained: usize,
    /// The fewest that waited since the last trim.
    fewest: Cell<usize>,
}

impl<T> Stock<T> {
    /// An empty stock that keeps at most `retained`.
    pub fn new(retained: usize) -> Self {
        Self { waiting: RefCell::default(), retained, fewest: Cell::new(0) }
    }

    /// The one that was given last.
    pub fn take(&self) -> Option<T> {
        let mut waiting = self.waiting.borrow_mut();
        let taken = waiting.pop();
        self.fewest.set(self.fewest.get().min(waiting.len()));
        taken
    }

    /// Keeps it, or drops it if there are enough.
    pub fn give(&self, thing: T) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() < self.retained {
            waiting.push(thing);
        }
    }

    /// Drops those that nobody took since the last call. To be called now and then.
    pub fn trim(&self) {
        let mut waiting = self.waiting.borrow_mut();
        // Those at the bottom have waited for the longest time.
        waiting.drain(..self.fewest.get());
        let room = waiting.len() * 2;
        waiting.shrink_to(room);
        self.fewest.set(waiting.len());
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_used_comes_first_and_the_number_is_bounded() {
        let stock = Stock::new(2);
        (1..=3).for_each(|n| stock.give(n));
        assert_eq!((stock.take(), stock.take(), stock.take()), (Some(2), Some(1), None));
    }

    #[test]
    fn what_nobody_took_since_the_last_trim_is_dropped() {
        let stock = Stock::new(9);
        (1..=6).for_each(|n| stock.give(n));
        stock.trim();
        assert_eq!(stock.len(), 6, "all of them were given since");
        for _ in 0..4 {
            let pair = (stock.take(), stock.take());
            pair.0.into_iter().chain(pair.1).for_each(|n| stock.give(n));
        }
        stock.trim();
        assert_eq!(stock.len(), 2, "two at a time were in use");
        stock.trim();
        assert!(stock.is_empty());
    }
}
