//! Objects to IR: what the documents mean together.
//!
//! The translator keeps all objects and what each became. A change of routes alone costs what those routes cost; a change
//! of anything that routes refer to makes them all be looked at again, but what comes out equal keeps its place in
//! memory, so that nothing after it has work to do. There is no IO here, and nothing decides about a request.

mod backends;
mod filters;
mod gateways;
mod policies;
mod pools;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fieldgate_core::ir;
use imbl::OrdMap;

use crate::diagnostic::Diagnostic;
use crate::document::{Object, ObjectKey};
use crate::kinds::Kind;
use crate::status::{Condition, ObjectStatus};
use crate::store::StoreChange;

/// What a change of objects came to.
#[derive(Debug)]
pub struct Translation {
    /// The whole configuration.
    pub config: ir::Config,
    /// Which parts may differ from the one before.
    pub touched: ir::Touched,
}

/// All objects and what they became.
#[derive(Debug, Default)]
pub struct Translator {
    pub(crate) objects: Objects,
    config: ir::Config,
    gateways: gateways::Gateways,
    notes: BTreeMap<ObjectKey, Notes>,
}

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
}

impl Objects {
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.by_kind.get(&kind).into_iter().flat_map(BTreeMap::values)
    }

    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        let key = ObjectKey { kind: kind.as_str(), namespace: namespace.into(), name: name.into() };
        self.by_kind.get(&kind)?.get(&key)
    }

    pub fn names(&self, kind: Kind, namespace: &str) -> Vec<String> {
        self.of(kind).filter(|o| *o.namespace == *namespace).map(|o| o.name.to_string()).collect()
    }
}

impl Notes {
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

impl Translator {
    /// Takes a change in and translates what it touches.
    pub fn apply(&mut self, change: &StoreChange) -> Translation {
        let mut kinds = BTreeSet::new();
        let mut keys = Vec::new();
        for object in &change.upserted {
            kinds.insert(object.kind);
            keys.push(object.key());
            self.objects.by_kind.entry(object.kind).or_default().insert(object.key(), object.clone());
        }
        for key in &change.removed {
            let Some(kind) = Kind::from_name(key.kind) else { continue };
            kinds.insert(kind);
            keys.push(key.clone());
            if let Some(objects) = self.objects.by_kind.get_mut(&kind) {
                objects.remove(key);
            }
            self.notes.remove(key);
        }
        let routes_only = kinds.iter().all(|k| matches!(k, Kind::HttpRoute | Kind::GrpcRoute));
        if routes_only {
            let context = self.split_policies();
            for key in &keys {
                self.route(key, &context);
            }
            return Translation { config: self.config.clone(), touched: ir::Touched::Routes(keys) };
        }
        self.everything();
        Translation { config: self.config.clone(), touched: ir::Touched::All }
    }

    /// What is wrong with objects that are well-formed.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        self.notes.values().flat_map(|n| n.diagnostics.iter().cloned()).collect()
    }

    /// The status of every object that has one.
    pub fn statuses(&self) -> Vec<ObjectStatus> {
        self.notes
            .iter()
            .filter(|(_, notes)| !notes.conditions.is_empty())
            .map(|(key, notes)| ObjectStatus {
                kind: key.kind,
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                conditions: notes.conditions.clone(),
            })
            .collect()
    }

    fn everything(&mut self) {
        self.notes.clear();
        let gateways = gateways::translate(&self.objects, &mut self.notes);
        self.config.listeners = merge(&self.config.listeners, gateways.listeners.clone());
        self.gateways = gateways;
        let pools = pools::translate(&self.objects, &mut self.notes);
        self.config.pools = merge(&self.config.pools, pools);
        let policies = policies::translate(&self.objects, &self.gateways, &mut self.notes);
        self.config.policies = merge(&self.config.policies, policies);
        let context = self.split_policies();
        let mut keys: Vec<ObjectKey> = self.config.routes.keys().cloned().collect();
        for kind in [Kind::HttpRoute, Kind::GrpcRoute] {
            keys.extend(self.objects.of(kind).map(|o| o.key()));
        }
        keys.sort();
        keys.dedup();
        for key in &keys {
            self.route(key, &context);
        }
        self.gateways.count_routes(&self.config.routes, &mut self.notes);
    }

    fn split_policies(&mut self) -> routes::SplitPolicies {
        routes::SplitPolicies::of(&self.objects, &mut self.notes)
    }

    /// Translates one route, or forgets it.
    fn route(&mut self, key: &ObjectKey, splits: &routes::SplitPolicies) {
        let Some(object) =
            Kind::from_name(key.kind).and_then(|k| self.objects.get(k, &key.namespace, &key.name))
        else {
            self.config.routes.remove(key);
            return;
        };
        let mut notes = Notes::default();
        let route =
            routes::translate(object, &self.objects, &self.gateways, &self.config.pools, splits, &mut notes);
        self.notes.insert(key.clone(), notes);
        match route {
            Some(route) if self.config.routes.get(key).is_some_and(|old| **old == route) => {}
            Some(route) => {
                self.config.routes.insert(key.clone(), Arc::new(route));
            }
            None => {
                self.config.routes.remove(key);
            }
        }
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
