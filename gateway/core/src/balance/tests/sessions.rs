//! Requests that are bound to an endpoint.

use super::*;

#[test]
fn a_session_stays_where_it_is() {
    for balance in BALANCES {
        let draining = ir::Endpoint { draining: true, ..endpoint(3, 1) };
        let listed = vec![endpoint(1, 1), endpoint(2, 1), draining];
        let pool = CompiledPool::compile(None, calm(&pool(balance, listed)), 0);
        let mut state = PoolState::default();
        let mut pick = |n: u16, strict: bool, tried: &[SocketAddr]| {
            let wish = Wish { prefer: Some(address(n)), strict, tried, ..Wish::default() };
            pool.pick(&mut state, 10, &mut || 0, &wish)
        };
        for _ in 0..5 {
            assert_eq!([pick(1, false, &[]), pick(2, true, &[])], [Ok(0), Ok(1)]);
        }
        // It finishes what it has.
        assert_eq!(pick(3, true, &[]), Ok(2));
        assert_eq!(pick(9, true, &[]), Err(NoEndpoint::AffinityLost));
        assert!(matches!(pick(9, false, &[]), Ok(0 | 1)));
        assert_eq!(pick(1, true, &[address(1)]), Err(NoEndpoint::AffinityLost));
        assert_eq!(pick(1, false, &[address(1)]), Ok(1));
        pool.endpoints[0].state.eject(0, 100);
        assert_eq!(pick(1, true, &[]), Err(NoEndpoint::AffinityLost));
        assert_eq!(pick(1, false, &[]), Ok(1));
        pool.endpoints[2].state.set_healthy(false);
        assert_eq!(pick(3, false, &[]), Ok(1));
    }
}
