//! RateLimitPolicies to IR.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    DescriptorEntry, GlobalLimit, GuardKind, Limit, LimitCondition, LimitKey, PoolKey, RateLimit, StringMatch,
};

use super::Notes;
use super::attached::Refusal;
use super::guards::{Maker, service};
use super::policies::{paths, string};
use super::routes::Surroundings;
use crate::document::Object;
use crate::kinds::rate_limit::{
    EntrySpec, GlobalLimitSpec, GrpcStatus, KeySpec, LimitSpec, RateLimitPolicySpec, WhenSpec,
};
use crate::kinds::{Kind, Spec};

/// How rate limits are made.
pub(crate) const MAKER: Maker = Maker { kind: Kind::RateLimitPolicy, targets, make };

/// As Envoy's rate limit filter.
const TIMEOUT: Duration = Duration::from_millis(20);
const STATUS: u16 = 429;
const MAX_KEYS: u32 = 100_000;

fn targets(spec: &Spec) -> &[crate::kinds::fieldgate::TargetRef] {
    match spec {
        Spec::RateLimitPolicy(spec) => &spec.target_refs,
        _ => &[],
    }
}

fn make(object: &Object, around: &Surroundings<'_>, notes: &mut Notes) -> Result<GuardKind, Refusal> {
    let Spec::RateLimitPolicy(spec) = &object.spec else { unreachable!("it is made for its own kind") };
    let RateLimitPolicySpec { limits, global, shadow, headers, status, grpc_status, .. } = &**spec;
    let limits: Result<_, Refusal> =
        limits.iter().enumerate().map(|(i, l)| limit(l, &format!("spec.limits[{i}]"))).collect();
    Ok(GuardKind::RateLimit(Box::new(RateLimit {
        limits: limits?,
        global: global.as_ref().map(|g| global_limit(object, g, around, notes)).transpose()?.map(Arc::new),
        shadow: *shadow,
        headers: *headers,
        status: status.unwrap_or(STATUS),
        resource_exhausted: *grpc_status == Some(GrpcStatus::ResourceExhausted),
    })))
}

fn limit(spec: &LimitSpec, at: &str) -> Result<Limit, Refusal> {
    let when = spec.when.iter().enumerate();
    let when: Result<_, Refusal> = when.map(|(i, w)| condition(w, &format!("{at}.when[{i}]"))).collect();
    Ok(Limit {
        name: spec.name.as_str().into(),
        when: when?,
        by: spec.by.iter().filter_map(key).collect(),
        burst: spec.burst.unwrap_or(spec.rate.requests),
        tokens: spec.rate.requests,
        interval: spec.rate.per.0,
        max_keys: spec.max_keys.unwrap_or(MAX_KEYS),
    })
}

fn condition(spec: &WhenSpec, at: &str) -> Result<LimitCondition, Refusal> {
    if let Some(header) = &spec.header {
        let value = header.value.as_deref().map_or(StringMatch::Present, string);
        return Ok(LimitCondition::Header(header.name.to_ascii_lowercase().into(), value));
    }
    if let Some(path) = &spec.path {
        let pattern = paths(std::slice::from_ref(path), at, "path");
        let refusal =
            |(reason, _, message)| Refusal { reason, field: format!("{at}.path"), message, hint: None };
        let pattern = pattern.map_err(refusal)?.pop().unwrap_or(StringMatch::Present);
        return Ok(LimitCondition::Path(pattern));
    }
    Ok(LimitCondition::Method(spec.method.as_deref().unwrap_or_default().into()))
}

fn key(spec: &KeySpec) -> Option<LimitKey> {
    if let Some(name) = &spec.header {
        return Some(LimitKey::Header(name.to_ascii_lowercase().into()));
    }
    if let Some(client) = spec.client {
        return Some(LimitKey::Client(client.ipv4_prefix.unwrap_or(32), client.ipv6_prefix.unwrap_or(64)));
    }
    if let Some(path) = &spec.claim {
        return Some(LimitKey::Claim(path.iter().map(|name| name.as_str().into()).collect()));
    }
    let plain = [
        (spec.principal, LimitKey::Principal),
        (spec.user, LimitKey::User),
        (spec.route, LimitKey::Route),
        (spec.host, LimitKey::Host),
        (spec.path, LimitKey::Path),
        (spec.method, LimitKey::Method),
    ];
    plain.into_iter().find_map(|(set, key)| set.map(|_| key))
}

fn global_limit(
    object: &Object,
    spec: &GlobalLimitSpec,
    around: &Surroundings<'_>,
    notes: &mut Notes,
) -> Result<GlobalLimit, Refusal> {
    let fail_open = spec.fail_open.unwrap_or(true);
    let descriptors = spec.descriptors.iter();
    Ok(GlobalLimit {
        pool: pool(object, spec, fail_open, around, notes)?,
        domain: spec.domain.as_str().into(),
        timeout: spec.timeout.map_or(TIMEOUT, |t| t.0),
        fail_open,
        descriptors: descriptors.map(|d| d.entries.iter().filter_map(entry).collect()).collect(),
    })
}

/// A service that is not there does not answer; what follows from that is what the policy says of it.
fn pool(
    object: &Object,
    spec: &GlobalLimitSpec,
    fail_open: bool,
    around: &Surroundings<'_>,
    notes: &mut Notes,
) -> Result<Arc<PoolKey>, Refusal> {
    let refusal = match service(object, &spec.backend_ref, "spec.global.backendRef", around) {
        Ok(pool) => return Ok(pool),
        Err(refusal) if !fail_open => return Err(refusal),
        Err(refusal) => refusal,
    };
    let hint = "until this is resolved, what the service was to count passes, for failOpen is not false";
    let Refusal { reason, field, message, hint: mend } = refusal;
    let hint = mend.map_or_else(|| hint.to_owned(), |mend| format!("{mend}; {hint}"));
    notes.diagnostics.push(object.error(reason, &field, message).hint(hint));
    Ok(Arc::new(PoolKey { object: object.key(), port: 0 }))
}

fn entry(spec: &EntrySpec) -> Option<DescriptorEntry> {
    let name = spec.key.as_str().into();
    match (&spec.value, &spec.from) {
        (Some(value), _) => Some(DescriptorEntry::Generic(name, value.as_str().into())),
        (None, from) => Some(DescriptorEntry::Of(name, key(from.as_ref()?)?)),
    }
}
