//! What the schema of Gateway API's `XBackendTrafficPolicy` forbids beyond types.

use gateway_api::experimental::xbackendtrafficpolicies::XBackendTrafficPolicySpec;

use super::check::Checks;
use super::duration::parse_gateway_duration;
use crate::diagnostic::reason;

pub(super) fn check_backend_traffic_policy(spec: &XBackendTrafficPolicySpec, checks: &mut Checks<'_>) {
    if spec.target_refs.is_empty() {
        checks.error("spec.targetRefs", reason::WRONG_COUNT, "at least one target is needed", None);
    }
    checks.count("spec.targetRefs", spec.target_refs.len(), 16);
    for (i, target) in spec.target_refs.iter().enumerate() {
        if (target.group.as_str(), target.kind.as_str()) != ("", "Service") {
            let message =
                format!("an XBackendTrafficPolicy cannot be attached to {}/{}", target.group, target.kind);
            let hint = Some("group: \"\" with kind: Service");
            checks.error(&format!("spec.targetRefs[{i}]"), reason::INVALID_VALUE, message, hint);
        }
    }
    let Some(retry) = &spec.retry_constraint else { return };
    let at = "spec.retryConstraint";
    if let Some(percent) = retry.budget.as_ref().and_then(|b| b.percent) {
        checks.range(format_args!("{at}.budget.percent"), percent, 0, 100);
    }
    if let Some(count) = retry.min_retry_rate.as_ref().and_then(|r| r.count) {
        checks.range(format_args!("{at}.minRetryRate.count"), count, 1, 1_000_000);
    }
    let intervals = [
        ("budget.interval", retry.budget.as_ref().and_then(|b| b.interval.as_deref())),
        ("minRetryRate.interval", retry.min_retry_rate.as_ref().and_then(|r| r.interval.as_deref())),
    ];
    for (field, text) in intervals {
        if let Some(Err(e)) = text.map(parse_gateway_duration) {
            checks.error(&format!("{at}.{field}"), reason::INVALID_DURATION, e.message, Some(&e.hint));
        }
    }
}
