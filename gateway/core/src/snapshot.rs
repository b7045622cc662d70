//! A configuration, compiled: what workers look things up in.
//!
//! A snapshot is immutable. Compiling a change shares everything that the change does not touch with the snapshot before;
//! slots of rules and pools stay theirs, so that worker-local state indexed by them survives. One bad route is refused
//! alone and its last good version stays. Nothing is bound, resolved or connected here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::OrdMap;

use crate::balance::CompiledPool;
use crate::head::RequestHead;
use crate::ir::{self, BackendTarget, Filter, ListenerKey, ObjectKey, PoolKey, Touched};
use crate::route::{CompiledRoute, Entry, Table};
use crate::split::CompiledSplit;

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
    rule_slots: Slots<Arc<str>>,
    pool_slots: Slots<PoolKey>,
    pools: Vec<Option<Arc<CompiledPool>>>,
}

/// A bound address with the listeners that share it.
#[derive(Debug)]
pub struct AddressTable {
    /// The address.
    pub address: SocketAddr,
    /// Most specific host name first.
    pub listeners: Vec<Arc<CompiledListener>>,
    /// Whether connections begin with TLS.
    pub tls: bool,
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
    pub route: ObjectKey,
    /// Where workers keep its state: dense, stable for the same rule id, used again after removal.
    pub slot: u32,
    /// How it chooses a backend.
    pub split: CompiledSplit,
    /// Its backends.
    pub backends: Vec<CompiledBackend>,
}

/// A backend, compiled.
#[derive(Debug)]
pub struct CompiledBackend {
    /// The pool's slot, or why there is none.
    pub pool: Result<u32, Arc<str>>,
    /// Its weight.
    pub weight: u32,
    /// Its own filters.
    pub filters: Vec<Filter>,
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

impl AddressTable {
    /// The listener with the most specific host name that takes this host.
    pub fn listener_for(&self, host: &str) -> Option<&Arc<CompiledListener>> {
        self.listeners.iter().find(|l| l.ir.hostname.as_ref().is_none_or(|h| h.matches(host)))
    }
}

impl CompiledListener {
    /// The entry that takes a request.
    pub fn route(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        self.table.find(head)
    }
}

/// Dense numbers for names. A number is used again only after its name is gone.
#[derive(Clone, Debug)]
struct Slots<K: Ord + Clone> {
    /// Number and count of users.
    used: OrdMap<K, (u32, u32)>,
    free: imbl::Vector<u32>,
    next: u32,
}

impl<K: Ord + Clone> Default for Slots<K> {
    fn default() -> Self {
        Self { used: OrdMap::new(), free: imbl::Vector::new(), next: 0 }
    }
}

impl<K: Ord + Clone> Slots<K> {
    fn acquire(&mut self, key: &K) -> u32 {
        if let Some((slot, users)) = self.used.get_mut(key) {
            *users += 1;
            return *slot;
        }
        let slot = self.free.pop_front().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.used.insert(key.clone(), (slot, 1));
        slot
    }

