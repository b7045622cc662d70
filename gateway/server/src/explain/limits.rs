//! Which rate limits a request would count against. Nothing is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use fieldgate_core::guard::Guarded;
use fieldgate_core::ir::{ConnectionFacts, Filter, GuardKind, GuardRef, Rule};
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_core::{Headers, Snapshot};
use fieldgate_plugins::rate_limit;

use super::Question;

/// A line for each limit of the listener and of the rule.
pub(super) fn limits(
    snapshot: &Snapshot,
    listener: &CompiledListener,
    rule: Option<&Rule>,
    question: &Question,
    local: SocketAddr,
) -> Vec<String> {
    let of_listener = of(snapshot, listener.ir.guards.iter(), None, question, local);
    let Some(rule) = rule else { return of_listener };
    let guards = rule.filters.iter().filter_map(|filter| match filter {
        Filter::Guard(guard) => Some(guard),
        _ => None,
    });
    let of_rule = of(snapshot, guards, Some(rule), question, local);
    of_listener.into_iter().chain(of_rule).collect()
}

fn of<'g>(
    snapshot: &Snapshot,
    guards: impl IntoIterator<Item = &'g Arc<GuardRef>>,
    rule: Option<&Rule>,
    question: &Question,
    local: SocketAddr,
) -> Vec<String> {
    let mut lines = Vec::new();
    for named in guards {
        let guard = snapshot.config.guards.get(&named.key);
        let Some(GuardKind::RateLimit(limit)) = guard.map(|guard| &guard.kind) else { continue };
        let request = Guarded {
            head: &mut question.head.clone(),
            facts: ConnectionFacts {
                peer: question.client,
                client: question.client,
                local,
                sni: question.head.https.then(|| question.head.host()),
                identity: question.identity.as_ref(),
            },
            rule,
            metadata: &mut question.metadata.clone(),
            response_headers: &mut Headers::new(),
            body_length: None,
            now: Instant::now(),
            wall: SystemTime::now(),
            random: &mut || 0,
        };
        let (namespace, name) = (&named.key.namespace, &named.key.name);
        let told = rate_limit::explain(limit, &request);
        lines.extend(told.into_iter().map(|line| format!("RateLimitPolicy {namespace}/{name}, {line}")));
    }
    lines
}
