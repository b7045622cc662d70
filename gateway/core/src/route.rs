//! From a head to a rule: Gateway API's precedence as an index.
//!
//! A table belongs to one listener. The most specific host name decides first and alone: a request that fits none of its
//! rules is not found, even if a wildcard's rule would fit (as Envoy's virtual hosts work). Within a host name, rules
//! are kept by exact path, by path prefix and as regular expressions, each list sorted by [`Precedence`], so that the first
//! that fits wins. All maps are persistent: a table with one route more shares the rest with the table before.
//!
//! Query conditions look at the raw value, not percent-decoded, as Envoy does.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::sync::Arc;

use regex::Regex;
use rustc_hash::FxBuildHasher;

use crate::head::RequestHead;
use crate::ir::{Hostname, ListenerKey, Match, PathMatch, Route, ValueMatch};
use crate::snapshot::CompiledRule;

type Map<K, V> = imbl::GenericHashMap<K, V, FxBuildHasher, imbl::shared_ptr::DefaultSharedPtr>;
type Entries = Arc<[Arc<Entry>]>;

/// Bytes that a compiled regular expression may take.
const REGEX_SIZE: usize = 256 * 1024;

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

#[derive(Debug)]
struct Conditions {
    path: PathMatch,
    path_regex: Option<Regex>,
    method: Option<Arc<str>>,
    headers: Box<[(Arc<str>, Value)]>,
    query: Box<[(Arc<str>, Value)]>,
}

#[derive(Debug)]
enum Value {
    Exact(Arc<str>),
    Regex(Regex),
}

/// Who wins among entries that fit the same request, smallest first. Each field is a sentence of HTTPRouteRule's
/// documentation, in its order; regular expressions come after prefixes, longer ones first, as in Istio.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    path_kind: u8,
    path_len: Reverse<usize>,
    method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    created: i64,
    route: (Arc<str>, Arc<str>, &'static str),
    rule: usize,
    matched: usize,
}

/// Why a route cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRoute {
    /// Where: `rules[0].matches[1].path`.
    pub field: String,
    /// What.
    pub message: String,
}

/// The entries that one route contributes, compiled once and inserted into every table that it is attached to.
#[derive(Debug)]
pub struct CompiledRoute {
    /// What it was compiled from.
    pub ir: Arc<Route>,
    /// Its rules.
    pub rules: Vec<Arc<CompiledRule>>,
    entries: Vec<Arc<Entry>>,
}

impl CompiledRoute {
    /// Compiles a route whose rules are compiled.
    pub fn new(ir: Arc<Route>, rules: Vec<Arc<CompiledRule>>) -> Result<Self, BadRoute> {
        let mut entries = Vec::new();
        for (at, rule) in rules.iter().enumerate() {
            for (index, matched) in rule.ir.matches.iter().enumerate() {
                let entry = Entry::new(&ir, at, index, rule, matched).map_err(|(field, message)| {
                    BadRoute { field: format!("rules[{at}].matches[{index}].{field}"), message }
                })?;
                entries.push(Arc::new(entry));
            }
        }
        Ok(Self { ir, rules, entries })
    }
}

impl Entry {
    fn new(
        route: &Route,
        at: usize,
        index: usize,
        rule: &Arc<CompiledRule>,
        matched: &Match,
    ) -> Result<Self, (String, String)> {
        let (path_kind, path_len, prefix_len) = match &matched.path {
            PathMatch::Exact(p) => (0, p.len(), 0),
            PathMatch::Prefix(p) if &**p == "/" => (1, 1, 0),
            PathMatch::Prefix(p) => (1, p.len(), p.len()),
            PathMatch::Regex(p) => (2, p.len(), 0),
        };
        let path_regex = match &matched.path {
            PathMatch::Regex(p) => Some(full_regex(p).map_err(|e| ("path.value".to_owned(), e))?),
            _ => None,
        };
        Ok(Self {
            rule: rule.clone(),
            prefix_len,
            conditions: Conditions {
                path: matched.path.clone(),
                path_regex,
                method: matched.method.clone(),
                headers: values("headers", &matched.headers)?,
                query: values("queryParams", &matched.query)?,
            },
            precedence: Precedence {
                path_kind,
                path_len: Reverse(path_len),
                method: Reverse(matched.method.is_some()),
                headers: Reverse(matched.headers.len()),
                query: Reverse(matched.query.len()),
                created: route.created.unwrap_or(i64::MAX),
                route: (route.key.namespace.clone(), route.key.name.clone(), route.key.kind),
                rule: at,
                matched: index,
            },
        })
    }