    fn release(&mut self, key: &K) {
        if let Some((slot, users)) = self.used.get_mut(key) {
            *users -= 1;
            if *users == 0 {
                let slot = *slot;
                self.used.remove(key);
                self.free.push_back(slot);
            }
        }
    }
}

impl Snapshot {
    /// Nothing configured.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Compiles a configuration, sharing with `prev` what is not touched.
    pub fn compile(
        prev: Option<&Snapshot>,
        config: ir::Config,
        touched: &Touched,
        generation: u64,
    ) -> Snapshot {
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

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.routes.values().flat_map(|r| &r.rules)
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<CompiledListener>> {
        self.listeners.values()
    }

    fn compile_pools(&mut self, old: &ir::Config) {
        if old.pools.ptr_eq(&self.config.pools) {
            return;
        }
        for key in old.pools.keys().filter(|k| !self.config.pools.contains_key(*k)) {
            if let Some((slot, _)) = self.pool_slots.used.get(key) {
                self.pools[*slot as usize] = None;
            }
            self.pool_slots.release(key);
        }
        for (key, pool) in &self.config.pools {
            let before = old.pools.get(key);
            if before.is_some_and(|b| Arc::ptr_eq(b, pool) || b == pool) {
                continue;
            }
            let slot = match before {
                Some(_) => self.pool_slots.used.get(key).map_or(0, |(slot, _)| *slot),
                None => self.pool_slots.acquire(key),
            };
            if self.pools.len() <= slot as usize {
                self.pools.resize(slot as usize + 1, None);
            }
            let entry = &mut self.pools[slot as usize];
            *entry = Some(Arc::new(CompiledPool::compile(entry.as_deref(), pool.clone(), slot)));
        }
    }

    /// Gives the routes that changed: before and after.
    fn compile_routes(&mut self, old: &ir::Config, touched: &Touched) -> Vec<RouteChange> {
        let keys: Vec<ObjectKey> = match touched {
            Touched::Routes(keys) => keys.clone(),
            Touched::All if old.routes.ptr_eq(&self.config.routes) => Vec::new(),
            Touched::All => {
                let gone = old.routes.keys().filter(|k| !self.config.routes.contains_key(*k));
                gone.chain(self.config.routes.keys()).cloned().collect()
            }
        };
        let mut changes = Vec::new();
        for key in keys {
            let (before, after) = (old.routes.get(&key), self.config.routes.get(&key).cloned());
            let same = match (before, &after) {
                (Some(b), Some(a)) => Arc::ptr_eq(b, a) || b == a,
                (None, None) => true,
                _ => false,
            };
            if !same {
                changes.extend(self.change_route(&key, after));
            }
        }
        changes
    }

    fn change_route(&mut self, key: &ObjectKey, after: Option<Arc<ir::Route>>) -> Option<RouteChange> {
        let before = self.routes.get(key).cloned();
        let after = match after {
            None => None,
            Some(ir) => {
                let rules = ir.rules.iter().map(|rule| self.compile_rule(key, rule)).collect();
                match CompiledRoute::new(ir, rules) {
                    Ok(route) => Some(Arc::new(route)),
                    Err(bad) => {
                        self.rejections.push(Rejection {
                            object: key.clone(),
                            field: bad.field,
                            message: bad.message,
                        });
                        // The last good version stays, with the slots that it holds.
                        return None;
                    }
                }
            }
        };
        // New before old: what both use keeps its slot.
        if let Some(route) = &before {
            for rule in &route.rules {
                self.rule_slots.release(&rule.ir.id);
                self.release_targets(&rule.ir);
            }
        }
        match &after {
            Some(route) => self.routes.insert(key.clone(), route.clone()),
            None => self.routes.remove(key),
        };
        Some(RouteChange { before, after })
    }

    fn compile_rule(&mut self, route: &ObjectKey, rule: &Arc<ir::Rule>) -> Arc<CompiledRule> {
        let backends = rule
            .backends
            .iter()
            .map(|backend| CompiledBackend {
                pool: match &backend.target {
                    BackendTarget::Pool(key) => Ok(self.pool_slots.acquire(key)),
                    BackendTarget::Invalid(why) => Err(why.clone()),
                },
                weight: backend.weight,
                filters: backend.filters.clone(),
            })
            .collect();
        for filter in rule.filters.iter().chain(rule.backends.iter().flat_map(|b| &b.filters)) {
            if let Filter::Mirror(mirror) = filter
                && let BackendTarget::Pool(key) = &mirror.backend
            {
                self.pool_slots.acquire(key);
            }
        }
        Arc::new(CompiledRule {
            ir: rule.clone(),
            route: route.clone(),
            slot: self.rule_slots.acquire(&rule.id),
            split: CompiledSplit::new(&rule.backends, rule.split.clone(), &rule.id),
            backends,
        })
    }

    fn release_targets(&mut self, rule: &ir::Rule) {
        for backend in &rule.backends {
            if let BackendTarget::Pool(key) = &backend.target {
                self.pool_slots.release(key);
            }
        }
        for filter in rule.filters.iter().chain(rule.backends.iter().flat_map(|b| &b.filters)) {
            if let Filter::Mirror(mirror) = filter
                && let BackendTarget::Pool(key) = &mirror.backend
            {
                self.pool_slots.release(key);
            }
        }
    }

    /// The slot of a pool, if anything uses it.
    pub fn pool_slot(&self, key: &PoolKey) -> Option<u32> {
        self.pool_slots.used.get(key).map(|(slot, _)| *slot)
    }

    fn compile_listeners(&mut self, old: &ir::Config, routes: &[RouteChange]) {
        let listeners_changed =
            !old.listeners.ptr_eq(&self.config.listeners) && old.listeners != self.config.listeners;
        let policies_changed =
            !old.policies.ptr_eq(&self.config.policies) && old.policies != self.config.policies;
        let mut tables: BTreeMap<ListenerKey, Table> = BTreeMap::new();
        for RouteChange { before, after } in routes {
            for (route, insert) in before.iter().map(|r| (r, false)).chain(after.iter().map(|r| (r, true))) {
                let mut done: Vec<&ListenerKey> = Vec::new();
                for attachment in &route.ir.attachments {
                    let key = &attachment.listener;
                    if done.contains(&key) {
                        continue;
                    }
                    done.push(key);
                    let table = tables.entry(key.clone()).or_insert_with(|| {
                        self.listeners.get(key).map(|l| l.table.clone()).unwrap_or_default()
                    });
                    if insert { table.insert(key, route) } else { table.remove(key, route) }
                }
            }
        }
        if !listeners_changed && !policies_changed && tables.is_empty() {
            return;
        }
        let mut next = OrdMap::new();
        for (key, ir) in &self.config.listeners {
            let before = self.listeners.get(key);
            let table = match (tables.remove(key), before) {
                // A listener that is new, or is back, takes every route that names it.
                (_, None) => self.table_of(key),
                (Some(table), Some(_)) => table,
                (None, Some(before)) if !policies_changed && *before.ir == **ir => {
                    next.insert(key.clone(), before.clone());
                    continue;
                }
                (None, Some(before)) => before.table.clone(),
            };
            let policies = self.policies_of(key, before.map(|b| &b.policies));
            next.insert(key.clone(), Arc::new(CompiledListener { ir: ir.clone(), policies, table }));
        }
        self.listeners = next;
        self.addresses = address_tables(&self.listeners, &self.addresses);
    }

    fn table_of(&self, key: &ListenerKey) -> Table {
        let mut table = Table::default();
        for route in self.routes.values().filter(|r| r.ir.attachments.iter().any(|a| a.listener == *key)) {
            table.insert(key, route);
        }
        table
    }

    fn policies_of(
        &self,
        key: &ListenerKey,
        before: Option<&Arc<[Arc<ir::Policy>]>>,
    ) -> Arc<[Arc<ir::Policy>]> {
        let mut policies: Vec<Arc<ir::Policy>> =
            self.config.policies.values().filter(|p| p.listeners.contains(key)).cloned().collect();
        policies.sort_by(|a, b| (a.action, &a.key).cmp(&(b.action, &b.key)));
        match before {
            Some(before) if **before == *policies => before.clone(),
            _ => policies.into(),
        }
    }
}

#[derive(Debug)]
struct RouteChange {
    before: Option<Arc<CompiledRoute>>,
    after: Option<Arc<CompiledRoute>>,
}

fn address_tables(
    listeners: &OrdMap<ListenerKey, Arc<CompiledListener>>,
    before: &[Arc<AddressTable>],
) -> Vec<Arc<AddressTable>> {
    let mut tables: BTreeMap<SocketAddr, Vec<Arc<CompiledListener>>> = BTreeMap::new();
    for listener in listeners.values() {
        for address in &listener.ir.addresses {
            tables.entry(*address).or_default().push(listener.clone());
        }
    }
    tables
        .into_iter()
        .map(|(address, mut listeners)| {
            listeners.sort_by_key(|l| std::cmp::Reverse(specificity(l.ir.hostname.as_ref())));
            let same = before.iter().find(|t| {
                t.address == address
                    && t.listeners.len() == listeners.len()
                    && t.listeners.iter().zip(&listeners).all(|(a, b)| Arc::ptr_eq(a, b))
            });
            let tls = listeners.iter().any(|l| l.ir.tls.is_some());
            same.cloned().unwrap_or_else(|| Arc::new(AddressTable { address, listeners, tls }))
        })
        .collect()
}

/// Exact before wildcard before any; longer before shorter.
fn specificity(hostname: Option<&ir::Hostname>) -> (u8, usize) {
    match hostname {
        Some(ir::Hostname::Exact(h)) => (2, h.len()),
        Some(ir::Hostname::Wildcard(h)) => (1, h.len()),
        None => (0, 0),
    }
}
