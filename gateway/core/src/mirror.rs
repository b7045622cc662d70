//! Which requests a mirror gets a copy of: an exact share over time, in a deterministic order.
//!
//! The shares are those of a split between "copied" and "not copied", so they keep a split's bounds: after any number of
//! requests a mirror has had its share to within a half, per worker. Where a copy goes and what becomes of it is not
//! known here.

use std::sync::Arc;

use crate::ir;
use crate::split::hash::xxh64;
use crate::split::sequence::{Sequence, SequenceState};

/// A mirror of a rule or of one of its backends, ready to choose.
#[derive(Clone, Debug)]
pub struct CompiledMirror {
    /// What it was compiled from.
    pub ir: Arc<ir::Mirror>,
    /// The slot of the pool that gets the copies, or why there is none: then nothing is copied (Gateway API).
    pub pool: Result<u32, Arc<str>>,
    /// Its number among the mirrors of its rule.
    pub place: u32,
    sequence: Sequence,
    fingerprint: u64,
}

/// What a worker remembers of a mirror. It belongs to the rule's slot and the mirror's place, and starts anew by itself
/// when it meets another mirror there.
#[derive(Clone, Debug, Default)]
pub struct MirrorState {
    fingerprint: u64,
    sequence: SequenceState,
}

impl CompiledMirror {
    /// Prepares the mirror that is number `place` in the rule `rule_id`.
    pub fn new(ir: Arc<ir::Mirror>, pool: Result<u32, Arc<str>>, rule_id: &str, place: u32) -> Self {
        let copied = ir.numerator.min(ir.denominator);
        let target = match &ir.backend {
            ir::BackendTarget::Pool(key) => key.to_string(),
            ir::BackendTarget::Invalid(_) => String::new(),
        };
        let seed = xxh64(target.as_bytes(), xxh64(rule_id.as_bytes(), u64::from(place)));
        let share = u64::from(ir.numerator) << 32 | u64::from(ir.denominator);
        Self {
            sequence: Sequence::new([copied, ir.denominator - copied].into_iter()),
            // 0 is what a new state has.
            fingerprint: xxh64(&share.to_le_bytes(), seed).max(1),
            ir,
            pool,
            place,
        }
    }

    /// Whether this request is copied. To be asked once for each.
    pub fn takes(&self, state: &mut MirrorState) -> bool {
        if let Some(only) = self.sequence.only() {
            return only == 0;
        }
        if state.fingerprint != self.fingerprint {
            *state = MirrorState { fingerprint: self.fingerprint, sequence: SequenceState::default() };
        }
        self.sequence.next(&mut state.sequence) == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(rule: &str, numerator: u32, denominator: u32) -> CompiledMirror {
        let object = ir::ObjectKey { kind: "Pool", namespace: "default".into(), name: "shadow".into() };
        let backend = ir::BackendTarget::Pool(ir::PoolKey { object, port: 0 }.into());
        CompiledMirror::new(Arc::new(ir::Mirror { backend, numerator, denominator }), Ok(0), rule, 0)
    }

    fn taken(mirror: &CompiledMirror, state: &mut MirrorState, requests: usize) -> usize {
        (0..requests).filter(|_| mirror.takes(state)).count()
    }

    #[test]
    fn all_and_none_need_no_memory() {
        let mut state = MirrorState::default();
        assert_eq!(taken(&mirror("r", 1, 1), &mut state, 10), 10);
        assert_eq!(taken(&mirror("r", 100, 100), &mut state, 10), 10);
        assert_eq!(taken(&mirror("r", 0, 100), &mut state, 10), 0);
        assert_eq!(state.fingerprint, 0);
    }

    #[test]
    fn a_share_is_exact_at_every_moment() {
        for (numerator, denominator) in [(25, 100), (1, 3), (999, 1000), (1, i32::MAX as u32)] {
            let mirror = mirror("r", numerator, denominator);
            let mut state = MirrorState::default();
            let mut count = 0u32;
            for n in 1..=5000u32 {
                count += u32::from(mirror.takes(&mut state));
                let exact = f64::from(n) * f64::from(numerator) / f64::from(denominator);
                assert!((f64::from(count) - exact).abs() <= 0.5, "{numerator}/{denominator}: {count} of {n}");
            }
        }
    }

    #[test]
    fn an_equal_mirror_goes_on_and_another_starts_anew() {
        let mut state = MirrorState::default();
        // One of four: the second, the sixth, ...
        assert_eq!(taken(&mirror("r", 1, 4), &mut state, 1), 0);
        assert_eq!(taken(&mirror("r", 1, 4), &mut state, 1), 1);
        assert_eq!(taken(&mirror("other", 1, 4), &mut state, 1), 0);
        assert_eq!(taken(&mirror("other", 1, 4), &mut state, 1), 1);
    }
}
