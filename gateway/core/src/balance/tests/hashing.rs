//! Rings and tables: whose keys move when.

use super::*;

fn by(balance_factor: u32) -> Arc<ir::HashBy> {
    Arc::new(ir::HashBy { sources: Vec::new(), balance_factor })
}

fn ring(balance_factor: u32) -> ir::Balance {
    let function = ir::HashFunction::XxHash;
    ir::Balance::RingHash { function, min_size: 1024, max_size: 8_388_608, by: by(balance_factor) }
}

fn maglev(balance_factor: u32) -> ir::Balance {
    ir::Balance::Maglev { table_size: 65537, by: by(balance_factor) }
}

const KEYS: u64 = 4000;

/// Where each key goes.
fn places(pool: &CompiledPool, tried: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut state = PoolState::default();
    let of = |key: u64| {
        let wish = Wish { hash: Some(xxh64(&key.to_le_bytes(), 0)), tried, ..Wish::default() };
        pool.endpoints[pool.pick(&mut state, 10, &mut || 0, &wish).unwrap()].address()
    };
    (0..KEYS).map(of).collect()
}

fn moved(before: &[SocketAddr], after: &[SocketAddr]) -> usize {
    before.iter().zip(after).filter(|(a, b)| a != b).count()
}

#[test]
fn only_the_keys_of_the_missing_move_and_they_come_back() {
    for balance in [ring(0), maglev(0), ring(1_000_000)] {
        let pool = compiled(balance, &[1; 10]);
        let before = places(&pool, &[]);
        let lost = pool.endpoints[3].address();
        let check = |after: Vec<SocketAddr>, what: &str| {
            assert!(after.iter().all(|to| *to != lost), "{what}");
            let kept = before.iter().zip(&after).filter(|(b, _)| **b != lost).all(|(b, a)| b == a);
            assert!(kept, "{what}");
            // They go to all others.
            let takers: BTreeSet<&SocketAddr> =
                before.iter().zip(&after).filter(|(b, _)| **b == lost).map(|(_, a)| a).collect();
            assert_eq!(takers.len(), 9, "{what}");
        };
        check(places(&pool, &[lost]), "tried");
        pool.endpoints[3].state.eject(0, 100);
        check(places(&pool, &[]), "ejected");
        pool.endpoints[3].state.report_success();
        pool.endpoints[3].state.set_healthy(false);
        check(places(&pool, &[]), "unhealthy");
        pool.endpoints[3].state.set_healthy(true);
        pool.endpoints[3].state.set_drained(true);
        check(places(&pool, &[]), "drained");
        pool.endpoints[3].state.set_drained(false);
        assert_eq!(moved(&before, &places(&pool, &[])), 0);
    }
}

#[test]
fn coming_and_going_move_about_one_share() {
    // The ring's rounding of entries per endpoint (103 of 10, 94 of 11) moves as many again.
    for (balance, bound) in [(ring(0), 0.20), (maglev(0), 0.12)] {
        let ten = compiled(balance.clone(), &[1; 10]);
        let eleven = compiled(balance, &[1; 11]);
        let share = moved(&places(&ten, &[]), &places(&eleven, &[])) as f64 / KEYS as f64;
        assert!(share > 1.0 / 14.0 && share < bound, "{share}");
    }
}

#[test]
fn keys_are_spread_by_weight() {
    for balance in [ring(0), maglev(0)] {
        let pool = compiled(balance, &[1, 2, 1]);
        let places = places(&pool, &[]);
        let count = |n: u16| places.iter().filter(|p| **p == address(n)).count();
        assert!(count(2).abs_diff(2000) < 200 && count(1).abs_diff(1000) < 200, "{} {}", count(1), count(2));
    }
}

#[test]
fn without_a_hash_it_is_by_chance() {
    for balance in [ring(0), maglev(0)] {
        let counts = counts(&compiled(balance, &[3, 1]), 4000, 0, 1);
        assert!(counts[0].abs_diff(3000) < 200, "{counts:?}");
    }
}

