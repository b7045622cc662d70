//! Istio's AuthorizationPolicy: who may ask for what.
//!
//! Decides as the RBAC filters do that istiod makes of the same policies: first CUSTOM, for which a provider is asked, then
//! AUDIT, which only reports, then DENY, which refuses what matches, then ALLOW, which refuses what matches nothing, if
//! there is an ALLOW policy at all. Dry-run policies are evaluated beside the enforced ones of their action and change
//! nothing. Among the rules that match, the first by Envoy's policy id (`ns[..]-policy[..]-rule[..]`, compared as text) is
//! reported, as in Envoy.
//!
//! Everything is prepared in advance; a decision allocates nothing (except for a rule about cookies over
//! HTTP/2, where they come in pieces, and for CEL expressions).
//! Selectors and targets are resolved before: an [`Authorizer`] has the policies of one listener. Nobody is asked here.

mod connection;
mod decision;
mod expression;
mod group;
mod index;
mod peer;
mod rule;
pub(crate) mod text;
mod token;

use std::sync::Arc;

use fieldgate_core::RequestHead;
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{self, ConnectionFacts, GuardRef, PolicyAction};

pub use connection::ConnectionAuthorizer;
pub use decision::{Considered, Decision, DryRun, FILTER, RuleInfo, details};
use expression::Expression;
use group::{Group, RuleRef, Unprepared};
use rule::Facts;
use text::Invalid;

/// The status of a refusal.
pub const DENIED_STATUS: u16 = 403;
/// The body of a refusal, as Envoy's.
pub const DENIED_BODY: &str = "RBAC: access denied";

/// The policies of one listener, ready to decide.
#[derive(Debug, Default)]
pub struct Authorizer {
    rules: Vec<RuleInfo>,
    providers: Vec<Provider>,
    audit: Group,
    deny: Group,
    allow: Group,
    deny_dry_run: Option<Group>,
    allow_dry_run: Option<Group>,
    custom_dry_run: Group,
    audit_dry_run: Group,
    /// Whether some enforced policy is ALLOW, even one without rules.
    must_allow: bool,
}

/// Somebody who is asked about the requests that CUSTOM policies match.
#[derive(Debug)]
pub struct Provider {
    /// Who; `None` is nobody, who refuses.
    pub guard: Option<Arc<GuardRef>>,
    group: Group,
}

/// A policy as it is to be read.
struct Read<'a> {
    policy: &'a ir::Policy,
    /// One that is `None` is left out, and its place stays.
    rules: Vec<Option<ir::PolicyRule>>,
    cel: Option<&'a Arc<str>>,
}

impl Authorizer {
    /// Prepares policies. Their order means nothing.
    ///
    /// What cannot be evaluated (a template that Istio would refuse, a value that is not of its key's type) makes its
    /// rule fail closed: in ALLOW it matches no request, in all others every request.
    pub fn compile(policies: &[Arc<ir::Policy>]) -> Self {
        let whole = policies.iter().map(|policy| Read {
            policy,
            rules: policy.rules.iter().cloned().map(Some).collect(),
            cel: policy.cel.as_ref(),
        });
        Self::of_rules(whole.collect())
    }

    fn of_rules(policies: Vec<Read<'_>>) -> Self {
        let expressions: Vec<Compiled> = policies
            .iter()
            .map(|read| read.cel.map(|text| Expression::new(text).map(Arc::new)).transpose())
            .collect();
        let mut rules: Vec<_> =
            policies.iter().zip(&expressions).flat_map(|(read, compiled)| rules_of(read, compiled)).collect();
        rules.sort_by(|a, b| a.info.id.cmp(&b.info.id));
        let group = |action: PolicyAction, here: &dyn Fn(&Named<'_>) -> bool| {
            let members =
                rules.iter().enumerate().filter(|(_, named)| named.info.action == action && here(named));
            Group::new(
                action,
                members.map(|(at, named)| Unprepared {
                    name: RuleRef(at as u32),
                    rule: named.rule,
                    expression: named.expression,
                }),
            )
        };
        let enforced = |action| group(action, &|named| !named.info.dry_run);
        let dry_run = |action| group(action, &|named| named.info.dry_run);
        let is_there = |action: PolicyAction, dry_run: bool| {
            policies.iter().any(|read| read.policy.action == action && read.policy.dry_run == dry_run)
        };
        let custom = policies
            .iter()
            .map(|read| read.policy)
            .filter(|p| p.action == PolicyAction::Custom && !p.dry_run);
        let mut guards: Vec<_> = custom.map(|policy| policy.provider.clone()).collect();
        guards.sort_by(|a, b| key(a.as_ref()).cmp(&key(b.as_ref())));
        guards.dedup();
        let providers = guards.into_iter().map(|guard| {
            let group = group(PolicyAction::Custom, &|named| !named.info.dry_run && *named.provider == guard);
            Provider { guard, group }
        });
        Self {
            providers: providers.collect(),
            audit: enforced(PolicyAction::Audit),
            deny: enforced(PolicyAction::Deny),
            allow: enforced(PolicyAction::Allow),
            deny_dry_run: is_there(PolicyAction::Deny, true).then(|| dry_run(PolicyAction::Deny)),
            allow_dry_run: is_there(PolicyAction::Allow, true).then(|| dry_run(PolicyAction::Allow)),
            custom_dry_run: dry_run(PolicyAction::Custom),
            audit_dry_run: dry_run(PolicyAction::Audit),
            must_allow: is_there(PolicyAction::Allow, false),
            rules: rules.into_iter().map(|named| named.info).collect(),
        }
    }

