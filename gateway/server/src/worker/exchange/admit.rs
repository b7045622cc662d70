//! What may refuse a request before it is forwarded, asked in order: a listener's policy, then the guards of its rule. A
//! guard that is not there refuses: what it was to keep out must not come in.

use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime};

use fieldgate_core::RequestHead;
use fieldgate_core::guard::{Guard, Guarded, Verdict};
use fieldgate_core::identity::Metadata;
use fieldgate_core::ir::{ConnectionFacts, GuardRef, Rule};
use fieldgate_core::route::Entry;
use fieldgate_core::snapshot::CompiledListener;
use fieldgate_plugins::authz::{self, Authorizer, Provider};
use fieldgate_plugins::jwt::{Authenticator, Refusal};
use fieldgate_wire::h1::BodyKind;

use super::decide::{Stop, of_local};
use super::{Question, Request, Walk};
use crate::published::{ListenerPolicy, Published, Step};
use crate::telemetry::GuardResult;
use crate::worker::local::Answer;
use crate::worker::{Connection, Worker};

/// Takes what is left of the listener's steps.
#[allow(clippy::result_large_err)] // an answer is the end of the request, not an error on a hot path
pub(super) fn admit<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    listener: &CompiledListener,
    policy: &'p ListenerPolicy,
    request: &mut Request,
    walk: &mut Walk<'p>,
) -> Result<(), Stop> {
    for step in policy.steps.iter().skip(walk.steps as usize) {
        match step {
            Step::Custom(authorizer, provider) => {
                let provider = &authorizer.providers()[*provider];
                custom(worker, conn, published, authorizer, provider, request, walk)?;
            }
            Step::Guard(guard) => {
                let mut ahead = None;
                if guard.looks_ahead() {
                    // What a client may not set must not choose the route by which the guard decides.
                    guard.not_asked(&mut request.head);
                    ahead = listener.route(&request.head);
                }
                consult(worker, conn, &**guard, ahead.map(|entry| &entry.rule.ir), request, walk)?;
            }
            Step::Authenticate(authenticator) => authenticate(worker, authenticator, request, walk)?,
            Step::Authorize(authorizer) => authorize(worker, conn, authorizer, request, walk)?,
        }
        walk.steps += 1;
    }
    Ok(())
}

/// Asks a guard of a rule.
#[allow(clippy::result_large_err)] // see `admit`
pub(super) fn ask<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    guard: &GuardRef,
    entry: &Entry,
    request: &mut Request,
    walk: &mut Walk<'p>,
) -> Result<(), Stop> {
    match published.guard(guard) {
        Some(guard) => consult(worker, conn, &**guard, Some(&entry.rule.ir), request, walk),
        None => Err(Answer::new(500, "guard_not_found", "-", "a policy of this route is missing\n").into()),
    }
}

#[allow(clippy::result_large_err)] // see `admit`
fn consult<'p>(
    worker: &Worker,
    conn: &Connection,
    guard: &'p dyn Guard,
    rule: Option<&Arc<Rule>>,
    request: &mut Request,
    walk: &mut Walk<'p>,
) -> Result<(), Stop> {
    let facts = facts(conn, walk);
    let known = walk.known.get_or_insert_default();
    let answer = known.answer.take();
    if answer.is_none() && guard.follows() {
        known.following.push(guard);
    }
    let mut guarded = Guarded {
        head: &mut request.head,
        facts,
        rule: rule.map(|rule| &**rule),
        metadata: &mut known.metadata,
        response_headers: &mut known.response_headers,
        body_length: match request.body {
            BodyKind::None => Some(0),
            BodyKind::Length(length) => Some(length),
            _ => None,
        },
        now: Instant::now(),
        wall: SystemTime::now(),
        random: &mut || worker.random(),
    };
    let verdict = match answer {
        None => guard.begin(&mut guarded),
        Some((step, answer)) => {
            if let Some(asked) = known.asked.take() {
                worker.recorder.guard_asked(guard, guarded.now - asked);
            }
            guard.resume(&mut guarded, step, answer)
        }
    };
    match verdict {
        Verdict::Continue => {
            worker.recorder.guard(guard, GuardResult::Allowed);
            Ok(())
        }
        Verdict::FailOpen => {
            worker.recorder.guard(guard, GuardResult::FailedOpen);
            known.failed_open = true;
            Ok(())
        }
        Verdict::Ask(callout) => {
            known.asked = callout.client_body.is_none().then(Instant::now);
            Err(Stop::Ask(Question::Callout(callout)))
        }
        Verdict::Work(work) => Err(Stop::Ask(Question::Work(work))),
        Verdict::Respond(response) => {
            // As Envoy's details of answers that nobody has decided on end.
            let error = response.details.ends_with("_error");
            let result = if error { GuardResult::Error } else { GuardResult::Denied };
            worker.recorder.guard(guard, result);
            Err(of_local(*response).into())
        }
    }
}

