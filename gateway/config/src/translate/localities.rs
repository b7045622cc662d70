//! What Istio and Kubernetes say of localities, to priorities and weights of endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fieldgate_core::ir::{Endpoint, Endpoints, Localities, Locality, Pool};

use crate::kinds::destination_rule::{Failover, LocalitySetting};

/// Puts a DestinationRule's `localityLbSetting` on a pool, as Istio does: shares, else priorities by distance if
/// endpoints are ejected, which is what makes one fail over.
pub(crate) fn apply(setting: Option<&LocalitySetting>, ejects: bool, own: &Locality, pool: &mut Pool) {
    let default = LocalitySetting::default();
    let setting = setting.unwrap_or(&default);
    if setting.enabled == Some(false) {
        return;
    }
    if !setting.distribute.is_empty() {
        distribute(setting, own, pool);
    } else if ejects && !setting.failover_priority.is_empty() {
        let labels: Vec<_> = setting.failover_priority.iter().map_while(|l| part_of_label(l)).collect();
        set_priorities(&mut pool.endpoints, |e| by_labels(&labels, own, e));
    } else if ejects {
        set_priorities(&mut pool.endpoints, |e| distance(own, e, &setting.failover));
    }
}

/// The gateway's own zone first.
pub(crate) fn prefer_own_zone(own: &Locality, endpoints: &mut Endpoints) {
    set_priorities(endpoints, |e| u32::from(e.zone() != Some(&*own.zone)));
}

/// The part of a locality that a label of `failoverPriority` means, and the value that it must have if it says one.
pub(crate) fn part_of_label(label: &str) -> Option<(Part, Option<&str>)> {
    let (name, value) = label.split_once('=').map_or((label, None), |(name, value)| (name, Some(value)));
    let part: Part = match name {
        "topology.kubernetes.io/region" => |l| &l.region,
        "topology.kubernetes.io/zone" => |l| &l.zone,
        "topology.istio.io/subzone" => |l| &l.subzone,
        _ => return None,
    };
    Some((part, value))
}

/// A part of a locality.
pub(crate) type Part = fn(&Locality) -> &Arc<str>;

/// How many of the labels are left once one is not the gateway's.
fn by_labels(labels: &[(Part, Option<&str>)], own: &Locality, endpoint: &Endpoint) -> u32 {
    let there = endpoint.locality.as_deref().cloned().unwrap_or_default();
    let same = |(part, value): &&(Part, Option<&str>)| {
        *part(&there) == value.map_or_else(|| part(own).clone(), Into::into)
    };
    (labels.len() - labels.iter().take_while(same).count()) as u32
}

/// Istio: 0 is the same place, 1 the same zone, 2 the same region, 3 the region that is next, 4 the others.
fn distance(own: &Locality, endpoint: &Endpoint, failover: &[Failover]) -> u32 {
    let there = endpoint.locality.as_deref().cloned().unwrap_or_default();
    if there.region != own.region {
        let next = failover.iter().find(|f| *f.from == *own.region);
        return if next.is_none_or(|f| *f.to == *there.region) { 3 } else { 4 };
    }
    match (there.zone == own.zone, there.subzone == own.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

fn set_priorities(endpoints: &mut Endpoints, priority: impl Fn(&Endpoint) -> u32) {
    let found: BTreeSet<u32> = all(endpoints).map(&priority).collect();
    let ranks: BTreeMap<u32, u32> = found.into_iter().zip(0..).collect();
    let (fixed, names) = match endpoints {
        Endpoints::Static(fixed) => (fixed, &mut Vec::new()),
        Endpoints::Dns { fixed, names } => (fixed, names),
    };
    for endpoint in fixed.iter_mut().chain(names.iter_mut().map(|n| &mut n.endpoint)) {
        endpoint.priority = ranks[&priority(endpoint)];
    }
}

/// All endpoints, names included.
pub(crate) fn all(endpoints: &Endpoints) -> impl Iterator<Item = &Endpoint> {
    let (fixed, names) = match endpoints {
        Endpoints::Static(fixed) => (fixed, &[][..]),
        Endpoints::Dns { fixed, names } => (fixed, &names[..]),
    };
    fixed.iter().chain(names.iter().map(|n| &n.endpoint))
}

/// Shares of localities; within what one entry names, by the weight of the endpoints that are there.
fn distribute(setting: &LocalitySetting, own: &Locality, pool: &mut Pool) {
    let Some(rule) = setting.distribute.iter().find(|d| covers(&d.from, own)) else { return };
    let mut there: BTreeMap<Locality, u64> = BTreeMap::new();
    for endpoint in all(&pool.endpoints) {
        let locality = endpoint.locality.as_deref().cloned().unwrap_or_default();
        *there.entry(locality).or_default() += u64::from(endpoint.weight);
    }
    // The more specific pattern has a locality, so that none is counted twice.
    let pattern_of = |l: &Locality| rule.to.keys().filter(|p| covers(p, l)).max_by_key(|p| p.len()).cloned();
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (locality, weight) in &there {
        if let Some(pattern) = pattern_of(locality) {
            *sums.entry(pattern).or_default() += weight;
        }
    }
    let share = |(locality, weight): (&Locality, &u64)| {
        let pattern = pattern_of(locality)?;
        // In hundredths of a percent, so that localities of one entry differ by their weights.
        let share = u64::from(rule.to[&pattern]) * 100 * weight / sums[&pattern].max(1);
        Some((locality.clone(), share as u32))
    };
    pool.spread.localities = Localities::Weighted(there.iter().filter_map(share).collect());
}

/// `region/zone/*`, `region`, `*`.
fn covers(pattern: &str, locality: &Locality) -> bool {
    let parts = [&*locality.region, &*locality.zone, &*locality.subzone];
    pattern.split('/').zip(parts).all(|(wanted, part)| wanted == "*" || wanted == part)
}
