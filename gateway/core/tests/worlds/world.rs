//! One world: workers with a pool, servers, clients, time. What happens is drawn from a seed; what the gateway's core
//! decides about it is carried out as a server would, and held against what is true.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledPool, PoolState};
use fieldgate_core::ir::Retry;

use crate::dice::Dice;
use crate::requests::Request;
use crate::servers::Server;
use crate::settings::{self, ADDRESSES, Shape, place};
use crate::truth::Truth;
use crate::watch::Watch;

/// A worker of the gateway.
pub struct Worker {
    pub pool: Arc<CompiledPool>,
    pub state: PoolState,
    /// Requests in flight, counted here.
    pub in_flight: BTreeMap<SocketAddr, u32>,
    pub retries: u32,
    /// Requests that adaptive concurrency let in.
    pub adaptive: u32,
}

/// What is due.
pub enum Event {
    /// A client has a request for this worker.
    Arrive(usize),
    /// A try of a request is over.
    Ended(u64, u32),
    /// A request begins its next try.
    Again(u64),
    /// A request has waited so long for an answer that it may be hedged.
    Slow(u64),
    /// A response has been passed on as a whole.
    Done(u64),
    /// A client goes away.
    Cancel(u64),
    /// Once a second on each worker.
    Tick(usize),
    /// A worker takes over the newest snapshot.
    Adopt(usize, Arc<CompiledPool>),
    /// A server's state changes.
    Weather,
    /// Active checks report.
    Probe,
    /// An operator drains or restores a machine.
    Drain,
    /// Another configuration.
    Change,
}

