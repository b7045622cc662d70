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
//! **Minimal.** When one backend's share rises and the others keep their proportions (any ramp between two backends, and
//! any ramp of one among several), all moves go to it and to nowhere else, so exactly the difference of its shares moves,
//! and no assignment can do with less. When several proportions change at once, no assignment that looks only at the
//! user and the present weights can be minimal for every pair of weights: with three backends the users of each would
//! have to depend on its own share alone and grow with it; then those of the second at `x` and those of the third at `x`
//! are both what the first leaves at `1 - x`, which contradicts the shares 0, 1/2, 1/2. Rendezvous hashing then still
//! moves users only towards relatively raised backends.
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
