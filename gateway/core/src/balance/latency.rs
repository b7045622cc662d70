//! What a worker expects an endpoint's response time to be: a moving average that follows a rise at once and a fall
//! slowly (peak-sensitive EWMA, as in Finagle's balancer), and forgets while nothing is heard.

use std::time::Duration;

/// The cost of an endpoint that has requests but has never answered: more than any that has. Two such are compared by
/// their requests in flight.
const UNHEARD: f64 = 1e15;

/// Of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// 0 if it has never answered.
    micros: f32,
    at_ms: u64,
}

impl Latency {
    /// A response took so long.
    pub fn observe(&mut self, took: Duration, now_ms: u64, decay: Duration) {
        let took = (took.as_secs_f32() * 1e6).max(1.0);
        let kept = self.kept(now_ms, decay);
        self.micros = if took > self.micros * kept { took } else { self.micros * kept + took * (1.0 - kept) };
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// What one more request costs.
    pub fn cost(&self, now_ms: u64, decay: Duration, in_flight: u32) -> f64 {
        let waiting = f64::from(in_flight) + 1.0;
        if self.micros > 0.0 {
            f64::from(self.micros * self.kept(now_ms, decay)) * waiting
        } else if in_flight == 0 {
            // Nothing is known: it is worth a try.
            0.0
        } else {
            UNHEARD * waiting
        }
    }

    /// The part of what was known that still counts.
    fn kept(&self, now_ms: u64, decay: Duration) -> f32 {
        let elapsed = now_ms.saturating_sub(self.at_ms) as f32;
        (-elapsed / (decay.as_secs_f32() * 1e3).max(1.0)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    #[test]
    fn rises_at_once_falls_slowly_and_forgets() {
        let mut latency = Latency::default();
        assert!((latency.cost(0, DECAY, 0), latency.cost(0, DECAY, 1) > 1e14) == (0.0, true));
        latency.observe(Duration::from_millis(10), 0, DECAY);
        latency.observe(Duration::from_millis(100), 1, DECAY);
        let peak = latency.cost(1, DECAY, 0);
        assert!((peak - 100_000.0).abs() < 1.0, "{peak}");
        latency.observe(Duration::from_millis(10), 1001, DECAY);
        let after = latency.cost(1001, DECAY, 0);
        assert!(after > 80_000.0 && after < peak, "{after}");
        assert!(latency.cost(1001, DECAY, 3) > 3.9 * after);
        assert!(latency.cost(60_000, DECAY, 0) < after / 100.0);
    }
}
