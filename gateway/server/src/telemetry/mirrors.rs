//! Counts of mirrored requests. They are kept apart from the requests that clients made: a copy is nobody's request, so
//! it is in no `istio_*` metric and in no access log.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use fieldgate_core::ir::{BackendTarget, Mirror};

use super::metrics::Telemetry;
use super::recorder::LocalCounter;

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorOutcome {
    /// The mirror got the whole request and answered it, whatever the answer.
    Sent,
    /// The gateway gave it up: the mirror could not keep up, too many copies were under way, the client did not finish
    /// its request, or the process ended.
    Dropped,
    /// The mirror could not be reached, broke off, or did not answer in time.
    Failed,
}

impl MirrorOutcome {
    const ALL: [Self; 3] = [Self::Sent, Self::Dropped, Self::Failed];

    fn label(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// The counts of one mirror on one worker.
pub struct MirrorCounts {
    /// Mirrors are told apart by address; while this lives the address is not used again.
    _mirror: Arc<Mirror>,
    outcomes: [LocalCounter; MirrorOutcome::ALL.len()],
    idle: Cell<u32>,
}

impl MirrorCounts {
    pub(super) fn new(telemetry: &Telemetry, mirror: &Arc<Mirror>, rule: &str) -> Self {
        let pool = match &mirror.backend {
            BackendTarget::Pool(key) => key.to_string(),
            BackendTarget::Invalid(_) => "invalid".to_owned(),
        };
        let counter = |outcome: MirrorOutcome| {
            let labels = [("rule", rule), ("pool", &*pool), ("outcome", outcome.label())];
            LocalCounter::new(telemetry.counter("fieldgate_mirror_requests_total", &labels))
        };
        Self { _mirror: mirror.clone(), outcomes: MirrorOutcome::ALL.map(counter), idle: Cell::new(0) }
    }

    /// Counts a copy that is over. To be called once for each.
    pub fn add(&self, outcome: MirrorOutcome) {
        self.outcomes[outcome as usize].add();
    }

    /// Returns how many flushes in a row found nothing and nobody who may still count.
    pub(super) fn flush(this: &Rc<Self>) -> u32 {
        let counted = this.outcomes.iter().filter(|c| c.flush()).count();
        let used = counted > 0 || Rc::strong_count(this) > 1;
        this.idle.set(if used { 0 } else { this.idle.get() + 1 });
        this.idle.get()
    }
}