    /// Whether the conditions beside the path hold, or which does not.
    fn rest_fits(&self, head: &RequestHead) -> Result<(), String> {
        let c = &self.conditions;
        if c.method.is_none() && c.headers.is_empty() && c.query.is_empty() {
            return Ok(());
        }
        if let Some(method) = &c.method
            && **method != *head.method.as_str()
        {
            return Err(format!("method: wants {method}, is {}", head.method.as_str()));
        }
        for (name, wanted) in &c.headers {
            let got = joined(head, name);
            if !got.as_deref().is_some_and(|v| wanted.fits(v)) {
                return Err(format!("header {name}: wants {wanted}, is {}", shown(got.as_deref())));
            }
        }
        for (name, wanted) in &c.query {
            let got = head.query().and_then(|q| parameter(q, name)).map(str::as_bytes);
            if !got.is_some_and(|v| wanted.fits(v)) {
                return Err(format!("query parameter {name}: wants {wanted}, is {}", shown(got)));
            }
        }
        Ok(())
    }

    fn fits_rest(&self, head: &RequestHead) -> bool {
        let c = &self.conditions;
        c.method.as_ref().is_none_or(|m| **m == *head.method.as_str())
            && c.headers.iter().all(|(n, wanted)| joined(head, n).is_some_and(|v| wanted.fits(&v)))
            && c.query.iter().all(|(n, wanted)| {
                head.query().and_then(|q| parameter(q, n)).is_some_and(|v| wanted.fits(v.as_bytes()))
            })
    }

    fn path_fits(&self, path: &str) -> bool {
        match &self.conditions.path {
            PathMatch::Exact(p) => **p == *path,
            PathMatch::Prefix(p) => prefix_fits(p, path),
            PathMatch::Regex(_) => self.conditions.path_regex.as_ref().is_some_and(|r| r.is_match(path)),
        }
    }

    /// The path condition, for people.
    pub fn path_text(&self) -> String {
        match &self.conditions.path {
            PathMatch::Exact(p) => format!("path = {p}"),
            PathMatch::Prefix(p) => format!("path prefix {p}"),
            PathMatch::Regex(p) => format!("path ~ {p}"),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(v) => write!(f, "`{v}`"),
            Self::Regex(r) => write!(f, "a match of `{}`", r.as_str()),
        }
    }
}

impl Value {
    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(v) => v.as_bytes() == value,
            Self::Regex(r) => std::str::from_utf8(value).is_ok_and(|v| r.is_match(v)),
        }
    }
}

fn values(
    field: &str,
    list: &[(Arc<str>, ValueMatch)],
) -> Result<Box<[(Arc<str>, Value)]>, (String, String)> {
    list.iter()
        .enumerate()
        .map(|(at, (name, value))| {
            let value = match value {
                ValueMatch::Exact(v) => Value::Exact(v.clone()),
                ValueMatch::Regex(p) => {
                    Value::Regex(full_regex(p).map_err(|e| (format!("{field}[{at}].value"), e))?)
                }
            };
            Ok((name.clone(), value))
        })
        .collect()
}

fn full_regex(pattern: &str) -> Result<Regex, String> {
    regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(REGEX_SIZE)
        .build()
        .map_err(|e| format!("not a usable regular expression: {e}"))
}

fn shown(value: Option<&[u8]>) -> String {
    value.map_or_else(|| "not there".to_owned(), |v| format!("`{}`", String::from_utf8_lossy(v)))
}

/// Several fields of one name count as one, joined (RFC 9110 section 5.3).
fn joined<'h>(head: &'h RequestHead, name: &'h str) -> Option<Cow<'h, [u8]>> {
    let mut all = head.headers.get_all(name);
    let first = all.next()?;
    let mut value = Cow::Borrowed(first);
    for more in all {
        let owned = value.to_mut();
        owned.push(b',');
        owned.extend_from_slice(more);
    }
    Some(value)
}

fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (n, v) = pair.split_once('=').unwrap_or((pair, ""));
        (n == name).then_some(v)
    })
}

