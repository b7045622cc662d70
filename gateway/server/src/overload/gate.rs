//! What a worker looks at before it takes a request: one cell, which is `false` as long as nothing is wrong.

use std::cell::Cell;

use tokio::sync::Notify;

use super::{Pressure, Refusal};

/// Decides about new requests of one worker.
#[derive(Debug)]
pub struct Gate {
    /// Whether there is anything to decide.
    closed: Cell<bool>,
    pressure: Cell<Pressure>,
    /// The share of requests that is admitted, 0 to 1.
    admitted: Cell<f64>,
    /// Nobody measures the delay while nothing happens.
    resting: Cell<bool>,
    wake: Notify,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            closed: Cell::new(false),
            pressure: Cell::default(),
            admitted: Cell::new(1.0),
            resting: Cell::new(false),
            wake: Notify::new(),
        }
    }
}

impl Gate {
    /// Why a new request is not taken, if it is not. `random` decides when only some are.
    pub fn refuses(&self, random: impl FnOnce() -> u64) -> Option<Refusal> {
        if self.closed.get() { self.decide(random) } else { None }
    }

    #[cold]
    fn decide(&self, random: impl FnOnce() -> u64) -> Option<Refusal> {
        if self.resting.replace(false) {
            self.wake.notify_one();
            self.look();
        }
        if self.pressure.get() >= Pressure::Tight {
            return Some(Refusal::Memory);
        }
        let admitted = self.admitted.get();
        let drawn = (random() >> 11) as f64 / (1_u64 << 53) as f64;
        (drawn >= admitted).then_some(Refusal::Delay)
    }

    /// How scarce memory is from now on.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.pressure.set(pressure);
        self.look();
    }

    /// How scarce it is.
    pub fn pressure(&self) -> Pressure {
        self.pressure.get()
    }

    /// The share of new requests that is admitted from now on.
    pub fn set_admitted(&self, share: f64) {
        self.admitted.set(share);
        self.look();
    }

    /// Ready with the next request.
    pub async fn rest(&self) {
        self.resting.set(true);
        self.look();
        self.wake.notified().await;
    }

    #[cfg(test)]
    pub(super) fn is_resting(&self) -> bool {
        self.resting.get()
    }

    fn look(&self) {
        let open = self.pressure.get() == Pressure::None && self.admitted.get() >= 1.0 && !self.resting.get();
        self.closed.set(!open);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn an_open_gate_draws_no_lots() {
        let gate = Gate::default();
        assert_eq!(gate.refuses(|| unreachable!()), None);
    }

    #[test]
    fn shares_are_those_asked_for() {
        let gate = Gate::default();
        gate.set_admitted(0.25);
        let refused = (0..1000_u64).filter(|n| gate.refuses(|| n << 54).is_some()).count();
        assert_eq!(refused, 1000 - 256);
        assert_eq!(gate.refuses(|| u64::MAX), Some(Refusal::Delay));
        gate.set_pressure(Pressure::Tight);
        assert_eq!(gate.refuses(|| 0), Some(Refusal::Memory));
        gate.set_pressure(Pressure::None);
        gate.set_admitted(1.0);
        assert_eq!(gate.refuses(|| unreachable!()), None);
    }

    #[test]
    fn the_first_request_ends_a_rest_and_is_taken() {
        let gate = Gate::default();
        let mut rest = Box::pin(gate.rest());
        assert!(rest.as_mut().now_or_never().is_none());
        assert_eq!(gate.refuses(|| u64::MAX), None);
        assert!(rest.as_mut().now_or_never().is_some());
        assert_eq!(gate.refuses(|| unreachable!()), None);
    }
}
