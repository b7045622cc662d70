//! The control side: from changed files and DNS answers to what workers serve.
//!
//! One task owns everything that changes and handles one event after the other, so that the order of what is published
//! is the order of what happened. It compiles, publishes by one pointer swap, and then makes sockets and health checks
//! follow. Nothing here runs on a worker, and no request ever waits for anything here.

mod change;
mod clients;
mod dns;
mod drains;
mod expiry;
mod policies;
mod problems;
mod sockets;
#[cfg(test)]
mod tests;
mod tls;
mod view;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use fieldgate_config::diagnostic::Severity;
use fieldgate_config::status::ObjectStatus;
use fieldgate_config::translate::TrustDomains;
use fieldgate_config::{Configuration, Diagnostic, FileChange, Outcome, Workload};
use fieldgate_core::Snapshot;
use fieldgate_core::ir::{Config, Locality, ObjectKey, Touched};
use fieldgate_core::snapshot::Rejection;
use rustc_hash::FxHashSet;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::admin::Access;
use crate::audit::{self, Audit, Who};
use crate::hardening::Report;
use crate::health::Checks;
use crate::jwks::KeySets;
use crate::published::{Published, Shared};
use crate::resolve::{Resolved, Resolver};
use crate::source::Update;
use crate::upstream_tls;
use crate::worker::WorkerHandle;
pub use change::{Answer, Change, Changed, Refused, What, Why};
use dns::DnsPools;
use drains::Drains;
pub use drains::{DrainOrder, DrainedEndpoint, PoolName, no_such_pool, read_drained, write_drained};
pub use expiry::Expiry;
use problems::Problems;
use sockets::{Sockets, Tell};
pub use tls::Configs as TlsConfigs;
pub use view::{ChangeCounts, ListenerView, View};

/// How long new DNS names may hold back the configuration that needs them. Without it a pool would be published empty and
/// answer 503 for as long as its first lookup takes.
const DNS_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked at what expires soon.
const EXPIRY_PERIOD: Duration = Duration::from_hours(1);

/// Listening sockets with the addresses as configured.
pub type NamedSockets = Vec<(SocketAddr, TcpListener)>;

/// What one process leaves to the next.
#[derive(Default)]
pub struct Inheritance {
    /// The listening sockets.
    pub sockets: NamedSockets,
    /// The keys of TLS session tickets, as `wire::tls` exports them; empty if there are none. Secret.
    pub ticket_keys: Vec<u8>,
    /// Endpoints that an operator has taken out of service.
    pub drained: Vec<DrainedEndpoint>,
}

/// What can happen.
pub enum Event {
    /// Files changed.
    Source(Update),
    /// What the gateway is known by in its mesh is another.
    Workload(Workload),
    /// A name resolves to other addresses.
    Resolved(Resolved),
    /// The first fetch of a set of keys is over.
    KeysAnswered,
    /// The next process asks for what it is to go on with. Dropped unanswered if there is nothing to hand over any more.
    HandOver(oneshot::Sender<Inheritance>),
    /// The admin server asks for Gateway API's conditions of every object. On demand, as there may be many.
    Statuses(oneshot::Sender<Vec<ObjectStatus>>),
    /// The admin server is asked to change objects.
    Change(Change),
    /// The admin server is asked to take an endpoint out of service, or to put it back.
    DrainEndpoint(DrainOrder),
    /// Stop accepting, finish what is in flight.
    Drain {
        /// When it is over at the latest.
        deadline: Duration,
    },
}

/// Sends events to the control task.
#[derive(Clone)]
pub struct ControlHandle {
    events: mpsc::UnboundedSender<Event>,
}

impl ControlHandle {
    /// Sends an event. After the end of the control task, which is the end of the process, it goes nowhere.
    pub fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What the next process goes on with, unless this one drains.
    pub async fn inheritance(&self) -> Option<Inheritance> {
        let (reply, inheritance) = oneshot::channel();
        self.send(Event::HandOver(reply));
        inheritance.await.ok()
    }

