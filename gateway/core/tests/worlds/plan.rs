//! Who should get what, worked out the slow way from Envoy's documentation and nothing that the balancer has prepared:
//! what the balancer does is held against it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::{Localities, Locality};

/// What is known of an endpoint at the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub address: SocketAddr,
    pub weight: f64,
    pub level: usize,
    pub zone: Locality,
    pub draining: bool,
    pub healthy: bool,
    pub ejected: bool,
    pub degraded: bool,
}

impl Fact {
    pub fn available(&self) -> bool {
        !self.draining && self.healthy && !self.ejected
    }

    /// Left alone, and nothing else.
    pub fn only_ejected(&self) -> bool {
        !self.draining && self.healthy && self.ejected
    }
}

/// Which endpoints of a level a share of the load is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum For {
    Healthy,
    Degraded,
    /// The level is in panic: for all that do not drain.
    Everybody,
    /// There is nothing else than what was left alone on a guess.
    Guess,
}

impl For {
    pub fn fits(self, fact: &Fact) -> bool {
        match self {
            Self::Healthy => fact.available() && !fact.degraded,
            Self::Degraded => fact.available() && fact.degraded,
            Self::Everybody => !fact.draining,
            Self::Guess => fact.only_ejected(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub level: usize,
    pub of: For,
    /// Percent.
    pub load: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub facts: Vec<Fact>,
    /// Healthy endpoints by level, then degraded ones.
    pub shares: Vec<Share>,
    pub panic: Vec<bool>,
}

impl Plan {
    pub fn of(pool: &CompiledPool, now_ms: u64) -> Self {
        let mut priorities: Vec<u32> = pool.endpoints.iter().map(|e| e.ir.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let facts: Vec<Fact> = pool
            .endpoints
            .iter()
            .map(|e| Fact {
                address: e.address(),
                weight: f64::from(e.ir.weight),
                level: priorities.iter().position(|p| *p == e.ir.priority).unwrap(),
                zone: e.ir.locality.as_deref().cloned().unwrap_or_default(),
                draining: e.ir.draining || e.state.is_drained(),
                healthy: e.state.is_healthy(),
                ejected: e.state.ejected_until_ms() > now_ms,
                degraded: e.ir.degraded || e.state.is_degraded(),
            })
            .collect();
        let (shares, panic) = shares(pool, &facts, priorities.len());
        Self { facts, shares, panic }
    }

    /// Percent of the load that a level gets.
    pub fn load(&self, level: usize) -> u32 {
        self.shares.iter().filter(|s| s.level == level).map(|s| s.load).sum()
    }

    /// By zone, what part of a share's load it gets; everything in one zone if zones do not matter.
    fn zones(&self, pool: &CompiledPool, share: &Share) -> BTreeMap<Option<Locality>, f64> {
        let mut parts = BTreeMap::new();
        if let Localities::Weighted(weights) = &pool.ir.spread.localities
            && matches!(share.of, For::Healthy | For::Degraded)
        {
            for (zone, weight) in weights {
                let there =
                    || self.facts.iter().filter(|f| f.level == share.level && f.zone == *zone && !f.draining);
                let (all, fit) = (there().count(), there().filter(|f| share.of.fits(f)).count());
                let suffices =
                    fit as f64 / all.max(1) as f64 * f64::from(pool.ir.spread.overprovisioning) / 100.0;
                let part = f64::from(*weight) * suffices.min(1.0);
                if part > 0.0 {
                    parts.insert(Some(zone.clone()), part);
                }
            }
            let sum: f64 = parts.values().sum();
            for part in parts.values_mut() {
                *part /= sum;
            }
        }
        if parts.is_empty() {
            parts.insert(None, 1.0);
        }
        parts
    }

    /// The probability with which each endpoint is drawn where nothing but weights counts, or `None` if that is not known.
    pub fn chances(&self, pool: &CompiledPool) -> Option<Vec<f64>> {
        let spread = &pool.ir.spread;
        if spread.slow_start.is_some() || matches!(spread.localities, Localities::ZoneAware { .. }) {
            return None;
        }
        let mut chances = vec![0.0; self.facts.len()];
        for share in &self.shares {
            for (zone, part) in self.zones(pool, share) {
                let member = |f: &Fact| {
                    f.level == share.level && share.of.fits(f) && zone.as_ref().is_none_or(|z| *z == f.zone)
                };
                let sum: f64 = self.facts.iter().filter(|f| member(f)).map(|f| f.weight).sum();
                for (fact, chance) in self.facts.iter().zip(&mut chances) {
                    if member(fact) {
                        *chance += f64::from(share.load) / 100.0 * part * fact.weight / sum;
                    }
                }
            }
        }
        Some(chances)
    }
}

/// Envoy's pages "Priority levels", "Degraded endpoints", "Panic threshold".
fn shares(pool: &CompiledPool, facts: &[Fact], levels: usize) -> (Vec<Share>, Vec<bool>) {
    let spread = &pool.ir.spread;
    let count = |level: usize, fits: &dyn Fn(&Fact) -> bool| {
        facts.iter().filter(|f| f.level == level && !f.draining && fits(f)).count() as u32
    };
    let all: Vec<u32> = (0..levels).map(|l| count(l, &|_| true)).collect();
    let availability = |of: For| -> Vec<u32> {
        (0..levels)
            .map(|l| match all[l] {
                0 => 0,
                all => (count(l, &|f| of.fits(f)) * spread.overprovisioning / all).min(100),
            })
            .collect()
    };
    let (healthy, degraded) = (availability(For::Healthy), availability(For::Degraded));
    let total = (healthy.iter().sum::<u32>() + degraded.iter().sum::<u32>()).min(100);
    // Without outlier detection ejections are guesses, and make no panic.
    let sound = |f: &Fact| f.available() || f.only_ejected() && pool.ir.outlier.is_none();
    let panic: Vec<bool> = (0..levels)
        .map(|l| total < 100 && (count(l, &sound) * 100) < spread.panic_threshold * all[l].max(1))
        .collect();
    let mut loads = [vec![0; levels], vec![0; levels]];
    let hosts: u32 = all.iter().sum();
    let mut rest = 100;
    if panic.iter().all(|p| *p) {
        if hosts == 0 {
            return (Vec::new(), panic);
        }
        for l in 0..levels {
            loads[0][l] = all[l] * 100 / hosts;
            rest -= loads[0][l];
        }
        loads[0][all.iter().position(|n| *n > 0).unwrap()] += rest;
    } else if total > 0 {
        for (kind, available) in [&healthy, &degraded].into_iter().enumerate() {
            for l in 0..levels {
                loads[kind][l] = (available[l] * 100).div_euclid(total).min(rest);
                rest -= loads[kind][l];
            }
        }
        match healthy.iter().position(|n| *n > 0) {
            Some(first) => loads[0][first] += rest,
            None => loads[1][degraded.iter().position(|n| *n > 0).unwrap()] += rest,
        }
    }
    let mut shares = Vec::new();
    for (kind, of) in [For::Healthy, For::Degraded].into_iter().enumerate() {
        for level in 0..levels {
            let of = if panic[level] { For::Everybody } else { of };
            if loads[kind][level] > 0 {
                shares.push(Share { level, of, load: loads[kind][level] });
            }
        }
    }
    if shares.is_empty()
        && let Some(level) = (0..levels).find(|l| count(*l, &Fact::only_ejected) > 0)
    {
        shares.push(Share { level, of: For::Guess, load: 100 });
    }
    (shares, panic)
}
