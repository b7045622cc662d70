//! Many choices at once, where the shares of endpoints can be told: by workers with nothing in flight, with always as
//! much in flight, and when all trouble is over.

use std::collections::VecDeque;

use fieldgate_core::balance::{CompiledPool, PoolState, Wish};
use fieldgate_core::ir::Balance;

use crate::life::{Life, POOLS, WORKERS};
use crate::oracle::Oracle;
use crate::world::Mode;

/// Choices.
const N: u32 = 600;
/// Longer than any ejection, and than latencies are remembered.
const LONG_MS: u64 = 600_000;

impl Life {
    pub fn census(&mut self, slot: usize) {
        let pool = self.pools[slot].compiled.clone();
        let oracle = self.oracle(slot, &pool);
        self.check_keys(slot);
        let hopeless = oracle.right(None, 0).endpoints == 0;
        if hopeless || pool.ir.spread.slow_start.is_some() || pool.ir.spread.fail_in_panic {
            return;
        }
        // A new worker has nothing in flight: all balancers go by weight then.
        let counts = self.counts(&pool, &mut PoolState::default(), 0);
        let slack = if pool.ir.balance == Balance::RoundRobin && oracle.is_one_group() { 0.0 } else { 6.0 };
        self.check_shares(&pool, &oracle, &counts, slack, 0.0);
        // With endpoints that are equally fast, requests in flight are by weight, and so are choices.
        if let Balance::LeastRequest { bias: 100, .. } = pool.ir.balance {
            let counts = self.counts(&pool, &mut PoolState::default(), 60);
            self.check_shares(&pool, &oracle, &counts, 6.0, 0.3);
        }
    }

    /// Choices of first tries; requests last for `held` further ones.
    fn counts(&mut self, pool: &CompiledPool, state: &mut PoolState, held: usize) -> Vec<u32> {
        let (now_ms, chance) = (self.now_ms, &mut self.chance);
        let mut counts = vec![0u32; pool.endpoints.len()];
        let mut open = VecDeque::new();
        for _ in 0..N {
            match pool.pick(state, now_ms, &mut || chance.next(), &Wish::default()) {
                Ok(at) => {
                    counts[at] += 1;
                    state.started(at);
                    open.push_back(pool.endpoints[at].address());
                }
                Err(why) => self.fail(&format!("{why:?} in a census of {:?}", pool.ir)),
            }
            if open.len() > held {
                open.pop_front().into_iter().for_each(|address| state.finished(address));
            }
        }
        for address in open {
            state.finished(address);
        }
        counts
    }

    /// `slack` is in standard deviations, `part` of the share.
    fn check_shares(&self, pool: &CompiledPool, oracle: &Oracle, counts: &[u32], slack: f64, part: f64) {
        for (count, share) in counts.iter().zip(oracle.expected()) {
            let mean = f64::from(N) * share;
            let slack = 2.0 + slack * (mean * (1.0 - share)).sqrt() + part * mean;
            if (f64::from(*count) - mean).abs() > slack {
                self.fail(&format!(
                    "a census of {N} gave {counts:?} where {:.3?} were the shares of {:?}",
                    oracle.expected(),
                    pool.ir
                ));
            }
        }
    }

    /// When all trouble is over, all that do not drain get requests again, and in the end their share.
    pub fn check_recovery(&mut self) {
        self.servers.values_mut().for_each(|server| server.mode = Mode::Fine);
        for slot in 0..POOLS {
            let pool = self.pools[slot].compiled.clone();
            for endpoint in &pool.endpoints {
                let checked = self.model.set_healthy(&endpoint.state, true);
                self.check(checked);
                self.model.set_drained(&endpoint.state, false);
                self.model.set_degraded(&endpoint.state, false);
            }
        }
        self.now_ms += LONG_MS;
        for slot in 0..POOLS {
            for worker in 0..WORKERS {
                self.check_recovered(slot, worker);
            }
        }
    }

    fn check_recovered(&mut self, slot: usize, worker: usize) {
        let pool = self.pools[slot].compiled.clone();
        let checked = self.model.agrees(&pool, self.now_ms);
        self.check(checked);
        let oracle = self.oracle(slot, &pool);
        if oracle.right(None, 0).endpoints == 0 || !oracle.is_regular() {
            return;
        }
        let mut state = std::mem::take(&mut self.pools[slot].workers[worker].state);
        // Slow starts begin when they are seen.
        self.counts(&pool, &mut state, 0);
        self.now_ms += LONG_MS;
        let counts = self.counts(&pool, &mut state, 0);
        let by_latency = pool.wants_latency();
        self.check_shares(&pool, &oracle, &counts, 6.0, if by_latency { 1.0 } else { 0.0 });
        let starved = |(count, share): (&u32, f64)| *count == 0 && share * f64::from(N) > 40.0;
        if counts.iter().zip(oracle.expected()).any(starved) {
            self.fail(&format!("all is well again, but some get nothing: {counts:?} of {:?}", pool.ir));
        }
        self.pools[slot].workers[worker].state = state;
    }
}