    /// Changes objects; `None` at the end of the process.
    pub async fn change(&self, who: Who, if_generation: Option<u64>, what: What) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Change(Change { who, if_generation, what, reply }));
        answer.await.ok()
    }

    /// Takes an endpoint out of service, or puts it back: whether anything changed, or why there is no such endpoint;
    /// `None` at the end of the process.
    pub async fn drain_endpoint(
        &self,
        who: Who,
        pool: PoolName,
        address: SocketAddr,
        drained: bool,
    ) -> Option<Result<bool, String>> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::DrainEndpoint(DrainOrder { who, pool, address, drained, reply }));
        answer.await.ok()
    }

    /// Gateway API's conditions of every object.
    pub async fn statuses(&self) -> Vec<ObjectStatus> {
        let (reply, statuses) = oneshot::channel();
        self.send(Event::Statuses(reply));
        statuses.await.unwrap_or_default()
    }
}

/// Makes the channel of a control task before the task itself.
pub fn channel() -> (ControlHandle, mpsc::UnboundedReceiver<Event>) {
    let (events, receiver) = mpsc::unbounded_channel();
    (ControlHandle { events }, receiver)
}

/// What the admin server shows and can ask for.
pub struct AdminState {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// The workers.
    pub workers: Vec<Arc<WorkerHandle>>,
    /// What the control side knows.
    pub view: Arc<ArcSwap<View>>,
    /// The control task.
    pub control: ControlHandle,
    /// How long a drain that is asked for here may take.
    pub drain_time: Duration,
    /// Set to end the process at once.
    pub quit: watch::Sender<bool>,
    /// Whether objects can be changed here, and by whom.
    pub api_write: ApiWrite,
    /// An operator wants it to say that it is not ready, for a load balancer in front.
    pub failing: AtomicBool,
    /// What the process took from itself.
    pub hardened: Arc<Report>,
    /// Who may do what here.
    pub access: Access,
    /// Where changes are written down.
    pub audit: Arc<Audit>,
}

/// Whether the admin server changes objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApiWrite {
    /// It does not.
    #[default]
    Off,
    /// On loopback only.
    Loopback,
    /// For whoever can reach it.
    Anyone,
}

impl AdminState {
    /// Whether all that is configured is being served.
    pub fn is_ready(&self) -> bool {
        self.view.load().is_ready() && !self.is_leaving()
    }

    /// Whether it wants no new clients, though it serves those who come.
    pub fn is_leaving(&self) -> bool {
        self.failing.load(Ordering::Relaxed) || self.shared.draining.load(Ordering::Relaxed)
    }

    /// Begins the drain that SIGTERM begins.
    pub fn drain(&self) {
        self.control.send(Event::Drain { deadline: self.drain_time });
    }
}

/// The state of the control task.
pub struct Control {
    shared: Arc<Shared>,
    view: Arc<ArcSwap<View>>,
    configuration: Configuration,
    /// As translated, DNS names and all.
    base: Config,
    /// What may differ from the published configuration.
    touched: Option<Touched>,
    document_diagnostics: Vec<Diagnostic>,
    source_diagnostics: Vec<Diagnostic>,
    /// All that stand, while a snapshot has only those of its own compilation.
    rejections: BTreeMap<ObjectKey, Vec<Rejection>>,
    dns: DnsPools,
    resolver: Resolver,
    keys: KeySets,
    patience_until: Option<Instant>,
    look_at_expiries: Instant,
    checks: Checks,
    drains: Drains,
    sockets: Sockets,
    tls: tls::Configs,
    upstream_tls: upstream_tls::Clients,
    problems: Problems,
    /// Where objects go that no file describes yet.
    directory: Option<PathBuf>,
    audit: Arc<Audit>,
    /// Files that were written here.
    written: FxHashSet<Arc<str>>,
    /// Errors that came up with the last change by the admin server.
    consequences: Vec<Diagnostic>,
    changes: ChangeCounts,
    generation: u64,
    loaded: SystemTime,
    /// Told when something is published.
    published: watch::Sender<u64>,
    /// Told when a drain begins.
    draining: watch::Sender<Option<Duration>>,
}

/// What a control task is made of.
pub struct Parts {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// How many workers there are.
    pub workers: usize,
    /// How they are told; the number is the worker's index.
    pub tell: Tell,
    /// From the process before.
    pub inherited: Inheritance,
    /// Reports new answers back as [`Event::Resolved`].
    pub resolver: Resolver,
    /// Reports the end of first fetches back as [`Event::KeysAnswered`].
    pub keys: KeySets,
    /// Where this gateway stands.
    pub locality: Option<Locality>,
    /// What its trust domain is called.
    pub trust_domains: TrustDomains,
    /// Where objects go that no file describes yet; `None` if there is no directory.
    pub directory: Option<PathBuf>,
    /// Where changes are written down.
    pub audit: Arc<Audit>,
}

