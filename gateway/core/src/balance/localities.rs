//! How a priority's share is divided among localities: by weight, or by nearness (Envoy: "Locality weighted load
//! balancing", "Zone aware routing").
//!
//! Zone-aware routing asks how the gateways themselves are spread over zones. A gateway does not know its siblings, so
//! they are taken to be spread evenly over the zones that the pool has.

use std::collections::BTreeMap;

use crate::ir::{self, Locality};

/// Endpoints of one priority that stand together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// How many there are, but for those that drain.
    pub total: u32,
    /// Those among which a choice is to be made.
    pub members: Vec<u32>,
}

/// By where they stand.
pub type Zones<'a> = BTreeMap<Option<&'a Locality>, Zone>;

/// Members with their share, which add up to 1; `None` if localities do not matter. Nearness is looked at only if `near`.
pub fn divide(spread: &ir::Spread, zones: &Zones<'_>, near: bool) -> Option<Vec<(Vec<u32>, f64)>> {
    match &spread.localities {
        ir::Localities::Ignored => None,
        ir::Localities::Weighted(weights) => by_weight(weights, spread.overprovisioning, zones),
        ir::Localities::ZoneAware { own, min_endpoints, enabled } if near => {
            let shares = by_nearness(own, *min_endpoints, zones)?;
            Some(partly(shares, f64::from((*enabled).min(100)) / 100.0, zones))
        }
        ir::Localities::ZoneAware { .. } => None,
    }
}

/// The weight of a locality, 0 if nothing is said of it.
pub fn weight_of(weights: &[(Locality, u32)], locality: Option<&Locality>) -> u32 {
    let unknown = Locality::default();
    let locality = locality.unwrap_or(&unknown);
    weights.iter().find(|(l, _)| l == locality).map_or(0, |(_, weight)| *weight)
}

fn by_weight(
    weights: &[(Locality, u32)],
    overprovisioning: u32,
    zones: &Zones<'_>,
) -> Option<Vec<(Vec<u32>, f64)>> {
    let effective = |locality: Option<&Locality>, zone: &Zone| {
        let well = zone.members.len() as f64 / f64::from(zone.total.max(1));
        let suffices = (well * f64::from(overprovisioning) / 100.0).min(1.0);
        (zone.members.clone(), f64::from(weight_of(weights, locality)) * suffices)
    };
    normalised(zones.iter().map(|(locality, zone)| effective(*locality, zone)).collect())
}

fn by_nearness(own: &Locality, min_endpoints: u32, zones: &Zones<'_>) -> Option<Vec<(Vec<u32>, f64)>> {
    let there = zones.values().filter(|z| z.total > 0).count() as f64;
    let available = zones.values().map(|z| z.members.len()).sum::<usize>();
    if there < 2.0 || available < min_endpoints as usize {
        return None;
    }
    let fair = available as f64 / there;
    let (near, far): (Vec<_>, Vec<_>) =
        zones.iter().partition(|(locality, _)| locality.is_some_and(|l| is_at(own, l)));
    let here: Vec<u32> = near.iter().flat_map(|(_, zone)| zone.members.iter().copied()).collect();
    if here.is_empty() {
        return None;
    }
    let stays = (here.len() as f64 / (fair * near.len() as f64)).min(1.0);
    let spare = |zone: &Zone| (zone.members.clone(), (zone.members.len() as f64 - fair).max(0.0));
    let mut shares = vec![(here, stays)];
    if stays < 1.0 {
        let others = normalised(far.iter().map(|(_, zone)| spare(zone)).collect())?;
        shares.extend(others.into_iter().map(|(members, share)| (members, share * (1.0 - stays))));
    }
    Some(shares)
}

/// A gateway that knows only its zone is at home in the zone of that name in any region.
fn is_at(own: &Locality, other: &Locality) -> bool {
    let same = |own: &str, other: &str| own.is_empty() || own == other;
    let known = !(own.region.is_empty() && own.zone.is_empty() && own.subzone.is_empty());
    known
        && same(&own.region, &other.region)
        && same(&own.zone, &other.zone)
        && same(&own.subzone, &other.subzone)
}

