//! Istio's AuthorizationPolicy: who may ask for what.
//!
//! Decides as the RBAC filters do that istiod makes of the same policies: first AUDIT, which only reports, then DENY, which
//! refuses what matches, then ALLOW, which refuses what matches nothing, if there is an ALLOW policy at all. Dry-run
//! policies are evaluated beside the enforced ones of their action and change nothing. Among the rules that match, the
//! first by Envoy's policy id (`ns[..]-policy[..]-rule[..]`, compared as text) is reported, as in Envoy.
//!
//! Everything is prepared in advance; a decision allocates nothing (except for a rule about cookies over
//! HTTP/2, where they come in pieces).
//! Selectors and targets are resolved before: an [`Authorizer`] has the policies of one listener.

mod rule;
mod text;

use std::borrow::Cow;
use std::sync::Arc;

use fieldgate_core::RequestHead;
use fieldgate_core::ir::{self, ConnectionFacts, PolicyAction};

use rule::{Facts, Group};

/// The status of a refusal.
pub const DENIED_STATUS: u16 = 403;
/// The body of a refusal, as Envoy's.
pub const DENIED_BODY: &str = "RBAC: access denied";

/// The policies of one listener, ready to decide.
#[derive(Debug, Default)]
pub struct Authorizer {
    rules: Vec<RuleInfo>,
    audit: Group,
    deny: Group,
    allow: Group,
    deny_dry_run: Option<Group>,
    allow_dry_run: Option<Group>,
    /// Whether some enforced policy is ALLOW, even one without rules.
    must_allow: bool,
}

/// A rule of a policy, as reports name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// The policy.
    pub policy: ir::ObjectKey,
    /// What the policy does.
    pub action: PolicyAction,
    /// Whether it is only evaluated.
    pub dry_run: bool,
    /// The place of the rule in the policy.
    pub index: usize,
    /// Envoy's policy id: `ns[default]-policy[only-get]-rule[0]`.
    pub id: Box<str>,
}

/// The place of a rule in [`Authorizer::rules`].
#[derive(Clone, Copy, Debug)]
struct RuleRef(u32);

/// What the policies say about a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether it may pass.
    pub allowed: bool,
    /// The rule that refused or allowed it; `None` if no rule matched.
    pub matched: Option<&'a RuleInfo>,
    /// The AUDIT rule that matched.
    pub audit: Option<&'a RuleInfo>,
    /// What the dry-run DENY policies would have decided; `None` if there are none.
    pub dry_run_deny: Option<DryRun<'a>>,
    /// What the dry-run ALLOW policies would have decided; `None` if there are none, or the request was refused before.
    pub dry_run_allow: Option<DryRun<'a>>,
}

/// What policies that are not enforced would have decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DryRun<'a> {
    /// Whether the request would pass.
    pub allowed: bool,
    /// The rule that matched.
    pub matched: Option<&'a RuleInfo>,
}

impl<'a> Decision<'a> {
    /// Envoy's response code details of a refusal: which rule refused, or that none allowed.
    pub fn details(&self) -> Cow<'static, str> {
        match self.matched {
            Some(rule) => Cow::Owned(format!("rbac_access_denied_matched_policy[{}]", rule.id)),
            None => Cow::Borrowed("rbac_access_denied_matched_policy[none]"),
        }
    }

    /// All rules that matched, enforced or not, for counting.
    pub fn matches(&self) -> impl Iterator<Item = &'a RuleInfo> {
        let dry_run = |d: Option<DryRun<'a>>| d.and_then(|d| d.matched);
        [self.audit, dry_run(self.dry_run_deny), dry_run(self.dry_run_allow), self.matched]
            .into_iter()
            .flatten()
    }
}

impl Authorizer {
    /// Prepares policies. Their order means nothing.
    ///
    /// What cannot be evaluated (a template that Istio would refuse, a value that is not of its key's type) makes its
    /// rule fail closed: in DENY and AUDIT it matches every request, in ALLOW none.
    pub fn compile(policies: &[Arc<ir::Policy>]) -> Self {
        let mut rules: Vec<(RuleInfo, &ir::PolicyRule)> = policies.iter().flat_map(|p| rules_of(p)).collect();
        rules.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        let group = |action: PolicyAction, dry_run: bool| {
            let here = |info: &RuleInfo| info.action == action && info.dry_run == dry_run;
            let members = rules.iter().enumerate().filter(|(_, (info, _))| here(info));
            Group::new(action, members.map(|(at, (_, rule))| (RuleRef(at as u32), *rule)))
        };
        let is_there = |action: PolicyAction, dry_run: bool| {
            policies.iter().any(|p| p.action == action && p.dry_run == dry_run)
        };
        Self {
            audit: group(PolicyAction::Audit, false),
            deny: group(PolicyAction::Deny, false),
            allow: group(PolicyAction::Allow, false),
            deny_dry_run: is_there(PolicyAction::Deny, true).then(|| group(PolicyAction::Deny, true)),
            allow_dry_run: is_there(PolicyAction::Allow, true).then(|| group(PolicyAction::Allow, true)),
            must_allow: is_there(PolicyAction::Allow, false),
            rules: rules.into_iter().map(|(info, _)| info).collect(),
        }
    }

    /// Whether there is nothing to decide: everything passes and nothing is reported.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
            && !self.must_allow
            && self.deny_dry_run.is_none()
            && self.allow_dry_run.is_none()
    }

    /// Decides about a request.
    pub fn decide(&self, head: &RequestHead, facts: &ConnectionFacts) -> Decision<'_> {
        if self.is_empty() {
            return Decision { allowed: true, ..Decision::default() };
        }
        let facts = Facts::new(head, facts);
        let first = |group: &Group| group.first_match(&facts).map(|at| &self.rules[at.0 as usize]);
        let audit = first(&self.audit);
        let dry_run_deny = self.deny_dry_run.as_ref().map(|group| {
            let matched = first(group);
            DryRun { allowed: matched.is_none(), matched }
        });
        let denied = first(&self.deny);
        if denied.is_some() {
            return Decision { allowed: false, matched: denied, audit, dry_run_deny, dry_run_allow: None };
        }
        let dry_run_allow = self.allow_dry_run.as_ref().map(|group| {
            let matched = first(group);
            DryRun { allowed: matched.is_some(), matched }
        });
        let matched = first(&self.allow);
        Decision {
            allowed: matched.is_some() || !self.must_allow,
            matched,
            audit,
            dry_run_deny,
            dry_run_allow,
        }
    }
}

fn rules_of(policy: &ir::Policy) -> impl Iterator<Item = (RuleInfo, &ir::PolicyRule)> {
    policy.rules.iter().enumerate().map(|(index, rule)| {
        let ir::ObjectKey { namespace, name, .. } = &policy.key;
        let id = format!("ns[{namespace}]-policy[{name}]-rule[{index}]").into();
        let (action, dry_run) = (policy.action, policy.dry_run);
        (RuleInfo { policy: policy.key.clone(), action, dry_run, index, id }, rule)
    })
}

#[cfg(test)]
mod tests;
