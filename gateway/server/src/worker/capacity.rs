//! Pools that limit their connections: which endpoint has room, and waiting until one has.
//!
//! A request that finds every endpoint at its limit, or as many requests in flight as the pool may have, waits, in a bounded
//! queue and for a bounded time, and is refused after that (Envoy: overflow, `UO`). Pools without a limit never come here
//! for more than the choice of an endpoint.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_core::balance::{CompiledPool, EndpointState, NoEndpoint, PoolShared, Wish};
use fieldgate_core::ir::PoolLimits;
use smallvec::SmallVec;

use super::Worker;
use super::exchange::{self, InFlight};
use super::local::Answer;
use super::upstream::Room;
use crate::telemetry::PoolEvent;

/// How often who waits looks for room without being told; more seldom when many wait, for all of them look.
const LOOK: Duration = Duration::from_millis(20);
const LOOKERS: u32 = 16;
/// The longest wait, where neither the route nor the pool sets one.
const LONGEST: Duration = Duration::from_mins(5);

/// Why there is no place for a request.
pub enum NoPlace {
    /// No endpoint could have it, whatever the limits.
    NoEndpoint(NoEndpoint),
    /// These are at their limit.
    Full(SmallVec<[Arc<EndpointState>; 4]>),
}

/// Chooses an endpoint that has a connection for the request, or room for one more. A request that has not `waited` does
/// not overtake those that do.
pub fn pick<'w>(
    worker: &'w Worker,
    pool: &CompiledPool,
    http2: bool,
    wish: &Wish<'_>,
    waited: bool,
) -> Result<InFlight<'w>, NoPlace> {
    if !limits_places(&pool.ir.limits) {
        return exchange::pick(worker, pool, wish).map_err(NoPlace::NoEndpoint);
    }
    let queue = !waited && worker.upstreams.room(pool).waiting() > 0;
    let first = exchange::pick(worker, pool, wish).map_err(NoPlace::NoEndpoint)?;
    let endpoint = &pool.endpoints[first.index].state;
    // It is counted there already.
    if !queue && has_place(worker, pool, http2, endpoint, 1) {
        return Ok(counted(worker, pool, first));
    }
    drop(first);
    // One look at each, whatever their number: who waits comes here again and again.
    let mut passed: SmallVec<[SocketAddr; 4]> = wish.tried.into();
    let mut full = SmallVec::new();
    for endpoint in pool.endpoints.iter().map(|e| &e.state).filter(|e| !wish.tried.contains(&e.address)) {
        if queue || !has_place(worker, pool, http2, endpoint, 0) {
            full.push(endpoint.clone());
            passed.push(endpoint.address);
        }
    }
    if queue || passed.len() >= pool.endpoints.len() {
        return Err(NoPlace::Full(full));
    }
    match exchange::pick(worker, pool, &Wish { tried: &passed, ..*wish }) {
        Ok(in_flight) => Ok(counted(worker, pool, in_flight)),
        Err(_) => Err(NoPlace::Full(full)),
    }
}

fn counted<'w>(worker: &Worker, pool: &CompiledPool, mut in_flight: InFlight<'w>) -> InFlight<'w> {
    in_flight.room = Some(worker.upstreams.room(pool));
    in_flight
}

/// Whether the endpoint has a place for one more request. `counted`: how often that one is among those in flight there.
fn has_place(
    worker: &Worker,
    pool: &CompiledPool,
    http2: bool,
    endpoint: &Arc<EndpointState>,
    counted: u32,
) -> bool {
    let limit = pool.ir.limits.max_requests_per_endpoint;
    let free = limit == u32::MAX
        || worker.with_pool(pool, |state| state.in_flight(endpoint.address)) < limit.saturating_add(counted);
    free && worker.upstreams.has_room(pool, endpoint, http2)
}

fn limits_places(limits: &PoolLimits) -> bool {
    limits.max_connections != u32::MAX
        || limits.max_pool_connections != u32::MAX
        || limits.max_requests_per_endpoint != u32::MAX
}

/// A request that waits. Others see it as long as this lives.
pub struct Queued {
    room: Rc<Room>,
    pool: Arc<PoolShared>,
    full: SmallVec<[Arc<EndpointState>; 4]>,
    until: Instant,
}

impl Queued {
    /// Joins the queue, if that is not full. Waits until `limit`, the pool's queue timeout at the longest.
    pub fn begin(
        worker: &Worker,
        pool: &CompiledPool,
        full: SmallVec<[Arc<EndpointState>; 4]>,
        limit: Option<Instant>,
    ) -> Option<Self> {
        let limits = &pool.ir.limits;
        if !pool.shared.pending.enter(limits.max_pending) {
            return None;
        }
        let room = worker.upstreams.room(pool);
        let timeout = limits.queue_timeout.unwrap_or(limits.connect_timeout);
        let until = Instant::now() + if timeout.is_zero() { LONGEST } else { timeout };
        let until = limit.map_or(until, |limit| limit.min(until));
        room.set_waiting(room.waiting() + 1);
        full.iter().for_each(|endpoint| endpoint.set_waiting(true));
        worker.upstreams.call_for_room();
        Some(Self { room, pool: pool.shared.clone(), full, until })
    }

    /// Waits until it is worth another try. `false`: the time is up.
    pub async fn wait(&self) -> bool {
        let look = LOOK * (1 + self.room.waiting() / LOOKERS);
        let left = self.until.saturating_duration_since(Instant::now());
        // Whichever comes first; the time is looked at below.
        let _ = tokio::time::timeout(look.min(left), self.room.notified()).await;
        Instant::now() < self.until
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.pool.pending.leave();
        self.room.set_waiting(self.room.waiting() - 1);
        self.full.iter().for_each(|endpoint| endpoint.set_waiting(false));
    }
}

/// What a client hears whose request found no place in time.
pub fn overflow(worker: &Worker, pool: &CompiledPool) -> Answer {
    worker.recorder.pool_event(&pool.ir.key, PoolEvent::Refused("connections"));
    full()
}

/// The same, uncounted.
pub fn full() -> Answer {
    let details = "upstream_reset_before_response_started{overflow}";
    let mut answer = Answer::new(503, details, "UO", "too many connections to the upstream\n");
    answer.headers.push(b"retry-after", b"1");
    answer
}
