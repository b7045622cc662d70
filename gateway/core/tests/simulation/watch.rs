//! Core's decisions with a look over its shoulder: each is asked for here and compared with what is right.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::balance::{CompiledPool, NoEndpoint, Wish};
use fieldgate_core::limits::{Refused, RetryPass};

use crate::ledger::Stretch;
use crate::life::{Life, POOLS, Side, WORKERS};
use crate::model::Checked;
use crate::oracle::{self, Class, Oracle, bits};
use crate::requests::Request;
use crate::setup::SERVERS;
use crate::world::address;

impl Life {
    pub fn check(&self, checked: Checked) {
        if let Err(what) = checked {
            self.fail(&what);
        }
    }

    pub fn fail(&self, what: &str) -> ! {
        panic!("seed {}, step {}, {} ms: {what}", self.seed, self.step, self.now_ms);
    }

    /// Of a pool as it is now; of an old snapshot it is made anew each time.
    pub fn oracle(&mut self, slot: usize, pool: &Arc<CompiledPool>) -> Rc<Oracle> {
        let classes = oracle::classes(pool, &self.model, self.now_ms);
        let side = &mut self.pools[slot];
        if let Some((of, known)) = &side.oracle
            && Arc::ptr_eq(of, pool)
            && known.classes == classes
        {
            return known.clone();
        }
        let new = Rc::new(Oracle::new(pool, classes));
        if Arc::ptr_eq(&side.compiled, pool) {
            side.oracle = Some((pool.clone(), new.clone()));
        }
        new
    }

    pub fn pick_watched(
        &mut self,
        worker: usize,
        slot: usize,
        pool: &Arc<CompiledPool>,
        wish: &Wish<'_>,
    ) -> Result<usize, NoEndpoint> {
        let checked = self.model.agrees(pool, self.now_ms);
        self.check(checked);
        let oracle = self.oracle(slot, pool);
        let (chance, now_ms) = (&mut self.chance, self.now_ms);
        let state = &mut self.pools[slot].workers[worker].state;
        let panics = state.panics;
        let picked = pool.pick(state, now_ms, &mut || chance.next(), wish);
        let panicked = state.panics - panics;
        self.statistics.panics += panicked;
        let bound = self.check_pick(pool, &oracle, wish, picked, panicked);
        if let (Ok(at), false) = (picked, bound) {
            self.check_hash(worker, slot, pool, &oracle, wish, at);
        }
        self.count(worker, slot, pool, &oracle, wish, picked.ok().filter(|_| !bound));
        picked
    }

    /// Whether the choice is right. Says whether it was a session that decided.
    fn check_pick(
        &self,
        pool: &CompiledPool,
        oracle: &Oracle,
        wish: &Wish<'_>,
        picked: Result<usize, NoEndpoint>,
        panicked: u64,
    ) -> bool {
        let place = |address: &SocketAddr| pool.endpoints.iter().position(|e| e.address() == *address);
        let tried = bits(wish.tried.iter().filter_map(place));
        if let Some(prefer) = &wish.prefer {
            let is_usable = |at: &usize| {
                let endpoint = &pool.endpoints[*at];
                self.model.is_healthy(endpoint)
                    && !self.model.is_ejected(endpoint, self.now_ms)
                    && tried >> at & 1 == 0
            };
            match place(prefer).filter(is_usable) {
                Some(at) if picked == Ok(at) => return true,
                Some(at) => self.fail(&format!("a request bound to {at}, which is well, got {picked:?}")),
                None if wish.strict && picked == Err(NoEndpoint::AffinityLost) => return true,
                None if wish.strict => {
                    self.fail(&format!("a request bound to {prefer} alone got {picked:?}"))
                }
                None => {}
            }
        }
        let right = oracle.right(wish.hash.filter(|_| pool.ir.balance.hash_by().is_some()), tried);
        let is_right = match picked {
            Ok(at) => at < pool.endpoints.len() && right.endpoints >> at & 1 == 1 && tried >> at & 1 == 0,
            Err(why) => right.errors.contains(&why),
        };
        if !is_right {
            let (may, errors) = (right.endpoints, right.errors);
            self.fail(&format!(
                "picked {picked:?} for {wish:?}; endpoints {may:#b} or errors {errors:?} were right for {:?} of {:?}",
                oracle.classes, pool.ir
            ));
        }
        if let Ok(at) = picked {
            let available = matches!(oracle.classes[at], Class::Healthy | Class::Degraded);
            if !available && panicked != 1 || panicked == 1 && available && !oracle.panics() {
                self.fail(&format!("pick of a {:?} one counted {panicked} panics", oracle.classes[at]));
            }
        }
        false
    }

