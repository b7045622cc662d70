//! What policies say about a request.

use std::borrow::Cow;
use std::sync::Arc;

use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{self, PolicyAction};
use serde_json::{Map, Value};

/// Envoy's filter, under whose name the results of dry-run policies are metadata.
pub const FILTER: &str = "envoy.filters.http.rbac";

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
    /// The dry-run CUSTOM rule that matched. Its provider is not asked.
    pub dry_run_custom: Option<&'a RuleInfo>,
    /// The dry-run AUDIT rule that matched.
    pub dry_run_audit: Option<&'a RuleInfo>,
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
        details(self.matched)
    }

    /// All rules that matched, enforced or not, for counting.
    pub fn matches(&self) -> impl Iterator<Item = &'a RuleInfo> {
        let dry_run = |d: Option<DryRun<'a>>| d.and_then(|d| d.matched);
        [
            self.audit,
            self.dry_run_custom,
            self.dry_run_audit,
            dry_run(self.dry_run_deny),
            dry_run(self.dry_run_allow),
            self.matched,
        ]
        .into_iter()
        .flatten()
    }

    /// What dry-run DENY and ALLOW policies decided, with the prefix that istiod gives to their results.
    pub fn dry_runs(&self) -> impl Iterator<Item = (&'static str, DryRun<'a>)> {
        let both = [("istio_dry_run_deny", self.dry_run_deny), ("istio_dry_run_allow", self.dry_run_allow)];
        both.into_iter().filter_map(|(name, run)| Some((name, run?)))
    }

    /// Writes what dry-run policies decided where Envoy writes it: `istio_dry_run_deny_shadow_engine_result` and
    /// `istio_dry_run_deny_shadow_effective_policy_id` of its filter, and the same of `allow`.
    pub fn report(&self, metadata: &mut Metadata) {
        for (name, run) in self.dry_runs() {
            let filter = metadata.dynamic.entry(FILTER).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(results) = filter else { return };
            let result = if run.allowed { "allowed" } else { "denied" };
            results.insert(format!("{name}_shadow_engine_result"), result.into());
            if let Some(rule) = run.matched {
                results.insert(format!("{name}_shadow_effective_policy_id"), (&*rule.id).into());
            }
        }
    }
}

/// Envoy's response code details of a refusal by a rule.
pub fn details(matched: Option<&RuleInfo>) -> Cow<'static, str> {
    match matched {
        Some(rule) => Cow::Owned(format!("rbac_access_denied_matched_policy[{}]", rule.id)),
        None => Cow::Borrowed("rbac_access_denied_matched_policy[none]"),
    }
}

/// A rule that was looked at, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered<'a> {
    /// The rule.
    pub rule: &'a RuleInfo,
    /// Who is asked, of a CUSTOM rule.
    pub provider: Option<&'a Arc<ir::GuardRef>>,
    /// What of it does not fit: `to[0].operation.paths`; nothing if it matches.
    pub misses: Vec<String>,
}
