//! Sources whose connections were ended because they flood: they may go on, but no longer open connections as they like.
//!
//! Ending a connection costs the one who floods nothing: it opens another. Three floods within a minute are no accident; from
//! then until a minute without one, all workers together take two new connections per second of that source and reset the
//! others, which costs an accept each. Its open connections, and other clients behind the same address that keep theirs,
//! are not touched. Behind another proxy all clients are one source: listeners that trust one do not strike.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connections::Source;

/// Floods within [`MEMORY`] after which a source is held back.
pub const STRIKES: u32 = 3;
/// For how long a flood is remembered.
pub const MEMORY: Duration = Duration::from_mins(1);
/// New connections per second of a source that is held back, over all workers.
pub const PER_SECOND: u64 = 2;
/// Sources that are remembered. Who has so many addresses is not stopped by their being remembered.
const SOURCES: usize = 16 * 1024;

/// What is remembered. Times are milliseconds of the process's clock.
#[derive(Debug, Default)]
pub struct Strikes {
    /// How many are remembered: mostly none, and then nothing else is looked at.
    known: AtomicUsize,
    sources: Mutex<Sources>,
}

#[derive(Debug, Default)]
struct Sources {
    records: HashMap<Source, Record>,
    /// When those that are over were last taken out.
    swept: u64,
}

#[derive(Debug, Default)]
struct Record {
    floods: u32,
    last: u64,
    /// When the next connection may be opened.
    next: u64,
}

impl Strikes {
    /// A connection of this source has flooded. `true`: from now on it is held back.
    pub fn strike(&self, peer: IpAddr, now: u64) -> bool {
        let mut sources = self.sources();
        sources.make_room(now);
        let record = sources.records.entry(Source::of(peer)).or_default();
        if record.is_over(now) {
            *record = Record::default();
        }
        record.floods += 1;
        record.last = now;
        let begins = record.floods == STRIKES;
        self.known.store(sources.records.len(), Ordering::Relaxed);
        begins
    }

    /// Whether a source may open a connection now.
    pub fn may_open(&self, peer: IpAddr, now: u64) -> bool {
        if self.known.load(Ordering::Relaxed) == 0 {
            return true;
        }
        let mut sources = self.sources();
        let Some(record) = sources.records.get_mut(&Source::of(peer)) else { return true };
        if record.is_over(now) {
            sources.records.remove(&Source::of(peer));
            self.known.store(sources.records.len(), Ordering::Relaxed);
            return true;
        }
        if record.floods < STRIKES {
            return true;
        }
        let may = now >= record.next;
        if may {
            record.next = now + 1000 / PER_SECOND;
        }
        may
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sources {
    /// Looks at all of them at most once a second: who fills the table must not make it slow.
    fn make_room(&mut self, now: u64) {
        if self.records.len() < SOURCES {
            return;
        }
        if now.saturating_sub(self.swept) >= 1000 {
            self.swept = now;
            self.records.retain(|_, record| !record.is_over(now));
        }
        if self.records.len() >= SOURCES
            && let Some(any) = self.records.keys().next().copied()
        {
            self.records.remove(&any);
        }
    }
}

impl Record {
    fn is_over(&self, now: u64) -> bool {
        now.saturating_sub(self.last) >= MEMORY.as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = MEMORY.as_millis() as u64;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    /// How many of a thousand attempts, one each 10 ms, succeed.
    fn opened(strikes: &Strikes, from: u64) -> usize {
        (0..1000).filter(|n| strikes.may_open(peer(1), from + n * 10)).count()
    }

    #[test]
    fn the_third_flood_holds_a_source_back_and_a_minute_without_one_frees_it() {
        let strikes = Strikes::default();
        assert!(!strikes.strike(peer(1), 0));
        assert!(!strikes.strike(peer(1), 10));
        assert_eq!(opened(&strikes, 10), 1000);
        assert!(strikes.strike(peer(1), 20));
        assert!(!strikes.strike(peer(1), 30), "it is told once");
        assert_eq!(opened(&strikes, 30), 20, "two in each of ten seconds");
        assert!(strikes.may_open(peer(2), 40), "others are not held back");
        assert_eq!(opened(&strikes, 30 + MINUTE), 1000);
        assert_eq!(strikes.known.load(Ordering::Relaxed), 0, "it is forgotten");
    }

    #[test]
    fn floods_that_are_far_apart_are_accidents() {
        let strikes = Strikes::default();
        for n in 0..10 {
            assert!(!strikes.strike(peer(1), n * MINUTE));
        }
        assert_eq!(opened(&strikes, 9 * MINUTE), 1000);
    }

    #[test]
    fn memory_is_bounded() {
        let strikes = Strikes::default();
        for n in 0..40_000_u32 {
            strikes.strike(IpAddr::from(n.to_be_bytes()), u64::from(n));
        }
        assert!(strikes.sources().records.len() <= SOURCES);
    }
}
