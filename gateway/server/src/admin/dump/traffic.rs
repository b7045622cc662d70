//! What a rule says of its requests' fate, in the configuration dump. Times are in milliseconds; `null` is the default.

use fieldgate_core::ir::{Affinity, AffinityCarrier, Retry, Timeouts};
use serde_json::{Value, json};

use super::{ms, some_ms};
use crate::describe;

pub(super) fn timeouts(timeouts: &Timeouts) -> Value {
    json!({
        "request_ms": some_ms(timeouts.request),
        "backend_request_ms": some_ms(timeouts.backend_request),
        "idle_ms": some_ms(timeouts.idle),
    })
}

pub(super) fn retry(retry: &Retry) -> Value {
    let headers: Vec<_> = retry.headers.iter().map(|name| &**name).collect();
    let hedge = retry.hedge.map(|hedge| json!({"after_ms": ms(hedge.after), "at_once": hedge.at_once}));
    json!({
        "attempts": retry.attempts,
        "on": retry.on.to_string(),
        "codes": retry.codes,
        "headers": headers,
        "per_try_timeout_ms": some_ms(retry.per_try_timeout),
        "backoff": {"base_ms": ms(retry.backoff.base), "max_ms": ms(retry.backoff.max)},
        "longest_retry_after_ms": some_ms(retry.retry_after),
        "hedge": hedge,
        "body_limit": retry.body_limit,
    })
}

pub(super) fn affinity(affinity: &Affinity) -> Value {
    let ttl = match &affinity.carrier {
        AffinityCarrier::Cookie { ttl, .. } => some_ms(*ttl),
        AffinityCarrier::Header(_) => None,
    };
    json!({
        "by": describe::affinity(&affinity.carrier),
        "ttl_ms": ttl,
        "strict": affinity.strict,
    })
}

#[cfg(test)]
mod tests {
    use fieldgate_core::ir::RetryOn;

    use super::*;

    #[test]
    fn retries_are_shown_in_envoys_words() {
        let on = RetryOn::SERVER_ERROR.and(RetryOn::CONNECT_FAILURE);
        let shown = retry(&Retry { attempts: 2, on, ..Retry::default() });
        assert_eq!((&shown["on"], &shown["attempts"]), (&json!("5xx,connect-failure"), &json!(2)));
        assert_eq!(shown["backoff"], json!({"base_ms": 25, "max_ms": 250}));
    }

    #[test]
    fn affinity_is_shown() {
        let carrier = AffinityCarrier::Cookie { name: "at".into(), ttl: None, path: "/".into() };
        let expected = json!({"by": "cookie at", "ttl_ms": null, "strict": true});
        assert_eq!(affinity(&Affinity { carrier, strict: true }), expected);
    }
}
