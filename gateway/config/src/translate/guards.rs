//! Guards to IR and to the places that they are attached to: listeners, and rules of routes.
//!
//! All that are attached to a place apply, and so do those of the places around it: what refuses cannot be taken away by
//! adding more of it. A guard that cannot be made keeps its places, where the server refuses what would have passed it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fieldgate_core::ir::{
    Filter, Guard, GuardKind, GuardRef, Listener, ListenerKey, ObjectKey, PoolKey, Rule,
};

use super::attached::{Refusal, named, rules};
use super::backends::{BackendRef, resolve};
use super::routes::Surroundings;
use super::{
    Notes, NotesOf, address_lists, edge_policies, external_authorizers, login_policies, rate_limits,
};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::fieldgate::TargetRef;
use crate::kinds::guard::ServiceRef;
use crate::kinds::{Kind, Spec};

/// How guards of a kind are made.
pub(crate) struct Maker {
    pub kind: Kind,
    /// What an object is attached to.
    pub targets: fn(&Spec) -> &[TargetRef],
    /// What it does, or why that cannot be told.
    pub make: fn(&Object, &Surroundings<'_>, &mut Notes) -> Result<GuardKind, Refusal>,
}

/// In the order in which guards are asked.
const MAKERS: &[Maker] =
    &[edge_policies::MAKER, login_policies::MAKER, external_authorizers::MAKER, rate_limits::MAKER];

/// All guards and their places.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    pub made: BTreeMap<ObjectKey, Guard>,
    /// By Gateway or route, and the listener or rule of it that is named.
    places: BTreeMap<(ObjectKey, Option<String>), Vec<Placed>>,
    /// What all of them name, there or not.
    targets: BTreeSet<ObjectKey>,
    /// What was read of lists of addresses; kept from one translation to the next.
    pub lists: Arc<address_lists::Lists>,
}

/// Where in the order a guard comes.
#[derive(Debug, Clone, PartialEq)]
struct Placed {
    maker: usize,
    guard: Arc<GuardRef>,
}

/// Whether objects of a kind are guards.
pub(crate) fn is_guard(kind: Kind) -> bool {
    MAKERS.iter().any(|maker| maker.kind == kind)
}

/// The pool of a service that a guard asks. `place` is the reference's field.
pub(crate) fn service(
    object: &Object,
    reference: &ServiceRef,
    place: &str,
    around: &Surroundings<'_>,
) -> Result<Arc<PoolKey>, Refusal> {
    let r = BackendRef {
        group: reference.group.as_deref(),
        kind: reference.kind.as_deref(),
        namespace: reference.namespace.as_deref(),
        name: &reference.name,
        port: reference.port,
    };
    resolve(object, around, &r, false).map_err(|why| Refusal {
        reason: why.reason,
        field: format!("{place}.{}", why.field),
        message: why.message,
        hint: why.hint,
    })
}

impl Guards {
    pub fn translate(around: &Surroundings<'_>, notes: &mut NotesOf) -> Self {
        let mut all = Self { lists: around.guards.lists.clone(), ..Self::default() };
        for (at, maker) in MAKERS.iter().enumerate() {
            for object in around.objects.of(maker.kind) {
                let note = notes.entry(object.key()).or_default();
                let why = all.make(maker, object, around, note).err();
                all.attach(at, object, (maker.targets)(&object.spec), why.as_ref(), around, note);
            }
        }
        all
    }

    pub fn is_target(&self, key: &ObjectKey) -> bool {
        self.targets.contains(key)
    }

    /// The routes (and Gateways) whose guards the two do not agree on.
    pub fn differences(&self, other: &Self) -> BTreeSet<ObjectKey> {
        let differing = |a: &Self, b: &Self| -> Vec<ObjectKey> {
            let places = a.places.iter().filter(|(place, guards)| b.places.get(*place) != Some(guards));
            places.map(|((key, _), _)| key.clone()).collect()
        };
        differing(self, other).into_iter().chain(differing(other, self)).collect()
    }

    /// Puts guards before what else a rule does, but for faults, which are as if on the way here, and CORS: a browser's
    /// preflight carries nothing that a guard could know its user by.
    pub fn guard_rule(&self, route: &ObjectKey, name: Option<&str>, rule: &mut Rule) {
        let guards = self.of(route, name);
        if guards.is_empty() {
            return;
        }
        let mut filters: Vec<Filter> = rule.filters.drain(..).collect();
        filters.sort_by_key(|filter| match filter {
            Filter::Fault(_) => 0,
            Filter::Cors(_) => 1,
            _ => 2,
        });
        let first = filters.iter().take_while(|f| matches!(f, Filter::Fault(_) | Filter::Cors(_))).count();
        filters.splice(first..first, guards.into_iter().map(Filter::Guard));
        rule.filters = filters.into_iter().collect();
    }

    /// Sets the guards of a listener.
    pub fn guard_listener(&self, listener: &mut Listener) {
        let ListenerKey { namespace, gateway, name } = &listener.key;
        let key = gateway_key(namespace, gateway);
        listener.guards = self.of(&key, Some(name)).into();
    }