    /// Counts it for the shares.
    fn count(
        &mut self,
        worker: usize,
        slot: usize,
        pool: &Arc<CompiledPool>,
        oracle: &Rc<Oracle>,
        wish: &Wish<'_>,
        picked: Option<usize>,
    ) {
        let side = &mut self.pools[slot].workers[worker];
        if side.stretch.as_ref().is_none_or(|stretch| !stretch.is_of(pool, oracle)) {
            let in_flight = |address| side.in_flight.get(&address).copied().unwrap_or(0);
            let idle =
                bits((0..pool.endpoints.len()).filter(|at| in_flight(pool.endpoints[*at].address()) == 0));
            let ended = side.stretch.replace(Stretch::new(pool, oracle, idle));
            if let Some(ended) = ended {
                self.statistics.stretches += u64::from(ended.is_long());
                self.check(ended.check());
            }
        }
        let hashed = wish.hash.is_some() && pool.ir.balance.hash_by().is_some();
        let stretch = self.pools[slot].workers[worker].stretch.as_mut().expect("just made");
        match picked {
            Some(at) if wish.tried.is_empty() && !hashed => stretch.count(at),
            Some(_) if !hashed => stretch.count_other(),
            _ => {}
        }
    }

    pub fn started(&mut self, worker: usize, slot: usize, pool: &CompiledPool, index: usize) {
        let side = &mut self.pools[slot].workers[worker];
        side.state.started(index);
        *side.in_flight.entry(pool.endpoints[index].address()).or_default() += 1;
        if let Some(stretch) = &mut side.stretch {
            stretch.busy(index);
        }
        self.check_in_flight(worker, slot, pool.endpoints[index].address());
    }

    pub fn finished(&mut self, worker: usize, slot: usize, address: SocketAddr) {
        let side = &mut self.pools[slot].workers[worker];
        side.state.finished(address);
        *side.in_flight.get_mut(&address).expect("it was started") -= 1;
        self.check_in_flight(worker, slot, address);
    }

    fn check_in_flight(&self, worker: usize, slot: usize, address: SocketAddr) {
        let side = &self.pools[slot].workers[worker];
        let (here, there) = (side.in_flight[&address], side.state.in_flight(address));
        if here != there {
            self.fail(&format!("{here} requests of worker {worker} are in flight to {address}, not {there}"));
        }
    }

    pub fn enter_watched(&mut self, worker: usize, slot: usize, pool: &CompiledPool) -> Result<(), Refused> {
        let (chance, now_ms) = (&mut self.chance, self.now_ms);
        let Side { entered, workers, .. } = &mut self.pools[slot];
        let side = &mut workers[worker];
        let result = side.state.enter(pool, now_ms, &mut || chance.next());
        let limits = &pool.ir.limits;
        let full = limits.max_requests != u32::MAX && *entered >= limits.max_requests;
        let concurrency = side.state.concurrency_limit();
        let crowded = limits.adaptive.is_some() && concurrency.is_some_and(|most| side.adaptive >= most);
        let right = match result {
            Ok(()) => !full && !crowded,
            Err(Refused::Requests) => full,
            Err(Refused::Concurrency) => !full && crowded,
            Err(Refused::Admission) => limits.admission.is_some(),
            Err(Refused::RetryBudget | Refused::Retries) => false,
        };
        let (adaptive, counted) = (side.adaptive, *entered);
        if result.is_ok() {
            *entered += u32::from(limits.max_requests != u32::MAX);
            side.adaptive += u32::from(limits.adaptive.is_some());
        }
        if !right {
            self.fail(&format!(
                "{result:?} with {counted} requests of {}, {adaptive} of {concurrency:?} by latency",
                limits.max_requests
            ));
        }
        let looked = matches!(result, Ok(()) | Err(Refused::Concurrency));
        if let (Some(settings), Some(limit)) = (limits.adaptive.as_ref().filter(|_| looked), concurrency)
            && !(settings.min_concurrency..=settings.max_concurrency).contains(&limit)
        {
            self.fail(&format!("concurrency {limit} is beyond {settings:?}"));
        }
        self.check_gauges(slot);
        result
    }

