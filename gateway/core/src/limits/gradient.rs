//! Adaptive concurrency: the limit follows the latency (Envoy's gradient controller).
//!
//! Now and then the latency without load is measured, with as few requests at once as may be. Between that, the limit is
//! multiplied by how the present latency compares with it, and gets a little headroom so that it can find out that more
//! is possible. Envoy's page: "Adaptive Concurrency".

use std::sync::Arc;
use std::time::Duration;

use crate::ir::AdaptiveConcurrency;

/// Samples kept of one interval. More would tell a percentile no better.
const SAMPLES: usize = 1024;
/// After so many intervals at the least limit, the latency without load is taken for outdated.
const STUCK: u32 = 5;
/// Jitter of the interval between measurements, in percent of it.
const JITTER: u64 = 15;

/// The controller of one worker and pool.
#[derive(Debug)]
pub(super) struct Gradient {
    settings: Arc<AdaptiveConcurrency>,
    in_flight: u32,
    limit: u32,
    /// To go back to after a measurement.
    limit_before: u32,
    phase: Phase,
    /// Microseconds without load; 0 is not known.
    min_rtt: u32,
    samples: Vec<u32>,
    seen: u64,
    /// When the present interval ends.
    until_ms: u64,
    measure_at_ms: u64,
    stuck: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Finding out the latency without load.
    Measuring,
    /// Following it.
    Following,
}

