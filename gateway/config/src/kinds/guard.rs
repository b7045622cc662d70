//! What kinds of the group `fieldgate.dev` that guard requests have in common: targets, and services that are asked.

use serde::Deserialize;

use super::check::Checks;
use super::fieldgate::TargetRef;
use crate::diagnostic::reason;

/// Targets of one object.
const MAX_TARGETS: usize = 64;

/// A service that a guard asks; as routes name theirs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ServiceRef {
    /// The kind's group; empty without it.
    pub group: Option<String>,
    /// `Service` without it.
    pub kind: Option<String>,
    /// The policy's own without it.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// The port; a Pool has none.
    pub port: Option<i32>,
}

/// What a guard can be attached to: Gateways and their listeners, routes and their named rules.
pub(super) fn check_targets(targets: &[TargetRef], kind: &str, checks: &mut Checks<'_>) {
    if targets.is_empty() {
        let message = format!("a {kind} without targets does nothing");
        let hint = "name what it is for: targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: ...}]";
        checks.error("spec.targetRefs", reason::MISSING_FIELD, message, Some(hint));
    }
    checks.count("spec.targetRefs", targets.len(), MAX_TARGETS);
    for (i, target) in targets.iter().enumerate() {
        let known = matches!(target.kind.as_str(), "Gateway" | "HTTPRoute" | "GRPCRoute");
        if target.group != "gateway.networking.k8s.io" || !known {
            let message = format!("a {kind} cannot be attached to {}/{}", target.group, target.kind);
            let hint = "group: gateway.networking.k8s.io with kind: Gateway, HTTPRoute or GRPCRoute";
            checks.error(&format!("spec.targetRefs[{i}]"), reason::INVALID_VALUE, message, Some(hint));
        }
        if targets[..i].contains(target) {
            let message = "this target is named already";
            let hint = Some("a request passes a guard once for each place that it is attached to");
            checks.error(&format!("spec.targetRefs[{i}]"), reason::CONFLICTING_FIELDS, message, hint);
        }
    }
}

/// The port of a service.
pub(super) fn check_service(service: &ServiceRef, at: &str, checks: &mut Checks<'_>) {
    if let Some(port) = service.port {
        checks.port(format_args!("{at}.port"), port.into());
    }
}
