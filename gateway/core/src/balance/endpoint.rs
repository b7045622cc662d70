//! What all workers know about one endpoint: the verdict of active checks, whether it is left alone after failures, and
//! how many connections it has.
//!
//! Every atomic stands for itself and is only a hint about the future, so relaxed ordering is enough. They are written
//! when something changes and not per request, so the cache line stays shared while all is well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::PoolShared;
use crate::outlier::Record;

/// Failures in a row after which an endpoint is left alone. A refused connection needs no second one.
const FAILURES: u32 = 3;
/// How long it is left alone the first time; doubled each time until a success.
const EJECTION_MS: u64 = 1_000;
/// The longest that it is left alone.
const EJECTION_MAX_MS: u64 = 30_000;

/// Shared by all workers and kept over reloads, as long as the pool has the address.
#[derive(Debug)]
pub struct EndpointState {
    /// Its address.
    pub address: SocketAddr,
    serial: u64,
    pool: Arc<PoolShared>,
    healthy: AtomicBool,
    degraded: AtomicBool,
    drained: AtomicBool,
    ejected_until_ms: AtomicU64,
    failures: AtomicU32,
    ejections: AtomicU32,
    connections: AtomicU32,
    waiting: AtomicU32,
    /// What became of its requests, for outlier detection.
    pub record: Record,
    /// Since when it can be chosen, if slow start is to know: 0 is always, `ENTERING` is since it is seen next.
    entered_ms: AtomicU64,
}

const ENTERING: u64 = u64::MAX;

static SERIAL: AtomicU64 = AtomicU64::new(0);

impl EndpointState {
    /// An endpoint of which nothing bad is known. It is healthy until a check says otherwise, so that a start does not
    /// wait for checks.
    pub fn of(address: SocketAddr, pool: Arc<PoolShared>) -> Self {
        Self {
            address,
            serial: SERIAL.fetch_add(1, Relaxed),
            pool,
            healthy: AtomicBool::new(true),
            degraded: AtomicBool::new(false),
            drained: AtomicBool::new(false),
            ejected_until_ms: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejections: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            record: Record::default(),
            entered_ms: AtomicU64::new(0),
        }
    }

    /// Tells it from any other that has or had the address, in whatever pool.
    pub(super) fn serial(&self) -> u64 {
        self.serial
    }

    /// One of a pool of its own.
    pub fn new(address: SocketAddr) -> Self {
        Self::of(address, Arc::default())
    }

    /// The verdict of active checks; says whether it changed. A new "healthy" also ends an ejection: the check has
    /// just reached the endpoint.
    pub fn set_healthy(&self, healthy: bool) -> bool {
        if self.is_healthy() == healthy {
            return false;
        }
        let changed = self.healthy.swap(healthy, Relaxed) != healthy;
        if changed && healthy {
            self.report_success();
            self.leave();
        }
        if changed {
            self.pool.changed();
        }
        changed
    }

    /// Whether active checks pass, or there are none.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    /// Active checks say that it answers but would rather not be asked; says whether that is news.
    pub fn set_degraded(&self, degraded: bool) -> bool {
        self.set(&self.degraded, degraded)
    }

    /// Whether active checks say so.
    pub fn is_degraded(&self) -> bool {
        self.degraded.load(Relaxed)
    }

    /// An operator takes it out of service, or puts it back; says whether that is news. It gets no new requests and
    /// finishes those that it has.
    pub fn set_drained(&self, drained: bool) -> bool {
        self.set(&self.drained, drained)
    }

