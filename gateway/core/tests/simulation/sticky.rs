//! Whose a key is, and which keys move when endpoints come, go and fall ill.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledPool, PoolState, Wish};
use fieldgate_core::ir::{Balance, HashBy};

use crate::life::Life;
use crate::oracle::{self, Class, Oracle};
use crate::random::Random;

const KEYS: usize = 400;

/// What was seen last.
#[derive(Default)]
pub struct Sticky {
    pool: Option<Arc<CompiledPool>>,
    classes: Vec<Class>,
    owners: Vec<Option<SocketAddr>>,
}

impl Life {
    /// Looks whose each key is, and that no more have moved than had to.
    pub fn check_keys(&mut self, slot: usize) {
        let pool = self.pools[slot].compiled.clone();
        let before = std::mem::take(&mut self.pools[slot].sticky);
        if pool.ir.balance.hash_by().is_none() {
            return;
        }
        let classes = oracle::classes(&pool, &self.model, self.now_ms);
        let (mut keys, mut state) = (Random::new(slot as u64), PoolState::default());
        let owner = |_| {
            let wish = Wish { hash: Some(keys.next()), ..Wish::default() };
            let at = pool.pick(&mut state, self.now_ms, &mut || 0, &wish).ok()?;
            Some(pool.endpoints[at].address())
        };
        let owners: Vec<Option<SocketAddr>> = (0..KEYS).map(owner).collect();
        let after = Sticky { pool: Some(pool), classes, owners };
        let moved = before.owners.iter().zip(&after.owners).filter(|(a, b)| a != b).count();
        self.statistics.moved += moved as u64;
        if let Err(what) = compare(&before, &after, moved) {
            self.fail(&what);
        }
        self.pools[slot].sticky = after;
    }

    /// A key is with its owner, unless that has as much in flight as bounded loads allow it.
    pub fn check_hash(
        &mut self,
        worker: usize,
        slot: usize,
        pool: &CompiledPool,
        oracle: &Oracle,
        wish: &Wish<'_>,
        picked: usize,
    ) {
        let (Some(hash), Some(by)) = (wish.hash, pool.ir.balance.hash_by()) else { return };
        if !wish.tried.is_empty() || !oracle.is_regular() {
            return;
        }
        if by.balance_factor > 0 {
            return self.check_bound(worker, slot, pool, oracle.right(Some(hash), 0).endpoints, picked);
        }
        if self.step.is_multiple_of(4) {
            let of_key = Wish { hash: Some(hash), ..Wish::default() };
            let owner = pool.pick(&mut PoolState::default(), self.now_ms, &mut || 0, &of_key);
            if owner != Ok(picked) {
                self.fail(&format!("worker {worker} sent key {hash} to {picked}, which is for {owner:?}"));
            }
        }
    }

    /// Nobody gets more than its part of the bound, as long as another has room.
    fn check_bound(&self, worker: usize, slot: usize, pool: &CompiledPool, among: u64, picked: usize) {
        let side = &self.pools[slot].workers[worker];
        let factor = pool.ir.balance.hash_by().map_or(0, |by| by.balance_factor);
        let members: Vec<usize> = (0..pool.endpoints.len()).filter(|at| among >> at & 1 == 1).collect();
        let weight = |at: &usize| f64::from(pool.endpoints[*at].ir.weight);
        let sum: f64 = members.iter().map(weight).sum();
        let all = side.in_flight.values().sum::<u32>() + 1;
        let slots = (f64::from(all) * f64::from(factor) / 100.0).ceil();
        let has_room = |at: &usize| {
            let busy = side.in_flight.get(&pool.endpoints[*at].address()).copied().unwrap_or(0);
            f64::from(busy) < (slots * weight(at) / sum).ceil() + 1e-9
        };
        if !has_room(&picked) && members.iter().any(has_room) {
            self.fail(&format!("{picked} got a key beyond its bound, while others of {among:#b} have room"));
        }
    }
}

