//! What a request would count against, told for people. Nothing is counted.

use fieldgate_core::guard::Guarded;
use fieldgate_core::ir::{Limit, RateLimit};

use super::global::descriptors;
use super::key::{Value, When};

/// A line for each limit that a request counts against, and for each descriptor that a service would be asked about.
pub fn explain(ir: &RateLimit, request: &Guarded<'_>) -> Vec<String> {
    let watched = if ir.shadow { " (only watched)" } else { "" };
    let local = ir.limits.iter().filter_map(|limit| local(limit, request));
    let global = ir.global.iter().flat_map(|global| {
        descriptors(global, request).into_iter().map(|descriptor| {
            let entries: Vec<_> =
                descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
            format!("{} counts, domain {}: {}", global.pool, global.domain, entries.join(", "))
        })
    });
    local.chain(global).map(|line| line + watched).collect()
}

fn local(limit: &Limit, request: &Guarded<'_>) -> Option<String> {
    let holds = |when| When::new(when).is_ok_and(|when| when.holds(request));
    if !limit.when.iter().all(holds) {
        return None;
    }
    let key = limit.by.iter().map(|by| Value::of(by, request).map(Value::into_text));
    let key = key.collect::<Option<Vec<_>>>()?.join(", ");
    let Limit { name, tokens, interval, burst, .. } = limit;
    let bucket = if key.is_empty() { String::new() } else { format!(", for {key}") };
    Some(format!("{name}: {tokens} in {interval:?}, {burst} at once{bucket}"))
}
