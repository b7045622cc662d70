//! Which endpoint of a pool gets a request.
//!
//! A [`CompiledPool`] is immutable and shared; what workers learn about an endpoint (its health, its refusals) is in
//! [`EndpointState`], shared by all workers and written only when it changes; what one worker alone knows (requests in
//! flight, whose turn it is) is in its [`PoolState`]. No allocation and, while most endpoints are available, constant
//! time per choice. Nothing here opens a connection or reads a clock.

pub mod affinity;
mod endpoint;
mod hash_policy;
mod shared;
mod state;
mod weighted;

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

pub use endpoint::EndpointState;
pub use hash_policy::{RequestHash, request_hash};
pub use shared::{Gauge, PoolShared};
pub use state::{EndpointLocal, PoolState};

use crate::ir;
use crate::split::hash::xxh64;
use weighted::{Alias, below};

/// Random tries before all endpoints are looked at. With half of them down, one request in sixteen has to.
const TRIES: usize = 4;

/// A pool, ready to choose.
#[derive(Clone, Debug)]
pub struct CompiledPool {
    /// As configured.
    pub ir: Arc<ir::Pool>,
    /// Its place among the snapshot's pools.
    pub slot: u32,
    /// What all workers know about it; the same object over all reloads.
    pub shared: Arc<PoolShared>,
    /// Its endpoints, each address once.
    pub endpoints: Vec<CompiledEndpoint>,
    /// Indexes of those that do not drain.
    serving: Vec<u32>,
    /// By weight among `serving`; `None` if weights are equal.
    alias: Option<Alias>,
    /// Tells a worker that endpoints or weights are others than those that it knows.
    fingerprint: u64,
}

/// An endpoint of a pool.
#[derive(Clone, Debug)]
pub struct CompiledEndpoint {
    /// What is known about it; the same object over all reloads.
    pub state: Arc<EndpointState>,
    /// As configured; its weight is never 0.
    pub ir: ir::Endpoint,
}

impl CompiledEndpoint {
    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.state.address
    }

    /// Whether it gets no new requests: by configuration, or by an operator.
    pub fn is_draining(&self) -> bool {
        self.ir.draining || self.state.is_drained()
    }
}

/// What a request brings to the choice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Its hash, for balancers that look at one.
    pub hash: Option<u64>,
    /// The endpoint that its affinity names.
    pub prefer: Option<SocketAddr>,
    /// It must have that one, or none.
    pub strict: bool,
    /// Those that it was sent to in vain.
    pub tried: &'a [SocketAddr],
}

/// Why no endpoint can have the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NoEndpoint {
    /// The pool has none.
    Empty,
    /// Active checks fail on all that do not drain.
    AllUnhealthy,
    /// All drain.
    AllDraining,
    /// All that could have it were tried for this request.
    AllTried,
}

impl NoEndpoint {
    /// Envoy's response flag.
    pub fn flags(self) -> &'static str {
        "UH"
    }

    /// Envoy's `%RESPONSE_CODE_DETAILS%`.
    pub fn details(self) -> &'static str {
        "no_healthy_upstream"
    }

    /// For metrics: a short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::AllUnhealthy => "all-unhealthy",
            Self::AllDraining => "all-draining",
            Self::AllTried => "all-tried",
        }
    }
}

impl std::fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "the pool has no endpoints",
            Self::AllUnhealthy => "health checks fail on every endpoint of the pool",
            Self::AllDraining => "every endpoint of the pool is draining",
            Self::AllTried => "every available endpoint of the pool was tried",
        })
    }
}

impl std::error::Error for NoEndpoint {}

impl CompiledPool {
    /// Prepares a pool. Endpoints keep their state from `prev`, which is this pool before the change.
    ///
    /// A pool of DNS names keeps the addresses of `prev` while the names are the same, and has only fixed ones before; the
    /// resolver brings them by [`CompiledPool::with_endpoints`].
    pub fn compile(prev: Option<&CompiledPool>, ir: Arc<ir::Pool>, slot: u32) -> Self {
        match &ir.endpoints {
            ir::Endpoints::Static(endpoints) => {
                let endpoints = endpoints.clone();
                Self::build(prev, ir, slot, &endpoints)
            }
            ir::Endpoints::Dns { fixed, .. } => {
                let known = match prev {
                    Some(prev) if prev.ir.endpoints == ir.endpoints => prev.as_configured(),
                    _ => fixed.clone(),
                };
                Self::build(prev, ir, slot, &known)
            }
        }
    }

