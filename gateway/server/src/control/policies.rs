//! From what is configured about admission to what workers ask: guards, and per listener the steps in their order. What did
//! not change is kept, and with it what it has counted and learned.

use std::sync::Arc;

use fieldgate_core::Snapshot;
use fieldgate_core::guard::Guard;
use fieldgate_core::ir::{GuardKind, GuardRef, ListenerKey, Policy};
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_plugins::authz::Authorizer;
use fieldgate_plugins::guards;
use rustc_hash::FxHashMap;

use crate::published::{ListenerPolicy, Published, Step};

/// By [`GuardRef::id`].
pub type Guards = FxHashMap<u64, Arc<dyn Guard>>;

/// All guards; those whose object is the same are kept.
pub fn guards(snapshot: &Snapshot, before: &Published) -> Guards {
    let old = &before.snapshot.config.guards;
    let ready = snapshot.config.guards.iter().map(|(key, ir)| {
        let id = GuardRef::new(key.clone()).id;
        let known = before.guards.get(&id);
        let kept = known.filter(|_| old.get(key).is_some_and(|old| old == ir));
        (id, kept.cloned().unwrap_or_else(|| guards::ready(ir, known)))
    });
    ready.collect()
}

/// What each listener's requests have to pass; listeners that ask for nothing are left out.
pub fn of_listeners(
    snapshot: &Snapshot,
    guards: &Guards,
    before: &Published,
) -> FxHashMap<ListenerKey, Arc<ListenerPolicy>> {
    let old: FxHashMap<_, _> =
        before.snapshot.listeners().map(|listener| (&listener.ir.key, &listener.policies)).collect();
    let steps = snapshot.listeners().map(|listener| {
        let key = &listener.ir.key;
        let unchanged = old.get(key).is_some_and(|policies| same(policies, &listener.policies));
        let kept = before.policies.get(key).filter(|_| unchanged);
        (key.clone(), Arc::new(ListenerPolicy { steps: steps(snapshot, listener, guards, kept) }))
    });
    steps.filter(|(_, policy)| !policy.steps.is_empty()).collect()
}

fn same(a: &[Arc<Policy>], b: &[Arc<Policy>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
}

/// `kept`: of the same policies, before.
fn steps(
    snapshot: &Snapshot,
    listener: &CompiledListener,
    guards: &Guards,
    kept: Option<&Arc<ListenerPolicy>>,
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
    steps.extend(guards_that(|kind| matches!(kind, GuardKind::ExtAuthz(_))));
    let authorizer = kept.into_iter().flat_map(|policy| &policy.steps).find_map(|step| match step {
        Step::Authorize(authorizer) => Some(Arc::clone(authorizer)),
        _ => None,
    });
    let authorizer = authorizer.unwrap_or_else(|| Arc::new(Authorizer::compile(&listener.policies)));
    let providers = 0..authorizer.providers().len();
    steps.extend(providers.map(|provider| Step::Custom(Arc::clone(&authorizer), provider)));
    if !authorizer.is_empty() {
        steps.push(Step::Authorize(authorizer));
    }
    steps.extend(guards_that(|kind| matches!(kind, GuardKind::RateLimit(_))));
    steps
}
