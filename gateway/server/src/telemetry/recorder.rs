//! A worker's metrics: plain cells, found by a small key and poured into the shared series once a second.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::guard::Guard;
use fieldgate_core::ir::{ListenerKey, Mirror, ObjectKey, PolicyAction, Pool, PoolKey, Rule};
use fieldgate_plugins::jwt::{self, Passed};
use fieldgate_wire::tls::Refusal as Refused;
use metrics::{Counter, Gauge};
use rustc_hash::FxHashMap;

use super::clients::Clients;
use super::guards::{GuardResult, Guards};
use super::metrics::{IstioLabels, IstioSeries, Telemetry};
use super::mirrors::MirrorCounts;
use super::outcome::{Outcome, STAGES};
use super::pool_events::{PoolEvent, PoolEvents};
use super::refusals::Refusals;
use super::series::LocalHistogram;
use super::tokens::Tokens;
use crate::overload::Refusal;

/// Flushes without a request after which a cell is forgotten. Its counts are safe in the shared series; forgetting it
/// lets go of the rule and the pool, which a reload may have replaced.
pub(super) const IDLE_FLUSHES: u32 = 60;

/// The metrics of one worker.
pub struct Recorder {
    telemetry: Arc<Telemetry>,
    cells: RefCell<FxHashMap<CellKey, SeriesCell>>,
    stages: [LocalHistogram; STAGES.len()],
    connections: RefCell<FxHashMap<ListenerKey, Connections>>,
    pool_events: PoolEvents,
    authz: RefCell<FxHashMap<AuthzKey, AuthzCell>>,
    /// By address, as with [`CellKey`].
    mirrors: RefCell<FxHashMap<usize, Rc<MirrorCounts>>>,
    refusals: Refusals,
    clients: Clients,
    guards: Guards,
    tokens: Tokens,
}

/// Rules and pools are told apart by address. The cell holds them, so an address is not reused while it is a key.
#[derive(PartialEq, Eq, Hash)]
struct CellKey {
    rule: usize,
    pool: usize,
    flags: usize,
    backend: Option<u16>,
    status: u16,
    grpc_status: Option<u16>,
    grpc: bool,
}

struct SeriesCell {
    _rule: Option<Arc<Rule>>,
    _pool: Option<Arc<Pool>>,
    requests: LocalCounter,
    split: Option<LocalCounter>,
    shared: Arc<IstioSeries>,
    duration: LocalHistogram,
    request_bytes: LocalHistogram,
    response_bytes: LocalHistogram,
    idle: Cell<u32>,
}

/// Name and namespace by address, action, dry run. As with [`CellKey`], the cell holds what the addresses are of.
type AuthzKey = (usize, usize, PolicyAction, bool);

struct AuthzCell {
    _policy: ObjectKey,
    matches: LocalCounter,
    idle: Cell<u32>,
}

pub(super) struct LocalCounter {
    count: Cell<u64>,
    shared: Counter,
}

struct Connections {
    active: Gauge,
    total: LocalCounter,
}

impl Recorder {
    /// The recorder of a worker.
    pub fn new(telemetry: &Arc<Telemetry>, _worker: usize) -> Self {
        Self {
            telemetry: Arc::clone(telemetry),
            cells: RefCell::default(),
            stages: Default::default(),
            connections: RefCell::default(),
            pool_events: PoolEvents::default(),
            authz: RefCell::default(),
            mirrors: RefCell::default(),
            refusals: Refusals::new(telemetry),
            clients: Clients::default(),
            guards: Guards::default(),
            tokens: Tokens::new(telemetry),
        }
    }

    /// Counts a request. To be called once for each.
    pub fn record(&self, outcome: &Outcome<'_>) {
        let grpc = outcome.head.is_grpc();
        let key = CellKey {
            rule: address(outcome.rule),
            pool: address(outcome.pool),
            flags: outcome.flags.as_ptr() as usize,
            backend: outcome.backend.map(|b| b as u16),
            status: outcome.status,
            grpc_status: outcome.grpc_status,
            grpc,
        };
        let mut cells = self.cells.borrow_mut();
        let cell = cells.entry(key).or_insert_with(|| SeriesCell::new(&self.telemetry, outcome, grpc));
        cell.record(outcome);
        for (stage, duration) in outcome.stages.parts().into_iter().enumerate() {
            if let Some(duration) = duration {
                self.stages[stage].record(self.telemetry.stage(stage), duration.as_nanos() as u64);
            }
        }
    }

