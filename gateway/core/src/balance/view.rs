//! Who may be chosen now: what a worker derives from the state of all endpoints, so that a choice has to look at none.
//!
//! Made anew when an endpoint's state has changed or time has come (an ejection ends, a slow start goes on), in time
//! linear in the endpoints, by the worker that is about to choose.

use super::endpoint::EndpointState;
use super::group::{Group, Kind};
use super::levels::{Count, Loads, loads};
use super::localities::{Zone, Zones, divide};
use super::weighted::Alias;
use super::{CompiledEndpoint, CompiledPool, EndpointLocal, slow_start};
use crate::ir;

/// Belongs to one worker.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Of the pool's endpoints, when it was made.
    epoch: u64,
    /// It holds until then.
    expires_ms: u64,
    /// What each endpoint is.
    pub classes: Vec<Class>,
    /// What each priority gets, healthy endpoints of all priorities first.
    pub shares: Vec<Share>,
    /// Among which to draw.
    pub groups: Vec<Group>,
    /// By share among groups; `None` if there is but one.
    choice: Option<Alias>,
}

/// What an endpoint is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It can be chosen.
    Healthy,
    /// It can be chosen if healthy ones do not suffice.
    Degraded,
    /// It is left alone after failures.
    Ejected,
    /// Active checks fail.
    Unhealthy,
    /// It gets no new requests.
    Draining,
}

impl Class {
    fn of(endpoint: &CompiledEndpoint, ejected: bool) -> Self {
        let state: &EndpointState = &endpoint.state;
        if endpoint.is_draining() {
            Self::Draining
        } else if !state.is_healthy() {
            Self::Unhealthy
        } else if ejected {
            Self::Ejected
        } else if endpoint.ir.degraded || state.is_degraded() {
            Self::Degraded
        } else {
            Self::Healthy
        }
    }

    /// Whether nothing speaks against it.
    pub fn is_available(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }

    /// Whether it belongs to such a group.
    pub fn is_of(self, kind: Kind) -> bool {
        match kind {
            Kind::Healthy => self == Self::Healthy,
            Kind::Degraded => self == Self::Degraded,
            Kind::Guess => self == Self::Ejected,
            Kind::Panic => self != Self::Draining,
        }
    }
}

/// What some endpoints of a priority get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which priority; an index of the pool's levels.
    pub level: usize,
    /// Which of its endpoints.
    pub kind: Kind,
    /// How much.
    pub percent: u32,
}

impl View {
    /// Looks at every endpoint.
    pub fn new(
        pool: &CompiledPool,
        locals: &[EndpointLocal],
        now_ms: u64,
        random: &mut dyn FnMut() -> u64,
    ) -> Self {
        // Before the states: what changes from here on makes another epoch.
        let epoch = pool.shared.epoch();
        let mut expires_ms = u64::MAX;
        let mut classify = |endpoint: &CompiledEndpoint| {
            let until = endpoint.state.ejected_until_ms();
            if until > now_ms {
                expires_ms = expires_ms.min(until);
            }
            Class::of(endpoint, until > now_ms)
        };
        let classes: Vec<Class> = pool.endpoints.iter().map(&mut classify).collect();
        let weights = slow_start::weights(pool, &classes, now_ms, &mut expires_ms);
        let weight = |at: u32| match &weights {
            Some(weights) => weights[at as usize],
            None => pool.endpoints[at as usize].ir.weight,
        };
        let mut view = Self { epoch, expires_ms, shares: shares(pool, &classes), classes, ..Self::default() };
        let mut parts: Vec<u32> = Vec::new();
        for share in &view.shares {
            for (members, part) in view.divide(pool, share) {
                // In hundred-millionths of all requests.
                let part = (f64::from(share.percent) * part * 1e6).round() as u32;
                if part > 0 {
                    parts.push(part);
                    let group = Group::new(share.kind, members, weight, &pool.ir.balance, locals, random());
                    view.groups.push(group);
                }
            }
        }
        view.choice = (parts.len() > 1).then(|| Alias::new(parts.iter().copied()));
        view
    }

