//! A token bucket in one word: the generic cell rate algorithm.
//!
//! The word holds the time at which the bucket will be full again (the "theoretical arrival time" of ITU-T I.371). A
//! request moves it on by what one token takes to come back, unless that would put it further ahead than a full bucket
//! takes to fill. Threads agree by compare-exchange, so that every decision is one of some order: whatever their number, no
//! more is let pass than one bucket lets pass.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Units of time in a nanosecond. The time that a token takes is rounded up to a unit, so that a rate is never exceeded, and
/// missed by less than 0.01 % up to a million requests per second. The clock lasts 36 years.
const UNITS: u64 = 16;

/// Units in a second.
pub(super) const SECOND: u64 = 1_000_000_000 * UNITS;

/// A time since some beginning, in units.
pub(super) fn units(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).map_or(u64::MAX, |nanos| nanos.saturating_mul(UNITS))
}

/// How fast tokens come back, and how many there are at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// Units that a token takes.
    token: u64,
    /// Units that an empty bucket takes to fill.
    full: u64,
}

/// A bucket after a request was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Whether the request fitted.
    pub fits: bool,
    /// Whole tokens that are left.
    pub left: u64,
    /// Units until the bucket is full.
    pub until_full: u64,
    /// Units until there is a token.
    pub until_token: u64,
}

impl Rate {
    pub fn new(tokens: u32, interval: Duration, burst: u32) -> Self {
        // The longest time that is kept apart: beyond a century a bucket holds less than was asked.
        const LONGEST: u64 = u64::MAX / 4;
        let token = units(interval).div_ceil(u64::from(tokens.max(1))).clamp(1, LONGEST);
        Self { token, full: token.saturating_mul(u64::from(burst.max(1))).clamp(token, LONGEST) }
    }

    /// What a bucket says of a request at `now`; takes nothing.
    pub fn look(&self, full_at: u64, now: u64) -> Level {
        let owed = full_at.saturating_sub(now);
        match self.full.checked_sub(owed + self.token) {
            Some(rest) => self.level(true, owed + self.token, rest),
            None => self.level(false, owed, self.full.saturating_sub(owed)),
        }
    }

    /// Takes a token if there is one. `None` if another thread was faster.
    pub fn try_take(&self, bucket: &AtomicU64, now: u64) -> Option<Level> {
        let full_at = bucket.load(Relaxed);
        let level = self.look(full_at, now);
        if !level.fits {
            return Some(level);
        }
        let next = full_at.max(now) + self.token;
        bucket.compare_exchange(full_at, next, Relaxed, Relaxed).ok().map(|_| level)
    }

    /// Takes a token if there is one.
    pub fn take(&self, bucket: &AtomicU64, now: u64) -> Level {
        loop {
            if let Some(level) = self.try_take(bucket, now) {
                return level;
            }
        }
    }

    /// Puts a token back that was taken for a request which does not pass after all.
    pub fn put_back(&self, bucket: &AtomicU64) {
        let back = |full_at: u64| Some(full_at.saturating_sub(self.token));
        let _ = bucket.fetch_update(Relaxed, Relaxed, back);
    }

