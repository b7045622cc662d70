//! Which sessions are being refreshed. A browser asks for many things at once, and a refresh token is often good for one use
//! only: whoever comes second uses what the first has got. The lock is taken only when a session is due.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::session::Session;

/// How long what came out is kept for those who come with the old cookie.
const KEPT: Duration = Duration::from_mins(1);
/// How long a refresh that has no answer keeps others from trying.
const TRY: Duration = Duration::from_secs(10);
/// Sessions that are kept at most; of more, each request refreshes for itself.
const MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Refreshing(Mutex<FxHashMap<String, Entry>>);

#[derive(Debug)]
struct Entry {
    at: Instant,
    outcome: Option<Outcome>,
}

/// What came of a refresh.
#[derive(Clone, Debug)]
pub enum Outcome {
    Renewed(Arc<Session>),
    /// The provider has ended the session.
    Over,
}

/// What a request whose session is due does.
pub enum Turn {
    /// It refreshes.
    Ours,
    /// Somebody else does; the session is good meanwhile.
    Others,
    Done(Outcome),
}

impl Refreshing {
    pub fn turn(&self, id: &str, now: Instant) -> Turn {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(id) {
            Some(Entry { at, outcome: Some(outcome) }) if now < *at + KEPT => {
                return Turn::Done(outcome.clone());
            }
            Some(Entry { at, outcome: None }) if now < *at + TRY => return Turn::Others,
            _ => {}
        }
        if all.len() >= MAX {
            all.retain(|_, entry| now < entry.at + if entry.outcome.is_some() { KEPT } else { TRY });
        }
        if all.len() < MAX {
            all.insert(id.to_owned(), Entry { at: now, outcome: None });
        }
        Turn::Ours
    }

    pub fn done(&self, id: &str, outcome: Outcome, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = all.get_mut(id) {
            *entry = Entry { at: now, outcome: Some(outcome) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_refreshes_and_the_others_have_what_it_got() {
        let refreshing = Refreshing::default();
        let now = Instant::now();
        assert!(matches!(refreshing.turn("a", now), Turn::Ours));
        assert!(matches!(refreshing.turn("a", now), Turn::Others));
        assert!(matches!(refreshing.turn("b", now), Turn::Ours));
        assert!(matches!(refreshing.turn("a", now + TRY), Turn::Ours), "the first has had no answer");
        refreshing.done("a", Outcome::Over, now);
        assert!(matches!(refreshing.turn("a", now + TRY), Turn::Done(Outcome::Over)));
        assert!(matches!(refreshing.turn("a", now + KEPT), Turn::Ours));
    }

    #[test]
    fn it_is_bounded() {
        let refreshing = Refreshing::default();
        let now = Instant::now();
        for n in 0..2 * MAX {
            assert!(matches!(refreshing.turn(&n.to_string(), now), Turn::Ours));
        }
        assert_eq!(refreshing.0.lock().unwrap().len(), MAX);
        assert!(matches!(refreshing.turn("later", now + TRY), Turn::Ours));
        assert_eq!(refreshing.0.lock().unwrap().len(), 1);
    }
}
