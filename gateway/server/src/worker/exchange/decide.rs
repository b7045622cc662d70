//! What a request's head alone decides: listener, policies, route, filters, backend. No socket is touched here.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_core::balance::{affinity, request_hash};
use fieldgate_core::fault::{self, FaultDecision};
use fieldgate_core::ir::{Fault, Filter};
use fieldgate_core::retry::grpc_timeout;
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::{CompiledListener, CompiledRule};
use fieldgate_core::{HeaderId, Method, RequestHead, ResponseHead, filter};
use fieldgate_plugins::cors;

use super::{Decision, Forward, Log, Question, Rare, Request, STREAM_IDLE, Walk, admit};
use crate::published::Published;
use crate::worker::local::Answer;
use crate::worker::{Connection, Worker, forward, mirror, mutual};

/// What a guard has written and not the client, whose own was taken off before (see `fieldgate_plugins::ext_authz`).
const FAILED_OPEN: &str = "x-envoy-auth-failure-mode-allowed";

/// A stream that may be idle for ever is given up after this.
const FOREVER: Duration = Duration::from_hours(24 * 365);

/// Listener, policies, route, filters, split. Changes the head to what the upstream is to see. Where somebody is to be
/// asked it stops; called again with the answer in `walk`, it goes on from there.
pub(super) fn decide<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    request: &mut Request,
    log: &mut Log<'p>,
    walk: &mut Walk<'p>,
) -> Decision<'p> {
    let mut answer = match decide_or_stop(worker, conn, published, request, log, walk) {
        Ok(to) => return Decision::Forward(to),
        Err(Stop::Ask(question)) => return Decision::Ask(question),
        Err(Stop::Answer(answer)) => answer,
    };
    if let Some(known) = &walk.known {
        for (_, name, value) in known.response_headers.iter() {
            answer.headers.push(name, value);
        }
        for guard in &known.following {
            guard.receive(request.head.https, &mut answer.headers);
        }
    }
    let grpc = request.head.is_grpc() && answer.status >= 400;
    Decision::Answer(if grpc { answer.into_grpc() } else { answer })
}

/// Why a request is not forwarded, or not yet.
pub(super) enum Stop {
    Answer(Answer),
    Ask(Question),
}

impl From<Answer> for Stop {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

/// The listener that a request is for; who its connection was made for is looked at too.
#[allow(clippy::result_large_err)] // an answer is the end of the request, not an error on a hot path
fn listener_of<'p>(
    conn: &Connection,
    published: &'p Published,
    head: &RequestHead,
) -> Result<&'p Arc<CompiledListener>, Answer> {
    if head.method == Method::Connect {
        return Err(Answer::new(405, "connect_not_supported", "-", "CONNECT is not supported\n"));
    }
    let table = published.snapshot.address(conn.bound).ok_or_else(not_found)?;
    let listener = table.listener_for(head.host()).ok_or_else(not_found)?;
    if let Some(sni) = &conn.sni
        && table.listener_for(sni).is_some_and(|by_sni| !Arc::ptr_eq(by_sni, listener))
    {
        // The handshake was for another listener: its certificates and policies were another's (RFC 9110 section 15.5.20).
        return Err(misdirected());
    }
    if !mutual::admits(conn, listener) {
        return Err(misdirected());
    }
    Ok(listener)
}

fn misdirected() -> Answer {
    Answer::new(421, "misdirected_request", "-", "misdirected request\n")
}

fn not_found() -> Answer {
    Answer::new(404, "route_not_found", "NR", "no route\n")
}