impl Control {
    /// Nothing is configured yet; everything comes by events.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            shared,
            workers,
            tell,
            inherited,
            resolver,
            keys,
            locality,
            trust_domains,
            directory,
            audit,
        } = parts;
        let ticket_keys = Some(&*inherited.ticket_keys).filter(|keys| !keys.is_empty());
        let tls = tls::Configs::new(ticket_keys);
        Self {
            shared,
            view: Arc::default(),
            configuration: Configuration::of_gateway_at(locality).in_trust_domains(trust_domains),
            base: Config::default(),
            touched: Some(Touched::All),
            document_diagnostics: Vec::new(),
            source_diagnostics: Vec::new(),
            rejections: BTreeMap::new(),
            dns: DnsPools::default(),
            resolver,
            keys,
            patience_until: None,
            look_at_expiries: Instant::now() + EXPIRY_PERIOD,
            checks: Checks::default(),
            drains: Drains::new(inherited.drained),
            sockets: Sockets::new(workers, inherited.sockets, tell),
            tls,
            upstream_tls: upstream_tls::Clients::default(),
            problems: Problems::default(),
            directory,
            audit,
            written: FxHashSet::default(),
            consequences: Vec::new(),
            changes: ChangeCounts::default(),
            generation: 0,
            loaded: SystemTime::UNIX_EPOCH,
            published: watch::Sender::new(0),
            draining: watch::Sender::new(None),
        }
    }

    /// What the admin server reads.
    pub fn view(&self) -> Arc<ArcSwap<View>> {
        Arc::clone(&self.view)
    }

    /// The generation published last, as it changes.
    pub fn generations(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// The deadline of the drain, once one has begun.
    pub fn draining(&self) -> watch::Receiver<Option<Duration>> {
        self.draining.subscribe()
    }

    /// Handles events until nobody can send any.
    pub async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        loop {
            let event = match self.next_deadline() {
                None => events.recv().await,
                Some(deadline) => match tokio::time::timeout_at(deadline, events.recv()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.on_time(Instant::now());
                        continue;
                    }
                },
            };
            match event {
                Some(event) => self.on_event(event),
                None => return,
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        [self.patience_until, self.sockets.retry_at(), Some(self.look_at_expiries)]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Source(update) => self.on_update(update),
            Event::Workload(workload) => self.on_workload(workload),
            Event::Resolved(resolved) => {
                self.dns.answer(resolved);
                self.settle();
            }
            Event::KeysAnswered => self.settle(),
            Event::HandOver(reply) => self.hand_over(reply),
            Event::Statuses(reply) => drop(reply.send(self.statuses())),
            Event::Change(change) => self.on_change(change),
            Event::DrainEndpoint(order) => self.on_drain_order(order),
            Event::Drain { deadline } => self.drain(deadline),
        }
    }

    fn on_time(&mut self, now: Instant) {
        if self.patience_until.is_some_and(|until| until <= now) {
            self.publish();
        }
        if self.sockets.retry_at().is_some_and(|at| at <= now) {
            self.sockets.retry();
            self.report();
        }
        if self.look_at_expiries <= now {
            self.look_at_expiries = now + EXPIRY_PERIOD;
            self.report();
        }
    }

    fn on_update(&mut self, update: Update) {
        self.source_diagnostics = update.diagnostics;
        let changes = self.at_present(update.changes);
        let row = |change: &FileChange| {
            let verb = if change.text.is_some() { "read" } else { "gone" };
            json!({"file": &*change.name, "verb": verb})
        };
        let files = audit::names(changes.iter().map(row));
        let outcome = self.configuration.apply(changes);
        self.take_over(outcome);
        self.settle();
        self.audit_update(files);
    }

    /// Errors in files are the outcome too: what they refuse stays as it was.
    fn audit_update(&self, files: serde_json::Value) {
        let errors = self.document_diagnostics.iter().chain(&self.source_diagnostics);
        let errors = errors.filter(|diagnostic| diagnostic.severity == Severity::Error).count();
        let about = json!({
            "files": files,
            "generation": self.generation,
            "published": self.touched.is_none(),
            "errors": errors,
        });
        self.audit.record("reload", &Who::Files, about, &audit::Outcome::Done);
    }

    fn on_workload(&mut self, workload: Workload) {
        tracing::info!("the gateway has a certificate of its workload");
        self.configuration.set_workload(Some(workload));
        // Before the first configuration there is nothing to translate anew, and nothing to publish.
        if self.generation > 0 {
            let outcome = self.configuration.apply(Vec::new());
            self.take_over(outcome);
            self.settle();
        }
    }

    fn take_over(&mut self, outcome: Outcome) {
        self.document_diagnostics = outcome.diagnostics;
        if outcome.changed {
            self.base = outcome.config;
            self.touched = Some(match self.touched.take() {
                Some(before) => before.and(outcome.touched),
                None => outcome.touched,
            });
            self.resolver.reconcile(dns::names(&self.base));
            self.keys.reconcile(&self.base);
        }
    }

    /// Publishes, unless that would publish a pool whose names are being looked up for the first time, or tokens whose keys
    /// are being fetched for the first time: a process that takes over from another must not refuse what that one took.
    fn settle(&mut self) {
        if self.dns.unanswered(&self.base) || self.keys.unanswered() {
            self.patience_until.get_or_insert_with(|| Instant::now() + DNS_PATIENCE);
            self.report();
        } else {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.patience_until = None;
        let before = self.shared.published.load_full();
        let config = self.dns.fill(&self.base);
        let touched = self.touched.take();
        // Routes are compared by who touched them; pools here, as DNS answers touch only those.
        if touched.is_none() && config.pools == before.snapshot.config.pools {
            self.report();
            return;
        }
        let touched = touched.unwrap_or(Touched::Routes(Vec::new()));
        let snapshot =
            Arc::new(Snapshot::compile(Some(&before.snapshot), config, &touched, self.generation + 1));
        self.keep_rejections(&before.snapshot, &snapshot);
        self.drains.apply(&snapshot);
        self.tls.reconcile(&snapshot);
        self.upstream_tls.reconcile(&snapshot);
        let guards = policies::guards(&snapshot, &before, &|jwks| self.keys.source(jwks));
        let published = Published {
            policies: policies::of_listeners(&snapshot, &guards, &before, &|jwks| self.keys.source(jwks)),
            guards,
            tls: self.tls.by_address(),
            access_log: before.access_log.clone(),
            snapshot: Arc::clone(&snapshot),
        };
        self.shared.published.store(Arc::new(published));
        self.generation += 1;
        self.loaded = SystemTime::now();
        let routes = snapshot.config.routes.len();
        tracing::info!(
            generation = self.generation,
            routes,
            pools = snapshot.config.pools.len(),
            "configuration published"
        );
        self.checks.reconcile(&snapshot);
        self.sockets.reconcile(snapshot.addresses().map(|table| table.address));
        self.report();
        self.published.send_replace(self.generation);
    }

    /// A rejection stands as long as its route is the very object that was rejected.
    fn keep_rejections(&mut self, before: &Snapshot, now: &Snapshot) {
        let (old, new) = (&before.config.routes, &now.config.routes);
        self.rejections.retain(|key, _| match (old.get(key), new.get(key)) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        });
        for rejection in &now.rejections {
            self.rejections.remove(&rejection.object);
        }
        for rejection in &now.rejections {
            self.rejections.entry(rejection.object.clone()).or_default().push(rejection.clone());
        }
    }

    /// Says what is wrong, in the log and in the view.
    fn report(&mut self) {
        let published = self.shared.published.load_full();
        let documents = self.source_diagnostics.iter().chain(&self.document_diagnostics);
        let from_documents =
            documents.clone().map(|diagnostic| (diagnostic.severity, diagnostic.to_string()));
        let rejections = self.rejections.values().flatten();
        let from_compile = rejections.clone().map(|Rejection { object, field, message }| {
            (Severity::Error, format!("error: {object}: {field}: {message}"))
        });
        let from_tls = self.tls.findings(SystemTime::now());
        let from_upstream_tls = self.upstream_tls.findings();
        let from_sockets = self.sockets.failures().map(|(_, why)| (Severity::Error, why.to_owned()));
        self.problems.update(
            from_documents.chain(from_compile).chain(from_tls).chain(from_upstream_tls).chain(from_sockets),
        );
        let listeners = published.snapshot.addresses().map(|table| ListenerView {
            address: table.address,
            listeners: table.listeners.iter().map(|listener| listener.ir.key.clone()).collect(),
            state: self.sockets.state(table.address),
            tls: published.tls.get(&table.address).map(|tls| tls.as_ref().map(|_| ()).map_err(Clone::clone)),
        });
        self.view.store(Arc::new(View {
            generation: self.generation,
            loaded: self.loaded,
            diagnostics: documents.cloned().collect(),
            rejections: rejections.cloned().collect(),
            refused_certificates: self.tls.refused().into_iter().collect(),
            expiries: self.tls.expiries(),
            listeners: listeners.collect(),
            changes: self.changes,
            verdicts: self.checks.verdicts(),
            keys: self.keys.view(),
            drained: self.drains.list(),
        }));
    }

    fn on_drain_order(&mut self, order: DrainOrder) {
        let DrainOrder { who, pool, address, drained, reply } = order;
        let snapshot = Arc::clone(&self.shared.published.load().snapshot);
        let result = self.drains.set(&snapshot, &pool, address, drained);
        let outcome = match &result {
            Ok(_) => audit::Outcome::Done,
            Err(message) => audit::Outcome::Refused(message.clone()),
        };
        let about = json!({"pool": pool.to_string(), "endpoint": address, "changed": result == Ok(true)});
        self.audit.record(if drained { "drain" } else { "undrain" }, &who, about, &outcome);
        if let Ok(true) = result {
            let what = if drained { "taken out of service" } else { "put back into service" };
            tracing::info!(%who, %pool, endpoint = %address, "endpoint is {what} by an operator");
            self.report();
        }
        let _ = reply.send(result);
    }

    /// As translated, and as it came out: a listener whose address or certificate failed is not programmed.
    fn statuses(&self) -> Vec<ObjectStatus> {
        let mut statuses = self.configuration.statuses();
        let snapshot = &self.shared.published.load().snapshot;
        for listener in snapshot.listeners() {
            let key = &listener.ir.key;
            let tls = self.tls.error(key).map(|why| ("Invalid", why.to_owned()));
            let unbound =
                |address: &SocketAddr| self.sockets.state(*address).err().map(|why| ("Pending", why));
            let Some((reason, why)) = tls.or_else(|| listener.ir.addresses.iter().find_map(unbound)) else {
                continue;
            };
            let gateway = |s: &&mut ObjectStatus| {
                s.kind == "Gateway" && *s.namespace == *key.namespace && *s.name == *key.gateway
            };
            let conditions = statuses.iter_mut().filter(gateway).flat_map(|status| &mut status.conditions);
            for condition in conditions.filter(|c| *c.part == *key.name && c.kind == "Programmed") {
                condition.status = false;
                condition.reason = reason;
                condition.message.clone_from(&why);
            }
        }
        for (key, condition) in policies::key_conditions(&snapshot.config, &self.keys.view()) {
            let of = |s: &&mut ObjectStatus| {
                s.kind == key.kind && *s.namespace == *key.namespace && *s.name == *key.name
            };
            if let Some(status) = statuses.iter_mut().find(of) {
                status.conditions.push(condition);
            }
        }
        statuses
    }

    fn hand_over(&self, reply: oneshot::Sender<Inheritance>) {
        if self.shared.draining.load(Ordering::Relaxed) {
            return;
        }
        match self.sockets.handles() {
            Ok(sockets) => {
                let ticket_keys = self.tls.export_tickets();
                drop(reply.send(Inheritance { sockets, ticket_keys, drained: self.drains.list() }));
            }
            Err(error) => {
                tracing::error!(%error, "cannot duplicate the listening sockets for the next process");
            }
        }
    }

    fn drain(&mut self, deadline: Duration) {
        if self.shared.draining.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::info!(?deadline, "draining: no new connections; requests in flight finish");
        self.sockets.drain(deadline);
        self.draining.send_replace(Some(deadline));
        self.report();
    }
}