    /// The same pool with the endpoints that its names resolve to now.
    pub fn with_endpoints(&self, endpoints: &[ir::Endpoint]) -> Self {
        Self::build(Some(self), self.ir.clone(), self.slot, endpoints)
    }

    fn build(prev: Option<&CompiledPool>, ir: Arc<ir::Pool>, slot: u32, endpoints: &[ir::Endpoint]) -> Self {
        // Nobody will lift a verdict of checks that have ended. The old snapshot keeps the old state.
        let checks_ended = ir.health.is_none() && prev.is_some_and(|p| p.ir.health.is_some());
        let known: FxHashMap<SocketAddr, &Arc<EndpointState>> = prev
            .map(|p| p.endpoints.iter().map(|e| (e.state.address, &e.state)).collect())
            .unwrap_or_default();
        let shared = prev.map_or_else(Arc::default, |p| p.shared.clone());
        let state = |address| match known.get(&address) {
            Some(state) if !checks_ended || state.is_healthy() => Arc::clone(state),
            _ => Arc::new(EndpointState::of(address, shared.clone())),
        };
        let endpoints: Vec<CompiledEndpoint> = each_address_once(endpoints)
            .into_iter()
            .map(|mut e| {
                e.weight = e.weight.max(1);
                CompiledEndpoint { state: state(e.address), ir: e }
            })
            .collect();
        let serving: Vec<u32> =
            (0..endpoints.len() as u32).filter(|i| !endpoints[*i as usize].ir.draining).collect();
        let weight = |i: &u32| endpoints[*i as usize].ir.weight;
        let equal = serving.windows(2).all(|w| weight(&w[0]) == weight(&w[1]));
        let alias = (!equal).then(|| Alias::new(serving.iter().map(weight)));
        let fingerprint = fingerprint(&endpoints);
        Self { ir, slot, shared, endpoints, serving, alias, fingerprint }
    }

    fn as_configured(&self) -> Vec<ir::Endpoint> {
        self.endpoints.iter().map(|e| e.ir.clone()).collect()
    }

    /// Chooses an endpoint's index, never one of those tried, never one that drains or that active checks call unhealthy.
    ///
    /// Endpoints left alone after failures (ejected) are passed over as long as another is available. When all that are
    /// left are ejected they are used all the same: such a verdict is a guess from a few requests, and a wrong guess
    /// about all of them must not become an outage. `PoolState::panics` counts these. Active checks are believed: when
    /// they fail everywhere the answer is an error at once.
    pub fn pick(
        &self,
        state: &mut PoolState,
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
        wish: &Wish<'_>,
    ) -> Result<usize, NoEndpoint> {
        state.sync(self);
        let tried = wish.tried;
        let usable = |at: usize| {
            let endpoint = &*self.endpoints[at].state;
            endpoint.available(now_ms) && !tried.contains(&endpoint.address)
        };
        let sampled = match self.ir.balance {
            ir::Balance::RoundRobin => state.next_in_turn(self, random, &usable),
            ir::Balance::Random => self.sample(random, &usable),
            _ => self.less_loaded(state, random, &usable),
        };
        if let Some(at) = sampled {
            return Ok(at);
        }
        if let Some(at) = self.scan(random, &usable) {
            return Ok(at);
        }
        let healthy =
            |at: usize| self.endpoints[at].state.is_healthy() && !self.endpoints[at].state.is_drained();
        let untried = |at: usize| healthy(at) && !tried.contains(&self.endpoints[at].state.address);
        if let Some(at) = self.scan(random, &untried) {
            state.panics += 1;
            return Ok(at);
        }
        Err(self.why_none(healthy))
    }

