//! Fetches the keys that tokens are checked with, again and again, for all that want the same of them.
//!
//! Runs on the control runtime. What is fetched goes into a [`KeySource`] that workers only read: no request ever waits for
//! a fetch. Keys stay good while they cannot be fetched: an issuer's outage is not to be its users'. What keys are good for
//! is not known here.

mod fetch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use fieldgate_core::ir::{Config, GuardKind, Jwks, RemoteJwks};
use fieldgate_plugins::jwt::KeySource;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use fetch::Failure;

/// How often a set is fetched beside its refresh.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// From one fetch to the next at the least, when a token names a key that is not there: strangers can name any.
    earliest: Duration,
    /// The first pause after a failure; it doubles with each.
    first: Duration,
    /// The longest pause between failures.
    longest: Duration,
}

const PACE: Pace =
    Pace { earliest: Duration::from_secs(5), first: Duration::from_secs(1), longest: Duration::from_mins(1) };

/// The sets that are fetched.
pub struct KeySets {
    /// What the admin server reads, too.
    watched: Arc<ArcSwap<Watched>>,
    /// Called when the first fetch of a set is over, whatever came of it.
    report: Arc<dyn Fn() + Send + Sync>,
    pace: Pace,
}

type Watched = HashMap<Arc<RemoteJwks>, Arc<Watch>>;

/// One set with what is known of it.
pub struct Watch {
    /// What is fetched.
    pub remote: Arc<RemoteJwks>,
    /// Its keys.
    pub source: Arc<KeySource>,
    state: watch::Sender<State>,
    pace: Pace,
    wake: Arc<Notify>,
    task: Mutex<Option<AbortHandle>>,
}

/// What became of fetches.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Fetches that gave keys.
    pub succeeded: u64,
    /// Fetches that did not.
    pub failed: u64,
    /// When the keys there are were fetched, or found unchanged.
    pub fetched: Option<Instant>,
    /// Why the last fetch failed, if it did.
    pub failure: Option<Failure>,
}

impl State {
    fn is_first(&self) -> bool {
        self.succeeded + self.failed == 0
    }
}

impl KeySets {
    /// Nothing is fetched yet.
    pub fn new(report: impl Fn() + Send + Sync + 'static) -> Self {
        Self::at_pace(PACE, report)
    }

    fn at_pace(pace: Pace, report: impl Fn() + Send + Sync + 'static) -> Self {
        Self { watched: Arc::default(), report: Arc::new(report), pace }
    }

    /// Fetches exactly the sets that a configuration names. One that stays keeps its keys.
    pub fn reconcile(&mut self, config: &Config) {
        let before = self.watched.load_full();
        let mut now = Watched::new();
        for remote in remotes(config) {
            now.entry(Arc::clone(remote)).or_insert_with(|| {
                let kept = before.get(remote).cloned();
                kept.unwrap_or_else(|| Watch::start(Arc::clone(remote), Arc::clone(&self.report), self.pace))
            });
        }
        for (remote, watch) in &*before {
            if !now.contains_key(remote) {
                watch.stop();
            }
        }
        self.watched.store(Arc::new(now));
    }

    /// Where the keys are that somebody is configured with. Those of a set that no configuration named are never there.
    pub fn source(&self, jwks: &Jwks) -> Arc<KeySource> {
        match jwks {
            Jwks::Inline(document) => {
                let source = KeySource::inline(document);
                // An empty text stands for keys whose problem is on record already.
                if let Some(problem) = source.problem().filter(|_| !document.is_empty()) {
                    tracing::warn!(%problem, "keys that are written out cannot be used; tokens of their issuer are refused");
                }
                Arc::new(source)
            }
            Jwks::Remote(remote) => match self.watched.load().get(remote) {
                Some(watch) => Arc::clone(&watch.source),
                None => Arc::new(KeySource::fetched(|| ())),
            },
        }
    }

    /// Whether the first fetch of some set is not over yet.
    pub fn unanswered(&self) -> bool {
        self.watched.load().values().any(|watch| watch.state().is_first())
    }

    /// For those who show what is known.
    pub fn view(&self) -> KeySetsView {
        KeySetsView(Arc::clone(&self.watched))
    }
}

impl Drop for KeySets {
    fn drop(&mut self) {
        self.watched.load().values().for_each(|watch| watch.stop());
    }
}

