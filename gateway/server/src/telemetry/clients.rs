//! What became of certificates that clients showed: counts by listener, and a line of the log for each that was refused, as far
//! as the log can take it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_core::ir::ListenerKey;
use fieldgate_wire::tls::{Refusal, RefusalReason};
use rustc_hash::FxHashMap;

use super::metrics::Telemetry;
use super::recorder::LocalCounter;

/// Lines per worker and second. What comes after is counted, in the metrics and in the next line.
const LINES: u32 = 20;

/// The counts of one worker.
#[derive(Default)]
pub(super) struct Clients {
    refused: RefCell<FxHashMap<(ListenerKey, RefusalReason), LocalCounter>>,
    verified: RefCell<FxHashMap<ListenerKey, LocalCounter>>,
    lines: Lines,
}

#[derive(Default)]
struct Lines {
    since: Cell<Option<Instant>>,
    written: Cell<u32>,
    left_out: Cell<u64>,
}

impl Clients {
    pub(super) fn refused(
        &self,
        telemetry: &Telemetry,
        listener: &ListenerKey,
        peer: SocketAddr,
        refusal: &Refusal,
        went_on: bool,
    ) {
        let mut refused = self.refused.borrow_mut();
        let count = refused.entry((listener.clone(), refusal.reason)).or_insert_with(|| {
            let name = listener.to_string();
            let labels = [("listener", &*name), ("reason", refusal.reason.as_str())];
            LocalCounter::new(telemetry.counter("fieldgate_client_certificates_refused_total", &labels))
        });
        count.add();
        let Some(left_out) = self.lines.turn(Instant::now()) else { return };
        let reason = refusal.reason.as_str();
        let what = if went_on { "does not count" } else { "is refused" };
        if left_out > 0 {
            tracing::info!(%listener, %peer, reason, left_out, "a client's certificate {what}: {refusal}");
        } else {
            tracing::info!(%listener, %peer, reason, "a client's certificate {what}: {refusal}");
        }
    }

    pub(super) fn verified(&self, telemetry: &Telemetry, listener: &ListenerKey) {
        let mut verified = self.verified.borrow_mut();
        if let Some(count) = verified.get(listener) {
            return count.add();
        }
        let name = listener.to_string();
        let counter =
            telemetry.counter("fieldgate_client_certificates_verified_total", &[("listener", &*name)]);
        verified.entry(listener.clone()).or_insert(LocalCounter::new(counter)).add();
    }

    pub(super) fn flush(&self) {
        self.refused.borrow().values().for_each(|count| _ = count.flush());
        self.verified.borrow().values().for_each(|count| _ = count.flush());
    }
}

impl Lines {
    /// Whether a line may be written, and how many were not since the one before.
    fn turn(&self, now: Instant) -> Option<u64> {
        let fresh = self.since.get().is_none_or(|since| now - since >= Duration::from_secs(1));
        if fresh {
            self.since.set(Some(now));
            self.written.set(0);
        }
        if self.written.get() == LINES {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.written.set(self.written.get() + 1);
        Some(self.left_out.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_what_is_left_out_is_told() {
        let lines = Lines::default();
        let start = Instant::now();
        let written = (0..100).filter(|_| lines.turn(start).is_some()).count();
        assert_eq!(written, LINES as usize);
        assert_eq!(lines.turn(start + Duration::from_secs(1)), Some(100 - u64::from(LINES)));
        assert_eq!(lines.turn(start + Duration::from_secs(1)), Some(0));
    }
}