    /// Those of a place and of what it is a part of, in the order in which they are asked.
    fn of(&self, key: &ObjectKey, section: Option<&str>) -> Vec<Arc<GuardRef>> {
        if !self.targets.contains(key) {
            return Vec::new();
        }
        let own = section.and_then(|name| self.places.get(&(key.clone(), Some(name.to_owned()))));
        let around = self.places.get(&(key.clone(), None));
        let mut guards: Vec<&Placed> = around.into_iter().chain(own).flatten().collect();
        guards.sort_by_key(|placed| placed.maker);
        let mut refs: Vec<Arc<GuardRef>> = Vec::with_capacity(guards.len());
        for placed in guards {
            // Attached to a route and to a rule of it: once is enough.
            if !refs.contains(&placed.guard) {
                refs.push(placed.guard.clone());
            }
        }
        refs
    }

    fn make(
        &mut self,
        maker: &Maker,
        object: &Object,
        around: &Surroundings<'_>,
        note: &mut Notes,
    ) -> Result<(), Refusal> {
        match (maker.make)(object, around, note) {
            Ok(kind) => {
                self.made.insert(object.key(), Guard { key: object.key(), kind });
                Ok(())
            }
            Err(refusal) => {
                let Refusal { reason, field, message, hint } = &refusal;
                let closed = "until this is resolved, everything that it is attached to is refused";
                let hint = hint.as_ref().map_or_else(|| closed.to_owned(), |h| format!("{h}; {closed}"));
                note.diagnostics.push(object.error(reason, field, message.clone()).hint(hint));
                Err(refusal)
            }
        }
    }

    fn attach(
        &mut self,
        maker: usize,
        object: &Object,
        targets: &[TargetRef],
        why: Option<&Refusal>,
        around: &Surroundings<'_>,
        note: &mut Notes,
    ) {
        let guard = Arc::new(GuardRef::new(object.key()));
        for (at, target) in targets.iter().enumerate() {
            let part = match &target.section_name {
                None => format!("{} {}", target.kind, target.name),
                Some(section) => format!("{} {} {section}", target.kind, target.name),
            };
            match self.find(object, target, &format!("spec.targetRefs[{at}]"), around) {
                Ok(key) => {
                    let place = (key, target.section_name.clone());
                    self.places.entry(place).or_default().push(Placed { maker, guard: guard.clone() });
                    match why {
                        None => note.part(&part, "Accepted", true, "Accepted", ""),
                        Some(why) => note.part(&part, "Accepted", false, why.reason, why.message.clone()),
                    }
                }
                Err(Refusal { reason, field, message, hint }) => {
                    note.part(&part, "Accepted", false, reason, message.clone());
                    let mut error = object.error(reason, &field, message);
                    error.hint = hint;
                    note.diagnostics.push(error);
                }
            }
        }
    }

    /// The Gateway or route that is meant, if it is there and has that part.
    fn find(
        &mut self,
        object: &Object,
        target: &TargetRef,
        place: &str,
        around: &Surroundings<'_>,
    ) -> Result<ObjectKey, Refusal> {
        let namespace = &object.namespace;
        let kind = match target.kind.as_str() {
            "Gateway" => Kind::Gateway,
            "GRPCRoute" => Kind::GrpcRoute,
            _ => Kind::HttpRoute,
        };
        let key = ObjectKey {
            kind: kind.as_str(),
            namespace: namespace.clone(),
            name: target.name.as_str().into(),
        };
        self.targets.insert(key.clone());
        let missing = |field: &str, message, hint| Refusal {
            reason: "TargetNotFound",
            field: format!("{place}.{field}"),
            message,
            hint,
        };
        if kind == Kind::Gateway {
            let listeners = around.gateways.of(namespace, &target.name).ok_or_else(|| {
                let names = around.gateways.names(namespace);
                let hint = did_you_mean_hint(&target.name, names.iter().map(String::as_str));
                missing("name", format!("there is no {key} of class fieldgate"), hint)
            })?;
            if let Some(section) = &target.section_name
                && listeners.iter().all(|l| *l.key.name != **section)
            {
                let names: Vec<&str> = listeners.iter().map(|l| &*l.key.name).collect();
                let hint = did_you_mean_hint(section, names);
                let message = format!("{key} has no usable listener \"{section}\"");
                return Err(missing("sectionName", message, hint));
            }
            return Ok(key);
        }
        let Some(route) = around.objects.get(kind, namespace, &target.name) else {
            let names = around.objects.names(kind, namespace);
            let hint = did_you_mean_hint(&target.name, names.iter().map(String::as_str));
            return Err(missing("name", format!("there is no {key}"), hint));
        };
        route.route(|route| named(rules(route), target, &key, place).map(|_| ()))?;
        Ok(key)
    }
}

fn gateway_key(namespace: &Arc<str>, name: &Arc<str>) -> ObjectKey {
    ObjectKey { kind: Kind::Gateway.as_str(), namespace: namespace.clone(), name: name.clone() }
}