impl Gradient {
    /// The controller in its place; a new one where there is none, or one of other settings.
    pub fn of<'s>(
        place: &'s mut Option<Box<Self>>,
        settings: &Arc<AdaptiveConcurrency>,
        now_ms: u64,
    ) -> &'s mut Self {
        if let Some(known) = place
            && known.settings != *settings
        {
            let in_flight = known.in_flight;
            **known = Self { in_flight, ..Self::new(settings.clone(), now_ms) };
        }
        place.get_or_insert_with(|| Box::new(Self::new(settings.clone(), now_ms)))
    }

    fn new(settings: Arc<AdaptiveConcurrency>, now_ms: u64) -> Self {
        let limit = settings.min_concurrency.max(1);
        Self {
            in_flight: 0,
            limit,
            limit_before: limit,
            phase: Phase::Measuring,
            min_rtt: 0,
            samples: Vec::new(),
            seen: 0,
            until_ms: now_ms,
            measure_at_ms: now_ms,
            stuck: 0,
            settings,
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Counts a request in, if it may be.
    pub fn enter(&mut self, now_ms: u64) -> bool {
        if self.phase == Phase::Following && now_ms >= self.measure_at_ms {
            self.begin_measurement();
        }
        let may = self.in_flight < self.limit;
        self.in_flight += u32::from(may);
        may
    }

    /// One that was counted in is over.
    pub fn leave(&mut self, took: Duration, now_ms: u64, random: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.sample(u32::try_from(took.as_micros()).unwrap_or(u32::MAX), random);
        match self.phase {
            Phase::Measuring if self.seen >= u64::from(self.settings.min_rtt_requests.max(1)) => {
                self.end_measurement(now_ms, random);
            }
            Phase::Following if now_ms >= self.until_ms => self.follow(now_ms),
            _ => {}
        }
    }

    /// Every request of an interval has the same chance to be among the samples.
    fn sample(&mut self, micros: u32, random: u64) {
        self.seen += 1;
        if self.samples.len() < SAMPLES {
            return self.samples.push(micros);
        }
        let at = ((u128::from(self.seen) * u128::from(random)) >> 64) as usize;
        if let Some(sample) = self.samples.get_mut(at) {
            *sample = micros;
        }
    }

    fn percentile(&mut self) -> u32 {
        let rank = (self.samples.len() * self.settings.percentile as usize / 100).min(self.samples.len() - 1);
        *self.samples.select_nth_unstable(rank).1
    }

    fn begin_measurement(&mut self) {
        self.phase = Phase::Measuring;
        self.limit_before = self.limit;
        self.limit = self.settings.min_concurrency.max(1);
        self.forget();
    }

    fn end_measurement(&mut self, now_ms: u64, random: u64) {
        self.min_rtt = self.percentile().max(1);
        self.phase = Phase::Following;
        self.limit = self.limit_before;
        self.stuck = 0;
        let interval = self.settings.min_rtt_interval.as_millis() as u64;
        // Workers and gateways must not measure at the same time: each would take the others' calm for the pool's.
        let jitter = interval * JITTER / 100;
        self.measure_at_ms = now_ms + interval + ((u128::from(jitter) * u128::from(random)) >> 64) as u64;
        self.begin_interval(now_ms);
    }

    fn follow(&mut self, now_ms: u64) {
        let sample = f64::from(self.percentile().max(1));
        let min_rtt = f64::from(self.min_rtt);
        let buffer = min_rtt * f64::from(self.settings.buffer_percent) / 100.0;
        let gradient = ((min_rtt + buffer) / sample).clamp(0.5, 2.0);
        let limit = f64::from(self.limit) * gradient;
        let (least, most) = (self.settings.min_concurrency.max(1), self.settings.max_concurrency.max(1));
        self.limit = ((limit + limit.sqrt()) as u32).clamp(least, most.max(least));
        self.stuck = if self.limit == least { self.stuck + 1 } else { 0 };
        if self.stuck >= STUCK {
            self.begin_measurement();
        } else {
            self.begin_interval(now_ms);
        }
    }

    fn begin_interval(&mut self, now_ms: u64) {
        self.until_ms = now_ms + self.settings.update_interval.as_millis() as u64;
        self.forget();
    }

    fn forget(&mut self) {
        self.samples.clear();
        self.seen = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that works on `capacity` requests at once in 10 ms; more queue up. Offered `load` at once at most, the
    /// controller lets in what it lets in; gives its limit after so long.
    fn settle(capacity: u32, load: u32, ms: u64) -> u32 {
        let settings = AdaptiveConcurrency::default();
        let mut place = None;
        let mut now_ms = 0;
        let mut random = 1_u64;
        while now_ms < ms {
            let gradient = Gradient::of(&mut place, &Arc::new(settings.clone()), now_ms);
            let entered = (0..load).filter(|_| gradient.enter(now_ms)).count() as u32;
            let latency = Duration::from_millis(u64::from(10 * entered.max(capacity) / capacity));
            now_ms += latency.as_millis() as u64;
            for _ in 0..entered {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                gradient.leave(latency, now_ms, random);
            }
        }
        place.unwrap().limit()
    }

    #[test]
    fn the_limit_is_found() {
        for capacity in [20, 100] {
            let limit = settle(capacity, 2000, 20_000);
            // The latency may rise by a quarter, and there is the headroom of a square root.
            assert!((capacity..capacity * 2).contains(&limit), "capacity {capacity}: limit {limit}");
        }
    }

    #[test]
    fn without_pressure_nothing_is_refused_for_long() {
        assert!(settle(100, 50, 20_000) > 50);
    }

    #[test]
    fn a_measurement_lets_few_in_and_is_made_again() {
        let settings =
            Arc::new(AdaptiveConcurrency { min_rtt_interval: Duration::from_secs(1), ..Default::default() });
        let mut place = None;
        let gradient = Gradient::of(&mut place, &settings, 0);
        assert_eq!((0..10).filter(|_| gradient.enter(0)).count(), 3);
        (0..50).for_each(|_| gradient.leave(Duration::from_millis(5), 0, 0));
        assert_eq!(gradient.phase, Phase::Following);
        (0..200).for_each(|step| {
            gradient.enter(step);
            gradient.leave(Duration::from_millis(5), step, 0);
        });
        assert!(gradient.limit() > 3);
        gradient.enter(5000);
        assert_eq!((gradient.phase, gradient.limit()), (Phase::Measuring, 3));
    }

    #[test]
    fn other_settings_begin_anew_and_keep_count() {
        let mut place = None;
        let first = Arc::new(AdaptiveConcurrency::default());
        assert!(Gradient::of(&mut place, &first, 0).enter(0));
        let second = Arc::new(AdaptiveConcurrency { min_concurrency: 1, ..Default::default() });
        assert!(!Gradient::of(&mut place, &second, 0).enter(0));
    }
}
