//! A configuration, compiled: what workers look things up in.
//!
//! A snapshot is immutable. Compiling a change shares everything that the change does not touch with the snapshot before;
//! slots of rules and pools stay theirs, so that worker-local state indexed by them survives. One bad route is refused
//! alone and its last good version stays. A route may name a listener that is not there; it is attached when that comes.
//! Nothing is bound, resolved or connected here.

mod addresses;
mod slots;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, Vector};
use rustc_hash::FxHashMap;
use thin_vec::ThinVec;

use crate::balance::CompiledPool;
use crate::head::RequestHead;
use crate::ir::{self, BackendTarget, Filter, ListenerKey, ObjectKey, PoolKey, Touched};
use crate::mirror::CompiledMirror;
use crate::route::{BadRoute, CompiledRoute, Entry, Matches, Table};
use crate::split::CompiledSplit;
pub use addresses::AddressTable;
use slots::{Numbers, Slots};

/// A compiled configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts publishes.
    pub generation: u64,
    /// What it was compiled from.
    pub config: ir::Config,
    /// What this compile refused.
    pub rejections: Vec<Rejection>,
    addresses: Vec<Arc<AddressTable>>,
    listeners: OrdMap<ListenerKey, Arc<CompiledListener>>,
    routes: OrdMap<ObjectKey, Arc<CompiledRoute>>,
    rule_slots: Numbers,
    /// A pool's users are the configuration and each rule that names it.
    pool_slots: Slots<PoolKey>,
    pools: Vector<Option<Arc<CompiledPool>>>,
}

/// A listener with its policies and routes.
#[derive(Debug)]
pub struct CompiledListener {
    /// What it was compiled from.
    pub ir: Arc<ir::Listener>,
    /// The policies that apply, by action, then name.
    pub policies: Arc<[Arc<ir::Policy>]>,
    /// The routes.
    pub table: Table,
}

/// A rule, compiled.
#[derive(Debug)]
pub struct CompiledRule {
    /// What it was compiled from.
    pub ir: Arc<ir::Rule>,
    /// The route it belongs to.
    pub route: Arc<ObjectKey>,
    /// Where workers keep its state: dense, stable for the same rule id of a route, used again after removal.
    pub slot: u32,
    /// How it chooses a backend.
    pub split: CompiledSplit,
    /// Its backends.
    pub backends: ThinVec<CompiledBackend>,
    /// Its mirrors, apart from those of single backends.
    pub mirrors: ThinVec<CompiledMirror>,
}

/// A backend, compiled.
#[derive(Debug)]
pub struct CompiledBackend {
    /// The pool's slot, or why there is none.
    pub pool: Result<u32, Arc<str>>,
    /// Its weight.
    pub weight: u32,
    /// Its own filters.
    pub filters: ThinVec<Filter>,
    /// Its own mirrors.
    pub mirrors: ThinVec<CompiledMirror>,
}

/// An object that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which.
    pub object: ObjectKey,
    /// Where in it.
    pub field: String,
    /// Why.
    pub message: String,
}

impl CompiledListener {
    /// The entry that takes a request.
    pub fn route(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        self.table.find(head)
    }
}

impl Snapshot {
    /// Nothing configured.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Compiles a configuration, sharing with `prev` what is not touched. Without `prev` everything is touched.
    pub fn compile(
        prev: Option<&Snapshot>,
        config: ir::Config,
        touched: &Touched,
        generation: u64,
    ) -> Snapshot {
        let touched = if prev.is_some() { touched } else { &Touched::All };
        let mut next = prev.cloned().unwrap_or_default();
        next.generation = generation;
        next.rejections = Vec::new();
        let old = std::mem::replace(&mut next.config, config);
        next.compile_pools(&old);
        let changed = next.compile_routes(&old, touched);
        next.compile_listeners(&old, &changed);
        next
    }

