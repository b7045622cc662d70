//! How load is divided among priorities, as Envoy does it (its pages "Priority levels", "Degraded endpoints" and "Panic
//! threshold"): a pure function of counts.
//!
//! Draining endpoints are not counted at all: who takes half of a pool out of service on purpose has not made it sick.

/// The endpoints of a priority, but for those that drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All.
    pub total: u32,
    /// Those that can be chosen without a second thought.
    pub healthy: u32,
    /// Those that can be chosen if the healthy ones do not suffice.
    pub degraded: u32,
    /// Those that do not count towards a panic: healthy and degraded ones, and those that are left alone on a guess only.
    pub sound: u32,
}

/// Percentages, by priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// For healthy endpoints.
    pub healthy: Vec<u32>,
    /// For degraded endpoints.
    pub degraded: Vec<u32>,
    /// Where health is ignored.
    pub panic: Vec<bool>,
}

/// All loads add up to 100, or to 0 if no endpoint can be chosen and not all priorities are in panic.
pub fn loads(counts: &[Count], overprovisioning: u32, panic_threshold: u32) -> Loads {
    let health = |n: fn(&Count) -> u32| -> Vec<u32> {
        counts.iter().map(|c| availability(n(c), c.total, overprovisioning)).collect()
    };
    let (healthy, degraded) = (health(|c| c.healthy), health(|c| c.degraded));
    let total = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    let short = |c: &Count| {
        u64::from(c.sound) * 100 < u64::from(c.total.max(1)) * u64::from(panic_threshold.min(100))
    };
    let panic: Vec<bool> = counts.iter().map(|c| total < 100 && short(c)).collect();
    if panic.iter().all(|p| *p) {
        return by_number(counts, panic);
    }
    let mut loads = Loads { healthy: vec![0; counts.len()], degraded: vec![0; counts.len()], panic };
    if total == 0 {
        return loads;
    }
    let mut rest = distribute(&healthy, total, 100, &mut loads.healthy);
    rest = distribute(&degraded, total, rest, &mut loads.degraded);
    // What rounding has left goes to the first that has any.
    if let Some(at) = healthy.iter().position(|n| *n > 0) {
        loads.healthy[at] += rest;
    } else if let Some(at) = degraded.iter().position(|n| *n > 0) {
        loads.degraded[at] += rest;
    }
    loads
}

fn availability(n: u32, total: u32, overprovisioning: u32) -> u32 {
    let percent = u64::from(overprovisioning) * u64::from(n) / u64::from(total.max(1));
    percent.min(100) as u32
}

/// As much as they can take to each, in order; returns what is left.
fn distribute(availability: &[u32], total: u32, mut rest: u32, into: &mut [u32]) -> u32 {
    for (load, available) in into.iter_mut().zip(availability) {
        *load = rest.min(available * 100 / total);
        rest -= *load;
    }
    rest
}

/// When all priorities are in panic, by how many endpoints each has.
fn by_number(counts: &[Count], panic: Vec<bool>) -> Loads {
    let total: u64 = counts.iter().map(|c| u64::from(c.total)).sum();
    let share = |c: &Count| (u64::from(c.total) * 100).checked_div(total).unwrap_or(0) as u32;
    let mut healthy: Vec<u32> = counts.iter().map(share).collect();
    if let Some(at) = counts.iter().position(|c| c.total > 0) {
        healthy[at] += 100 - healthy.iter().sum::<u32>();
    }
    Loads { degraded: vec![0; healthy.len()], healthy, panic }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(total: u32, healthy: u32, degraded: u32) -> Count {
        Count { total, healthy, degraded, sound: healthy + degraded }
    }

    /// Of 100 endpoints each, so many are healthy and degraded.
    fn check(levels: &[(u32, u32)], healthy: &[u32], degraded: &[u32], panic: &[bool]) {
        let counts: Vec<Count> = levels.iter().map(|(h, d)| count(100, *h, *d)).collect();
        let expected = Loads { healthy: healthy.into(), degraded: degraded.into(), panic: panic.into() };
        assert_eq!(loads(&counts, 140, 50), expected, "{levels:?}");
    }

    /// The tables of Envoy's documentation.
    #[test]
    fn as_documented() {
        let (no, yes) = (false, true);
        check(&[(100, 0), (100, 0)], &[100, 0], &[0, 0], &[no, no]);
        check(&[(72, 0), (100, 0)], &[100, 0], &[0, 0], &[no, no]);
        check(&[(71, 0), (100, 0)], &[99, 1], &[0, 0], &[no, no]);
        check(&[(50, 0), (100, 0)], &[70, 30], &[0, 0], &[no, no]);
        check(&[(25, 0), (100, 0)], &[35, 65], &[0, 0], &[no, no]);
        check(&[(0, 0), (100, 0)], &[0, 100], &[0, 0], &[no, no]);
        check(&[(25, 0), (25, 0)], &[50, 50], &[0, 0], &[yes, yes]);
        check(&[(5, 0), (65, 0)], &[8, 92], &[0, 0], &[yes, no]);
        check(&[(25, 0), (20, 0), (10, 0)], &[34, 33, 33], &[0, 0, 0], &[yes, yes, yes]);
        check(&[(0, 0), (0, 0), (100, 0)], &[0, 0, 100], &[0, 0, 0], &[no, no, no]);
        check(&[(0, 100), (100, 0)], &[0, 100], &[0, 0], &[no, no]);
        check(&[(50, 50)], &[70], &[30], &[no]);
        check(&[(0, 100)], &[0], &[100], &[no]);
    }

    #[test]
    fn without_a_threshold_there_is_no_panic() {
        let none = loads(&[count(5, 0, 0), count(5, 0, 0)], 140, 0);
        assert_eq!(none, Loads { healthy: vec![0, 0], degraded: vec![0, 0], panic: vec![false, false] });
        assert_eq!(loads(&[count(10, 1, 0)], 140, 0).healthy, [100]);
    }

    #[test]
    fn a_total_panic_goes_by_number() {
        assert_eq!(loads(&[count(0, 0, 0), count(1, 0, 0), count(2, 0, 0)], 140, 50).healthy, [0, 34, 66]);
        assert_eq!(loads(&[count(0, 0, 0)], 140, 50).healthy, [0]);
    }

    proptest! {
        #[test]
        fn they_add_up(levels in prop::collection::vec((0..20u32, 0..20u32, 0..20u32), 1..6), threshold in 0..=100u32) {
            let counts: Vec<Count> = levels.iter().map(|(h, d, u)| count(h + d + u, *h, *d)).collect();
            let loads = loads(&counts, 140, threshold);
            let sum: u32 = loads.healthy.iter().chain(&loads.degraded).sum();
            let any = counts.iter().any(|c| c.sound > 0);
            let all_panic = loads.panic.iter().all(|p| *p) && counts.iter().any(|c| c.total > 0);
            prop_assert_eq!(sum, if any || all_panic { 100 } else { 0 });
            for (at, c) in counts.iter().enumerate() {
                prop_assert!(loads.panic[at] || c.healthy > 0 || loads.healthy[at] == 0);
                prop_assert!(loads.panic[at] || c.degraded > 0 || loads.degraded[at] == 0);
            }
        }
    }
}
