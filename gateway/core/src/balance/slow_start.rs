//! Slow start: an endpoint that is new or back gets its full share step by step (Envoy: "Slow start mode").
//!
//! Nothing here is per request: weights are a part of the worker's view, which is made anew at each step.

use super::view::Class;
use super::{CompiledEndpoint, CompiledPool};
use crate::ir;

/// Steps in a window. Envoy has none, for it computes weights at each choice.
const STEPS: u64 = 50;
/// The shortest step; it bounds what making the view anew costs.
const STEP_MS: u64 = 20;
/// What weights are times while an endpoint is in slow start, so that parts of them can be told apart.
const SCALE: u32 = 1000;

/// The weight of each endpoint, if some are in slow start. Notes those that enter it, and brings `expires_ms` forward to
/// the next step.
pub fn weights(
    pool: &CompiledPool,
    classes: &[Class],
    now_ms: u64,
    expires_ms: &mut u64,
) -> Option<Vec<u32>> {
    let slow = pool.ir.spread.slow_start.as_ref()?;
    let window_ms = slow.window.as_millis() as u64;
    let applies = matches!(pool.ir.balance, ir::Balance::RoundRobin | ir::Balance::LeastRequest { .. });
    if !applies || window_ms == 0 {
        return None;
    }
    let mut age_ms = |(endpoint, class): (&CompiledEndpoint, &Class)| {
        if !class.is_available() {
            endpoint.state.leave();
            return None;
        }
        let age_ms = now_ms.saturating_sub(endpoint.state.entered_ms(now_ms)?);
        if age_ms >= window_ms {
            return None;
        }
        let step_ms = (window_ms / STEPS).max(STEP_MS).min(window_ms - age_ms);
        *expires_ms = (*expires_ms).min(now_ms + step_ms);
        Some(age_ms)
    };
    let ages: Vec<Option<u64>> = pool.endpoints.iter().zip(classes).map(&mut age_ms).collect();
    if ages.iter().all(Option::is_none) {
        return None;
    }
    let heaviest = pool.endpoints.iter().map(|e| e.ir.weight).max()?;
    let scale = (u32::MAX / heaviest.max(1)).clamp(1, SCALE);
    let weight = |(endpoint, age): (&CompiledEndpoint, &Option<u64>)| {
        let full = endpoint.ir.weight.saturating_mul(scale);
        age.map_or(full, |age| ((f64::from(full) * part(slow, age)) as u32).max(1))
    };
    Some(pool.endpoints.iter().zip(&ages).map(weight).collect())
}

/// The part of its weight that an endpoint has at this age.
fn part(slow: &ir::SlowStart, age_ms: u64) -> f64 {
    let time = age_ms.max(1) as f64 / slow.window.as_millis() as f64;
    let grown = time.powf(100.0 / f64::from(slow.aggression.max(1)));
    grown.max(f64::from(slow.min_weight) / 100.0).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn as_envoys_formula() {
        let at = |aggression, age_ms| {
            let slow = ir::SlowStart { window: Duration::from_secs(100), aggression, min_weight: 10 };
            (part(&slow, age_ms) * 1000.0).round() as u32
        };
        assert_eq!([0, 5_000, 10_000, 50_000, 100_000].map(|age| at(100, age)), [100, 100, 100, 500, 1000]);
        assert_eq!([1_000, 25_000, 81_000].map(|age| at(200, age)), [100, 500, 900]);
        assert_eq!([50_000, 90_000].map(|age| at(50, age)), [250, 810]);
    }
}
