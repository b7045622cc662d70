//! The invariants of choosing: held at every single choice, and over all of them together.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledPool, NoEndpoint, PoolState, Wish};
use fieldgate_core::ir::{Balance, Endpoints, Localities, Locality};

use crate::plan::{Fact, For, Plan};
use crate::settings::{ADDRESSES, place};

/// One choice.
pub struct Choice<'a> {
    pub pool: &'a Arc<CompiledPool>,
    pub now_ms: u64,
    pub wish: &'a Wish<'a>,
    /// Of this worker, before.
    pub in_flight: &'a BTreeMap<SocketAddr, u32>,
    pub got: Result<usize, NoEndpoint>,
}

/// What is expected of chance, and what came. A sum of independent draws, each with its own probability.
#[derive(Clone, Copy, Default)]
struct Account {
    expected: f64,
    variance: f64,
    seen: f64,
}

impl Account {
    fn add(&mut self, chance: f64, hit: bool) {
        self.expected += chance;
        self.variance += chance * (1.0 - chance);
        self.seen += f64::from(u8::from(hit));
    }

    fn check(&self, of: &str) {
        let bound = 6.0 * self.variance.sqrt() + 3.0;
        assert!(
            (self.seen - self.expected).abs() <= bound,
            "{of}: {} where {:.1} were due, give or take {bound:.1}",
            self.seen,
            self.expected
        );
    }
}

/// Of one world.
#[derive(Default)]
pub struct Watch {
    levels: [Account; 4],
    zones: BTreeMap<Locality, Account>,
    endpoints: [Account; ADDRESSES],
    pub counts: BTreeMap<&'static str, u64>,
    turns: BTreeMap<usize, Turns>,
    homes: Homes,
}

impl Watch {
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn choice(&mut self, worker: usize, choice: &Choice<'_>) {
        let plan = Plan::of(choice.pool, choice.now_ms);
        self.legal(choice, &plan);
        let Choice { wish, got, .. } = choice;
        let by_hash = choice.pool.ir.balance.hash_by().is_some() && wish.hash.is_some();
        // Whatever else looks at the pool may take turns, or be of another snapshot.
        let before = self.turns.remove(&worker);
        if wish.prefer.is_some() {
            return;
        }
        if by_hash {
            self.by_hash(choice, &plan);
        } else if let (true, Ok(at)) = (wish.tried.is_empty(), *got) {
            self.shares(choice, &plan, at);
            if let Some(turns) = self.in_turn(before, choice, plan, at) {
                self.turns.insert(worker, turns);
            }
        }
    }

    /// Nothing is chosen that may not be; and something is, if anything may.
    fn legal(&mut self, choice: &Choice<'_>, plan: &Plan) {
        let Choice { pool, wish, .. } = choice;
        let untried = || plan.facts.iter().filter(|f| !wish.tried.contains(&f.address));
        let any_available = untried().any(Fact::available);
        let any_ejected = untried().any(Fact::only_ejected);
        let in_panic = plan.shares.iter().any(|s| s.of == For::Everybody);
        let refuses = pool.ir.spread.fail_in_panic;
        let home = wish
            .prefer
            .and_then(|home| untried().find(|f| f.address == home).filter(|f| f.healthy && !f.ejected));
        let at = match choice.got {
            Err(NoEndpoint::AffinityLost) => {
                self.count("affinity lost");
                return assert!(wish.strict && wish.prefer.is_some() && home.is_none(), "{plan:?}");
            }
            Err(NoEndpoint::Panic) => {
                self.count("refused in panic");
                return assert!(refuses && in_panic, "{plan:?}");
            }
            Err(_) => {
                self.count("no endpoint");
                assert!(!any_available && !any_ejected, "nothing chosen: {:?}, {plan:?}", choice.got);
                let anybody = in_panic && !refuses && untried().any(|f| !f.draining);
                return assert!(!anybody, "nothing chosen in panic: {:?}, {plan:?}", choice.got);
            }
            Ok(at) => at,
        };
        let fact = &plan.facts[at];
        assert!(!wish.tried.contains(&fact.address), "tried already: {fact:?}");
        if let Some(home) = home {
            self.count("affinity kept");
            return assert_eq!(fact, home, "bound to another");
        }
        assert!(wish.prefer.is_none() || !wish.strict, "strictly bound to another");
        assert!(!fact.draining, "it drains: {fact:?}");
        if fact.available() {
            return self.count("available");
        }
        let level_panics = plan.shares.iter().any(|s| s.level == fact.level && s.of == For::Everybody);
        if level_panics && (wish.tried.is_empty() || wish.hash.is_some() || !any_available) {
            self.count("panic");
            return assert!(!refuses, "chosen in panic: {fact:?}");
        }
        assert!(!any_available, "not available, and others are: {fact:?} {plan:?}");
        if fact.only_ejected() {
            return self.count("guess overruled");
        }
        self.count("panic");
        assert!(in_panic && !refuses && !any_ejected, "not available: {fact:?} {plan:?}");
    }