/// What is known of the sets; it follows them by itself.
#[derive(Clone, Default)]
pub struct KeySetsView(Arc<ArcSwap<Watched>>);

impl KeySetsView {
    /// All of them, by URL.
    pub fn all(&self) -> Vec<Arc<Watch>> {
        let mut all: Vec<_> = self.0.load().values().cloned().collect();
        all.sort_by(|a, b| (&a.remote.uri, a.remote.discover).cmp(&(&b.remote.uri, b.remote.discover)));
        all
    }

    /// One of them.
    pub fn get(&self, remote: &RemoteJwks) -> Option<Arc<Watch>> {
        self.0.load().get(remote).cloned()
    }
}

fn remotes(config: &Config) -> impl Iterator<Item = &Arc<RemoteJwks>> {
    let of_rules = config.authentications.values().flat_map(|one| &one.rules).map(|rule| &rule.keys);
    let of_logins = config.guards.values().filter_map(|guard| match &guard.kind {
        GuardKind::Login(login) => login.oidc.as_ref().map(|oidc| &oidc.jwks),
        _ => None,
    });
    of_rules.chain(of_logins).filter_map(|jwks| match jwks {
        Jwks::Remote(remote) => Some(remote),
        Jwks::Inline(_) => None,
    })
}

impl Watch {
    fn start(remote: Arc<RemoteJwks>, report: Arc<dyn Fn() + Send + Sync>, pace: Pace) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        let source = Arc::new(KeySource::fetched(move || waker.notify_one()));
        let (state, task) = (watch::Sender::default(), Mutex::default());
        let watch = Arc::new(Self { remote, source, state, pace, wake, task });
        let task = tokio::spawn(Arc::clone(&watch).run(report));
        *lock(&watch.task) = Some(task.abort_handle());
        watch
    }

    fn stop(&self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }

    /// What became of fetches so far.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The URL without its query, which may hold what is not to be shown.
    pub fn shown_uri(&self) -> &str {
        self.remote.uri.split('?').next().unwrap_or_default()
    }

    async fn run(self: Arc<Self>, report: Arc<dyn Fn() + Send + Sync>) {
        let mut document = None;
        let mut failures = 0_u32;
        loop {
            // A wish from before is about the keys that are fetched now.
            self.source.take_wish();
            let begun = Instant::now();
            let fetched = fetch::keys(&self.remote).await;
            let first = self.state.borrow().is_first();
            let pause = match fetched {
                Ok((text, keys)) => {
                    // Equal keys stay the same object, or every token in use would have to be checked anew.
                    if document.as_ref() != Some(&text) {
                        let (keys_there, left_out) = (keys.keys().len(), keys.unusable().len());
                        tracing::info!(uri = self.shown_uri(), keys = keys_there, left_out, "keys fetched");
                        self.source.replace(keys);
                        document = Some(text);
                    }
                    failures = 0;
                    self.state.send_modify(|state| {
                        state.succeeded += 1;
                        state.fetched = Some(Instant::now());
                        state.failure = None;
                    });
                    jittered(self.remote.refresh)
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    if self.state.borrow().failure.as_ref() != Some(&failure) {
                        let kept = self.source.current().is_some();
                        tracing::warn!(uri = self.shown_uri(), %failure, kept, "keys cannot be fetched; those there are stay good");
                    }
                    self.state.send_modify(|state| {
                        state.failed += 1;
                        state.failure = Some(failure);
                    });
                    let pause = self.pace.first * 2_u32.saturating_pow(failures.min(7) - 1);
                    jittered(pause.min(self.pace.longest))
                }
            };
            if first {
                report();
            }
            self.pause(begun, pause, failures == 0).await;
        }
    }

    /// Until the next fetch: when it is time, or earlier when a token names a key that is not there. After a failure only
    /// time counts.
    async fn pause(&self, begun: Instant, pause: Duration, may_be_woken: bool) {
        let wished = async {
            if may_be_woken {
                self.wake.notified().await;
                tokio::time::sleep_until(begun + self.pace.earliest).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wished => {}
        }
    }
}

/// A tenth more or less, so that many gateways do not ask at the same moment.
fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(pause) % 2000;
    pause.mul_f64(0.9 + random as f64 / 10_000.0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