    /// Counts a connection that a client opened.
    pub fn connection_opened(&self, listener: &ListenerKey) {
        self.with_connections(listener, |c| {
            c.active.increment(1.0);
            c.total.add();
        });
    }

    /// Counts its end.
    pub fn connection_closed(&self, listener: &ListenerKey) {
        self.with_connections(listener, |c| c.active.decrement(1.0));
    }

    /// Counts what happened on the way to a pool.
    pub fn pool_event(&self, pool: &PoolKey, event: PoolEvent) {
        self.pool_events.add(&self.telemetry, pool, event);
    }

    /// Counts a connection that was broken off as soon as it was accepted.
    pub fn connection_refused(&self, why: Refusal) {
        self.refusals.connection(why);
    }

    /// Counts a request that was refused for the gateway's own sake.
    pub fn request_refused(&self, why: Refusal) {
        self.refusals.request(why);
    }

    /// Counts an HTTP/2 connection that was ended because it flooded.
    pub fn flooded(&self, kind: &str) {
        self.refusals.flood(kind);
    }

    /// Counts a time when there was no file for a connection.
    pub fn short_of_files(&self) {
        self.refusals.shortage();
    }

    /// Counts a client's certificate that was not believed, and says so. `went_on`: it was let in without an identity.
    pub fn client_refused(&self, listener: &ListenerKey, peer: SocketAddr, why: &Refused, went_on: bool) {
        self.clients.refused(&self.telemetry, listener, peer, why, went_on);
    }

    /// Counts a client that proved who it is.
    pub fn client_verified(&self, listener: &ListenerKey) {
        self.clients.verified(&self.telemetry, listener);
    }

    /// Counts a request that matched a policy.
    pub fn authz(&self, policy: &ObjectKey, action: PolicyAction, dry_run: bool) {
        let key = (address(Some(&policy.namespace)), address(Some(&policy.name)), action, dry_run);
        let mut authz = self.authz.borrow_mut();
        let cell =
            authz.entry(key).or_insert_with(|| AuthzCell::new(&self.telemetry, policy, action, dry_run));
        cell.matches.add();
    }

    /// Counts what a guard has decided.
    pub fn guard(&self, guard: &dyn Guard, result: GuardResult) {
        self.guards.decided(&self.telemetry, guard, result);
    }

    /// Counts an answer that a guard waited for.
    pub fn guard_asked(&self, guard: &dyn Guard, took: Duration) {
        self.guards.asked(&self.telemetry, guard, took);
    }

    /// Counts a request whose tokens were looked for.
    pub fn tokens(&self, result: Result<Passed, jwt::Refusal>) {
        match result {
            Ok(passed) => self.tokens.passed(passed),
            Err(why) => self.tokens.refused(why),
        }
    }

    /// The counts of a mirror of the rule `rule`.
    pub fn mirror(&self, mirror: &Arc<Mirror>, rule: &str) -> Rc<MirrorCounts> {
        let mut mirrors = self.mirrors.borrow_mut();
        let counts = mirrors
            .entry(address(Some(mirror)))
            .or_insert_with(|| Rc::new(MirrorCounts::new(&self.telemetry, mirror, rule)));
        Rc::clone(counts)
    }

    /// Pours everything into the shared series. Called each second, and before a scrape.
    pub fn flush(&self) {
        self.cells.borrow_mut().retain(|_, cell| cell.flush() < IDLE_FLUSHES);
        for (stage, local) in self.stages.iter().enumerate() {
            local.flush(self.telemetry.stage(stage));
        }
        self.connections.borrow().values().for_each(|c| _ = c.total.flush());
        self.pool_events.flush();
        self.authz.borrow_mut().retain(|_, cell| cell.flush() < IDLE_FLUSHES);
        self.mirrors.borrow_mut().retain(|_, counts| MirrorCounts::flush(counts) < IDLE_FLUSHES);
        self.refusals.flush();
        self.clients.flush();
        self.guards.flush();
        self.tokens.flush();
    }