/// The rest of the requests do not look at zones.
fn partly(mut shares: Vec<(Vec<u32>, f64)>, enabled: f64, zones: &Zones<'_>) -> Vec<(Vec<u32>, f64)> {
    for (_, share) in &mut shares {
        *share *= enabled;
    }
    if enabled < 1.0 {
        let mut all: Vec<u32> = zones.values().flat_map(|z| z.members.iter().copied()).collect();
        all.sort_unstable();
        shares.push((all, 1.0 - enabled));
    }
    shares
}

fn normalised(mut shares: Vec<(Vec<u32>, f64)>) -> Option<Vec<(Vec<u32>, f64)>> {
    shares.retain(|(members, share)| !members.is_empty() && *share > 0.0);
    let total: f64 = shares.iter().map(|(_, share)| share).sum();
    for (_, share) in &mut shares {
        *share /= total;
    }
    (total > 0.0).then_some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Zones `a`, `b`, ... with so many endpoints, of which so many can be chosen; the shares, in percent.
    fn check(localities: ir::Localities, zones: &[(u32, u32)], expected: Option<&[(usize, u32)]>) {
        let names: Vec<Locality> = (0..zones.len()).map(|n| Locality::of_zone(&name(n))).collect();
        let mut next = 0;
        let zones: Zones<'_> = names
            .iter()
            .zip(zones)
            .map(|(locality, (total, members))| {
                let members = (next..next + members).collect();
                next += total;
                (Some(locality), Zone { total: *total, members })
            })
            .collect();
        let spread = ir::Spread { localities, ..ir::Spread::default() };
        let shares = divide(&spread, &zones, true).map(|shares| {
            shares.iter().map(|(m, share)| (m.len(), (share * 100.0).round() as u32)).collect::<Vec<_>>()
        });
        assert_eq!(shares.as_deref(), expected);
    }

    fn name(n: usize) -> String {
        char::from(b'a' + n as u8).to_string()
    }

    fn near(enabled: u32) -> ir::Localities {
        ir::Localities::ZoneAware { own: Locality::of_zone("a"), min_endpoints: 6, enabled }
    }

    #[test]
    fn what_is_near_is_preferred_as_far_as_it_suffices() {
        // As many here as a fair share, or more: all stay.
        check(near(100), &[(3, 3), (3, 3)], Some(&[(3, 100)]));
        check(near(100), &[(5, 5), (3, 3), (1, 1)], Some(&[(5, 100)]));
        // Two of nine where three were fair: two thirds stay, the rest goes where there is room.
        check(near(100), &[(2, 2), (4, 4), (3, 3)], Some(&[(2, 67), (4, 33)]));
        check(near(100), &[(1, 1), (4, 4), (4, 4)], Some(&[(1, 33), (4, 33), (4, 33)]));
        // A zone that has failed leaves its share to the others.
        check(near(100), &[(4, 4), (4, 4), (4, 0)], Some(&[(4, 100)]));
    }

    #[test]
    fn nearness_does_not_matter() {
        check(near(100), &[(6, 6)], None);
        check(near(100), &[(3, 0), (6, 6)], None);
        check(near(100), &[(3, 3), (3, 2)], None);
        check(near(40), &[(3, 3), (3, 3)], Some(&[(3, 40), (6, 60)]));
    }

    #[test]
    fn weights_fall_with_health() {
        let weights = |w: &[u32]| {
            ir::Localities::Weighted(
                w.iter().enumerate().map(|(n, w)| (Locality::of_zone(&name(n)), *w)).collect(),
            )
        };
        check(weights(&[1, 2]), &[(10, 10), (10, 10)], Some(&[(10, 33), (10, 67)]));
        check(weights(&[1, 1]), &[(10, 10), (10, 8)], Some(&[(10, 50), (8, 50)]));
        // 1 against 1.4 / 2.
        check(weights(&[1, 1]), &[(10, 10), (10, 5)], Some(&[(10, 59), (5, 41)]));
        check(weights(&[1]), &[(10, 10), (10, 10)], Some(&[(10, 100)]));
        check(weights(&[0, 0]), &[(10, 10), (10, 10)], None);
    }
}
