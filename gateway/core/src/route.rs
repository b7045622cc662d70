//! From a head to a rule: Gateway API's precedence as an index.
//!
//! A table belongs to one listener. The most specific host name decides first and alone: exact, then the longest
//! wildcard, then any. A request that fits none of its rules is not found, even if a rule of a wildcard would fit (as
//! Envoy's virtual hosts work). Within a host name the smallest `precedence` that fits wins. All maps are
//! persistent: a table with one route more shares the rest with the table before.
//!
//! Paths are matched as they are in the head, normalised by [`crate::path`]. Nothing here changes a head.

mod conditions;
mod explain;
mod index;
mod precedence;
#[cfg(test)]
pub(crate) mod samples;

use std::sync::Arc;

use crate::head::RequestHead;
use crate::ir::{Hostname, ListenerKey, PathMatch, Route};
use crate::snapshot::CompiledRule;
use conditions::Conditions;
pub use explain::{Explanation, NearMiss};
use index::{Counts, HostTable, Map};
use precedence::Precedence;

/// One match of one rule: what a lookup finds.
#[derive(Debug)]
pub struct Entry {
    /// The rule.
    pub rule: Arc<CompiledRule>,
    /// Bytes of the path that a prefix match takes; 0 for `/` and for other matches.
    pub prefix_len: usize,
    conditions: Conditions,
    precedence: Precedence,
}

/// Why a route cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRoute {
    /// Where: `rules[0].matches[1].path.value`.
    pub field: String,
    /// What.
    pub message: String,
}

/// The conditions of all matches of a route: the part of its compilation that can fail.
#[derive(Debug)]
pub(crate) struct Matches(Vec<Vec<Conditions>>);

/// The entries that one route contributes, compiled once and inserted into every table that it is attached to.
#[derive(Debug)]
pub struct CompiledRoute {
    /// What it was compiled from.
    pub ir: Arc<Route>,
    /// Its rules.
    pub rules: Box<[Arc<CompiledRule>]>,
    entries: Box<[Arc<Entry>]>,
}

/// All routes of one listener.
#[derive(Clone, Debug, Default)]
pub struct Table {
    exact: Map<Arc<str>, HostTable>,
    wildcard: Map<Arc<str>, HostTable>,
    /// How many wildcards have so many labels: a host of a thousand labels costs no more than the longest of ours.
    labels: Counts,
    any: HostTable,
}

/// Says what is wrong with a regular expression that a match is to hold, by the bounds of [`crate::Snapshot::compile`].
pub fn check_regex(pattern: &str) -> Result<(), String> {
    conditions::whole(pattern).map(drop)
}

impl Matches {
    pub fn compile(route: &Route) -> Result<Self, BadRoute> {
        let of_rule = |(at, rule): (usize, &Arc<crate::ir::Rule>)| {
            let compiled = rule.matches.iter().enumerate().map(|(index, matched)| {
                Conditions::new(matched).map_err(|(field, message)| BadRoute {
                    field: format!("rules[{at}].matches[{index}].{field}"),
                    message,
                })
            });
            compiled.collect()
        };
        Ok(Self(route.rules.iter().enumerate().map(of_rule).collect::<Result<_, _>>()?))
    }
}

impl CompiledRoute {
    /// Puts a route together; `rules` and `matches` are those of `ir`, in its order.
    pub(crate) fn new(ir: Arc<Route>, rules: Box<[Arc<CompiledRule>]>, matches: Matches) -> Self {
        let mut entries = Vec::new();
        for (at, (rule, all)) in rules.iter().zip(matches.0).enumerate() {
            for (index, conditions) in all.into_iter().enumerate() {
                let matched = &rule.ir.matches[index];
                entries.push(Arc::new(Entry {
                    rule: rule.clone(),
                    prefix_len: match &matched.path {
                        PathMatch::Prefix(p) if &**p != "/" => p.len(),
                        _ => 0,
                    },
                    conditions,
                    precedence: Precedence::new(&ir, at, index, matched),
                }));
            }
        }
        Self { ir, rules, entries: entries.into() }
    }
}

impl Entry {
    /// The path condition, for people.
    pub fn path_text(&self) -> String {
        self.conditions.path.to_string()
    }

