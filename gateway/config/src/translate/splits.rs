//! SplitPolicies: which applies to which route and rule.
//!
//! The policy of a named rule goes before that of its route. Of two that are attached to the same place the older counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fieldgate_core::ir::{ExistingSessions, ObjectKey, SplitPolicy, Sticky};

use super::{NotesOf, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::fieldgate::{SplitPolicySpec, Sticky as StickySpec};
use crate::kinds::{Kind, Spec};

/// The policies in force, by the route and the named rule that they are attached to.
#[derive(Debug, Default)]
pub(crate) struct SplitPolicies {
    attached: BTreeMap<(ObjectKey, Option<String>), Arc<Object>>,
    /// What all policies name, there or not.
    targets: BTreeSet<ObjectKey>,
}

/// A rule as a policy sees it.
struct RuleView<'r> {
    name: Option<&'r str>,
    backends: Vec<&'r str>,
}

/// Why a policy does not apply: reason, field, message, hint.
type Refusal = (&'static str, &'static str, String, Option<String>);

impl SplitPolicies {
    pub fn of(objects: &Objects, notes: &mut NotesOf) -> Self {
        let mut all = Self::default();
        for object in objects.by_age(Kind::SplitPolicy) {
            let Spec::SplitPolicy(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            match all.attach(object, spec, objects) {
                Ok(()) => note.condition("Accepted", true, "Accepted", ""),
                Err((reason, field, message, hint)) => {
                    note.condition("Accepted", false, reason, message.clone());
                    let mut error = object.error(reason, field, message);
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
            let same = |o: &Arc<Object>, place| b.attached.get(place).is_some_and(|p| Arc::ptr_eq(p, o));
            let differing = a.attached.iter().filter(|(place, o)| !same(o, place));
            differing.map(|((route, _), _)| route.clone()).collect()
        };
        missing(self, other).into_iter().chain(missing(other, self)).collect()
    }

    /// What holds for a rule with these backends.
    pub fn for_rule<'b>(
        &self,
        route: &ObjectKey,
        rule: Option<&str>,
        mut backends: impl Iterator<Item = &'b str>,
    ) -> Option<Arc<SplitPolicy>> {
        if self.attached.is_empty() {
            return None;
        }
        let own = rule.and_then(|name| self.attached.get(&(route.clone(), Some(name.to_owned()))));
        let object = own.or_else(|| self.attached.get(&(route.clone(), None)))?;
        let Spec::SplitPolicy(spec) = &object.spec else { return None };
        let sticky = spec.sticky.as_ref().and_then(sticky);
        let existing = spec.existing_sessions.as_ref().and_then(|e| {
            let backend = backends.position(|name| name == e.stay_on)?;
            Some(ExistingSessions { cookie: e.cookie.as_str().into(), backend })
        });
        if sticky.is_none() && existing.is_none() {
            return None;
        }
        Some(Arc::new(SplitPolicy { name: object.name.clone(), sticky, existing }))
    }

    fn attach(
        &mut self,
        object: &Arc<Object>,
        spec: &SplitPolicySpec,
        objects: &Objects,
    ) -> Result<(), Refusal> {
        let target = &spec.target_ref;
        let kind = if target.kind == "GRPCRoute" { Kind::GrpcRoute } else { Kind::HttpRoute };
        let key = ObjectKey {
            kind: kind.as_str(),
            namespace: object.namespace.clone(),
            name: target.name.as_str().into(),
        };
        self.targets.insert(key.clone());
        let Some(route) = objects.get(kind, &object.namespace, &target.name) else {
            let names = objects.names(kind, &object.namespace);
            let hint = did_you_mean_hint(&target.name, names.iter().map(String::as_str));
            return Err(("TargetNotFound", "spec.targetRef.name", format!("there is no {key}"), hint));
        };
        route.route(|route| fits(spec, &key, rules(route)))?;
        let place = (key, target.section_name.clone());
        if let Some(other) = self.attached.get(&place) {
            let message = format!("SplitPolicy {} is attached to the same place and comes first", other.name);
            let hint = Some("remove one of the two; the older counts, then the first by name".to_owned());
            return Err(("Conflicted", "spec.targetRef", message, hint));
        }
        self.attached.insert(place, object.clone());
        Ok(())
    }
}

/// Whether a route has what a policy names.
fn fits(spec: &SplitPolicySpec, key: &ObjectKey, mut rules: Vec<RuleView<'_>>) -> Result<(), Refusal> {
    let target = &spec.target_ref;
    if let Some(section) = &target.section_name {
        let names: Vec<&str> = rules.iter().filter_map(|r| r.name).collect();
        let hint = did_you_mean_hint(section, names.iter().copied());
        rules.retain(|r| r.name == Some(section));
        if rules.is_empty() {
            let message = format!("{key} has no rule named \"{section}\"");
            return Err(("TargetNotFound", "spec.targetRef.sectionName", message, hint));
        }
    }
    if let Some(existing) = &spec.existing_sessions {
        let names: BTreeSet<&str> = rules.iter().flat_map(|r| &r.backends).copied().collect();
        if !names.contains(&*existing.stay_on) {
            let message = format!("\"{}\" is not a backend of {key}", existing.stay_on);
            let hint = did_you_mean_hint(&existing.stay_on, names.iter().copied());
            return Err(("BackendNotFound", "spec.existingSessions.stayOn", message, hint));
        }
    }
    Ok(())
}

fn rules(route: &Spec) -> Vec<RuleView<'_>> {
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

fn sticky(spec: &StickySpec) -> Option<Sticky> {
    if let Some(header) = &spec.header {
        return Some(Sticky::Header(header.name.to_ascii_lowercase().into()));
    }
    let Some(cookie) = &spec.cookie else { return spec.source.as_ref().map(|_| Sticky::Source) };
    Some(if cookie.issue {
        Sticky::IssuedCookie {
            name: cookie.name.as_str().into(),
            ttl: cookie.ttl.map(|d| d.0),
            path: cookie.path.as_deref().unwrap_or("/").into(),
        }
    } else {
        Sticky::Cookie(cookie.name.as_str().into())
    })
}
