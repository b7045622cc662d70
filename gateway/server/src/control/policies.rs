//! From what is configured about admission to what workers ask: guards, and per listener the steps in their order. What did
//! not change is kept, and with it what it has counted and learned.

use std::sync::Arc;

use fieldgate_config::status::Condition;
use fieldgate_core::Snapshot;
use fieldgate_core::guard::Guard;
use fieldgate_core::ir::{
    Authentication, Config, GuardKind, GuardRef, Jwks, JwtRule, ListenerKey, ObjectKey, Policy,
};
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_plugins::authz::Authorizer;
use fieldgate_plugins::guards;
use fieldgate_plugins::jwt::{Authenticator, KeySet, KeySources};
use rustc_hash::FxHashMap;

use crate::jwks::KeySetsView;
use crate::published::{ListenerPolicy, Published, Step};

/// By [`GuardRef::id`].
pub type Guards = FxHashMap<u64, Arc<dyn Guard>>;

/// All guards; those whose object is the same are kept.
pub fn guards(snapshot: &Snapshot, before: &Published, keys: KeySources<'_>) -> Guards {
    let old = &before.snapshot.config.guards;
    let ready = snapshot.config.guards.iter().map(|(key, ir)| {
        let id = GuardRef::new(key.clone()).id;
        let known = before.guards.get(&id);
        let kept = known.filter(|_| old.get(key).is_some_and(|old| old == ir));
        (id, kept.cloned().unwrap_or_else(|| guards::ready(ir, known, keys)))
    });
    ready.collect()
}

/// What each listener's requests have to pass; listeners that ask for nothing are left out.
pub fn of_listeners(
    snapshot: &Snapshot,
    guards: &Guards,
    before: &Published,
    keys: KeySources<'_>,
) -> FxHashMap<ListenerKey, Arc<ListenerPolicy>> {
    let old: FxHashMap<_, _> =
        before.snapshot.listeners().map(|listener| (&listener.ir.key, &listener.policies)).collect();
    let steps = snapshot.listeners().map(|listener| {
        let key = &listener.ir.key;
        let kept = before.policies.get(key);
        let unchanged = old.get(key).is_some_and(|policies| same(policies, &listener.policies));
        let authorizer = kept.filter(|_| unchanged).and_then(authorizer_of);
        let authenticator = authenticator(&snapshot.config, &before.snapshot.config, key, kept, keys);
        (
            key.clone(),
            Arc::new(ListenerPolicy { steps: steps(snapshot, listener, guards, authenticator, authorizer) }),
        )
    });
    steps.filter(|(_, policy)| !policy.steps.is_empty()).collect()
}

fn same(a: &[Arc<Policy>], b: &[Arc<Policy>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn authorizer_of(kept: &Arc<ListenerPolicy>) -> Option<Arc<Authorizer>> {
    kept.steps.iter().find_map(|step| match step {
        Step::Authorize(authorizer) => Some(Arc::clone(authorizer)),
        _ => None,
    })
}

fn authentications<'c>(config: &'c Config, of: &ListenerKey) -> Vec<&'c Arc<Authentication>> {
    config.authentications.values().filter(|one| one.listeners.contains(of)).collect()
}

/// That of before if nothing of it is another: it has read keys that were written out.
fn authenticator(
    now: &Config,
    before: &Config,
    of: &ListenerKey,
    kept: Option<&Arc<ListenerPolicy>>,
    keys: KeySources<'_>,
) -> Arc<Authenticator> {
    let (now, before) = (authentications(now, of), authentications(before, of));
    let unchanged = now.len() == before.len() && now.iter().zip(&before).all(|(a, b)| Arc::ptr_eq(a, b));
    let kept = kept.filter(|_| unchanged).and_then(|kept| {
        kept.steps.iter().find_map(|step| match step {
            Step::Authenticate(authenticator) => Some(Arc::clone(authenticator)),
            _ => None,
        })
    });
    kept.unwrap_or_else(|| Arc::new(Authenticator::compile(now, keys)))
}

/// `authorizer`: of the same policies, before.
fn steps(
    snapshot: &Snapshot,
    listener: &CompiledListener,
    guards: &Guards,
    authenticator: Arc<Authenticator>,
    authorizer: Option<Arc<Authorizer>>,
) -> Vec<Step> {
    let guards_that = |belong: fn(&GuardKind) -> bool| {
        let named = listener.ir.guards.iter().filter(move |named| {
            snapshot.config.guards.get(&named.key).is_none_or(|guard| belong(&guard.kind))
        });
        named.map(|named| {
            Step::Guard(guards.get(&named.id).cloned().unwrap_or_else(|| guards::missing(&named.key)))
        })
    };
    let mut steps = Vec::new();
    steps.extend(guards_that(|kind| matches!(kind, GuardKind::Edge(_))));
    steps.extend(guards_that(|kind| matches!(kind, GuardKind::Login(_))));
    if !authenticator.is_empty() {
        steps.push(Step::Authenticate(authenticator));
    }
    steps.extend(guards_that(|kind| matches!(kind, GuardKind::ExtAuthz(_))));
    let authorizer = authorizer.unwrap_or_else(|| Arc::new(Authorizer::compile(&listener.policies)));
    let providers = 0..authorizer.providers().len();
    steps.extend(providers.map(|provider| Step::Custom(Arc::clone(&authorizer), provider)));
    if !authorizer.is_empty() {
        steps.push(Step::Authorize(authorizer));
    }
    steps.extend(guards_that(|kind| matches!(kind, GuardKind::RateLimit(_))));
    steps
}

/// Of each object that takes tokens, whether the keys for it are there and new.
pub fn key_conditions(config: &Config, keys: &KeySetsView) -> Vec<(ObjectKey, Condition)> {
    let condition = |one: &Arc<Authentication>| {
        let problem = one.rules.iter().find_map(|rule| key_problem(rule, keys));
        let (status, reason, message) = match problem {
            Some((reason, message)) => (false, reason, message),
            None => (true, "Ready", String::new()),
        };
        (one.key.clone(), Condition { part: String::new(), kind: "KeysReady", status, reason, message })
    };
    config.authentications.values().map(condition).collect()
}

/// Reason and message.
fn key_problem(rule: &JwtRule, keys: &KeySetsView) -> Option<(&'static str, String)> {
    const REFUSED: &str = "tokens of this issuer are refused";
    match &rule.keys {
        Jwks::Inline(document) => {
            let problem = KeySet::parse(document.as_bytes()).err()?;
            Some(("NoKeys", format!("the keys of {} cannot be used: {problem}; {REFUSED}", rule.issuer)))
        }
        Jwks::Remote(remote) => {
            let watch = keys.get(remote)?;
            let failure = watch.state().failure?;
            let (reason, then) = match watch.source.current() {
                Some(_) => ("FetchFailed", "those fetched before stay good"),
                None => ("NoKeys", REFUSED),
            };
            Some((reason, format!("{} cannot be fetched: {failure}; {then}", watch.shown_uri())))
        }
    }
}
