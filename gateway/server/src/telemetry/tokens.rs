//! Counts of what became of tokens. All are there from the start, so that an alert has its series before the first refusal.

use fieldgate_plugins::jwt::{Passed, Refusal};

use super::metrics::Telemetry;
use super::recorder::LocalCounter;

/// What becomes of requests that are asked for tokens.
const RESULTS: [&str; 12] = [
    "valid",
    "missing",
    "preflight",
    "malformed",
    "unknown_issuer",
    "not_yet_valid",
    "expired",
    "audience",
    "no_keys",
    "unknown_key",
    "bad_signature",
    "too_many",
];

/// The counts of one worker.
pub(super) struct Tokens {
    requests: [LocalCounter; RESULTS.len()],
    checked: LocalCounter,
    known: LocalCounter,
}

impl Tokens {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        let request = |result| {
            LocalCounter::new(telemetry.counter("fieldgate_jwt_requests_total", &[("result", result)]))
        };
        let token =
            |cache| LocalCounter::new(telemetry.counter("fieldgate_jwt_tokens_total", &[("cache", cache)]));
        Self { requests: RESULTS.map(request), checked: token("miss"), known: token("hit") }
    }

    pub(super) fn passed(&self, passed: Passed) {
        self.checked.add_many(u64::from(passed.checked));
        self.known.add_many(u64::from(passed.known));
        self.count(match passed {
            Passed { preflight: true, .. } => "preflight",
            Passed { checked: 0, known: 0, .. } => "missing",
            _ => "valid",
        });
    }

    pub(super) fn refused(&self, why: Refusal) {
        self.count(why.label());
    }

    fn count(&self, result: &str) {
        if let Some(index) = RESULTS.iter().position(|known| *known == result) {
            self.requests[index].add();
        }
    }

    pub(super) fn flush(&self) {
        let all = self.requests.iter().chain([&self.checked, &self.known]);
        all.for_each(|counter| _ = counter.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_series() {
        for refusal in Refusal::ALL {
            assert!(RESULTS.contains(&refusal.label()), "{refusal:?}");
        }
    }
}
