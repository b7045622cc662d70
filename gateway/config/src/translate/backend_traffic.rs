//! Gateway API's XBackendTrafficPolicies to IR: the retry budgets of Services.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldgate_core::ir::{Pool, PoolLimits};
use gateway_api::experimental::xbackendtrafficpolicies::XBackendTrafficPolicySpec;

use super::{Notes, NotesOf, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::{Kind, Spec};

/// Budgets by the namespace and name of the Service.
#[derive(Default)]
pub(crate) struct Budgets(BTreeMap<(Arc<str>, String), u32>);

impl Budgets {
    pub fn of(objects: &Objects, notes: &mut NotesOf) -> Self {
        let mut all = BTreeMap::new();
        let mut owners: BTreeMap<(Arc<str>, String), Arc<str>> = BTreeMap::new();
        for object in objects.by_age(Kind::BackendTrafficPolicy) {
            let Spec::BackendTrafficPolicy(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            warn_of_ignored(object, spec, note);
            let mut refused = None;
            for (i, target) in spec.target_refs.iter().enumerate() {
                let place = (object.namespace.clone(), target.name.clone());
                let field = format!("spec.targetRefs[{i}].name");
                let mut refuse = |reason, message: String, hint: Option<String>| {
                    refused.get_or_insert((reason, message.clone()));
                    let mut error = object.error(reason, &field, message);
                    error.hint = hint;
                    note.diagnostics.push(error);
                };
                if objects.get(Kind::Service, &object.namespace, &target.name).is_none() {
                    let names = objects.names(Kind::Service, &object.namespace);
                    let hint = did_you_mean_hint(&target.name, names.iter().map(String::as_str));
                    let message = format!("there is no Service {}/{}", object.namespace, target.name);
                    refuse("TargetNotFound", message, hint);
                } else if let Some(other) = owners.get(&place) {
                    let message =
                        format!("XBackendTrafficPolicy {other} is for the same Service and comes first");
                    let hint = "remove one of the two; the older counts, then the first by name";
                    refuse("Conflicted", message, Some(hint.to_owned()));
                } else {
                    owners.insert(place.clone(), object.name.clone());
                    if let Some(retry) = &spec.retry_constraint {
                        // Gateway API's default is 20, too.
                        let percent = retry.budget.as_ref().and_then(|b| b.percent).unwrap_or(20);
                        all.insert(place, percent as u32);
                    }
                }
            }
            match refused {
                None => note.condition("Accepted", true, "Accepted", ""),
                Some((reason, message)) => note.condition("Accepted", false, reason, message),
            }
        }
        Self(all)
    }

    /// Puts on a Service's pool what is said of it.
    pub fn apply(&self, service: &Object, pool: &mut Pool) {
        let PoolLimits { retry_budget, .. } = &mut pool.limits;
        if let Some(percent) = self.0.get(&(service.namespace.clone(), service.name.to_string())) {
            retry_budget.percent = *percent;
        }
    }
}

fn warn_of_ignored(object: &Object, spec: &XBackendTrafficPolicySpec, note: &mut Notes) {
    let mut warn = |ignored: bool, field: &str, message: &str, hint: &str| {
        if ignored {
            note.diagnostics.push(object.warning("UnsupportedValue", field, message).hint(hint));
        }
    };
    let retry = spec.retry_constraint.as_ref();
    warn(
        retry.and_then(|r| r.budget.as_ref()).is_some_and(|b| b.interval.is_some()),
        "spec.retryConstraint.budget.interval",
        "a budget is a share of the requests in flight, not of those of an interval: this field has no effect",
        "percent is what counts",
    );
    warn(
        retry.is_some_and(|r| r.min_retry_rate.is_some()),
        "spec.retryConstraint.minRetryRate",
        "three retries in flight are always allowed on each worker, whatever their rate: this field has no effect",
        "a Pool for the Service says how many: limits.retryBudget.minRetryConcurrency",
    );
    warn(
        spec.session_persistence.is_some(),
        "spec.sessionPersistence",
        "sessions are kept by rules of routes: this field has no effect",
        "move it into the rules that have this backend",
    );
}
