//! Finds the rules that may match by something that they cannot match without: a path, a host, a name of the peer, its
//! namespace, the bearer of a token. It only leaves out; whether a rule matches is the rule's to say.

use fieldgate_core::ir::{self, ConditionKey, ConditionValue, StringMatch};
use rustc_hash::FxHashMap;

use super::peer;
use super::rule::Facts;
use super::text::{Invalid, Text};

/// What rules are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Path,
    Host,
    Principal,
    Namespace,
    Subject,
    Issuer,
}

/// In the order in which they are preferred where nothing else speaks for one.
const ALL: [By; 6] = [By::Path, By::Host, By::Principal, By::Namespace, By::Subject, By::Issuer];

/// Places of rules.
#[derive(Debug, Default)]
pub struct Index {
    by: Vec<(By, Table)>,
    /// Places of rules that nothing finds, ascending.
    other: Vec<u32>,
}

impl Index {
    /// Each rule is put where the fewest others are.
    pub fn new<'a>(rules: impl Iterator<Item = Option<&'a ir::PolicyRule>>) -> Self {
        // A rule that is not there matches everything, so needs nothing.
        let needed: Vec<[Option<Vec<Text>>; ALL.len()]> =
            rules.map(|rule| ALL.map(|by| rule.and_then(|rule| needs(rule, by)))).collect();
        let shared: [FxHashMap<&[u8], usize>; ALL.len()] = std::array::from_fn(|way| {
            let mut rules: FxHashMap<&[u8], usize> = FxHashMap::default();
            for text in needed.iter().filter_map(|ways| ways[way].as_ref()).flatten() {
                *rules.entry(text.literal()).or_default() += 1;
            }
            rules
        });
        let mut tables: [Table; ALL.len()] = std::array::from_fn(|_| Table::default());
        let mut other = Vec::new();
        for (at, ways) in needed.iter().enumerate() {
            let crowd = |way: usize| -> Option<usize> {
                Some(ways[way].as_ref()?.iter().map(|text| shared[way][text.literal()]).sum())
            };
            let best = (0..ALL.len()).filter_map(|way| Some((crowd(way)?, way))).min();
            match best.and_then(|(_, way)| Some((way, ways[way].as_ref()?))) {
                Some((way, texts)) => tables[way].insert(texts, at as u32),
                None => other.push(at as u32),
            }
        }
        let by = ALL.into_iter().zip(tables).filter(|(_, table)| !table.is_empty()).collect();
        Self { by, other }
    }

    /// Calls for each list of places, ascending, in which rules may be that match.
    pub fn candidates(&self, facts: &Facts, mut call: impl FnMut(&[u32])) {
        for (by, table) in &self.by {
            by.values(facts, |value| table.find(value).for_each(&mut call));
        }
        call(&self.other);
    }
}

impl By {
    /// What a request has of it.
    fn values(self, facts: &Facts, mut call: impl FnMut(&[u8])) {
        match self {
            Self::Path => call(facts.head.path().as_bytes()),
            Self::Host => call(facts.head.authority.as_bytes()),
            Self::Principal => peer::names(facts.peer_identity).for_each(|name| call(name.as_bytes())),
            Self::Namespace => {
                let names = peer::names(facts.peer_identity);
                names.flat_map(peer::namespaces).for_each(|namespace| call(namespace.as_bytes()));
            }
            Self::Subject => facts.metadata.tokens.iter().for_each(|token| call(token.subject.as_bytes())),
            Self::Issuer => facts.metadata.tokens.iter().for_each(|token| call(token.issuer.as_bytes())),
        }
    }
}

/// The texts without one of which a rule cannot match; `None` if it can.
fn needs(rule: &ir::PolicyRule, by: By) -> Option<Vec<Text>> {
    match by {
        By::Path => of_each(&rule.to, |to| indexable(&to.paths, Text::new)),
        By::Host => of_each(&rule.to, |to| indexable(&to.hosts, Text::lower_case)),
        By::Principal => {
            of_each(&rule.from, |from| indexable(&from.principals, of_principal)).or_else(|| {
                of_condition(rule, &ConditionKey::SourcePrincipal, |value| match value {
                    ConditionValue::String(pattern) => of_principal(pattern).ok(),
                    _ => None,
                })
            })
        }
        By::Namespace => of_each(&rule.from, |from| {
            some(&from.namespaces, |namespace| of_namespace(namespace))
                .or_else(|| some(&from.service_accounts, |account| of_namespace(&account.namespace)))
        })
        .or_else(|| {
            of_condition(rule, &ConditionKey::SourceNamespace, |value| match value {
                ConditionValue::Name(namespace) => of_namespace(namespace),
                _ => None,
            })
        })
        .or_else(|| {
            of_condition(rule, &ConditionKey::SourceServiceAccount, |value| match value {
                ConditionValue::Account(account) => of_namespace(&account.namespace),
                _ => None,
            })
        }),
        By::Subject => of_bearer(rule, |bearer| &bearer.subject),
        By::Issuer => of_bearer(rule, |bearer| &bearer.issuer),
    }
}

