//! `/api/v1/pools`: pools with their limits and use, endpoints with their state, and whether one can be taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::Snapshot;
use fieldgate_core::balance::{CompiledEndpoint, CompiledPool, Gauge};
use fieldgate_core::ir::PoolKey;
use fieldgate_core::outlier::Reason;
use serde_json::{Value, json};

use super::{now_ms, report};
use crate::control::{AdminState, PoolName};
use crate::describe;
use crate::health::Verdicts;
use crate::worker::WorkerReport;

/// Whether an endpoint can be chosen, and if not, why. Where several are true, the first of this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointHealth {
    /// Taken out of service by an operator.
    Drained,
    /// By configuration: `drain`, weight 0, a pod that terminates.
    Draining,
    /// Active checks fail.
    Unhealthy,
    /// Left alone after failures.
    Ejected,
    /// Works, and would rather not be asked.
    Degraded,
    Healthy,
}

impl EndpointHealth {
    pub(super) const ALL: [Self; 6] =
        [Self::Healthy, Self::Degraded, Self::Unhealthy, Self::Ejected, Self::Draining, Self::Drained];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }

    pub(super) fn of(endpoint: &CompiledEndpoint, now_ms: u64) -> Self {
        let state = &endpoint.state;
        if state.is_drained() {
            Self::Drained
        } else if endpoint.ir.draining {
            Self::Draining
        } else if !state.is_healthy() {
            Self::Unhealthy
        } else if state.is_ejected(now_ms) {
            Self::Ejected
        } else if endpoint.ir.degraded || state.is_degraded() {
            Self::Degraded
        } else {
            Self::Healthy
        }
    }
}

/// Pools as they are at one moment.
pub(super) struct Pools {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) now_ms: u64,
    pub(super) verdicts: Verdicts,
    /// Requests in flight and idle connections, by endpoint, over all workers that answered.
    load: BTreeMap<(PoolKey, SocketAddr), (u64, u64)>,
    /// Whether that is all workers.
    complete: bool,
    /// Those that got nothing new any more when the workers were asked, by pool slot.
    drained_before: BTreeSet<(u32, SocketAddr)>,
}

impl Pools {
    /// Asks the workers.
    pub(super) async fn of(state: &AdminState) -> Self {
        let snapshot = Arc::clone(&state.shared.published.load().snapshot);
        let drained_before = drained(&snapshot);
        let reports = report(state).await;
        let complete = reports.len() == state.workers.len();
        let verdicts = state.view.load().verdicts.clone();
        Self { drained_before, ..Self::new(snapshot, reports, complete, verdicts, now_ms(state)) }
    }

    fn new(
        snapshot: Arc<Snapshot>,
        reports: Vec<WorkerReport>,
        complete: bool,
        verdicts: Verdicts,
        now_ms: u64,
    ) -> Self {
        let mut load = BTreeMap::new();
        for (pool, endpoints) in reports.into_iter().flat_map(|report| report.pools) {
            for (address, in_flight, idle) in endpoints {
                let sum: &mut (u64, u64) = load.entry((pool.clone(), address)).or_default();
                sum.0 += u64::from(in_flight);
                sum.1 += u64::from(idle);
            }
        }
        Self { snapshot, now_ms, verdicts, load, complete, drained_before: BTreeSet::new() }
    }

    /// Requests in flight and idle connections.
    pub(super) fn load(&self, pool: &CompiledPool, address: SocketAddr) -> (u64, u64) {
        self.load.get(&(pool.ir.key.clone(), address)).copied().unwrap_or_default()
    }

    /// All.
    pub(super) fn all(&self) -> Value {
        self.snapshot.pools().map(|pool| self.pool(pool)).collect()
    }

    /// Those of a name; `None` if there is none.
    pub(super) fn named(&self, name: &PoolName) -> Option<Value> {
        let pools: Vec<_> = self.of_name(name).map(|pool| self.pool(pool)).collect();
        (!pools.is_empty()).then_some(Value::Array(pools))
    }

    /// An endpoint in all pools of a name: its requests in flight, and whether nothing is left that would miss it.
    pub(super) fn endpoint(&self, name: &PoolName, address: SocketAddr) -> Option<(u64, bool)> {
        let mut found = None;
        for pool in self.of_name(name) {
            if pool.endpoints.iter().any(|endpoint| endpoint.address() == address) {
                let (in_flight, safe) = found.unwrap_or((0, true));
                let here = self.load(pool, address).0;
                found = Some((in_flight + here, safe && self.safe_to_remove(pool, address, here)));
            }
        }
        found
    }

    fn of_name(&self, name: &PoolName) -> impl Iterator<Item = &Arc<CompiledPool>> {
        self.snapshot.pools().filter(|pool| name.is_of(&pool.ir.key))
    }

    /// A worker that has not answered may have requests there, and so may one that answered before the drain began.
    fn safe_to_remove(&self, pool: &CompiledPool, address: SocketAddr, in_flight: u64) -> bool {
        in_flight == 0 && self.complete && self.drained_before.contains(&(pool.slot, address))
    }

