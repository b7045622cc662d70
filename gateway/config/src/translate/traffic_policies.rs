//! TrafficPolicies to IR. What a route says itself goes before what a policy says of the same field.

use std::sync::Arc;

use fieldgate_core::ir::{
    Affinity, AffinityCarrier, Backoff, Fault, FaultAnswer, Filter, Hedge, ObjectKey, Retry, RetryOn, Rule,
    ValueMatch,
};
use gateway_api::experimental::httproutes::HttpRouteRules;

use super::attached::{Refusal, RuleView};
use super::matches::regex;
use super::routes::RETRY_ON;
use crate::document::Object;
use crate::kinds::Spec;
use crate::kinds::traffic_policy::{
    AbortSpec, AffinitySpec, BackoffSpec, FaultHeaderType, FaultSpec, RetrySpec,
};

/// All of a hundred, in millionths.
const ALWAYS: u32 = 1_000_000;

/// Whether the patterns of a policy are any.
pub(crate) fn fits(spec: &Spec, _: &ObjectKey, _: &[RuleView<'_>]) -> Result<(), Refusal> {
    let Spec::TrafficPolicy(spec) = spec else { return Ok(()) };
    for (i, header) in spec.fault.iter().flat_map(|f| &f.headers).enumerate() {
        if header.r#type == FaultHeaderType::RegularExpression
            && let Err(message) = regex(&header.value)
        {
            let field = format!("spec.fault.headers[{i}].value");
            return Err(Refusal { reason: "UnsupportedValue", field, message, hint: None });
        }
    }
    Ok(())
}

/// Adds to a rule what a policy says and the rule, as it is `written`, does not.
pub(crate) fn apply(policy: &Object, written: &HttpRouteRules, rule: &mut Rule) {
    let Spec::TrafficPolicy(spec) = &policy.spec else { return };
    if let Some(timeouts) = spec.timeouts {
        let own = &mut rule.timeouts;
        own.request = own.request.or(timeouts.request.map(|d| d.0));
        own.backend_request = own.backend_request.or(timeouts.backend_request.map(|d| d.0));
        own.idle = own.idle.or(timeouts.idle.map(|d| d.0));
    }
    if let Some(spec) = &spec.retry {
        rule.retry = Some(Arc::new(retry(spec, written, rule.retry.as_deref())));
    }
    if let Some(spec) = spec.affinity.as_ref().filter(|_| rule.affinity.is_none()) {
        rule.affinity = affinity(spec).map(Arc::new);
    }
    if let Some(spec) = &spec.fault {
        // Before everything else that the rule does, as if the fault were on the way here.
        rule.filters.insert(0, Filter::Fault(Arc::new(fault(spec))));
    }
}

fn retry(spec: &RetrySpec, written: &HttpRouteRules, own: Option<&Retry>) -> Retry {
    let mut retry = of_policy(spec);
    let (Some(own), Some(written)) = (own, &written.retry) else { return retry };
    if written.attempts.is_some() {
        retry.attempts = own.attempts;
    }
    if written.codes.is_some() {
        retry.codes.clone_from(&own.codes);
        retry.on = retry.on.and(RetryOn::STATUS_CODES);
    }
    if written.backoff.is_some() {
        retry.backoff = own.backoff;
    }
    retry
}

fn of_policy(spec: &RetrySpec) -> Retry {
    let default = Retry::default();
    let words = |words: &Vec<String>| {
        let known = words.iter().filter_map(|w| RetryOn::word(w));
        known.fold(RetryOn::default(), RetryOn::and)
    };
    let mut on = spec.on.as_ref().map_or(RETRY_ON, words);
    if !spec.status_codes.is_empty() {
        on = on.and(RetryOn::STATUS_CODES);
    }
    if !spec.headers.is_empty() {
        on = on.and(RetryOn::HEADERS);
    }
    Retry {
        attempts: spec.attempts.unwrap_or(default.attempts),
        on,
        codes: spec.status_codes.clone(),
        headers: spec.headers.iter().map(|h| h.to_ascii_lowercase().into()).collect(),
        per_try_timeout: spec.per_try_timeout.map(|d| d.0),
        backoff: spec.backoff.map_or(default.backoff, backoff),
        retry_after: spec.retry_after_max.map(|d| d.0),
        hedge: spec.hedge.map(|h| Hedge { after: h.after.0, at_once: h.at_once.unwrap_or(2) }),
        body_limit: spec.body_limit.unwrap_or(default.body_limit),
    }
}

fn backoff(spec: BackoffSpec) -> Backoff {
    let base = spec.base.map_or(Backoff::default().base, |d| d.0);
    Backoff { base, max: spec.max.map_or(base * 10, |d| d.0) }
}

fn affinity(spec: &AffinitySpec) -> Option<Affinity> {
    let carrier = if let Some(cookie) = &spec.cookie {
        AffinityCarrier::Cookie {
            name: cookie.name.as_str().into(),
            ttl: cookie.ttl.map(|d| d.0),
            path: cookie.path.as_deref().unwrap_or("/").into(),
        }
    } else {
        AffinityCarrier::Header(spec.header.as_ref()?.name.to_ascii_lowercase().into())
    };
    Some(Affinity { carrier, strict: spec.strict })
}

fn fault(spec: &FaultSpec) -> Fault {
    let value = |kind, text: &str| match kind {
        FaultHeaderType::Exact => ValueMatch::Exact(text.into()),
        FaultHeaderType::RegularExpression => ValueMatch::Regex(text.into()),
    };
    let headers = spec.headers.iter();
    Fault {
        headers: headers.map(|h| (h.name.to_ascii_lowercase().into(), value(h.r#type, &h.value))).collect(),
        delay: spec.delay.map(|d| (d.percent.map_or(ALWAYS, |p| p.0), d.time.0)),
        abort: spec.abort.and_then(|a| Some((a.percent.map_or(ALWAYS, |p| p.0), answer(a)?))),
        ..Fault::default()
    }
}

fn answer(spec: AbortSpec) -> Option<FaultAnswer> {
    spec.status.map(FaultAnswer::Status).or(spec.grpc_status.map(FaultAnswer::Grpc))
}