    /// Whether nothing has happened since.
    pub fn holds(&self, pool: &CompiledPool, now_ms: u64) -> bool {
        self.epoch == pool.shared.epoch() && now_ms < self.expires_ms
    }

    /// It has to be made anew.
    pub fn expire(&mut self) {
        self.expires_ms = 0;
    }

    /// The group to draw from.
    pub fn draw_group(&self, random: &mut dyn FnMut() -> u64) -> usize {
        self.choice.as_ref().map_or(0, |choice| choice.draw(random()))
    }

    /// Whether some priority's health is ignored.
    pub fn is_panic(&self) -> bool {
        self.shares.iter().any(|share| share.kind == Kind::Panic)
    }

    /// Members of a share, by locality, with the part of each.
    fn divide(&self, pool: &CompiledPool, share: &Share) -> Vec<(Vec<u32>, f64)> {
        let endpoints = &pool.levels[share.level];
        let is_member = |at: &u32| self.classes[*at as usize].is_of(share.kind);
        if share.kind.is_regular() && pool.ir.spread.localities != ir::Localities::Ignored {
            let mut zones = Zones::new();
            for at in endpoints.iter().filter(|at| self.classes[**at as usize] != Class::Draining) {
                let locality = pool.endpoints[*at as usize].ir.locality.as_deref();
                let zone: &mut Zone = zones.entry(locality).or_default();
                zone.total += 1;
                if is_member(at) {
                    zone.members.push(*at);
                }
            }
            // As in Envoy, nearness is for the first choice only.
            let near = share.level == 0 && share.kind == Kind::Healthy;
            if let Some(divided) = divide(&pool.ir.spread, &zones, near) {
                return divided;
            }
        }
        let members: Vec<u32> = endpoints.iter().copied().filter(is_member).collect();
        if members.is_empty() { Vec::new() } else { vec![(members, 1.0)] }
    }
}

/// Divides all requests among priorities, and their healthy and degraded endpoints.
fn shares(pool: &CompiledPool, classes: &[Class]) -> Vec<Share> {
    let (spread, levels) = (&pool.ir.spread, &pool.levels);
    // Envoy has no ejections but those that were asked for. Others are guesses of ours and make no panic.
    let guesses = pool.ir.outlier.is_none();
    let counts: Vec<Count> = levels.iter().map(|level| count(level, classes, guesses)).collect();
    let Loads { healthy, degraded, panic } = loads(&counts, spread.overprovisioning, spread.panic_threshold);
    let share = |regular: Kind, loads: &[u32]| -> Vec<Share> {
        let of = |(level, percent): (usize, &u32)| Share {
            level,
            kind: if panic[level] { Kind::Panic } else { regular },
            percent: *percent,
        };
        loads.iter().enumerate().map(of).filter(|share| share.percent > 0).collect()
    };
    let mut shares = share(Kind::Healthy, &healthy);
    shares.extend(share(Kind::Degraded, &degraded));
    if shares.is_empty() {
        let ejected = |level: &Vec<u32>| level.iter().any(|at| classes[*at as usize] == Class::Ejected);
        let level = levels.iter().position(ejected);
        shares.extend(level.map(|level| Share { level, kind: Kind::Guess, percent: 100 }));
    }
    shares
}

fn count(level: &[u32], classes: &[Class], guesses: bool) -> Count {
    let mut count = Count::default();
    for at in level {
        let class = classes[*at as usize];
        count.total += u32::from(class != Class::Draining);
        count.healthy += u32::from(class == Class::Healthy);
        count.degraded += u32::from(class == Class::Degraded);
        count.sound += u32::from(class.is_available() || guesses && class == Class::Ejected);
    }
    count
}
