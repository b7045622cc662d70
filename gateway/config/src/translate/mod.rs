//! Objects to IR: what the documents mean together.
//!
//! The work is done in stages: gateways, pools, policies, policies of routes, guards, routes. A stage is redone when objects that it
//! looks at changed, and the routes after it only when what they see of it changed: a route alone costs what that route
//! costs, endpoints alone cost the pools, a certificate costs the listeners. Whatever comes out equal keeps its place in
//! memory, so that nothing after it has work to do. The result is that of a translation from scratch; a property test
//! holds it to that. There is no IO here, and nothing decides about a request.

mod address_lists;
mod attached;
mod authentications;
mod backend_tls;
mod backend_traffic;
mod backends;
mod client_tls;
mod destination_rules;
mod edge_policies;
mod external_authorizers;
mod filters;
mod gateways;
mod guards;
mod localities;
mod login_policies;
mod matches;
mod policies;
mod pool;
mod pool_traffic;
mod pools;
mod rate_limits;
mod routes;
mod service_entries;
mod session;
mod splits;
mod targets;
#[cfg(test)]
mod tests;
mod traffic_policies;
mod upstream_tls;

pub(crate) use authentications::closed as closed_authentication;
pub use policies::TrustDomains;
pub(crate) use targets::ROOT as ROOT_NAMESPACE;
pub use upstream_tls::Workload;
pub(crate) use upstream_tls::close;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fieldgate_core::ir;
use imbl::OrdMap;

use attached::Attached;

use crate::diagnostic::Diagnostic;
use crate::document::{Object, ObjectKey};
use crate::kinds::Kind;
use crate::status::{Condition, ListenerStatus, ObjectStatus};
use crate::store::StoreChange;

/// What a change of objects came to.
#[derive(Debug)]
pub struct Translation {
    /// The whole configuration.
    pub config: ir::Config,
    /// The routes that differ from the configuration before.
    pub touched: ir::Touched,
    /// Whether anything differs from the configuration before.
    pub changed: bool,
}

/// All objects and what they became.
#[derive(Debug, Default)]
pub struct Translator {
    objects: Objects,
    /// Newest versions of routes that are not in force, because their matches are not sound and a version before was.
    refused: BTreeMap<ObjectKey, Arc<Object>>,
    config: ir::Config,
    /// The keys of all pools, for those that name them.
    pool_keys: BTreeSet<Arc<ir::PoolKey>>,
    gateways: gateways::Gateways,
    pools: pools::Pools,
    /// The gateway's workload is another than pools were translated for.
    other_workload: bool,
    trust_domains: TrustDomains,
    splits: Attached,
    traffic: Attached,
    guards: guards::Guards,
    /// Guards that routes bring along, by route.
    own_guards: BTreeMap<ObjectKey, Vec<ir::Guard>>,
    notes: StageNotes,
}

/// What is said of objects, by the stage that says it.
#[derive(Debug, Default)]
struct StageNotes {
    gateways: NotesOf,
    pools: NotesOf,
    policies: NotesOf,
    authentications: NotesOf,
    splits: NotesOf,
    traffic: NotesOf,
    guards: NotesOf,
    conditions: BTreeMap<ObjectKey, Vec<Condition>>,
    /// Of routes. Only those that have any: this is walked on every change.
    problems: BTreeMap<ObjectKey, Vec<Diagnostic>>,
}

pub(crate) type NotesOf = BTreeMap<ObjectKey, Notes>;

/// All objects, by kind.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    by_kind: BTreeMap<Kind, BTreeMap<ObjectKey, Arc<Object>>>,
}

/// What is to be said of one object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    pub diagnostics: Vec<Diagnostic>,
    pub conditions: Vec<Condition>,
    /// Guards that a route brings along.
    pub guards: Vec<ir::Guard>,
}

/// What routes and guards refer to. Not a method, which would borrow the notes, too.
macro_rules! surroundings {
    ($all:expr) => {
        routes::Surroundings {
            objects: &$all.objects,
            gateways: &$all.gateways,
            pools: &$all.config.pools,
            pool_keys: &$all.pool_keys,
            hosts: $all.pools.hosts(),
            splits: &$all.splits,
            traffic: &$all.traffic,
            guards: &$all.guards,
        }
    };
}

