//! Pools that limit their connections: which endpoint has room, and waiting until one has.
//!
//! A request that finds every endpoint at its limit waits, in a bounded queue and for a bounded time, and is refused
//! after that (Envoy: overflow, `UO`). Pools without a limit never come here for more than the choice of an endpoint.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_core::balance::{CompiledPool, EndpointState, NoEndpoint};
use smallvec::SmallVec;

use super::Worker;
use super::exchange::{self, InFlight};
use super::local::Answer;
use super::upstream::Room;

/// Requests that may wait for one pool on one worker (Envoy's default of pending requests).
const QUEUE: u32 = 1024;
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
    tried: &[SocketAddr],
    waited: bool,
) -> Result<InFlight<'w>, NoPlace> {
    if pool.ir.limits.max_connections == u32::MAX {
        return exchange::pick(worker, pool, tried).map_err(NoPlace::NoEndpoint);
    }
    let queue = !waited && worker.upstreams.room(pool.slot).waiting() > 0;
    let mut passed: SmallVec<[SocketAddr; 4]> = tried.into();
    let mut full = SmallVec::new();
    loop {
        let in_flight = match exchange::pick(worker, pool, &passed) {
            Ok(in_flight) => in_flight,
            Err(none) if full.is_empty() => return Err(NoPlace::NoEndpoint(none)),
            Err(_) => return Err(NoPlace::Full(full)),
        };
        let address = in_flight.address;
        let endpoint = pool.endpoints.iter().find(|e| e.state.address == address);
        match endpoint {
            Some(e) if queue || !worker.upstreams.has_room(pool, &e.state, http2) => {
                full.push(e.state.clone());
                passed.push(address);
            }
            _ => return Ok(in_flight),
        }
    }
}

/// A request that waits. Others see it as long as this lives.
pub struct Queued {
    room: Rc<Room>,
    full: SmallVec<[Arc<EndpointState>; 4]>,
    until: Instant,
}

impl Queued {
    /// Joins the queue, if that is not full. Waits until `limit`, the pool's connect timeout at the longest.
    pub fn begin(
        worker: &Worker,
        pool: &CompiledPool,
        full: SmallVec<[Arc<EndpointState>; 4]>,
        limit: Option<Instant>,
    ) -> Option<Self> {
        let room = worker.upstreams.room(pool.slot);
        if room.waiting() >= QUEUE {
            return None;
        }
        let timeout = pool.ir.limits.connect_timeout;
        let until = Instant::now() + if timeout.is_zero() { LONGEST } else { timeout };
        let until = limit.map_or(until, |limit| limit.min(until));
        room.set_waiting(room.waiting() + 1);
        full.iter().for_each(|endpoint| endpoint.set_waiting(true));
        worker.upstreams.call_for_room();
        Some(Self { room, full, until })
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
        self.room.set_waiting(self.room.waiting() - 1);
        self.full.iter().for_each(|endpoint| endpoint.set_waiting(false));
    }
}

/// What a client hears whose request found no place in time.
pub fn overflow() -> Answer {
    let details = "upstream_reset_before_response_started{overflow}";
    Answer::new(503, details, "UO", "too many connections to the upstream\n")
}
