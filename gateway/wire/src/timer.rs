//! A coarse timer wheel for the deadlines of one worker.
//!
//! A connection registers one [`Deadline`] when it opens and moves it with every request. Moving it is a few plain
//! stores: the wheel visits an entry when its old time comes due and only then files it under the new one. So no
//! timer of the runtime is armed per request, and the cost of a tick is the number of entries that came due in it.
//!
//! Deadlines are as exact as a tick: they pass up to two ticks late, and never early unless one turn of the
//! worker's event loop took longer than a tick (then early by no more than that turn). The wheel must not be used where
//! that is not good enough, nor shared between threads.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Instant, Sleep, sleep_until};

/// Length of a tick unless the wheel is told otherwise.
pub const DEFAULT_TICK: Duration = Duration::from_millis(50);

/// Ticks that the wheel spans: 102 seconds at the default tick. What is due later is looked at once per turn of the wheel.
const SLOTS: u64 = 2048;
/// No tick at all: a deadline that is not set, an entry that is in no slot.
const NEVER: u64 = u64::MAX;
/// The end of a slot's list.
const NIL: u32 = u32::MAX;

/// The timer wheel of a worker. Clones are handles to the same wheel.
#[derive(Clone)]
pub struct Wheel {
    shared: Rc<Shared>,
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new(DEFAULT_TICK)
    }
}

impl Wheel {
    /// A wheel with ticks of the given length, at least one millisecond.
    pub fn new(tick: Duration) -> Self {
        let origin = Instant::now();
        let shared = Shared {
            origin,
            tick_millis: millis_ceil(tick).max(1),
            now: Cell::new(0),
            now_instant: Cell::new(origin),
            visited_to: Cell::new(0),
            ticking: Cell::new(false),
            touched: Cell::new(false),
            heads: (0..SLOTS).map(|_| Cell::new(NIL)).collect(),
            entries: RefCell::default(),
            queued: Cell::new(0),
            visits: Cell::new(0),
            driver: Cell::new(None),
        };
        Self { shared: Rc::new(shared) }
    }

    /// A deadline that is not set yet. Register once per connection, not once per request.
    pub fn register(&self) -> Deadline {
        let entry = Rc::new(Entry {
            due: Cell::new(NEVER),
            filed: Cell::new(NEVER),
            prev: Cell::new(NIL),
            next: Cell::new(NIL),
            waker: Cell::new(None),
        });
        let key = self.shared.entries.borrow_mut().insert(Rc::clone(&entry));
        let key = u32::try_from(key).ok().filter(|key| *key != NIL).expect("fewer than 2^32 deadlines");
        Deadline { shared: Rc::clone(&self.shared), entry, key }
    }

    /// The time as of the last tick; exact while the wheel stands still.
    pub fn now(&self) -> Instant {
        if !self.shared.ticking.get() {
            self.shared.read_clock();
        }
        self.shared.now_instant.get()
    }

    /// The time now, for what needs better than a tick.
    pub fn now_precise(&self) -> Instant {
        Instant::now()
    }

    /// Milliseconds since the wheel was made, as of the last tick.
    pub fn millis(&self) -> u64 {
        self.shared.millis_at(self.now())
    }

    /// Reads the clock. For a worker that comes back from something long, before it sets deadlines.
    pub fn refresh(&self) {
        self.shared.read_clock();
    }

