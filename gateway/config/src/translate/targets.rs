//! To which listeners Istio's policies apply: by `targetRefs`, by labels, or all of their namespace.

use fieldgate_core::ir::ListenerKey;

use super::Notes;
use super::gateways::{GROUP, Gateways, ListenerInfo};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::istio::{PolicySelector, PolicyTargetRef};

/// Policies here apply to every namespace (Istio's root namespace).
pub(crate) const ROOT: &str = "istio-system";

/// What a policy says of where it applies.
pub(super) struct Scope<'s> {
    pub selector: Option<&'s PolicySelector>,
    pub target_ref: Option<&'s PolicyTargetRef>,
    pub target_refs: &'s [PolicyTargetRef],
}

/// The listeners that a policy applies to. A target that is not there takes none of the others away.
pub(super) fn listeners(
    object: &Object,
    scope: &Scope<'_>,
    gateways: &Gateways,
    note: &mut Notes,
) -> Vec<ListenerKey> {
    let root = *object.namespace == *ROOT;
    let single = scope.target_ref.iter().map(|t| ("spec.targetRef".to_owned(), *t));
    let many = scope.target_refs.iter().enumerate().map(|(at, t)| (format!("spec.targetRefs[{at}]"), t));
    let refs: Vec<_> = single.chain(many).collect();
    if !refs.is_empty() {
        let mut listeners: Vec<ListenerKey> = Vec::new();
        for (place, target) in refs {
            match target_gateway(object, target, gateways) {
                Ok(infos) => listeners.extend(infos.iter().map(|i| i.key.clone())),
                Err((reason, field, message, hint)) => {
                    if note.conditions.is_empty() {
                        note.condition("Accepted", false, reason, message.clone());
                    }
                    let mut error = object.error(reason, &format!("{place}.{field}"), message);
                    error.hint = hint;
                    note.diagnostics.push(error);
                }
            }
        }
        listeners.sort();
        listeners.dedup();
        return listeners;
    }
    let selector = scope.selector.map(|s| &s.match_labels);
    let selected =
        gateways.listeners.values().filter(|l| root || l.key.namespace == object.namespace).filter(|l| {
            selector
                .into_iter()
                .flatten()
                .all(|(k, v)| l.labels.iter().any(|(name, value)| **name == **k && **value == **v))
        });
    selected.map(|l| l.key.clone()).collect()
}

/// Why a target is none: reason, field, message, hint.
type NoTarget = (&'static str, &'static str, String, Option<String>);

fn target_gateway<'g>(
    object: &Object,
    target: &PolicyTargetRef,
    gateways: &'g Gateways,
) -> Result<&'g [ListenerInfo], NoTarget> {
    if target.kind != "Gateway" || target.group.as_deref() != Some(GROUP) {
        let group = target.group.as_deref().unwrap_or_default();
        let message =
            format!("a policy of this gateway cannot be attached to a {} of group \"{group}\"", target.kind);
        let hint = format!("kind: Gateway with group: {GROUP}");
        return Err(("InvalidKind", "kind", message, Some(hint)));
    }
    if target.namespace.as_deref().is_some_and(|n| *n != *object.namespace) {
        let message = "a policy can be attached to Gateways of its own namespace only".to_owned();
        return Err(("RefNotPermitted", "namespace", message, Some("move the policy there".into())));
    }
    gateways.of(&object.namespace, &target.name).ok_or_else(|| {
        let names = gateways.names(&object.namespace);
        let message = format!("there is no Gateway {}/{}", object.namespace, target.name);
        ("TargetNotFound", "name", message, did_you_mean_hint(&target.name, names.iter().map(String::as_str)))
    })
}
