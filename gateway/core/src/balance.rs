//! Which endpoint of a pool gets a request. What is Envoy's means here what it means there.
//!
//! A [`CompiledPool`] is immutable and shared; what workers learn about an endpoint (its health, its refusals) is in
//! [`EndpointState`], shared by all workers and written only when it changes; what one worker alone knows (requests in
//! flight, whose turn it is) is in its [`PoolState`]. Nothing here opens a connection or reads a clock.
//!
//! A choice looks at no endpoint's state. From all states a worker derives a view (`view`): groups of endpoints that may
//! be chosen, and how much each group gets, by priority (`levels`), locality (`localities`) and age (`slow_start`). It
//! holds until the pool's epoch changes or its time is over. A choice checks that, draws a group, and draws from the
//! group (`group`) in constant time and without allocation. A hash is looked up in a table (`table`) made when the
//! snapshot was compiled; there the view says who is passed over.
//!
//! Where this differs from Envoy:
//! * An endpoint that drains counts neither as there nor as sick, so that maintenance makes no panic.
//! * Ejections that no outlier detection was configured for are guesses of ours. They are passed over, and give their load
//!   to other endpoints and priorities, but make no panic; when they are all that is left they are used all the same.
//! * A retry never goes to an endpoint that was tried, and in a panic it goes to one that is available, if any is.

pub mod affinity;
mod attachment;
mod endpoint;
mod group;
mod hash_policy;
mod latency;
mod levels;
mod localities;
mod shared;
mod slow_start;
mod state;
mod table;
mod view;
mod weighted;

use std::net::SocketAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

pub use attachment::Attachment;
pub use endpoint::EndpointState;
pub use hash_policy::{RequestHash, request_hash};
pub use shared::{Gauge, PoolShared};
pub use state::{EndpointLocal, PoolState};
pub use table::murmur2;

use crate::ir;
use crate::split::hash::xxh64;
use group::Kind;
use table::Tables;
use view::{Class, Share};
use weighted::below;

