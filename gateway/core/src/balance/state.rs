//! What one worker knows about a pool: its requests in flight, how long they take, whose turn it is, and who may be chosen.

use std::net::SocketAddr;
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::latency::Latency;
use super::view::View;
use super::{CompiledPool, ir};
use crate::limits::LimitState;
use crate::outlier::Tally;

/// Belongs to one worker and a pool slot. Follows the pool by itself when endpoints come and go.
#[derive(Debug, Default)]
pub struct PoolState {
    /// How often an endpoint was chosen though it is not healthy, or in spite of what is known of its health.
    pub panics: u64,
    fingerprint: u64,
    index: FxHashMap<SocketAddr, u32>,
    pub(super) endpoints: Vec<EndpointLocal>,
    /// Of endpoints that have left the pool with requests in flight, and may come back.
    departed: FxHashMap<SocketAddr, EndpointLocal>,
    pub(crate) limits: LimitState,
    pub(super) view: View,
    /// How long latencies are remembered.
    decay: Duration,
}

/// What one worker knows about one endpoint. Follows its address when endpoints come and go.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointLocal {
    /// Requests in flight.
    pub in_flight: u32,
    /// What became of tries, until it is given to all.
    pub tally: Tally,
    /// How far its next turn is; 0 if that is not known.
    pub(super) turn: u32,
    pub(super) latency: Latency,
}

impl PoolState {
    /// Takes over the endpoints of `pool`, keeping counts by address. Costs a comparison when nothing has changed.
    /// `pick` does it by itself.
    pub fn sync(&mut self, pool: &CompiledPool) {
        if self.fingerprint != pool.fingerprint {
            self.remap(pool);
        }
    }

    #[cold]
    fn remap(&mut self, pool: &CompiledPool) {
        self.note_turns();
        for (address, at) in self.index.drain() {
            self.departed.insert(address, self.endpoints[at as usize]);
        }
        self.endpoints.clear();
        for (at, endpoint) in pool.endpoints.iter().enumerate() {
            let address = endpoint.address();
            self.index.insert(address, at as u32);
            self.endpoints.push(self.departed.remove(&address).unwrap_or_default());
        }
        self.departed.retain(|_, local| local.in_flight > 0);
        if let ir::Balance::PeakEwma { decay } = pool.ir.balance {
            self.decay = decay;
        }
        self.view.expire();
        self.fingerprint = pool.fingerprint;
    }

    /// Sees to it that the view is of this pool, as it is now.
    pub(super) fn look(&mut self, pool: &CompiledPool, now_ms: u64, random: &mut dyn FnMut() -> u64) {
        self.sync(pool);
        if !self.view.holds(pool, now_ms) {
            self.look_anew(pool, now_ms, random);
        }
    }

    #[cold]
    fn look_anew(&mut self, pool: &CompiledPool, now_ms: u64, random: &mut dyn FnMut() -> u64) {
        self.note_turns();
        self.view = View::new(pool, &self.endpoints, now_ms, random);
    }

    fn note_turns(&mut self) {
        for group in &self.view.groups {
            group.note_turns(&mut self.endpoints);
        }
        self.view.groups.clear();
    }

    /// A request goes to the endpoint of this index, as `pick` returned it.
    pub fn started(&mut self, endpoint: usize) {
        if let Some(local) = self.endpoints.get_mut(endpoint) {
            local.in_flight += 1;
        }
    }

    /// A request to this address is over. By address, because indexes may have changed since it started.
    pub fn finished(&mut self, address: SocketAddr) {
        if let Some(local) = self.local_mut(address) {
            local.in_flight = local.in_flight.saturating_sub(1);
        }
        if !self.departed.is_empty() {
            self.departed.retain(|_, local| local.in_flight > 0);
        }
    }

    /// A response from this address took so long. Worth telling if [`CompiledPool::wants_latency`].
    pub fn observe(&mut self, address: SocketAddr, took: Duration, now_ms: u64) {
        let decay = self.decay;
        if let Some(local) = self.local_mut(address) {
            local.latency.observe(took, now_ms, decay);
        }
    }

    /// Where an address is among the pool's endpoints.
    pub(super) fn index_of(&self, address: SocketAddr) -> Option<usize> {
        self.index.get(&address).map(|at| *at as usize)
    }

    /// This worker's requests in flight to an address, whether it is still in the pool or not.
    pub fn in_flight(&self, address: SocketAddr) -> u32 {
        let local = match self.index.get(&address) {
            Some(at) => Some(&self.endpoints[*at as usize]),
            None => self.departed.get(&address),
        };
        local.map_or(0, |local| local.in_flight)
    }

    /// What this worker knows about an address, whether it is still in the pool or not.
    #[inline]
    pub(crate) fn local_mut(&mut self, address: SocketAddr) -> Option<&mut EndpointLocal> {
        match self.index.get(&address) {
            Some(at) => self.endpoints.get_mut(*at as usize),
            None => self.departed.get_mut(&address),
        }
    }

    /// This worker's requests in flight.
    pub fn in_flight_total(&self) -> u32 {
        self.endpoints.iter().chain(self.departed.values()).map(|local| local.in_flight).sum()
    }
}