    /// Levels get their loads, and where weights alone count, endpoints get theirs.
    fn shares(&mut self, choice: &Choice<'_>, plan: &Plan, at: usize) {
        // What is refused in a panic is missing among what was chosen.
        if choice.pool.ir.spread.fail_in_panic && plan.shares.iter().any(|s| s.of == For::Everybody) {
            return;
        }
        for (level, account) in self.levels.iter_mut().enumerate() {
            account.add(f64::from(plan.load(level)) / 100.0, plan.facts[at].level == level);
        }
        let chances = plan.chances(choice.pool);
        if let (Localities::Weighted(weights), Some(chances)) = (&choice.pool.ir.spread.localities, &chances)
        {
            self.count("by locality");
            for (zone, _) in weights {
                let there = plan.facts.iter().zip(chances).filter(|(fact, _)| fact.zone == *zone);
                let account = self.zones.entry(zone.clone()).or_default();
                account.add(there.map(|(_, chance)| chance).sum(), plan.facts[at].zone == *zone);
            }
        }
        let by_weight = match choice.pool.ir.balance {
            Balance::Random | Balance::RingHash { .. } | Balance::Maglev { .. } => true,
            Balance::LeastRequest { bias, .. } => bias == 0,
            Balance::RoundRobin | Balance::PeakEwma { .. } => false,
        };
        if let Some(chances) = chances.filter(|_| by_weight) {
            self.count("by weight");
            for (other, (fact, chance)) in plan.facts.iter().zip(chances).enumerate() {
                self.endpoints[place(fact.address)].add(chance, other == at);
            }
        }
    }

    /// Round-robin is no chance: while nothing changes, each is never more than a turn or two from its due.
    fn in_turn(
        &mut self,
        before: Option<Turns>,
        choice: &Choice<'_>,
        plan: Plan,
        at: usize,
    ) -> Option<Turns> {
        let pool = choice.pool;
        let spread = &pool.ir.spread;
        if pool.ir.balance != Balance::RoundRobin
            || spread.slow_start.is_some()
            || spread.localities != Localities::Ignored
        {
            return None;
        }
        self.count("in turn");
        let epoch = (Arc::as_ptr(pool) as usize, pool.shared.epoch());
        let same = before.filter(|turns| turns.epoch == epoch && turns.plan == plan);
        let mut turns = same.unwrap_or_else(|| Turns { epoch, had: vec![0; plan.facts.len()], plan });
        turns.took(at);
        Some(turns)
    }