    pub fn leave(&mut self, worker: usize, slot: usize, pool: &CompiledPool, took: Duration, success: bool) {
        let (chance, now_ms) = (&mut self.chance, self.now_ms);
        let Side { entered, workers, .. } = &mut self.pools[slot];
        workers[worker].state.leave(pool, took, Some(success), now_ms, &mut || chance.next());
        *entered -= u32::from(pool.ir.limits.max_requests != u32::MAX);
        workers[worker].adaptive -= u32::from(pool.ir.limits.adaptive.is_some());
        self.check_gauges(slot);
    }

    pub fn begin_retry_watched(
        &mut self,
        worker: usize,
        slot: usize,
        pool: &CompiledPool,
    ) -> Option<RetryPass> {
        let Side { retries, workers, .. } = &mut self.pools[slot];
        let side = &mut workers[worker];
        let limits = &pool.ir.limits;
        let in_flight: u32 = side.in_flight.values().sum();
        let share = in_flight * limits.retry_budget.percent / 100;
        let over_budget =
            limits.retry_budget.percent < 100 && side.retries >= share.max(limits.retry_budget.min);
        let full = limits.max_retries != u32::MAX && *retries >= limits.max_retries;
        let result = side.state.begin_retry(pool);
        let right = match &result {
            Ok(_) => !over_budget && !full,
            Err(Refused::RetryBudget) => over_budget,
            Err(Refused::Retries) => full,
            Err(_) => false,
        };
        if !right {
            let (own, all) = (side.retries, *retries);
            self.fail(&format!(
                "{result:?} with {own} retries beside {in_flight} requests of {:?}, {all} of {} of all workers",
                limits.retry_budget, limits.max_retries
            ));
        }
        let Ok(pass) = result else {
            self.statistics.over_budget += 1;
            return None;
        };
        side.retries += 1;
        *retries += u32::from(limits.max_retries != u32::MAX);
        self.check_gauges(slot);
        Some(pass)
    }

    pub fn end_retry(&mut self, worker: usize, slot: usize, pass: RetryPass, limited: bool) {
        let Side { retries, workers, .. } = &mut self.pools[slot];
        workers[worker].state.end_retry(pass);
        workers[worker].retries -= 1;
        *retries -= u32::from(limited);
        self.check_gauges(slot);
    }

    fn check_gauges(&self, slot: usize) {
        let side = &self.pools[slot];
        let shared = &side.compiled.shared;
        let here = (side.entered, side.retries, side.pending);
        let there = (shared.requests.now(), shared.retries.now(), shared.pending.now());
        if here != there {
            self.fail(&format!(
                "requests, retries, waiting of pool {slot} are {there:?} and should be {here:?}"
            ));
        }
        for (n, worker) in side.workers.iter().enumerate() {
            if worker.retries != worker.state.retries() {
                let (here, there) = (worker.retries, worker.state.retries());
                self.fail(&format!("worker {n} counts {there} retries in pool {slot} and should {here}"));
            }
        }
    }

    /// No request is sent again unless that is allowed.
    pub fn check_send(&self, request: &Request, sends: u32, permission: Option<&'static str>) {
        if sends > 0 && permission.is_none() {
            self.fail("a request is sent again, which nothing allows");
        }
        if sends >= request.account.most_sends() {
            self.fail(&format!("a request is sent for the {sends}th time more"));
        }
    }

    /// Every count of every worker.
    pub fn check_counts(&self) {
        for slot in 0..POOLS {
            self.check_gauges(slot);
            for worker in 0..WORKERS {
                let side = &self.pools[slot].workers[worker];
                for n in 0..SERVERS {
                    let of = address(slot, n);
                    let (here, there) =
                        (side.in_flight.get(&of).copied().unwrap_or(0), side.state.in_flight(of));
                    if here != there {
                        self.fail(&format!("{there} of worker {worker} in flight to {of} should be {here}"));
                    }
                }
                let (here, there): (u32, u32) = (side.in_flight.values().sum(), side.state.in_flight_total());
                if here != there {
                    self.fail(&format!("{there} requests in flight of worker {worker} should be {here}"));
                }
            }
        }
    }

    /// Nothing is in flight any more.
    pub fn check_end(&mut self) {
        self.check_counts();
        for slot in 0..POOLS {
            let shared = &self.pools[slot].compiled.shared;
            let gauges = [&shared.requests, &shared.retries, &shared.pending, &shared.connections];
            if gauges.iter().any(|gauge| gauge.now() != 0) {
                self.fail(&format!("pool {slot} is idle and counts {gauges:?}"));
            }
            for worker in 0..WORKERS {
                if self.pools[slot].workers[worker].state.in_flight_total() != 0 {
                    self.fail(&format!("worker {worker} is idle and has requests in flight"));
                }
            }
        }
    }
}
