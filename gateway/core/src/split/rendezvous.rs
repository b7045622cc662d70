//! Placing a user on a backend by weighted rendezvous hashing, so that a change of weights moves as few as possible.
//!
//! For every backend `i` the user has a number `u_i`, uniform in (0, 1): the XXH64 of the key, seeded by the XXH64 of the
//! backend's name, seeded by the XXH64 of the rule's id. The backend with the least `-log2(u_i) / w_i` has the user.
//! `-ln(u_i)` is exponentially distributed, and among exponentials of rates `w_i` the `i`-th is least with probability
//! `w_i / W`: shares are as the weights.
//!
//! **Monotone.** A user goes from `a` to `b` only if `b`'s weight rose relative to `a`'s. For let `p` be the weights
//! before and `q` after, and `L` the logarithms. Being on `a` means `L_a p_b <= L_b p_a`, being on `b` afterwards means
//! `L_b q_a <= L_a q_b`; multiplied, `p_b q_a <= p_a q_b`. With equality both comparisons are the same one, ties
//! included, and the user would not have moved. So from 90/10 to 75/25 users go to the second only, and a ramp from 0 to
//! 100 never moves anyone back. The logarithms are integers and compared by exact products, so this holds for every
//! user, not up to rounding.
//!
//! **Minimal.** When one backend's share rises or falls and the others keep their proportions (any ramp between two
//! backends, and any ramp of one among several), every move goes to it or comes from it, so exactly the difference of
//! its shares moves, and no assignment can do with less. When weight goes from one of three to another and the third
//! keeps its share, some users of the third move too. No assignment that looks only at user and weights avoids it: the
//! third's users would have to be a set `A_3(x)` that depends on nothing but its share `x`, and likewise for the others;
//! where one backend has nothing the other two complement each other, so `A_2(x)` and `A_3(x)` are both the complement of
//! `A_1(1 - x)`, thus equal; but with shares 0, 1/2, 1/2 they must be disjoint. Even then users move only towards
//! backends that were raised relatively to theirs.
//!
//! No state, no ring, and nothing depends on the order of backends.

use super::hash::xxh64;

/// The backends of a rule with the seeds of their hashes.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    /// Those with a weight, by name, so that a tie does not depend on the order in the rule.
    candidates: Vec<Candidate>,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    backend: usize,
    seed: u64,
    weight: u32,
}

impl Rendezvous {
    /// For the backends' names and weights; names must differ.
    pub fn new<'a>(rule_id: &str, backends: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let salt = xxh64(rule_id.as_bytes(), 0);
        let mut named: Vec<_> = backends.enumerate().filter(|(_, (_, weight))| *weight > 0).collect();
        named.sort_by_key(|(_, (name, _))| *name);
        let candidate = |(backend, (name, weight)): (usize, (&str, u32))| Candidate {
            backend,
            seed: xxh64(name.as_bytes(), salt),
            weight,
        };
        Self { candidates: named.into_iter().map(candidate).collect() }
    }

    /// The backend of the user with this key; `None` if no backend has a weight.
    pub fn place(&self, key: &[u8]) -> Option<usize> {
        let (first, rest) = self.candidates.split_first()?;
        if rest.is_empty() {
            return Some(first.backend);
        }
        let mut best = (first, minus_log2(xxh64(key, first.seed)));
        for candidate in rest {
            let log = minus_log2(xxh64(key, candidate.seed));
            // log / weight < best, without dividing.
            if u128::from(log) * u128::from(best.0.weight) < u128::from(best.1) * u128::from(candidate.weight)
            {
                best = (candidate, log);
            }
        }
        Some(best.0.backend)
    }
}

