//! The entries of one host name, found by path.
//!
//! Persistent: an index with one entry more shares the rest with the index before. Regular expressions cannot be
//! indexed; each that comes before the winner is tried.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use rustc_hash::FxBuildHasher;

use super::Entry;
use super::conditions::Path;
use crate::head::RequestHead;

pub(super) type Map<K, V> = imbl::GenericHashMap<K, V, FxBuildHasher, imbl::shared_ptr::DefaultSharedPtr>;

/// Up to here a list is as fast as an index and takes a tenth of the memory: most host names have few entries.
const FEW: usize = 8;

/// All entries of one host name.
#[derive(Clone, Debug)]
pub(super) enum HostTable {
    /// By precedence.
    Few(Arc<[Arc<Entry>]>),
    Many(Arc<Index>),
}

/// More entries than a list is good for.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    exact: Map<Arc<str>, Bucket>,
    prefix: Map<Arc<str>, Bucket>,
    regex: Vector<Arc<Entry>>,
    /// How many prefixes have so many elements: a path of a thousand slashes costs no more than the deepest of ours.
    depths: Counts,
    /// How many prefixes have so many bytes: others need not be looked up.
    lengths: Counts,
    len: usize,
}

/// Entries with the same path, by precedence.
#[derive(Clone, Debug)]
enum Bucket {
    One(Arc<Entry>),
    More(Arc<Vector<Arc<Entry>>>),
}

/// A bag of numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(OrdMap<usize, usize>);

impl Default for HostTable {
    fn default() -> Self {
        Self::Few(Arc::from([]))
    }
}

impl HostTable {
    pub fn len(&self) -> usize {
        match self {
            Self::Few(list) => list.len(),
            Self::Many(index) => index.len,
        }
    }

    pub fn find(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        match self {
            Self::Few(list) => list.iter().find(|e| e.fits(head)),
            Self::Many(index) => index.find(head),
        }
    }

    /// All entries, in no order.
    pub fn entries(&self) -> Vec<&Arc<Entry>> {
        match self {
            Self::Few(list) => list.iter().collect(),
            Self::Many(index) => index.entries(),
        }
    }

    /// Adds an entry; one that is there already stays once.
    pub fn insert(&mut self, entry: &Arc<Entry>) {
        match self {
            Self::Few(list) => {
                let Err(at) = list.binary_search_by(|e| e.precedence.cmp(&entry.precedence)) else { return };
                let longer = list[..at].iter().chain([entry]).chain(&list[at..]).cloned().collect();
                *list = longer;
                if list.len() > FEW {
                    *self = Self::Many(Arc::new(list.iter().fold(Index::default(), Index::with)));
                }
            }
            Self::Many(index) => Arc::make_mut(index).insert(entry),
        }
    }

    /// Takes an entry out, if it is there.
    pub fn remove(&mut self, entry: &Arc<Entry>) {
        match self {
            Self::Few(list) => *list = list.iter().filter(|e| !Arc::ptr_eq(e, entry)).cloned().collect(),
            Self::Many(index) => {
                Arc::make_mut(index).remove(entry);
                // Not at once: a host name on the edge would be built anew with each change.
                if index.len <= FEW / 2 {
                    let mut list: Vec<_> = index.entries().into_iter().cloned().collect();
                    list.sort_by(|a, b| a.precedence.cmp(&b.precedence));
                    *self = Self::Few(list.into());
                }
            }
        }
    }
}

impl Index {
    fn find(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        let path = head.path();
        if let Some(found) = self.exact.get(path).and_then(|bucket| bucket.first(head)) {
            return Some(found);
        }
        if let Some(deepest) = self.depths.max() {
            let known = prefixes(path, deepest).filter(|prefix| self.lengths.has(prefix.len()));
            if let Some(found) = known.filter_map(|p| self.prefix.get(p)).find_map(|b| b.first(head)) {
                return Some(found);
            }
        }
        self.regex.iter().find(|e| e.fits(head))
    }

    fn entries(&self) -> Vec<&Arc<Entry>> {
        let buckets = self.exact.values().chain(self.prefix.values());
        buckets.flat_map(Bucket::iter).chain(&self.regex).collect()
    }

    fn with(mut self, entry: &Arc<Entry>) -> Self {
        self.insert(entry);
        self
    }

    fn insert(&mut self, entry: &Arc<Entry>) {
        let added = match &entry.conditions.path {
            Path::Exact(p) => insert_at(&mut self.exact, p, entry),
            Path::Prefix(p) => {
                let added = insert_at(&mut self.prefix, p, entry);
                if added {
                    self.depths.add(depth(p));
                    self.lengths.add(p.len());
                }
                added
            }
            Path::Regex(_) => insert_sorted(&mut self.regex, entry),
        };
        self.len += usize::from(added);
    }

