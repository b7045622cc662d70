use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::ir::{self, Endpoint, Endpoints, ObjectKey, PoolKey};

fn pool(endpoints: u16, outlier: Option<Outlier>) -> CompiledPool {
    let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "shop".into() };
    let endpoints = (1..=endpoints).map(|n| Endpoint::new(([10, 0, 0, 1], n).into())).collect();
    let pool = ir::Pool {
        outlier: outlier.map(Arc::new),
        ..ir::Pool::of(PoolKey { object, port: 0 }, Endpoints::Static(endpoints))
    };
    CompiledPool::compile(None, Arc::new(pool), 0)
}

fn state(pool: &CompiledPool) -> PoolState {
    let mut state = PoolState::default();
    state.sync(pool);
    state
}

const OK: Seen = Seen::Status(200);

/// What each of these tries at the first of ten endpoints makes of it.
fn check(outlier: Outlier, seen: &[Seen], expected: &[Option<Reason>]) {
    let pool = pool(10, Some(outlier));
    let mut state = state(&pool);
    let got: Vec<_> =
        seen.iter().map(|seen| pool.report(&mut state, 0, *seen, 0, 0).map(|e| e.reason)).collect();
    assert_eq!(got, expected, "{seen:?}");
}

#[test]
fn failures_in_a_row() {
    let two = Outlier { consecutive_5xx: 2, ..Outlier::default() };
    let full = Some(Reason::Consecutive5xx);
    check(two.clone(), &[Seen::Status(500), Seen::Status(503)], &[None, full]);
    check(two.clone(), &[Seen::Status(500), Seen::Status(404), Seen::Status(500)], &[None; 3]);
    check(two.clone(), &[Seen::ConnectFailed, Seen::TimedOut], &[None, full]);
    check(two.clone(), &[Seen::Reset, OK, Seen::Reset], &[None; 3]);

    let gateway = Outlier {
        consecutive_gateway_failure: 2,
        enforcing_consecutive_gateway_failure: 100,
        ..Outlier::default()
    };
    let full = Some(Reason::ConsecutiveGatewayFailure);
    check(gateway.clone(), &[Seen::Status(502), Seen::Status(504)], &[None, full]);
    check(gateway.clone(), &[Seen::Status(502), Seen::Status(500), Seen::Status(503)], &[None; 3]);
    check(gateway, &[Seen::ConnectFailed, Seen::TimedOut], &[None, full]);

    let split = Outlier {
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: 2,
        consecutive_5xx: 2,
        ..Outlier::default()
    };
    let full = Some(Reason::ConsecutiveLocalOriginFailure);
    check(split.clone(), &[Seen::Reset, Seen::TimedOut], &[None, full]);
    check(split.clone(), &[Seen::Reset, Seen::Status(500), Seen::Reset], &[None; 3]);
    check(
        split,
        &[Seen::Status(500), Seen::Reset, Seen::Status(500)],
        &[None, None, Some(Reason::Consecutive5xx)],
    );

    let off = Outlier { consecutive_5xx: 0, ..Outlier::default() };
    check(off, &[Seen::Status(500); 4], &[None; 4]);
}

fn eager() -> Outlier {
    Outlier { consecutive_5xx: 1, max_ejection_percent: 100, ..Outlier::default() }
}

#[test]
fn each_ejection_is_longer_and_quiet_intervals_forgive() {
    let pool = pool(3, Some(Outlier { max_ejection_time: Duration::from_secs(80), ..eager() }));
    let mut state = state(&pool);
    let mut now = 0;
    for seconds in [30, 60, 80, 80] {
        let ejection = pool.report(&mut state, 0, Seen::Status(500), now, 0).unwrap();
        assert!(ejection.enforced && ejection.until_ms - now == seconds * 1000, "{ejection:?}");
        assert!(pool.report(&mut state, 0, Seen::Status(500), now + 1, 0).is_none(), "it is ejected already");
        now = ejection.until_ms;
        assert!(pool.endpoints[0].state.available(now));
    }
    // Five intervals without an ejection: as if there had been none.
    for _ in 0..6 {
        now += 10_000;
        pool.tick(&mut state, now, &mut || 0);
    }
    let ejection = pool.report(&mut state, 0, Seen::Status(500), now, 0).unwrap();
    assert_eq!(ejection.until_ms - now, 30_000);
}