    /// Lets every deadline that is set pass now and wakes who waits for one: the end of a worker is nobody's fault, and
    /// everything in flight is to end as it would have ended by itself.
    pub fn expire_all(&self) {
        let mut woken = Vec::new();
        for (_, entry) in self.shared.entries.borrow().iter().filter(|(_, entry)| entry.due.get() != NEVER) {
            entry.due.set(0);
            woken.extend(entry.waker.take());
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Drives the wheel. The worker spawns this once per wheel; without it no deadline wakes anyone.
    ///
    /// Ticks only while deadlines are being set. Otherwise it sleeps until the next occupied slot, and without
    /// deadlines it does not wake up at all.
    pub async fn run(&self) -> Infallible {
        let mut sleep = pin!(sleep_until(self.shared.origin));
        poll_fn(|cx| self.shared.poll_drive(cx, sleep.as_mut())).await
    }

    /// What the wheel holds and has done, for telemetry.
    pub fn stats(&self) -> WheelStats {
        WheelStats {
            registered: self.shared.entries.borrow().len(),
            queued: self.shared.queued.get(),
            visits: self.shared.visits.get(),
        }
    }
}

impl fmt::Debug for Wheel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

/// What a [`Wheel`] holds and has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WheelStats {
    /// Deadlines that exist.
    pub registered: usize,
    /// Those that some slot holds; a deadline that was cleared is held until its old time.
    pub queued: usize,
    /// How many entries were looked at, since the beginning.
    pub visits: u64,
}

/// One deadline, set and cleared any number of times. Not set at first.
pub struct Deadline {
    shared: Rc<Shared>,
    entry: Rc<Entry>,
    key: u32,
}

impl Deadline {
    /// The deadline is `after` from now, rounded up to a tick.
    pub fn set(&self, after: Duration) {
        let shared = &*self.shared;
        shared.touch();
        // The extra tick covers what has passed of the current one.
        self.set_due(shared.now.get().saturating_add(1).saturating_add(shared.ticks(millis_ceil(after))));
    }

    /// The deadline is at `at`, rounded up to a tick. One that has passed expires with the next tick.
    pub fn set_at(&self, at: Instant) {
        let shared = &*self.shared;
        shared.touch();
        let due = shared.ticks(millis_ceil(at.saturating_duration_since(shared.origin)));
        self.set_due(due.max(shared.now.get() + 1));
    }

    /// There is no deadline.
    pub fn clear(&self) {
        self.entry.due.set(NEVER);
    }

    /// Whether there is a deadline, passed or not.
    pub fn is_set(&self) -> bool {
        self.entry.due.get() != NEVER
    }

    /// Whether the deadline has passed, as of the last tick. Stays so until it is set again or cleared.
    pub fn expired(&self) -> bool {
        self.entry.due.get() <= self.shared.now.get()
    }

    /// Ready once the deadline has passed. Until then the task is woken for it, also when the deadline is set or moved
    /// after this call. One task at a time: the last to poll is the one woken.
    pub fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.expired() {
            return Poll::Ready(());
        }
        let known = self.entry.waker.take();
        let (keep, _replaced) = match known {
            Some(waker) if waker.will_wake(cx.waker()) => (waker, None),
            other => (cx.waker().clone(), other),
        };
        self.entry.waker.set(Some(keep));
        Poll::Pending
    }

    fn set_due(&self, due: u64) {
        // `NEVER` means not set, so the far future ends one tick before it.
        let due = due.min(NEVER - 1);
        self.entry.due.set(due);
        if due < self.entry.filed.get() {
            self.shared.unfile(&self.entry);
            self.shared.file(self.key, &self.entry, due);
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.shared.unfile(&self.entry);
        let removed = self.shared.entries.borrow_mut().try_remove(self.key as usize);
        debug_assert!(removed.is_some(), "a deadline is registered for as long as it lives");
    }
}

impl fmt::Debug for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadline")
            .field("set", &self.is_set())
            .field("expired", &self.expired())
            .finish_non_exhaustive()
    }
}

/// Waits for `future` until the deadline passes. A future that is ready wins over a deadline that has passed.
pub async fn with_deadline<F: Future>(deadline: &Deadline, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        deadline.poll_expired(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has passed")
    }
}

impl std::error::Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, elapsed)
    }
}

struct Shared {
    origin: Instant,
    tick_millis: u64,
    /// The current tick, and the time when it was read.
    now: Cell<u64>,
    now_instant: Cell<Instant>,
    /// The last tick whose slot was visited; never after `now`.
    visited_to: Cell<u64>,
    /// Whether the driver ticks, so that `now` is fresh.
    ticking: Cell<bool>,
    /// Whether a deadline was set since the last tick.
    touched: Cell<bool>,
    heads: Box<[Cell<u32>]>,
    entries: RefCell<Slab<Rc<Entry>>>,
    queued: Cell<usize>,
    visits: Cell<u64>,
    driver: Cell<Option<Waker>>,
}