/// What a change touches.
#[derive(Debug, Default)]
struct Dirt {
    kinds: BTreeSet<Kind>,
    /// Kinds of which an object came or went.
    membership: BTreeSet<Kind>,
    routes: BTreeSet<ObjectKey>,
    /// What GRPCRoutes refer to is another set than before.
    grpc_targets: bool,
}

impl Translator {
    /// Says where the gateway stands. It counts from the next translation of pools on, so before the first.
    pub fn set_locality(&mut self, own: ir::Locality) {
        self.pools.set_locality(own);
    }

    /// Says what the gateway is known by in its mesh. It counts from the next change on.
    pub fn set_workload(&mut self, workload: Option<Workload>) {
        self.other_workload |= self.pools.set_workload(workload);
    }

    /// Says what the gateway's trust domain is called. It counts from the next translation of policies on.
    pub fn set_trust_domains(&mut self, own: TrustDomains) {
        self.trust_domains = own;
    }

    /// Takes a change in and translates what it touches.
    pub fn apply(&mut self, change: &StoreChange) -> Translation {
        let before = self.config.clone();
        let mut dirt = self.take_in(change);
        let mut all_routes = dirt.any(&[Kind::ReferenceGrant, Kind::Namespace]);
        let gateways = dirt.any(&[Kind::Gateway, Kind::Secret, Kind::ConfigMap, Kind::ReferenceGrant]);
        if gateways {
            all_routes |= self.redo_gateways();
        }
        let pools =
            dirt.any(pools::SOURCES) || dirt.any(pools::SETTINGS) || std::mem::take(&mut self.other_workload);
        let mut guards = gateways || dirt.kinds.iter().any(|k| guards::is_guard(*k) || *k == Kind::ConfigMap);
        if pools || dirt.grpc_targets || dirt.any(&[Kind::ReferenceGrant]) {
            let others = self.redo_pools() || pools::SOURCES.iter().any(|k| dirt.membership.contains(k));
            all_routes |= others;
            guards |= others;
        }
        let providers = policies::provider_kind().is_some_and(|kind| dirt.any(&[kind]));
        if gateways || providers || dirt.any(&[Kind::AuthorizationPolicy]) {
            self.redo_policies();
        }
        if gateways || dirt.any(&[Kind::RequestAuthentication]) {
            self.redo_authentications();
        }
        if dirt.any(&[Kind::SplitPolicy]) || dirt.routes.iter().any(|k| self.splits.is_target(k)) {
            dirt.routes.extend(self.redo_splits());
        }
        if dirt.any(&[Kind::TrafficPolicy]) || dirt.routes.iter().any(|k| self.traffic.is_target(k)) {
            dirt.routes.extend(self.redo_traffic());
        }
        if guards || dirt.routes.iter().any(|k| self.guards.is_target(k)) {
            dirt.routes.extend(self.redo_guards());
        }
        if all_routes {
            dirt.routes.extend(before.routes.keys().cloned());
            for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
                dirt.routes.extend(self.objects.of(kind).map(|o| o.key()));
            }
        }
        let touched: Vec<ObjectKey> = dirt.routes.into_iter().filter(|key| self.redo_route(key)).collect();
        let changed = !touched.is_empty()
            || !self.config.listeners.ptr_eq(&before.listeners)
            || !self.config.pools.ptr_eq(&before.pools)
            || !self.config.policies.ptr_eq(&before.policies)
            || !self.config.guards.ptr_eq(&before.guards)
            || !self.config.authentications.ptr_eq(&before.authentications);
        Translation { config: self.config.clone(), touched: ir::Touched::Routes(touched), changed }
    }

    /// Finds the places of what is wrong anew where texts moved within these files. What is said of an object is kept
    /// while the object stays the same, and its lines may move all the same.
    pub fn relocate(&mut self, files: &[Arc<str>]) {
        let StageNotes {
            gateways, pools, policies, authentications, splits, traffic, guards, problems, ..
        } = &mut self.notes;
        let stages = [gateways, pools, policies, authentications, splits, traffic, guards]
            .into_iter()
            .flat_map(BTreeMap::values_mut);
        let all = stages.flat_map(|n| &mut n.diagnostics).chain(problems.values_mut().flatten());
        for diagnostic in all.filter(|d| files.contains(&d.location.file)) {
            let key = diagnostic.object.as_ref().and_then(|o| {
                let kind = Kind::from_name(&o.kind)?.as_str();
                Some(ObjectKey { kind, namespace: o.namespace.as_str().into(), name: o.name.as_str().into() })
            });
            // The text that there is now is that of the newest version, in force or not.
            let newest = key.and_then(|key| self.refused.get(&key).or_else(|| self.objects.by_key(&key)));
            if let Some(object) = newest {
                diagnostic.location = object.locate(&diagnostic.field);
            }
        }
    }

    /// What is wrong with objects that are well-formed.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let stages = self.notes.stages().into_iter().flat_map(BTreeMap::values).flat_map(|n| &n.diagnostics);
        stages.chain(self.notes.problems.values().flatten()).cloned().collect()
    }

    /// The status of every object that has one.
    pub fn statuses(&self) -> Vec<ObjectStatus> {
        let stages = self.notes.stages().into_iter().flatten().map(|(key, notes)| (key, &notes.conditions));
        let mut statuses: Vec<ObjectStatus> = stages
            .chain(&self.notes.conditions)
            .filter(|(_, conditions)| !conditions.is_empty())
            .map(|(key, conditions)| ObjectStatus {
                kind: key.kind,
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                conditions: conditions.clone(),
            })
            .collect();
        statuses.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
        statuses
    }

    /// The status of one object, if it has one.
    pub fn status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let of_stages = self.notes.stages().into_iter().filter_map(|notes| Some(&notes.get(key)?.conditions));
        let conditions = of_stages.chain(self.notes.conditions.get(key)).find(|c| !c.is_empty())?.clone();
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        Some(ObjectStatus { kind: key.kind, namespace, name, conditions })
    }

    /// What Gateway API reports of listeners beside conditions.
    pub fn listener_statuses(&self) -> Vec<ListenerStatus> {
        self.gateways.statuses(&self.config.routes)
    }

    /// The `metadata.generation` of the version of an object that its conditions are about.
    pub fn observed_generation(&self, key: &ObjectKey) -> Option<i64> {
        let kind = Kind::from_name(key.kind)?;
        self.objects.get(kind, &key.namespace, &key.name).map(|o| o.generation)
    }

    fn take_in(&mut self, change: &StoreChange) -> Dirt {
        let mut dirt = Dirt::default();
        for object in &change.upserted {
            if self.keeps_last_good(object) {
                dirt.routes.insert(object.key());
                self.refused.insert(object.key(), object.clone());
                continue;
            }
            self.refused.remove(&object.key());
            let old =
                self.objects.by_kind.entry(object.kind).or_default().insert(object.key(), object.clone());
            self.note_change(object.key(), object.kind, old.as_deref(), Some(object), &mut dirt);
        }
        for key in &change.removed {
            let Some(kind) = Kind::from_name(key.kind) else { continue };
            self.refused.remove(key);
            let old = self.objects.by_kind.get_mut(&kind).and_then(|objects| objects.remove(key));
            self.note_change(key.clone(), kind, old.as_deref(), None, &mut dirt);
        }
        dirt
    }

    /// Whether the version before stays in force: without sound matches nobody can tell which requests are a route's, and
    /// a guess would be worse than what was (Gateway API, `PartiallyInvalid`: "Fall Back").
    fn keeps_last_good(&self, object: &Object) -> bool {
        let is_route = matches!(object.kind, Kind::HttpRoute | Kind::GrpcRoute);
        let Some(old) = self.objects.by_key(&object.key()).filter(|_| is_route) else { return false };
        !routes::bad_matches(object).is_empty() && routes::bad_matches(old).is_empty()
    }

    fn note_change(
        &mut self,
        key: ObjectKey,
        kind: Kind,
        old: Option<&Object>,
        new: Option<&Object>,
        dirt: &mut Dirt,
    ) {
        dirt.kinds.insert(kind);
        if old.is_some() != new.is_some() {
            dirt.membership.insert(kind);
        }
        if kind == Kind::GrpcRoute {
            dirt.grpc_targets |= self.pools.note_grpc_route(old, new);
        }
        if matches!(kind, Kind::HttpRoute | Kind::GrpcRoute) {
            dirt.routes.insert(key);
        }
    }

    /// Says whether routes see something else than before; so do the other stages.
    fn redo_gateways(&mut self) -> bool {
        self.notes.gateways.clear();
        let gateways = gateways::translate(&self.objects, &mut self.notes.gateways);
        let seen_otherwise = !gateways.looks_like(&self.gateways);
        self.gateways = gateways;
        seen_otherwise
    }

    fn redo_pools(&mut self) -> bool {
        self.notes.pools.clear();
        let other_hosts = self.pools.index_hosts(&self.objects);
        let pools = self.pools.translate(&self.objects, &mut self.notes.pools);
        let same_keys = pools.len() == self.config.pools.len() && pools.keys().eq(self.config.pools.keys());
        self.config.pools = merge(&self.config.pools, pools);
        if !same_keys {
            self.pool_keys.retain(|key| self.config.pools.contains_key(&**key));
            let new = self.config.pools.values().map(|pool| &pool.key);
            self.pool_keys.extend(
                new.filter(|key| !self.pool_keys.contains(*key)).cloned().map(Arc::new).collect::<Vec<_>>(),
            );
        }
        other_hosts || !same_keys
    }

    fn redo_policies(&mut self) {
        self.notes.policies.clear();
        let notes = &mut self.notes.policies;
        let policies = policies::translate(&self.objects, &self.gateways, &self.trust_domains, notes);
        self.config.policies = merge(&self.config.policies, policies);
    }

    fn redo_authentications(&mut self) {
        let notes = &mut self.notes.authentications;
        notes.clear();
        let authentications = authentications::translate(&self.objects, &self.gateways, notes);
        self.config.authentications = merge(&self.config.authentications, authentications);
    }

    fn redo_traffic(&mut self) -> BTreeSet<ObjectKey> {
        let (kind, notes) = (Kind::TrafficPolicy, &mut self.notes.traffic);
        notes.clear();
        let traffic = Attached::of(kind, traffic_policies::fits, &self.objects, notes);
        let affected = traffic.differences(&self.traffic);
        self.traffic = traffic;
        affected
    }

    fn redo_splits(&mut self) -> BTreeSet<ObjectKey> {
        let (kind, notes) = (Kind::SplitPolicy, &mut self.notes.splits);
        notes.clear();
        let splits = Attached::of(kind, splits::fits, &self.objects, notes);
        let affected = splits.differences(&self.splits);
        self.splits = splits;
        affected
    }

    /// Guards, and with them the listeners, which name theirs. Says which routes have other guards than before.
    fn redo_guards(&mut self) -> BTreeSet<ObjectKey> {
        self.notes.guards.clear();
        let guards = guards::Guards::translate(&surroundings!(self), &mut self.notes.guards);
        let mut affected = guards.differences(&self.guards);
        affected.retain(|key| key.kind != Kind::Gateway.as_str());
        let own = self.own_guards.values().flatten().map(|guard| (guard.key.clone(), guard.clone()));
        self.config.guards = merge(&self.config.guards, guards.made.clone().into_iter().chain(own).collect());
        self.guards = guards;
        let mut listeners = self.gateways.listeners.clone();
        for listener in listeners.values_mut() {
            self.guards.guard_listener(listener);
        }
        self.config.listeners = merge(&self.config.listeners, listeners);
        affected
    }

    /// Translates one route, or forgets it, and says whether it differs from before.
    fn redo_route(&mut self, key: &ObjectKey) -> bool {
        self.notes.problems.remove(key);
        let Some(object) = self.objects.by_key(key) else {
            self.notes.conditions.remove(key);
            self.redo_own_guards(key, Vec::new());
            return self.config.routes.remove(key).is_some();
        };
        let mut notes = Notes::default();
        let route = routes::translate(object, &surroundings!(self), &mut notes);
        if let Some(refused) = self.refused.get(key) {
            notes.fall_back(refused);
        }
        if !notes.diagnostics.is_empty() {
            self.notes.problems.insert(key.clone(), notes.diagnostics);
        }
        self.notes.conditions.insert(key.clone(), notes.conditions);
        self.redo_own_guards(key, notes.guards);
        match route {
            Some(route) if self.config.routes.get(key).is_some_and(|old| **old == route) => false,
            Some(route) => {
                self.config.routes.insert(key.clone(), Arc::new(route));
                true
            }
            None => self.config.routes.remove(key).is_some(),
        }
    }
}

