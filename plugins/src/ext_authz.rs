//! External authorization: another service is told of a request and decides (Envoy's `ext_authz`, by gRPC and HTTP).
//!
//! Fields that only the authorizer may set are taken off whatever the client sends, also where nobody is asked: an upstream
//! that believes them must be right to. What the service wants changed is judged before any of it is done.

mod answer;
mod check;
mod http;
mod mutation;
mod proto;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use fieldgate_core::filter::LocalResponse;
use fieldgate_core::guard::{Answered, BodyWish, Callout, Guard, Guarded, NoAnswer, Verdict};
use fieldgate_core::ir::{self, ExtAuthzProtocol, ExtAuthzRoute, ObjectKey, StringMatch};
use fieldgate_core::{HeaderId, Headers, RequestHead};
use prost::Message;

use self::answer::{Allowed, Answer, Denied, Lists};
use crate::grpc;

/// The namespace of an authorizer's dynamic metadata.
pub const METADATA: &str = "envoy.filters.http.ext_authz";

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Bytes that an answer's body may have.
const ANSWER: usize = 64 * 1024;
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
const FAILED_OPEN: &str = "x-envoy-auth-failure-mode-allowed";

/// The client's body was asked for.
const BODY: u8 = 1;
/// The authorizer was asked.
const DECISION: u8 = 2;

/// The guard of an `ExternalAuthorizer`.
pub fn ready(key: &ObjectKey, ir: &ir::ExtAuthz) -> Arc<dyn Guard> {
    Arc::new(ExtAuthz { key: key.clone(), ir: ir.clone() })
}

#[derive(Debug)]
struct ExtAuthz {
    key: ObjectKey,
    ir: ir::ExtAuthz,
}

impl Guard for ExtAuthz {
    fn key(&self) -> &ObjectKey {
        &self.key
    }

    fn name(&self) -> &'static str {
        "ext_authz"
    }

    fn looks_ahead(&self) -> bool {
        !self.ir.routes.is_empty()
    }

    fn not_asked(&self, head: &mut RequestHead) {
        let own = &self.ir.own_headers;
        if !own.is_empty() {
            head.headers.remove_if(|_, name, _| fits(own, name));
        }
    }

    fn begin(&self, request: &mut Guarded<'_>) -> Verdict {
        if self.route(request) == Some(&ExtAuthzRoute::Off) {
            return self.pass(request);
        }
        if self.ir.body_limit == 0 || request.body_length == Some(0) {
            return Verdict::Ask(Box::new(self.question(request, None)));
        }
        let wish = BodyWish { limit: self.ir.body_limit as usize, partial: self.ir.partial_body };
        let mut callout = grpc::call(&self.ir.pool, None, CHECK, &[], self.ir.timeout, 0);
        callout.client_body = Some(wish);
        callout.step = BODY;
        Verdict::Ask(Box::new(callout))
    }

    fn resume(&self, request: &mut Guarded<'_>, step: u8, answer: Result<Answered, NoAnswer>) -> Verdict {
        match (step, answer) {
            (BODY, Err(NoAnswer::Body(body, whole))) => {
                Verdict::Ask(Box::new(self.question(request, Some((&body, whole)))))
            }
            (BODY, Err(NoAnswer::BodyTooLong)) => {
                refusal(413, "ext_authz_body_too_large", "the body is too large\n")
            }
            (_, Ok(answered)) => match self.read(&answered) {
                Answer::Allowed(allowed) => self.allow(*allowed, request),
                Answer::Denied(denied) => deny(*denied, request),
                Answer::Failed(_) => self.fail(request),
                Answer::Invalid(_) => refusal(500, "ext_authz_invalid", ""),
            },
            (_, Err(_)) => self.fail(request),
        }
    }
}

impl ExtAuthz {
    fn question(&self, request: &mut Guarded<'_>, body: Option<(&Bytes, bool)>) -> Callout {
        let ir = &self.ir;
        let mut callout = match &ir.protocol {
            ExtAuthzProtocol::Grpc { authority } => {
                let check = check::check_request(ir, self.context(request), request, body);
                let message = check.encode_to_vec();
                grpc::call(&ir.pool, authority.as_deref(), CHECK, &message, ir.timeout, ANSWER)
            }
            ExtAuthzProtocol::Http { path_prefix, authority, add, .. } => {
                let head = http::question(ir, path_prefix, authority.as_deref(), add, request.head, body);
                Callout {
                    pool: ir.pool.clone(),
                    head,
                    body: body.map(|(body, _)| body.clone()).unwrap_or_default(),
                    client_body: None,
                    grpc: false,
                    timeout: ir.timeout,
                    limit: ANSWER,
                    step: 0,
                }
            }
        };
        callout.step = DECISION;
        callout
    }

