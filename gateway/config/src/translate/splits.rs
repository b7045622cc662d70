//! SplitPolicies to IR.

use std::collections::BTreeSet;
use std::sync::Arc;

use fieldgate_core::ir::{ExistingSessions, ObjectKey, SplitPolicy, Sticky};

use super::attached::{Refusal, RuleView};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::Spec;
use crate::kinds::fieldgate::Sticky as StickySpec;

/// What a policy says of a rule with these backends.
pub(crate) fn translate<'b>(
    object: &Object,
    mut backends: impl Iterator<Item = &'b str>,
) -> Option<Arc<SplitPolicy>> {
    let Spec::SplitPolicy(spec) = &object.spec else { return None };
    let sticky = spec.sticky.as_ref().and_then(sticky);
    let existing = spec.existing_sessions.as_ref().and_then(|e| {
        let backend = backends.position(|name| name == e.stay_on)?;
        Some(ExistingSessions { cookie: e.cookie.as_str().into(), backend })
    });
    if sticky.is_none() && existing.is_none() {
        return None;
    }
    Some(Arc::new(SplitPolicy { name: object.name.clone(), sticky, existing }))
}

/// Whether the rules have what a policy names.
pub(crate) fn fits(spec: &Spec, key: &ObjectKey, rules: &[RuleView<'_>]) -> Result<(), Refusal> {
    let Spec::SplitPolicy(spec) = spec else { return Ok(()) };
    let Some(existing) = &spec.existing_sessions else { return Ok(()) };
    let names: BTreeSet<&str> = rules.iter().flat_map(|r| &r.backends).copied().collect();
    if names.contains(&*existing.stay_on) {
        return Ok(());
    }
    Err(Refusal {
        reason: "BackendNotFound",
        field: "spec.existingSessions.stayOn".to_owned(),
        message: format!("\"{}\" is not a backend of {key}", existing.stay_on),
        hint: did_you_mean_hint(&existing.stay_on, names.iter().copied()),
    })
}

fn sticky(spec: &StickySpec) -> Option<Sticky> {
    if let Some(header) = &spec.header {
        return Some(Sticky::Header(header.name.to_ascii_lowercase().into()));
    }
    let Some(cookie) = &spec.cookie else { return spec.source.as_ref().map(|_| Sticky::Source) };
    Some(if cookie.issue {
        Sticky::IssuedCookie {
            name: cookie.name.as_str().into(),
            ttl: cookie.ttl.map(|d| d.0),
            path: cookie.path.as_deref().unwrap_or("/").into(),
        }
    } else {
        Sticky::Cookie(cookie.name.as_str().into())
    })
}
