//! Priorities, localities, panic and degraded endpoints: that a pool does what the calculations say.

use super::*;
use crate::balance::view::View;

fn at_priority(n: u16, priority: u32) -> ir::Endpoint {
    ir::Endpoint { priority, ..endpoint(n, 1) }
}

/// Counts by endpoint.
fn shares(pool: &CompiledPool, state: &mut PoolState, n: usize) -> Vec<usize> {
    let mut random = Random(7);
    let mut counts = vec![0; pool.endpoints.len()];
    for _ in 0..n {
        counts[pool.pick(state, 0, &mut || random.next(), &Wish::default()).unwrap()] += 1;
    }
    counts
}

#[test]
fn half_a_priority_keeps_seventy_percent() {
    for balance in BALANCES {
        let listed = (0..20).map(|n| at_priority(n, u32::from(n >= 10) * 3)).collect();
        let pool = CompiledPool::compile(None, pool(balance, listed), 0);
        fail(&pool, 0..5);
        let mut state = PoolState::default();
        let counts = shares(&pool, &mut state, 10_000);
        assert_eq!(counts[..5], [0; 5]);
        let (first, second): (usize, usize) = (counts[5..10].iter().sum(), counts[10..].iter().sum());
        assert!(first.abs_diff(7000) < 200 && second.abs_diff(3000) < 200, "{counts:?}");
        assert_eq!(state.panics, 0);
    }
}

#[test]
fn a_dead_priority_hands_over_and_takes_back() {
    let listed = vec![at_priority(1, 0), at_priority(2, 1), at_priority(3, 1)];
    let pool = CompiledPool::compile(None, pool(LEAST, listed), 0);
    let mut state = PoolState::default();
    assert_eq!(shares(&pool, &mut state, 10), [10, 0, 0]);
    pool.endpoints[0].state.report_refused(0);
    let counts = shares(&pool, &mut state, 100);
    assert_eq!(counts[0], 0);
    // A retry leaves its priority when that has no other.
    let wish = Wish { tried: &[address(2), address(3)], ..Wish::default() };
    assert_eq!((pool.pick(&mut state, 0, &mut || 0, &wish), state.panics), (Ok(0), 1));
    pool.endpoints[0].state.report_success();
    assert_eq!(shares(&pool, &mut state, 10), [10, 0, 0]);
    // So does an operator's drain.
    pool.endpoints[0].state.set_drained(true);
    assert_eq!(shares(&pool, &mut state, 100)[0], 0);
}

#[test]
fn in_panic_all_have_requests_and_retries_go_where_it_is_well() {
    for balance in BALANCES {
        let pool = compiled(balance, &[1; 4]);
        fail(&pool, 0..3);
        let mut state = PoolState::default();
        let counts = shares(&pool, &mut state, 400);
        assert!(counts.iter().all(|n| *n > 50), "{counts:?}");
        assert_eq!(state.panics, 400);
        let tried = [address(1)];
        let retry = Wish { tried: &tried, ..Wish::default() };
        assert_eq!(pool.pick(&mut state, 0, &mut || 0, &retry), Ok(3));
        let tried = [1, 2, 3, 4].map(address);
        let retry = Wish { tried: &tried, ..Wish::default() };
        assert_eq!(pool.pick(&mut state, 0, &mut || 0, &retry), Err(NoEndpoint::AllTried));
        // Half of them are enough.
        pool.endpoints[2].state.set_healthy(true);
        assert_eq!(shares(&pool, &mut state, 400)[..2], [0, 0]);
    }
}

