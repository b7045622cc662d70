//! Waiting for a condition, within a bound.

use std::time::{Duration, Instant};

/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(2);

/// Polls until `condition` gives a value, for at most `bound`; `what` completes "waited in vain for".
pub fn until<T>(bound: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T, String> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() >= bound {
            return Err(in_vain(bound, what));
        }
        std::thread::sleep(INTERVAL);
    }
}

/// As [`until`], for a condition that is true or false.
pub fn until_true(bound: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    until(bound, what, || condition().then_some(()))
}

/// As [`until`], from within a runtime, whose other tasks go on meanwhile.
pub async fn eventually<T>(
    bound: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, String> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if started.elapsed() >= bound {
            return Err(in_vain(bound, what));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn in_vain(bound: Duration, what: &str) -> String {
    format!("waited {:.1} s in vain for {what}", bound.as_secs_f64())
}
