//! The account of one request's tries: what the gateway does with what core says of retries. The same rules as in the
//! server, and beside them, written another way, when a request may be sent again at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::Headers;
use fieldgate_core::balance::CompiledPool;
use fieldgate_core::ir::{Retry, RetryOn};
use fieldgate_core::retry::{self, Repeat, Trouble};

use crate::world::Outcome;

/// Tries of what no endpoint has begun, or what may be repeated, without being asked for. Not core's own: it is checked.
const UNASKED_TRIES: u32 = 3;
/// Kept connections that may turn out closed.
const STALE_TRIES: u32 = 16;

#[derive(Default)]
pub struct Account {
    pub route: Option<Arc<Retry>>,
    pub idempotent: bool,
    /// A part of the body was sent and is not there any more.
    pub body_gone: bool,
    pub tried: Vec<SocketAddr>,
    pub failed: u32,
    pub stale: u32,
}

/// What to do after a try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Again(Duration),
    Over,
}

pub struct Now<'a> {
    pub pool: &'a CompiledPool,
    pub ms: u64,
    /// The request has time until then.
    pub limit_ms: u64,
    pub random: u64,
    /// Takes one from the retry budget, once for each request.
    pub budget: &'a mut dyn FnMut() -> bool,
}

impl Account {
    /// Whether a response is to be replaced by that of another try.
    pub fn after_response(&mut self, outcome: Outcome, address: SocketAddr, now: &mut Now<'_>) -> Next {
        let Some(route) = self.route.clone() else { return Next::Over };
        let (status, headers) = response(outcome);
        let trouble = Trouble::Response { status, headers: &headers, grpc: false };
        let repeat = retry::repeat(Some(&route), &trouble, self.idempotent, self.failed);
        if !matches!(repeat, Repeat::Yes { .. }) || self.body_gone || !(now.budget)() {
            return Next::Over;
        }
        match self.pause(Some(&headers), now) {
            Some(pause) => {
                self.count(address, now);
                Next::Again(pause)
            }
            None => Next::Over,
        }
    }

    /// What follows a try that had no response.
    pub fn after_failure(&mut self, outcome: Outcome, address: SocketAddr, now: &mut Now<'_>) -> Next {
        let trouble = match outcome {
            Outcome::Stale { unsent }
                if (unsent || self.idempotent) && !self.body_gone && self.stale < STALE_TRIES =>
            {
                self.stale += 1;
                return Next::Again(Duration::ZERO);
            }
            Outcome::Nothing if now.ms >= now.limit_ms => return Next::Over,
            Outcome::Nothing => Trouble::TryTimedOut,
            Outcome::Reset { unsent } | Outcome::Stale { unsent } => {
                Trouble::Reset { before_request: unsent, refused_stream: unsent }
            }
            Outcome::Refused | Outcome::Status(_) | Outcome::Busy(..) => Trouble::NoConnection,
        };
        let repeat = retry::repeat(self.route.as_deref(), &trouble, self.idempotent, self.failed);
        let is_asked = matches!(repeat, Repeat::Yes { asked: true, .. });
        let again = match repeat {
            Repeat::Yes { .. } if self.body_gone => None,
            Repeat::Yes { budgeted: true, .. } if !(now.budget)() => None,
            Repeat::Yes { asked: true, .. } => self.pause(None, now),
            Repeat::Yes { .. } => Some(Duration::ZERO),
            Repeat::No | Repeat::Exhausted => None,
        };
        self.count(address, now);
        match again {
            Some(pause) if is_asked || !self.tried.is_empty() => Next::Again(pause),
            _ => Next::Over,
        }
    }

    /// The endpoint has had its try. If there is no other, all may be tried again.
    fn count(&mut self, address: SocketAddr, now: &Now<'_>) {
        self.failed += 1;
        self.tried.push(address);
        let mut all = now.pool.endpoints.iter();
        let other = all
            .any(|e| !e.is_draining() && e.state.available(now.ms) && !self.tried.contains(&e.state.address));
        if !other {
            self.tried.clear();
        }
    }

    fn pause(&self, response: Option<&Headers>, now: &Now<'_>) -> Option<Duration> {
        let Some(route) = &self.route else { return Some(Duration::ZERO) };
        let pause = retry::pause(route, self.failed + 1, response, 0, now.random);
        pause.filter(|pause| now.ms + (pause.as_millis() as u64) < now.limit_ms)
    }

    /// Why it is right to send the request again after this, if it is.
    pub fn permission(&self, outcome: Outcome) -> Option<&'static str> {
        let words = self.route.as_ref().map_or(String::new(), |route| route.on.to_string());
        let asks = |wanted: &[&str]| words.split(',').any(|word| wanted.contains(&word));
        let no_response = ["5xx", "gateway-error", "reset"];
        match outcome {
            Outcome::Refused => Some("nobody has it"),
            Outcome::Reset { unsent: true } | Outcome::Stale { unsent: true } => Some("nothing was sent"),
            Outcome::Reset { .. } | Outcome::Stale { .. } if self.idempotent => Some("it may be repeated"),
            Outcome::Reset { .. } | Outcome::Stale { .. } | Outcome::Nothing => {
                asks(&no_response).then_some("the route asks for it without a response")
            }
            Outcome::Status(status) | Outcome::Busy(status, _) => {
                let wanted = match status {
                    409 => asks(&["retriable-4xx"]),
                    502..=504 => asks(&["5xx", "gateway-error"]),
                    500..=599 => asks(&["5xx"]),
                    _ => false,
                };
                let listed = self.route.as_ref().is_some_and(|route| route.codes.contains(&status));
                (wanted || listed && asks(&["retriable-status-codes"]))
                    .then_some("the route asks for another")
            }
        }
    }

    /// How often it may be sent in all.
    pub fn most_sends(&self) -> u32 {
        self.route.as_ref().map_or(1, |route| route.attempts + 1).max(UNASKED_TRIES) + self.stale
    }

    /// The longest pause that the route allows.
    pub fn longest_pause(&self) -> Duration {
        let of = |route: &Arc<Retry>| route.backoff.max.max(route.retry_after.unwrap_or_default());
        self.route.as_ref().map_or(Duration::ZERO, of)
    }
}

fn response(outcome: Outcome) -> (u16, Headers) {
    let mut headers = Headers::new();
    match outcome {
        Outcome::Busy(status, seconds) => {
            headers.push(b"retry-after", seconds.to_string().as_bytes());
            (status, headers)
        }
        Outcome::Status(status) => (status, headers),
        _ => (0, headers),
    }
}

/// Used by [`Account::permission`] through its words; all of them are known.
#[test]
fn the_words_are_cores() {
    for word in ["5xx", "gateway-error", "reset", "retriable-4xx", "retriable-status-codes"] {
        assert!(RetryOn::word(word).is_some(), "{word}");
    }
}