    fn remove(&mut self, entry: &Arc<Entry>) {
        let removed = match &entry.conditions.path {
            Path::Exact(p) => remove_at(&mut self.exact, p, entry),
            Path::Prefix(p) => {
                let removed = remove_at(&mut self.prefix, p, entry);
                if removed {
                    self.depths.take(depth(p));
                    self.lengths.take(p.len());
                }
                removed
            }
            Path::Regex(_) => remove_sorted(&mut self.regex, entry),
        };
        self.len -= usize::from(removed);
    }
}

impl Bucket {
    fn first(&self, head: &RequestHead) -> Option<&Arc<Entry>> {
        match self {
            Self::One(entry) => entry.conditions.rest_fits(head).then_some(entry),
            Self::More(list) => list.iter().find(|e| e.conditions.rest_fits(head)),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let (one, more) = match self {
            Self::One(entry) => (Some(entry), None),
            Self::More(list) => (None, Some(list.iter())),
        };
        one.into_iter().chain(more.into_iter().flatten())
    }
}

fn insert_at(map: &mut Map<Arc<str>, Bucket>, path: &Arc<str>, entry: &Arc<Entry>) -> bool {
    match map.get_mut(path) {
        None => {
            map.insert(path.clone(), Bucket::One(entry.clone()));
            true
        }
        Some(Bucket::More(list)) => insert_sorted(Arc::make_mut(list), entry),
        Some(bucket) => {
            let mut list: Vector<Arc<Entry>> = bucket.iter().cloned().collect();
            let added = insert_sorted(&mut list, entry);
            if added {
                *bucket = Bucket::More(Arc::new(list));
            }
            added
        }
    }
}

fn remove_at(map: &mut Map<Arc<str>, Bucket>, path: &Arc<str>, entry: &Arc<Entry>) -> bool {
    match map.get_mut(path) {
        None => false,
        Some(Bucket::One(one)) => {
            let same = Arc::ptr_eq(one, entry);
            if same {
                map.remove(path);
            }
            same
        }
        Some(bucket @ Bucket::More(_)) => {
            let Bucket::More(list) = &mut *bucket else { return false };
            let removed = remove_sorted(Arc::make_mut(list), entry);
            if list.len() == 1 {
                let last = list[0].clone();
                *bucket = Bucket::One(last);
            }
            removed
        }
    }
}

fn insert_sorted(list: &mut Vector<Arc<Entry>>, entry: &Arc<Entry>) -> bool {
    let place = list.binary_search_by(|e| e.precedence.cmp(&entry.precedence));
    if let Err(at) = place {
        list.insert(at, entry.clone());
    }
    place.is_err()
}

fn remove_sorted(list: &mut Vector<Arc<Entry>>, entry: &Arc<Entry>) -> bool {
    let place = list.binary_search_by(|e| e.precedence.cmp(&entry.precedence));
    let same = place.ok().filter(|at| Arc::ptr_eq(&list[*at], entry));
    same.map(|at| list.remove(at)).is_some()
}

impl Counts {
    pub fn add(&mut self, number: usize) {
        *self.0.entry(number).or_insert(0) += 1;
    }

    pub fn take(&mut self, number: usize) {
        if let Some(count) = self.0.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&number);
            }
        }
    }

    pub fn has(&self, number: usize) -> bool {
        self.0.contains_key(&number)
    }

    pub fn max(&self) -> Option<usize> {
        self.0.get_max().map(|(number, _)| *number)
    }
}

/// Path elements of a prefix: 0 for `/`.
fn depth(prefix: &str) -> usize {
    if prefix == "/" { 0 } else { prefix.bytes().filter(|b| *b == b'/').count() }
}

/// The prefixes of a path by element, longest first, none with more than `deepest` elements, `/` last.
fn prefixes(path: &str, deepest: usize) -> impl Iterator<Item = &str> {
    let end = path.match_indices('/').nth(deepest).map_or(path.len(), |(at, _)| at);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_a_path() {
        for (path, deepest, expected) in [
            ("/", 9, vec!["/", "/"]),
            ("/a/b", 9, vec!["/a/b", "/a", "/"]),
            ("/a/b", 1, vec!["/a", "/"]),
            ("/a/b", 0, vec!["/"]),
            ("/a/", 9, vec!["/a/", "/a", "/"]),
            ("/a//b", 9, vec!["/a//b", "/a/", "/a", "/"]),
            ("*", 9, vec!["*", "/"]),
            ("", 9, vec!["/"]),
        ] {
            assert_eq!(prefixes(path, deepest).collect::<Vec<_>>(), expected, "{path} {deepest}");
        }
    }

    #[test]
    fn many_slashes_cost_what_the_deepest_prefix_costs() {
        assert_eq!(prefixes(&"/".repeat(4000), 3).count(), 4);
    }

    #[test]
    fn counts_forget_what_is_gone() {
        let mut counts = Counts::default();
        for number in [3, 3, 7] {
            counts.add(number);
        }
        counts.take(7);
        counts.take(3);
        assert!(counts.has(3) && !counts.has(7));
        assert_eq!(counts.max(), Some(3));
        counts.take(3);
        assert_eq!(counts.max(), None);
    }
}
