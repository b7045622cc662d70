//! How long a request waits for its worker, and which share of them is refused so that the others do not wait longer.
//!
//! The measure is a byte that the worker sends to itself: it stands in the same queues as requests do, the kernel's list of
//! sockets with events and the runtime's list of tasks that are ready. A long wait once is a burst, which passes by itself;
//! only if even the shortest wait of an interval was too long is there a standing queue (the idea of CoDel, RFC 8289).
//! Then a share of new requests is refused, as much more as the wait is above its target, and less once it is well below.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{Gate, Overload};

/// Between two measurements, while all is well and while some are refused.
const CALM: Duration = Duration::from_millis(50);
const BUSY: Duration = Duration::from_millis(10);
/// How long waits must have been too long before anything is refused; once something is, how long between changes.
const INTERVAL: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(50);
/// Measurements that an interval has at least: one pause of the whole machine is no queue.
const SAMPLES: u32 = 3;
/// For so long after a refusal a queue that stands again is taken for the same one.
const ALERT: Duration = Duration::from_secs(5);
/// The least that is admitted: how else would anybody learn that it is over.
const LEAST: f64 = 0.02;
/// Log lines about one worker are at least so far apart.
const QUIET: Duration = Duration::from_secs(10);

/// From waits to the share of requests that is admitted. It has no clock of its own.
#[derive(Clone, Debug)]
pub struct Controller {
    target: Duration,
    admitted: f64,
    /// When the present interval began, the shortest wait in it, and how many were measured.
    began: Duration,
    /// When the last interval ended in which something was refused.
    refused: Option<Duration>,
    shortest: Duration,
    samples: u32,
}

impl Controller {
    /// Nothing is refused yet.
    pub fn new(target: Duration) -> Self {
        Self {
            target,
            admitted: 1.0,
            began: Duration::ZERO,
            refused: None,
            shortest: Duration::MAX,
            samples: 0,
        }
    }

    /// The share that is admitted.
    pub fn admitted(&self) -> f64 {
        self.admitted
    }

    /// Begins anew after a time without measurements.
    pub fn reset(&mut self, now: Duration) {
        *self = Self { began: now, ..Self::new(self.target) };
    }

    /// Takes in a measurement; gives the share that is admitted from now on.
    pub fn measured(&mut self, now: Duration, wait: Duration) -> f64 {
        self.shortest = self.shortest.min(wait);
        self.samples += 1;
        let refusing = self.admitted < 1.0;
        let alert = self.refused.is_some_and(|refused| now.saturating_sub(refused) < ALERT);
        let (interval, samples) = if refusing || alert { (STEP, 1) } else { (INTERVAL, SAMPLES) };
        if now.saturating_sub(self.began) < interval || self.samples < samples {
            return self.admitted;
        }
        let ratio = self.shortest.as_secs_f64() / self.target.as_secs_f64();
        if refusing {
            self.refused = Some(now);
        }
        if ratio > 1.0 {
            self.admitted = (self.admitted * (1.0 / ratio).clamp(0.7, 0.98)).max(LEAST);
        } else if refusing && ratio < 0.5 {
            // The emptier the queue, the faster back: by a tenth at most.
            self.admitted = (self.admitted * (1.1 - 0.2 * ratio) + 0.002).min(1.0);
        }
        (self.began, self.shortest, self.samples) = (now, Duration::MAX, 0);
        self.admitted
    }
}

/// Measures a worker's delay for as long as it lives and sets its gate. `taken` counts what the worker takes, so that
/// nobody is woken while nothing happens.
pub async fn watch(
    overload: &Overload,
    worker: usize,
    gate: &Gate,
    target: Duration,
    taken: impl Fn() -> u64,
) -> io::Result<()> {
    let (near, mut far) = UnixStream::pair()?;
    let near = Rc::new(near);
    let origin = Instant::now();
    let mut controller = Controller::new(target);
    let mut told: Option<Instant> = None;
    loop {
        let before = taken();
        let refusing = controller.admitted() < 1.0;
        let due = Instant::now() + if refusing { BUSY } else { CALM };
        tokio::time::sleep_until(due).await;
        near.writable().await?;
        near.try_write(&[0])?;
        let arrived = arrival(&mut far, due, |now, so_far| {
            // It waits already for longer than it should: no need to know how long it will have been.
            if so_far > target {
                gate.set_admitted(controller.measured(now - origin, so_far));
            }
        });
        let now = arrived.await?;
        let admitted = controller.measured(now - origin, now - due);
        gate.set_admitted(admitted);
        overload.note_delay(worker, now - due, admitted);
        if refusing != (admitted < 1.0) && told.is_none_or(|told| now - told >= QUIET) {
            told = Some(now);
            let delay = now - due;
            if refusing {
                tracing::info!(worker, ?delay, "the overload is over; nothing is refused any more");
            } else {
                tracing::warn!(
                    worker,
                    ?delay,
                    ?target,
                    "overloaded: requests wait too long (--max-delay), so some are refused"
                );
            }
        }
        if admitted >= 1.0 && taken() == before {
            overload.note_delay(worker, Duration::ZERO, 1.0);
            gate.rest().await;
            controller.reset(origin.elapsed());
        }
    }
}