/// Draws of a retry before all endpoints are looked at.
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
    /// How its endpoints are connected to, made ready by whoever publishes it.
    pub transport: Attachment,
    /// Indexes of endpoints by priority, the first first.
    levels: Vec<Vec<u32>>,
    tables: Tables,
    /// Tells a worker that endpoints, or how they are chosen, are others than those that it knows.
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
    /// Too few are healthy, and the pool is set to refuse requests then.
    Panic,
    /// It must have the endpoint that its affinity names, which is not available.
    AffinityLost,
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
            Self::Panic => "panic",
            Self::AffinityLost => "affinity-lost",
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
            Self::Panic => "too few endpoints of the pool are healthy, and it is set to refuse requests then",
            Self::AffinityLost => "the endpoint that the request's session is bound to is not available",
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
            Some(_) => Arc::new(EndpointState::of(address, shared.clone())),
            None => {
                let state = EndpointState::of(address, shared.clone());
                // The endpoints that a pool begins with are not new to it.
                if !known.is_empty() {
                    state.leave();
                }
                Arc::new(state)
            }
        };
        let endpoints: Vec<CompiledEndpoint> = each_address_once(endpoints)
            .into_iter()
            .map(|mut e| {
                e.weight = e.weight.max(1);
                CompiledEndpoint { state: state(e.address), ir: e }
            })
            .collect();
        let levels = levels(&endpoints);
        let tables = Tables::new(&ir, &endpoints, &levels, prev);
        let fingerprint = fingerprint(&ir, &endpoints);
        Self { ir, slot, shared, endpoints, transport: Attachment::default(), levels, tables, fingerprint }
    }

    fn as_configured(&self) -> Vec<ir::Endpoint> {
        self.endpoints.iter().map(|e| e.ir.clone()).collect()
    }

    /// Whether workers should tell how long responses take ([`PoolState::observe`]).
    pub fn wants_latency(&self) -> bool {
        matches!(self.ir.balance, ir::Balance::PeakEwma { .. })
    }

    /// Chooses an endpoint's index, never one of those tried, and never one that drains, but for a request that is bound to
    /// it. One that is not available is chosen in a panic only, or when it is left alone on a guess and there is no other;
    /// `PoolState::panics` counts these.
    pub fn pick(
        &self,
        state: &mut PoolState,
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
        wish: &Wish<'_>,
    ) -> Result<usize, NoEndpoint> {
        state.look(self, now_ms, random);
        if let Some(address) = wish.prefer {
            match self.bound(state, now_ms, address, wish.tried) {
                Some(at) => return Ok(at),
                None if wish.strict => return Err(NoEndpoint::AffinityLost),
                None => {}
            }
        }
        if let (Some(hash), false) = (wish.hash, self.tables.levels.is_empty()) {
            return self.pick_by_hash(state, hash, random, wish.tried);
        }
        let group = state.view.draw_group(random);
        match state.view.groups.get(group) {
            Some(of) if of.kind.is_regular() && wish.tried.is_empty() => {
                Ok(self.draw(state, group, now_ms, random))
            }
            _ => self.pick_carefully(state, group, now_ms, random, wish.tried),
        }
    }

    /// By the pool's balancer.
    #[inline]
    fn draw(
        &self,
        state: &mut PoolState,
        group: usize,
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
    ) -> usize {
        let PoolState { view, endpoints, .. } = state;
        let group = &mut view.groups[group];
        match self.ir.balance {
            ir::Balance::RoundRobin => group.next(),
            ir::Balance::LeastRequest { choices, bias } => group.less_busy(endpoints, choices, bias, random),
            ir::Balance::PeakEwma { decay } => group.quicker(endpoints, now_ms, decay, random),
            ir::Balance::Random | ir::Balance::RingHash { .. } | ir::Balance::Maglev { .. } => {
                group.draw(random())
            }
        }
    }

    /// The endpoint that a request is bound to. Draining ends no session: that one finishes what it has.
    fn bound(
        &self,
        state: &PoolState,
        now_ms: u64,
        address: SocketAddr,
        tried: &[SocketAddr],
    ) -> Option<usize> {
        let at = state.index_of(address)?;
        let known = &self.endpoints[at].state;
        (known.is_healthy() && !known.is_ejected(now_ms) && !tried.contains(&address)).then_some(at)
    }

    /// For retries, panics, and when nothing is available.
    #[cold]
    fn pick_carefully(
        &self,
        state: &mut PoolState,
        group: usize,
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
        tried: &[SocketAddr],
    ) -> Result<usize, NoEndpoint> {
        let Some(kind) = state.view.groups.get(group).map(|group| group.kind) else {
            return self.pick_what_is_left(state, random, tried);
        };
        self.refuse_in_panic(kind)?;
        if kind == Kind::Panic && !tried.is_empty() {
            return self.pick_what_is_left(state, random, tried);
        }
        for _ in 0..TRIES {
            let at = self.draw(state, group, now_ms, random);
            if !tried.contains(&self.endpoints[at].state.address) {
                state.panics += u64::from(!kind.is_regular());
                return Ok(at);
            }
        }
        let untried = |at: &u32| !tried.contains(&self.endpoints[*at as usize].state.address);
        match self.scan(state.view.groups[group].members.iter().filter(|at| untried(at)), random) {
            Some(at) => {
                state.panics += u64::from(!kind.is_regular());
                Ok(at)
            }
            None => self.pick_what_is_left(state, random, tried),
        }
    }

    /// The first in line for the hash. In Envoy the priority is by the hash, too.
    fn pick_by_hash(
        &self,
        state: &mut PoolState,
        hash: u64,
        random: &mut dyn FnMut() -> u64,
        tried: &[SocketAddr],
    ) -> Result<usize, NoEndpoint> {
        let mut point = (hash % 100) as u32;
        let share = state.view.shares.iter().find(|share| {
            let here = point < share.percent;
            point = point.saturating_sub(share.percent);
            here
        });
        let Some(share) = share.copied() else { return self.pick_what_is_left(state, random, tried) };
        self.refuse_in_panic(share.kind)?;
        let balance_factor = self.ir.balance.hash_by().map_or(0, |by| by.balance_factor);
        let found = match (balance_factor, share.kind) {
            (0, _) => None,
            (factor, _) => self.find(state, share, hash, tried, self.bound_of_load(state, share, factor)),
        };
        match found.or_else(|| self.find(state, share, hash, tried, None)) {
            Some(at) => {
                state.panics += u64::from(!share.kind.is_regular());
                Ok(at)
            }
            None => self.pick_what_is_left(state, random, tried),
        }
    }

    fn find(
        &self,
        state: &PoolState,
        share: Share,
        hash: u64,
        tried: &[SocketAddr],
        slots_per_weight: Option<f64>,
    ) -> Option<usize> {
        let has_room = |at: usize| {
            slots_per_weight.is_none_or(|per_weight| {
                let slots = (f64::from(self.endpoints[at].ir.weight) * per_weight).ceil();
                f64::from(state.endpoints[at].in_flight) < slots
            })
        };
        self.tables.levels[share.level].find(hash, &mut |at| {
            state.view.classes[at].is_of(share.kind)
                && has_room(at)
                && !tried.contains(&self.endpoints[at].state.address)
        })
    }

    /// How many requests one may have per weight, of those that this worker has in flight there and one more (V. Mirrokni
    /// et al., "Consistent Hashing with Bounded Loads"). Envoy's bound lets each have one more than that.
    fn bound_of_load(&self, state: &PoolState, share: Share, factor: u32) -> Option<f64> {
        let (mut weights, mut requests) = (0u64, 1u64);
        for at in self.levels[share.level].iter().map(|at| *at as usize) {
            if state.view.classes[at].is_of(share.kind) {
                weights += u64::from(self.endpoints[at].ir.weight);
                requests += u64::from(state.endpoints[at].in_flight);
            }
        }
        let slots = (requests * u64::from(factor)).div_ceil(100);
        (weights > 0).then(|| slots as f64 / weights as f64)
    }

    fn refuse_in_panic(&self, kind: Kind) -> Result<(), NoEndpoint> {
        if kind == Kind::Panic && self.ir.spread.fail_in_panic { Err(NoEndpoint::Panic) } else { Ok(()) }
    }

    /// The best that was not tried: available, of the first priority that has any; else left alone on a guess; else, in a
    /// panic, any.
    #[cold]
    fn pick_what_is_left(
        &self,
        state: &mut PoolState,
        random: &mut dyn FnMut() -> u64,
        tried: &[SocketAddr],
    ) -> Result<usize, NoEndpoint> {
        let classes = &state.view.classes;
        let mut best = |fits: &dyn Fn(Class) -> bool| {
            let fits = |at: &&u32| {
                fits(classes[**at as usize]) && !tried.contains(&self.endpoints[**at as usize].state.address)
            };
            self.levels.iter().find_map(|level| self.scan(level.iter().filter(fits), random))
        };
        for class in [Class::Healthy, Class::Degraded] {
            if let Some(at) = best(&|of| of == class) {
                return Ok(at);
            }
        }
        let mut left = best(&|of| of == Class::Ejected);
        if left.is_none() && state.view.is_panic() && !self.ir.spread.fail_in_panic {
            left = best(&|of| of != Class::Draining);
        }
        match left {
            Some(at) => {
                state.panics += 1;
                Ok(at)
            }
            None => Err(why_none(state)),
        }
    }

    /// One of these, by weight.
    fn scan<'a>(
        &self,
        candidates: impl Iterator<Item = &'a u32> + Clone,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<usize> {
        let weight = |at: u32| u64::from(self.endpoints[at as usize].ir.weight);
        let mut point = below(candidates.clone().map(|at| weight(*at)).sum(), random())?;
        candidates.into_iter().copied().map(|at| at as usize).find(|at| {
            let here = point < weight(*at as u32);
            point = point.wrapping_sub(weight(*at as u32));
            here
        })
    }
}