    fn by_hash(&mut self, choice: &Choice<'_>, plan: &Plan) {
        let Choice { pool, wish, .. } = choice;
        let (Some(hash), Ok(at)) = (wish.hash, choice.got) else { return };
        let mut point = (hash % 100) as u32;
        let Some(share) = plan.shares.iter().find(|share| {
            let here = point < share.load;
            point = point.saturating_sub(share.load);
            here
        }) else {
            return;
        };
        let fits = |at: usize| {
            let fact = &plan.facts[at];
            fact.level == share.level && share.of.fits(fact) && !wish.tried.contains(&fact.address)
        };
        let factor = pool.ir.balance.hash_by().map_or(0, |by| by.balance_factor);
        if factor > 0 {
            // One in a locality without weight is in no table, and has no room there.
            if pool.ir.spread.localities != Localities::Ignored {
                return;
            }
            if let Some(has_room) = room(choice, plan, factor, &|at| {
                plan.facts[at].level == share.level && share.of.fits(&plan.facts[at])
            }) && (0..plan.facts.len()).any(|at| fits(at) && has_room(at))
            {
                self.count("within the bound of load");
                assert!(
                    fits(at) && has_room(at),
                    "beyond the bound of load: {:?}, {factor} of {:?}, tried {:?}, for {share:?}: {plan:?}",
                    plan.facts[at],
                    choice.in_flight,
                    wish.tried
                );
            }
            return;
        }
        let Some(home) = self.homes.of(pool, share.level, hash) else { return };
        let home = plan.facts.iter().position(|f| f.address == home).unwrap();
        if fits(home) {
            self.count("at home by hash");
            assert_eq!(plan.facts[at], plan.facts[home], "not at home, which would have it");
        }
    }

    /// Endpoints came and went: a key moves no more than it must.
    pub fn changed(&mut self, before: &Arc<CompiledPool>, after: &Arc<CompiledPool>) {
        if let Some((moved, bound)) = self.homes.movement(before, after) {
            self.count("movements");
            assert!(moved <= bound, "{moved:.3} of all keys moved, where {bound:.3} may");
        }
    }

    pub fn finish(&self) {
        for (level, account) in self.levels.iter().enumerate() {
            account.check(&format!("priority {level}"));
        }
        for (zone, account) in &self.zones {
            account.check(&format!("locality {zone}"));
        }
        for (place, account) in self.endpoints.iter().enumerate() {
            account.check(&format!("endpoint {place}"));
        }
    }
}

/// Which endpoints have room for one more (V. Mirrokni et al., "Consistent Hashing with Bounded Loads"): no more than so
/// many hundredths of the mean load, rounded up.
fn room<'a>(
    choice: &'a Choice<'_>,
    plan: &'a Plan,
    factor: u32,
    member: &dyn Fn(usize) -> bool,
) -> Option<impl Fn(usize) -> bool + use<'a>> {
    let members = || plan.facts.iter().enumerate().filter(|(at, _)| member(*at)).map(|(_, fact)| fact);
    let weights: f64 = members().map(|fact| fact.weight).sum();
    let busy = |fact: &Fact| choice.in_flight.get(&fact.address).copied().unwrap_or(0);
    let requests: u32 = members().map(busy).sum::<u32>() + 1;
    let slots = (f64::from(requests) * f64::from(factor) / 100.0).ceil();
    (weights > 0.0).then_some(move |at: usize| {
        let fact = &plan.facts[at];
        f64::from(busy(fact)) < (slots * fact.weight / weights).ceil()
    })
}

/// What round-robin did on one worker since something changed.
struct Turns {
    epoch: (usize, u64),
    plan: Plan,
    had: Vec<u32>,
}

impl Turns {
    fn took(&mut self, at: usize) {
        self.had[at] += 1;
        let plan = &self.plan;
        let share =
            plan.shares.iter().find(|s| s.level == plan.facts[at].level && s.of.fits(&plan.facts[at]));
        let share = share.unwrap_or_else(|| panic!("none of the plan's: {:?}", plan.facts[at]));
        // A level in panic may have two, of the same endpoints, which take their turns apart.
        let shares = plan.shares.iter().filter(|s| s.level == share.level && s.of == share.of).count();
        let members = || {
            (0..plan.facts.len())
                .filter(|at| plan.facts[*at].level == share.level && share.of.fits(&plan.facts[*at]))
        };
        let weights: f64 = members().map(|at| plan.facts[at].weight).sum();
        let turns: u32 = members().map(|at| self.had[at]).sum();
        for at in members() {
            let due = f64::from(turns) * plan.facts[at].weight / weights;
            let off = f64::from(self.had[at]) - due;
            assert!(
                off.abs() < 2.5 * shares as f64,
                "{} turns, {due:.1} were due: {:?} in {:?} of {share:?}, {plan:?}",
                self.had[at],
                plan.facts[at],
                self.had
            );
        }
    }
}