    fn with_connections(&self, listener: &ListenerKey, then: impl FnOnce(&Connections)) {
        let mut connections = self.connections.borrow_mut();
        if let Some(found) = connections.get(listener) {
            return then(found);
        }
        let name = listener.to_string();
        let labels = [("listener", &*name)];
        let made = Connections {
            active: self.telemetry.gauge("fieldgate_downstream_connections_active", &labels),
            total: LocalCounter::new(
                self.telemetry.counter("fieldgate_downstream_connections_total", &labels),
            ),
        };
        then(connections.entry(listener.clone()).or_insert(made));
    }
}

impl Drop for Recorder {
    // What a worker counted while it drained is not lost.
    fn drop(&mut self) {
        self.flush();
    }
}

impl SeriesCell {
    fn new(telemetry: &Telemetry, outcome: &Outcome<'_>, grpc: bool) -> Self {
        let split = outcome
            .rule
            .zip(outcome.backend)
            .filter(|(rule, _)| rule.backends.len() > 1)
            .map(|(rule, backend)| LocalCounter::new(telemetry.split(rule, backend)));
        let shared = telemetry.istio(&IstioLabels {
            pool: outcome.pool.map(|pool| &**pool),
            grpc,
            status: outcome.status,
            grpc_status: outcome.grpc_status,
            flags: outcome.flags,
        });
        Self {
            _rule: outcome.rule.cloned(),
            _pool: outcome.pool.cloned(),
            requests: LocalCounter::new(shared.requests.clone()),
            split,
            shared,
            duration: LocalHistogram::default(),
            request_bytes: LocalHistogram::default(),
            response_bytes: LocalHistogram::default(),
            idle: Cell::new(0),
        }
    }

    fn record(&self, outcome: &Outcome<'_>) {
        self.requests.add();
        if let Some(split) = &self.split {
            split.add();
        }
        self.duration.record(&self.shared.duration, outcome.duration.as_nanos() as u64);
        self.request_bytes.record(&self.shared.request_bytes, outcome.bytes_received);
        self.response_bytes.record(&self.shared.response_bytes, outcome.bytes_sent);
    }

    /// Returns how many flushes in a row found nothing.
    fn flush(&self) -> u32 {
        if self.requests.count.get() == 0 {
            self.idle.set(self.idle.get() + 1);
            return self.idle.get();
        }
        self.idle.set(0);
        self.requests.flush();
        if let Some(split) = &self.split {
            split.flush();
        }
        self.duration.flush(&self.shared.duration);
        self.request_bytes.flush(&self.shared.request_bytes);
        self.response_bytes.flush(&self.shared.response_bytes);
        0
    }
}

impl AuthzCell {
    fn new(telemetry: &Telemetry, policy: &ObjectKey, action: PolicyAction, dry_run: bool) -> Self {
        let name = format!("{}/{}", policy.namespace, policy.name);
        let dry_run = if dry_run { "true" } else { "false" };
        let labels = [("policy", &*name), ("action", action.as_str()), ("dry_run", dry_run)];
        Self {
            _policy: policy.clone(),
            matches: LocalCounter::new(telemetry.counter("fieldgate_authz_total", &labels)),
            idle: Cell::new(0),
        }
    }

    /// Returns how many flushes in a row found nothing.
    fn flush(&self) -> u32 {
        self.idle.set(if self.matches.count.get() == 0 { self.idle.get() + 1 } else { 0 });
        self.matches.flush();
        self.idle.get()
    }
}

impl LocalCounter {
    pub(super) fn new(shared: Counter) -> Self {
        Self { count: Cell::new(0), shared }
    }

    pub(super) fn add(&self) {
        self.count.set(self.count.get() + 1);
    }

    pub(super) fn add_many(&self, count: u64) {
        self.count.set(self.count.get() + count);
    }

    /// Says whether there was anything.
    pub(super) fn flush(&self) -> bool {
        let count = self.count.take();
        if count > 0 {
            self.shared.increment(count);
        }
        count > 0
    }
}

