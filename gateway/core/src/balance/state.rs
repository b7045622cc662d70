//! What one worker knows about a pool: its requests in flight and whose turn it is.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::net::SocketAddr;

use rustc_hash::FxHashMap;

use super::CompiledPool;
use super::weighted::below;
use crate::limits::LimitState;
use crate::outlier::Tally;

/// Belongs to one worker and a pool slot. Follows the pool by itself when endpoints come and go.
#[derive(Debug, Default)]
pub struct PoolState {
    /// How often every endpoint was ejected and one had to be used all the same.
    pub panics: u64,
    fingerprint: u64,
    index: FxHashMap<SocketAddr, u32>,
    endpoints: Vec<EndpointLocal>,
    /// Of endpoints that have left the pool with requests in flight, and may come back.
    departed: FxHashMap<SocketAddr, EndpointLocal>,
    turns: Turns,
    pub(crate) limits: LimitState,
}

/// What one worker knows about one endpoint. Follows its address when endpoints come and go.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndpointLocal {
    /// Requests in flight.
    pub in_flight: u32,
    /// What became of tries, until it is given to all.
    pub tally: Tally,
}

impl PoolState {
    /// Takes over the endpoints of `pool`, keeping counts by address. Costs a comparison when nothing has changed.
    /// `pick` does it by itself.
    pub fn sync(&mut self, pool: &CompiledPool) {
        if self.fingerprint != pool.fingerprint {
            self.remap(pool);
        }
    }

    fn remap(&mut self, pool: &CompiledPool) {
        for (address, at) in self.index.drain() {
            let local = self.endpoints[at as usize];
            if local.in_flight > 0 {
                self.departed.insert(address, local);
            }
        }
        self.endpoints.clear();
        for (at, endpoint) in pool.endpoints.iter().enumerate() {
            let address = endpoint.address();
            self.index.insert(address, at as u32);
            self.endpoints.push(self.departed.remove(&address).unwrap_or_default());
        }
        self.turns = Turns::Unknown;
        self.fingerprint = pool.fingerprint;
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

    /// This worker's requests in flight to an address, whether it is still in the pool or not.
    pub fn in_flight(&self, address: SocketAddr) -> u32 {
        let local = match self.index.get(&address) {
            Some(at) => Some(&self.endpoints[*at as usize]),
            None => self.departed.get(&address),
        };
        local.map_or(0, |local| local.in_flight)
    }

    /// What this worker knows about an address, whether it is still in the pool or not.
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

    pub(super) fn in_flight_of(&self, endpoint: usize) -> u32 {
        self.endpoints[endpoint].in_flight
    }

    /// The next usable one in turn. Those that are not usable lose their turn; `None` after a few of them.
    pub(super) fn next_in_turn(
        &mut self,
        pool: &CompiledPool,
        random: &mut dyn FnMut() -> u64,
        usable: &dyn Fn(usize) -> bool,
    ) -> Option<usize> {
        if let Turns::Unknown = self.turns {
            self.turns = Turns::new(pool, random());
        }
        let tries = pool.serving.len().min(super::TRIES);
        (0..tries).find_map(|_| {
            let at = self.turns.next(pool)?;
            usable(at).then_some(at)
        })
    }
}

/// Whose turn it is.
#[derive(Debug, Default)]
enum Turns {
    #[default]
    Unknown,
    /// All weights are equal: the next place among those that serve.
    Even(usize),
    /// The earliest due on top.
    Weighted(BinaryHeap<Turn>),
}

/// An endpoint that has had `taken` turns is due at `(taken + 1/2) / weight` (A. Sainte-Laguë's divisors), which puts
/// the turns of each evenly between those of the others; after as many turns as the sum of weights each has had its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    taken: u64,
    weight: u32,
    /// Breaks ties; every worker begins at another place.
    order: u32,
    endpoint: u32,
}

impl Ord for Turn {
    /// Reversed, for `BinaryHeap` keeps the greatest on top.
    fn cmp(&self, other: &Self) -> Ordering {
        let due = |a: &Self, b: &Self| (2 * u128::from(a.taken) + 1) * u128::from(b.weight);
        due(other, self).cmp(&due(self, other)).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Turns {
    fn new(pool: &CompiledPool, random: u64) -> Self {
        let n = pool.serving.len();
        let start = below(n as u64, random).unwrap_or(0) as usize;
        if pool.alias.is_none() {
            return Self::Even(start);
        }
        let turn = |(place, endpoint): (usize, &u32)| Turn {
            taken: 0,
            weight: pool.endpoints[*endpoint as usize].ir.weight,
            order: ((place + n - start) % n) as u32,
            endpoint: *endpoint,
        };
        Self::Weighted(pool.serving.iter().enumerate().map(turn).collect())
    }

    fn next(&mut self, pool: &CompiledPool) -> Option<usize> {
        match self {
            Self::Unknown => None,
            Self::Even(place) => {
                let at = *pool.serving.get(*place)?;
                *place = (*place + 1) % pool.serving.len();
                Some(at as usize)
            }
            Self::Weighted(turns) => {
                let mut top = turns.peek_mut()?;
                top.taken += 1;
                Some(top.endpoint as usize)
            }
        }
    }
}
