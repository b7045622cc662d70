//! Latencies in fixed buckets: 32 to each power of two, so that a percentile is within about three percent.

use std::time::Duration;

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;

/// Counts of durations by magnitude.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let bucket = bucket(duration.as_micros() as u64);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    /// The counts since an earlier state of this one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = earlier.buckets.iter().chain(std::iter::repeat(&0));
        let buckets = self.buckets.iter().zip(before).map(|(now, before)| now - before).collect();
        Self { buckets, count: self.count - earlier.count }
    }

    /// The microseconds that a share (0 to 1) of all durations stays within; 0 when nothing was recorded.
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                return upper(index);
            }
        }
        0
    }
}

/// Values below `SUB` have a bucket each; above, the leading bits choose it.
fn bucket(micros: u64) -> usize {
    let shift = (64 - micros.leading_zeros()).saturating_sub(SUB_BITS + 1);
    (u64::from(shift) * SUB + (micros >> shift)) as usize
}

fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / SUB).saturating_sub(1);
    ((bucket - shift * SUB + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_value_within_a_thirty_second() {
        for micros in (0..100_000).chain([1 << 20, 1 << 30, (1 << 40) + 12345]) {
            let upper = upper(bucket(micros));
            assert!(upper >= micros, "{micros} is above its bucket's end {upper}");
            assert!(upper - micros <= micros / SUB, "{micros} is far below its bucket's end {upper}");
        }
    }

    #[test]
    fn percentiles_of_one_to_a_hundred() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(0.5), 0);
        (1..=100).for_each(|millis| histogram.record(Duration::from_millis(millis)));
        assert!((49_000..52_000).contains(&histogram.percentile(0.5)));
        assert!((99_000..103_000).contains(&histogram.percentile(0.99)));
    }
}