    fn fits(&self, head: &RequestHead) -> bool {
        self.conditions.path.fits(head.path()) && self.conditions.rest_fits(head)
    }
}

impl Table {
    /// The entry that takes the request.
    pub fn find(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        self.host(head.host())?.find(head)
    }

    fn host(&self, host: &str) -> Option<&HostTable> {
        if let Some(table) = self.exact.get(host) {
            return Some(table);
        }
        let wildcard = self
            .labels
            .max()
            .and_then(|most| wildcard_suffixes(host, most).find_map(|suffix| self.wildcard.get(suffix)));
        wildcard.or_else(|| (self.any.len() > 0).then_some(&self.any))
    }

    /// All host names that take this host, most specific first. The first is what [`Table::find`] looks at.
    fn hosts_of(&self, host: &str) -> impl Iterator<Item = (Option<Hostname>, &HostTable)> {
        let exact = self.exact.get_key_value(host).map(|(h, t)| (Some(Hostname::Exact(h.clone())), t));
        let wildcards = wildcard_suffixes(host, usize::MAX)
            .filter_map(|suffix| self.wildcard.get_key_value(suffix))
            .map(|(h, t)| (Some(Hostname::Wildcard(h.clone())), t))
            .collect::<Vec<_>>();
        let any = (self.any.len() > 0).then_some((None, &self.any));
        exact.into_iter().chain(wildcards).chain(any)
    }

    /// Adds a route where it is attached to this listener.
    pub fn insert(&mut self, listener: &ListenerKey, route: &CompiledRoute) {
        if route.entries.is_empty() {
            return;
        }
        for host in hostnames(listener, &route.ir) {
            let table = match host {
                Some(Hostname::Exact(h)) => self.exact.entry(h.clone()).or_default(),
                Some(Hostname::Wildcard(h)) => {
                    if !self.wildcard.contains_key(h) {
                        self.labels.add(labels(h));
                    }
                    self.wildcard.entry(h.clone()).or_default()
                }
                None => &mut self.any,
            };
            for entry in &route.entries {
                table.insert(entry);
            }
        }
    }

    /// Takes a route out again.
    pub fn remove(&mut self, listener: &ListenerKey, route: &CompiledRoute) {
        for host in hostnames(listener, &route.ir) {
            let table = match host {
                Some(Hostname::Exact(h)) => self.exact.get_mut(h),
                Some(Hostname::Wildcard(h)) => self.wildcard.get_mut(h),
                None => Some(&mut self.any),
            };
            let Some(table) = table else { continue };
            for entry in &route.entries {
                table.remove(entry);
            }
            if table.len() > 0 {
                continue;
            }
            // A host name without rules must not hide less specific ones (nor be made by a route without rules).
            match host {
                Some(Hostname::Exact(h)) => drop(self.exact.remove(h)),
                Some(Hostname::Wildcard(h)) => {
                    self.wildcard.remove(h);
                    self.labels.take(labels(h));
                }
                None => {}
            }
        }
    }

    /// Number of entries, each counted once per host name.
    pub fn len(&self) -> usize {
        self.any.len() + self.exact.values().chain(self.wildcard.values()).map(HostTable::len).sum::<usize>()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.any.len() == 0 && self.exact.is_empty() && self.wildcard.is_empty()
    }
}

fn hostnames<'r>(listener: &ListenerKey, route: &'r Route) -> impl Iterator<Item = Option<&'r Hostname>> {
    let attachments = route.attachments.iter().filter(move |a| a.listener == *listener);
    attachments.flat_map(|a| a.hostnames.iter().map(Option::as_ref))
}

fn labels(host: &str) -> usize {
    host.bytes().filter(|b| *b == b'.').count() + 1
}

/// The suffixes of a host that a wildcard may stand before, longest first, none with more than `most` labels.
pub(crate) fn wildcard_suffixes(host: &str, most: usize) -> impl Iterator<Item = &str> {
    // At least one byte must be left for the wildcard, before the dot: see `Hostname::matches`.
    let too_long = labels(host).saturating_sub(most.saturating_add(1));
    let dots = host.match_indices('.').skip(too_long).filter(|(at, _)| *at > 0);
    dots.map(|(at, _)| &host[at + 1..])
}

#[cfg(test)]
mod tests;
