//! Policies that are attached to routes: which applies to which route and rule.
//!
//! The policy of a named rule goes before that of its route. Of two that are attached to the same place the older counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fieldgate_core::ir::ObjectKey;

use super::{NotesOf, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::fieldgate::TargetRef;
use crate::kinds::{Kind, Spec};

/// The policies of one kind that are in force, by the route and the named rule that they are attached to.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    by_place: BTreeMap<(ObjectKey, Option<String>), Arc<Object>>,
    /// What all policies name, there or not.
    targets: BTreeSet<ObjectKey>,
}

/// A rule as a policy sees it.
pub(crate) struct RuleView<'r> {
    pub name: Option<&'r str>,
    pub backends: Vec<&'r str>,
}

/// Why a policy does not apply.
pub(crate) struct Refusal {
    pub reason: &'static str,
    pub field: String,
    pub message: String,
    pub hint: Option<String>,
}

/// What else must hold of a policy and the rules that it is for.
pub(crate) type Fits = fn(&Spec, &ObjectKey, &[RuleView<'_>]) -> Result<(), Refusal>;

impl Attached {
    pub fn of(kind: Kind, fits: Fits, objects: &Objects, notes: &mut NotesOf) -> Self {
        let mut all = Self::default();
        for object in objects.by_age(kind) {
            let target = match &object.spec {
                Spec::SplitPolicy(spec) => &spec.target_ref,
                Spec::TrafficPolicy(spec) => &spec.target_ref,
                _ => continue,
            };
            let note = notes.entry(object.key()).or_default();
            match all.attach(object, target, fits, objects) {
                Ok(()) => note.condition("Accepted", true, "Accepted", ""),
                Err(Refusal { reason, field, message, hint }) => {
                    note.condition("Accepted", false, reason, message.clone());
                    let mut error = object.error(reason, &field, message);
                    error.hint = hint;
                    note.diagnostics.push(error);
                }
            }
        }
        all
    }

    pub fn is_target(&self, route: &ObjectKey) -> bool {
        self.targets.contains(route)
    }

    /// The routes to which the two apply differently.
    pub fn differences(&self, other: &Self) -> BTreeSet<ObjectKey> {
        let missing = |a: &Self, b: &Self| -> Vec<ObjectKey> {
            let same = |o: &Arc<Object>, place| b.by_place.get(place).is_some_and(|p| Arc::ptr_eq(p, o));
            let differing = a.by_place.iter().filter(|(place, o)| !same(o, place));
            differing.map(|((route, _), _)| route.clone()).collect()
        };
        missing(self, other).into_iter().chain(missing(other, self)).collect()
    }

    /// What holds for a rule.
    pub fn for_rule(&self, route: &ObjectKey, rule: Option<&str>) -> Option<&Arc<Object>> {
        if !self.targets.contains(route) {
            return None;
        }
        let own = rule.and_then(|name| self.by_place.get(&(route.clone(), Some(name.to_owned()))));
        own.or_else(|| self.by_place.get(&(route.clone(), None)))
    }

    fn attach(
        &mut self,
        object: &Arc<Object>,
        target: &TargetRef,
        fits: Fits,
        objects: &Objects,
    ) -> Result<(), Refusal> {
        let kind = if target.kind == "GRPCRoute" { Kind::GrpcRoute } else { Kind::HttpRoute };
        let key = ObjectKey {
            kind: kind.as_str(),
            namespace: object.namespace.clone(),
            name: target.name.as_str().into(),
        };
        self.targets.insert(key.clone());
        let refuse = |reason, field: &str, message, hint| {
            Err(Refusal { reason, field: field.to_owned(), message, hint })
        };
        let Some(route) = objects.get(kind, &object.namespace, &target.name) else {
            let names = objects.names(kind, &object.namespace);
            let hint = did_you_mean_hint(&target.name, names.iter().map(String::as_str));
            return refuse("TargetNotFound", "spec.targetRef.name", format!("there is no {key}"), hint);
        };
        route.route(|route| {
            let rules = named(rules(route), target, &key, "spec.targetRef")?;
            fits(&object.spec, &key, &rules)
        })?;
        let place = (key, target.section_name.clone());
        if let Some(other) = self.by_place.get(&place) {
            let message =
                format!("{} {} is attached to the same place and comes first", other.kind, other.name);
            let hint = "remove one of the two; the older counts, then the first by name".to_owned();
            return refuse("Conflicted", "spec.targetRef", message, Some(hint));
        }
        self.by_place.insert(place, object.clone());
        Ok(())
    }
}

/// The rules that a policy is for: the one that it names, else all. `place` is the field of the target.
pub(super) fn named<'r>(
    mut rules: Vec<RuleView<'r>>,
    target: &TargetRef,
    key: &ObjectKey,
    place: &str,
) -> Result<Vec<RuleView<'r>>, Refusal> {
    let Some(section) = &target.section_name else { return Ok(rules) };
    let names: Vec<&str> = rules.iter().filter_map(|r| r.name).collect();
    let hint = did_you_mean_hint(section, names.iter().copied());
    rules.retain(|r| r.name == Some(section));
    if rules.is_empty() {
        return Err(Refusal {
            reason: "TargetNotFound",
            field: format!("{place}.sectionName"),
            message: format!("{key} has no rule named \"{section}\""),
            hint,
        });
    }
    Ok(rules)
}

pub(super) fn rules(route: &Spec) -> Vec<RuleView<'_>> {
    match route {
        Spec::HttpRoute(spec) => spec
            .rules
            .iter()
            .flatten()
            .map(|r| RuleView {
                name: r.name.as_deref(),
                backends: r.backend_refs.iter().flatten().map(|b| b.name.as_str()).collect(),
            })
            .collect(),
        Spec::GrpcRoute(spec) => spec
            .rules
            .iter()
            .flatten()
            .map(|r| RuleView {
                name: r.name.as_deref(),
                backends: r.backend_refs.iter().flatten().map(|b| b.name.as_str()).collect(),
            })
            .collect(),
        _ => Vec::new(),
    }
}