    /// The tables of all bound addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &Arc<AddressTable>> {
        self.addresses.iter()
    }

    /// The table of a bound address.
    pub fn address(&self, address: SocketAddr) -> Option<&Arc<AddressTable>> {
        self.addresses.iter().find(|t| t.address == address)
    }

    /// The pool in a slot.
    pub fn pool(&self, slot: u32) -> Option<&Arc<CompiledPool>> {
        self.pools.get(slot as usize)?.as_ref()
    }

    /// All pools.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<CompiledPool>> {
        self.pools.iter().flatten()
    }

    /// The slot of a pool, if anything uses it.
    pub fn pool_slot(&self, key: &PoolKey) -> Option<u32> {
        self.pool_slots.get(key)
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.routes.values().flat_map(|r| &r.rules)
    }

    /// A route as it is in force, which is its last good version.
    pub fn route(&self, key: &ObjectKey) -> Option<&Arc<CompiledRoute>> {
        self.routes.get(key)
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<CompiledListener>> {
        self.listeners.values()
    }

    fn compile_pools(&mut self, old: &ir::Config) {
        let now = self.config.pools.clone();
        for change in old.pools.diff(&now) {
            match change {
                DiffItem::Add(key, pool) => {
                    let slot = self.pool_slots.acquire(key);
                    self.put_pool(slot, Some(pool));
                }
                DiffItem::Update { new: (key, pool), .. } => {
                    // The old configuration holds the slot.
                    if let Some(slot) = self.pool_slots.get(key) {
                        self.put_pool(slot, Some(pool));
                    }
                }
                DiffItem::Remove(key, _) => {
                    if let Some(slot) = self.pool_slots.get(key) {
                        self.put_pool(slot, None);
                    }
                    self.pool_slots.release(key);
                }
            }
        }
    }

    fn put_pool(&mut self, slot: u32, pool: Option<&Arc<ir::Pool>>) {
        while self.pools.len() <= slot as usize {
            self.pools.push_back(None);
        }
        let entry = &mut self.pools[slot as usize];
        let compiled = pool.map(|p| Arc::new(CompiledPool::compile(entry.as_deref(), p.clone(), slot)));
        *entry = compiled;
    }

    /// Gives the routes that changed: before and after.
    fn compile_routes(&mut self, old: &ir::Config, touched: &Touched) -> Vec<RouteChange> {
        let now = self.config.routes.clone();
        match touched {
            Touched::Routes(keys) => keys
                .iter()
                .filter(|key| differs(old.routes.get(*key), now.get(*key)))
                .filter_map(|key| self.change_route(key, now.get(key)))
                .collect(),
            Touched::All => old
                .routes
                .diff(&now)
                .filter_map(|change| match change {
                    DiffItem::Add(key, route) => self.change_route(key, Some(route)),
                    DiffItem::Update { new: (key, route), .. } => self.change_route(key, Some(route)),
                    DiffItem::Remove(key, _) => self.change_route(key, None),
                })
                .collect(),
        }
    }

    fn change_route(&mut self, key: &ObjectKey, after: Option<&Arc<ir::Route>>) -> Option<RouteChange> {
        let before = self.routes.get(key).cloned();
        // All that can fail comes before a slot is taken; the last good version stays, with the slots that it holds.
        let matches = match after.map(|route| Matches::compile(route)).transpose() {
            Ok(matches) => matches,
            Err(BadRoute { field, message }) => {
                self.rejections.push(Rejection { object: key.clone(), field, message });
                return None;
            }
        };
        let rules = before.iter().flat_map(|route| &route.rules);
        let mut known: FxHashMap<Arc<str>, u32> = rules.map(|r| (r.ir.id.clone(), r.slot)).collect();
        let after = after.zip(matches).map(|(route, matches)| {
            let rules = self.compile_rules(key, &route.rules, &mut known);
            Arc::new(CompiledRoute::new(route.clone(), rules, matches))
        });
        for slot in known.into_values() {
            self.rule_slots.give(slot);
        }
        // New before old: what both use keeps its slot.
        for rule in before.iter().flat_map(|route| &route.rules) {
            self.release_pools(rule);
        }
        match &after {
            Some(route) => self.routes.insert(key.clone(), route.clone()),
            None => self.routes.remove(key),
        };
        (before.is_some() || after.is_some()).then_some(RouteChange { before, after })
    }

    /// `known` are the slots of the rules before; those that are still used are taken out.
    fn compile_rules(
        &mut self,
        key: &ObjectKey,
        rules: &[Arc<ir::Rule>],
        known: &mut FxHashMap<Arc<str>, u32>,
    ) -> Box<[Arc<CompiledRule>]> {
        let route = Arc::new(key.clone());
        let compile = |rule: &Arc<ir::Rule>| {
            let slot = known.remove(&rule.id).unwrap_or_else(|| self.rule_slots.take());
            self.compile_rule(&route, rule, slot)
        };
        rules.iter().map(compile).collect()
    }

    fn compile_rule(&mut self, route: &Arc<ObjectKey>, rule: &Arc<ir::Rule>, slot: u32) -> Arc<CompiledRule> {
        let mut places = 0..;
        let mirrors = self.compile_mirrors(&rule.filters, &rule.id, &mut places);
        let backends = rule.backends.iter().map(|backend| CompiledBackend {
            pool: self.target_slot(&backend.target),
            weight: backend.weight,
            filters: backend.filters.clone(),
            mirrors: self.compile_mirrors(&backend.filters, &rule.id, &mut places),
        });
        let backends = backends.collect();
        Arc::new(CompiledRule {
            ir: rule.clone(),
            route: route.clone(),
            slot,
            split: CompiledSplit::new(&rule.backends, rule.split.clone(), &rule.id),
            backends,
            mirrors,
        })
    }

    fn compile_mirrors(
        &mut self,
        filters: &[Filter],
        rule_id: &str,
        places: &mut impl Iterator<Item = u32>,
    ) -> ThinVec<CompiledMirror> {
        let mirrors = mirrors(filters).zip(places);
        mirrors
            .map(|(ir, place)| CompiledMirror::new(ir.clone(), self.target_slot(&ir.backend), rule_id, place))
            .collect()
    }

    /// Takes the slot of a target's pool; [`Snapshot::release_pools`] gives it back.
    fn target_slot(&mut self, target: &BackendTarget) -> Result<u32, Arc<str>> {
        match target {
            BackendTarget::Pool(key) => Ok(self.pool_slots.acquire(key)),
            BackendTarget::Invalid(why) => Err(why.clone()),
        }
    }

    fn release_pools(&mut self, rule: &CompiledRule) {
        let backends = rule.ir.backends.iter().filter_map(|b| pool_of(&b.target));
        for key in backends.chain(mirrored(&rule.ir)) {
            self.pool_slots.release(key);
        }
    }

    fn compile_listeners(&mut self, old: &ir::Config, routes: &[RouteChange]) {
        let policies_changed = old.policies.diff(&self.config.policies).next().is_some();
        let listeners_changed = old.listeners.diff(&self.config.listeners).next().is_some();
        if !listeners_changed && !policies_changed && routes.is_empty() {
            return;
        }
        let mut tables = self.changed_tables(routes);
        self.add_new_tables(&mut tables);
        let policies = (listeners_changed || policies_changed).then(|| self.policies_by_listener());
        let mut next = OrdMap::new();
        for (key, ir) in &self.config.listeners {
            let before = self.listeners.get(key);
            let table = tables.remove(key);
            let known = before.map(|b| &b.policies);
            let policies = match (&policies, known) {
                (None, Some(known)) => known.clone(),
                (Some(all), known) => policies_of(key, all, known),
                // Unreachable: a new listener is a change of listeners.
                (None, None) => Arc::from([]),
            };
            let listener = match before {
                Some(b) if table.is_none() && *b.ir == **ir && Arc::ptr_eq(&b.policies, &policies) => {
                    b.clone()
                }
                _ => {
                    let table = table.or_else(|| before.map(|b| b.table.clone())).unwrap_or_default();
                    Arc::new(CompiledListener { ir: ir.clone(), policies, table })
                }
            };
            next.insert(key.clone(), listener);
        }
        self.listeners = next;
        self.addresses = addresses::tables(&self.listeners, &self.addresses);
    }

    /// The tables of listeners that were there before, with the changed routes put in and taken out.
    fn changed_tables(&self, routes: &[RouteChange]) -> BTreeMap<ListenerKey, Table> {
        let mut tables = BTreeMap::new();
        let mut table = |key: &ListenerKey, act: &dyn Fn(&mut Table)| {
            if let Some(listener) = self.listeners.get(key) {
                act(tables.entry(key.clone()).or_insert_with(|| listener.table.clone()));
            }
        };
        for RouteChange { before, after } in routes {
            if let Some(route) = before {
                for key in listeners_of(&route.ir) {
                    table(key, &|t| t.remove(key, route));
                }
            }
            if let Some(route) = after {
                for key in listeners_of(&route.ir) {
                    table(key, &|t| t.insert(key, route));
                }
            }
        }
        tables
    }

    /// The tables of listeners that are new, or are back: every route that names them, changed or not.
    fn add_new_tables(&self, tables: &mut BTreeMap<ListenerKey, Table>) {
        let new: Vec<&ListenerKey> =
            self.config.listeners.keys().filter(|key| !self.listeners.contains_key(*key)).collect();
        if new.is_empty() {
            return;
        }
        tables.extend(new.iter().map(|key| ((*key).clone(), Table::default())));
        for route in self.routes.values() {
            for key in listeners_of(&route.ir) {
                if new.binary_search(&key).is_ok()
                    && let Some(table) = tables.get_mut(key)
                {
                    table.insert(key, route);
                }
            }
        }
    }

    fn policies_by_listener(&self) -> BTreeMap<&ListenerKey, Vec<Arc<ir::Policy>>> {
        let mut all: BTreeMap<&ListenerKey, Vec<Arc<ir::Policy>>> = BTreeMap::new();
        for policy in self.config.policies.values() {
            for key in &policy.listeners {
                let list = all.entry(key).or_default();
                // Named twice, it applies once.
                if !list.last().is_some_and(|p| Arc::ptr_eq(p, policy)) {
                    list.push(policy.clone());
                }
            }
        }
        for list in all.values_mut() {
            list.sort_by(|a, b| (a.action, &a.key).cmp(&(b.action, &b.key)));
        }
        all
    }
}

