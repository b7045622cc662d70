//! Choices against an oracle that looks at every endpoint, distributions, and a seeded life of a pool.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

mod hashing;
mod sessions;
mod spread;
mod time;

fn address(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

fn endpoint(n: u16, weight: u32) -> ir::Endpoint {
    ir::Endpoint { weight, ..ir::Endpoint::new(address(n)) }
}

fn pool(balance: ir::Balance, endpoints: Vec<ir::Endpoint>) -> Arc<ir::Pool> {
    let key = ir::PoolKey {
        object: ir::ObjectKey { kind: "Pool", namespace: "default".into(), name: "shop".into() },
        port: 0,
    };
    Arc::new(ir::Pool { balance, ..ir::Pool::of(key, ir::Endpoints::Static(endpoints)) })
}

fn compiled(balance: ir::Balance, weights: &[u32]) -> CompiledPool {
    let endpoints = weights.iter().enumerate().map(|(n, w)| endpoint(n as u16 + 1, *w)).collect();
    CompiledPool::compile(None, pool(balance, endpoints), 0)
}

/// The same pool with another spread.
fn spread(pool: &ir::Pool, spread: ir::Spread) -> Arc<ir::Pool> {
    Arc::new(ir::Pool { spread, ..pool.clone() })
}

/// Active checks fail on these.
fn fail(pool: &CompiledPool, endpoints: std::ops::Range<usize>) {
    for endpoint in &pool.endpoints[endpoints] {
        endpoint.state.set_healthy(false);
    }
}

/// The same pool, which never ignores health.
fn calm(pool: &ir::Pool) -> Arc<ir::Pool> {
    spread(pool, ir::Spread { panic_threshold: 0, ..pool.spread.clone() })
}

/// SplitMix64, seeded.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Picks `n` times; requests last for `held` further picks.
fn counts(pool: &CompiledPool, n: usize, held: usize, seed: u64) -> Vec<usize> {
    let (mut state, mut random) = (PoolState::default(), Random(seed));
    let mut counts = vec![0; pool.endpoints.len()];
    let mut open = std::collections::VecDeque::new();
    for _ in 0..n {
        let at = pool.pick(&mut state, 0, &mut || random.next(), &Wish::default()).unwrap();
        counts[at] += 1;
        state.started(at);
        open.push_back(pool.endpoints[at].address());
        if open.len() > held {
            state.finished(open.pop_front().unwrap());
        }
    }
    counts
}

const LEAST: ir::Balance = ir::Balance::LeastRequest { choices: 2, bias: 100 };
const EWMA: ir::Balance = ir::Balance::PeakEwma { decay: std::time::Duration::from_secs(10) };
const BALANCES: [ir::Balance; 5] = [
    LEAST,
    ir::Balance::RoundRobin,
    ir::Balance::Random,
    EWMA,
    ir::Balance::LeastRequest { choices: 4, bias: 50 },
];

#[test]
fn reasons() {
    for balance in BALANCES {
        let reason = |endpoints: Vec<ir::Endpoint>, sick: &[usize], tried: &[SocketAddr]| {
            let pool = CompiledPool::compile(None, calm(&pool(balance.clone(), endpoints)), 0);
            for at in sick {
                pool.endpoints[*at].state.set_healthy(false);
            }
            pool.pick(&mut PoolState::default(), 0, &mut || 7, &Wish { tried, ..Wish::default() })
        };
        let draining = || ir::Endpoint { draining: true, ..endpoint(2, 1) };
        assert_eq!(reason(vec![], &[], &[]), Err(NoEndpoint::Empty));
        assert_eq!(reason(vec![draining()], &[], &[]), Err(NoEndpoint::AllDraining));
        assert_eq!(reason(vec![endpoint(1, 1), draining()], &[0], &[]), Err(NoEndpoint::AllUnhealthy));
        assert_eq!(
            reason(vec![endpoint(1, 1), endpoint(3, 9)], &[1], &[address(1)]),
            Err(NoEndpoint::AllTried)
        );
        assert_eq!(reason(vec![endpoint(1, 1), draining()], &[], &[]), Ok(0));
    }
}

#[test]
fn round_robin_is_exact_and_smooth() {
    assert_eq!(counts(&compiled(ir::Balance::RoundRobin, &[1, 1, 1]), 300, 0, 1), [100, 100, 100]);
    let weighted = compiled(ir::Balance::RoundRobin, &[5, 1, 1]);
    assert_eq!(counts(&weighted, 700, 0, 1), [500, 100, 100]);
    let (mut state, mut last) = (PoolState::default(), Vec::new());
    for _ in 0..14 {
        last.push(weighted.pick(&mut state, 0, &mut || 0, &Wish::default()).unwrap());
    }
    assert_eq!(last, [0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
}

#[test]
fn chance_is_by_weight() {
    for held in [0, 50] {
        let counts = counts(&compiled(ir::Balance::Random, &[6, 3, 1]), 10_000, held, 3);
        for (count, expected) in counts.iter().zip([6000, 3000, 1000]) {
            assert!(count.abs_diff(expected) < 250, "{counts:?}");
        }
    }
}

#[test]
fn least_request_is_by_weight_when_idle_and_when_busy() {
    for (held, tolerance) in [(0, 300), (200, 500)] {
        let counts = counts(&compiled(LEAST, &[6, 3, 1]), 10_000, held, 3);
        for (count, expected) in counts.iter().zip([6000usize, 3000, 1000]) {
            assert!(count.abs_diff(expected) < tolerance, "{held}: {counts:?}");
        }
    }
}

#[test]
fn least_request_avoids_what_is_slow() {
    let pool = compiled(LEAST, &[1, 1, 1, 1]);
    let (mut state, mut random) = (PoolState::default(), Random(9));
    // The first endpoint never finishes anything; the others do at once.
    let mut stuck = 0;
    for _ in 0..1000 {
        let at = pool.pick(&mut state, 0, &mut || random.next(), &Wish::default()).unwrap();
        state.started(at);
        if at == 0 {
            stuck += 1;
        } else {
            state.finished(pool.endpoints[at].address());
        }
    }
    // One in four draws it first; once it has a request it wins only against itself.
    assert!(stuck < 100, "{stuck}");
}

#[test]
fn many_down_leave_the_rest_evenly_used() {
    for balance in BALANCES {
        let pool = compiled(balance.clone(), &[1; 10]);
        let pool = CompiledPool::compile(None, calm(&pool.ir), 0);
        for at in [0, 1, 2, 3, 4, 5, 7] {
            pool.endpoints[at].state.set_healthy(false);
        }
        let counts = counts(&pool, 3000, 0, 5);
        for at in [6, 8, 9] {
            let tolerance = if balance == ir::Balance::RoundRobin { 1 } else { 150 };
            assert!(counts[at].abs_diff(1000) < tolerance, "{balance:?}: {counts:?}");
        }
    }
}

#[test]
fn a_check_is_believed_and_an_ejection_is_not_when_it_is_all_that_is_left() {
    let pool = compiled(LEAST, &[1, 2, 1]);
    let mut state = PoolState::default();
    pool.endpoints[0].state.set_healthy(false);
    pool.endpoints[1].state.eject(0, 1000);
    pool.endpoints[2].state.eject(0, 1000);
    let mut random = Random(1);
    let picked: BTreeSet<_> = (0..50)
        .map(|_| pool.pick(&mut state, 10, &mut || random.next(), &Wish::default()).unwrap())
        .collect();
    assert_eq!((picked, state.panics), (BTreeSet::from([1, 2]), 50));
    pool.pick(&mut state, 1000, &mut || random.next(), &Wish::default()).unwrap();
    assert_eq!(state.panics, 50);
}

#[test]
fn state_is_kept_by_address_and_a_pool_without_checks_has_no_verdicts() {
    let before = compiled(ir::Balance::Random, &[1, 1]);
    before.endpoints[0].state.eject(0, 9);
    let ir = pool(ir::Balance::RoundRobin, vec![endpoint(3, 1), endpoint(1, 4)]);
    let after = CompiledPool::compile(Some(&before), ir, 0);
    assert!(Arc::ptr_eq(&after.endpoints[1].state, &before.endpoints[0].state));

    let check = ir::HealthCheck { healthy: 1, unhealthy: 1, ..ir::HealthCheck::default() };
    let checked = Arc::new(ir::Pool { health: Some(Arc::new(check)), ..(*before.ir).clone() });
    let checked = CompiledPool::compile(Some(&before), checked, 0);
    checked.endpoints[0].state.set_healthy(false);
    let unchecked = CompiledPool::compile(Some(&checked), before.ir.clone(), 0);
    assert!(unchecked.endpoints[0].state.is_healthy());
    assert!(!checked.endpoints[0].state.is_healthy());
    assert!(Arc::ptr_eq(&unchecked.endpoints[1].state, &checked.endpoints[1].state));
}

#[test]
fn resolved_addresses_are_kept_while_the_names_are_the_same() {
    let name = |host: &str| ir::DnsName {
        host: host.into(),
        endpoint: endpoint(80, 1),
        refresh: std::time::Duration::from_secs(5),
    };
    let dns = |host: &str, balance| {
        Arc::new(ir::Pool {
            endpoints: ir::Endpoints::Dns { fixed: Vec::new(), names: vec![name(host)] },
            ..(*pool(balance, vec![])).clone()
        })
    };
    let fresh = CompiledPool::compile(None, dns("a.example", ir::Balance::Random), 0);
    assert!(fresh.endpoints.is_empty());
    let resolved = fresh.with_endpoints(&[endpoint(1, 2), endpoint(2, 1)]);
    let reloaded = CompiledPool::compile(Some(&resolved), dns("a.example", ir::Balance::RoundRobin), 0);
    assert_eq!(reloaded.endpoints.len(), 2);
    assert!(Arc::ptr_eq(&reloaded.endpoints[0].state, &resolved.endpoints[0].state));
    let renamed = CompiledPool::compile(Some(&resolved), dns("b.example", ir::Balance::Random), 0);
    assert!(renamed.endpoints.is_empty());
}

#[test]
fn an_address_listed_twice_is_one_endpoint() {
    let draining = ir::Endpoint { draining: true, ..endpoint(1, 5) };
    let listed = vec![draining.clone(), endpoint(1, 2), endpoint(1, 3), draining];
    let pool = CompiledPool::compile(None, pool(ir::Balance::Random, listed), 0);
    assert_eq!(pool.endpoints.len(), 1);
    assert_eq!((pool.endpoints[0].ir.weight, pool.endpoints[0].ir.draining), (5, false));
}

#[test]
fn requests_in_flight_follow_their_address() {
    let mut state = PoolState::default();
    let before = compiled(ir::Balance::Random, &[1, 1]);
    state.sync(&before);
    state.started(0);
    state.started(0);
    state.started(1);
    // The first leaves, the second moves to another place.
    let without = CompiledPool::compile(
        Some(&before),
        pool(ir::Balance::Random, vec![endpoint(9, 1), endpoint(2, 1)]),
        0,
    );
    state.sync(&without);
    assert_eq!([1, 2, 9].map(|n| state.in_flight(address(n))), [2, 1, 0]);
    state.finished(address(1));
    state.sync(&before);
    assert_eq!([1, 2].map(|n| state.in_flight(address(n))), [1, 1]);
    state.finished(address(1));
    state.finished(address(2));
    assert_eq!([1, 2].map(|n| state.in_flight(address(n))), [0, 0]);
}

#[derive(Clone, Debug)]
struct Situation {
    weight: u32,
    draining: bool,
    healthy: bool,
    ejected: bool,
    tried: bool,
}

fn situation() -> impl Strategy<Value = Situation> {
    (
        1..5u32,
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.6),
        prop::bool::weighted(0.4),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(weight, draining, healthy, ejected, tried)| Situation {
            weight,
            draining,
            healthy,
            ejected,
            tried,
        })
}

/// All indexes that would be right while health is never ignored, or the reason why there is none.
fn oracle(endpoints: &[Situation]) -> Result<BTreeSet<usize>, NoEndpoint> {
    let those = |f: &dyn Fn(&Situation) -> bool| -> BTreeSet<usize> {
        endpoints.iter().enumerate().filter(|(_, e)| f(e)).map(|(at, _)| at).collect()
    };
    let best = those(&|e| !e.draining && e.healthy && !e.ejected && !e.tried);
    let guess = those(&|e| !e.draining && e.healthy && !e.tried);
    match () {
        () if !best.is_empty() => Ok(best),
        () if !guess.is_empty() => Ok(guess),
        () if endpoints.is_empty() => Err(NoEndpoint::Empty),
        () if endpoints.iter().all(|e| e.draining) => Err(NoEndpoint::AllDraining),
        () if endpoints.iter().all(|e| e.draining || !e.healthy) => Err(NoEndpoint::AllUnhealthy),
        () => Err(NoEndpoint::AllTried),
    }
}

proptest! {
    #[test]
    fn as_the_oracle(endpoints in prop::collection::vec(situation(), 0..12), seed: u64) {
        for balance in BALANCES {
            let listed = endpoints.iter().enumerate().map(|(n, e)| ir::Endpoint { draining: e.draining, ..endpoint(n as u16, e.weight) });
            let pool = CompiledPool::compile(None, calm(&pool(balance.clone(), listed.collect())), 0);
            let mut tried = Vec::new();
            for (e, known) in endpoints.iter().zip(&pool.endpoints) {
                known.state.set_healthy(e.healthy);
                if e.ejected {
                    known.state.eject(0, 100);
                }
                if e.tried {
                    tried.push(known.address());
                }
            }
            let (mut state, mut random) = (PoolState::default(), Random(seed));
            for _ in 0..30 {
                let picked = pool.pick(&mut state, 50, &mut || random.next(), &Wish { tried: &tried, ..Wish::default() });
                match (picked, oracle(&endpoints)) {
                    (Ok(at), Ok(right)) => {
                        prop_assert!(right.contains(&at), "{at} is not of {right:?}");
                        state.started(at);
                    }
                    (picked, oracle) => prop_assert_eq!(picked.err(), oracle.err()),
                }
            }
        }
    }

    /// A life with virtual time: endpoints come, go, drain, die and recover; two workers pick, retry and report.
    #[test]
    fn a_seeded_life(seed: u64) {
        let mut random = Random(seed);
        let balance = BALANCES[(random.next() % BALANCES.len() as u64) as usize].clone();
        let mut current = CompiledPool::compile(None, pool(balance.clone(), vec![endpoint(1, 1), endpoint(2, 2)]), 0);
        let mut workers = [PoolState::default(), PoolState::default()];
        let mut open: Vec<(usize, SocketAddr)> = Vec::new();
        let mut dead: BTreeSet<SocketAddr> = BTreeSet::new();
        let mut now = 0;
        for _ in 0..400 {
            now += random.next() % 200;
            match random.next() % 12 {
                0 => {
                    let n = random.next() % 5;
                    let listed = (0..n).map(|_| {
                        let of = random.next();
                        ir::Endpoint { draining: of.is_multiple_of(7), ..endpoint((of % 6) as u16, 1 + (of >> 32) as u32 % 3) }
                    });
                    let listed = pool(balance.clone(), listed.collect());
                    current = CompiledPool::compile(Some(&current), listed, 0);
                }
                1 => drop(dead.insert(address((random.next() % 6) as u16))),
                2 => drop(dead.remove(&address((random.next() % 6) as u16))),
                3..=5 if !open.is_empty() => {
                    let (worker, to) = open.swap_remove((random.next() % open.len() as u64) as usize);
                    workers[worker].finished(to);
                }
                _ => {
                    let worker = (random.next() % 2) as usize;
                    let mut tried = Vec::new();
                    let outcome = loop {
                        let picked = current.pick(&mut workers[worker], now, &mut || random.next(), &Wish { tried: &tried, ..Wish::default() });
                        let Ok(at) = picked else { break picked };
                        let e = &current.endpoints[at];
                        prop_assert!(!e.ir.draining && !tried.contains(&e.address()));
                        if !dead.contains(&e.address()) {
                            e.state.report_success();
                            workers[worker].started(at);
                            open.push((worker, e.address()));
                            break picked;
                        }
                        e.state.report_refused(now);
                        prop_assert!(!e.state.available(now));
                        tried.push(e.address());
                    };
                    // A request fails only if nothing that serves is alive.
                    let alive = current.endpoints.iter().any(|e| !e.ir.draining && !dead.contains(&e.address()));
                    prop_assert_eq!(outcome.is_ok(), alive);
                }
            }
            for (n, worker) in workers.iter().enumerate() {
                let mut expected: BTreeMap<SocketAddr, u32> = BTreeMap::new();
                open.iter().filter(|(w, _)| *w == n).for_each(|(_, to)| *expected.entry(*to).or_default() += 1);
                for port in 0..6 {
                    prop_assert_eq!(worker.in_flight(address(port)), expected.get(&address(port)).copied().unwrap_or(0));
                }
            }
        }
    }
}