#[test]
fn loads_are_bounded() {
    for balance in [ring(125), maglev(125)] {
        let pool = compiled(balance, &[1, 1, 2]);
        let (mut state, mut in_flight) = (PoolState::default(), [0u32; 3]);
        // One key has all requests.
        let wish = Wish { hash: Some(77), ..Wish::default() };
        for n in 1..=400u32 {
            let at = pool.pick(&mut state, 0, &mut || 0, &wish).unwrap();
            state.started(at);
            in_flight[at] += 1;
            let slots = (n * 125).div_ceil(100);
            let bound = (f64::from(slots) * f64::from([1, 1, 2][at]) / 4.0).ceil();
            assert!(f64::from(in_flight[at]) <= bound, "{in_flight:?} of {n}");
        }
        assert!(in_flight.iter().all(|n| *n > 20), "{in_flight:?}");
        // One that had to go elsewhere comes home when there is room.
        let idle = pool.pick(&mut PoolState::default(), 0, &mut || 0, &wish).unwrap();
        (0..in_flight[idle]).for_each(|_| state.finished(pool.endpoints[idle].address()));
        assert_eq!(pool.pick(&mut state, 0, &mut || 0, &wish), Ok(idle));
    }
}

#[test]
fn a_share_of_keys_goes_to_the_next_priority() {
    let listed =
        (0..20u16).map(|n| ir::Endpoint { priority: u32::from(n >= 10), ..endpoint(n, 1) }).collect();
    let pool = CompiledPool::compile(None, pool(maglev(0), listed), 0);
    let before = places(&pool, &[]);
    assert!(before.iter().all(|p| p.port() < 10));
    fail(&pool, 0..5);
    let after = places(&pool, &[]);
    let second = after.iter().filter(|p| p.port() >= 10).count();
    assert!(second.abs_diff(1200) < 120, "{second}");
    // Of keys that stay in the priority only those of endpoints that failed move.
    let kept = before.iter().zip(&after).filter(|(b, a)| b.port() >= 5 && a.port() < 10).all(|(b, a)| a == b);
    assert!(kept);
}

#[test]
fn tables_are_kept_while_they_would_be_the_same() {
    let same = |a: &CompiledPool, b: &CompiledPool| Arc::ptr_eq(&a.tables.levels, &b.tables.levels);
    let first = compiled(maglev(0), &[1, 2]);
    let draining = vec![endpoint(1, 1), ir::Endpoint { draining: true, ..endpoint(2, 2) }];
    let drained = CompiledPool::compile(Some(&first), pool(maglev(150), draining), 0);
    assert!(same(&first, &drained));
    let heavier = pool(maglev(0), vec![endpoint(1, 1), endpoint(2, 3)]);
    assert!(!same(&first, &CompiledPool::compile(Some(&first), heavier, 0)));
    let swapped = pool(maglev(0), vec![endpoint(2, 2), endpoint(1, 1)]);
    assert!(!same(&first, &CompiledPool::compile(Some(&first), swapped, 0)));
    assert!(compiled(LEAST, &[1]).tables.levels.is_empty());
}

#[test]
fn a_size_that_is_no_prime_is_filled_too() {
    let pool = compiled(ir::Balance::Maglev { table_size: 12, by: by(0) }, &[1, 1, 1]);
    let places: BTreeSet<SocketAddr> = places(&pool, &[]).into_iter().collect();
    assert_eq!(places.len(), 3);
}

proptest! {
    /// No hash, of whatever pool in whatever state, finds one that may not have it while there is one that may.
    #[test]
    fn what_is_found_may_be_chosen(states in prop::collection::vec(0..5u8, 1..12), seed: u64, tried in 0..12u16) {
        let small = |factor| ir::Balance::Maglev { table_size: 251, by: by(factor) };
        for balance in [ring(0), small(0), ring(150), small(150)] {
            let listed = (0..states.len()).map(|n| endpoint(n as u16, 1 + n as u32 % 3)).collect();
            let pool = CompiledPool::compile(None, calm(&pool(balance, listed)), 0);
            for (state, e) in states.iter().zip(&pool.endpoints) {
                match state {
                    0 => drop(e.state.set_healthy(false)),
                    1 => e.state.eject(0, 100),
                    2 => drop(e.state.set_drained(true)),
                    _ => {}
                }
            }
            let tried = [address(tried)];
            let may = |at: usize, least: u8| states[at] >= least && !tried.contains(&pool.endpoints[at].address());
            let any = (0..states.len()).any(|at| may(at, 3));
            let (mut state, mut random) = (PoolState::default(), Random(seed));
            for _ in 0..20 {
                let wish = Wish { hash: Some(random.next()), tried: &tried, ..Wish::default() };
                match pool.pick(&mut state, 10, &mut || random.next(), &wish) {
                    Ok(at) => {
                        prop_assert!(may(at, 3) || (!any && states[at] == 1 && may(at, 1)));
                        state.started(at);
                    }
                    Err(_) => prop_assert!(!any && !(0..states.len()).any(|at| states[at] == 1 && may(at, 1))),
                }
            }
        }
    }
}