/// Asks the provider of CUSTOM policies about a request that one of them matches. Once it was asked, the answer is
/// for it, whatever it has changed of the head.
#[allow(clippy::result_large_err)] // see `admit`
fn custom<'p>(
    worker: &Worker,
    conn: &Connection,
    published: &'p Published,
    authorizer: &Authorizer,
    provider: &Provider,
    request: &mut Request,
    walk: &mut Walk<'p>,
) -> Result<(), Stop> {
    let guard = provider.guard.as_ref().and_then(|guard| published.guard(guard));
    let answered = walk.known.as_ref().is_some_and(|known| known.answer.is_some());
    if !answered {
        let matched = authorizer.asks(provider, &request.head, &facts(conn, walk), metadata(walk));
        let Some(rule) = matched else {
            if let Some(guard) = guard {
                guard.not_asked(&mut request.head);
            }
            return Ok(());
        };
        worker.recorder.authz(&rule.policy, rule.action, rule.dry_run);
        if guard.is_none() {
            // As istiod: `-deny-due-to-bad-CUSTOM-action`.
            let details = format!("{}-deny-due-to-bad-CUSTOM-action", rule.id);
            let details = format!("rbac_access_denied_matched_policy[{details}]");
            return Err(Answer::new(authz::DENIED_STATUS, details, "-", authz::DENIED_BODY).into());
        }
    }
    match guard {
        Some(guard) => consult(worker, conn, &**guard, None, request, walk),
        // Gone while it was asked.
        None => {
            Err(Answer::new(500, "guard_not_found", "-", "a policy of this listener is missing\n").into())
        }
    }
}

#[allow(clippy::result_large_err)] // see `admit`
fn authenticate(
    worker: &Worker,
    authenticator: &Authenticator,
    request: &mut Request,
    walk: &mut Walk<'_>,
) -> Result<(), Stop> {
    let mut learned = Metadata::default();
    let cache = &mut worker.tokens.borrow_mut();
    let result = authenticator.authenticate(&mut request.head, &mut learned, cache, SystemTime::now());
    worker.recorder.tokens(result);
    if let Err(why) = result {
        return Err(bad_token(why, &request.head).into());
    }
    if !learned.tokens.is_empty() {
        walk.known.get_or_insert_default().metadata.tokens.append(&mut learned.tokens);
    }
    Ok(())
}

/// As Envoy answers (RFC 6750 section 3), only that the realm has no query: a token may be in it.
fn bad_token(why: Refusal, head: &RequestHead) -> Answer {
    const MAX_PATH: usize = 256;
    let scheme = if head.https { "https" } else { "http" };
    let path = head.path().bytes().take(MAX_PATH).map(char::from);
    let path: String = path.filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).collect();
    let error = if why == Refusal::Missing { "" } else { ", error=\"invalid_token\"" };
    let challenge = format!("Bearer realm=\"{scheme}://{}{path}\"{error}", head.authority);
    let mut answer = Answer::new(why.status(), why.details(), "-", why.text());
    answer.headers.push(b"www-authenticate", challenge.as_bytes());
    answer
}

#[allow(clippy::result_large_err)] // see `admit`
fn authorize(
    worker: &Worker,
    conn: &Connection,
    authorizer: &Authorizer,
    request: &Request,
    walk: &mut Walk<'_>,
) -> Result<(), Stop> {
    let decision = authorizer.decide(&request.head, &facts(conn, walk), metadata(walk));
    for rule in decision.matches() {
        worker.recorder.authz(&rule.policy, rule.action, rule.dry_run);
    }
    for (name, run) in decision.dry_runs() {
        tracing::debug!(
            target: "fieldgate::authz",
            policies = name,
            result = if run.allowed { "allowed" } else { "denied" },
            policy = run.matched.map_or("none", |rule| &rule.id),
            method = request.head.method.as_str(),
            authority = %request.head.authority,
            path = request.head.path(),
            client = ?walk.client,
            "dry-run"
        );
    }
    if decision.dry_run_deny.is_some() || decision.dry_run_allow.is_some() {
        decision.report(&mut walk.known.get_or_insert_default().metadata);
    }
    if decision.allowed {
        return Ok(());
    }
    Err(Answer::new(authz::DENIED_STATUS, decision.details(), "-", authz::DENIED_BODY).into())
}

/// What is known of a request so far.
fn metadata<'a>(walk: &'a Walk<'_>) -> &'a Metadata {
    static NOTHING: LazyLock<Metadata> = LazyLock::new(Metadata::default);
    walk.known.as_ref().map_or(&*NOTHING, |known| &known.metadata)
}

fn facts<'a>(conn: &'a Connection, walk: &Walk<'_>) -> ConnectionFacts<'a> {
    let peer = conn.peer.ip().to_canonical();
    ConnectionFacts {
        peer,
        client: walk.client.unwrap_or(peer),
        local: conn.local,
        sni: conn.sni.as_deref(),
        identity: conn.identity.as_deref(),
    }
}
