//! Counts of what is limited, kept beside the gateway's own, and the invariants of limits and ejections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledPool, EndpointState};
use fieldgate_core::limits::Refused;
use fieldgate_core::outlier::{Ejection, Reason, Seen};

use crate::world::Worker;

/// Of all workers.
#[derive(Default)]
pub struct Truth {
    numbers: u64,
    /// Requests in flight where they are limited.
    requests: u32,
    /// Retries in flight where they are limited.
    retries: u32,
    /// Failures in a row, as seen by all workers, since the last ejection that was found for them: of all kinds, of
    /// gateways, of our side.
    in_a_row: BTreeMap<usize, InARow>,
    /// Requests that admission control looked at, those it refused, and how many it may refuse.
    admission: (f64, f64, f64),
    pub ejections: BTreeMap<&'static str, u64>,
}

/// Of one state of an endpoint, for an address that comes back has another. Holds it, so that no other is where it was.
type InARow = (Arc<EndpointState>, [u32; 3]);

impl Truth {
    /// Of a new request.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A request turned to the pool.
    pub fn entered(&mut self, pool: &CompiledPool, worker: &mut Worker, verdict: Result<(), Refused>) {
        let limits = &pool.ir.limits;
        let limit = worker.state.concurrency_limit();
        if let Some(admission) = &limits.admission {
            let may = f64::from(admission.max_rejection) / 100.0;
            self.admission.0 += 1.0;
            self.admission.1 += f64::from(u8::from(verdict == Err(Refused::Admission)));
            self.admission.2 += may;
        }
        match verdict {
            Err(Refused::Admission) => assert!(limits.admission.is_some(), "no admission control"),
            Err(Refused::Requests) => assert!(self.requests >= limits.max_requests, "there was room"),
            Err(Refused::Concurrency) => {
                assert!(limits.adaptive.is_some() && limit.is_some_and(|limit| worker.adaptive >= limit));
            }
            Err(refused) => panic!("a request is no retry: {refused:?}"),
            Ok(()) => {
                if limits.max_requests != u32::MAX {
                    assert!(self.requests < limits.max_requests, "too many requests");
                    self.requests += 1;
                }
                if let Some(settings) = &limits.adaptive {
                    let limit = limit.expect("it is there");
                    assert!(worker.adaptive < limit, "{} in flight where {limit} may", worker.adaptive);
                    assert!(limit <= settings.max_concurrency.max(settings.min_concurrency));
                    worker.adaptive += 1;
                }
            }
        }
        assert_eq!(pool.shared.requests.now(), self.requests, "requests in flight");
    }

    pub fn left(&mut self, pool: &CompiledPool, worker: &mut Worker) {
        self.requests -= u32::from(pool.ir.limits.max_requests != u32::MAX);
        worker.adaptive -= u32::from(pool.ir.limits.adaptive.is_some());
        assert_eq!(pool.shared.requests.now(), self.requests, "requests in flight");
    }

    /// A retry was asked for.
    pub fn retried(&mut self, pool: &CompiledPool, worker: &mut Worker, verdict: Result<(), Refused>) {
        let limits = &pool.ir.limits;
        let budget = limits.retry_budget;
        let requests: u32 = worker.in_flight.values().sum();
        let within =
            budget.percent >= 100 || worker.retries < (requests * budget.percent / 100).max(budget.min);
        let room = self.retries < limits.max_retries;
        match verdict {
            Ok(()) => {
                assert!(within, "{} retries beside {requests} requests: {budget:?}", worker.retries);
                assert!(room || limits.max_retries == u32::MAX, "{} retries", self.retries);
                worker.retries += 1;
                self.retries += u32::from(limits.max_retries != u32::MAX);
            }
            Err(Refused::RetryBudget) => assert!(!within, "the budget is not used up"),
            Err(Refused::Retries) => assert!(!room, "there was room for a retry"),
            Err(refused) => panic!("a retry is no request: {refused:?}"),
        }
        assert_eq!(worker.state.retries(), worker.retries, "retries in flight");
        assert_eq!(pool.shared.retries.now(), self.retries, "retries in flight");
    }

    pub fn retry_over(&mut self, pool: &CompiledPool, worker: &mut Worker) {
        worker.retries -= 1;
        self.retries -= u32::from(pool.ir.limits.max_retries != u32::MAX);
        assert_eq!(worker.state.retries(), worker.retries, "retries in flight");
        assert_eq!(pool.shared.retries.now(), self.retries, "retries in flight");
    }