    /// Whether there is nothing to decide: everything passes and nothing is reported.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
            && !self.must_allow
            && self.deny_dry_run.is_none()
            && self.allow_dry_run.is_none()
    }

    /// Who has to be asked before [`Authorizer::decide`], in the order of their names, each about what it matches.
    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// The CUSTOM rule for which one of the [`Authorizer::providers`] has to be asked about a request.
    pub fn asks(
        &self,
        provider: &Provider,
        head: &RequestHead,
        facts: &ConnectionFacts,
        metadata: &Metadata,
    ) -> Option<&RuleInfo> {
        let matched = provider.group.first_match(&Facts::new(head, facts, metadata));
        matched.map(|at| &self.rules[at.0 as usize])
    }

    /// Decides about a request, but for what providers of CUSTOM policies say.
    pub fn decide(&self, head: &RequestHead, facts: &ConnectionFacts, metadata: &Metadata) -> Decision<'_> {
        if self.is_empty() {
            return Decision { allowed: true, ..Decision::default() };
        }
        let facts = Facts::new(head, facts, metadata);
        let first = |group: &Group| group.first_match(&facts).map(|at| &self.rules[at.0 as usize]);
        let audit = first(&self.audit);
        let (dry_run_custom, dry_run_audit) = (first(&self.custom_dry_run), first(&self.audit_dry_run));
        let dry_run_deny = self.deny_dry_run.as_ref().map(|group| {
            let matched = first(group);
            DryRun { allowed: matched.is_none(), matched }
        });
        let denied = first(&self.deny);
        let so_far = Decision {
            allowed: false,
            matched: denied,
            audit,
            dry_run_deny,
            dry_run_allow: None,
            dry_run_custom,
            dry_run_audit,
        };
        if denied.is_some() {
            return so_far;
        }
        let dry_run_allow = self.allow_dry_run.as_ref().map(|group| {
            let matched = first(group);
            DryRun { allowed: matched.is_some(), matched }
        });
        let matched = first(&self.allow);
        Decision { allowed: matched.is_some() || !self.must_allow, matched, dry_run_allow, ..so_far }
    }

    /// Every rule, in the order in which they are asked: for people, not for requests.
    pub fn consider(
        &self,
        head: &RequestHead,
        facts: &ConnectionFacts,
        metadata: &Metadata,
    ) -> Vec<Considered<'_>> {
        let facts = Facts::new(head, facts, metadata);
        let custom = self.providers.iter().map(|provider| (&provider.group, provider.guard.as_ref()));
        let others = [
            Some(&self.custom_dry_run),
            Some(&self.audit),
            Some(&self.audit_dry_run),
            Some(&self.deny),
            self.deny_dry_run.as_ref(),
            Some(&self.allow),
            self.allow_dry_run.as_ref(),
        ];
        let groups = custom.chain(others.into_iter().flatten().map(|group| (group, None)));
        let considered = groups.flat_map(|(group, provider)| {
            group.consider(&facts).map(move |(at, misses)| (at, provider, misses))
        });
        considered
            .map(|(at, provider, misses)| Considered { rule: &self.rules[at.0 as usize], provider, misses })
            .collect()
    }
}

/// A rule with what it is called and whom it has asked.
struct Named<'a> {
    info: RuleInfo,
    rule: &'a ir::PolicyRule,
    provider: &'a Option<Arc<GuardRef>>,
    expression: &'a Compiled,
}

/// The expression of a policy, if it has one.
type Compiled = Result<Option<Arc<Expression>>, Invalid>;

fn rules_of<'a>(read: &'a Read<'a>, expression: &'a Compiled) -> impl Iterator<Item = Named<'a>> {
    let policy = read.policy;
    read.rules.iter().enumerate().filter_map(|(index, rule)| {
        let ir::ObjectKey { namespace, name, .. } = &policy.key;
        let mut id = format!("ns[{namespace}]-policy[{name}]-rule[{index}]");
        if policy.action == PolicyAction::Custom {
            let provider = policy.provider.as_ref().map(|guard| format!("{}-", guard.key.name));
            id.insert_str(0, &format!("istio-ext-authz-{}", provider.unwrap_or_default()));
        }
        let (action, dry_run) = (policy.action, policy.dry_run);
        let info = RuleInfo { policy: policy.key.clone(), action, dry_run, index, id: id.into() };
        Some(Named { info, rule: rule.as_ref()?, provider: &policy.provider, expression })
    })
}

fn key(guard: Option<&Arc<GuardRef>>) -> Option<&ir::ObjectKey> {
    guard.map(|guard| &guard.key)
}

#[cfg(test)]
mod tests;
