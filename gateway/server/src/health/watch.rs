//! One check that goes on and on: when it asks, what it makes of the answers, and whom it tells.
//!
//! How it asks is `probe`'s.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fieldgate_core::balance::EndpointState;
use fieldgate_core::ir::{HealthCheck, PoolKey};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use super::probe::{Probe, Seen, Version};
use super::{Verdict, random_up_to};
use crate::upstream_tls::Client;

/// An endpoint of a pool that hears of the verdict.
pub(super) struct Subject {
    pub(super) pool: PoolKey,
    pub(super) state: Arc<EndpointState>,
    /// The pool has outlier detection: there a check that passes ends an ejection (Envoy:
    /// `successful_active_health_check_uneject_host`).
    pub(super) ends_ejections: bool,
}

/// A check of one address, for all that want the same of it.
pub(super) struct Check {
    pub(super) settings: Arc<HealthCheck>,
    pub(super) version: Version,
    /// TLS of the pools, where the check has none of its own.
    pub(super) transport: Option<Arc<Client>>,
    address: SocketAddr,
    inner: Mutex<Inner>,
}

struct Inner {
    subjects: Vec<Subject>,
    /// Told that they are no longer watched, once it is known whether another check does.
    left: Vec<Arc<EndpointState>>,
    tally: Tally,
    degraded: bool,
    failure: Option<String>,
    task: Option<AbortHandle>,
}

impl Check {
    pub(super) fn new(
        address: SocketAddr,
        settings: Arc<HealthCheck>,
        version: Version,
        transport: Option<Arc<Client>>,
        subjects: Vec<Subject>,
    ) -> Self {
        let inner = Inner {
            subjects,
            left: Vec::new(),
            tally: Tally::default(),
            degraded: false,
            failure: None,
            task: None,
        };
        Self { settings, version, transport, address, inner: Mutex::new(inner) }
    }

    /// Begins to ask after a pause.
    pub(super) fn start(self: &Arc<Self>, permits: Arc<Semaphore>, delay: Duration) {
        let task = tokio::spawn(run(Arc::clone(self), permits, delay)).abort_handle();
        self.inner().task = Some(task);
    }

    /// Asks no more. Nobody is told anything after this.
    pub(super) fn stop(&self) {
        let mut inner = self.inner();
        if let Some(task) = inner.task.take() {
            task.abort();
        }
        let left: Vec<_> = inner.subjects.drain(..).map(|subject| subject.state).collect();
        inner.left.extend(left);
    }

    /// From now on for these. Who is new hears at once what is known.
    pub(super) fn follow(&self, subjects: Vec<Subject>) {
        let mut inner = self.inner();
        let before = std::mem::replace(&mut inner.subjects, subjects);
        let known =
            |list: &[Subject], state: &Arc<EndpointState>| list.iter().any(|s| Arc::ptr_eq(&s.state, state));
        if let Some(healthy) = inner.tally.verdict {
            for subject in inner.subjects.iter().filter(|s| !known(&before, &s.state)) {
                subject.state.set_healthy(healthy);
                subject.state.set_degraded(inner.degraded);
            }
        }
        let left: Vec<_> =
            before.into_iter().map(|s| s.state).filter(|state| !known(&inner.subjects, state)).collect();
        inner.left.extend(left);
    }

    /// Lifts the verdict on those that left, unless another check looks after them: nobody would ever do so again.
    pub(super) fn release(&self, watched: impl Fn(&Arc<EndpointState>) -> bool) {
        for state in self.inner().left.drain(..).filter(|state| !watched(state)) {
            state.set_healthy(true);
            state.set_degraded(false);
        }
    }

    /// What it has seen, if it is about this endpoint.
    pub(super) fn verdict_on(&self, state: &Arc<EndpointState>) -> Option<Verdict> {
        let inner = self.inner();
        let about = inner.subjects.iter().any(|subject| Arc::ptr_eq(&subject.state, state));
        about.then(|| Verdict { pending: inner.tally.verdict.is_none(), failure: inner.failure.clone() })
    }

    #[cfg(test)]
    pub(super) fn task(&self) -> tokio::task::Id {
        self.inner().task.as_ref().unwrap().id()
    }

    fn judge(&self, result: Result<Seen, String>) {
        let mut inner = self.inner();
        inner.tally.count(result.is_ok(), &self.settings);
        let healthy = inner.tally.verdict.unwrap_or(true);
        if let Ok(seen) = &result {
            inner.degraded = seen.degraded;
        }
        inner.failure = result.err();
        let reason = inner.failure.as_deref();
        for Subject { pool, state, ends_ejections } in &inner.subjects {
            let endpoint = self.address;
            if *ends_ejections && healthy && reason.is_none() {
                state.report_success();
            }
            if state.set_healthy(healthy) {
                match reason {
                    None => tracing::info!(%pool, %endpoint, "endpoint is healthy again"),
                    Some(reason) => tracing::warn!(%pool, %endpoint, reason, "endpoint is unhealthy"),
                }
            }
            if state.set_degraded(inner.degraded) {
                let now = if inner.degraded { "degraded" } else { "no longer degraded" };
                tracing::info!(%pool, %endpoint, "endpoint says that it is {now}");
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(check: Arc<Check>, permits: Arc<Semaphore>, delay: Duration) {
    let probe =
        Probe::new(check.address, Arc::clone(&check.settings), check.version, check.transport.as_deref());
    tokio::time::sleep(delay).await;
    loop {
        let result = {
            // The semaphore is never closed.
            let _permit = permits.acquire().await;
            probe.ask().await
        };
        check.judge(result);
        tokio::time::sleep(check.settings.interval + random_up_to(check.settings.jitter)).await;
    }
}

/// Results in a row, and what they mean.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) verdict: Option<bool>,
    in_a_row: u32,
    last: Option<bool>,
}

impl Tally {
    /// Counts one result. The first result of a check decides alone, as nothing is known before it (Envoy does the same);
    /// after that the thresholds hold.
    pub(super) fn count(&mut self, success: bool, settings: &HealthCheck) {
        self.in_a_row = if self.last == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let needed = if success { settings.healthy } else { settings.unhealthy };
        if self.verdict.is_none() || self.in_a_row >= needed {
            self.verdict = Some(success);
        }
    }
}
