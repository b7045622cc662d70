//! Whose turn it is: a deterministic sequence in which every backend's count is exact at every moment.
//!
//! After any `n` requests from its start, each of `k` backends of weights `w_i` (sum `W`) has had `n w_i / W` requests to
//! within `1 - 1/(2k - 2)`: a half for two backends, less than one for any number. This is R. Tijdeman's solution of the
//! chairman assignment problem (Discrete Mathematics 32, 1980), which also shows that no sequence can do better for
//! every set of weights. In any window of requests, wherever it begins, the count is within twice that. After `W` requests
//! (of weights divided by their greatest common divisor) counts are equal to weights, and the sequence starts again.
//!
//! A sequence belongs to one worker, and every worker starts at the beginning: over `m` workers the sum is exact to
//! within `m` times the bound.

use smallvec::SmallVec;

/// Weights, ready to take turns.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Divided by their greatest common divisor.
    weights: SmallVec<[u32; 4]>,
    total: u64,
    /// `2k - 2` over the backends that have a weight.
    scale: u64,
    only: Option<usize>,
    divisor: u32,
}

/// Where a worker is in a sequence.
#[derive(Clone, Debug, Default)]
pub struct SequenceState {
    /// Requests of the present round.
    requests: u64,
    /// By backend.
    counts: SmallVec<[u32; 4]>,
}

impl Sequence {
    /// For these weights.
    pub fn new(weights: impl Iterator<Item = u32>) -> Self {
        let mut weights: SmallVec<[u32; 4]> = weights.collect();
        let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
        weights.iter_mut().for_each(|w| *w /= divisor);
        let some = weights.iter().filter(|w| **w > 0).count();
        let only = if some == 1 { weights.iter().position(|w| *w > 0) } else { None };
        Self {
            total: weights.iter().map(|w| u64::from(*w)).sum(),
            scale: (2 * some as u64).saturating_sub(2),
            weights,
            only,
            divisor,
        }
    }

    /// Whether nobody has a weight.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The backend that has all the weight.
    pub fn only(&self) -> Option<usize> {
        self.only
    }

    /// A backend's weight as it was given.
    pub fn weight(&self, backend: usize) -> u32 {
        self.weights[backend] * self.divisor
    }

    /// The sum of the weights as they were given.
    pub fn total(&self) -> u64 {
        self.total * u64::from(self.divisor)
    }

    /// The next one; `None` if nobody has a weight. The state must be new or come from an equal sequence.
    pub fn next(&self, state: &mut SequenceState) -> Option<usize> {
        if self.only.is_some() || self.total == 0 {
            return self.only;
        }
        state.counts.resize(self.weights.len(), 0);
        let request = state.requests + 1;
        let next = self.due(&state.counts, request)?;
        state.counts[next] += 1;
        state.requests = request;
        if request == self.total {
            state.requests = 0;
            state.counts.fill(0);
        }
        Some(next)
    }

