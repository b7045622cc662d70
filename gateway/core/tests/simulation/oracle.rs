//! Which endpoints are right for a request, and which share each should have: Envoy's pages read aloud ("Priority
//! levels", "Panic threshold", "Degraded endpoints", "Locality weighted load balancing"), with a look at every endpoint
//! each time.

use std::collections::BTreeMap;

use fieldgate_core::balance::{CompiledPool, NoEndpoint};
use fieldgate_core::ir::{Localities, Locality};

use crate::model::Model;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Healthy,
    Degraded,
    Ejected,
    Unhealthy,
    Draining,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Healthy,
    Degraded,
    Panic,
    /// Ejected, and all that is left.
    Left,
}

/// Endpoints that get a share together. Sets of endpoints are bits.
#[derive(Clone, Debug)]
struct Group {
    kind: Kind,
    members: u64,
    /// Of all requests, in percent.
    share: f64,
}

pub struct Oracle {
    pub classes: Vec<Class>,
    weights: Vec<u32>,
    /// By priority, the first first.
    levels: Vec<u64>,
    shares: Vec<Group>,
    /// The same, divided among localities.
    groups: Vec<Group>,
    fail_in_panic: bool,
}

/// What a choice may give.
pub struct Right {
    pub endpoints: u64,
    pub errors: Vec<NoEndpoint>,
}

pub fn bits(which: impl Iterator<Item = usize>) -> u64 {
    which.fold(0, |bits, at| bits | 1 << at)
}

pub fn classes(pool: &CompiledPool, model: &Model, now_ms: u64) -> Vec<Class> {
    let class = |endpoint| match () {
        () if model.is_drained(endpoint) => Class::Draining,
        () if !model.is_healthy(endpoint) => Class::Unhealthy,
        () if model.is_ejected(endpoint, now_ms) => Class::Ejected,
        () if model.is_degraded(endpoint) => Class::Degraded,
        () => Class::Healthy,
    };
    pool.endpoints.iter().map(class).collect()
}

