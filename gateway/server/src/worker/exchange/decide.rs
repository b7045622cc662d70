//! What a request's head alone decides: listener, policies, route, filters, backend. No socket is touched here.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_core::balance::{affinity, request_hash};
use fieldgate_core::fault::{self, FaultDecision};
use fieldgate_core::ir::{ConnectionFacts, Fault, Filter};
use fieldgate_core::retry::grpc_timeout;
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::CompiledRule;
use fieldgate_core::{HeaderId, Method, RequestHead, ResponseHead, filter};
use fieldgate_plugins::cors;

use super::{Decision, Forward, Log, Rare, Request, STREAM_IDLE};
use crate::published::Published;
use crate::worker::local::Answer;
use crate::worker::{Connection, Worker, forward, mirror};

/// A stream that may be idle for ever is given up after this.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// Listener, policies, route, filters, split. Changes the head to what the upstream is to see.
pub(super) fn decide<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    request: &mut Request,
    log: &mut Log<'p>,
) -> Decision<'p> {
    match decide_or_answer(worker, conn, published, request, log) {
        Ok(to) => Decision::Forward(to),
        Err(answer) if request.head.is_grpc() && answer.status >= 400 => Decision::Answer(answer.into_grpc()),
        Err(answer) => Decision::Answer(answer),
    }
}

#[allow(clippy::result_large_err)] // an answer is the end of the request, not an error on a hot path
fn decide_or_answer<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    request: &mut Request,
    log: &mut Log<'p>,
) -> Result<Forward<'p>, Answer> {
    let head = &mut request.head;
    if head.method == Method::Connect {
        return Err(Answer::new(405, "connect_not_supported", "-", "CONNECT is not supported\n"));
    }
    let not_found = || Answer::new(404, "route_not_found", "NR", "no route\n");
    let table = published.snapshot.address(conn.bound).ok_or_else(not_found)?;
    let listener = table.listener_for(head.host()).ok_or_else(not_found)?;
    if let Some(sni) = &conn.sni
        && table.listener_for(sni).is_some_and(|by_sni| !Arc::ptr_eq(by_sni, listener))
    {
        // The handshake was for another listener: its certificates and policies were another's (RFC 9110 section 15.5.20).
        return Err(Answer::new(421, "misdirected_request", "-", "misdirected request\n"));
    }
    log.listener = Some(listener);
    let trusted_hops = listener.ir.client.trusted_hops;
    let client = conn.client(head.headers.get_id(HeaderId::XForwardedFor), trusted_hops);
    if let Some(authorizer) = published.authorizers.get(&listener.ir.key) {
        let facts = ConnectionFacts {
            peer: conn.peer.ip().to_canonical(),
            client,
            local: conn.local,
            sni: conn.sni.as_deref(),
        };
        let decision = authorizer.decide(head, &facts);
        for rule in decision.matches() {
            worker.recorder.authz(&rule.policy, rule.action, rule.dry_run);
        }
        if !decision.allowed {
            return Err(Answer::new(403, decision.details(), "-", "RBAC: access denied"));
        }
    }
    let entry = listener.route(head).ok_or_else(not_found)?;
    log.entry = Some(entry);
    let rule = &entry.rule;
    forward::prepare_request(head, conn.peer.ip().to_canonical(), trusted_hops, || worker.random());
    let port = conn.local.port();
    let mut rare: Option<Box<Rare<'_>>> = None;
    for filter in &rule.ir.filters {
        apply(worker, filter, entry, head, port, &mut rare, log)?;
    }
    if rule.ir.backends.is_empty() {
        return Err(Answer::new(500, "no_backend", "-", "no backend\n"));
    }
    let home = match rule.ir.affinity.as_deref() {
        None => None,
        Some(affinity) => {
            let rare = rare.get_or_insert_default();
            rare.affinity = Some(affinity);
            rare.wish.prefer = affinity::named(affinity, head);
            rare.wish.strict = affinity.strict;
            rare.wish.prefer.and_then(|endpoint| home_of(published, rule, endpoint))
        }
    };
    let choice = if let Some(backend) = home {
        Some((backend, None))
    } else {
        let mut splits = worker.splits.borrow_mut();
        let slot = rule.slot as usize;
        if splits.len() <= slot {
            splits.resize_with(slot + 1, Default::default);
        }
        rule.split
            .choose(&mut splits[slot], head, client, worker.random())
            .map(|choice| (choice.backend, choice.issue_cookie))
    };
    let Some((chosen, issue_cookie)) = choice else {
        return Err(Answer::new(500, "no_weight", "-", "no backend has weight\n"));
    };
    worker.count_choice(rule, chosen);
    log.backend = Some(chosen);
    let backend = &rule.backends[chosen];
    let mut copies = None;
    let mirrored = request.upgrade.is_none();
    if mirrored && !rule.mirrors.is_empty() {
        mirror::copy(worker, rule, &rule.mirrors, head, &mut copies);
    }
    for filter in &backend.filters {
        apply(worker, filter, entry, head, port, &mut rare, log)?;
    }
    if mirrored && !backend.mirrors.is_empty() {
        mirror::copy(worker, rule, &backend.mirrors, head, &mut copies);
    }
    let slot = match &backend.pool {
        Ok(slot) => *slot,
        Err(why) => {
            log.failure = Some(why.to_string());
            return Err(Answer::new(500, "backend_invalid", "-", "backend is not valid\n"));
        }
    };
    let Some(pool) = published.snapshot.pool(slot) else {
        return Err(Answer::new(500, "cluster_not_found", "NC", "backend not found\n"));
    };
    log.pool = Some(pool);
    if let Some(cookie) = issue_cookie {
        rare.get_or_insert_default().cookies.push(cookie);
    }
    if let Some(by) = pool.ir.balance.hash_by() {
        let hashed = request_hash(by, head, client, &mut || worker.random());
        let rare = rare.get_or_insert_default();
        rare.wish.hash = hashed.hash;
        rare.cookies.extend(hashed.issue_cookie);
    }
    let timeouts = &rule.ir.timeouts;
    let limit = limit(rule, head, request.started);
    Ok(Forward {
        rule,
        backend: chosen,
        pool,
        limit: limit.map(|(limit, _)| limit),
        limit_is_clients: limit.is_some_and(|(_, clients)| clients),
        idle: timeouts.idle.map_or(STREAM_IDLE, |idle| if idle.is_zero() { FOREVER } else { idle }),
        rare,
        copies,
        tee: None,
        replay: None,
        waiting: Cell::default(),
    })
}

