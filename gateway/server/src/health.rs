//! Active health checks of pools: asks each endpoint now and then, and marks it healthy or not.
//!
//! Runs on the control runtime. An endpoint of a pool is checked once, however many routes lead to it, and its state is
//! the [`EndpointState`] that every worker reads, which survives reloads. It never chooses an endpoint: that is
//! `fieldgate_core::balance`'s. Why these are not pingora-load-balancing's checks: `docs/decisions/0003-health-checks.md`.

mod probe;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::balance::EndpointState;
use fieldgate_core::ir::{HealthCheck, PoolKey, Protocol};
use fieldgate_core::snapshot::Snapshot;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Checks under way at once. More wait for their turn: a start with thousands of endpoints must not become a burst of
/// connections.
const CONCURRENT_PROBES: usize = 128;

/// The checks that are running.
pub struct Checks {
    running: HashMap<(PoolKey, SocketAddr), Check>,
    permits: Arc<Semaphore>,
}

/// What is checked and how; a change of any part starts the check anew.
#[derive(Clone)]
struct Check {
    state: Arc<EndpointState>,
    settings: Arc<HealthCheck>,
    protocol: Protocol,
    task: AbortHandle,
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: HashMap::new(), permits: Arc::new(Semaphore::new(CONCURRENT_PROBES)) }
    }
}

impl Checks {
    /// Checks exactly the endpoints that the snapshot wants checked. A check that stays as it is keeps running, with its
    /// counts and its place in the interval.
    pub fn reconcile(&mut self, snapshot: &Snapshot) {
        let mut wanted = HashSet::new();
        for pool in snapshot.pools() {
            let Some(settings) = &pool.ir.health else { continue };
            for endpoint in &pool.endpoints {
                let key = (pool.ir.key.clone(), endpoint.state.address);
                self.ensure(&key, &endpoint.state, settings, pool.ir.protocol);
                wanted.insert(key);
            }
        }
        self.running.retain(|key, check| {
            let keep = wanted.contains(key);
            if !keep {
                check.task.abort();
                // Nobody would ever mark it healthy again, should the endpoint stay without its check.
                check.state.set_healthy(true);
            }
            keep
        });
    }

    /// How many checks are running.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether no check is running.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    fn ensure(
        &mut self,
        key: &(PoolKey, SocketAddr),
        state: &Arc<EndpointState>,
        settings: &Arc<HealthCheck>,
        protocol: Protocol,
    ) {
        if let Some(check) = self.running.get(key) {
            if check.settings == *settings && check.protocol == protocol && Arc::ptr_eq(&check.state, state) {
                return;
            }
            check.task.abort();
        }
        let watch = Watch {
            pool: key.0.clone(),
            state: Arc::clone(state),
            settings: Arc::clone(settings),
            protocol,
            permits: Arc::clone(&self.permits),
            tally: Tally::default(),
        };
        let task = tokio::spawn(watch.run()).abort_handle();
        let check = Check { state: Arc::clone(state), settings: Arc::clone(settings), protocol, task };
        self.running.insert(key.clone(), check);
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for check in self.running.values() {
            check.task.abort();
        }
    }
}

struct Watch {
    pool: PoolKey,
    state: Arc<EndpointState>,
    settings: Arc<HealthCheck>,
    protocol: Protocol,
    permits: Arc<Semaphore>,
    tally: Tally,
}

impl Watch {
    async fn run(mut self) {
        loop {
            let result = {
                // The semaphore is never closed.
                let _permit = self.permits.acquire().await;
                probe::probe(self.state.address, &self.settings, self.protocol).await
            };
            self.judge(result);
            tokio::time::sleep(self.settings.interval + random_up_to(self.settings.jitter)).await;
        }
    }

    fn judge(&mut self, result: Result<(), String>) {
        let was = self.state.is_healthy();
        let now = self.tally.count(was, result.is_ok(), &self.settings);
        if now == was {
            return;
        }
        self.state.set_healthy(now);
        let (pool, endpoint) = (&self.pool, self.state.address);
        match result {
            Ok(()) => tracing::info!(%pool, %endpoint, "endpoint is healthy again"),
            Err(reason) => tracing::warn!(%pool, %endpoint, reason, "endpoint is unhealthy"),
        }
    }
}

/// Results in a row.
#[derive(Default)]
struct Tally {
    in_a_row: u32,
    last: Option<bool>,
}

impl Tally {
    /// Counts one result and says whether the endpoint is healthy now. The first result of a check decides alone, as
    /// nothing is known before it (Envoy does the same); after that the thresholds hold.
    fn count(&mut self, healthy: bool, success: bool, settings: &HealthCheck) -> bool {
        if self.last.is_none() {
            self.last = Some(success);
            self.in_a_row = 1;
            return success;
        }
        self.in_a_row = if self.last == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let needed = if success { settings.healthy } else { settings.unhealthy };
        if self.in_a_row >= needed { success } else { healthy }
    }
}

/// Spreads checks that started together. `RandomState` is seeded from the system, which is random enough for that.
fn random_up_to(limit: Duration) -> Duration {
    let fraction = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
    limit.mul_f64(fraction)
}

/// The status that a check sees in what it received. For the fuzz targets.
#[cfg(fuzzing)]
pub fn final_status(received: &[u8]) -> Result<Option<u16>, String> {
    probe::final_status(received)
}

#[cfg(test)]
mod tests;