fn why_none(state: &PoolState) -> NoEndpoint {
    let (classes, panics) = (&state.view.classes, state.view.is_panic());
    if classes.is_empty() {
        NoEndpoint::Empty
    } else if classes.iter().all(|class| *class == Class::Draining) {
        NoEndpoint::AllDraining
    } else if panics || classes.iter().any(|class| class.is_available() || *class == Class::Ejected) {
        NoEndpoint::AllTried
    } else {
        NoEndpoint::AllUnhealthy
    }
}

/// Indexes of endpoints by priority.
fn levels(endpoints: &[CompiledEndpoint]) -> Vec<Vec<u32>> {
    let mut levels: std::collections::BTreeMap<u32, Vec<u32>> = std::collections::BTreeMap::new();
    for (at, endpoint) in endpoints.iter().enumerate() {
        levels.entry(endpoint.ir.priority).or_default().push(at as u32);
    }
    levels.into_values().collect()
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

fn fingerprint(ir: &ir::Pool, endpoints: &[CompiledEndpoint]) -> u64 {
    let mut text = format!("{:?} {:?} {}", ir.balance, ir.spread, ir.outlier.is_some()).into_bytes();
    for endpoint in endpoints {
        // What a worker derived from the state of one is not true of another.
        text.extend_from_slice(&endpoint.state.serial().to_le_bytes());
        match endpoint.state.address {
            SocketAddr::V4(a) => text.extend_from_slice(&a.ip().octets()),
            SocketAddr::V6(a) => {
                text.extend_from_slice(&a.ip().octets());
                text.extend_from_slice(&a.scope_id().to_le_bytes());
            }
        }
        let of = &endpoint.ir;
        text.extend_from_slice(&endpoint.state.address.port().to_le_bytes());
        text.extend_from_slice(&of.weight.to_le_bytes());
        text.extend_from_slice(&of.priority.to_le_bytes());
        text.extend_from_slice(&[u8::from(of.draining), u8::from(of.degraded)]);
        for part in of.locality.iter().flat_map(|l| [&l.region, &l.zone, &l.subzone]) {
            text.extend_from_slice(&(part.len() as u64).to_le_bytes());
            text.extend_from_slice(part.as_bytes());
        }
        text.extend_from_slice(
            &of.hash_key.as_deref().map_or(0, |key| xxh64(key.as_bytes(), 0)).to_le_bytes(),
        );
    }
    // 0 is what a new worker state has.
    xxh64(&text, 0).max(1)
}

#[cfg(test)]
mod tests;