fn prefix_fits(prefix: &str, path: &str) -> bool {
    prefix == "/" || path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// All routes of one listener.
#[derive(Clone, Debug, Default)]
pub struct Table {
    exact: Map<Arc<str>, HostTable>,
    wildcard: Map<Arc<str>, HostTable>,
    any: HostTable,
}

/// All routes of one host name.
#[derive(Clone, Debug, Default)]
struct HostTable {
    exact: Map<Arc<str>, Entries>,
    prefix: Map<Arc<str>, Entries>,
    regex: imbl::Vector<Arc<Entry>>,
    /// How many prefixes have so many elements, so that a path of a thousand slashes costs no more than ours do.
    depths: imbl::OrdMap<usize, usize>,
    len: usize,
}

impl Table {
    /// The entry that takes the request.
    pub fn find(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        self.host(head.host())?.find(head)
    }

    /// The most specific host name's table: exact, then the longest wildcard, then any.
    fn host(&self, host: &str) -> Option<&HostTable> {
        if let Some(table) = self.exact.get(host) {
            return Some(table);
        }
        if !self.wildcard.is_empty() {
            let mut rest = host;
            while let Some((_, suffix)) = rest.split_once('.') {
                if let Some(table) = self.wildcard.get(suffix) {
                    return Some(table);
                }
                rest = suffix;
            }
        }
        (self.any.len > 0).then_some(&self.any)
    }

    /// Adds a route where it is attached to this listener.
    pub fn insert(&mut self, listener: &ListenerKey, route: &CompiledRoute) {
        self.each_host(listener, &route.ir, |table| {
            for entry in &route.entries {
                table.insert(entry);
            }
        });
    }

    /// Takes a route out again.
    pub fn remove(&mut self, listener: &ListenerKey, route: &CompiledRoute) {
        self.each_host(listener, &route.ir, |table| {
            for entry in &route.entries {
                table.remove(entry);
            }
        });
        for attachment in route.ir.attachments.iter().filter(|a| a.listener == *listener) {
            for host in &attachment.hostnames {
                match host {
                    Some(Hostname::Exact(h)) if self.exact.get(h).is_some_and(|t| t.len == 0) => {
                        self.exact.remove(h);
                    }
                    Some(Hostname::Wildcard(h)) if self.wildcard.get(h).is_some_and(|t| t.len == 0) => {
                        self.wildcard.remove(h);
                    }
                    _ => {}
                }
            }
        }
    }

    fn each_host(&mut self, listener: &ListenerKey, route: &Route, mut act: impl FnMut(&mut HostTable)) {
        for attachment in route.attachments.iter().filter(|a| a.listener == *listener) {
            for host in &attachment.hostnames {
                match host {
                    Some(Hostname::Exact(h)) => act(self.exact.entry(h.clone()).or_default()),
                    Some(Hostname::Wildcard(h)) => act(self.wildcard.entry(h.clone()).or_default()),
                    None => act(&mut self.any),
                }
            }
        }
    }

    /// Number of entries, each counted once per host name.
    pub fn len(&self) -> usize {
        self.any.len + self.exact.values().chain(self.wildcard.values()).map(|t| t.len).sum::<usize>()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a lookup does, for people.
    pub fn explain(&self, head: &RequestHead) -> Explanation {
        let host = head.host();
        let Some(table) = self.host(host) else {
            return Explanation { host_found: false, winner: None, others: Vec::new() };
        };
        let winner = table.find(head).cloned();
        let mut entries: Vec<&Arc<Entry>> = table
            .exact
            .values()
            .chain(table.prefix.values())
            .flat_map(|e| e.iter())
            .chain(&table.regex)
            .collect();
        // The nearest first: those whose path fits, then by precedence.
        entries.sort_by_key(|e| (!e.path_fits(head.path()), &e.precedence));
        let others = entries
            .into_iter()
            .filter(|e| winner.as_ref().is_none_or(|w| !Arc::ptr_eq(w, e)))
            .take(20)
            .map(|e| NearMiss { entry: e.clone(), why: why_not(e, head, winner.as_deref()) })
            .collect();
        Explanation { host_found: true, winner, others }
    }
}

/// What a lookup found and what it passed over.
#[derive(Debug)]
pub struct Explanation {
    /// Whether any route has this host name.
    pub host_found: bool,
    /// The entry that takes the request.
    pub winner: Option<Arc<Entry>>,
    /// Entries that do not, the nearest first.
    pub others: Vec<NearMiss>,
}

/// An entry that does not take the request.
#[derive(Debug)]
pub struct NearMiss {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Why not.
    pub why: String,
}

fn why_not(entry: &Entry, head: &RequestHead, winner: Option<&Entry>) -> String {
    if !entry.path_fits(head.path()) {
        return format!("{} does not take {}", entry.path_text(), head.path());
    }
    if let Err(why) = entry.rest_fits(head) {
        return why;
    }
    let Some(winner) = winner else { return "fits".to_owned() };
    let (w, e) = (&winner.precedence, &entry.precedence);
    let reason = if w.path_kind != e.path_kind || w.path_len != e.path_len {
        format!("{} is more specific", winner.path_text())
    } else if w.method != e.method {
        "the winner names a method".to_owned()
    } else if w.headers != e.headers {
        "the winner has more header conditions".to_owned()
    } else if w.query != e.query {
        "the winner has more query conditions".to_owned()
    } else if w.created != e.created {
        "the winner's route is older".to_owned()
    } else if w.route != e.route {
        "the winner's route comes first by name".to_owned()
    } else {
        "the winner comes first in the route".to_owned()
    };
    format!("fits too, but loses: {reason}")
}

impl HostTable {
    fn find(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        let path = head.path();
        if let Some(found) = self.exact.get(path).and_then(|e| first(e, head)) {
            return Some(found);
        }
        if let Some((deepest, _)) = self.depths.get_max() {
            let found = prefixes(path, *deepest).find_map(|p| first(self.prefix.get(p)?, head));
            if found.is_some() {
                return found;
            }
        }
        self.regex.iter().find(|e| e.path_fits(path) && e.fits_rest(head))
    }

    fn insert(&mut self, entry: &Arc<Entry>) {
        self.len += 1;
        match &entry.conditions.path {
            PathMatch::Exact(p) => insert_sorted(&mut self.exact, p, entry),
            PathMatch::Prefix(p) => {
                *self.depths.entry(depth(p)).or_insert(0) += 1;
                insert_sorted(&mut self.prefix, p, entry);
            }
            PathMatch::Regex(_) => {
                let at = self
                    .regex
                    .iter()
                    .position(|e| e.precedence > entry.precedence)
                    .unwrap_or(self.regex.len());
                self.regex.insert(at, entry.clone());
            }
        }
    }

    fn remove(&mut self, entry: &Arc<Entry>) {
        let removed = match &entry.conditions.path {
            PathMatch::Exact(p) => remove_from(&mut self.exact, p, entry),
            PathMatch::Prefix(p) => {
                let removed = remove_from(&mut self.prefix, p, entry);
                let depth = depth(p);
                if removed && let Some(count) = self.depths.get(&depth).copied() {
                    if count > 1 {
                        self.depths.insert(depth, count - 1)
                    } else {
                        self.depths.remove(&depth)
                    };
                }
                removed
            }
            PathMatch::Regex(_) => {
                let at = self.regex.iter().position(|e| Arc::ptr_eq(e, entry));
                at.map(|at| self.regex.remove(at)).is_some()
            }
        };
        self.len -= usize::from(removed);
    }
}

fn first<'e>(entries: &'e Entries, head: &RequestHead) -> Option<&'e Arc<Entry>> {
    entries.iter().find(|e| e.fits_rest(head))
}