#[test]
fn all_unhealthy_is_a_panic_and_draining_ones_stay_out_of_it() {
    let draining = ir::Endpoint { draining: true, ..endpoint(3, 1) };
    let listed = vec![endpoint(1, 1), endpoint(2, 1), draining];
    let pool = CompiledPool::compile(None, pool(LEAST, listed), 0);
    fail(&pool, 0..3);
    let counts = shares(&pool, &mut PoolState::default(), 100);
    assert!(counts[0] > 20 && counts[1] > 20 && counts[2] == 0, "{counts:?}");

    let strict = ir::Spread { fail_in_panic: true, ..ir::Spread::default() };
    let strict = CompiledPool::compile(Some(&pool), spread(&pool.ir, strict), 0);
    let refused = strict.pick(&mut PoolState::default(), 0, &mut || 0, &Wish::default());
    assert_eq!(refused, Err(NoEndpoint::Panic));
}

#[test]
fn ejections_make_a_panic_only_if_they_were_asked_for() {
    let pool = compiled(LEAST, &[1; 4]);
    let asked = ir::Pool { outlier: Some(Arc::default()), ..(*pool.ir).clone() };
    let asked = CompiledPool::compile(Some(&pool), Arc::new(asked), 0);
    (0..3).for_each(|at| pool.endpoints[at].state.eject(0, 1000));
    assert_eq!(shares(&pool, &mut PoolState::default(), 100), [0, 0, 0, 100]);
    let counts = shares(&asked, &mut PoolState::default(), 400);
    assert!(counts.iter().all(|n| *n > 50), "{counts:?}");
}

#[test]
fn degraded_endpoints_have_what_healthy_ones_cannot_take() {
    let pool = compiled(LEAST, &[1; 4]);
    let mut state = PoolState::default();
    pool.endpoints[0].state.set_degraded(true);
    assert_eq!(shares(&pool, &mut state, 100)[0], 0);
    pool.endpoints[1].state.set_degraded(true);
    let counts = shares(&pool, &mut state, 10_000);
    let degraded = counts[0] + counts[1];
    assert!(degraded.abs_diff(3000) < 200 && state.panics == 0, "{counts:?}");
}

#[test]
fn localities_by_weight_and_by_nearness() {
    let zone = |name: &str| ir::Locality::of_zone(name);
    let listed = (0..9).map(|n| ir::Endpoint {
        locality: Some(Arc::new(zone(if n < 2 {
            "a"
        } else if n < 6 {
            "b"
        } else {
            "c"
        }))),
        ..endpoint(n, 1)
    });
    let listed: Vec<ir::Endpoint> = listed.collect();
    let by_zone = |localities| {
        let pool = pool(LEAST, listed.clone());
        let pool = spread(&pool, ir::Spread { localities, ..ir::Spread::default() });
        let counts = shares(&CompiledPool::compile(None, pool, 0), &mut PoolState::default(), 9000);
        let sum = |of: &[usize]| of.iter().sum::<usize>();
        [sum(&counts[..2]), sum(&counts[2..6]), sum(&counts[6..])]
    };
    let is = |counts: [usize; 3], expected: [usize; 3]| {
        assert!(counts.iter().zip(expected).all(|(c, e)| c.abs_diff(e) < 200), "{counts:?}");
    };
    is(by_zone(ir::Localities::Ignored), [2000, 4000, 3000]);
    is(by_zone(ir::Localities::Weighted(vec![(zone("a"), 2), (zone("c"), 1)])), [6000, 0, 3000]);
    let near = |own: &str| ir::Localities::ZoneAware { own: zone(own), min_endpoints: 6, enabled: 100 };
    is(by_zone(near("a")), [6000, 3000, 0]);
    is(by_zone(near("b")), [0, 9000, 0]);
    is(by_zone(near("elsewhere")), [2000, 4000, 3000]);
}

#[test]
fn an_endpoint_that_left_and_came_back_unseen_is_a_new_one() {
    let with = compiled(LEAST, &[1, 1]);
    let mut state = PoolState::default();
    with.endpoints[1].state.set_healthy(false);
    assert_eq!(shares(&with, &mut state, 10), [10, 0]);
    let without = CompiledPool::compile(Some(&with), pool(LEAST, vec![endpoint(1, 1)]), 0);
    let again = CompiledPool::compile(Some(&without), with.ir.clone(), 0);
    assert!(shares(&again, &mut state, 100)[1] > 20);
}