/// Where keys are at home when all are well: asked of pools that have one priority each and no past.
#[derive(Default)]
struct Homes {
    pools: BTreeMap<usize, (Arc<CompiledPool>, Vec<CompiledPool>)>,
    state: BTreeMap<(usize, usize), PoolState>,
}

impl Homes {
    fn of(&mut self, pool: &Arc<CompiledPool>, level: usize, hash: u64) -> Option<SocketAddr> {
        let key = Arc::as_ptr(pool) as usize;
        let (_, levels) = self.pools.entry(key).or_insert_with(|| (pool.clone(), idealised(pool)));
        let ideal = &levels[level];
        let state = self.state.entry((key, level)).or_default();
        let wish = Wish { hash: Some(hash), ..Wish::default() };
        ideal.pick(state, 0, &mut || 0, &wish).ok().map(|at| ideal.endpoints[at].address())
    }

    /// The part of keys that moved, and the part that may have: twice what changed hands of the weights (a ring that is made
    /// anew gives the others more entries or takes some), and a margin for tables of finite size.
    fn movement(&mut self, before: &Arc<CompiledPool>, after: &Arc<CompiledPool>) -> Option<(f64, f64)> {
        const KEYS: u64 = 500;
        let same = before.ir.balance == after.ir.balance
            && before.ir.spread == after.ir.spread
            && before.ir.spread.localities == Localities::Ignored;
        let one_level = |pool: &CompiledPool| pool.endpoints.iter().all(|e| e.ir.priority == 0);
        let any = !before.endpoints.is_empty() && !after.endpoints.is_empty();
        if !same || !any || before.ir.balance.hash_by().is_none() || !one_level(before) || !one_level(after) {
            return None;
        }
        let part = |pool: &CompiledPool, address: SocketAddr| {
            let weights: u32 = pool.endpoints.iter().map(|e| e.ir.weight).sum();
            let of = pool.endpoints.iter().find(|e| e.address() == address);
            of.map_or(0.0, |e| f64::from(e.ir.weight) / f64::from(weights))
        };
        let changed: f64 = (0..ADDRESSES)
            .map(crate::settings::address)
            .map(|address| (part(before, address) - part(after, address)).max(0.0))
            .sum();
        let key = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (n << 7);
        let moved = (0..KEYS).filter(|n| self.of(before, 0, key(*n)) != self.of(after, 0, key(*n))).count();
        let bound = 2.0 * changed + 0.05 + 5.0 * (changed.max(0.01) / KEYS as f64).sqrt();
        Some((moved as f64 / KEYS as f64, if changed == 0.0 { 0.0 } else { bound }))
    }
}

fn idealised(pool: &CompiledPool) -> Vec<CompiledPool> {
    let mut priorities: Vec<u32> = pool.endpoints.iter().map(|e| e.ir.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let of = |priority: &u32| {
        let mut ir = (*pool.ir).clone();
        let mut endpoints: Vec<_> = pool.endpoints.iter().map(|e| e.ir.clone()).collect();
        endpoints.retain(|e| e.priority == *priority);
        for endpoint in &mut endpoints {
            (endpoint.draining, endpoint.degraded) = (false, false);
        }
        ir.endpoints = Endpoints::Static(endpoints);
        CompiledPool::compile(None, Arc::new(ir), 0)
    };
    priorities.iter().map(of).collect()
}