impl Translator {
    /// Puts the guards that a route brings along where those of before were.
    fn redo_own_guards(&mut self, route: &ObjectKey, guards: Vec<ir::Guard>) {
        let before = self.own_guards.remove(route).unwrap_or_default();
        if before != guards {
            for gone in before.iter().filter(|old| guards.iter().all(|guard| guard.key != old.key)) {
                self.config.guards.remove(&gone.key);
            }
            for guard in &guards {
                if self.config.guards.get(&guard.key).is_none_or(|old| **old != *guard) {
                    self.config.guards.insert(guard.key.clone(), Arc::new(guard.clone()));
                }
            }
        }
        if !guards.is_empty() {
            self.own_guards.insert(route.clone(), guards);
        }
    }
}

impl Dirt {
    fn any(&self, kinds: &[Kind]) -> bool {
        kinds.iter().any(|k| self.kinds.contains(k))
    }
}

impl StageNotes {
    fn stages(&self) -> [&NotesOf; 7] {
        [
            &self.gateways,
            &self.pools,
            &self.policies,
            &self.authentications,
            &self.splits,
            &self.traffic,
            &self.guards,
        ]
    }
}

impl Objects {
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.by_kind.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        let key = ObjectKey { kind: kind.as_str(), namespace: namespace.into(), name: name.into() };
        self.by_kind.get(&kind)?.get(&key)
    }

    pub fn by_key(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.by_kind.get(&Kind::from_name(key.kind)?)?.get(key)
    }

    pub fn names(&self, kind: Kind, namespace: &str) -> Vec<String> {
        self.of(kind).filter(|o| *o.namespace == *namespace).map(|o| o.name.to_string()).collect()
    }

    /// Older objects first: where two claim the same, Gateway API gives it to the older, then to the first by name.
    pub fn by_age(&self, kind: Kind) -> Vec<&Arc<Object>> {
        let mut all: Vec<&Arc<Object>> = self.of(kind).collect();
        all.sort_by_cached_key(|o| (o.creation_timestamp.is_none(), o.creation_timestamp, o.key()));
        all
    }
}