#[derive(Debug)]
struct RouteChange {
    before: Option<Arc<CompiledRoute>>,
    after: Option<Arc<CompiledRoute>>,
}

fn differs<T: PartialEq>(before: Option<&Arc<T>>, after: Option<&Arc<T>>) -> bool {
    match (before, after) {
        (Some(b), Some(a)) => !Arc::ptr_eq(b, a) && b != a,
        (None, None) => false,
        _ => true,
    }
}

/// The listeners that a route names, each once.
fn listeners_of(route: &ir::Route) -> impl Iterator<Item = &ListenerKey> {
    let all = &route.attachments;
    let first = |at: usize| all[..at].iter().all(|a| a.listener != all[at].listener);
    (0..all.len()).filter(move |at| first(*at)).map(|at| &all[at].listener)
}

fn pool_of(target: &BackendTarget) -> Option<&PoolKey> {
    match target {
        BackendTarget::Pool(key) => Some(&**key),
        BackendTarget::Invalid(_) => None,
    }
}

fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &Arc<ir::Mirror>> {
    filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(mirror),
        _ => None,
    })
}

fn mirrored(rule: &ir::Rule) -> impl Iterator<Item = &PoolKey> {
    let of_backends = rule.backends.iter().flat_map(|b| mirrors(&b.filters));
    mirrors(&rule.filters).chain(of_backends).filter_map(|mirror| pool_of(&mirror.backend))
}

/// The policies of a listener; the list before if it is the same.
fn policies_of(
    key: &ListenerKey,
    all: &BTreeMap<&ListenerKey, Vec<Arc<ir::Policy>>>,
    before: Option<&Arc<[Arc<ir::Policy>]>>,
) -> Arc<[Arc<ir::Policy>]> {
    let now = all.get(key).map_or(&[][..], Vec::as_slice);
    match before {
        Some(before) if **before == *now => before.clone(),
        _ => now.into(),
    }
}

#[cfg(test)]
mod tests;