fn compare(before: &Sticky, after: &Sticky, moved: usize) -> Result<(), String> {
    let (Some(old), Some(new)) = (&before.pool, &after.pool) else { return Ok(()) };
    let same_function = match (&old.ir.balance, &new.ir.balance) {
        (Balance::RingHash { by: a, .. }, Balance::RingHash { by: b, .. })
        | (Balance::Maglev { by: a, .. }, Balance::Maglev { by: b, .. }) => {
            let plain = |by: &HashBy| HashBy { balance_factor: 0, ..by.clone() };
            with(&old.ir.balance, plain(a)) == with(&new.ir.balance, plain(b))
        }
        _ => false,
    };
    let one_level =
        |pool: &CompiledPool| pool.endpoints.windows(2).all(|w| w[0].ir.priority == w[1].ir.priority);
    if !same_function || !one_level(old) || !one_level(new) || old.ir.spread != new.ir.spread {
        return Ok(());
    }
    // Among several kinds keys are divided by number; what moves then is no matter of tables.
    let one_kind = |classes: &[Class]| {
        let n = |of: Class| classes.iter().filter(|c| **c == of).count();
        let there = classes.len() - n(Class::Draining);
        n(Class::Degraded) == 0 && n(Class::Healthy) * 100 >= there * 72 && there > 0
    };
    let simple =
        |s: &Sticky, pool: &CompiledPool| one_kind(&s.classes) && pool.ir.spread.overprovisioning >= 140;
    if !simple(before, old) || !simple(after, new) {
        return Ok(());
    }
    let (was, is) = (usable(before, old), usable(after, new));
    let parts = |pool: &CompiledPool| -> BTreeMap<SocketAddr, f64> {
        let sum: f64 = pool.endpoints.iter().map(|e| f64::from(e.ir.weight)).sum();
        pool.endpoints.iter().map(|e| (e.address(), f64::from(e.ir.weight) / sum)).collect()
    };
    let (old_parts, new_parts) = (parts(old), parts(new));
    if old_parts == new_parts {
        return only_who_changed(before, after, &was, &is);
    }
    let allowed = bound(&new.ir.balance, &old_parts, &new_parts, &was, &is) * KEYS as f64;
    let slack = 5.0 * allowed.sqrt() + 5.0;
    if moved as f64 > allowed + slack {
        return Err(format!(
            "{moved} of {KEYS} keys moved where {allowed:.0} had to, from {was:?} to {is:?} of {:?}",
            new.ir.balance
        ));
    }
    Ok(())
}

fn with(balance: &Balance, by: HashBy) -> Balance {
    let mut balance = balance.clone();
    if let Balance::RingHash { by: place, .. } | Balance::Maglev { by: place, .. } = &mut balance {
        *place = Arc::new(by);
    }
    balance
}

fn usable(of: &Sticky, pool: &CompiledPool) -> BTreeMap<SocketAddr, u32> {
    let healthy = (0..of.classes.len()).filter(|at| of.classes[*at] == Class::Healthy);
    healthy.map(|at| (pool.endpoints[at].address(), pool.endpoints[at].ir.weight)).collect()
}

/// With the same table, a key leaves only an owner that cannot have it, and comes only to one that could not.
fn only_who_changed(
    before: &Sticky,
    after: &Sticky,
    was: &BTreeMap<SocketAddr, u32>,
    is: &BTreeMap<SocketAddr, u32>,
) -> Result<(), String> {
    for (key, owners) in before.owners.iter().zip(&after.owners).enumerate() {
        if let (Some(old), Some(new)) = owners
            && old != new
            && is.contains_key(old)
            && was.contains_key(new)
        {
            return Err(format!("key {key} moved from {old} to {new}, which were and are well"));
        }
    }
    Ok(())
}

/// The part of keys that may move at the most when parts of the table change hands.
fn bound(
    balance: &Balance,
    old: &BTreeMap<SocketAddr, f64>,
    new: &BTreeMap<SocketAddr, f64>,
    was: &BTreeMap<SocketAddr, u32>,
    is: &BTreeMap<SocketAddr, u32>,
) -> f64 {
    // The entries of a ring for one endpoint, or its part of Maglev's table.
    let entries = |parts: &BTreeMap<SocketAddr, f64>, address: &SocketAddr| {
        let part = parts.get(address).copied().unwrap_or(0.0);
        let Balance::RingHash { min_size, max_size, .. } = balance else { return part };
        let least = parts.values().copied().fold(1.0, f64::min);
        let size = ((least * f64::from(*min_size)).ceil() / least).min(f64::from(*max_size));
        part * size
    };
    // Who cannot have keys leaves them to the others.
    let of_usable = |parts: &BTreeMap<SocketAddr, f64>, usable: &BTreeMap<SocketAddr, u32>| {
        usable.keys().map(|address| entries(parts, address)).sum::<f64>()
    };
    let (old_size, new_size) = (of_usable(old, was), of_usable(new, is));
    let part = |parts: &BTreeMap<SocketAddr, f64>, usable: &BTreeMap<SocketAddr, u32>, address, size| {
        if usable.contains_key(address) { entries(parts, address) / size } else { 0.0 }
    };
    let all: BTreeSet<&SocketAddr> = old.keys().chain(new.keys()).collect();
    let mut moved = 0.0;
    for address in all {
        let (before, after) = (part(old, was, address, old_size), part(new, is, address, new_size));
        moved += match (before > 0.0, after > 0.0) {
            (true, true) => {
                // New entries take keys, those that are gone give them up.
                let more = entries(new, address) - entries(old, address);
                (more / new_size).max(-more / old_size)
            }
            _ => after.max(before),
        };
    }
    // A new member of Maglev's table shifts some places of all others.
    if matches!(balance, Balance::Maglev { .. }) { moved + 0.15 } else { moved }
}
