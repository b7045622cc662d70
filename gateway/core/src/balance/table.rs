//! Tables that say whose a hash is: ketama's ring and Maglev's table, made as Envoy makes them, so that keys stay where
//! they are when a pool moves from there to here.
//!
//! Made when a snapshot is compiled, of all endpoints of a priority, whatever their health: Envoy makes a table of the
//! healthy ones at each change of health, by which keys move between healthy endpoints too. Here an endpoint that cannot
//! have a key is passed over when it is looked up, so that only its own keys move, and come back to it. While all are
//! healthy the two agree.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::localities::weight_of;
use super::{CompiledEndpoint, CompiledPool};
use crate::ir;
use crate::split::hash::xxh64;

/// Looks in Maglev's table after the first, before its neighbours are looked at one by one.
const PROBES: u64 = 64;

/// One priority's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// Entries by position.
    Ring(Vec<Entry>),
    /// Indexes of endpoints.
    Maglev(Vec<u32>),
}

/// A place on the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    position: u64,
    endpoint: u32,
}

/// Those of all priorities.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// By level; none if the pool does not hash.
    pub levels: Arc<[Table]>,
    /// Of all that they are made of.
    made_of: u64,
}

impl Tables {
    /// Takes over those of `prev` if they would be the same.
    pub fn new(
        ir: &ir::Pool,
        endpoints: &[CompiledEndpoint],
        levels: &[Vec<u32>],
        prev: Option<&CompiledPool>,
    ) -> Self {
        if ir.balance.hash_by().is_none() {
            return Self::default();
        }
        let weighted: Vec<Vec<Weighted<'_>>> =
            levels.iter().map(|level| normalised(&ir.spread.localities, endpoints, level)).collect();
        let made_of = made_of(&ir.balance, &weighted);
        if let Some(prev) = prev.filter(|prev| prev.tables.made_of == made_of) {
            return prev.tables.clone();
        }
        let table = |endpoints: &Vec<Weighted<'_>>| match ir.balance {
            ir::Balance::Maglev { table_size, .. } => Table::maglev(endpoints, u64::from(table_size)),
            ir::Balance::RingHash { function, min_size, max_size, .. } => {
                Table::ring(endpoints, function, min_size, max_size)
            }
            _ => Table::Maglev(Vec::new()),
        };
        Self { levels: weighted.iter().map(table).collect(), made_of }
    }
}

/// An endpoint with its part of a table; all parts add up to 1.
struct Weighted<'a> {
    key: Key<'a>,
    endpoint: u32,
    part: f64,
}

type Key<'a> = std::borrow::Cow<'a, str>;

fn normalised<'a>(
    localities: &ir::Localities,
    endpoints: &'a [CompiledEndpoint],
    level: &[u32],
) -> Vec<Weighted<'a>> {
    let all = |of: &[u32], part: f64| -> Vec<Weighted<'a>> {
        let weight = |at: u32| f64::from(endpoints[at as usize].ir.weight);
        let sum: f64 = of.iter().map(|at| weight(*at)).sum();
        let one = |at: &u32| Weighted {
            key: key(&endpoints[*at as usize]),
            endpoint: *at,
            part: weight(*at) * part / sum,
        };
        of.iter().map(one).collect()
    };
    let ir::Localities::Weighted(weights) = localities else { return all(level, 1.0) };
    let mut places: FxHashMap<Option<&ir::Locality>, usize> = FxHashMap::default();
    let mut zones: Vec<(u32, Vec<u32>)> = Vec::new();
    for at in level {
        let locality = endpoints[*at as usize].ir.locality.as_deref();
        let place = *places.entry(locality).or_insert(zones.len());
        if place == zones.len() {
            zones.push((weight_of(weights, locality), Vec::new()));
        }
        zones[place].1.push(*at);
    }
    let sum: f64 = zones.iter().map(|(weight, _)| f64::from(*weight)).sum();
    if sum == 0.0 {
        return all(level, 1.0);
    }
    zones.retain(|(weight, _)| *weight > 0);
    zones.iter().flat_map(|(weight, of)| all(of, f64::from(*weight) / sum)).collect()
}

fn key(endpoint: &CompiledEndpoint) -> Key<'_> {
    match &endpoint.ir.hash_key {
        Some(key) => Key::Borrowed(key),
        None => Key::Owned(endpoint.address().to_string()),
    }
}