/// When the byte arrives. Meanwhile tells every now and then for how long it has been waited for since `due`.
async fn arrival(
    far: &mut UnixStream,
    due: Instant,
    mut waits: impl FnMut(Instant, Duration),
) -> io::Result<Instant> {
    let mut byte = [0];
    let mut arrived = std::pin::pin!(far.read_exact(&mut byte));
    loop {
        if let Ok(arrived) = tokio::time::timeout(BUSY, arrived.as_mut()).await {
            return arrived.map(|_| Instant::now());
        }
        let now = Instant::now();
        waits(now, now - due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(100);

    /// A worker that serves 1,000 requests per second, with a queue, in steps of a millisecond; refusals cost a share
    /// of a served request. Returns requests served and the longest delay, both of the second half, and whether the
    /// controller is at rest at the end.
    fn simulate(seconds: u64, refusal: f64, arrivals: impl Fn(u64) -> f64) -> (f64, Duration, bool) {
        let mut controller = Controller::new(TARGET);
        let (mut queued, mut served, mut longest) = (0.0_f64, 0.0, Duration::ZERO);
        // The probe: when it was sent, and how many are before it.
        let mut probe: Option<(u64, f64)> = None;
        let mut next = 0;
        for ms in 0..seconds * 1000 {
            let second_half = ms >= seconds * 500;
            // Who is refused stands in the queue as well; its cost is what reading and answering takes.
            queued += arrivals(ms);
            let a = controller.admitted();
            let cost = a + (1.0 - a) * refusal;
            let done = queued.min(1.0 / cost);
            queued -= done;
            let delay = Duration::from_secs_f64(queued * cost / 1000.0);
            if second_half {
                served += done * a;
                longest = longest.max(delay);
            }
            let pause = if a < 1.0 { BUSY } else { CALM };
            match &mut probe {
                Some((sent, before)) => {
                    *before -= done;
                    let age = Duration::from_millis(ms - *sent);
                    if *before <= 0.0 || ms >= next && age > TARGET {
                        controller.measured(Duration::from_millis(ms), age);
                        next = ms + BUSY.as_millis() as u64;
                    }
                    if *before <= 0.0 {
                        probe = None;
                        next = ms + pause.as_millis() as u64;
                    }
                }
                None if ms >= next => probe = Some((ms, queued)),
                None => {}
            }
        }
        (served, longest, controller.admitted() >= 1.0)
    }

    #[test]
    fn three_times_too_much_is_served_as_well_as_can_be() {
        for refusal in [0.0, 0.02, 0.1] {
            let (served, longest, _) = simulate(20, refusal, |_| 3.0);
            // What is left beside the refusals.
            let possible = 10_000.0 * (1.0 - 3.0 * refusal) / (1.0 - refusal);
            assert!(served >= 0.9 * possible, "refusals at {refusal}: {served} of {possible}");
            assert!(longest <= 4 * TARGET, "refusals at {refusal}: {longest:?}");
        }
    }

    #[test]
    fn a_little_too_much_is_no_worse() {
        let (served, longest, _) = simulate(60, 0.05, |_| 1.2);
        let possible = 30_000.0 * (1.0 - 1.2 * 0.05) / 0.95;
        assert!(served >= 0.9 * possible && longest <= 6 * TARGET, "{served} of {possible}, {longest:?}");
    }

    #[test]
    fn what_can_be_served_is_never_refused() {
        let (served, longest, open) = simulate(20, 0.1, |_| 0.99);
        assert!(served > 9_890.0 && longest < TARGET && open, "{served} {longest:?}");
        // Bursts of three hundred at once, and pauses in between.
        let mut controller = Controller::new(TARGET);
        for burst in 0..100 {
            for (at, wait) in [(0, 300), (300, 150), (450, 1)] {
                controller.measured(Duration::from_millis(burst * 500 + at), Duration::from_millis(wait));
            }
            assert_eq!(controller.admitted(), 1.0);
        }
    }

    #[test]
    fn one_pause_is_no_queue() {
        let mut controller = Controller::new(TARGET);
        controller.measured(Duration::from_secs(3), Duration::from_secs(3));
        assert_eq!(controller.admitted(), 1.0);
    }

    #[test]
    fn it_ends_when_the_load_does() {
        let (_, _, open) = simulate(20, 0.05, |ms| if ms < 5_000 { 5.0 } else { 0.5 });
        assert!(open);
    }

    #[tokio::test]
    async fn an_idle_worker_is_not_measured() {
        let overload = Overload::new(crate::overload::Limits::default(), 1);
        let gate = Gate::default();
        let watching = watch(&overload, 0, &gate, TARGET, || 7);
        let asleep = async {
            // The gate has something to decide once the measuring has gone to rest.
            while !gate.is_resting() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            ended = watching => panic!("{ended:?}"),
            () = asleep => {}
        }
    }
}
