//! Guards made ready from what is configured. One that cannot be made ready refuses all requests: what it was to keep out
//! must not come in.

use std::borrow::Cow;
use std::sync::Arc;

use fieldgate_core::filter::LocalResponse;
use fieldgate_core::guard::{Guard, Guarded, Verdict};
use fieldgate_core::ir::{self, GuardKind, ObjectKey};

use crate::edge;
use crate::ext_authz;
use crate::jwt::KeySources;
use crate::login;
use crate::rate_limit;

/// Makes a guard ready. `before` is what the same object was, whose counts may be worth keeping; `sources` have the keys of
/// ID tokens.
pub fn ready(
    guard: &Arc<ir::Guard>,
    before: Option<&Arc<dyn Guard>>,
    sources: KeySources<'_>,
) -> Arc<dyn Guard> {
    match &guard.kind {
        GuardKind::Edge(rules) => edge::ready(guard, rules),
        GuardKind::ExtAuthz(authz) => ext_authz::ready(&guard.key, authz),
        GuardKind::Login(login) => {
            login::ready(guard, login, sources).unwrap_or_else(|why| closed(&guard.key, &why))
        }
        GuardKind::RateLimit(limit) => rate_limit::ready(&guard.key, limit, before),
    }
}

/// A guard that is referred to but not there.
pub fn missing(key: &ObjectKey) -> Arc<dyn Guard> {
    closed(key, "there is no such object")
}

/// A guard that refuses everything.
pub fn closed(key: &ObjectKey, why: &str) -> Arc<dyn Guard> {
    Arc::new(Closed { key: key.clone(), why: why.into() })
}

#[derive(Debug)]
struct Closed {
    key: ObjectKey,
    why: Box<str>,
}

impl Guard for Closed {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn name(&self) -> &'static str {
        "closed"
    }

    fn begin(&self, _: &mut Guarded<'_>) -> Verdict {
        Verdict::Respond(Box::new(LocalResponse {
            status: 500,
            headers: Vec::new(),
            body: Cow::Owned(format!("{} refuses all requests: {}\n", self.key.kind, self.why)),
            flags: "-",
            details: "guard_closed",
        }))
    }
}
