//! Policies for connections that are not HTTP. What can only be asked of an HTTP request is read as istiod reads it for
//! TCP: an ALLOW rule that asks it lets nothing pass, and every other rule leaves it out, so that it matches more.

use std::sync::Arc;

use fieldgate_core::RequestHead;
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{
    self, ConditionKey, ConnectionFacts, PolicyAction, PolicyOperation, PolicyRule, PolicySource,
};

use super::{Authorizer, Decision, Provider, Read, RuleInfo};

/// The policies of one listener, ready to decide about its connections.
#[derive(Debug, Default)]
pub struct ConnectionAuthorizer {
    authorizer: Authorizer,
    /// Of a request that there is not.
    head: RequestHead,
}

impl ConnectionAuthorizer {
    /// Prepares policies.
    pub fn compile(policies: &[Arc<ir::Policy>]) -> Self {
        let rules = policies.iter().map(|policy| {
            let left = |rule| of_connection(rule, policy.action, policy.cel.is_some());
            Read { policy, rules: policy.rules.iter().map(left).collect(), cel: None }
        });
        Self { authorizer: Authorizer::of_rules(rules.collect()), head: RequestHead::default() }
    }

    /// Decides about a connection. A connection that a CUSTOM rule matches is not decided here: see
    /// [`ConnectionAuthorizer::providers`].
    pub fn decide(&self, facts: &ConnectionFacts, metadata: &Metadata) -> Decision<'_> {
        self.authorizer.decide(&self.head, facts, metadata)
    }

    /// Who has to be asked before, each about the connections that it matches.
    pub fn providers(&self) -> &[Provider] {
        self.authorizer.providers()
    }

    /// The CUSTOM rule for which a provider has to be asked about a connection.
    pub fn asks(
        &self,
        provider: &Provider,
        facts: &ConnectionFacts,
        metadata: &Metadata,
    ) -> Option<&RuleInfo> {
        self.authorizer.asks(provider, &self.head, facts, metadata)
    }
}

/// What is left of a rule; `None` if it is left out.
fn of_connection(rule: &PolicyRule, action: PolicyAction, cel: bool) -> Option<PolicyRule> {
    let mut left = rule.clone();
    left.from.iter_mut().for_each(leave_out_of_source);
    left.to.iter_mut().for_each(leave_out_of_operation);
    left.when.retain(|condition| !is_of_http(&condition.key));
    // An expression may look at anything.
    (action != PolicyAction::Allow || left == *rule && !cel).then_some(left)
}

fn leave_out_of_source(source: &mut PolicySource) {
    source.request_principals.clear();
    source.not_request_principals.clear();
}

fn leave_out_of_operation(operation: &mut PolicyOperation) {
    let ports = (std::mem::take(&mut operation.ports), std::mem::take(&mut operation.not_ports));
    *operation = PolicyOperation { ports: ports.0, not_ports: ports.1, ..PolicyOperation::default() };
}

fn is_of_http(key: &ConditionKey) -> bool {
    matches!(key, ConditionKey::RequestHeader(_) | ConditionKey::RequestPrincipal | ConditionKey::Claim(_))
}