fn insert_sorted(map: &mut Map<Arc<str>, Entries>, path: &Arc<str>, entry: &Arc<Entry>) {
    let old = map.get(path);
    let at = old.map_or(0, |old| old.partition_point(|e| e.precedence < entry.precedence));
    let mut list: Vec<Arc<Entry>> = old.map(|old| old.to_vec()).unwrap_or_default();
    list.insert(at, entry.clone());
    map.insert(path.clone(), list.into());
}

fn remove_from(map: &mut Map<Arc<str>, Entries>, path: &Arc<str>, entry: &Arc<Entry>) -> bool {
    let Some(old) = map.get(path) else { return false };
    let list: Vec<Arc<Entry>> = old.iter().filter(|e| !Arc::ptr_eq(e, entry)).cloned().collect();
    let removed = list.len() < old.len();
    if list.is_empty() {
        map.remove(path);
    } else if removed {
        map.insert(path.clone(), list.into());
    }
    removed
}

/// Path elements of a prefix: 0 for `/`.
fn depth(prefix: &str) -> usize {
    if prefix == "/" { 0 } else { prefix.bytes().filter(|b| *b == b'/').count() }
}

/// The prefixes of a path by element, longest first, none with more than `deepest` elements, `/` last.
fn prefixes(path: &str, deepest: usize) -> impl Iterator<Item = &str> {
    let mut end = path.len();
    for (count, (at, _)) in path.bytes().enumerate().filter(|(_, b)| *b == b'/').enumerate() {
        if count == deepest {
            end = at;
            break;
        }
    }
    let mut rest = Some(&path[..end]);
    std::iter::from_fn(move || {
        let prefix = rest?;
        if prefix.is_empty() {
            rest = None;
            return Some("/");
        }
        rest = Some(&prefix[..prefix.rfind('/').unwrap_or(0)]);
        Some(prefix)
    })
}
