//! Who got how many requests while nothing changed, and whether that is as it should be.

use std::rc::Rc;
use std::sync::Arc;

use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::Balance;

use crate::model::Checked;
use crate::oracle::Oracle;

/// Choices of one worker from one pool while nobody's state and nothing in the configuration changed.
pub struct Stretch {
    pool: Arc<CompiledPool>,
    oracle: Rc<Oracle>,
    epoch: u64,
    /// First tries, by endpoint.
    counts: Vec<u32>,
    n: u32,
    /// Retries have drawn beside them.
    retries: u32,
    /// Endpoints that had no request in flight all the time, in bits.
    idle: u64,
}

/// Shorter stretches say nothing, and longer ones are cut.
const LEAST: u32 = 100;
const MOST: u32 = 20_000;

impl Stretch {
    pub fn new(pool: &Arc<CompiledPool>, oracle: &Rc<Oracle>, idle: u64) -> Self {
        let counts = vec![0; pool.endpoints.len()];
        let (pool, oracle) = (pool.clone(), oracle.clone());
        let epoch = pool.shared.epoch();
        Self { pool, oracle, epoch, counts, n: 0, retries: 0, idle }
    }

    /// Whether it goes on.
    pub fn is_of(&self, pool: &Arc<CompiledPool>, oracle: &Rc<Oracle>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
            && Rc::ptr_eq(&self.oracle, oracle)
            && self.epoch == pool.shared.epoch()
            && self.n < MOST
    }

    /// A choice of the first try of a request, by nothing but shares.
    pub fn count(&mut self, at: usize) {
        self.counts[at] += 1;
        self.n += 1;
    }

    /// A choice of a retry, or one that nobody used.
    pub fn count_other(&mut self) {
        self.retries += 1;
    }

    /// This one has requests in flight.
    pub fn busy(&mut self, at: usize) {
        self.idle &= !(1 << at);
    }

    /// Whether it can tell something.
    pub fn is_long(&self) -> bool {
        self.n >= LEAST
    }

    /// Whether shares were honoured and nobody starved.
    pub fn check(&self) -> Checked {
        let (pool, oracle) = (&self.pool, &self.oracle);
        if !self.is_long() || !oracle.is_regular() || pool.ir.spread.slow_start.is_some() {
            return Ok(());
        }
        let by_weight_alone = match pool.ir.balance {
            Balance::RoundRobin | Balance::Random | Balance::RingHash { .. } | Balance::Maglev { .. } => true,
            Balance::LeastRequest { bias, .. } => bias == 0,
            Balance::PeakEwma { .. } => false,
        };
        let in_turn = pool.ir.balance == Balance::RoundRobin && oracle.is_one_group();
        let n = f64::from(self.n);
        for (at, share) in oracle.expected().iter().enumerate() {
            let (count, mean) = (f64::from(self.counts[at]), n * share);
            let slack = match () {
                // A retry may pass over up to four turns.
                () if in_turn => 3.0 + 4.0 * f64::from(self.retries),
                () if by_weight_alone => 3.0 + 6.0 * (mean * (1.0 - share)).sqrt() + f64::from(self.retries),
                // The least busy has it, so a share is no more than what comes when all are alike. But one that
                // has nothing to do has its turn when it is drawn first.
                () if self.idle >> at & 1 == 1 && mean > 60.0 && count == 0.0 => {
                    return Err(self.say("starves", pool, at, mean));
                }
                () => continue,
            };
            if (count - mean).abs() > slack {
                return Err(self.say("does not have its share", pool, at, mean));
            }
        }
        Ok(())
    }

    fn say(&self, what: &str, pool: &CompiledPool, at: usize, mean: f64) -> String {
        let weights: Vec<u32> = pool.endpoints.iter().map(|e| e.ir.weight).collect();
        format!(
            "{} {what}: {mean:.1} of {} expected; {:?} by weights {weights:?}, {} retries, {:?}",
            pool.endpoints[at].address(),
            self.n,
            self.counts,
            self.retries,
            pool.ir.balance
        )
    }
}
