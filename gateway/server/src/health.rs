//! Active health checks of pools: asks each endpoint now and then, and marks it healthy or not.
//!
//! Runs on the control runtime. An address is checked once for all pools that want the same of it, however many routes
//! lead there; the verdict goes to the [`EndpointState`] of each, which every worker reads and which survives reloads. It
//! never chooses an endpoint: that is `fieldgate_core::balance`'s. Why these are not pingora-load-balancing's checks:
//! `docs/decisions/0003-health-checks.md`.

mod probe;
mod watch;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fieldgate_core::balance::EndpointState;
use fieldgate_core::ir::HealthCheck;
use fieldgate_core::snapshot::Snapshot;
use tokio::sync::Semaphore;

use crate::upstream_tls::{Client, PoolClients};
use probe::Version;
use watch::{Check, Subject};

/// Checks under way at once. More wait for their turn: a start with thousands of endpoints must not become a burst of
/// connections.
const CONCURRENT_PROBES: usize = 128;

/// First checks that begin at the same moment are spread, so much for each ...
const SPREAD_PER_CHECK: Duration = Duration::from_millis(1);

/// ... but over no more than this: traffic waits for verdicts.
const SPREAD_MAX: Duration = Duration::from_secs(2);

type Running = HashMap<SocketAddr, Vec<Arc<Check>>>;

/// The checks that are running.
pub struct Checks {
    running: Arc<ArcSwap<Running>>,
    permits: Arc<Semaphore>,
}

/// What one address is asked, and for whom.
struct Wanted {
    settings: Arc<HealthCheck>,
    version: Version,
    transport: Option<Arc<Client>>,
    subjects: Vec<Subject>,
}

impl Wanted {
    fn is_for(&self, settings: &Arc<HealthCheck>, version: Version, transport: Option<&Arc<Client>>) -> bool {
        self.version == version
            && self.transport.as_ref().map(Arc::as_ptr) == transport.map(Arc::as_ptr)
            && (Arc::ptr_eq(&self.settings, settings) || self.settings == *settings)
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: Arc::default(), permits: Arc::new(Semaphore::new(CONCURRENT_PROBES)) }
    }
}

impl Checks {
    /// Checks exactly the endpoints that the snapshot wants checked. A check that stays as it is keeps running, with its
    /// counts and its place in the interval, whichever pools come and go.
    pub fn reconcile(&mut self, snapshot: &Snapshot) {
        let before = self.running.load_full();
        let mut started = Vec::new();
        let mut watched = HashSet::new();
        let mut now = Running::new();
        for (address, list) in wanted(snapshot) {
            for want in list {
                watched.extend(want.subjects.iter().map(|subject| Arc::as_ptr(&subject.state)));
                let known = before.get(&address).into_iter().flatten();
                let check =
                    match known.clone().find(|c| want.is_for(&c.settings, c.version, c.transport.as_ref())) {
                        Some(check) => {
                            check.follow(want.subjects);
                            Arc::clone(check)
                        }
                        None => {
                            let check = Arc::new(Check::new(
                                address,
                                want.settings,
                                want.version,
                                want.transport,
                                want.subjects,
                            ));
                            started.push(Arc::clone(&check));
                            check
                        }
                    };
                now.entry(address).or_default().push(check);
            }
        }
        let count = started.len();
        for check in started {
            let delay = random_up_to(spread(count, check.settings.interval));
            check.start(Arc::clone(&self.permits), delay);
        }
        for (address, checks) in &*before {
            for check in checks {
                if !now.get(address).is_some_and(|kept| kept.iter().any(|k| Arc::ptr_eq(k, check))) {
                    check.stop();
                }
                check.release(|state| watched.contains(&Arc::as_ptr(state)));
            }
        }
        self.running.store(Arc::new(now));
    }

    /// How many checks are running.
    pub fn len(&self) -> usize {
        self.running.load().values().map(Vec::len).sum()
    }

    /// Whether no check is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the checks have seen, for those who show it.
    pub fn verdicts(&self) -> Verdicts {
        Verdicts(Arc::clone(&self.running))
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for check in self.running.load().values().flatten() {
            check.stop();
        }
    }
}

/// What every address shall be asked, by the endpoints of all pools.
fn wanted(snapshot: &Snapshot) -> HashMap<SocketAddr, Vec<Wanted>> {
    let mut wanted: HashMap<SocketAddr, Vec<Wanted>> = HashMap::new();
    for pool in snapshot.pools() {
        let Some(settings) = &pool.ir.health else { continue };
        let clients = pool.transport.get::<PoolClients>().filter(|_| settings.tls.is_none());
        for endpoint in &pool.endpoints {
            let transport = clients.and_then(|clients| clients.of(endpoint.address()));
            let version = Version::of(settings, pool.ir.protocol, transport.is_some());
            let subject = Subject {
                pool: pool.ir.key.clone(),
                state: Arc::clone(&endpoint.state),
                ends_ejections: pool.ir.outlier.as_ref().is_some_and(|outlier| outlier.check_ends_ejection),
            };
            let list = wanted.entry(endpoint.address()).or_default();
            match list.iter_mut().find(|want| want.is_for(settings, version, transport)) {
                Some(want) => want.subjects.push(subject),
                None => {
                    let settings = Arc::clone(settings);
                    let transport = transport.cloned();
                    list.push(Wanted { settings, version, transport, subjects: vec![subject] });
                }
            }
        }
    }
    wanted
}

/// A look at the checks that are running.
#[derive(Clone, Default)]
pub struct Verdicts(Arc<ArcSwap<Running>>);

/// What a check has seen last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Nothing yet: the first answer is awaited.
    pub pending: bool,
    /// Why the last check failed, if it did. One failure may be less than the threshold.
    pub failure: Option<String>,
}

impl Verdicts {
    /// Of this endpoint; `None` if it is not checked.
    pub fn of(&self, state: &Arc<EndpointState>) -> Option<Verdict> {
        let running = self.0.load();
        running.get(&state.address)?.iter().find_map(|check| check.verdict_on(state))
    }
}

/// Over how long the first checks of so many are spread.
fn spread(checks: usize, interval: Duration) -> Duration {
    let checks = u32::try_from(checks).unwrap_or(u32::MAX);
    SPREAD_PER_CHECK.saturating_mul(checks).min(SPREAD_MAX).min(interval)
}

/// Spreads checks that started together. `RandomState` is seeded from the system, which is random enough for that.
fn random_up_to(limit: Duration) -> Duration {
    let fraction = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
    limit.mul_f64(fraction)
}

/// The status that a check sees in what it received. For the fuzz targets.
#[cfg(fuzzing)]
pub fn final_status(received: &[u8]) -> Result<Option<u16>, String> {
    probe::final_status(received)
}

#[cfg(test)]
mod tests;
