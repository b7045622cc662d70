use super::*;
use crate::balance::{CompiledPool, Wish};
use crate::ir::{self, Endpoint, Endpoints, ObjectKey, PoolKey, PoolLimits, RetryBudget};

fn pool(limits: PoolLimits) -> CompiledPool {
    let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "shop".into() };
    let endpoints = Endpoints::Static(vec![Endpoint::new(([10, 0, 0, 1], 80).into())]);
    let pool = ir::Pool { limits, ..ir::Pool::of(PoolKey { object, port: 0 }, endpoints) };
    CompiledPool::compile(None, Arc::new(pool), 0)
}

fn start(pool: &CompiledPool, state: &mut PoolState, requests: usize) {
    for _ in 0..requests {
        let at = pool.pick(state, 0, &mut || 1, &Wish::default()).unwrap();
        state.started(at);
    }
}

/// How many retries may begin while so many requests are in flight.
fn retries(budget: RetryBudget, max_retries: u32, requests: usize) -> (usize, Option<Refused>) {
    let pool = pool(PoolLimits { retry_budget: budget, max_retries, ..PoolLimits::default() });
    let mut state = PoolState::default();
    start(&pool, &mut state, requests);
    let mut passes = Vec::new();
    let why = loop {
        if passes.len() == 1000 {
            break None;
        }
        match state.begin_retry(&pool) {
            Ok(pass) => passes.push(pass),
            Err(why) => break Some(why),
        }
    };
    let began = passes.len();
    for pass in passes {
        state.end_retry(pass);
    }
    assert_eq!((state.retries(), pool.shared.retries.now()), (0, 0));
    (began, why)
}

#[test]
fn retries_stay_within_their_budget() {
    let budget = |percent, min| RetryBudget { percent, min };
    assert_eq!(retries(budget(20, 3), u32::MAX, 1), (3, Some(Refused::RetryBudget)));
    assert_eq!(retries(budget(20, 3), u32::MAX, 100), (20, Some(Refused::RetryBudget)));
    assert_eq!(retries(budget(0, 0), u32::MAX, 100), (0, Some(Refused::RetryBudget)));
    assert_eq!(retries(budget(100, 0), 7, 1), (7, Some(Refused::Retries)));
    assert_eq!(retries(budget(100, 0), u32::MAX, 1), (1000, None));
}

#[test]
fn requests_are_limited_over_all_workers() {
    let pool = pool(PoolLimits { max_requests: 3, ..PoolLimits::default() });
    assert!(pool.limits_requests());
    let (mut a, mut b) = (PoolState::default(), PoolState::default());
    let enter = |state: &mut PoolState| state.enter(&pool, 0, &mut || 1);
    assert_eq!([enter(&mut a), enter(&mut b), enter(&mut a)], [Ok(()); 3]);
    assert_eq!(enter(&mut b), Err(Refused::Requests));
    a.leave(&pool, Duration::ZERO, Some(true), 0, &mut || 1);
    assert_eq!(enter(&mut b), Ok(()));
    assert_eq!((pool.shared.requests.now(), pool.shared.requests.refused()), (3, 1));
}

#[test]
fn a_request_that_is_refused_for_one_limit_is_not_counted_for_another() {
    let adaptive = Some(Arc::new(ir::AdaptiveConcurrency::default()));
    let pool = pool(PoolLimits { max_requests: 100, adaptive, ..PoolLimits::default() });
    let mut state = PoolState::default();
    let entered: Vec<_> = (0..10).map(|_| state.enter(&pool, 0, &mut || 1)).collect();
    assert_eq!(entered.iter().filter(|e| e.is_ok()).count(), 3);
    assert_eq!(entered[9], Err(Refused::Concurrency));
    assert_eq!((pool.shared.requests.now(), state.concurrency_limit()), (3, Some(3)));
}

#[test]
fn who_entered_under_other_settings_does_not_bring_them_back() {
    let with = |min_concurrency| {
        let adaptive = ir::AdaptiveConcurrency { min_concurrency, ..Default::default() };
        pool(PoolLimits { adaptive: Some(Arc::new(adaptive)), ..PoolLimits::default() })
    };
    let (old, new) = (with(3), with(7));
    let mut state = PoolState::default();
    assert_eq!([state.enter(&old, 0, &mut || 1), state.enter(&new, 0, &mut || 1)], [Ok(()); 2]);
    state.leave(&old, Duration::ZERO, Some(true), 0, &mut || 1);
    assert_eq!(state.concurrency_limit(), Some(7));
}

#[test]
fn pools_without_limits_need_not_be_asked() {
    assert!(!pool(PoolLimits::default()).limits_requests());
}
