//! The right to hold a connection: counted over all workers, per endpoint and, if that is limited, for the pool as a whole.
//!
//! The counts are written when a connection opens or closes, never per request. At a limit, workers share: one that holds
//! more than its part gives way as soon as requests of another wait.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_core::balance::{EndpointState, PoolShared};
use fieldgate_core::ir::PoolLimits;
use tokio::sync::Notify;

/// A pool's limits, as a worker sees them.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Connections per endpoint, over all workers.
    pub connections: u32,
    /// This worker's part of them.
    pub share: u32,
    /// Connections of the pool, over all workers.
    pub pool: u32,
    /// This worker's part of them.
    pub pool_share: u32,
}

impl Limit {
    /// For so many workers.
    pub fn new(limits: &PoolLimits, workers: u32) -> Self {
        let (connections, pool, workers) =
            (limits.max_connections, limits.max_pool_connections, workers.max(1));
        Self { connections, share: connections / workers, pool, pool_share: pool / workers }
    }

    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.connections != u32::MAX || self.limits_pool()
    }

    fn limits_pool(&self) -> bool {
        self.pool != u32::MAX
    }
}

/// Where requests of one worker wait for a connection to a pool.
#[derive(Debug, Default)]
pub struct Room {
    waiting: Cell<u32>,
    /// This worker's connections to the pool, if those are limited.
    open: Cell<u32>,
    pool: Arc<PoolShared>,
    freed: Notify,
    /// Of all workers.
    news: Arc<Notify>,
}

impl Room {
    /// `news` is shared by all workers: it tells of connections that are wanted and of those that were given up.
    pub fn new(pool: Arc<PoolShared>, news: Arc<Notify>) -> Self {
        Self { pool, news, ..Self::default() }
    }

    /// Whether it is this pool's.
    pub fn is_of(&self, pool: &Arc<PoolShared>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u32 {
        self.waiting.get()
    }

    /// Counts one that begins to wait or has ended.
    pub fn set_waiting(&self, waiting: u32) {
        self.waiting.set(waiting);
    }

    /// A connection or stream is free: the first who waits may try.
    pub fn freed(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }

    /// So many are free.
    pub fn freed_many(&self, count: usize) {
        (0..count.min(self.waiting.get() as usize)).for_each(|_| self.freed.notify_one());
    }

    /// Until then.
    pub async fn notified(&self) {
        self.freed.notified().await;
    }

    /// Whether requests of other workers wait for the pool.
    fn is_wanted_elsewhere(&self) -> bool {
        self.pool.pending.now() > self.waiting.get()
    }
}

/// One open connection.
pub struct Lease {
    endpoint: Arc<EndpointState>,
    /// This worker's connections to the endpoint.
    open: Rc<Cell<u32>>,
    room: Rc<Room>,
    /// The pool's connections are limited, and this one is counted.
    counted: bool,
    given_way: bool,
    since: Instant,
    requests: Cell<u32>,
}

impl Lease {
    /// For a connection that is about to be opened, if there may be one more.
    pub fn take(
        endpoint: &Arc<EndpointState>,
        open: &Rc<Cell<u32>>,
        room: &Rc<Room>,
        limit: Limit,
    ) -> Option<Self> {
        if !may_open(endpoint, open.get(), room, limit) || !endpoint.connect(limit.connections) {
            return None;
        }
        let counted = limit.limits_pool();
        if counted && !room.pool.connections.enter(limit.pool) {
            endpoint.disconnect();
            return None;
        }
        open.set(open.get() + 1);
        room.open.set(room.open.get() + u32::from(counted));
        Some(Self {
            endpoint: endpoint.clone(),
            open: open.clone(),
            room: room.clone(),
            counted,
            given_way: false,
            since: Instant::now(),
            requests: Cell::new(0),
        })
    }

    /// Counts a request that the connection carries.
    pub fn carries_one_more(&self) {
        self.requests.set(self.requests.get().saturating_add(1));
    }