fn made_of(balance: &ir::Balance, levels: &[Vec<Weighted<'_>>]) -> u64 {
    let mut text = match balance {
        ir::Balance::RingHash { function, min_size, max_size, .. } => {
            format!("{function:?} {min_size} {max_size}").into_bytes()
        }
        ir::Balance::Maglev { table_size, .. } => format!("{table_size}").into_bytes(),
        _ => Vec::new(),
    };
    for level in levels {
        text.push(b'\n');
        for Weighted { key, endpoint, part } in level {
            text.extend_from_slice(&(key.len() as u64).to_le_bytes());
            text.extend_from_slice(key.as_bytes());
            text.extend_from_slice(&endpoint.to_le_bytes());
            text.extend_from_slice(&part.to_bits().to_le_bytes());
        }
    }
    // 0 is no tables.
    xxh64(&text, 0).max(1)
}

impl Table {
    /// Of `<key>_0`, `<key>_1`, ... as many for each as its part of the size, rounded with what the others have left.
    fn ring(endpoints: &[Weighted<'_>], function: ir::HashFunction, min_size: u32, max_size: u32) -> Self {
        let hash = match function {
            ir::HashFunction::XxHash => |text: &[u8]| xxh64(text, 0),
            ir::HashFunction::Murmur2 => murmur2,
        };
        let least = endpoints.iter().map(|e| e.part).fold(1.0, f64::min);
        // The least gets a whole number.
        let size = ((least * f64::from(min_size)).ceil() / least).min(f64::from(max_size));
        let mut ring = Vec::with_capacity(size.ceil() as usize);
        let mut target = 0.0;
        for Weighted { key, endpoint, part } in endpoints {
            target += size * part;
            let mut replica = 0u64;
            while (ring.len() as f64) < target {
                let position = hash(format!("{key}_{replica}").as_bytes());
                ring.push(Entry { position, endpoint: *endpoint });
                replica += 1;
            }
        }
        ring.sort_by_key(|entry| entry.position);
        Self::Ring(ring)
    }

    /// Each in turn takes the next free place of its own permutation of the table; lighter ones miss turns.
    fn maglev(endpoints: &[Weighted<'_>], size: u64) -> Self {
        const FREE: u32 = u32::MAX;
        let size = size.max(2);
        let heaviest = endpoints.iter().map(|e| e.part).fold(0.0, f64::max);
        let mut sorted: Vec<&Weighted<'_>> = endpoints.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        let mut takers: Vec<Taker> = sorted.into_iter().map(|of| Taker::new(of, size)).collect();
        if takers.is_empty() {
            return Self::Maglev(Vec::new());
        }
        let mut table = vec![FREE; size as usize];
        let mut left = size;
        let mut round = 0.0;
        while left > 0 {
            round += 1.0;
            for taker in &mut takers {
                if left == 0 || round * taker.part < taker.target {
                    continue;
                }
                taker.target += heaviest;
                let tries = (0..size).find(|_| {
                    let free = table[taker.at as usize] == FREE;
                    if !free {
                        taker.step(size);
                    }
                    free
                });
                // Where the size is not a prime, a permutation may not reach all places.
                let place = match tries {
                    Some(_) => Some(taker.at as usize),
                    None => table.iter().position(|of| *of == FREE),
                };
                if let Some(place) = place {
                    table[place] = taker.endpoint;
                    taker.step(size);
                    left -= 1;
                }
            }
        }
        Self::Maglev(table)
    }

    /// Whose the hash is: the first usable one on the way from it.
    pub fn find(&self, hash: u64, usable: &mut dyn FnMut(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(ring) => {
                let from = ring.partition_point(|entry| entry.position < hash);
                let (before, after) = ring.split_at(from);
                after.iter().chain(before).map(|entry| entry.endpoint as usize).find(|at| usable(*at))
            }
            Self::Maglev(table) => {
                let size = table.len() as u64;
                let probe = |n: u64| if n == 0 { hash } else { scattered(hash, n) };
                let from = probe(PROBES).checked_rem(size)? as usize;
                let (before, after) = table.split_at(from);
                (0..PROBES)
                    .map(|n| table[(probe(n) % size) as usize])
                    .chain(after.iter().chain(before).copied())
                    .map(|at| at as usize)
                    .find(|at| usable(*at))
            }
        }
    }
}

/// An endpoint on its way through Maglev's table.
struct Taker {
    endpoint: u32,
    part: f64,
    target: f64,
    at: u64,
    skip: u64,
}

impl Taker {
    fn new(of: &Weighted<'_>, size: u64) -> Self {
        let key = of.key.as_bytes();
        let (at, skip) = (xxh64(key, 0) % size, xxh64(key, 1) % (size - 1) + 1);
        Self { endpoint: of.endpoint, part: of.part, target: 0.0, at, skip }
    }

    fn step(&mut self, size: u64) {
        self.at = (self.at + self.skip) % size;
    }
}

/// The `n`th other hash of a hash.
fn scattered(hash: u64, n: u64) -> u64 {
    let mixed = (hash ^ n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (mixed ^ (mixed >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB) ^ (mixed >> 32)
}

/// `MurmurHash2` of 64 bits with the seed of libstdc++'s `std::hash`.
pub fn murmur2(data: &[u8]) -> u64 {
    const SEED: u64 = 0xC70F_6907;
    const FACTOR: u64 = 0xC6A4_A793_5BD1_E995;
    let mix = |v: u64| v ^ (v >> 47);
    let (words, rest) = data.as_chunks::<8>();
    let mut hash = SEED ^ (data.len() as u64).wrapping_mul(FACTOR);
    for word in words {
        let word = mix(u64::from_le_bytes(*word).wrapping_mul(FACTOR)).wrapping_mul(FACTOR);
        hash = (hash ^ word).wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ word).wrapping_mul(FACTOR);
    }
    mix(mix(hash).wrapping_mul(FACTOR))
}
