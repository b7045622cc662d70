//! How many connections clients hold open, and whether there may be one more.
//!
//! Counted over all workers: each accepts from a socket of its own, so a count per worker would let a source have its limit
//! once per worker. All of it is written when a connection opens or closes and never in between.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Limits, Refusal};

/// Tables of sources: workers that accept at the same time rarely meet in one.
const SHARDS: usize = 64;

/// Connections of clients.
#[derive(Debug)]
pub struct Connections {
    limits: Limits,
    open: AtomicUsize,
    addresses: Mutex<HashMap<SocketAddr, Arc<AtomicUsize>>>,
    /// Keyed at random: who connects chooses what is hashed.
    hasher: RandomState,
    sources: Box<[Mutex<HashMap<Source, usize>>]>,
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

/// Whom connections are counted for: an IPv4 address, or the first half of an IPv6 one, which is the least that one
/// subscriber has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            open: AtomicUsize::new(0),
            addresses: Mutex::default(),
            hasher: RandomState::new(),
            sources: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// All that are open.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Where connections to a listening address are counted.
    pub fn place(self: &Arc<Self>, bound: SocketAddr) -> Rc<Place> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        Rc::new(Place { all: Arc::clone(self), here: Arc::clone(addresses.entry(bound).or_default()) })
    }

    fn table(&self, source: Source) -> std::sync::MutexGuard<'_, HashMap<Source, usize>> {
        let shard = self.hasher.hash_one(source) as usize % SHARDS;
        self.sources[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_source(&self, source: Source, limit: usize) -> bool {
        let mut table = self.table(source);
        let open = table.entry(source).or_default();
        let may = *open < limit;
        if may {
            *open += 1;
        } else if *open == 0 {
            table.remove(&source);
        }
        may
    }

    fn give_source(&self, source: Source) {
        let mut table = self.table(source);
        if let Some(open) = table.get_mut(&source) {
            *open -= 1;
            if *open == 0 {
                table.remove(&source);
            }
        }
    }
}

/// A listening address, as one worker counts for it.
#[derive(Debug)]
pub struct Place {
    all: Arc<Connections>,
    here: Arc<AtomicUsize>,
}

impl Place {
    /// The right to one connection more.
    pub fn admit(self: &Rc<Self>, peer: IpAddr) -> Result<Permit, Refusal> {
        let limits = &self.all.limits;
        take(&self.all.open, limits.connections).ok_or(Refusal::Connections)?;
        // From here on the permit gives back what it holds.
        let mut permit = Permit { place: Rc::clone(self), here: false, source: None };
        if let Some(limit) = limits.per_address {
            take(&self.here, Some(limit)).ok_or(Refusal::Address)?;
            permit.here = true;
        }
        if let Some(limit) = limits.per_source {
            let source = Source::of(peer);
            if !self.all.take_source(source, limit) {
                return Err(Refusal::Source);
            }
            permit.source = Some(source);
        }
        Ok(permit)
    }
}

/// One more, unless that is more than the limit.
fn take(count: &AtomicUsize, limit: Option<usize>) -> Option<()> {
    let before = count.fetch_add(1, Ordering::Relaxed);
    if limit.is_some_and(|limit| before >= limit) {
        count.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    Some(())
}

/// The right to a connection. It counts for as long as this lives.
#[derive(Debug)]
pub struct Permit {
    place: Rc<Place>,
    here: bool,
    source: Option<Source>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Place { all, here } = &*self.place;
        if let Some(source) = self.source {
            all.give_source(source);
        }
        if self.here {
            here.fetch_sub(1, Ordering::Relaxed);
        }
        all.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(all: usize, address: usize, source: usize) -> Arc<Connections> {
        Arc::new(Connections::new(Limits {
            connections: Some(all),
            per_address: Some(address),
            per_source: Some(source),
            ..Limits::default()
        }))
    }

    fn bound(port: u16) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], port))
    }

    fn admit(place: &Rc<Place>, peer: &str) -> Result<Permit, Refusal> {
        place.admit(peer.parse().unwrap())
    }

    #[test]
    fn each_limit_holds_and_nothing_is_lost_by_a_refusal() {
        let all = connections(4, 3, 2);
        let (one, two) = (all.place(bound(1)), all.place(bound(2)));
        let mut held = vec![admit(&one, "10.0.0.1").unwrap(), admit(&one, "10.0.0.1").unwrap()];
        assert_eq!(admit(&one, "10.0.0.1").unwrap_err(), Refusal::Source);
        held.push(admit(&one, "10.0.0.2").unwrap());
        assert_eq!(admit(&one, "10.0.0.2").unwrap_err(), Refusal::Address);
        assert_eq!(admit(&two, "10.0.0.1").unwrap_err(), Refusal::Source, "a source counts over addresses");
        held.push(admit(&two, "10.0.0.2").unwrap());
        assert_eq!(admit(&two, "10.0.0.3").unwrap_err(), Refusal::Connections);
        held.remove(0);
        held.push(admit(&two, "10.0.0.1").unwrap());
        assert_eq!(all.open(), 4);
        held.clear();
        assert_eq!(all.open(), 0);
        assert!(all.sources.iter().all(|table| table.lock().unwrap().is_empty()), "no table grows for ever");
        assert!([&one, &two].iter().all(|place| place.here.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_source_is_an_address_or_the_network_of_one() {
        let same = |a: &str, b: &str| Source::of(a.parse().unwrap()) == Source::of(b.parse().unwrap());
        assert!(same("10.0.0.1", "::ffff:10.0.0.1"));
        assert!(same("2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
        assert!(!same("2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(!same("10.0.0.1", "10.0.0.2"));
        assert!(!same("0.0.0.1", "::1"));
    }

    #[test]
    fn workers_count_together() {
        let all = connections(usize::MAX, 100, 150);
        let count = |port: u16| {
            std::thread::scope(|scope| {
                let admit_many = || {
                    let place = all.place(bound(port));
                    let held: Vec<_> = (0..100).filter_map(|_| admit(&place, "10.0.0.1").ok()).collect();
                    let admitted = held.len();
                    std::mem::forget(held);
                    admitted
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(admit_many)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
            })
        };
        assert_eq!(count(1), 100);
        assert_eq!(count(2), 50);
    }
}