    fn level(&self, fits: bool, owed: u64, rest: u64) -> Level {
        Level {
            fits,
            left: rest / self.token,
            until_full: owed,
            until_token: if fits { 0 } else { self.token - rest.min(self.token) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;

    fn rate(tokens: u32, per: Duration, burst: u32) -> Rate {
        Rate::new(tokens, per, burst)
    }

    #[test]
    fn a_bucket_says_what_is_left_and_how_long_it_takes() {
        let rate = rate(10, Duration::from_secs(1), 3);
        let bucket = AtomicU64::new(0);
        let at = |millis| SECOND / 1000 * millis;
        let tell =
            |level: Level| (level.fits, level.left, level.until_full / (SECOND / 1000), level.until_token);
        assert_eq!(tell(rate.take(&bucket, at(5))), (true, 2, 100, 0));
        assert_eq!(tell(rate.take(&bucket, at(5))), (true, 1, 200, 0));
        assert_eq!(tell(rate.take(&bucket, at(5))), (true, 0, 300, 0));
        assert_eq!(tell(rate.take(&bucket, at(5))), (false, 0, 300, at(100)));
        assert_eq!(tell(rate.take(&bucket, at(65))), (false, 0, 240, at(40)));
        assert_eq!(tell(rate.take(&bucket, at(105))), (true, 0, 300, 0));
        rate.put_back(&bucket);
        assert_eq!(tell(rate.take(&bucket, at(105))), (true, 0, 300, 0));
        assert_eq!(tell(rate.take(&bucket, at(10_000))), (true, 2, 100, 0), "it was full long ago");
    }

    #[test]
    fn rounding_never_exceeds_a_rate_and_hardly_misses_it() {
        for (tokens, per, most) in
            [(3, 1, 1e-9), (7_777, 1, 1e-6), (999_999, 1, 1e-4), (1_000_000_000, 1, 1e-9)]
        {
            let rate = rate(tokens, Duration::from_secs(per), 1);
            let exact = (SECOND * per) as f64 / f64::from(tokens);
            let off = (rate.token as f64 - exact) / exact;
            assert!((0.0..=most).contains(&off), "{tokens}/{per}s: {off}");
        }
    }

    #[test]
    fn what_cannot_be_kept_apart_is_bounded() {
        let rate = rate(1, Duration::from_hours(24 * 365 * 200), u32::MAX);
        assert!(rate.full >= rate.token);
        let bucket = AtomicU64::new(0);
        assert!(rate.take(&bucket, 0).fits);
        let _ = rate.take(&bucket, u64::MAX / 2);
    }

    proptest! {
        /// The contract of GCRA, read off a list of all that was let pass: in no stretch of time do more pass than a full
        /// bucket and what comes back in that time; and a request is refused only if it would be one too many.
        #[test]
        fn no_stretch_of_time_has_too_many(
            tokens in 1u32..20, millis in 1u64..500, burst in 1u32..8,
            pauses in proptest::collection::vec(0u64..400, 1..60),
        ) {
            let rate = rate(tokens, Duration::from_millis(millis), burst);
            let bucket = AtomicU64::new(0);
            let mut now = 1_000 * SECOND;
            let mut passed: Vec<u64> = Vec::new();
            for pause in pauses {
                now += pause * (SECOND / 1000);
                let fits = (0..passed.len()).all(|from| {
                    let with_this = (passed.len() - from + 1) as u64;
                    with_this * rate.token <= rate.full + (now - passed[from])
                });
                let level = rate.take(&bucket, now);
                prop_assert_eq!(level.fits, fits);
                if fits {
                    passed.push(now);
                } else {
                    prop_assert!(level.until_token > 0 && rate.look(bucket.load(Relaxed), now + level.until_token).fits);
                    prop_assert!(!rate.look(bucket.load(Relaxed), now + level.until_token - 1).fits);
                }
                prop_assert_eq!(level.until_full, bucket.load(Relaxed).saturating_sub(now));
            }
        }
    }

    /// Threads that ask all the time, each at the time that a shared clock says: together they get what one bucket gives in
    /// that time, to the token.
    #[test]
    fn many_threads_get_what_one_would() {
        const THREADS: usize = 8;
        const ASKED: u64 = 20_000;
        let (step, rate) = (SECOND / 1000, rate(100, Duration::from_secs(1), 500));
        let (bucket, clock) = (AtomicU64::new(0), AtomicU64::new(SECOND));
        let passed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..ASKED {
                        let now = clock.fetch_add(step, Ordering::Relaxed);
                        if rate.take(&bucket, now).fits {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let end = clock.load(Ordering::Relaxed);
        while rate.take(&bucket, end).fits {
            passed.fetch_add(1, Ordering::Relaxed);
        }
        // Ten asked for every token, so that the bucket was never full again after the first.
        let back = (end - SECOND) / rate.token;
        let passed = passed.load(Ordering::Relaxed);
        assert!((500 + back - 1..=500 + back).contains(&passed), "{passed} of {}", 500 + back);
    }
}