#[allow(clippy::result_large_err)] // see `listener_of`
fn decide_or_stop<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    request: &mut Request,
    log: &mut Log<'p>,
    walk: &mut Walk<'p>,
) -> Result<Forward<'p>, Stop> {
    let listener = match log.listener {
        Some(listener) => listener,
        None => {
            walk.from_client = request.head.headers.byte_len();
            log.listener.insert(listener_of(conn, published, &request.head)?)
        }
    };
    let trusted_hops = listener.ir.client.trusted_hops;
    // What this says changes with the head; what is asked before and after is to be told the same.
    let client = *walk.client.get_or_insert_with(|| conn.client(&request.head.headers, trusted_hops));
    let entry = if let Some(entry) = log.entry {
        entry
    } else {
        if let Some(policy) = published.policies.get(&listener.ir.key) {
            if walk.known.is_none() {
                forward::disconnect(&mut request.head.headers);
            }
            admit::admit(worker, conn, published, listener, policy, request, walk)?;
        }
        let entry = listener.route(&request.head).ok_or_else(not_found)?;
        log.entry = Some(entry);
        let peer = conn.peer.ip().to_canonical();
        let client_cert = forward::ClientCert {
            mode: listener.ir.client.client_cert,
            own: conn.proof.as_ref().and_then(|proof| proof.element.as_deref()),
        };
        let headers = &request.head.headers;
        let failed_open =
            walk.known.as_ref().is_some_and(|k| k.failed_open) && headers.get(FAILED_OPEN).is_some();
        forward::prepare_request(&mut request.head, peer, trusted_hops, client_cert, || worker.random());
        if failed_open {
            request.head.headers.set(FAILED_OPEN, b"true");
        }
        entry
    };
    let rule = &entry.rule;
    let port = conn.local.port();
    for filter in rule.ir.filters.iter().skip(walk.filters as usize) {
        match filter {
            Filter::Guard(guard) => admit::ask(worker, conn, published, guard, entry, request, walk)?,
            _ => apply(worker, filter, entry, &mut request.head, port, &mut walk.rare, log)?,
        }
        walk.filters += 1;
    }
    let mut rare = walk.rare.take();
    let known = walk.known.take().filter(|k| !k.response_headers.is_empty() || !k.following.is_empty());
    if let Some(known) = known {
        let rare = rare.get_or_insert_default();
        rare.headers = known.response_headers;
        rare.body_limit = known.following.iter().filter_map(|guard| guard.body_limit()).min();
        rare.following = known.following;
    }
    let head = &mut request.head;
    if rule.ir.backends.is_empty() {
        return Err(Answer::new(500, "no_backend", "-", "no backend\n").into());
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
        return Err(Answer::new(500, "no_weight", "-", "no backend has weight\n").into());
    };
    worker.count_choice(rule, chosen);
    log.backend = Some(chosen);
    let backend = &rule.backends[chosen];
    for guard in rare.iter().flat_map(|rare| &rare.following) {
        guard.send(head, walk.from_client);
    }
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
            return Err(Answer::new(500, "backend_invalid", "-", "backend is not valid\n").into());
        }
    };
    let Some(pool) = published.snapshot.pool(slot) else {
        return Err(Answer::new(500, "cluster_not_found", "NC", "backend not found\n").into());
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
#[allow(clippy::result_large_err)] // see `listener_of`
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
        Filter::ResponseHeaders(_) | Filter::Mirror(_) | Filter::Guard(_) => {}
    }
    Ok(())
}

pub(super) fn of_local(response: filter::LocalResponse) -> Answer {
    let mut answer = Answer::new(response.status, response.details, response.flags, "");
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
    for (_, name, value) in rare.headers.iter() {
        response.headers.push(name, value);
    }
    for guard in &rare.following {
        guard.receive(request.https, &mut response.headers);
    }
    // Only news is told: a client whose endpoint is the one that it named knows it.
    if let Some(affinity) = rare.affinity.filter(|_| rare.wish.prefer != Some(endpoint)) {
        let (name, value) = affinity::issue(affinity, endpoint, request.https);
        response.headers.push(name.as_bytes(), value.as_bytes());
    }
    for cookie in &rare.cookies {
        response.headers.push_known(HeaderId::SetCookie, "set-cookie", cookie.as_bytes());
    }
}