/// What may happen to an endpoint.
fn disturb(pool: &CompiledPool, at: usize, what: u64, now: u64) {
    let state = &pool.endpoints[at].state;
    match what % 8 {
        0 | 1 => drop(state.set_healthy(false)),
        2 | 3 => drop(state.set_healthy(true)),
        4 => state.eject(now, 50 + what % 100),
        5 => drop(state.set_degraded(what & 64 == 0)),
        6 => drop(state.set_drained(what & 64 == 0)),
        _ => state.report_success(),
    }
}

proptest! {
    /// Whatever happens in whatever order, what a worker remembers is what it would see.
    #[test]
    fn the_view_is_as_if_made_now(
        listed in prop::collection::vec((0..3u32, 1..4u32, 0..3usize, prop::bool::weighted(0.1), prop::bool::weighted(0.1)), 1..12),
        threshold in prop::sample::select(vec![0u32, 50, 100]),
        outlier: bool,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let zones = ["a", "b", "c"].map(|zone| Arc::new(ir::Locality::of_zone(zone)));
        let localities = match random.next() % 3 {
            0 => ir::Localities::Ignored,
            1 => ir::Localities::Weighted(zones.iter().map(|z| ((**z).clone(), (random.next() % 3) as u32)).collect()),
            _ => ir::Localities::ZoneAware { own: (*zones[0]).clone(), min_endpoints: 2, enabled: 80 },
        };
        let slow = ir::SlowStart { window: std::time::Duration::from_secs(1), aggression: 100, min_weight: 10 };
        let listed = listed.iter().enumerate().map(|(n, (priority, weight, zone, draining, degraded))| ir::Endpoint {
            priority: *priority,
            locality: Some(zones[*zone].clone()),
            draining: *draining,
            degraded: *degraded,
            ..endpoint(n as u16, *weight)
        });
        let balance = BALANCES[(random.next() % BALANCES.len() as u64) as usize].clone();
        let ir = ir::Pool {
            spread: ir::Spread { panic_threshold: threshold, localities, slow_start: Some(slow), ..ir::Spread::default() },
            outlier: outlier.then(Arc::default),
            ..(*pool(balance, listed.collect())).clone()
        };
        let pool = CompiledPool::compile(None, Arc::new(ir), 0);
        let (mut state, mut now) = (PoolState::default(), 1);
        for _ in 0..60 {
            now += random.next() % 40;
            if random.next().is_multiple_of(3) {
                let at = random.next() % pool.endpoints.len() as u64;
                disturb(&pool, at as usize, random.next(), now);
            }
            let picked = pool.pick(&mut state, now, &mut || random.next(), &Wish::default());
            let fresh = View::new(&pool, &state.endpoints, now, &mut || 0);
            prop_assert_eq!(&state.view.classes, &fresh.classes);
            prop_assert_eq!(&state.view.shares, &fresh.shares);
            let groups = |view: &View| view.groups.iter().map(|g| (g.kind, g.members.clone())).collect::<Vec<_>>();
            prop_assert_eq!(groups(&state.view), groups(&fresh));
            let class = |at: usize| fresh.classes[at];
            match picked {
                Ok(at) => {
                    prop_assert!(class(at) != Class::Draining);
                    let any = fresh.classes.iter().any(|c| c.is_available());
                    prop_assert!(class(at).is_available() || fresh.is_panic() || (!any && class(at) == Class::Ejected));
                    prop_assert!(!fresh.is_panic() || threshold > 0);
                    if at % 3 == 0 {
                        state.started(at);
                    }
                }
                Err(none) => {
                    prop_assert!(!fresh.classes.iter().any(|c| c.is_available() || *c == Class::Ejected), "{none}");
                    prop_assert!(none == NoEndpoint::AllDraining || none == NoEndpoint::AllUnhealthy && !fresh.is_panic());
                }
            }
        }
    }
}