    /// A try was reported, and whether that ejected its endpoint.
    pub fn reported(
        &mut self,
        pool: &CompiledPool,
        address: SocketAddr,
        seen: Seen,
        was_ejected: bool,
        ejection: Option<&Ejection>,
        now_ms: u64,
    ) {
        let Some(outlier) = &pool.ir.outlier else {
            return ejection.into_iter().for_each(|ejection| self.ejected(pool, ejection, now_ms));
        };
        if was_ejected {
            return assert_eq!(ejection, None, "ejected already");
        }
        let split = outlier.split_external_local_origin_errors;
        let [any, gateway, ours] = self.in_a_row(pool, address);
        match seen {
            Seen::Status(..500) => [*any, *gateway, *ours] = [0; 3],
            Seen::Status(502..=504) => [*any, *gateway, *ours] = [*any + 1, *gateway + 1, 0],
            Seen::Status(_) => [*any, *gateway, *ours] = [*any + 1, 0, 0],
            _ if split => *ours += 1,
            _ => [*any, *gateway, *ours] = [*any + 1, *gateway + 1, *ours + 1],
        }
        if let Some(ejection) = ejection {
            assert_eq!(ejection.address, address, "another's ejection");
            self.ejected(pool, ejection, now_ms);
        }
    }

    fn in_a_row(&mut self, pool: &CompiledPool, address: SocketAddr) -> &mut [u32; 3] {
        let endpoint = pool.endpoints.iter().find(|e| e.address() == address).expect("it is the pool's");
        let key = Arc::as_ptr(&endpoint.state) as usize;
        &mut self.in_a_row.entry(key).or_insert_with(|| (endpoint.state.clone(), [0; 3])).1
    }

    /// An ejection is deserved, as long as it should be, and one of not too many.
    pub fn ejected(&mut self, pool: &CompiledPool, ejection: &Ejection, now_ms: u64) {
        *self.ejections.entry(ejection.reason.as_str()).or_default() += 1;
        let [any, gateway, ours] = self.in_a_row(pool, ejection.address);
        let for_ms = ejection.until_ms.saturating_sub(now_ms);
        let Some(outlier) = &pool.ir.outlier else {
            assert!(matches!(ejection.reason, Reason::Refused | Reason::Failures) && ejection.enforced);
            return assert!((1000..=30_000).contains(&for_ms), "{ejection:?}");
        };
        match ejection.reason {
            Reason::Consecutive5xx => {
                assert!(*any >= outlier.consecutive_5xx, "{any} in a row: {ejection:?}");
                *any = 0;
            }
            Reason::ConsecutiveGatewayFailure => {
                assert!(*gateway >= outlier.consecutive_gateway_failure, "{gateway} in a row: {ejection:?}");
                *gateway = 0;
            }
            Reason::ConsecutiveLocalOriginFailure => {
                assert!(outlier.split_external_local_origin_errors);
                assert!(*ours >= outlier.consecutive_local_origin_failure, "{ours} in a row: {ejection:?}");
                *ours = 0;
            }
            Reason::SuccessRate | Reason::FailurePercentage => {}
            Reason::Refused | Reason::Failures => panic!("outlier detection knows no {ejection:?}"),
        }
        if !ejection.enforced {
            return;
        }
        [*any, *gateway, *ours] = [0; 3];
        let least = outlier.base_ejection_time.as_millis() as u64;
        let most = (outlier.max_ejection_time + outlier.max_ejection_time_jitter).as_millis() as u64;
        assert!((least..=most).contains(&for_ms), "for {for_ms} ms: {ejection:?}");
        let all = pool.endpoints.len();
        let ejected = pool.endpoints.iter().filter(|e| e.state.is_ejected(now_ms)).count();
        let few = ejected * 100 <= all * outlier.max_ejection_percent as usize;
        assert!(ejected == 1 || few, "{ejected} of {all} ejected: {ejection:?} {outlier:?}");
    }

    pub fn finish(&self) {
        assert_eq!((self.requests, self.retries), (0, 0), "the simulation's own counts");
        let (_, refused, may) = self.admission;
        assert!(refused <= may + 6.0 * may.sqrt() + 3.0, "{refused} refused where {may} may be");
    }
}
