//! The right to hold a connection to an endpoint: counted over all workers, and limited by the pool.
//!
//! The count is written when a connection opens or closes, never per request. At the limit, workers share: one that
//! holds more than its part gives way as soon as requests of another wait.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use fieldgate_core::balance::EndpointState;
use tokio::sync::Notify;

/// A pool's limit, as a worker sees it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Connections per endpoint, over all workers.
    pub connections: u32,
    /// This worker's part of them.
    pub share: u32,
}

impl Limit {
    /// For so many workers.
    pub fn new(connections: u32, workers: u32) -> Self {
        Self { connections, share: connections / workers.max(1) }
    }
}

/// Where requests of one worker wait for a connection to a pool.
#[derive(Debug, Default)]
pub struct Room {
    waiting: Cell<u32>,
    freed: Notify,
    /// Of all workers.
    news: Arc<Notify>,
}

impl Room {
    /// `news` is shared by all workers: it tells of connections that are wanted and of those that were given up.
    pub fn new(news: Arc<Notify>) -> Self {
        Self { news, ..Self::default() }
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
}

/// One open connection.
pub struct Lease {
    endpoint: Arc<EndpointState>,
    /// This worker's connections to the endpoint.
    open: Rc<Cell<u32>>,
    room: Rc<Room>,
    given_way: bool,
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
        open.set(open.get() + 1);
        Some(Self { endpoint: endpoint.clone(), open: open.clone(), room: room.clone(), given_way: false })
    }

    /// Whether this connection, which is not in use, should be closed for the sake of the limit or of other workers.
    pub fn must_give_way(&self, limit: Limit) -> bool {
        // More than the limit: it was lowered.
        self.endpoint.connections() > limit.connections
            || self.open.get() > limit.share && wanted_elsewhere(&self.endpoint, &self.room)
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
        if !self.given_way {
            self.room.freed();
        }
        if wanted_elsewhere(&self.endpoint, &self.room) {
            self.room.news.notify_waiters();
        }
    }
}

/// Whether a worker with `open` connections to the endpoint may try to open one more. While others wait it stays within
/// its share, but may always try for a first one: a limit may be smaller than the number of workers.
pub fn may_open(endpoint: &EndpointState, open: u32, room: &Room, limit: Limit) -> bool {
    endpoint.connections() < limit.connections
        && (open < limit.share.max(1) || !wanted_elsewhere(endpoint, room))
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

    fn endpoint() -> Arc<EndpointState> {
        Arc::new(EndpointState::new("127.0.0.1:80".parse().unwrap()))
    }

    #[test]
    fn the_limit_is_exact_over_all_workers() {
        let (endpoint, limit) = (endpoint(), Limit::new(5, 2));
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
        let (endpoint, limit) = (endpoint(), Limit::new(4, 2));
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
        let mut leases: Vec<_> = (0..4).map(|_| worker.take(&endpoint, Limit::new(4, 1)).unwrap()).collect();
        let lowered = Limit::new(2, 1);
        for _ in 0..2 {
            let lease = leases.pop().unwrap();
            assert!(lease.must_give_way(lowered));
            lease.give_way();
        }
        assert!(!leases[0].must_give_way(lowered) && worker.take(&endpoint, lowered).is_none());
    }

    #[test]
    fn a_limit_below_the_number_of_workers_goes_round() {
        let (endpoint, limit) = (endpoint(), Limit::new(1, 2));
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
}