/// What of a fault comes to this request.
fn inject(worker: &Worker, fault: &Fault, head: &RequestHead, rare: &mut Option<Box<Rare<'_>>>) {
    let decision = fault::decide(fault, head, &mut || worker.random());
    if decision != FaultDecision::default() {
        rare.get_or_insert_default().fault = Some(decision);
    }
}

/// The backend that has the endpoint to which a client's affinity binds it, whatever the weights are now.
fn home_of(published: &Published, rule: &CompiledRule, endpoint: SocketAddr) -> Option<usize> {
    rule.backends.iter().position(|backend| {
        let pool = backend.pool.as_ref().ok().and_then(|slot| published.snapshot.pool(*slot));
        pool.is_some_and(|pool| pool.endpoints.iter().any(|e| e.state.address == endpoint))
    })
}

/// When a request must be over: the route's timeout, or the time that a gRPC client gives it, whichever is shorter; and
/// whether it is the client's.
fn limit(rule: &CompiledRule, head: &RequestHead, started: Instant) -> Option<(Instant, bool)> {
    let of_route = rule.ir.timeouts.request.filter(|t| !t.is_zero());
    let of_client = match head.method {
        Method::Post if head.is_grpc() => head.headers.get("grpc-timeout").and_then(grpc_timeout),
        _ => None,
    };
    match (of_route, of_client) {
        (Some(of_route), Some(of_client)) if of_client < of_route => Some((started + of_client, true)),
        (Some(of_route), _) => Some((started + of_route, false)),
        (None, of_client) => of_client.map(|timeout| (started + timeout, true)),
    }
}

/// A filter's effect on the request.
#[allow(clippy::result_large_err)] // see `decide_or_answer`
fn apply(
    worker: &Worker,
    filter: &Filter,
    entry: &Entry,
    head: &mut RequestHead,
    port: u16,
    rare: &mut Option<Box<Rare<'_>>>,
    log: &mut Log<'_>,
) -> Result<(), Answer> {
    match filter {
        Filter::RequestHeaders(edit) => filter::edit_headers(edit, &mut head.headers),
        Filter::Rewrite(rewrite) => {
            if rewrite.path.is_some() {
                log.original_path.get_or_insert_with(|| head.target.clone());
            }
            filter::rewrite(rewrite, entry.prefix_len, head);
        }
        Filter::Redirect(redirect) => {
            return Err(of_local(filter::redirect(redirect, entry.prefix_len, head, port)));
        }
        Filter::Cors(policy) => {
            if let Some(answer) = cors::preflight(policy, head) {
                return Err(of_local(answer));
            }
        }
        Filter::Fault(fault) => inject(worker, fault, head, rare),
        Filter::ResponseHeaders(_) | Filter::Mirror(_) => {}
    }
    Ok(())
}

fn of_local(response: filter::LocalResponse) -> Answer {
    let mut answer = Answer::new(response.status, response.details, "-", "");
    for (name, value) in &response.headers {
        answer.headers.push(name.as_bytes(), value.as_bytes());
    }
    answer.body = response.body;
    answer
}

/// A filter's effect on the response.
pub fn apply_to_response(
    to: &Forward<'_>,
    endpoint: SocketAddr,
    request: &RequestHead,
    response: &mut ResponseHead,
) {
    let filters = to.rule.backends[to.backend].filters.iter().chain(&to.rule.ir.filters);
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(edit) => filter::edit_headers(edit, &mut response.headers),
            Filter::Cors(policy) => cors::apply(policy, request, &mut response.headers),
            _ => {}
        }
    }
    let Some(rare) = &to.rare else { return };
    // Only news is told: a client whose endpoint is the one that it named knows it.
    if let Some(affinity) = rare.affinity.filter(|_| rare.wish.prefer != Some(endpoint)) {
        let (name, value) = affinity::issue(affinity, endpoint, request.https);
        response.headers.push(name.as_bytes(), value.as_bytes());
    }
    for cookie in &rare.cookies {
        response.headers.push_known(HeaderId::SetCookie, "set-cookie", cookie.as_bytes());
    }
}