    fn read(&self, answered: &Answered) -> Answer {
        match &self.ir.protocol {
            ExtAuthzProtocol::Grpc { .. } => answer::of_grpc(answered),
            ExtAuthzProtocol::Http {
                upstream_headers,
                client_headers_on_success,
                client_headers_on_denied,
                ..
            } => {
                let lists = Lists {
                    upstream: upstream_headers,
                    client_on_success: client_headers_on_success,
                    client_on_denied: client_headers_on_denied,
                };
                answer::of_http(answered, &lists)
            }
        }
    }

    fn allow(&self, allowed: Allowed, request: &mut Guarded<'_>) -> Verdict {
        let verdict = self.pass(request);
        let headers = &mut request.head.headers;
        allowed.request.iter().for_each(|change| change.apply(headers));
        allowed.remove.iter().for_each(|name| headers.remove(name));
        mutation::edit_query(request.head, &allowed.query, &allowed.remove_query);
        allowed.response.iter().for_each(|change| change.apply(request.response_headers));
        if let Some(metadata) = allowed.metadata {
            request.metadata.dynamic.insert(METADATA.to_owned(), metadata.into());
        }
        verdict
    }

    /// The request goes on, without what only the authorizer may say.
    fn pass(&self, request: &mut Guarded<'_>) -> Verdict {
        self.not_asked(request.head);
        Verdict::Continue
    }

    /// Nobody could say whether the request may pass.
    fn fail(&self, request: &mut Guarded<'_>) -> Verdict {
        if !self.ir.fail_open {
            return refusal(self.ir.status_on_error, "ext_authz_error", "");
        }
        self.pass(request);
        if self.ir.fail_open_header {
            request.head.headers.set(FAILED_OPEN, b"true");
        }
        Verdict::FailOpen
    }

    /// How the request's route differs.
    fn route(&self, request: &Guarded<'_>) -> Option<&ExtAuthzRoute> {
        let id = &*request.rule?.id;
        let named = |name: &str| {
            id.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['#', '/']))
        };
        // The longest is the nearest.
        let routes = self.ir.routes.iter().filter(|(name, _)| named(name));
        routes.max_by_key(|(name, _)| name.len()).map(|(_, route)| route)
    }

    fn context(&self, request: &Guarded<'_>) -> HashMap<String, String> {
        let of_route = match self.route(request) {
            Some(ExtAuthzRoute::Context(context)) => &context[..],
            _ => &[],
        };
        let all = self.ir.context.iter().chain(of_route);
        all.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }
}

/// The authorizer has refused it: the client hears what it says, and nothing that frames a message.
fn deny(denied: Denied, request: &mut Guarded<'_>) -> Verdict {
    if let Some(metadata) = denied.metadata {
        request.metadata.dynamic.insert(METADATA.to_owned(), metadata.into());
    }
    let grpc = request.head.is_grpc();
    let mut sent = Headers::new();
    denied.headers.iter().for_each(|change| change.apply(&mut sent));
    for (id, name, value) in sent.iter() {
        // A gRPC client's status and message are made from status and body.
        let made =
            grpc && (matches!(id, HeaderId::ContentType | HeaderId::GrpcStatus) || name == b"grpc-message");
        if id != HeaderId::Server && !made {
            request.response_headers.push(name, value);
        }
    }
    let status = if denied.status == 0 { 403 } else { denied.status };
    refusal(status, "ext_authz_denied", denied.body)
}

fn refusal(status: u16, details: &'static str, body: impl Into<Cow<'static, str>>) -> Verdict {
    let body = body.into();
    Verdict::Respond(Box::new(LocalResponse { status, headers: Vec::new(), body, flags: "UAEX", details }))
}

/// Whether a field's name, in lower case, is one of those meant.
fn fits(patterns: &[StringMatch], name: &[u8]) -> bool {
    patterns.iter().any(|pattern| match pattern {
        StringMatch::Exact(text) => name == text.as_bytes(),
        StringMatch::Prefix(text) => name.starts_with(text.as_bytes()),
        StringMatch::Suffix(text) => name.ends_with(text.as_bytes()),
        StringMatch::Present => true,
        // Of paths, and no path is a field's name.
        StringMatch::Template(_) => false,
    })
}

/// Fields that an authorizer is not told: those of the client's connection, and those that only the gateway may write,
/// which may yet be the client's own here.
fn is_private(id: HeaderId, name: &[u8]) -> bool {
    id.is_hop_by_hop()
        || matches!(id, HeaderId::Te | HeaderId::Expect | HeaderId::XForwardedClientCert)
        || name.starts_with(b"x-envoy-")
}