    /// Whether the connection has carried all that it may, or is as old as it may become.
    pub fn is_worn_out(&self, limits: &PoolLimits, now: Instant) -> bool {
        let oldest = limits.max_connection_duration;
        self.requests.get() >= limits.max_requests_per_connection
            || oldest > Duration::ZERO && now.saturating_duration_since(self.since) >= oldest
    }

    /// Whether this connection, which is not in use, should be closed for the sake of the limit or of other workers.
    pub fn must_give_way(&self, limit: Limit) -> bool {
        // More than the limit: it was lowered.
        self.endpoint.connections() > limit.connections
            || self.open.get() > limit.share && wanted_elsewhere(&self.endpoint, &self.room)
            || self.counted && self.pool_wants_it(limit)
    }

    fn pool_wants_it(&self, limit: Limit) -> bool {
        self.room.pool.connections.now() > limit.pool
            || self.room.open.get() > limit.pool_share && self.room.is_wanted_elsewhere()
    }

    /// Ends it without telling those who wait on this worker: it is for the others.
    pub fn give_way(mut self) {
        self.given_way = true;
    }

    /// Where those wait who want it.
    pub fn room(&self) -> &Rc<Room> {
        &self.room
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.disconnect();
        self.open.set(self.open.get() - 1);
        if self.counted {
            self.room.pool.connections.leave();
            self.room.open.set(self.room.open.get() - 1);
        }
        if !self.given_way {
            self.room.freed();
        }
        if wanted_elsewhere(&self.endpoint, &self.room) || self.counted && self.room.is_wanted_elsewhere() {
            self.room.news.notify_waiters();
        }
    }
}

/// Whether a worker with `open` connections to the endpoint may try to open one more. While others wait it stays within
/// its share, but may always try for a first one: a limit may be smaller than the number of workers.
pub fn may_open(endpoint: &EndpointState, open: u32, room: &Room, limit: Limit) -> bool {
    let pool_has_room = || {
        room.pool.connections.now() < limit.pool
            && (room.open.get() < limit.pool_share.max(1) || !room.is_wanted_elsewhere())
    };
    endpoint.connections() < limit.connections
        && (open < limit.share.max(1) || !wanted_elsewhere(endpoint, room))
        && (!limit.limits_pool() || pool_has_room())
}

fn wanted_elsewhere(endpoint: &EndpointState, room: &Room) -> bool {
    endpoint.waiting() > room.waiting()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of several workers.
    #[derive(Default)]
    struct Side {
        open: Rc<Cell<u32>>,
        room: Rc<Room>,
    }

    impl Side {
        fn take(&self, endpoint: &Arc<EndpointState>, limit: Limit) -> Option<Lease> {
            Lease::take(endpoint, &self.open, &self.room, limit)
        }

        fn wait(&self, endpoint: &EndpointState) {
            endpoint.set_waiting(true);
            self.room.set_waiting(self.room.waiting() + 1);
        }
    }

    /// Per endpoint, for so many workers.
    fn limit(connections: u32, workers: u32) -> Limit {
        Limit::new(&PoolLimits { max_connections: connections, ..PoolLimits::default() }, workers)
    }

    fn endpoint() -> Arc<EndpointState> {
        Arc::new(EndpointState::new("127.0.0.1:80".parse().unwrap()))
    }

    #[test]
    fn the_limit_is_exact_over_all_workers() {
        let (endpoint, limit) = (endpoint(), limit(5, 2));
        let (a, b) = (Side::default(), Side::default());
        let mut leases: Vec<_> = (0..4).map(|_| a.take(&endpoint, limit).unwrap()).collect();
        leases.push(b.take(&endpoint, limit).unwrap());
        assert!(a.take(&endpoint, limit).is_none() && b.take(&endpoint, limit).is_none());
        assert_eq!((endpoint.connections(), a.open.get(), b.open.get()), (5, 4, 1));
        leases.clear();
        assert_eq!((endpoint.connections(), a.open.get(), b.open.get()), (0, 0, 0));
    }

    #[test]
    fn more_than_a_share_gives_way_while_others_wait() {
        let (endpoint, limit) = (endpoint(), limit(4, 2));
        let (a, b) = (Side::default(), Side::default());
        let mut leases: Vec<_> = (0..4).map(|_| a.take(&endpoint, limit).unwrap()).collect();
        // Its own requests that wait are no reason to give way.
        a.wait(&endpoint);
        assert!(!leases[0].must_give_way(limit));
        b.wait(&endpoint);
        for left in [3, 2] {
            let lease = leases.pop().unwrap();
            assert!(lease.must_give_way(limit));
            lease.give_way();
            assert_eq!(a.open.get(), left);
            assert!(a.take(&endpoint, limit).is_none(), "what was given up is not taken back");
        }
        assert!(!leases[0].must_give_way(limit));
        assert!(b.take(&endpoint, limit).is_some());
    }

    #[test]
    fn a_lowered_limit_is_reached_as_connections_are_returned() {
        let endpoint = endpoint();
        let worker = Side::default();
        let mut leases: Vec<_> = (0..4).map(|_| worker.take(&endpoint, limit(4, 1)).unwrap()).collect();
        let lowered = limit(2, 1);
        for _ in 0..2 {
            let lease = leases.pop().unwrap();
            assert!(lease.must_give_way(lowered));
            lease.give_way();
        }
        assert!(!leases[0].must_give_way(lowered) && worker.take(&endpoint, lowered).is_none());
    }

    #[test]
    fn a_limit_below_the_number_of_workers_goes_round() {
        let (endpoint, limit) = (endpoint(), limit(1, 2));
        let (a, b) = (Side::default(), Side::default());
        let lease = a.take(&endpoint, limit).unwrap();
        a.wait(&endpoint);
        b.wait(&endpoint);
        assert!(b.take(&endpoint, limit).is_none());
        assert!(lease.must_give_way(limit));
        lease.give_way();
        // Both wait; either may try.
        assert!(may_open(&endpoint, 0, &a.room, limit) && may_open(&endpoint, 0, &b.room, limit));
        assert!(b.take(&endpoint, limit).is_some());
    }

    #[test]
    fn a_pools_limit_is_exact_over_its_endpoints_and_goes_round() {
        let shared: Arc<PoolShared> = Arc::default();
        let side = || Side { open: Rc::default(), room: Rc::new(Room::new(shared.clone(), Arc::default())) };
        let limits = PoolLimits { max_pool_connections: 2, ..PoolLimits::default() };
        let limit = Limit::new(&limits, 2);
        let (a, b, one, other) = (side(), side(), endpoint(), endpoint());
        let held = [a.take(&one, limit).unwrap(), a.take(&other, limit).unwrap()];
        assert!(a.take(&one, limit).is_none() && b.take(&other, limit).is_none());
        assert_eq!((one.connections(), other.connections(), shared.connections.now()), (1, 1, 2));
        assert!(!held[0].must_give_way(limit), "nobody else waits");
        b.wait(&one);
        assert!(shared.pending.enter(u32::MAX));
        let [first, second] = held;
        assert!(first.must_give_way(limit));
        first.give_way();
        assert!(!second.must_give_way(limit), "it is this worker's share");
        assert!(a.take(&one, limit).is_none(), "what was given up is not taken back");
        assert!(b.take(&one, limit).is_some());
    }

    #[test]
    fn a_connection_wears_out() {
        let side = Side::default();
        let lease = side.take(&endpoint(), limit(9, 1)).unwrap();
        let now = Instant::now();
        let limits = PoolLimits { max_requests_per_connection: 2, ..PoolLimits::default() };
        lease.carries_one_more();
        assert!(!lease.is_worn_out(&limits, now));
        lease.carries_one_more();
        assert!(lease.is_worn_out(&limits, now));
        let limits = PoolLimits { max_connection_duration: Duration::from_secs(9), ..PoolLimits::default() };
        assert!(!lease.is_worn_out(&limits, now));
        assert!(lease.is_worn_out(&limits, now + Duration::from_secs(10)));
    }
}
