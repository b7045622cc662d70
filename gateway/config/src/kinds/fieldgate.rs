//! `SplitPolicy` of the group `fieldgate.dev/v1alpha1`. See [`pool`](super::pool) for `Pool`.

use serde::Deserialize;

use super::check::Checks;
use super::duration::Duration;
use crate::diagnostic::reason;

/// Makes the split of a route's rules sticky.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitPolicySpec {
    /// The route.
    pub target_ref: TargetRef,
    /// What a user is known by.
    pub sticky: Option<Sticky>,
    /// Keeps users who have a session where they are.
    pub existing_sessions: Option<ExistingSessions>,
}

/// What a policy is attached to.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// The kind's group.
    pub group: String,
    /// The kind.
    pub kind: String,
    /// The object's name, in the policy's namespace.
    pub name: String,
    /// One named rule.
    pub section_name: Option<String>,
}

/// Exactly one of the three is set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sticky {
    /// By a cookie.
    pub cookie: Option<StickyCookie>,
    /// By a header.
    pub header: Option<StickyHeader>,
    /// By the client's address.
    pub source: Option<StickySource>,
}

/// Stickiness by a cookie.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StickyCookie {
    /// The cookie's name.
    pub name: String,
    /// Whether the gateway sets it.
    #[serde(default)]
    pub issue: bool,
    /// How long a cookie that the gateway sets lives; for the browser's session without it.
    pub ttl: Option<Duration>,
    /// The Path of a cookie that the gateway sets; `/`.
    pub path: Option<String>,
}

/// Stickiness by a header.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StickyHeader {
    /// The header's name.
    pub name: String,
}

/// Stickiness by the client's address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct StickySource {}

/// Users with a session stay where they are.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExistingSessions {
    /// The cookie that marks a session.
    pub cookie: String,
    /// The name of the backend that such a user stays on.
    pub stay_on: String,
}

/// What a policy of ours can be attached to.
pub(super) fn check_target(target: &TargetRef, kind: &str, checks: &mut Checks<'_>) {
    if target.group != "gateway.networking.k8s.io"
        || !matches!(target.kind.as_str(), "HTTPRoute" | "GRPCRoute")
    {
        checks.error(
            "spec.targetRef",
            reason::INVALID_VALUE,
            format!("a {kind} cannot be attached to {}/{}", target.group, target.kind),
            Some("group: gateway.networking.k8s.io with kind: HTTPRoute or GRPCRoute"),
        );
    }
}

pub(super) fn check_split_policy(spec: &SplitPolicySpec, checks: &mut Checks<'_>) {
    check_target(&spec.target_ref, "SplitPolicy", checks);
    if spec.sticky.is_none() && spec.existing_sessions.is_none() {
        checks.error(
            "spec",
            reason::MISSING_FIELD,
            "neither sticky nor existingSessions is set",
            Some("set one of them"),
        );
    }
    if let Some(existing) = &spec.existing_sessions {
        checks.token("spec.existingSessions.cookie", &existing.cookie, "the name of a cookie");
    }
    let Some(sticky) = &spec.sticky else { return };
    checks.exactly_one(
        "spec.sticky",
        &[
            ("cookie", sticky.cookie.is_some()),
            ("header", sticky.header.is_some()),
            ("source", sticky.source.is_some()),
        ],
    );
    if let Some(header) = &sticky.header {
        checks.token("spec.sticky.header.name", &header.name, "the name of a header");
    }
    if let Some(cookie) = &sticky.cookie {
        check_cookie(cookie, checks);
    }
}

fn check_cookie(cookie: &StickyCookie, checks: &mut Checks<'_>) {
    checks.token("spec.sticky.cookie.name", &cookie.name, "the name of a cookie");
    if !cookie.issue && (cookie.ttl.is_some() || cookie.path.is_some()) {
        let field = if cookie.ttl.is_some() { "ttl" } else { "path" };
        checks.error(
            &format!("spec.sticky.cookie.{field}"),
            reason::CONFLICTING_FIELDS,
            "this has no effect on a cookie that the gateway does not set",
            Some("add issue: true, or remove the field"),
        );
    }
    checks.cookie_path("spec.sticky.cookie.path", cookie.path.as_deref());
}