impl Notes {
    /// Says that a newer version of a route is not in force, and why.
    fn fall_back(&mut self, refused: &Object) {
        let problems = routes::bad_matches(refused);
        let why = problems.first().map(|(field, message)| format!("Fall Back: {field}: {message}"));
        self.conditions.retain(|c| c.kind != "PartiallyInvalid");
        self.condition("PartiallyInvalid", true, "UnsupportedValue", why.unwrap_or_default());
        for (field, message) in problems {
            let error = refused.error("UnsupportedValue", &field, message);
            self.diagnostics.push(Diagnostic { last_good_in_use: true, ..error });
        }
    }

    pub fn condition(
        &mut self,
        kind: &'static str,
        ok: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.part("", kind, ok, reason, message);
    }

    pub fn part(
        &mut self,
        part: &str,
        kind: &'static str,
        ok: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.conditions.push(Condition {
            part: part.to_owned(),
            kind,
            status: ok,
            reason,
            message: message.into(),
        });
    }
}

/// The new map, with old values wherever they are equal; the old map itself if all are.
fn merge<K: Ord + Clone, V: PartialEq>(old: &OrdMap<K, Arc<V>>, new: BTreeMap<K, V>) -> OrdMap<K, Arc<V>> {
    let mut merged = old.clone();
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        merged.remove(key);
    }
    for (key, value) in new {
        if old.get(&key).is_none_or(|o| **o != value) {
            merged.insert(key, Arc::new(value));
        }
    }
    merged
}
