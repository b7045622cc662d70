//! What all workers know about one pool as a whole. Kept over reloads as long as the pool has its name.
//!
//! Every atomic but the epoch stands for itself and is only a hint about the future, so relaxed ordering is enough. They
//! are written when something changes; per request only those are whose limit is set.

use std::sync::Mutex;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use crate::outlier::Counters;

/// Shared by all workers.
#[derive(Debug, Default)]
pub struct PoolShared {
    /// Goes up whenever the state of an endpoint changes other than by time passing.
    epoch: AtomicU64,
    /// Held while somebody decides about an ejection, so that the bound on how many there may be is exact.
    pub ejecting: Mutex<()>,
    /// Outliers.
    pub ejections: Counters,
    /// Requests in flight, counted if they are limited.
    pub requests: Gauge,
    /// Retries in flight, counted if they are limited.
    pub retries: Gauge,
    /// Connections, counted if they are limited.
    pub connections: Gauge,
    /// Requests that wait for a place.
    pub pending: Gauge,
}

impl PoolShared {
    /// Changes whenever the state of an endpoint has changed. Who sees the new one sees the new state.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Acquire)
    }

    /// The state of an endpoint has changed.
    pub fn changed(&self) {
        self.epoch.fetch_add(1, Release);
    }
}

/// Counts what there may be only so many of.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU32,
    refused: AtomicU64,
}

impl Gauge {
    /// Counts one more, unless there are `limit` already. Says whether it did.
    pub fn enter(&self, limit: u32) -> bool {
        let entered = self.now.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).is_ok();
        if !entered {
            self.refused.fetch_add(1, Relaxed);
        }
        entered
    }

    /// One that was counted has ended.
    pub fn leave(&self) {
        self.now.fetch_sub(1, Relaxed);
    }

    /// How many there are.
    pub fn now(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// How often the limit was met.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}