#[test]
fn an_endpoint_comes_back_with_a_clean_slate() {
    let outlier = Outlier {
        consecutive_5xx: 2,
        consecutive_gateway_failure: 3,
        enforcing_consecutive_gateway_failure: 100,
        ..Outlier::default()
    };
    let pool = pool(10, Some(outlier));
    let mut state = state(&pool);
    let mut report =
        |now| pool.report(&mut state, 0, Seen::Status(503), now, 0).map(|e| (e.reason, e.until_ms));
    assert_eq!([report(0), report(0)], [None, Some((Reason::Consecutive5xx, 30_000))]);
    // In a panic it is asked all the same.
    assert_eq!([report(1), report(2), report(3)], [None; 3]);
    assert_eq!(pool.shared.ejections.detected(Reason::Consecutive5xx), 1);
    assert_eq!([report(30_000), report(30_000)], [None, Some((Reason::Consecutive5xx, 90_000))]);
}

#[test]
fn what_was_bad_for_long_is_forgiven_as_soon_as_others() {
    let outlier =
        Outlier { consecutive_5xx: 1, max_ejection_time: Duration::from_mins(1), ..Outlier::default() };
    let pool = pool(10, Some(outlier));
    let mut state = state(&pool);
    let eject =
        |state: &mut PoolState, now| pool.report(state, 0, Seen::Status(500), now, 0).unwrap().until_ms;
    let mut now = (0..100).fold(0, |now, _| eject(&mut state, now));
    pool.tick(&mut state, now, &mut || 0);
    for _ in 0..2 {
        now += 10_000;
        pool.tick(&mut state, now, &mut || 0);
    }
    assert_eq!(eject(&mut state, now) - now, 30_000);
}

#[test]
fn jitter_comes_on_top() {
    let pool = pool(3, Some(Outlier { max_ejection_time_jitter: Duration::from_secs(8), ..eager() }));
    let ejection = pool.report(&mut state(&pool), 0, Seen::Reset, 0, u64::from(u32::MAX / 2)).unwrap();
    assert!((33_900..34_000).contains(&ejection.until_ms), "{ejection:?}");
}

#[test]
fn so_many_are_ejected_and_one_always() {
    for (endpoints, percent, expected) in
        [(10, 10, 1), (10, 29, 2), (10, 30, 3), (10, 100, 10), (2, 10, 1), (1, 0, 1)]
    {
        let pool = pool(endpoints, Some(Outlier { max_ejection_percent: percent, ..eager() }));
        let mut state = state(&pool);
        let ejected = (0..usize::from(endpoints))
            .filter(|at| pool.report(&mut state, *at, Seen::Status(500), 0, 0).is_some())
            .count();
        assert_eq!(ejected, expected, "{percent} % of {endpoints}");
        let counters = &pool.shared.ejections;
        assert_eq!(counters.enforced(Reason::Consecutive5xx), expected as u64);
        assert_eq!(counters.detected(Reason::Consecutive5xx), u64::from(endpoints));
        assert_eq!(counters.overflow(), u64::from(endpoints) - expected as u64);
    }
}

#[test]
fn enforcement_is_a_share() {
    let pool = pool(3, Some(Outlier { enforcing_consecutive_5xx: 40, ..eager() }));
    let mut state = state(&pool);
    let mut report = |share: f64| {
        let random = (share * f64::from(u32::MAX)) as u64;
        pool.report(&mut state, 0, Seen::Status(500), 0, random << 32).unwrap().enforced
    };
    assert_eq!((report(0.41), report(0.99), report(0.39)), (false, false, true));
}

/// An interval in which each endpoint had so many requests, and so many of them failed.
fn interval(outlier: Outlier, requests: &[(u32, u32)]) -> Vec<(u16, Reason)> {
    let pool = pool(
        requests.len() as u16,
        Some(Outlier { consecutive_5xx: 0, max_ejection_percent: 100, ..outlier }),
    );
    let (mut one, mut two) = (state(&pool), state(&pool));
    assert!(pool.tick(&mut one, 1, &mut || 0).is_empty(), "the first interval begins");
    for (at, (requests, failures)) in requests.iter().enumerate() {
        for n in 0..*requests {
            let worker = if n % 2 == 0 { &mut one } else { &mut two };
            let seen = if n < *failures { Seen::Status(500) } else { OK };
            assert!(pool.report(worker, at, seen, 5, 0).is_none());
        }
    }
    assert!(pool.tick(&mut two, 5_000, &mut || 0).is_empty(), "the interval is not over");
    let ejections = pool.tick(&mut one, 10_002, &mut || 0);
    assert!(pool.tick(&mut two, 10_003, &mut || 0).is_empty(), "one worker judges");
    ejections.iter().map(|e| (e.address.port(), e.reason)).collect()
}

