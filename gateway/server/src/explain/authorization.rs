//! What the policies of a listener say about a request, rule by rule.

use std::fmt;
use std::net::SocketAddr;

use fieldgate_core::Snapshot;
use fieldgate_core::ir::ConnectionFacts;
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_plugins::authz::{self, Authorizer, Decision, DryRun, RuleInfo};
use serde::{Deserialize, Serialize};

use super::Question;

/// Rules that did not match are shown up to this number; JSON has all.
const SHOWN: usize = 50;

/// What the policies say.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    /// Whether it may pass, as far as that is decided here.
    pub allowed: bool,
    /// Why.
    pub why: String,
    /// What policies in dry-run would have said.
    #[serde(default)]
    pub dry_run: Vec<String>,
    /// Every rule that was looked at, in order.
    #[serde(default)]
    pub considered: Vec<Considered>,
}

/// A rule that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// `default/only-get rule 0`
    pub rule: String,
    /// `CUSTOM`, `AUDIT`, `DENY`, `ALLOW`.
    pub action: String,
    /// Whether the policy is in dry-run.
    pub dry_run: bool,
    /// Whether it matches.
    pub matched: bool,
    /// Whether it decided.
    pub decided: bool,
    /// What of it does not fit, where it does not match; what comes of it, where it does.
    pub why: String,
}

pub(super) fn authorize(
    snapshot: &Snapshot,
    listener: &CompiledListener,
    question: &Question,
    local: SocketAddr,
) -> Option<Authorization> {
    let authorizer = Authorizer::compile(&listener.policies);
    if authorizer.is_empty() {
        return None;
    }
    let facts = ConnectionFacts {
        peer: question.client,
        client: question.client,
        local,
        sni: question.head.https.then(|| question.head.host()),
        identity: question.identity.as_ref(),
    };
    let (head, metadata) = (&question.head, &question.metadata);
    let missing = authorizer.providers().iter().find_map(|provider| {
        let is_there =
            provider.guard.as_ref().is_some_and(|guard| snapshot.config.guards.contains_key(&guard.key));
        authorizer.asks(provider, head, &facts, metadata).filter(|_| !is_there)
    });
    let decision = authorizer.decide(head, &facts, metadata);
    let considered = authorizer.consider(head, &facts, metadata);
    let asked: Vec<String> = considered
        .iter()
        .filter(|c| c.misses.is_empty())
        .filter_map(|c| c.provider.map(|guard| guard.key.to_string()))
        .collect();
    let decided = missing.or(decision.matched);
    let empty = listener.policies.iter().filter(|p| p.rules.is_empty()).map(|policy| Considered {
        rule: format!("{}/{}", policy.key.namespace, policy.key.name),
        action: policy.action.as_str().to_owned(),
        dry_run: policy.dry_run,
        matched: false,
        decided: false,
        why: "it has no rules, so that it never matches".to_owned(),
    });
    let rules = considered.iter().map(|considered| {
        let rule = considered.rule;
        let matched = considered.misses.is_empty();
        let why = match considered.provider {
            Some(provider) if matched => format!("{} is asked", provider.key),
            _ => considered.misses.join(", "),
        };
        Considered {
            rule: format!("{}/{} rule {}", rule.policy.namespace, rule.policy.name, rule.index),
            action: rule.action.as_str().to_owned(),
            dry_run: rule.dry_run,
            matched,
            decided: decided == Some(rule),
            why,
        }
    });
    Some(Authorization {
        allowed: decision.allowed && missing.is_none(),
        why: why(&decision, missing, &asked),
        dry_run: dry_runs(&decision),
        considered: rules.chain(empty).collect(),
    })
}

fn why(decision: &Decision<'_>, missing: Option<&RuleInfo>, asked: &[String]) -> String {
    if let Some(rule) = missing {
        return format!("{} matches, and its provider is not there", name(rule));
    }
    let ours = match (decision.allowed, decision.matched) {
        (true, Some(rule)) => format!("{} allows it", name(rule)),
        (true, None) => "no policy refuses it".to_owned(),
        (false, Some(rule)) => format!("{} denies it", name(rule)),
        (false, None) => "there are ALLOW policies and none of their rules matches".to_owned(),
    };
    if asked.is_empty() { ours } else { format!("if {} lets it pass: {ours}", asked.join(" and ")) }
}

fn dry_runs(decision: &Decision<'_>) -> Vec<String> {
    let dry = |kind: &str, run: Option<DryRun<'_>>| {
        run.map(|run| {
            let verdict = if run.allowed { "let it pass" } else { "refuse it" };
            let by = run.matched.map_or_else(|| "no rule matches".to_owned(), name);
            format!("{kind} policies in dry-run would {verdict}: {by}")
        })
    };
    let both = [dry("DENY", decision.dry_run_deny), dry("ALLOW", decision.dry_run_allow)];
    both.into_iter().flatten().collect()
}

fn name(rule: &authz::RuleInfo) -> String {
    format!("rule {} of AuthorizationPolicy {}/{}", rule.index, rule.policy.namespace, rule.policy.name)
}

impl Authorization {
    pub(super) fn write_details(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.dry_run {
            writeln!(f, "           {line}")?;
        }
        let mut left_out = 0;
        let mut shown = 0;
        for considered in &self.considered {
            if !considered.matched {
                shown += 1;
                if shown > SHOWN {
                    left_out += 1;
                    continue;
                }
            }
            let mark = if considered.decided { "->" } else { "  " };
            let dry_run = if considered.dry_run { " (dry-run)" } else { "" };
            let verdict = match (considered.matched, considered.why.as_str()) {
                (true, "") => "matches".to_owned(),
                (true, why) => format!("matches: {why}"),
                (false, why) => format!("does not match: {why}"),
            };
            writeln!(f, "        {mark} {:<6} {}{dry_run}  {verdict}", considered.action, considered.rule)?;
        }
        if left_out > 0 {
            writeln!(f, "           {left_out} more rules that do not match; --json has all")?;
        }
        Ok(())
    }
}
