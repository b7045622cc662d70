//! Slow start, latencies, and turns over changes.

use std::time::Duration;

use super::*;

const SLOW: ir::SlowStart =
    ir::SlowStart { window: Duration::from_secs(10), aggression: 100, min_weight: 10 };

fn slowly(balance: ir::Balance, listed: Vec<ir::Endpoint>) -> Arc<ir::Pool> {
    spread(&pool(balance, listed), ir::Spread { slow_start: Some(SLOW), ..ir::Spread::default() })
}

/// The share of the last endpoint, in percent, of picks around a time.
fn share(pool: &CompiledPool, state: &mut PoolState, now: u64) -> usize {
    let mut random = Random(now);
    let picks = 4000;
    let last = pool.endpoints.len() - 1;
    (0..picks).filter(|_| pool.pick(state, now, &mut || random.next(), &Wish::default()) == Ok(last)).count()
        * 100
        / picks
}

#[test]
fn what_is_new_or_back_ramps_up() {
    for balance in [LEAST, ir::Balance::RoundRobin] {
        let before = CompiledPool::compile(None, slowly(balance.clone(), vec![endpoint(1, 2)]), 0);
        let mut state = PoolState::default();
        assert_eq!(share(&before, &mut state, 500), 100);
        let both = slowly(balance.clone(), vec![endpoint(1, 2), endpoint(2, 2)]);
        let pool = CompiledPool::compile(Some(&before), both, 0);
        let mut ramp = |from: u64| {
            // 0.1, 0.25, 0.5 and 1 of a weight against 1.
            for (after, expected) in [(0, 9), (2500, 20), (5000, 33), (10_000, 50), (60_000, 50)] {
                let share = share(&pool, &mut state, from + after);
                assert!(share.abs_diff(expected) <= 2, "{balance:?} after {after}: {share} for {expected}");
            }
        };
        ramp(1000);
        pool.endpoints[1].state.set_healthy(false);
        pool.endpoints[1].state.set_healthy(true);
        ramp(100_000);
        pool.endpoints[1].state.eject(199_000, 1000);
        let mut random = Random(1);
        pool.pick(&mut PoolState::default(), 199_500, &mut || random.next(), &Wish::default()).unwrap();
        ramp(200_000);
        // Another worker knows when it came back.
        assert!(self::share(&pool, &mut PoolState::default(), 202_500).abs_diff(20) <= 2);
    }
}

#[test]
fn a_pool_that_starts_does_not_start_slowly() {
    let weights = [2, 2];
    let listed = weights.iter().enumerate().map(|(n, w)| endpoint(n as u16, *w)).collect();
    let pool = CompiledPool::compile(None, slowly(LEAST, listed), 0);
    assert!(share(&pool, &mut PoolState::default(), 5).abs_diff(50) <= 3);
    // Nor do others than round robin and least request.
    let one = CompiledPool::compile(None, slowly(ir::Balance::Random, vec![endpoint(1, 1)]), 0);
    let two = slowly(ir::Balance::Random, vec![endpoint(1, 1), endpoint(2, 1)]);
    let pool = CompiledPool::compile(Some(&one), two, 0);
    assert!(share(&pool, &mut PoolState::default(), 5).abs_diff(50) <= 3);
}

#[test]
fn turns_go_on_over_changes() {
    let listed = |n: u16| (1..=n).map(|n| endpoint(n, 1)).collect::<Vec<_>>();
    let three = CompiledPool::compile(None, pool(ir::Balance::RoundRobin, listed(3)), 0);
    let four = CompiledPool::compile(Some(&three), pool(ir::Balance::RoundRobin, listed(4)), 0);
    let mut state = PoolState::default();
    let mut next = |pool: &CompiledPool| pool.pick(&mut state, 0, &mut || 0, &Wish::default()).unwrap();
    assert_eq!([next(&three), next(&three)], [0, 1]);
    assert_eq!([next(&four), next(&four), next(&four)], [2, 3, 0]);
    four.endpoints[1].state.set_drained(true);
    assert_eq!([next(&four), next(&four), next(&four)], [2, 3, 0]);
    four.endpoints[1].state.set_drained(false);
    let rest: BTreeSet<usize> = (0..4).map(|_| next(&four)).collect();
    assert_eq!(rest.len(), 4);
}

#[test]
fn the_slow_one_is_avoided_and_tried_again() {
    let pool = compiled(EWMA, &[1; 4]);
    assert!(pool.wants_latency() && !compiled(LEAST, &[1]).wants_latency());
    let (mut state, mut random) = (PoolState::default(), Random(3));
    let mut counts = |state: &mut PoolState, from: u64, slow: u64| {
        let mut counts = vec![0; 4];
        for n in 0..4000 {
            let now = from + n / 4;
            let at = pool.pick(state, now, &mut || random.next(), &Wish::default()).unwrap();
            let took = Duration::from_millis(if at == 0 { slow } else { 10 });
            state.observe(pool.endpoints[at].address(), took, now);
            counts[at] += 1;
        }
        counts
    };
    let while_slow = counts(&mut state, 0, 100);
    assert!(while_slow[0] < 400 && while_slow[1..].iter().all(|n| *n > 900), "{while_slow:?}");
    // Once it is quick again, and what was known has faded.
    let after = counts(&mut state, 60_000, 10);
    assert!(after[0] > 600, "{after:?}");
}

#[test]
fn one_that_never_answered_is_not_flooded() {
    let pool = compiled(EWMA, &[1; 2]);
    let (mut state, mut random) = (PoolState::default(), Random(3));
    state.sync(&pool);
    state.observe(address(1), Duration::from_millis(5), 0);
    let mut silent = 0;
    for _ in 0..1000 {
        let at = pool.pick(&mut state, 0, &mut || random.next(), &Wish::default()).unwrap();
        state.started(at);
        if at == 1 {
            silent += 1;
        } else {
            state.finished(pool.endpoints[at].address());
        }
    }
    // One in four draws it both times.
    assert!(silent < 300, "{silent}");
}

#[test]
fn more_choices_find_the_idle_one_more_often() {
    let stuck = |choices| {
        let pool = compiled(ir::Balance::LeastRequest { choices, bias: 100 }, &[1; 8]);
        let (mut state, mut random) = (PoolState::default(), Random(9));
        state.sync(&pool);
        (0..7).for_each(|at| state.started(at));
        let pick = |_: &usize| pool.pick(&mut state, 0, &mut || random.next(), &Wish::default()) == Ok(7);
        (0..4000).filter(pick).count()
    };
    // 1 - (7/8)^n of them, less those where both draws are the same.
    assert!(stuck(2).abs_diff(937) < 120 && stuck(6).abs_diff(2205) < 200, "{} {}", stuck(2), stuck(6));
}

#[test]
fn without_bias_only_weights_count() {
    let share_of_busy = |bias| {
        let pool = compiled(ir::Balance::LeastRequest { choices: 2, bias }, &[3, 1]);
        let (mut state, mut random) = (PoolState::default(), Random(9));
        state.sync(&pool);
        (0..30).for_each(|_| state.started(0));
        state.started(1);
        let pick = |_: &usize| pool.pick(&mut state, 0, &mut || random.next(), &Wish::default()) == Ok(0);
        (0..4000).filter(pick).count() * 100 / 4000
    };
    assert!(share_of_busy(0).abs_diff(75) < 3);
    // Drawn first and challenged by itself.
    assert!(share_of_busy(100).abs_diff(37) < 4);
    // 30^0.1 / 3 is less than 1.
    assert!(share_of_busy(10) > 80);
}
