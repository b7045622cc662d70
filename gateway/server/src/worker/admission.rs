//! Whether a request may turn to a pool at all: requests in flight, adaptive concurrency, admission control.
//!
//! What is allowed is core's to say; here a request is counted for as long as it lives. Pools without such limits cost a
//! comparison.

use std::time::{Duration, Instant};

use fieldgate_core::balance::CompiledPool;
use fieldgate_core::limits::Refused;

use super::Worker;
use super::capacity::Queued;
use super::exchange::Forward;
use super::local::Answer;
use crate::telemetry::PoolEvent;

/// A request that was let in, counted for as long as this lives.
pub struct Admitted<'w> {
    worker: &'w Worker,
    pool: &'w CompiledPool,
    since: Instant,
    /// Not known of requests whose client went away.
    success: Option<bool>,
}

impl<'w> Admitted<'w> {
    /// Lets a request in to a pool that limits them, or says why not. One that finds as many in flight as may be waits, if the pool has a queue.
    pub async fn enter(worker: &'w Worker, to: &Forward<'w>) -> Result<Self, Answer> {
        let pool = to.pool();
        let mut waiting: Option<Queued> = None;
        let queues = pool.ir.limits.queue_timeout.is_some();
        loop {
            // Who comes now does not overtake those who wait.
            let entered = if queues && waiting.is_none() && worker.upstreams.room(pool).waiting() > 0 {
                Err(Refused::Requests)
            } else {
                worker.with_pool(pool, |state| state.enter(pool, worker.now_ms(), &mut || worker.random()))
            };
            match entered {
                Ok(()) => {
                    return Ok(Self { worker, pool, since: Instant::now(), success: None });
                }
                Err(Refused::Requests) if queues => {
                    let queue = match waiting.take() {
                        None => Queued::begin(worker, pool, smallvec::SmallVec::new(), to.limit()),
                        queue => queue,
                    };
                    // Rare, and not to make every exchange larger.
                    match queue {
                        Some(queue) if Box::pin(queue.wait()).await => waiting = Some(queue),
                        _ => return Err(refusal(worker, pool, Refused::Requests)),
                    }
                }
                Err(refused) => return Err(refusal(worker, pool, refused)),
            }
        }
    }

    /// How it ended, as far as the pool is concerned.
    pub fn ended(mut self, status: u16) {
        self.success = (status > 0).then_some(status < 500);
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let Self { worker, pool, since, success } = *self;
        let took: Duration = since.elapsed();
        worker.with_pool(pool, |state| {
            state.leave(pool, took, success, worker.now_ms(), &mut || worker.random());
        });
        worker.upstreams.room(pool).freed();
    }
}

fn refusal(worker: &Worker, pool: &CompiledPool, refused: Refused) -> Answer {
    worker.recorder.pool_event(&pool.ir.key, PoolEvent::Refused(refused.as_str()));
    let mut answer = Answer::new(503, refused.details(), refused.flags(), refused.message());
    answer.headers.push(b"retry-after", b"1");
    answer
}