/// A link of its slot's list (`prev`, `next` are keys) if `filed`, which is the tick when it is visited.
///
/// Invariant: if `due` is set and was not yet found expired, then `filed <= due`, so a visit never comes too late.
struct Entry {
    due: Cell<u64>,
    filed: Cell<u64>,
    prev: Cell<u32>,
    next: Cell<u32>,
    waker: Cell<Option<Waker>>,
}

impl Shared {
    fn touch(&self) {
        self.touched.set(true);
        if !self.ticking.get() {
            self.resume();
        }
    }

    #[cold]
    fn resume(&self) {
        self.read_clock();
        self.ticking.set(true);
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    fn read_clock(&self) {
        let now = Instant::now();
        self.now_instant.set(now);
        self.now.set(self.millis_at(now) / self.tick_millis);
    }

    fn millis_at(&self, at: Instant) -> u64 {
        millis_floor(at.saturating_duration_since(self.origin))
    }

    fn ticks(&self, millis: u64) -> u64 {
        millis.div_ceil(self.tick_millis)
    }

    fn poll_drive(&self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<Infallible> {
        loop {
            self.turn();
            self.driver.set(Some(cx.waker().clone()));
            let busy = self.touched.replace(false);
            let next = match self.next_occupied() {
                Some(_) if busy => Some(self.now.get() + 1),
                next => next,
            };
            self.ticking.set(busy && next.is_some());
            let Some(next) = next else { return Poll::Pending };
            sleep.as_mut().reset(self.origin + Duration::from_millis(next.saturating_mul(self.tick_millis)));
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Visits every slot that came due, then wakes. Nothing runs in between: waking, and dropping what is woken, may
    /// come back to this wheel.
    fn turn(&self) {
        self.read_clock();
        let now = self.now.get();
        let mut expired = Vec::new();
        // After a long sleep one turn of the wheel is enough.
        let first = self.visited_to.get().max(now.saturating_sub(SLOTS)) + 1;
        for tick in first..=now {
            self.visited_to.set(tick);
            self.visit(tick, now, &mut expired);
        }
        expired.into_iter().for_each(Waker::wake);
    }

    fn visit(&self, tick: u64, now: u64, expired: &mut Vec<Waker>) {
        let entries = self.entries.borrow();
        let mut key = self.slot(tick).replace(NIL);
        while let Some(entry) = entries.get(key as usize) {
            let next = entry.next.get();
            self.visits.set(self.visits.get() + 1);
            self.queued.set(self.queued.get() - 1);
            entry.filed.set(NEVER);
            match entry.due.get() {
                NEVER => {}
                due if due <= now => expired.extend(entry.waker.take()),
                due => self.file(key, entry, due),
            }
            key = next;
        }
    }

    fn next_occupied(&self) -> Option<u64> {
        if self.queued.get() == 0 {
            return None;
        }
        let first = self.visited_to.get() + 1;
        (first..first + SLOTS).find(|tick| self.slot(*tick).get() != NIL)
    }

    /// Puts an entry that is in no slot under `due`, or under the last slot before the wheel comes round.
    fn file(&self, key: u32, entry: &Entry, due: u64) {
        let tick = due.min(self.visited_to.get() + SLOTS - 1);
        let head = self.slot(tick);
        entry.filed.set(tick);
        entry.prev.set(NIL);
        entry.next.set(head.replace(key));
        self.relink(entry.next.get(), |next| next.prev.set(key));
        self.queued.set(self.queued.get() + 1);
    }

    fn unfile(&self, entry: &Entry) {
        let tick = entry.filed.replace(NEVER);
        if tick == NEVER {
            return;
        }
        let (prev, next) = (entry.prev.get(), entry.next.get());
        if prev == NIL {
            self.slot(tick).set(next);
        }
        self.relink(prev, |prev| prev.next.set(next));
        self.relink(next, |next| next.prev.set(prev));
        self.queued.set(self.queued.get() - 1);
    }

    fn relink(&self, key: u32, change: impl FnOnce(&Entry)) {
        if key != NIL {
            change(&self.entries.borrow()[key as usize]);
        }
    }

    fn slot(&self, tick: u64) -> &Cell<u32> {
        &self.heads[(tick % SLOTS) as usize]
    }
}

fn millis_floor(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(u64::from(duration.subsec_millis()))
}

fn millis_ceil(duration: Duration) -> u64 {
    let partial = u64::from(!duration.subsec_nanos().is_multiple_of(1_000_000));
    millis_floor(duration).saturating_add(partial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::{advance, sleep};

    const TICK: Duration = DEFAULT_TICK;

    /// Runs `test` beside the wheel's driver; the result also says how often the driver was polled.
    async fn driven<T>(wheel: &Wheel, test: impl Future<Output = T>) -> (T, Rc<Cell<u64>>) {
        let polls = Rc::new(Cell::new(0));
        let counted = Rc::clone(&polls);
        let wheel = wheel.clone();
        let output = LocalSet::new()
            .run_until(async move {
                spawn_local(async move {
                    let mut run = pin!(wheel.run());
                    poll_fn(|cx| {
                        counted.set(counted.get() + 1);
                        run.as_mut().poll(cx)
                    })
                    .await
                });
                test.await
            })
            .await;
        (output, polls)
    }

    async fn expiry(deadline: &Deadline) -> Instant {
        poll_fn(|cx| deadline.poll_expired(cx)).await;
        Instant::now()
    }

    #[tokio::test]
    async fn all_that_are_set_can_be_let_pass_at_once() {
        let wheel = Wheel::default();
        let (set, unset) = (wheel.register(), wheel.register());
        set.set(Duration::from_mins(5));
        let mut waiting = pin!(poll_fn(|cx| set.poll_expired(cx)));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        wheel.expire_all();
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(!unset.expired());
        set.set(Duration::from_mins(5));
        assert!(!set.expired(), "it can be set again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_within_two_ticks_and_never_early() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let deadline = wheel.register();
            for millis in [0, 1, 49, 50, 51, 99, 1_000, 102_399, 102_400, 102_401, 3_600_000] {
                let after = Duration::from_millis(millis);
                sleep(Duration::from_millis(7)).await;
                let start = Instant::now();
                deadline.set(after);
                let took = expiry(&deadline).await - start;
                assert!(took >= after, "{after:?} passed after {took:?}");
                assert!(took <= after + 2 * TICK, "{after:?} passed after {took:?}");
            }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_can_be_absolute() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let deadline = wheel.register();
            let at = Instant::now() + Duration::from_millis(1234);
            deadline.set_at(at);
            let passed = expiry(&deadline).await;
            assert!(passed >= at && passed <= at + 2 * TICK);
            deadline.set_at(at);
            assert!(expiry(&deadline).await <= passed + 2 * TICK);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn moving_it_later_and_earlier_counts_from_the_last_set() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let deadline = wheel.register();
            let start = Instant::now();
            deadline.set(Duration::from_mins(1));
            deadline.set(Duration::from_secs(1));
            deadline.set(Duration::from_secs(5));
            let took = expiry(&deadline).await - start;
            assert!(took >= Duration::from_secs(5) && took <= Duration::from_secs(5) + 2 * TICK, "{took:?}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_cleared_deadline_does_not_pass() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let deadline = wheel.register();
            deadline.set(Duration::from_secs(1));
            deadline.clear();
            assert!(!deadline.is_set());
            sleep(Duration::from_secs(10)).await;
            assert!(!deadline.expired());
            deadline.set(Duration::from_secs(1));
            expiry(&deadline).await;
            assert!(deadline.expired() && deadline.is_set());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_future_wins_over_a_deadline_that_has_passed() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let deadline = wheel.register();
            deadline.set(Duration::from_secs(1));
            assert_eq!(with_deadline(&deadline, sleep(Duration::from_secs(9))).await, Err(Elapsed));
            assert!(deadline.expired());
            assert_eq!(with_deadline(&deadline, async { 7 }).await, Ok(7));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_wakes_up_without_deadlines() {
        let wheel = Wheel::default();
        let ((), polls) = driven(&wheel, async {
            let deadline = wheel.register();
            sleep(Duration::from_hours(1)).await;
            deadline.set(Duration::from_secs(1));
            expiry(&deadline).await;
            deadline.clear();
            sleep(Duration::from_hours(1)).await;
        })
        .await;
        // At the start; for `set`; one tick that finds nothing new; when it is due.
        assert!(polls.get() <= 5, "polled {} times", polls.get());
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_with_far_deadlines_cost_one_visit_per_turn_of_the_wheel() {
        let wheel = Wheel::default();
        let idle: Vec<_> = (0..20_000).map(|_| wheel.register()).collect();
        for deadline in &idle {
            deadline.set(Duration::from_hours(1));
        }
        driven(&wheel, async {
            let busy = wheel.register();
            // Ten minutes of requests, one per tick, are under six turns of the wheel.
            for _ in 0..12_000 {
                busy.set(Duration::from_secs(15));
                sleep(TICK).await;
            }
        })
        .await;
        let stats = wheel.stats();
        assert_eq!(stats.registered, 20_000);
        assert!(stats.visits <= 6 * 20_001, "{stats:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_deadline_is_not_refiled_per_request() {
        let wheel = Wheel::default();
        let deadline = wheel.register();
        for _ in 0..1_000 {
            deadline.set(Duration::from_mins(1));
            deadline.set(Duration::from_secs(10));
            deadline.clear();
        }
        assert_eq!(wheel.stats(), WheelStats { registered: 1, queued: 1, visits: 0 });
        drop(deadline);
        assert_eq!(wheel.stats(), WheelStats { registered: 0, queued: 0, visits: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_may_be_dropped_by_what_they_wake() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let tasks: Vec<_> = (0..100)
                .map(|_| {
                    let deadlines = [wheel.register(), wheel.register()];
                    spawn_local(async move {
                        for deadline in &deadlines {
                            deadline.set(Duration::from_secs(1));
                        }
                        expiry(&deadlines[0]).await;
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        })
        .await;
        let stats = wheel.stats();
        assert_eq!((stats.registered, stats.queued), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_coarse_clock_follows_while_the_wheel_ticks_and_while_it_stands() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            sleep(Duration::from_secs(5)).await;
            assert_eq!(wheel.now(), wheel.now_precise());
            assert_eq!(wheel.millis(), 5_000);
            let deadline = wheel.register();
            for _ in 0..100 {
                deadline.set(Duration::from_secs(1));
                sleep(Duration::from_millis(17)).await;
                let behind = wheel.now_precise() - wheel.now();
                assert!(behind <= TICK, "{behind:?}");
            }
        })
        .await;
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, u64),
        Clear(usize),
        Drop(usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..8usize, 0..400_000u64).prop_map(|(which, millis)| Step::Set(which, millis)),
            1 => (0..8usize).prop_map(Step::Clear),
            1 => (0..8usize).prop_map(Step::Drop),
            3 => (0..200_000u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against the obvious: remember when each was due, look at the clock.
        #[test]
        fn expires_as_a_list_of_instants_would(steps in prop::collection::vec(step(), 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let wheel = Wheel::default();
                driven(&wheel, async {
                    let mut deadlines: Vec<_> = (0..8).map(|_| (wheel.register(), None)).collect();
                    for step in &steps {
                        match *step {
                            Step::Set(which, millis) => {
                                let after = Duration::from_millis(millis);
                                deadlines[which].0.set(after);
                                deadlines[which].1 = Some(Instant::now() + after);
                            }
                            Step::Clear(which) => {
                                deadlines[which].0.clear();
                                deadlines[which].1 = None;
                            }
                            Step::Drop(which) => deadlines[which] = (wheel.register(), None),
                            Step::Wait(millis) => sleep(Duration::from_millis(millis)).await,
                        }
                        let now = Instant::now();
                        for (deadline, due) in &deadlines {
                            let due: Option<Instant> = *due;
                            if deadline.expired() {
                                assert!(due.is_some_and(|due| due <= now), "early");
                            } else {
                                assert!(due.is_none_or(|due| due + 2 * TICK >= now), "late");
                            }
                        }
                    }
                })
                .await;
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_jump_of_the_clock_beyond_the_wheel_loses_nothing() {
        let wheel = Wheel::default();
        driven(&wheel, async {
            let near = wheel.register();
            let far = wheel.register();
            near.set(Duration::from_secs(1));
            far.set(Duration::from_secs(10_000));
            sleep(TICK).await;
            advance(Duration::from_secs(5_000)).await;
            expiry(&near).await;
            assert!(!far.expired());
            expiry(&far).await;
        })
        .await;
    }
}
