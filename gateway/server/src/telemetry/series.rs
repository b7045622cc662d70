//! Counts kept on a worker and the process-wide sums that they are poured into.
//!
//! Histograms live here and not in the `metrics` recorder because that one keeps every sample until the next scrape;
//! a gateway has a hundred thousand a second. Here a histogram is a fixed array, and a flush is one addition per bucket.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets, without the last, infinite one.
pub type Bounds = &'static [f64];

/// The most bounds that a histogram may have.
pub const MAX_BOUNDS: usize = 20;

/// A histogram that workers share by pouring their [`LocalHistogram`] into it.
#[derive(Debug)]
pub struct Histogram {
    bounds: Bounds,
    buckets: [AtomicU64; MAX_BOUNDS + 1],
    // In the unit of the local sums, so that it is exact.
    sum: AtomicU64,
    scale: f64,
}

impl Histogram {
    /// An empty one. `scale` turns the integers that are recorded into the unit of the bounds.
    pub fn new(bounds: Bounds, scale: f64) -> Self {
        assert!(bounds.len() <= MAX_BOUNDS, "{} bounds are more than {MAX_BOUNDS}", bounds.len());
        Self { bounds, buckets: Default::default(), sum: AtomicU64::new(0), scale }
    }

    /// The bounds with the number of values at or below each, then all values, and their sum.
    pub fn cumulative(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut total = 0;
        let mut rows = Vec::with_capacity(self.bounds.len());
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            total += bucket.load(Relaxed);
            rows.push((*bound, total));
        }
        total += self.buckets[self.bounds.len()].load(Relaxed);
        (rows, total, self.sum.load(Relaxed) as f64 * self.scale)
    }
}

/// A worker's part of a [`Histogram`] since its last flush.
#[derive(Debug, Default)]
pub struct LocalHistogram {
    buckets: [Cell<u32>; MAX_BOUNDS + 1],
    sum: Cell<u64>,
}

impl LocalHistogram {
    /// Adds a value, given in the unit that `scale` of `shared` expects.
    pub fn record(&self, shared: &Histogram, value: u64) {
        let scaled = value as f64 * shared.scale;
        let at = shared.bounds.iter().position(|bound| scaled <= *bound).unwrap_or(shared.bounds.len());
        self.buckets[at].set(self.buckets[at].get() + 1);
        self.sum.set(self.sum.get().saturating_add(value));
    }

    /// Pours everything into the shared one.
    pub fn flush(&self, shared: &Histogram) {
        for (local, total) in self.buckets.iter().zip(&shared.buckets) {
            let count = local.take();
            if count > 0 {
                total.fetch_add(u64::from(count), Relaxed);
            }
        }
        let sum = self.sum.take();
        if sum > 0 {
            shared.sum.fetch_add(sum, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_land_at_or_below_their_bound_and_the_sum_is_exact() {
        let shared = Histogram::new(&[1.0, 5.0], 0.001);
        let local = LocalHistogram::default();
        for value in [1000, 1001, 5000, 9000] {
            local.record(&shared, value);
        }
        assert_eq!(shared.cumulative().1, 0, "nothing is shared before a flush");
        local.flush(&shared);
        local.flush(&shared);
        assert_eq!(shared.cumulative(), (vec![(1.0, 1), (5.0, 3)], 4, 16.001));
    }
}