/// `-log2((hash + 1/2) / 2^64)` in units of `2^-50`.
///
/// By IEEE additions, multiplications and divisions only, which every machine rounds alike; a platform's `ln` would not
/// do. The relative error is a few units in the 53rd bit.
fn minus_log2(hash: u64) -> u64 {
    const UNIT: f64 = (1u64 << 50) as f64;
    // With the half unit added, `hash` 0 has a logarithm too. In 65 bits: 2 * hash + 1.
    let odd = (u128::from(hash) << 1) | 1;
    let exponent = odd.ilog2();
    // The leading 53 bits as a number in [1, 2), then in [1/sqrt 2, sqrt 2).
    let leading = if exponent > 52 { odd >> (exponent - 52) } else { odd << (52 - exponent) } as u64;
    let mut mantissa = leading as f64 / (1u64 << 52) as f64;
    let mut power = f64::from(exponent) - 65.0;
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        power += 1.0;
    }
    // ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.172: twelve terms reach beyond 53 bits.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for k in (0..12u32).rev() {
        series = series * square + 1.0 / f64::from(2 * k + 1);
    }
    let log2 = power + 2.0 * s * series * std::f64::consts::LOG2_E;
    // Truncation brings a value that rounding made barely negative to 0.
    (-log2 * UNIT) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("Pool default/p{i}")).collect()
    }

    fn rendezvous(rule: &str, weights: &[u32]) -> Rendezvous {
        let names = names(weights.len());
        Rendezvous::new(rule, names.iter().map(String::as_str).zip(weights.iter().copied()))
    }

    /// Where the first `n` users are.
    fn place(rule: &str, weights: &[u32], n: u32) -> Vec<usize> {
        let rendezvous = rendezvous(rule, weights);
        (0..n).map(|u| rendezvous.place(format!("user-{u}").as_bytes()).unwrap()).collect()
    }

    /// Whether a count is within five standard deviations of a binomial distribution.
    fn plausible(count: usize, n: u32, p: f64) -> bool {
        let (n, count) = (f64::from(n), count as f64);
        (count - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt() + 1.0
    }

    #[test]
    fn logarithms_are_right() {
        for hash in [0, 1, 2, 1 << 20, 1 << 52, (1 << 53) + 1, u64::MAX / 3, 1 << 63, u64::MAX - 1, u64::MAX]
        {
            let exact = -((hash as f64 + 0.5).log2() - 64.0);
            let ours = minus_log2(hash) as f64 / (1u64 << 50) as f64;
            assert!((exact - ours).abs() <= 1e-14 * exact.max(1.0), "{hash}: {ours}, not {exact}");
        }
    }

    /// Pins the placement, as another program computed it: a change moves users of everybody who upgrades.
    #[test]
    fn placement_is_frozen() {
        assert_eq!(minus_log2(1 << 63), 1 << 50);
        assert_eq!(minus_log2(0), 65 << 50);
        let two = [0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1];
        assert_eq!(place("default/shop", &[75, 25], 24), two);
        let three = [2, 1, 2, 1, 1, 0, 1, 1, 1, 2, 0, 0, 0, 2, 0, 2, 2, 2, 2, 0, 2, 2, 1, 1];
        assert_eq!(place("default/shop", &[20, 30, 50], 24), three);
    }

    #[test]
    fn shares_are_as_the_weights() {
        let n = 50_000;
        for weights in [&[90, 10][..], &[1, 99], &[33, 33, 34], &[1000, 1, 500, 20, 0, 479]] {
            let total: u32 = weights.iter().sum();
            let placed = place("default/shop", weights, n);
            for (at, weight) in weights.iter().enumerate() {
                let count = placed.iter().filter(|b| **b == at).count();
                assert!(
                    plausible(count, n, f64::from(*weight) / f64::from(total)),
                    "{weights:?}: {count} on {at}"
                );
            }
        }
    }

    #[test]
    fn rules_do_not_correlate() {
        let n = 20_000;
        let (a, b) = (place("default/shop", &[50, 50], n), place("default/cart", &[50, 50], n));
        let both = a.iter().zip(&b).filter(|(a, b)| **a == 1 && **b == 1).count();
        assert!(plausible(both, n, 0.25), "{both}");
    }

    #[test]
    fn order_means_nothing() {
        let names = names(3);
        let weights = [5, 3, 2];
        let forward = Rendezvous::new("r", names.iter().map(String::as_str).zip(weights));
        let backward = Rendezvous::new("r", names.iter().map(String::as_str).zip(weights).rev());
        for user in 0..1000u32 {
            let key = user.to_le_bytes();
            assert_eq!(forward.place(&key).unwrap(), 2 - backward.place(&key).unwrap());
        }
    }

    #[test]
    fn nobody_has_users_without_a_weight() {
        assert_eq!(rendezvous("r", &[0, 0]).place(b"u"), None);
        assert_eq!(rendezvous("r", &[0, 7]).place(b"u"), Some(1));
    }

    #[test]
    fn a_ramp_moves_nobody_back_and_no_more_than_needed() {
        let n = 20_000;
        for third in [0, 37] {
            let mut before = place("default/shop", &[100, 0, third], n);
            for percent in (5..=100u32).step_by(5) {
                // The two share what the third leaves; the third's part of the whole stays.
                let now = place("default/shop", &[100 - percent, percent, third], n);
                for (user, (from, to)) in before.iter().zip(&now).enumerate() {
                    assert!(
                        from == to || (*from, *to) == (0, 1) || third > 0 && *from != 1 && *to != 0,
                        "user-{user}: {from} to {to}"
                    );
                }
                if third == 0 {
                    let moved = before.iter().zip(&now).filter(|(a, b)| a != b).count();
                    assert!(plausible(moved, n, 0.05), "{moved} moved at {percent} %");
                }
                before = now;
            }
            assert!(before.iter().all(|b| *b != 0));
        }
    }

    proptest! {
        /// Users go only to backends that were raised relatively to where they were.
        #[test]
        fn moves_follow_relative_weights(
            weights in prop::collection::vec((0..1000u32, 0..1000u32), 2..8)
                .prop_filter("some weight", |w| w.iter().any(|w| w.0 > 0) && w.iter().any(|w| w.1 > 0)),
        ) {
            let (before, after): (Vec<u32>, Vec<u32>) = weights.iter().copied().unzip();
            for (from, to) in place("r", &before, 500).into_iter().zip(place("r", &after, 500)) {
                let raised = u64::from(after[to]) * u64::from(before[from]) > u64::from(before[to]) * u64::from(after[from]);
                prop_assert!(from == to || raised, "{} to {}", from, to);
            }
        }

        /// One raised, all others in proportion: all moves go to it.
        #[test]
        fn raising_one_moves_only_to_it(
            mut weights in prop::collection::vec(1..1000u32, 2..8),
            by in 1..1000u32,
            scale in 1..1000u32,
        ) {
            let before = place("r", &weights, 500);
            weights[0] += by;
            for weight in &mut weights {
                *weight *= scale;
            }
            for (from, to) in before.into_iter().zip(place("r", &weights, 500)) {
                prop_assert!(from == to || to == 0);
            }
        }
    }
}
