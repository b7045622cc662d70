//! Where keys are found by those who check tokens. Who fetches them, and when, is not known here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use fieldgate_core::ir::Jwks;

use super::Refusal;
use super::keys::{BadKeySet, KeySet};

/// A cell that always has the newest keys, once there are any. Workers only read it.
pub struct KeySource {
    keys: ArcSwapOption<KeySet>,
    /// Why there will never be any.
    problem: Option<BadKeySet>,
    wanted: AtomicBool,
    wake: Option<Box<dyn Fn() + Send + Sync>>,
}

/// Finds the source of what is configured.
pub type KeySources<'a> = &'a dyn Fn(&Jwks) -> Arc<KeySource>;

impl KeySource {
    /// Keys that are fetched, of which there are none yet. `wake` is called, perhaps on a worker and not again before
    /// [`KeySource::take_wish`], when a token names a key that is not there.
    pub fn fetched(wake: impl Fn() + Send + Sync + 'static) -> Self {
        let wake: Box<dyn Fn() + Send + Sync> = Box::new(wake);
        Self { keys: ArcSwapOption::empty(), problem: None, wanted: AtomicBool::new(false), wake: Some(wake) }
    }

    /// Keys that are written in the configuration.
    pub fn inline(document: &str) -> Self {
        let (keys, problem) = match KeySet::parse(document.as_bytes()) {
            Ok(keys) => (Some(Arc::new(keys)), None),
            Err(problem) => (None, Some(problem)),
        };
        let keys = ArcSwapOption::from(keys);
        Self { keys, problem, wanted: AtomicBool::new(false), wake: None }
    }

    /// The keys there are now.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// Puts newer keys in the place of those there are.
    pub fn replace(&self, keys: KeySet) {
        self.keys.store(Some(Arc::new(keys)));
    }

    /// Whether somebody wished for newer keys since this was asked last.
    pub fn take_wish(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// For the time of one check.
    pub(super) fn load(&self) -> Guard<Option<Arc<KeySet>>> {
        self.keys.load()
    }

    /// Why there will never be keys.
    pub fn problem(&self) -> Option<&BadKeySet> {
        self.problem.as_ref()
    }

    /// What is said of a token while there are no keys.
    pub fn refusal(&self) -> Refusal {
        if self.problem.is_some() { Refusal::NoValidKeys } else { Refusal::NoKeys }
    }

    /// Says that a token names a key that is not there. A stranger can make this happen at any rate, so that it must cost
    /// next to nothing when it was said before.
    pub fn wish_for_newer(&self) {
        let Some(wake) = &self.wake else { return };
        if !self.wanted.load(Ordering::Relaxed) && !self.wanted.swap(true, Ordering::AcqRel) {
            wake();
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeySource").field(&self.keys.load()).finish()
    }
}