#[test]
fn the_worst_of_many_is_an_outlier() {
    let usual = Outlier::default();
    let slow = [(200, 2), (200, 0), (200, 4), (200, 2), (200, 120), (200, 1)];
    assert_eq!(interval(usual.clone(), &slow), [(5, Reason::SuccessRate)]);
    // Too few endpoints, or requests, to compare.
    assert_eq!(interval(usual.clone(), &slow[1..5]), []);
    assert_eq!(interval(usual.clone(), &slow.map(|(_, failed)| (99, failed / 2))), []);
    // All alike.
    assert_eq!(interval(usual.clone(), &[(200, 100); 6]), []);
    let counted_only = Outlier { enforcing_success_rate: 0, ..usual };
    assert_eq!(interval(counted_only, &slow), [(5, Reason::SuccessRate)]);
}

#[test]
fn a_percentage_of_failures_is_an_outlier() {
    let percentage = Outlier {
        enforcing_failure_percentage: 100,
        enforcing_success_rate: 0,
        success_rate_minimum_hosts: 1000,
        ..Outlier::default()
    };
    let failing = [(100, 85), (100, 84), (100, 0), (49, 49), (100, 100), (100, 1)];
    let expected = [(1, Reason::FailurePercentage), (5, Reason::FailurePercentage)];
    assert_eq!(interval(percentage.clone(), &failing), expected);
    assert_eq!(interval(percentage, &failing[..4]), []);
}

/// What was seen before an operator took detection away, and put it back later, is no verdict.
#[test]
fn without_detection_all_is_forgotten() {
    let two = Arc::new(Outlier { consecutive_5xx: 2, ..eager() });
    let with = pool(10, Some(Outlier::clone(&two)));
    let without =
        CompiledPool::compile(Some(&with), Arc::new(ir::Pool { outlier: None, ..(*with.ir).clone() }), 0);
    let mut state = state(&with);
    with.tick(&mut state, 1, &mut || 0);
    assert_eq!(with.report(&mut state, 0, Seen::Status(500), 2, 0), None);
    for n in 0..200 {
        with.report(&mut state, 1, Seen::Status(500 - 300 * (n % 2)), 2, 0);
    }
    without.tick(&mut state, 1_000, &mut || 0);
    assert_eq!(with.report(&mut state, 0, Seen::Status(500), 1_000_000, 0), None);
    assert_eq!(with.tick(&mut state, 1_000_000, &mut || 0), [], "the first interval begins");
    assert_eq!(with.tick(&mut state, 2_000_000, &mut || 0), []);
    assert_eq!(with.endpoints[1].state.record.success_rate(), None);
}

#[test]
fn rates_are_shown() {
    let pool = pool(2, Some(Outlier::default()));
    let mut state = state(&pool);
    pool.tick(&mut state, 1, &mut || 0);
    for n in 0..8 {
        pool.report(&mut state, 0, if n < 2 { Seen::TimedOut } else { OK }, 2, 0);
    }
    pool.tick(&mut state, 20_000, &mut || 0);
    let rates: Vec<_> = pool.endpoints.iter().map(|e| e.state.record.success_rate()).collect();
    assert_eq!(rates, [Some(750), None]);
}

#[test]
fn without_detection_refusals_and_repeated_failures_eject() {
    let pool = pool(2, None);
    let mut state = state(&pool);
    let mut report =
        |seen, now| pool.report(&mut state, 0, seen, now, 0).map(|e| (e.reason, e.until_ms, e.enforced));
    assert_eq!(report(Seen::Status(500), 0), None, "a status is the application's business");
    assert_eq!(report(Seen::ConnectFailed, 0), Some((Reason::Refused, 1000, true)));
    assert_eq!(report(OK, 1000), None);
    assert_eq!([report(Seen::Reset, 1000), report(Seen::TimedOut, 1000)], [None; 2]);
    assert_eq!(report(Seen::Reset, 1000), Some((Reason::Failures, 2000, true)));
}
