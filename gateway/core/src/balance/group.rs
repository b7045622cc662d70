//! Endpoints among which one is drawn, with what drawing needs prepared. All of them may be chosen: who may is decided
//! when the group is made, not when it is drawn from.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use super::EndpointLocal;
use super::weighted::{Alias, below};
use crate::ir;

/// What the endpoints of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Healthy.
    Healthy,
    /// Degraded.
    Degraded,
    /// All that do not drain, whatever their health: too few are healthy.
    Panic,
    /// Left alone after failures, and all that is left.
    Guess,
}

impl Kind {
    /// Whether a choice from it needs no second thought.
    pub fn is_regular(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

/// Never empty.
#[derive(Clone, Debug)]
pub struct Group {
    /// What they are.
    pub kind: Kind,
    /// Indexes of endpoints, ascending.
    pub members: Vec<u32>,
    /// By place among `members`; empty if all are equal.
    weights: Vec<u32>,
    /// `None` if weights are equal, or not drawn by.
    alias: Option<Alias>,
    turns: Turns,
}

impl Group {
    /// `weight` and what a worker knows are by endpoint.
    pub fn new(
        kind: Kind,
        members: Vec<u32>,
        weight: impl Fn(u32) -> u32,
        balance: &ir::Balance,
        locals: &[EndpointLocal],
        random: u64,
    ) -> Self {
        let mut weights: Vec<u32> = members.iter().map(|at| weight(*at)).collect();
        if weights.windows(2).all(|w| w[0] == w[1]) {
            weights.clear();
        }
        let in_turn = matches!(balance, ir::Balance::RoundRobin);
        let turns = if in_turn { Turns::new(&members, &weights, locals, random) } else { Turns::Even(0) };
        let alias = (!in_turn && !weights.is_empty()).then(|| Alias::new(weights.iter().copied()));
        Self { kind, members, weights, alias, turns }
    }

    /// One by weight.
    pub fn draw(&self, random: u64) -> usize {
        self.members[self.draw_place(random)] as usize
    }

    fn draw_place(&self, random: u64) -> usize {
        match &self.alias {
            Some(alias) => alias.draw(random),
            None => self.draw_even(random),
        }
    }

    fn draw_even(&self, random: u64) -> usize {
        below(self.members.len() as u64, random).unwrap_or(0) as usize
    }

    /// The next in turn.
    pub fn next(&mut self) -> usize {
        self.members[self.turns.next(self.members.len())] as usize
    }

    /// Notes how far each is from its next turn, so that another group can go on from there.
    pub fn note_turns(&self, locals: &mut [EndpointLocal]) {
        self.turns.note(&self.members, locals);
    }

    /// The least busy of some: the first drawn by weight, its challengers evenly. Loads are requests in flight per
    /// weight; at equal load the first has it, so that an idle pool is used by weight.
    pub fn less_busy(
        &self,
        locals: &[EndpointLocal],
        choices: u32,
        bias: u32,
        random: &mut dyn FnMut() -> u64,
    ) -> usize {
        let mut best = self.draw_place(random());
        if bias > 0 {
            for _ in 1..choices.max(2) {
                let challenger = self.draw_even(random());
                if challenger != best && self.is_less_busy(challenger, best, locals, bias) {
                    best = challenger;
                }
            }
        }
        self.members[best] as usize
    }

    fn is_less_busy(&self, a: usize, b: usize, locals: &[EndpointLocal], bias: u32) -> bool {
        let busy = |place: usize| locals[self.members[place] as usize].in_flight;
        let (busy_a, busy_b) = (busy(a), busy(b));
        if self.weights.is_empty() {
            return busy_a < busy_b;
        }
        let (weight_a, weight_b) = (self.weights[a], self.weights[b]);
        if bias == 100 {
            return u64::from(busy_a) * u64::from(weight_b) < u64::from(busy_b) * u64::from(weight_a);
        }
        let load = |busy: u32, weight: u32| f64::from(busy).powf(f64::from(bias) / 100.0) / f64::from(weight);
        load(busy_a, weight_a) < load(busy_b, weight_b)
    }

    /// The one of two that is expected to answer first; drawn like those of `less_busy`.
    pub fn quicker(
        &self,
        locals: &[EndpointLocal],
        now_ms: u64,
        decay: Duration,
        random: &mut dyn FnMut() -> u64,
    ) -> usize {
        let (first, challenger) = (self.draw_place(random()), self.draw_even(random()));
        let cost = |place: usize| {
            let local = &locals[self.members[place] as usize];
            let weight = self.weights.get(place).copied().unwrap_or(1);
            local.latency.cost(now_ms, decay, local.in_flight) / f64::from(weight)
        };
        let best = if challenger != first && cost(challenger) < cost(first) { challenger } else { first };
        self.members[best] as usize
    }
}

/// Whose turn it is.
#[derive(Clone, Debug)]
enum Turns {
    /// All weights are equal: the place of the next.
    Even(usize),
    /// The earliest due on top.
    Weighted(BinaryHeap<Reverse<Turn>>),
}

/// Time between turns of an endpoint of weight 1; it leaves 16 bits to the greatest weight.
const UNIT: u64 = 1 << 48;
/// Due times start again from 0 here.
const LATE: u64 = 1 << 62;

/// An endpoint has its turns at `(n + 1/2) / weight` (A. Sainte-Laguë's divisors), which puts the turns of each evenly
/// between those of the others; after as many turns as the sum of weights each has had its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    due: u64,
    /// Breaks ties; every worker begins at another place.
    order: u32,
    place: u32,
    /// From turn to turn.
    stride: u64,
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Turns {
    /// Goes on from the turns that were noted. Without any it begins at a random place.
    fn new(members: &[u32], weights: &[u32], locals: &[EndpointLocal], random: u64) -> Self {
        let n = members.len();
        let noted = |place: usize| Some(locals[members[place] as usize].turn).filter(|turn| *turn > 0);
        let next = (0..n).filter_map(|place| Some((noted(place)?, place))).min();
        let start = next.map_or_else(|| below(n as u64, random).unwrap_or(0) as usize, |(_, place)| place);
        if weights.is_empty() {
            return Self::Even(start);
        }
        let turn = |(place, weight): (usize, &u32)| {
            let stride = UNIT / u64::from((*weight).max(1));
            let part = u128::from(noted(place).unwrap_or(1 << 31));
            let due = ((u128::from(stride) * part) >> 32) as u64;
            Reverse(Turn { due, order: ((place + n - start) % n) as u32, place: place as u32, stride })
        };
        Self::Weighted(weights.iter().enumerate().map(turn).collect())
    }

    fn next(&mut self, n: usize) -> usize {
        match self {
            Self::Even(place) => {
                let at = *place;
                *place = if at + 1 < n { at + 1 } else { 0 };
                at
            }
            Self::Weighted(turns) => {
                let Some(mut top) = turns.peek_mut() else { return 0 };
                let at = top.0.place as usize;
                top.0.due += top.0.stride;
                let late = top.0.due > LATE;
                drop(top);
                if late {
                    Self::start_again(turns);
                }
                at
            }
        }
    }

    #[cold]
    fn start_again(turns: &mut BinaryHeap<Reverse<Turn>>) {
        let first = turns.peek().map_or(0, |turn| turn.0.due);
        *turns = turns.drain().map(|Reverse(turn)| Reverse(Turn { due: turn.due - first, ..turn })).collect();
    }

    /// How far each is from its next turn, in 2^-32 of the time between its turns; never 0.
    fn note(&self, members: &[u32], locals: &mut [EndpointLocal]) {
        let mut note = |place: usize, part: u128| {
            if let Some(local) = locals.get_mut(members[place] as usize) {
                local.turn = part.clamp(1, u128::from(u32::MAX)) as u32;
            }
        };
        match self {
            Self::Even(next) => {
                let n = members.len();
                (0..n).for_each(|i| note((next + i) % n, ((2 * i as u128 + 1) << 31) / n as u128));
            }
            Self::Weighted(turns) => {
                let first = turns.peek().map_or(0, |turn| turn.0.due);
                for Reverse(turn) in turns {
                    note(turn.place as usize, (u128::from(turn.due - first) << 32) / u128::from(turn.stride));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_turn(weights: &[u32], locals: &[EndpointLocal]) -> Group {
        let members = (0..weights.len() as u32).collect();
        Group::new(Kind::Healthy, members, |at| weights[at as usize], &ir::Balance::RoundRobin, locals, 0)
    }

    #[test]
    fn turns_start_again_without_a_jump() {
        let mut locals = vec![EndpointLocal::default(); 2];
        let mut group = in_turn(&[1, 2], &locals);
        let counts = (0..300_000).fold([0, 0], |mut counts, _| {
            counts[group.next()] += 1;
            counts
        });
        assert_eq!(counts, [100_000, 200_000]);
        group.note_turns(&mut locals);
        assert!(locals.iter().all(|l| l.turn > 0));
    }

    proptest! {
        /// However often a group is made anew, each has its turns, to within one or two.
        #[test]
        fn a_new_group_goes_on(weights in prop::collection::vec(1..6u32, 1..8), every in 1..9usize) {
            let mut locals = vec![EndpointLocal::default(); weights.len()];
            let mut group = in_turn(&weights, &locals);
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0u32; weights.len()];
            for n in 0..total as usize * 20 {
                if n % every == 0 {
                    group.note_turns(&mut locals);
                    group = in_turn(&weights, &locals);
                }
                counts[group.next()] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(count.abs_diff(weight * 20) <= 2, "{counts:?} for {weights:?}");
            }
        }
    }
}