/// Of every one of the alternatives, of which there must be one.
fn of_each<T>(alternatives: &[T], of: impl Fn(&T) -> Option<Vec<Text>>) -> Option<Vec<Text>> {
    if alternatives.is_empty() {
        return None;
    }
    Some(alternatives.iter().map(of).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// All of a list that is not empty.
fn some<T>(list: &[T], of: impl Fn(&T) -> Option<Text>) -> Option<Vec<Text>> {
    if list.is_empty() { None } else { list.iter().map(of).collect() }
}

fn indexable(patterns: &[StringMatch], of: fn(&StringMatch) -> Result<Text, Invalid>) -> Option<Vec<Text>> {
    some(patterns, |pattern| of(pattern).ok().filter(Text::is_indexable))
}

fn of_condition(
    rule: &ir::PolicyRule,
    key: &ConditionKey,
    of: impl Fn(&ConditionValue) -> Option<Text>,
) -> Option<Vec<Text>> {
    let mut conditions = rule.when.iter().filter(|condition| condition.key == *key);
    conditions.find_map(|condition| some(&condition.values, |value| of(value).filter(Text::is_indexable)))
}

fn of_bearer(rule: &ir::PolicyRule, part: fn(&ir::RequestPrincipal) -> &StringMatch) -> Option<Vec<Text>> {
    let text = |bearer: &ir::RequestPrincipal| Text::new(part(bearer)).ok().filter(Text::is_indexable);
    of_each(&rule.from, |from| some(&from.request_principals, text)).or_else(|| {
        of_condition(rule, &ConditionKey::RequestPrincipal, |value| match value {
            ConditionValue::Bearer(bearer) => text(bearer),
            _ => None,
        })
    })
}

/// What a name must have where an identity is to fit.
fn of_principal(pattern: &StringMatch) -> Result<Text, Invalid> {
    let scheme = |text: &str| format!("spiffe://{text}").into_bytes().into();
    match pattern {
        StringMatch::Exact(text) => Ok(Text::Exact(scheme(text))),
        StringMatch::Prefix(text) => Ok(Text::Prefix(scheme(text))),
        other => Text::new(other),
    }
}

fn of_namespace(namespace: &str) -> Option<Text> {
    (!namespace.contains(['*', '/'])).then(|| Text::Exact(namespace.as_bytes().into()))
}

/// Places of rules, ascending, by a text of which they need one.
#[derive(Debug, Default)]
struct Table {
    exact: FxHashMap<Box<[u8]>, Vec<u32>>,
    prefix: FxHashMap<Box<[u8]>, Vec<u32>>,
    suffix: FxHashMap<Box<[u8]>, Vec<u32>>,
    /// The lengths that occur in `prefix` and `suffix`, ascending.
    prefix_lengths: Vec<usize>,
    suffix_lengths: Vec<usize>,
}

impl Table {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefix.is_empty() && self.suffix.is_empty()
    }

    fn insert(&mut self, texts: &[Text], at: u32) {
        for text in texts {
            let (map, lengths) = match text {
                Text::Prefix(_) => (&mut self.prefix, Some(&mut self.prefix_lengths)),
                Text::Suffix(_) => (&mut self.suffix, Some(&mut self.suffix_lengths)),
                _ => (&mut self.exact, None),
            };
            let places = map.entry(text.literal().into()).or_default();
            if places.last() != Some(&at) {
                places.push(at);
            }
            if let Some(lengths) = lengths
                && let Err(place) = lengths.binary_search(&text.literal().len())
            {
                lengths.insert(place, text.literal().len());
            }
        }
    }

    /// The lists of all texts that fit a value.
    fn find<'a>(&'a self, value: &'a [u8]) -> impl Iterator<Item = &'a [u32]> {
        let fitting = |lengths: &'a [usize]| lengths.iter().copied().take_while(|len| *len <= value.len());
        let prefixes = fitting(&self.prefix_lengths).filter_map(|len| self.prefix.get(&value[..len]));
        let suffixes =
            fitting(&self.suffix_lengths).filter_map(|len| self.suffix.get(&value[value.len() - len..]));
        self.exact.get(value).into_iter().chain(prefixes).chain(suffixes).map(Vec::as_slice)
    }
}
