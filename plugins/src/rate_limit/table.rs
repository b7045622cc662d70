//! Buckets by key: a table of fixed size, read and written by all workers without a lock.
//!
//! A key is a 64-bit hash under a secret of the process, so that nobody outside can choose keys that meet, and no key's text
//! is kept. It belongs to one row of eight places; a place is the hash and the bucket's word (see [`super::gcra`]), 16 bytes.
//! Rows are allocated in pages as they are first used, so that a limit costs what its clients make it cost, up to its bound.
//!
//! A key that finds no free place takes that of the row's fullest bucket. Mostly that one is full, and then nothing is lost
//! by forgetting it: a full bucket is what a new key has. Otherwise (more keys with less than a full bucket than the row
//! has places) it is the one that misses the fewest tokens. So who has used up a limit is forgotten last: a flood of keys
//! that are each used once pushes out its own.
//!
//! What threads may do to each other at worst: a key that enters the table at several of them in the same instant may
//! have two places for that instant, and each thread may let one request pass that the other place does not know of. So
//! what passes is at most one bucket's worth, and each time that the key enters the table one more per thread (or, where
//! one of them finds its place taken, one less).

use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use super::gcra::{Level, Rate};

/// Places in a row: the hashes fill one cache line, the buckets another.
const ROW: usize = 8;
/// Rows in a page of 4 KiB.
const PAGE: usize = 32;

/// Buckets by key.
#[derive(Debug)]
pub(super) struct Table {
    secret: RandomState,
    /// Rows that there may be.
    rows: usize,
    /// Places that a row has.
    places: usize,
    pages: Box<[OnceLock<Box<[Row; PAGE]>>]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Row {
    /// 0 where there is no key.
    keys: [AtomicU64; ROW],
    buckets: [AtomicU64; ROW],
}

impl Table {
    /// For so many keys; up to seven fewer, where that makes whole rows.
    pub fn new(max_keys: u32) -> Self {
        let max = (max_keys as usize).max(1);
        let (rows, places) = if max < ROW { (1, max) } else { (max / ROW, ROW) };
        let pages = (0..rows.div_ceil(PAGE)).map(|_| OnceLock::new()).collect();
        Self { secret: RandomState::new(), rows, places, pages }
    }

    /// Takes in what tells requests apart.
    pub fn hasher(&self) -> DefaultHasher {
        self.secret.build_hasher()
    }

    /// The key of what a hasher of this table has taken in; never 0.
    pub fn key(of: &DefaultHasher) -> u64 {
        of.finish().max(1)
    }

    /// What the key's bucket says of a request; takes nothing, and makes no place for it.
    pub fn look(&self, key: u64, rate: &Rate, now: u64) -> Level {
        let bucket = self.row(key, false).and_then(|row| Some(&row.buckets[row.find(key)?]));
        rate.look(bucket.map_or(0, |bucket| bucket.load(Relaxed)), now)
    }

    /// Takes a token of the key's bucket if there is one.
    pub fn take(&self, key: u64, rate: &Rate, now: u64) -> Level {
        let Some(row) = self.row(key, true) else { return rate.look(0, now) };
        loop {
            let at = row.find(key).unwrap_or_else(|| row.make_place(key, now, self.places));
            // Another key may have come to the place meanwhile; then the token was its.
            if let Some(level) = rate.try_take(&row.buckets[at], now)
                && row.keys[at].load(SeqCst) == key
            {
                return level;
            }
        }
    }

    /// Puts a token back.
    pub fn put_back(&self, key: u64, rate: &Rate) {
        if let Some(row) = self.row(key, false)
            && let Some(at) = row.find(key)
        {
            rate.put_back(&row.buckets[at]);
        }
    }

    fn row(&self, key: u64, make: bool) -> Option<&Row> {
        // The upper half of the product spreads keys evenly over any number of rows.
        let at = ((u128::from(key) * self.rows as u128) >> 64) as usize;
        let page = &self.pages[at / PAGE];
        let page = if make { Some(page.get_or_init(Box::default)) } else { page.get() };
        page.map(|page| &page[at % PAGE])
    }
}

impl Row {
    /// The first place of a key, on which all agree if it has two.
    fn find(&self, key: u64) -> Option<usize> {
        self.keys.iter().position(|k| k.load(SeqCst) == key)
    }

    /// Takes a place for a key that has none, or finds that it has one now.
    fn make_place(&self, key: u64, now: u64, places: usize) -> usize {
        loop {
            let full_at = |at: usize| match self.keys[at].load(SeqCst) {
                0 => 0,
                _ => self.buckets[at].load(Relaxed),
            };
            let Some(at) = (0..places).min_by_key(|at| full_at(*at)) else { return 0 };
            let (old, owed) = (self.keys[at].load(SeqCst), self.buckets[at].load(Relaxed));
            if old != key && self.keys[at].compare_exchange(old, key, SeqCst, SeqCst).is_ok() {
                // A full bucket, unless somebody has taken from it already: what they see of it is never too much.
                if owed > now {
                    let _ = self.buckets[at].compare_exchange(owed, now, Relaxed, Relaxed);
                }
                return self.first_of(key, at);
            }
            if let Some(at) = self.find(key) {
                return at;
            }
        }
    }