    /// Among those that would not get ahead of their share by more than the bound, the one that would first fall
    /// behind by more than it. Both conditions are multiplied out to integers.
    fn due(&self, counts: &[u32], request: u64) -> Option<usize> {
        let scale = u128::from(self.scale);
        let total = u128::from(self.total);
        let mut due: Option<(usize, u128, u128)> = None;
        for (at, (weight, count)) in self.weights.iter().zip(counts).enumerate() {
            let (weight, count) = (u128::from(*weight), u128::from(*count));
            // request * weight / total - count >= 1 / scale; never so for a weight of 0.
            if weight * u128::from(request) * scale < total * (count * scale + 1) {
                continue;
            }
            // (count + 1 - 1 / scale) * total / weight, the last request that may go elsewhere, as numerator and denominator.
            let deadline = (count + 1) * scale - 1;
            if due.is_none_or(|(_, d, w)| deadline * w < d * weight) {
                due = Some((at, deadline, weight));
            }
        }
        due.map(|(at, ..)| at)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first(weights: &[u32], n: usize) -> Vec<usize> {
        let sequence = Sequence::new(weights.iter().copied());
        let mut state = SequenceState::default();
        (0..n).map_while(|_| sequence.next(&mut state)).collect()
    }

    #[test]
    fn turns_are_smooth() {
        assert_eq!(first(&[1, 1], 4), [0, 1, 0, 1]);
        assert_eq!(first(&[4, 1], 5), [0, 0, 1, 0, 0]);
        assert_eq!(first(&[90, 10], 10), [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(first(&[5, 1, 1], 7), [0, 0, 1, 0, 0, 2, 0]);
    }

    #[test]
    fn weight_zero_gets_nothing() {
        assert_eq!(first(&[0, 3, 0], 3), [1, 1, 1]);
        assert_eq!(first(&[0, 0], 3), [0usize; 0]);
        assert_eq!(first(&[], 3), [0usize; 0]);
        assert!(first(&[2, 0, 5], 1000).iter().all(|b| *b != 1));
    }

    #[test]
    fn hundred_thousand_requests_are_exact_to_within_rounding() {
        for weights in [&[90, 10][..], &[1, 99], &[33, 33, 34]] {
            let turns = first(weights, 100_000);
            for (at, weight) in weights.iter().enumerate() {
                let count = turns.iter().filter(|b| **b == at).count();
                assert_eq!(count, *weight as usize * 1000, "{weights:?}");
            }
        }
    }

    #[test]
    fn extreme_weights_do_not_overflow() {
        let turns = first(&[u32::MAX, u32::MAX - 1, 1], 10_000);
        let second = turns.iter().filter(|b| **b == 1).count();
        assert!((4999..=5001).contains(&second), "{second}");
    }

    #[test]
    fn weights_are_reported_as_given() {
        let sequence = Sequence::new([90, 10, 0].into_iter());
        assert_eq!((sequence.weight(0), sequence.weight(2), sequence.total()), (90, 0, 100));
    }

    /// `|count - n w / W| <= 1 - 1 / (2k - 2)` in integers.
    fn within_bound(weights: &[u32], counts: &[u64], n: u64, factor: i128) -> bool {
        let total: i128 = weights.iter().map(|w| i128::from(*w)).sum();
        let scale = 2 * weights.iter().filter(|w| **w > 0).count() as i128 - 2;
        weights.iter().zip(counts).all(|(w, c)| {
            let lag = i128::from(n) * i128::from(*w) - i128::from(*c) * total;
            lag.abs() * scale <= factor * total * (scale - 1).max(0) || scale == 0 && lag == 0
        })
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        let weight = prop_oneof![0..=3u32, 0..=100u32, 0..=1_000_000u32];
        prop::collection::vec(weight, 1..=16).prop_filter("some weight", |w| w.iter().any(|w| *w > 0))
    }

    proptest! {
        #[test]
        fn every_prefix_is_exact(weights in weights()) {
            let turns = first(&weights, 3000);
            prop_assert_eq!(turns.len(), 3000);
            let mut counts = vec![0; weights.len()];
            for (n, turn) in turns.iter().enumerate() {
                counts[*turn] += 1;
                prop_assert!(within_bound(&weights, &counts, n as u64 + 1, 1), "{:?} after {}", counts, n + 1);
            }
        }

        #[test]
        fn every_window_is_exact_to_twice_the_bound(weights in weights(), from in 0..2000usize, len in 1..1000usize) {
            let turns = first(&weights, from + len);
            let mut counts = vec![0; weights.len()];
            turns[from..].iter().for_each(|turn| counts[*turn] += 1);
            prop_assert!(within_bound(&weights, &counts, len as u64, 2), "{:?}", counts);
        }

        #[test]
        fn a_round_gives_each_its_weight(weights in prop::collection::vec(0..200u32, 1..=16)) {
            let total: u32 = weights.iter().sum();
            let turns = first(&weights, total as usize);
            for (at, weight) in weights.iter().enumerate() {
                prop_assert_eq!(turns.iter().filter(|b| **b == at).count(), *weight as usize);
            }
        }
    }
}