    /// Whether an operator took it out of service.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    fn set(&self, flag: &AtomicBool, value: bool) -> bool {
        let changed = flag.swap(value, Relaxed) != value;
        if changed {
            self.pool.changed();
        }
        changed
    }

    /// Whether it can be chosen: healthy, not left alone, not taken out of service.
    pub fn available(&self, now_ms: u64) -> bool {
        self.is_healthy() && !self.is_drained() && !self.is_ejected(now_ms)
    }

    /// Whether it is left alone after failures.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }

    /// Until when it is left alone; a time in the past, or 0, if it is not.
    pub fn ejected_until_ms(&self) -> u64 {
        self.ejected_until_ms.load(Relaxed)
    }

    /// How often in a row it was left alone without a success between.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    /// Leaves it alone until `now_ms + for_ms`.
    pub fn eject(&self, now_ms: u64, for_ms: u64) {
        self.ejected_until_ms.store(now_ms.saturating_add(for_ms), Relaxed);
        self.pool.changed();
    }

    /// It answered. Forgets failures, and ends an ejection: an answer is better knowledge than a guess.
    pub fn report_success(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
        if self.ejections.load(Relaxed) != 0 {
            self.ejections.store(0, Relaxed);
        }
        if self.ejected_until_ms.load(Relaxed) != 0 {
            self.ejected_until_ms.store(0, Relaxed);
            self.pool.changed();
        }
    }

    /// A connection timed out or was reset before the answer. The third in a row ejects it; after an ejection, until
    /// it has answered once, so does the first. Says whether it did.
    pub fn report_failure(&self, now_ms: u64) -> bool {
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        (failures >= FAILURES || self.ejections() > 0) && self.eject_for_longer(now_ms)
    }

    /// It refused a connection: nobody listens there. Ejects at once. Says whether it did.
    pub fn report_refused(&self, now_ms: u64) -> bool {
        self.eject_for_longer(now_ms)
    }

    /// It cannot be chosen, or could not until now: slow start begins when it is seen next.
    pub fn leave(&self) {
        if self.entered_ms.load(Relaxed) != ENTERING {
            self.entered_ms.store(ENTERING, Relaxed);
        }
    }

    /// Since when it can be chosen, which is now if nobody has seen it since it came; `None` if it always could.
    pub fn entered_ms(&self, now_ms: u64) -> Option<u64> {
        let entered = match self.entered_ms.compare_exchange(ENTERING, now_ms.max(1), Relaxed, Relaxed) {
            Ok(_) => now_ms,
            Err(entered) => entered,
        };
        (entered != 0).then_some(entered)
    }

    /// Counts a connection that is about to be opened, unless there are `limit` already. Says whether it did.
    pub fn connect(&self, limit: u32) -> bool {
        self.connections.fetch_update(Relaxed, Relaxed, |n| (n < limit).then(|| n + 1)).is_ok()
    }

    /// A connection that was counted is closed.
    pub fn disconnect(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Connections of all workers.
    pub fn connections(&self) -> u32 {
        self.connections.load(Relaxed)
    }

    /// A request begins to wait for a connection, or has ended waiting.
    pub fn set_waiting(&self, waits: bool) {
        if waits {
            self.waiting.fetch_add(1, Relaxed);
        } else {
            self.waiting.fetch_sub(1, Relaxed);
        }
    }

    /// Requests of all workers that wait for a connection.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// One burst of failures, seen by many workers, counts as one ejection.
    fn eject_for_longer(&self, now_ms: u64) -> bool {
        let until = self.ejected_until_ms.load(Relaxed);
        if until > now_ms {
            return false;
        }
        let doublings = self.ejections().min(16);
        let for_ms = (EJECTION_MS << doublings).min(EJECTION_MAX_MS);
        let won = self.ejected_until_ms.compare_exchange(until, now_ms + for_ms, Relaxed, Relaxed).is_ok();
        if won {
            self.ejections.fetch_add(1, Relaxed);
            self.failures.store(0, Relaxed);
            self.pool.changed();
        }
        won
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> EndpointState {
        EndpointState::new(SocketAddr::from(([127, 0, 0, 1], 80)))
    }

    #[test]
    fn the_third_failure_in_a_row_ejects() {
        let e = endpoint();
        assert_eq!([e.report_failure(10), e.report_failure(10)], [false, false]);
        e.report_success();
        assert_eq!([e.report_failure(10), e.report_failure(10), e.report_failure(10)], [false, false, true]);
        assert_eq!((e.available(1009), e.available(1010)), (false, true));
    }

    #[test]
    fn a_refusal_ejects_at_once_and_each_time_for_longer() {
        let e = endpoint();
        let mut now = 5;
        for expected in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            assert!(e.report_refused(now));
            assert_eq!(e.ejected_until_ms() - now, expected);
            now = e.ejected_until_ms();
            assert!(e.available(now));
        }
        e.report_success();
        assert!(e.report_refused(now));
        assert_eq!(e.ejected_until_ms() - now, 1000);
    }

    #[test]
    fn after_an_ejection_one_failure_suffices_until_it_answers() {
        let e = endpoint();
        e.report_refused(0);
        assert!(e.report_failure(1000));
        e.report_success();
        assert!(!e.report_failure(9000));
    }

    #[test]
    fn a_burst_is_one_ejection() {
        let e = endpoint();
        assert!(e.report_refused(0));
        assert!((0..100).all(|_| !e.report_refused(999) && !e.report_failure(999)));
        assert_eq!((e.ejections(), e.ejected_until_ms()), (1, 1000));
    }

    #[test]
    fn an_answer_or_a_passed_check_ends_an_ejection() {
        let e = endpoint();
        e.report_refused(0);
        e.report_success();
        assert!(e.available(1));
        e.report_refused(1);
        assert!(e.set_healthy(false));
        assert!(!e.set_healthy(false));
        assert!(e.set_healthy(true));
        assert!(e.available(2));
    }

    #[test]
    fn connections_end_at_the_limit() {
        let e = endpoint();
        assert_eq!([e.connect(2), e.connect(2), e.connect(2)], [true, true, false]);
        e.disconnect();
        assert!(e.connect(2));
        assert_eq!(e.connections(), 2);
    }

    #[test]
    fn what_is_unhealthy_is_not_available_however_it_answers() {
        let e = endpoint();
        e.set_healthy(false);
        e.report_success();
        assert!(!e.available(u64::MAX));
    }
}