pub struct World {
    pub dice: Dice,
    pub now_ms: u64,
    pub workers: Vec<Worker>,
    pub servers: Vec<Server>,
    pub requests: BTreeMap<u64, Request>,
    pub routes: Vec<Option<Arc<Retry>>>,
    /// The endpoint that each client's session is bound to.
    pub sessions: BTreeMap<u64, SocketAddr>,
    pub watch: Watch,
    pub truth: Truth,
    shape: Shape,
    newest: Arc<CompiledPool>,
    queue: BTreeMap<(u64, u64), Event>,
    serial: u64,
    /// Mean time between requests to one worker.
    pace_ms: u64,
    /// Mean time between bad news.
    calm_ms: u64,
    over: bool,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let shape = Shape::new(&mut dice);
        let newest = Arc::new(CompiledPool::compile(None, Arc::new(shape.pool(&mut dice)), 0));
        let worker = |_| Worker {
            pool: newest.clone(),
            state: PoolState::default(),
            in_flight: BTreeMap::new(),
            retries: 0,
            adaptive: 0,
        };
        let mut world = Self {
            now_ms: 1,
            workers: (0..dice.between(1, 4)).map(worker).collect(),
            servers: (0..ADDRESSES).map(|_| Server::new(&mut dice)).collect(),
            requests: BTreeMap::new(),
            routes: (0..4).map(|_| settings::retry(&mut dice)).collect(),
            sessions: BTreeMap::new(),
            watch: Watch::default(),
            truth: Truth::default(),
            shape,
            newest: newest.clone(),
            queue: BTreeMap::new(),
            serial: 0,
            pace_ms: dice.one_of(&[1, 3, 10]),
            calm_ms: dice.one_of(&[100, 500, 3000, 20_000]),
            over: false,
            dice,
        };
        for worker in 0..world.workers.len() {
            world.after(1, Event::Arrive(worker));
            let ms = world.dice.between(0, 1000);
            world.after(ms, Event::Tick(worker));
        }
        for event in [Event::Weather, Event::Probe, Event::Drain, Event::Change] {
            let ms = world.dice.between(1, world.calm_ms);
            world.after(ms, event);
        }
        world
    }

    /// So many events, and then those that must follow until nothing is in flight.
    pub fn run(&mut self, steps: u64) -> u64 {
        let mut done = 0;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            assert!(at >= self.now_ms, "time goes back");
            self.now_ms = at;
            self.happen(event);
            done += 1;
            self.over = done >= steps;
        }
        self.at_rest();
        done
    }

    /// Nothing is in flight, so nothing may be counted.
    fn at_rest(&mut self) {
        assert!(self.requests.is_empty(), "requests without an end");
        for worker in &self.workers {
            assert_eq!(worker.state.in_flight_total(), 0, "requests in flight");
            assert_eq!(worker.state.retries(), 0, "retries in flight");
            for at in 0..ADDRESSES {
                assert_eq!(worker.state.in_flight(settings::address(at)), 0, "requests in flight to {at}");
            }
        }
        let shared = &self.newest.shared;
        assert_eq!((shared.requests.now(), shared.retries.now()), (0, 0), "shared counts");
        self.truth.finish();
        self.watch.finish();
    }

    pub fn after(&mut self, ms: u64, event: Event) {
        self.serial += 1;
        self.queue.insert((self.now_ms + ms, self.serial), event);
    }

    /// An event that brings the next of its kind.
    fn again(&mut self, mean_ms: u64, event: Event) {
        if !self.over {
            let ms = self.dice.about(mean_ms);
            self.after(ms, event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(worker) => {
                self.arrive(worker);
                self.again(self.pace_ms, Event::Arrive(worker));
            }
            Event::Ended(request, number) => self.ended(request, number),
            Event::Again(request) => self.begin(request),
            Event::Slow(request) => self.slow(request),
            Event::Done(request) => self.done(request),
            Event::Cancel(request) => self.cancel(request),
            Event::Tick(worker) => self.tick(worker),
            Event::Adopt(worker, pool) => self.workers[worker].pool = pool,
            Event::Weather => {
                let server = self.dice.below(ADDRESSES as u64) as usize;
                let Self { servers, dice, .. } = self;
                servers[server].turn(dice);
                // Trouble often has company.
                let mode = servers[server].mode;
                if dice.percent(20) {
                    let from = dice.below(ADDRESSES as u64) as usize;
                    servers[from..].iter_mut().take(8).for_each(|other| other.mode = mode);
                }
                self.again(self.calm_ms, Event::Weather);
            }
            Event::Probe => {
                self.probe();
                self.again(1000, Event::Probe);
            }
            Event::Drain => {
                let n = self.newest.endpoints.len() as u64;
                if n > 0 {
                    let at = self.dice.below(n) as usize;
                    let drained = self.dice.percent(30);
                    self.newest.endpoints[at].state.set_drained(drained);
                }
                self.again(self.calm_ms * 2, Event::Drain);
            }
            Event::Change => {
                self.change();
                self.again(self.calm_ms * 2, Event::Change);
            }
        }
    }

    /// A check passes or fails; some find a server degraded.
    fn probe(&mut self) {
        if self.newest.ir.health.is_none() {
            return;
        }
        for endpoint in &self.newest.endpoints {
            if self.dice.percent(50) {
                let server = &self.servers[place(endpoint.address())];
                endpoint.state.set_healthy(server.passes_check(self.now_ms));
                endpoint.state.set_degraded(matches!(server.mode, crate::servers::Mode::Slow(50..)));
            }
        }
    }

    /// A new snapshot, which workers take over one after the other.
    fn change(&mut self) {
        let ir = self.shape.change(&self.newest.ir, &mut self.dice);
        let next = Arc::new(CompiledPool::compile(Some(&self.newest), Arc::new(ir), 0));
        self.watch.changed(&self.newest, &next);
        self.newest = next;
        for worker in 0..self.workers.len() {
            let ms = self.dice.below(30);
            self.after(ms, Event::Adopt(worker, self.newest.clone()));
        }
    }

    fn tick(&mut self, worker: usize) {
        let Worker { pool, state, .. } = &mut self.workers[worker];
        let pool = pool.clone();
        let ejections = pool.tick(state, self.now_ms, &mut || self.dice.roll());
        for ejection in ejections {
            self.truth.ejected(&pool, &ejection, self.now_ms);
        }
        if !self.over {
            self.after(1000, Event::Tick(worker));
        }
    }
}