    fn pool(&self, pool: &CompiledPool) -> Value {
        json!({
            "pool": pool.ir.key.to_string(),
            "service": &*pool.ir.service.host,
            "protocol": format!("{:?}", pool.ir.protocol),
            "balance": describe::balance(&pool.ir.balance),
            "tls": pool.ir.tls.as_deref().map(describe::upstream_tls),
            "health_checked": pool.ir.health.is_some(),
            "health_check": pool.ir.health.as_ref().map(|check| describe::health(&check.kind)),
            "outlier_detection": pool.ir.outlier.as_ref().map(|_| ejections(pool)),
            "usable": describe::usable(pool, self.now_ms),
            "limits": self.limits(pool),
            "endpoints": pool.endpoints.iter().map(|e| self.endpoint_json(pool, e)).collect::<Vec<_>>(),
        })
    }

    fn limits(&self, pool: &CompiledPool) -> Value {
        let (shared, limits) = (&pool.shared, &pool.ir.limits);
        // Counted in one place only where there is a limit; else it is summed up here.
        let in_flight = || pool.endpoints.iter().map(|e| self.load(pool, e.address()).0).sum::<u64>();
        let connections = || pool.endpoints.iter().map(|e| u64::from(e.state.connections())).sum::<u64>();
        let row = |gauge: &Gauge, of: u32, otherwise: Option<u64>| {
            let now = limit(of).map(|_| u64::from(gauge.now())).or(otherwise);
            json!({"now": now, "limit": limit(of), "refused": gauge.refused()})
        };
        json!({
            "requests": row(&shared.requests, limits.max_requests, Some(in_flight())),
            "connections": row(&shared.connections, limits.max_pool_connections, Some(connections())),
            "pending": row(&shared.pending, limits.max_pending, Some(u64::from(shared.pending.now()))),
            "retries": row(&shared.retries, limits.max_retries, None),
            "connections_per_endpoint": limit(limits.max_connections),
            "requests_per_endpoint_and_worker": limit(limits.max_requests_per_endpoint),
            "requests_per_connection": limit(limits.max_requests_per_connection),
            "retry_budget_percent": limits.retry_budget.percent,
        })
    }

    fn endpoint_json(&self, pool: &CompiledPool, endpoint: &CompiledEndpoint) -> Value {
        let (ir, state) = (&endpoint.ir, &endpoint.state);
        let (in_flight, idle) = self.load(pool, endpoint.address());
        let verdict = self.verdicts.of(state);
        let by = [("configuration", ir.draining), ("operator", state.is_drained())];
        let drained_by: Vec<_> = by.iter().filter(|(_, is)| *is).map(|(by, _)| *by).collect();
        json!({
            "address": endpoint.address(),
            "state": EndpointHealth::of(endpoint, self.now_ms).as_str(),
            "healthy": state.is_healthy(),
            "degraded": ir.degraded || state.is_degraded(),
            "drained_by": drained_by,
            "safe_to_remove": self.safe_to_remove(pool, endpoint.address(), in_flight),
            "check_pending": verdict.as_ref().is_some_and(|verdict| verdict.pending),
            "check_failure": verdict.and_then(|verdict| verdict.failure),
            "ejections": state.ejections(),
            "success_rate": state.record.success_rate().map(|thousandths| f64::from(thousandths) / 1000.0),
            "ejected_for_ms": state.ejected_until_ms().saturating_sub(self.now_ms),
            "weight": ir.weight,
            "priority": ir.priority,
            "locality": ir.locality.as_ref().map(ToString::to_string),
            "zone": ir.zone(),
            "workload": ir.workload.as_deref(),
            "tls": describe::endpoint_tls(&ir.tls),
            "in_flight": in_flight,
            "waiting": state.waiting(),
            "connections": state.connections(),
            "idle_connections": idle,
        })
    }
}

/// What outlier detection found, and what it did.
fn ejections(pool: &CompiledPool) -> Value {
    let counters = &pool.shared.ejections;
    let found = Reason::ALL.iter().filter(|reason| counters.detected(**reason) > 0);
    let reasons = found.map(|reason| {
        let row = json!({"detected": counters.detected(*reason), "ejected": counters.enforced(*reason)});
        (reason.as_str().to_owned(), row)
    });
    json!({"reasons": reasons.collect::<serde_json::Map<_, _>>(), "refused_by_limit": counters.overflow()})
}

fn drained(snapshot: &Snapshot) -> BTreeSet<(u32, SocketAddr)> {
    let of = |pool: &CompiledPool| {
        let slot = pool.slot;
        let drained: Vec<_> =
            pool.endpoints.iter().filter(|e| e.is_draining()).map(|e| (slot, e.address())).collect();
        drained
    };
    snapshot.pools().flat_map(|pool| of(pool)).collect()
}

