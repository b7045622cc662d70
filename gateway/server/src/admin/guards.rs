//! What guards have counted, read off them at a scrape: they count in atomics that all workers share, and a guard that is
//! gone has no series any more.

use std::any::Any;

use fieldgate_plugins::rate_limit::{RESULTS, RateLimiter};

use crate::published::Published;
use crate::telemetry::exposition::Family;

/// Rate limits that are shown: four series each.
const MAX_LIMITS: usize = 5_000;

/// Writes all of them.
pub(super) fn write(out: &mut String, published: &Published) {
    let limiters = published.guards.values().filter_map(|guard| {
        let guard = &**guard as &dyn Any;
        guard.downcast_ref::<RateLimiter>()
    });
    let mut limits: Vec<_> = limiters
        .flat_map(|limiter| {
            let key = fieldgate_core::guard::Guard::key(limiter);
            let policy = format!("{}/{}", key.namespace, key.name);
            limiter.counts().map(move |(limit, counts)| (policy.clone(), limit, counts))
        })
        .collect();
    if limits.is_empty() {
        return;
    }
    limits.sort();
    let help = "Requests that counted against a rate limit, by what became of them.";
    let mut family = Family::begin(out, "fieldgate_rate_limit_requests_total", "counter", help);
    for (policy, limit, counts) in limits.into_iter().take(MAX_LIMITS) {
        for (result, count) in RESULTS.iter().zip(counts) {
            family.sample(&[("policy", &policy), ("limit", limit), ("result", result)], count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use fieldgate_core::ir::{self, GuardKind, GuardRef, Limit, ObjectKey, RateLimit};

    use super::*;

    #[test]
    fn limits_have_a_series_for_each_result() {
        let mut out = String::new();
        let mut published = Published::nothing(None);
        write(&mut out, &published);
        assert_eq!(out, "");
        let key = ObjectKey { kind: "RateLimitPolicy", namespace: "shop".into(), name: "edge".into() };
        let limit = Limit {
            name: "all".into(),
            when: Vec::new(),
            by: Vec::new(),
            burst: 1,
            tokens: 1,
            interval: Duration::from_secs(1),
            max_keys: 1,
        };
        let limits = vec![limit];
        let (shadow, headers, status, resource_exhausted) = (false, false, 429, false);
        let limit = RateLimit { limits, global: None, shadow, headers, status, resource_exhausted };
        let guard = Arc::new(ir::Guard { key: key.clone(), kind: GuardKind::RateLimit(Box::new(limit)) });
        published.guards.insert(
            GuardRef::new(key).id,
            fieldgate_plugins::guards::ready(&guard, None, &|_| unreachable!("no login")),
        );
        write(&mut out, &published);
        let line = |result| {
            format!(
                "fieldgate_rate_limit_requests_total{{policy=\"shop/edge\",limit=\"all\",result=\"{result}\"}} 0"
            )
        };
        let samples: Vec<_> = out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples, RESULTS.map(line));
    }
}
