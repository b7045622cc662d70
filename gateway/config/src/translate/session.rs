//! `sessionPersistence` of Gateway API's rules to affinity (GEP-1619).

use std::sync::Arc;

use fieldgate_core::ir::{Affinity, AffinityCarrier, PathMatch, Rule};
use gateway_api::experimental::httproutes::{
    HttpRouteRulesSessionPersistence as Session,
    HttpRouteRulesSessionPersistenceCookieConfigLifetimeType as Lifetime,
    HttpRouteRulesSessionPersistenceType as Type,
};

use super::pool_traffic::Warn;
use crate::kinds::duration::parse_gateway_duration;

/// What keeps the clients of a rule at their endpoints.
pub(crate) fn affinity(spec: &Session, rule: &Rule, warn: &mut Warn<'_>) -> Affinity {
    let by_header = matches!(spec.r#type, Some(Type::Header));
    let lifetime = spec.cookie_config.as_ref().and_then(|c| c.lifetime_type.as_ref());
    let permanent = matches!(lifetime, Some(Lifetime::Permanent));
    if spec.absolute_timeout.is_some() && !permanent {
        warn(
            ".absoluteTimeout",
            "the gateway keeps no sessions, so it cannot end one: this field has no effect",
            "with cookieConfig.lifetimeType: Permanent the client ends it",
        );
    }
    if spec.idle_timeout.is_some() {
        warn(
            ".idleTimeout",
            "the gateway keeps no sessions, so it does not know when one is idle: this field has no effect",
            "absoluteTimeout with cookieConfig.lifetimeType: Permanent ends every session in the end",
        );
    }
    let name: Arc<str> = spec.session_name.as_deref().map_or_else(|| own_name(rule), Into::into);
    let carrier = if by_header {
        AffinityCarrier::Header(name.to_ascii_lowercase().into())
    } else {
        let ttl = spec.absolute_timeout.as_deref().filter(|_| permanent);
        let ttl = ttl.and_then(|t| parse_gateway_duration(t).ok());
        AffinityCarrier::Cookie { name, ttl, path: path(rule) }
    };
    Affinity { carrier, strict: false }
}

/// A name that no other rule has: where two rules with other endpoints share a cookie, each undoes what the other did.
fn own_name(rule: &Rule) -> Arc<str> {
    // FNV-1a, since it must be the same in every process.
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = rule.id.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    format!("fieldgate-session-{hash:016x}").into()
}

/// The part of the site that the rule serves, where that is one.
fn path(rule: &Rule) -> Arc<str> {
    match &rule.matches[..] {
        [only] => match &only.path {
            PathMatch::Exact(path) | PathMatch::Prefix(path) if !path.contains([';', ',']) => path.clone(),
            _ => "/".into(),
        },
        _ => "/".into(),
    }
}