impl Oracle {
    pub fn new(pool: &CompiledPool, classes: Vec<Class>) -> Self {
        let mut priorities: Vec<u32> = pool.endpoints.iter().map(|e| e.ir.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let level = |p: &u32| bits((0..classes.len()).filter(|at| pool.endpoints[*at].ir.priority == *p));
        let mut oracle = Self {
            weights: pool.endpoints.iter().map(|e| e.ir.weight).collect(),
            levels: priorities.iter().map(level).collect(),
            shares: Vec::new(),
            groups: Vec::new(),
            fail_in_panic: pool.ir.spread.fail_in_panic,
            classes,
        };
        oracle.shares = oracle.divide_among_priorities(pool);
        oracle.groups =
            oracle.shares.iter().flat_map(|share| oracle.divide_among_zones(pool, share)).collect();
        oracle
    }

    fn of(&self, class: Class) -> u64 {
        bits((0..self.classes.len()).filter(|at| self.classes[*at] == class))
    }

    fn divide_among_priorities(&self, pool: &CompiledPool) -> Vec<Group> {
        let spread = &pool.ir.spread;
        let (healthy, degraded) = (self.of(Class::Healthy), self.of(Class::Degraded));
        let there = !self.of(Class::Draining);
        let n = |set: u64| u64::from(set.count_ones());
        let well = |set: u64, level: u64| match n(level & there) {
            0 => 0,
            all => (u64::from(spread.overprovisioning) * n(level & set) / all).min(100),
        };
        let sum = self.levels.iter().map(|l| well(healthy, *l) + well(degraded, *l)).sum::<u64>().min(100);
        // Ejections that nobody asked for do not make a panic.
        let guesses = if pool.ir.outlier.is_none() { self.of(Class::Ejected) } else { 0 };
        let in_panic = |level: u64| {
            let sound = n(level & (healthy | degraded | guesses));
            let percent =
                if level & there == 0 { 0.0 } else { sound as f64 * 100.0 / n(level & there) as f64 };
            sum < 100 && percent < f64::from(spread.panic_threshold)
        };
        if self.levels.iter().all(|l| in_panic(*l)) {
            return self.divide_by_number(there);
        }
        let mut shares = Vec::new();
        let mut left = 100;
        for (set, kind) in [(healthy, Kind::Healthy), (degraded, Kind::Degraded)] {
            for level in &self.levels {
                let part = (well(set, *level) * 100).checked_div(sum).unwrap_or(0).min(left);
                left -= part;
                let (kind, members) =
                    if in_panic(*level) { (Kind::Panic, level & there) } else { (kind, level & set) };
                shares.push((part, Group { kind, members, share: 0.0 }));
            }
        }
        if sum > 0 {
            let of_all = |set: u64| self.levels.iter().position(|l| well(set, *l) > 0);
            let first = of_all(healthy).or_else(|| Some(of_all(degraded)? + self.levels.len()));
            shares[first.expect("somebody is well")].0 += left;
        }
        shares.retain(|(part, _)| *part > 0);
        let mut shares: Vec<Group> =
            shares.into_iter().map(|(part, group)| Group { share: part as f64, ..group }).collect();
        if shares.is_empty() {
            let ejected = self.of(Class::Ejected);
            let level = self.levels.iter().find(|l| *l & ejected != 0);
            shares.extend(level.map(|l| Group { kind: Kind::Left, members: l & ejected, share: 100.0 }));
        }
        shares
    }

    /// When all priorities are in panic.
    fn divide_by_number(&self, there: u64) -> Vec<Group> {
        let n = |level: u64| u64::from((level & there).count_ones());
        let all: u64 = self.levels.iter().map(|l| n(*l)).sum();
        let mut parts: Vec<u64> =
            self.levels.iter().map(|l| (n(*l) * 100).checked_div(all).unwrap_or(0)).collect();
        if let Some(first) = self.levels.iter().position(|l| n(*l) > 0) {
            parts[first] += 100 - parts.iter().sum::<u64>();
        }
        let group = |(level, part): (&u64, &u64)| Group {
            kind: Kind::Panic,
            members: level & there,
            share: *part as f64,
        };
        self.levels.iter().zip(&parts).filter(|(_, part)| **part > 0).map(group).collect()
    }

    fn divide_among_zones(&self, pool: &CompiledPool, share: &Group) -> Vec<Group> {
        let weights = match &pool.ir.spread.localities {
            Localities::Weighted(weights) => weights,
            Localities::ZoneAware { own, min_endpoints, enabled } => {
                return self.prefer_zone(pool, share, &own.zone, *min_endpoints, *enabled);
            }
            Localities::Ignored => return vec![share.clone()],
        };
        let Some(level) = self.levels.iter().find(|l| *l & share.members != 0) else { return Vec::new() };
        if !matches!(share.kind, Kind::Healthy | Kind::Degraded) {
            return vec![share.clone()];
        }
        let nowhere = Locality::default();
        let is_in = |at: usize, zone: &Locality| {
            pool.endpoints[at].ir.locality.as_deref().unwrap_or(&nowhere) == zone
        };
        let effective = |(zone, weight): &(Locality, u32)| {
            let here = bits((0..self.classes.len()).filter(|at| is_in(*at, zone)));
            let all = (here & level & !self.of(Class::Draining)).count_ones();
            let well = f64::from((here & share.members).count_ones()) / f64::from(all.max(1));
            let part =
                f64::from(*weight) * (well * f64::from(pool.ir.spread.overprovisioning) / 100.0).min(1.0);
            (here & share.members, part)
        };
        let zones: Vec<(u64, f64)> =
            weights.iter().map(effective).filter(|(m, part)| *m != 0 && *part > 0.0).collect();
        let sum: f64 = zones.iter().map(|(_, part)| part).sum();
        if zones.is_empty() {
            return vec![share.clone()];
        }
        zones
            .iter()
            .map(|(members, part)| Group { members: *members, share: share.share * part / sum, ..*share })
            .collect()
    }

    /// The first priority's healthy endpoints in the own zone have the zone's part; what is beyond their number goes to
    /// zones that have more than their part.
    fn prefer_zone(
        &self,
        pool: &CompiledPool,
        share: &Group,
        own: &str,
        least: u32,
        enabled: u32,
    ) -> Vec<Group> {
        let all = || vec![share.clone()];
        let first = self.levels.first().copied().unwrap_or(0);
        if share.kind != Kind::Healthy || share.members & !first != 0 {
            return all();
        }
        let zone_of = |at: usize| pool.endpoints[at].ir.zone().map(str::to_owned);
        let there = first & !self.of(Class::Draining);
        let mut zones: BTreeMap<Option<String>, u64> = BTreeMap::new();
        for at in (0..self.classes.len()).filter(|at| there >> at & 1 == 1) {
            *zones.entry(zone_of(at)).or_default() |= share.members & 1 << at;
        }
        let near = zones.get(&Some(own.to_owned())).copied().unwrap_or(0);
        let n = |set: u64| f64::from(set.count_ones());
        if zones.len() < 2 || near == 0 || share.members.count_ones() < least {
            return all();
        }
        let fair = n(share.members) / zones.len() as f64;
        let stays = (n(near) / fair).min(1.0);
        let spare: Vec<(u64, f64)> = zones
            .values()
            .filter(|zone| **zone != near)
            .map(|zone| (*zone, n(*zone) - fair))
            .filter(|(_, spare)| *spare > 0.0)
            .collect();
        let sum: f64 = spare.iter().map(|(_, spare)| spare).sum();
        if stays < 1.0 && sum == 0.0 {
            return all();
        }
        let mut parts = vec![(near, stays)];
        parts.extend(spare.iter().map(|(zone, spare)| (*zone, (1.0 - stays) * spare / sum)));
        let enabled = f64::from(enabled) / 100.0;
        for (_, part) in &mut parts {
            *part *= enabled;
        }
        parts.push((share.members, 1.0 - enabled));
        parts.retain(|(_, part)| *part > 0.0);
        parts
            .iter()
            .map(|(members, part)| Group { members: *members, share: share.share * part, ..*share })
            .collect()
    }

    /// For a request that was sent to those of `tried`.
    pub fn right(&self, hash: Option<u64>, tried: u64) -> Right {
        let mut right = Right { endpoints: 0, errors: Vec::new() };
        let mut rest = self.groups.is_empty();
        let by_hash = hash.map(|hash| self.share_of(hash));
        let groups = match &by_hash {
            Some(Some(group)) => std::slice::from_ref(group),
            Some(None) => &[],
            None => &self.groups[..],
        };
        for group in groups {
            match group.kind {
                Kind::Panic if self.fail_in_panic => right.errors.push(NoEndpoint::Panic),
                // A retry has a better one, if there is any.
                Kind::Panic if tried != 0 && by_hash.is_none() => rest = true,
                _ if group.members & !tried == 0 => rest = true,
                _ => right.endpoints |= group.members & !tried,
            }
        }
        if rest || groups.is_empty() {
            match self.best_of_the_rest(tried) {
                0 => right.errors.push(self.why_none()),
                best => right.endpoints |= best,
            }
        }
        right
    }

    fn share_of(&self, hash: u64) -> Option<Group> {
        let mut to = 0.0;
        let share = self.shares.iter().find(|share| {
            to += share.share;
            ((hash % 100) as f64) < to
        });
        share.cloned()
    }

    fn best_of_the_rest(&self, tried: u64) -> u64 {
        let first = |of: u64| self.levels.iter().map(|l| l & of & !tried).find(|l| *l != 0);
        let panics = self.shares.iter().any(|s| s.kind == Kind::Panic) && !self.fail_in_panic;
        first(self.of(Class::Healthy))
            .or_else(|| first(self.of(Class::Degraded)))
            .or_else(|| first(self.of(Class::Ejected)))
            .or_else(|| first(!self.of(Class::Draining)).filter(|_| panics))
            .unwrap_or(0)
    }

    fn why_none(&self) -> NoEndpoint {
        let all = |these: &[Class]| self.classes.iter().all(|class| these.contains(class));
        let panics = self.shares.iter().any(|s| s.kind == Kind::Panic);
        match () {
            () if self.classes.is_empty() => NoEndpoint::Empty,
            () if all(&[Class::Draining]) => NoEndpoint::AllDraining,
            () if !panics && all(&[Class::Draining, Class::Unhealthy]) => NoEndpoint::AllUnhealthy,
            () => NoEndpoint::AllTried,
        }
    }

    /// Whether some priority's health is ignored, or ejections are.
    pub fn panics(&self) -> bool {
        !self.is_regular()
    }

    /// Whether every share is of available endpoints.
    pub fn is_regular(&self) -> bool {
        self.groups.iter().all(|g| matches!(g.kind, Kind::Healthy | Kind::Degraded))
    }

    /// Whether all of the first choice stand in one group, so that turns are exact.
    pub fn is_one_group(&self) -> bool {
        self.groups.len() == 1
    }

    /// The share of each endpoint, of 1, by weight.
    pub fn expected(&self) -> Vec<f64> {
        let mut expected = vec![0.0; self.weights.len()];
        for group in &self.groups {
            let members = || (0..self.weights.len()).filter(|at| group.members >> at & 1 == 1);
            let sum: f64 = members().map(|at| f64::from(self.weights[at])).sum();
            for at in members() {
                expected[at] += group.share / 100.0 * f64::from(self.weights[at]) / sum;
            }
        }
        expected
    }
}
