//! AuthorizationPolicy to IR, failing closed: what cannot be evaluated refuses everything that it might have refused.

mod expression;
mod principals;
mod rules;

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir::{GuardRef, ObjectKey, Policy, PolicyAction};

use super::gateways::Gateways;
use super::targets::{self, ROOT};
use super::{Notes, Objects};

use crate::document::Object;
use crate::kinds::istio::{Action, AuthorizationPolicySpec};
use crate::kinds::{Kind, Spec};

const DRY_RUN: &str = "istio.io/dry-run";
/// An expression that must hold too.
const CEL: &str = "fieldgate.dev/cel";
/// What `provider` of a CUSTOM policy names.
const PROVIDER: &str = "ExternalAuthorizer";

pub use principals::TrustDomains;
use rules::{Around, Problem};
pub(super) use rules::{paths, string};

/// The objects that providers are.
pub(crate) fn provider_kind() -> Option<Kind> {
    Kind::from_name(PROVIDER)
}

pub(crate) fn translate(
    objects: &Objects,
    gateways: &Gateways,
    trust_domains: &TrustDomains,
    notes: &mut BTreeMap<ObjectKey, Notes>,
) -> BTreeMap<ObjectKey, Policy> {
    let mut policies = BTreeMap::new();
    for object in objects.of(Kind::AuthorizationPolicy) {
        let Spec::AuthorizationPolicy(spec) = &object.spec else { continue };
        let note = notes.entry(object.key()).or_default();
        let scope = targets::Scope {
            selector: spec.selector.as_ref(),
            target_ref: spec.target_ref.as_ref(),
            target_refs: &spec.target_refs,
        };
        let listeners = targets::listeners(object, &scope, gateways, note);
        let dry_run = object.annotations.get(DRY_RUN).is_some_and(|v| is_true(v));
        let action = match spec.action {
            Action::Allow => PolicyAction::Allow,
            Action::Custom => PolicyAction::Custom,
            Action::Deny => PolicyAction::Deny,
            Action::Audit => PolicyAction::Audit,
        };
        let around = Around { namespace: &object.namespace, trust_domains };
        let translated = rules::rules(spec, &around).and_then(|rules| {
            let named = (spec.action == Action::Custom).then(|| provider(object, spec, objects, note));
            Ok((rules, named.transpose()?, cel(object)?))
        });
        let mut policy = Policy::closed(object.key(), listeners);
        match translated {
            Ok((rules, provider, cel)) => {
                (policy.action, policy.dry_run) = (action, dry_run);
                (policy.rules, policy.provider, policy.cel) = (rules, provider, cel);
                if note.conditions.is_empty() {
                    note.condition("Accepted", true, "Accepted", "");
                }
            }
            Err((reason, field, message)) => {
                note.conditions.clear();
                note.condition("Accepted", false, reason, message.clone());
                let error = object.error(reason, &field, message);
                // These two never refuse a request, so that nothing is opened by leaving them out.
                if dry_run || action == PolicyAction::Audit {
                    note.diagnostics.push(error.hint("until this is resolved, the policy reports nothing"));
                    continue;
                }
                note.diagnostics.push(
                    error.hint("until this is resolved, the policy refuses every request to its gateways"),
                );
            }
        }
        policies.insert(object.key(), policy);
    }
    policies
}

/// Who is asked. One that is not there is said, and refuses what the policy matches: that is for whoever asks to find.
fn provider(
    object: &Object,
    spec: &AuthorizationPolicySpec,
    objects: &Objects,
    note: &mut Notes,
) -> Result<Arc<GuardRef>, Problem> {
    let name = spec.provider.as_ref().and_then(|provider| provider.name.as_deref()).filter(|n| !n.is_empty());
    let Some(name) = name else {
        let message = "a CUSTOM policy needs the name of a provider";
        return Err(("InvalidValue", "spec.provider.name".into(), message.into()));
    };
    let key = |namespace: &str| ObjectKey { kind: PROVIDER, namespace: namespace.into(), name: name.into() };
    let is_there =
        |namespace: &str| provider_kind().is_some_and(|kind| objects.get(kind, namespace, name).is_some());
    let namespace = [&*object.namespace, ROOT].into_iter().find(|namespace| is_there(namespace));
    if namespace.is_none() {
        let own = &object.namespace;
        let message = format!("there is no {PROVIDER} {own}/{name}, nor {ROOT}/{name}");
        if note.conditions.is_empty() {
            note.condition("Accepted", false, "TargetNotFound", message.clone());
        }
        let error = object.error("TargetNotFound", "spec.provider.name", message);
        let hint = "until it is there, what the policy matches is refused";
        note.diagnostics.push(error.hint(hint));
    }
    Ok(Arc::new(GuardRef::new(key(namespace.unwrap_or(&object.namespace)))))
}

fn cel(object: &Object) -> Result<Option<Arc<str>>, Problem> {
    let Some(text) = object.annotations.get(CEL) else { return Ok(None) };
    match expression::problem(text) {
        None => Ok(Some(text.as_str().into())),
        Some(why) => Err(("InvalidValue", format!("metadata.annotations[{CEL}]"), why)),
    }
}

/// As Go reads it, which is how istiod does.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}
