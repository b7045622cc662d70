//! A gateway's life in virtual time: workers, pools and the servers behind them, and what happens to them.
//!
//! Everything is an event in a heap and comes from the seed. Requests are in `requests`, what is checked in `watch`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledEndpoint, CompiledPool, PoolState};
use rustc_hash::FxHashMap;

use crate::ledger::Stretch;
use crate::model::Model;
use crate::oracle::Oracle;
use crate::random::Random;
use crate::requests::Request;
use crate::setup::{self, SERVERS};
use crate::sticky::Sticky;
use crate::world::{Mode, Server, address};

pub const WORKERS: usize = 3;
pub const POOLS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// The next request comes to this worker.
    Arrive(usize),
    /// A request tries to get in.
    Enter(u64),
    /// A request is sent, or looks for a place.
    Send(u64),
    /// A try is over.
    Outcome(u64),
    /// The last of a response has been passed on.
    Done(u64),
    /// The client has gone.
    Gone(u64),
    /// A second of this worker is over.
    Tick(usize),
    /// A pool's endpoints are checked.
    Check(usize),
    /// Something happens to servers, configuration or operators.
    Chaos,
    /// Distributions and keys are looked at.
    Census(usize),
}

/// A pool as it is now, and the simulation's own count of what is on its way.
pub struct Side {
    pub compiled: Arc<CompiledPool>,
    /// With what it was made of.
    pub oracle: Option<(Arc<CompiledPool>, Rc<Oracle>)>,
    pub workers: Vec<WorkerSide>,
    /// Requests that are counted against `max_requests`.
    pub entered: u32,
    /// Retries that are counted against `max_retries`.
    pub retries: u32,
    /// Requests that wait.
    pub pending: u32,
    pub sticky: Sticky,
}

#[derive(Default)]
pub struct WorkerSide {
    pub state: PoolState,
    pub in_flight: BTreeMap<SocketAddr, u32>,
    pub retries: u32,
    /// Requests that are counted by adaptive concurrency.
    pub adaptive: u32,
    pub stretch: Option<Stretch>,
}

/// What happened, for people to see that it does.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Statistics {
    pub requests: u64,
    /// Never sent.
    pub refused: u64,
    pub sends: u64,
    pub ejections: u64,
    pub waits: u64,
    pub over_budget: u64,
    /// Sent once more, by what allowed it.
    pub again: BTreeMap<&'static str, u64>,
    /// Choices of endpoints that were not available.
    pub panics: u64,
    pub changes: u64,
    /// In which shares could be told.
    pub stretches: u64,
    /// Keys that have another owner.
    pub moved: u64,
}

impl Statistics {
    pub fn add(&mut self, other: &Self) {
        let sum = [
            (&mut self.requests, other.requests),
            (&mut self.refused, other.refused),
            (&mut self.sends, other.sends),
            (&mut self.ejections, other.ejections),
            (&mut self.waits, other.waits),
            (&mut self.over_budget, other.over_budget),
            (&mut self.panics, other.panics),
            (&mut self.changes, other.changes),
            (&mut self.stretches, other.stretches),
            (&mut self.moved, other.moved),
        ];
        for (to, n) in sum {
            *to += n;
        }
        other.again.iter().for_each(|(why, n)| *self.again.entry(why).or_default() += n);
    }
}

pub struct Life {
    pub seed: u64,
    pub step: u64,
    pub now_ms: u64,
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    events: u64,
    pub world: Random,
    /// Given to core.
    pub chance: Random,
    pub servers: BTreeMap<SocketAddr, Server>,
    pub pools: Vec<Side>,
    pub model: Model,
    pub requests: FxHashMap<u64, Request>,
    pub next_id: u64,
    ending: bool,
    calm: bool,
    calm_until_ms: u64,
    /// From one request of a worker to the next.
    load_ms: u64,
    trace: Option<VecDeque<String>>,
    pub statistics: Statistics,
}

/// Events that are shown of a seed that fails.
const TRACED: usize = 1000;