/// The pool's limits that have a gauge, by the name that metrics and people know: limit, gauge.
pub(super) fn gauges(pool: &CompiledPool) -> [(&'static str, u32, &Gauge); 4] {
    let (shared, limits) = (&pool.shared, &pool.ir.limits);
    [
        ("requests", limits.max_requests, &shared.requests),
        ("connections", limits.max_pool_connections, &shared.connections),
        ("pending", limits.max_pending, &shared.pending),
        ("retries", limits.max_retries, &shared.retries),
    ]
}

/// `u32::MAX` is none.
pub(super) fn limit(value: u32) -> Option<u32> {
    (value != u32::MAX).then_some(value)
}

#[cfg(test)]
pub(super) mod tests {
    use fieldgate_core::ir::{Config, Endpoint, Endpoints, Locality, ObjectKey, Pool, Touched};

    use super::*;

    pub(in super::super) const BUSY: ([u8; 4], u16) = ([10, 0, 0, 1], 80);
    const IDLE: ([u8; 4], u16) = ([10, 0, 0, 2], 80);

    /// One pool of two endpoints. Two requests are at the first.
    pub(in super::super) fn pools(complete: bool, change: impl FnOnce(&mut Pool)) -> Pools {
        let object = ObjectKey { kind: "Pool", namespace: "default".into(), name: "vms".into() };
        let key = PoolKey { object, port: 0 };
        let mut second = Endpoint::new(IDLE.into());
        second.priority = 1;
        second.locality = Some(Arc::new(Locality::parse("eu/eu-1a")));
        let mut pool = Pool::of(key.clone(), Endpoints::Static(vec![Endpoint::new(BUSY.into()), second]));
        change(&mut pool);
        let config =
            Config { pools: [(key.clone(), Arc::new(pool))].into_iter().collect(), ..Config::default() };
        let snapshot = Arc::new(Snapshot::compile(None, config, &Touched::All, 1));
        let worker = |in_flight| WorkerReport {
            pools: vec![(key.clone(), vec![(BUSY.into(), in_flight, 3), (IDLE.into(), 0, 1)])],
            ..WorkerReport::default()
        };
        Pools::new(snapshot, vec![worker(2), worker(0)], complete, Verdicts::default(), 1000)
    }

    fn endpoint(pools: &Pools, at: usize) -> Value {
        pools.all()[0]["endpoints"][at].clone()
    }

    fn state(pools: &Pools, at: usize) -> &fieldgate_core::balance::EndpointState {
        &pools.snapshot.pools().next().unwrap().endpoints[at].state
    }

    #[test]
    fn loads_are_summed_up_and_places_are_shown() {
        let pools = pools(true, |_| {});
        let (first, second) = (endpoint(&pools, 0), endpoint(&pools, 1));
        assert_eq!((&first["in_flight"], &first["idle_connections"]), (&json!(2), &json!(6)));
        assert_eq!((&second["priority"], &second["locality"]), (&json!(1), &json!("eu/eu-1a")));
        let all = pools.all();
        assert_eq!(all[0]["limits"]["requests"], json!({"now": 2, "limit": null, "refused": 0}));
        assert_eq!(all[0]["limits"]["pending"], json!({"now": 0, "limit": 1024, "refused": 0}));
        assert_eq!(all[0]["balance"], "least-request of 2");
    }

    #[test]
    fn limits_are_those_that_are_counted() {
        let pools = pools(true, |pool| pool.limits.max_requests = 1);
        let shared = &pools.snapshot.pools().next().unwrap().shared;
        assert!(shared.requests.enter(1) && !shared.requests.enter(1));
        assert_eq!(pools.all()[0]["limits"]["requests"], json!({"now": 1, "limit": 1, "refused": 1}));
    }

    #[test]
    fn an_endpoint_is_safe_to_remove_once_it_drains_and_has_nothing() {
        let name = PoolName::parse("default", "vms").unwrap();
        for (complete, safe) in [(true, true), (false, false)] {
            let mut pools = pools(complete, |_| {});
            assert_eq!(pools.endpoint(&name, IDLE.into()), Some((0, false)), "it gets requests");
            state(&pools, 0).set_drained(true);
            state(&pools, 1).set_drained(true);
            assert_eq!(pools.endpoint(&name, IDLE.into()), Some((0, false)), "it may have got one since");
            pools.drained_before = drained(&pools.snapshot);
            assert_eq!(pools.endpoint(&name, BUSY.into()), Some((2, false)));
            assert_eq!(
                pools.endpoint(&name, IDLE.into()),
                Some((0, safe)),
                "all workers answered: {complete}"
            );
            assert_eq!(endpoint(&pools, 1)["safe_to_remove"], safe);
            assert_eq!(endpoint(&pools, 1)["drained_by"], json!(["operator"]));
        }
        assert_eq!(pools(true, |_| {}).endpoint(&name, ([10, 0, 0, 3], 80).into()), None);
    }

    #[test]
    fn states_have_an_order() {
        let pools = pools(true, |_| {});
        let seen = || endpoint(&pools, 0)["state"].clone();
        assert_eq!(seen(), "healthy");
        let state = state(&pools, 0);
        state.set_degraded(true);
        assert_eq!(seen(), "degraded");
        state.eject(1000, 50);
        assert_eq!((seen(), endpoint(&pools, 0)["ejected_for_ms"].clone()), (json!("ejected"), json!(50)));
        state.set_healthy(false);
        assert_eq!(seen(), "unhealthy");
        state.set_drained(true);
        assert_eq!(seen(), "drained");
    }
}
