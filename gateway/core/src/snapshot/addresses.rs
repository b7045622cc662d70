//! Which listener of a bound address takes a host.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::OrdMap;
use rustc_hash::FxHashMap;

use super::CompiledListener;
use crate::ir::{Hostname, ListenerKey};
use crate::route::wildcard_suffixes;

/// A bound address with the listeners that share it.
#[derive(Debug)]
pub struct AddressTable {
    /// The address.
    pub address: SocketAddr,
    /// Most specific host name first.
    pub listeners: Vec<Arc<CompiledListener>>,
    /// Whether connections begin with TLS.
    pub tls: bool,
    index: Index,
}

/// Places in the list of listeners.
#[derive(Debug, Default)]
struct Index {
    exact: FxHashMap<Arc<str>, usize>,
    wildcard: FxHashMap<Arc<str>, usize>,
    /// Labels of the longest wildcard.
    labels: usize,
    any: Option<usize>,
}

impl AddressTable {
    fn new(address: SocketAddr, mut listeners: Vec<Arc<CompiledListener>>) -> Self {
        listeners.sort_by_key(|l| Reverse(specificity(l.ir.hostname.as_ref())));
        let tls = listeners.iter().any(|l| l.ir.tls.is_some());
        let index = Index::new(&listeners);
        Self { address, listeners, tls, index }
    }

    /// The listener with the most specific host name that takes this host.
    pub fn listener_for(&self, host: &str) -> Option<&Arc<CompiledListener>> {
        self.index.find(host).map(|at| &self.listeners[at])
    }

    fn has(&self, listeners: &[Arc<CompiledListener>]) -> bool {
        // Both come in the order of keys before they are sorted, and sorting is stable.
        let mut sorted: Vec<_> = listeners.iter().collect();
        sorted.sort_by_key(|l| Reverse(specificity(l.ir.hostname.as_ref())));
        self.listeners.len() == sorted.len()
            && self.listeners.iter().zip(sorted).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Index {
    fn new(listeners: &[Arc<CompiledListener>]) -> Self {
        let mut index = Self::default();
        for (at, listener) in listeners.iter().enumerate() {
            // Of two listeners with one host name the first by key has it.
            match &listener.ir.hostname {
                Some(Hostname::Exact(h)) => {
                    index.exact.entry(h.clone()).or_insert(at);
                }
                Some(Hostname::Wildcard(h)) => {
                    index.labels = index.labels.max(h.split('.').count());
                    index.wildcard.entry(h.clone()).or_insert(at);
                }
                None => {
                    index.any.get_or_insert(at);
                }
            }
        }
        index
    }

    fn find(&self, host: &str) -> Option<usize> {
        if !self.exact.is_empty()
            && let Some(at) = self.exact.get(host)
        {
            return Some(*at);
        }
        if !self.wildcard.is_empty()
            && let Some(at) = wildcard_suffixes(host, self.labels).find_map(|s| self.wildcard.get(s))
        {
            return Some(*at);
        }
        self.any
    }
}

/// The tables of all addresses, by address; those of `before` where nothing changed.
pub(super) fn tables(
    listeners: &OrdMap<ListenerKey, Arc<CompiledListener>>,
    before: &[Arc<AddressTable>],
) -> Vec<Arc<AddressTable>> {
    let mut bound: BTreeMap<SocketAddr, Vec<Arc<CompiledListener>>> = BTreeMap::new();
    for listener in listeners.values() {
        for address in &listener.ir.addresses {
            let list = bound.entry(*address).or_default();
            if !list.last().is_some_and(|l| Arc::ptr_eq(l, listener)) {
                list.push(listener.clone());
            }
        }
    }
    bound
        .into_iter()
        .map(|(address, listeners)| {
            let known = before.iter().find(|t| t.address == address);
            let same = known.filter(|t| t.has(&listeners)).cloned();
            same.unwrap_or_else(|| Arc::new(AddressTable::new(address, listeners)))
        })
        .collect()
}

/// Exact before wildcard before any; longer before shorter.
fn specificity(hostname: Option<&Hostname>) -> (u8, usize) {
    match hostname {
        Some(Hostname::Exact(h)) => (2, h.len()),
        Some(Hostname::Wildcard(h)) => (1, h.len()),
        None => (0, 0),
    }
}