impl Life {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut world = Random::new(seed);
        let mut servers = BTreeMap::new();
        let mut model = Model::default();
        let mut pools = Vec::new();
        for slot in 0..POOLS {
            servers.extend((0..SERVERS).map(|n| (address(slot, n), Server::new(&mut world))));
            let ir = Arc::new(setup::pool(slot, &mut world));
            let compiled = Arc::new(CompiledPool::compile(None, ir, slot as u32));
            model.compiled(&compiled);
            pools.push(Side {
                compiled,
                oracle: None,
                workers: (0..WORKERS).map(|_| WorkerSide::default()).collect(),
                entered: 0,
                retries: 0,
                pending: 0,
                sticky: Sticky::default(),
            });
        }
        let mut life = Self {
            seed,
            step: 0,
            now_ms: 1000,
            heap: BinaryHeap::new(),
            events: 0,
            world,
            chance: Random::new(seed ^ 0x5EED),
            servers,
            pools,
            model,
            requests: FxHashMap::default(),
            next_id: 0,
            ending: false,
            calm: true,
            calm_until_ms: 0,
            load_ms: 20,
            trace: traced.then(VecDeque::new),
            statistics: Statistics::default(),
        };
        (0..WORKERS).for_each(|worker| {
            life.after(0, Event::Arrive(worker));
            life.after(300 * worker as u64, Event::Tick(worker));
        });
        (0..POOLS).for_each(|slot| {
            life.after(100 * slot as u64, Event::Check(slot));
            life.after(2000, Event::Census(slot));
        });
        life.after(500, Event::Chaos);
        life
    }

    /// So many events; then no requests come any more, and all is to end well.
    pub fn run(&mut self, steps: u64) {
        while self.step < steps {
            self.next();
        }
        self.ending = true;
        while !self.requests.is_empty() {
            self.next();
        }
        self.check_end();
        self.check_recovery();
    }

    fn next(&mut self) {
        let Some(Reverse((at_ms, _, event))) = self.heap.pop() else { panic!("nothing happens any more") };
        self.step += 1;
        self.now_ms = at_ms;
        match event {
            Event::Arrive(worker) => self.arrive(worker),
            Event::Enter(id) => self.enter(id),
            Event::Send(id) => self.send(id),
            Event::Outcome(id) => self.outcome(id),
            Event::Done(id) => self.done(id),
            Event::Gone(id) => self.gone(id),
            Event::Tick(worker) => self.tick(worker),
            Event::Check(slot) => self.check_health(slot),
            Event::Chaos => self.chaos(),
            Event::Census(slot) => {
                self.census(slot);
                self.after(1500, event);
            }
        }
        if self.step.is_multiple_of(64) {
            self.check_counts();
        }
    }

    pub fn after(&mut self, ms: u64, event: Event) {
        self.events += 1;
        self.heap.push(Reverse((self.now_ms + ms, self.events, event)));
    }

    fn arrive(&mut self, worker: usize) {
        if self.ending {
            return;
        }
        let slot = self.world.below(POOLS as u64) as usize;
        self.begin(worker, slot);
        let wait = self.world.wait(self.load_ms);
        self.after(wait, Event::Arrive(worker));
    }

    fn tick(&mut self, worker: usize) {
        for slot in 0..POOLS {
            let Side { compiled, workers, .. } = &mut self.pools[slot];
            let chance = &mut self.chance;
            let ejections = compiled.tick(&mut workers[worker].state, self.now_ms, &mut || chance.next());
            let pool = compiled.clone();
            self.model.ticked(&pool, slot);
            for ejection in ejections {
                self.trace(|| format!("tick of worker {worker}: {ejection:?}"));
                self.statistics.ejections += u64::from(ejection.enforced);
                let checked = self.model.ejected(&pool, &ejection, self.now_ms);
                self.check(checked);
            }
        }
        self.after(1000, Event::Tick(worker));
    }

    fn check_health(&mut self, slot: usize) {
        let pool = self.pools[slot].compiled.clone();
        for endpoint in pool.endpoints.iter().filter(|_| pool.ir.health.is_some()) {
            if self.world.chance(40) {
                continue;
            }
            let well = self.servers[&endpoint.address()].is_well(self.now_ms);
            if endpoint.state.is_healthy() != well {
                self.trace(|| format!("check of {}: {well}", endpoint.address()));
                let checked = self.model.set_healthy(&endpoint.state, well);
                self.check(checked);
            }
        }
        let wait = self.world.between(300, 900);
        self.after(wait, Event::Check(slot));
    }

    fn chaos(&mut self) {
        if self.now_ms >= self.calm_until_ms {
            self.calm = !self.calm;
            self.calm_until_ms = self.now_ms + self.world.between(3000, 20_000);
            // Shares can be told where nothing happens, but for many requests.
            let loads = if self.calm { [4, 6, 10, 20] } else { [10, 40, 60, 150] };
            self.load_ms = *self.world.one_of(&loads);
            if self.calm && self.world.chance(60) {
                self.trace(|| "all servers are fine".into());
                self.servers.values_mut().for_each(|server| server.mode = Mode::Fine);
            }
        }
        if !self.calm {
            self.mischief();
        }
        let wait = self.world.between(10, 200);
        self.after(wait, Event::Chaos);
    }

    fn mischief(&mut self) {
        let slot = self.world.below(POOLS as u64) as usize;
        let pool = self.pools[slot].compiled.clone();
        let n = self.world.below(SERVERS);
        let some = (!pool.endpoints.is_empty())
            .then(|| &pool.endpoints[self.world.below(pool.endpoints.len() as u64) as usize]);
        match (self.world.below(11), some) {
            (5, _) => self.outage(slot),
            (0 | 1, _) => self.reconfigure(slot),
            (2, Some(some)) => {
                let drained = !some.state.is_drained();
                self.trace(|| format!("operator drains {}: {drained}", some.address()));
                self.model.set_drained(&some.state, drained);
            }
            (3, Some(some)) => {
                let degraded = !some.state.is_degraded();
                self.trace(|| format!("check calls {} degraded: {degraded}", some.address()));
                self.model.set_degraded(&some.state, degraded);
            }
            (4, Some(some)) if pool.ir.health.is_some() => {
                let healthy = self.world.chance(50);
                self.trace(|| format!("false check of {}: {healthy}", some.address()));
                let checked = self.model.set_healthy(&some.state, healthy);
                self.check(checked);
            }
            _ => {
                let to = some
                    .filter(|_| self.world.chance(80))
                    .map_or(address(slot, n), CompiledEndpoint::address);
                let server = self.servers.get_mut(&to).expect("all have servers");
                server.change(&mut self.world);
                let mode = server.mode;
                self.trace(|| format!("{to} is {mode:?}"));
            }
        }
    }

    /// Many servers of a pool fail in the same way.
    fn outage(&mut self, slot: usize) {
        let mut like = Server::new(&mut self.world);
        like.change(&mut self.world);
        let percent = self.world.between(20, 100);
        self.trace(|| format!("{percent} % of pool {slot} are {:?}", like.mode));
        for n in 0..SERVERS {
            if self.world.chance(percent) {
                self.servers.get_mut(&address(slot, n)).expect("all have servers").mode = like.mode;
            }
        }
    }

    fn reconfigure(&mut self, slot: usize) {
        let before = self.pools[slot].compiled.clone();
        let after = Arc::new(setup::changed(slot, &before, &mut self.world));
        self.trace(|| {
            let now: Vec<_> = after.endpoints.iter().map(|e| &e.ir).collect();
            format!("pool {slot} is now {:?} of {now:?}", after.ir)
        });
        self.statistics.changes += 1;
        self.model.compiled(&after);
        self.pools[slot].compiled = after;
        self.check_keys(slot);
    }

    pub fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACED {
                trace.pop_front();
            }
            trace.push_back(format!("{:>8} {:>9} ms  {}", self.step, self.now_ms, line()));
        }
    }
}

/// A failure of core itself is to name its seed, too.
impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, step, now_ms, .. } = self;
            for line in self.trace.iter().flatten() {
                eprintln!("{line}");
            }
            eprintln!(
                "seed {seed} failed at step {step}, {now_ms} ms; SIMULATION_SEED={seed} shows the last events"
            );
        }
    }
}
