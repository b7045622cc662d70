//! The rules of one action, in the order of their ids.

use std::sync::Arc;

use fieldgate_core::ir::{self, PolicyAction};

use super::expression::Expression;
use super::index::Index;
use super::rule::{Facts, Rule};
use super::text::Invalid;

/// The place of a rule among all rules of an authorizer.
#[derive(Clone, Copy, Debug)]
pub struct RuleRef(pub u32);

/// A rule that is to be prepared, with the expression of its policy.
pub struct Unprepared<'a> {
    pub name: RuleRef,
    pub rule: &'a ir::PolicyRule,
    pub expression: &'a Result<Option<Arc<Expression>>, Invalid>,
}

/// Rules, indexed: a request is matched against few of them, however many there are.
#[derive(Debug, Default)]
pub struct Group {
    rules: Vec<(RuleRef, Rule)>,
    index: Index,
}

impl Group {
    /// Prepares rules, given in the order of their ids.
    pub fn new<'a>(action: PolicyAction, rules: impl Iterator<Item = Unprepared<'a>>) -> Self {
        // Fails closed.
        let otherwise = action != PolicyAction::Allow;
        let compiled = rules.filter_map(|Unprepared { name, rule, expression }| {
            let ready = Rule::new(rule).and_then(|rule| match expression {
                Ok(expression) => Ok(rule.and(expression.as_ref(), otherwise)),
                Err(invalid) => Err(*invalid),
            });
            match ready {
                Ok(ready) => Some(((name, ready), Some(rule))),
                Err(Invalid) => otherwise.then(|| ((name, Rule::default()), None)),
            }
        });
        let (rules, sources): (Vec<_>, Vec<_>) = compiled.unzip();
        Self { rules, index: Index::new(sources.into_iter()) }
    }

    /// The first rule that matches.
    pub fn first_match(&self, facts: &Facts) -> Option<RuleRef> {
        if self.rules.is_empty() {
            return None;
        }
        let mut first = u32::MAX;
        self.index.candidates(facts, |places| {
            let earlier = places.iter().copied().take_while(|at| *at < first);
            first = earlier.into_iter().find(|at| self.rules[*at as usize].1.matches(facts)).unwrap_or(first);
        });
        self.rules.get(first as usize).map(|(name, _)| *name)
    }

    /// All rules, in order, each with what of it does not fit; nothing if it matches.
    pub fn consider(&self, facts: &Facts) -> impl Iterator<Item = (RuleRef, Vec<String>)> {
        self.rules
            .iter()
            .map(|(name, rule)| (*name, if rule.matches(facts) { Vec::new() } else { rule.misses(facts) }))
    }
}
