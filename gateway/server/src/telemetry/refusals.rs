//! Counts of what the gateway refused for its own sake, by reason. All are there from the start, so that an alert has its
//! series before the first refusal.

use super::metrics::Telemetry;
use super::recorder::LocalCounter;
use crate::overload::Refusal;

/// The counts of one worker.
pub(super) struct Refusals {
    connections: [LocalCounter; Refusal::ALL.len()],
    requests: [LocalCounter; Refusal::ALL.len()],
    floods: [LocalCounter; FLOODS.len()],
    shortages: LocalCounter,
}

/// Why HTTP/2 connections are ended, as `fieldgate_wire::metered` names it.
const FLOODS: [&str; 2] = ["frames", "resets"];

impl Refusals {
    pub(super) fn new(telemetry: &Telemetry) -> Self {
        let by_reason = |name| {
            Refusal::ALL.map(|why| LocalCounter::new(telemetry.counter(name, &[("reason", why.as_str())])))
        };
        let flood =
            |kind| LocalCounter::new(telemetry.counter("fieldgate_http2_floods_total", &[("kind", kind)]));
        Self {
            connections: by_reason("fieldgate_connections_refused_total"),
            requests: by_reason("fieldgate_requests_refused_total"),
            floods: FLOODS.map(flood),
            shortages: LocalCounter::new(telemetry.counter("fieldgate_file_shortages_total", &[])),
        }
    }

    pub(super) fn connection(&self, why: Refusal) {
        self.connections[why as usize].add();
    }

    pub(super) fn request(&self, why: Refusal) {
        self.requests[why as usize].add();
    }

    pub(super) fn flood(&self, kind: &str) {
        let known = FLOODS.iter().position(|known| *known == kind);
        self.floods[known.unwrap_or_default()].add();
    }

    pub(super) fn shortage(&self) {
        self.shortages.add();
    }

    pub(super) fn flush(&self) {
        let all = self.connections.iter().chain(&self.requests).chain(&self.floods);
        all.for_each(|counter| _ = counter.flush());
        self.shortages.flush();
    }
}