    fn why_none(&self, healthy: impl Fn(usize) -> bool) -> NoEndpoint {
        if self.endpoints.is_empty() {
            NoEndpoint::Empty
        } else if self.endpoints.iter().all(CompiledEndpoint::is_draining) {
            NoEndpoint::AllDraining
        } else if self.serving.iter().any(|i| healthy(*i as usize)) {
            NoEndpoint::AllTried
        } else {
            NoEndpoint::AllUnhealthy
        }
    }

    /// The better of two: the first drawn by weight, the challenger evenly among the others. Loads are requests in
    /// flight per weight; at equal load the first has it, so that an idle pool is used by weight.
    fn less_loaded(
        &self,
        state: &PoolState,
        random: &mut dyn FnMut() -> u64,
        usable: &dyn Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.sample(random, usable)?;
        let challenger = self.draw_even(random())?;
        if challenger == first || !usable(challenger) {
            return Some(first);
        }
        let load = |at: usize, other: usize| {
            u64::from(state.in_flight_of(at)) * u64::from(self.endpoints[other].ir.weight)
        };
        Some(if load(challenger, first) < load(first, challenger) { challenger } else { first })
    }

    /// Draws by weight until one is usable, a few times.
    fn sample(&self, random: &mut dyn FnMut() -> u64, usable: &dyn Fn(usize) -> bool) -> Option<usize> {
        (0..TRIES).find_map(|_| {
            let at = match &self.alias {
                Some(alias) => self.serving[alias.draw(random())] as usize,
                None => self.draw_even(random())?,
            };
            usable(at).then_some(at)
        })
    }

    fn draw_even(&self, random: u64) -> Option<usize> {
        let at = below(self.serving.len() as u64, random)?;
        Some(self.serving[at as usize] as usize)
    }

    /// One of all usable ones, by weight. Linear, for when drawing misses.
    fn scan(&self, random: &mut dyn FnMut() -> u64, usable: &dyn Fn(usize) -> bool) -> Option<usize> {
        let candidates = || self.serving.iter().map(|i| *i as usize).filter(|at| usable(*at));
        let weight = |at: usize| u64::from(self.endpoints[at].ir.weight);
        let mut point = below(candidates().map(weight).sum(), random())?;
        let mut last = None;
        for at in candidates() {
            if point < weight(at) {
                return Some(at);
            }
            point -= weight(at);
            last = Some(at);
        }
        // Another worker ejected one between the two passes.
        last
    }
}

/// An address listed twice is one endpoint: it serves if any entry serves, with the weights of those that do.
fn each_address_once(endpoints: &[ir::Endpoint]) -> Vec<ir::Endpoint> {
    let mut at: FxHashMap<SocketAddr, usize> = FxHashMap::default();
    let mut once: Vec<ir::Endpoint> = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let first = *at.entry(endpoint.address).or_insert(once.len());
        match once.get_mut(first) {
            None => once.push(endpoint.clone()),
            Some(known) if known.draining && !endpoint.draining => *known = endpoint.clone(),
            Some(known) if known.draining == endpoint.draining => {
                known.weight = known.weight.saturating_add(endpoint.weight);
            }
            Some(_) => {}
        }
    }
    once
}

fn fingerprint(endpoints: &[CompiledEndpoint]) -> u64 {
    let mut text = Vec::with_capacity(endpoints.len() * 24);
    for endpoint in endpoints {
        match endpoint.state.address {
            SocketAddr::V4(a) => text.extend_from_slice(&a.ip().octets()),
            SocketAddr::V6(a) => {
                text.extend_from_slice(&a.ip().octets());
                text.extend_from_slice(&a.scope_id().to_le_bytes());
            }
        }
        text.extend_from_slice(&endpoint.state.address.port().to_le_bytes());
        text.extend_from_slice(&endpoint.ir.weight.to_le_bytes());
        text.push(u8::from(endpoint.ir.draining));
    }
    // 0 is what a new worker state has.
    xxh64(&text, 0).max(1)
}

#[cfg(test)]
mod tests;