fn address<T: ?Sized>(of: Option<&Arc<T>>) -> usize {
    of.map_or(0, |arc| Arc::as_ptr(arc).cast::<()>() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::MirrorOutcome;
    use crate::telemetry::testing::Sample;

    #[test]
    fn a_request_is_in_the_text_after_a_flush() {
        let telemetry = Telemetry::new();
        let recorder = Recorder::new(&telemetry, 0);
        let sample = Sample::default();
        recorder.record(&sample.outcome());
        recorder.record(&sample.outcome());
        let before = telemetry.render(|_| ());
        assert!(
            before.lines().filter(|l| l.starts_with("istio_requests_total{")).all(|l| l.ends_with("} 0"))
        );
        recorder.flush();
        let text = telemetry.render(|_| ());
        let line = text.lines().find(|l| l.starts_with("istio_requests_total{")).unwrap();
        assert!(line.starts_with("istio_requests_total{reporter=\"source\",source_workload=\"fieldgate\","));
        assert!(line.contains("destination_service=\"shop.default.svc.cluster.local\""), "{line}");
        assert!(line.ends_with("connection_security_policy=\"unknown\"} 2"), "{line}");
        let split = "fieldgate_split_requests_total{route=\"default/shop\",rule=\"default/shop#1\",\
            backend=\"Service default/shop:80\"} 2\n";
        assert!(text.contains(split), "{text}");
        assert!(text.contains("fieldgate_request_stage_seconds_bucket{stage=\"connect\",le=\"0.001\"} 2\n"));
        assert!(text.contains("fieldgate_request_stage_seconds_count{stage=\"tls\"} 0\n"));
        let duration =
            text.lines().find(|l| l.starts_with("istio_request_duration_milliseconds_sum")).unwrap();
        assert!(duration.ends_with("} 14"), "{duration}");
    }

    #[test]
    fn idle_cells_let_go_of_their_rule_and_keep_their_count() {
        let telemetry = Telemetry::new();
        let recorder = Recorder::new(&telemetry, 0);
        let sample = Sample::default();
        recorder.record(&sample.outcome());
        for _ in 0..=IDLE_FLUSHES {
            recorder.flush();
        }
        assert_eq!(Arc::strong_count(&sample.rule), 1);
        recorder.record(&sample.outcome());
        recorder.flush();
        let text = telemetry.render(|_| ());
        assert!(text.lines().any(|l| l.starts_with("istio_requests_total{") && l.ends_with("} 2")));
    }

    #[test]
    fn connections_retries_policies_and_mirrors() {
        let telemetry = Telemetry::new();
        let recorder = Recorder::new(&telemetry, 0);
        let sample = Sample::default();
        recorder.connection_opened(&sample.listener);
        recorder.connection_opened(&sample.listener);
        recorder.connection_closed(&sample.listener);
        recorder.pool_event(&sample.pool.key, PoolEvent::Retry);
        let policy =
            ObjectKey { kind: "AuthorizationPolicy", namespace: "default".into(), name: "deny".into() };
        recorder.authz(&policy, PolicyAction::Deny, true);
        let target = fieldgate_core::ir::BackendTarget::Pool(Arc::new(sample.pool.key.clone()));
        let mirror = Arc::new(Mirror { backend: target, numerator: 1, denominator: 1 });
        recorder.mirror(&mirror, "default/shop#1").add(MirrorOutcome::Dropped);
        recorder.mirror(&mirror, "default/shop#1").add(MirrorOutcome::Dropped);
        drop(recorder);
        let text = telemetry.render(|_| ());
        for line in [
            "fieldgate_downstream_connections_active{listener=\"default/edge/http\"} 1",
            "fieldgate_downstream_connections_total{listener=\"default/edge/http\"} 2",
            "fieldgate_upstream_retries_total{pool=\"Service default/shop:80\"} 1",
            "fieldgate_authz_total{policy=\"default/deny\",action=\"DENY\",dry_run=\"true\"} 1",
            "fieldgate_mirror_requests_total{rule=\"default/shop#1\",pool=\"Service default/shop:80\",outcome=\"dropped\"} 2",
            "fieldgate_mirror_requests_total{rule=\"default/shop#1\",pool=\"Service default/shop:80\",outcome=\"sent\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
