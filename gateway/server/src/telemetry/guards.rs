//! What guards decide, and how long those take that are asked about.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::guard::Guard;
use fieldgate_core::ir::ObjectKey;
use rustc_hash::FxHashMap;

use super::metrics::Telemetry;
use super::recorder::{IDLE_FLUSHES, LocalCounter};
use super::series::{Histogram, LocalHistogram};

/// What came of a request at a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardResult {
    /// It may pass.
    Allowed,
    /// It may not.
    Denied,
    /// It may not, for nobody could say.
    Error,
    /// It may pass although nobody could say.
    FailedOpen,
}

impl GuardResult {
    const ALL: [&'static str; 4] = ["allowed", "denied", "error", "failed_open"];
}

/// The counts of one worker. An object is told by where its name is, which its cell keeps there.
#[derive(Default)]
pub(super) struct Guards(RefCell<FxHashMap<(usize, usize), Counts>>);

struct Counts {
    _object: ObjectKey,
    results: [LocalCounter; GuardResult::ALL.len()],
    /// Only of guards that ask.
    shared: Option<Arc<Histogram>>,
    seconds: LocalHistogram,
    labels: [(&'static str, String); 2],
    idle: Cell<u32>,
}

impl Guards {
    pub fn decided(&self, telemetry: &Telemetry, guard: &dyn Guard, result: GuardResult) {
        self.with(telemetry, guard, |cell| cell.results[result as usize].add());
    }

    pub fn asked(&self, telemetry: &Telemetry, guard: &dyn Guard, took: Duration) {
        self.with(telemetry, guard, |cell| {
            let shared = cell.shared.get_or_insert_with(|| telemetry.guard_seconds(&cell.labels));
            cell.seconds.record(shared, took.as_nanos() as u64);
        });
    }

    fn with(&self, telemetry: &Telemetry, guard: &dyn Guard, then: impl FnOnce(&mut Counts)) {
        let key = guard.key();
        let address = |text: &Arc<str>| Arc::as_ptr(text).cast::<()>() as usize;
        let mut cells = self.0.borrow_mut();
        let cell = cells
            .entry((address(&key.namespace), address(&key.name)))
            .or_insert_with(|| Counts::new(telemetry, guard));
        then(cell);
    }

    pub fn flush(&self) {
        self.0.borrow_mut().retain(|_, cell| cell.flush() < IDLE_FLUSHES);
    }
}

impl Counts {
    fn new(telemetry: &Telemetry, guard: &dyn Guard) -> Self {
        let object = guard.key().clone();
        let labels = [("guard", guard.name().to_owned()), ("object", object.to_string())];
        let results = GuardResult::ALL.map(|result| {
            let labels = [("guard", &*labels[0].1), ("object", &*labels[1].1), ("result", result)];
            LocalCounter::new(telemetry.counter("fieldgate_guard_decisions_total", &labels))
        });
        Self {
            _object: object,
            results,
            shared: None,
            seconds: LocalHistogram::default(),
            labels,
            idle: Cell::new(0),
        }
    }

    /// Returns how many flushes in a row found nothing.
    fn flush(&self) -> u32 {
        let counted = self.results.iter().fold(false, |any, counter| counter.flush() | any);
        self.idle.set(if counted { 0 } else { self.idle.get() + 1 });
        if let Some(shared) = &self.shared {
            self.seconds.flush(shared);
        }
        self.idle.get()
    }
}

#[cfg(test)]
mod tests {
    use fieldgate_core::ir::ObjectKey;
    use fieldgate_plugins::guards;

    use super::*;

    #[test]
    fn decisions_and_times_are_in_the_text_after_a_flush() {
        let telemetry = Telemetry::new();
        let counts = Guards::default();
        let key = ObjectKey { kind: "ExternalAuthorizer", namespace: "default".into(), name: "opa".into() };
        let guard = guards::closed(&key, "a test");
        counts.decided(&telemetry, &*guard, GuardResult::Denied);
        counts.decided(&telemetry, &*guard, GuardResult::FailedOpen);
        counts.asked(&telemetry, &*guard, Duration::from_millis(3));
        counts.flush();
        let text = telemetry.render(|_| ());
        let labels = "guard=\"closed\",object=\"ExternalAuthorizer default/opa\"";
        for (result, count) in [("allowed", 0), ("denied", 1), ("error", 0), ("failed_open", 1)] {
            let line = format!("fieldgate_guard_decisions_total{{{labels},result=\"{result}\"}} {count}");
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(
            text.contains(&format!("fieldgate_guard_seconds_bucket{{{labels},le=\"0.005\"}} 1")),
            "{text}"
        );
        assert!(
            text.contains(&format!("fieldgate_guard_seconds_bucket{{{labels},le=\"0.0025\"}} 0")),
            "{text}"
        );
    }
}