    /// Of two places that a key got at once, the first counts, and knows what was taken of the other.
    fn first_of(&self, key: u64, own: usize) -> usize {
        match self.find(key) {
            Some(first) if first < own => {
                let _ = self.keys[own].compare_exchange(key, 0, SeqCst, SeqCst);
                first
            }
            _ => {
                for other in own + 1..ROW {
                    if self.keys[other].load(SeqCst) == key {
                        self.buckets[own].fetch_max(self.buckets[other].load(Relaxed), Relaxed);
                        let _ = self.keys[other].compare_exchange(key, 0, SeqCst, SeqCst);
                    }
                }
                own
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::time::Duration;

    use super::super::gcra::SECOND;
    use super::*;

    fn key(table: &Table, of: u64) -> u64 {
        let mut hasher = table.hasher();
        hasher.write_u64(of);
        Table::key(&hasher)
    }

    const SPENT: u64 = u64::MAX;
    const SHARED: u64 = u64::MAX;

    fn rate(burst: u32) -> Rate {
        Rate::new(1, Duration::from_hours(1), burst)
    }

    #[test]
    fn keys_have_buckets_of_their_own() {
        let (table, rate) = (Table::new(1000), rate(2));
        let (a, b) = (key(&table, 1), key(&table, 2));
        assert!(table.look(a, &rate, SECOND).fits);
        assert_eq!([true, true, false], [(); 3].map(|()| table.take(a, &rate, SECOND).fits));
        assert!(!table.look(a, &rate, SECOND).fits && table.look(b, &rate, SECOND).fits);
        table.put_back(a, &rate);
        assert!(table.take(a, &rate, SECOND).fits && !table.take(a, &rate, SECOND).fits);
    }

    #[test]
    fn no_more_places_than_asked_and_pages_as_they_are_used() {
        for (max, places) in [(1, 1), (7, 7), (8, 8), (100, 96), (100_000, 100_000)] {
            let table = Table::new(max);
            assert_eq!(table.rows * table.places, places);
            assert!(table.pages.iter().all(|page| page.get().is_none()));
        }
        assert_eq!(size_of::<Row>(), 16 * ROW);
        let table = Table::new(100_000);
        for n in 1..=10 {
            table.take(key(&table, n), &rate(1), SECOND);
        }
        assert!(table.pages.iter().filter(|page| page.get().is_some()).count() <= 10);
    }

    /// One row, in which there are more keys than places.
    #[test]
    fn who_has_used_up_a_limit_is_forgotten_last() {
        let (table, rate) = (Table::new(8), rate(3));
        let spent = key(&table, SPENT);
        while table.take(spent, &rate, SECOND).fits {}
        for flood in 0..10_000 {
            assert!(table.take(key(&table, flood), &rate, SECOND).fits, "each is new");
        }
        assert!(!table.look(spent, &rate, SECOND).fits, "it was not washed away");
    }

    #[test]
    fn a_full_bucket_is_forgotten_before_all_others() {
        let (table, rate) = (Table::new(2), Rate::new(1, Duration::from_secs(1), 1));
        let keys = [1, 2, 3].map(|n| key(&table, n));
        assert!(table.take(keys[0], &rate, SECOND).fits);
        assert!(table.take(keys[1], &rate, SECOND * 3 / 2).fits);
        assert!(table.take(keys[2], &rate, SECOND * 2).fits);
        assert!(!table.look(keys[1], &rate, SECOND * 2).fits, "not full yet, so kept");
        assert!(!table.look(keys[2], &rate, SECOND * 2).fits);
    }

    /// Threads on a few keys that all have room: each key's bucket gives what it has, and one more or less
    /// per thread at most.
    #[test]
    fn many_threads_share_each_bucket() {
        const THREADS: usize = 8;
        const KEYS: u64 = 64;
        let (table, rate) = (Table::new(4096), rate(50));
        let keys: Vec<u64> = (0..KEYS).map(|n| key(&table, n)).collect();
        let passed: Vec<AtomicU64> = (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..60 {
                        for (key, passed) in keys.iter().zip(&passed) {
                            if table.take(*key, &rate, SECOND).fits {
                                passed.fetch_add(1, Relaxed);
                            }
                        }
                    }
                });
            }
        });
        for passed in passed {
            let passed = passed.into_inner();
            let most = THREADS as u64;
            assert!((50 - most..=50 + most).contains(&passed), "{passed}");
        }
    }

    /// A row that is fought for: no key is left with two places, and who has used up the limit keeps that.
    #[test]
    fn threads_that_fight_for_places_leave_each_key_one() {
        const THREADS: u64 = 8;
        let (table, rate) = (Table::new(8), rate(5));
        let start = Barrier::new(THREADS as usize);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (table, rate, start) = (&table, &rate, &start);
                scope.spawn(move || {
                    start.wait();
                    for n in 0..2_000 {
                        // New keys of its own, and one that all share.
                        table.take(key(table, thread * 10_000 + n), rate, SECOND);
                        table.take(key(table, SHARED), rate, SECOND);
                    }
                });
            }
        });
        let row = table.row(1, false).expect("it was used");
        let mut keys: Vec<u64> = row.keys.iter().map(|k| k.load(SeqCst)).filter(|k| *k != 0).collect();
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), count, "no key has two places once all is quiet");
        assert!(!table.look(key(&table, SHARED), &rate, SECOND).fits);
    }
}
