//! `ExternalAuthorizer` of the group `fieldgate.dev/v1alpha1`: a service that decides whether requests may pass.
//!
//! Its fields are named as those of Istio's extension providers (`envoyExtAuthzGrpc`, `envoyExtAuthzHttp`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::check::{Checks, is_token};
use super::duration::Duration;
use super::fieldgate::TargetRef;
use super::filter::{bad_header_value, is_header_value};
use super::guard::{ServiceRef, check_service, check_targets};
use crate::diagnostic::reason;

/// A service that decides whether requests may pass.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAuthorizerSpec {
    /// All of whose requests it is asked about. Without any it is there for AuthorizationPolicies with action CUSTOM.
    #[serde(default)]
    pub target_refs: Vec<TargetRef>,
    /// Where it is asked.
    pub backend_ref: ServiceRef,
    /// Asked by gRPC: `envoy.service.auth.v3.Authorization`.
    pub grpc: Option<GrpcSpec>,
    /// Asked by HTTP.
    pub http: Option<HttpSpec>,
    /// How long it may take; 200ms.
    pub timeout: Option<Duration>,
    /// Whether requests pass when it does not answer.
    #[serde(default)]
    pub fail_open: bool,
    /// Whether the upstream is told of those: `x-envoy-auth-failure-mode-allowed: true`.
    #[serde(default)]
    pub fail_open_header: bool,
    /// What a client hears when it does not answer; 403.
    pub status_on_error: Option<u16>,
    /// Sends bodies along.
    pub include_request_body_in_check: Option<BodySpec>,
    /// Headers that only the authorizer may set: the client's are taken off.
    #[serde(default)]
    pub reserved_headers: Vec<String>,
    /// Routes that are treated in another way.
    #[serde(default)]
    pub routes: Vec<RouteSpec>,
}

/// How it is asked by gRPC.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcSpec {
    /// The `:authority`; the service's name without it.
    pub authority: Option<String>,
    /// Request headers that are sent along: `name`, `prefix*`, `*suffix`; all without it.
    pub include_request_headers_in_check: Vec<String>,
    /// Whether the client's certificate is sent along.
    pub include_peer_certificate: bool,
    /// What it is told beside the request (`context_extensions`).
    pub context: BTreeMap<String, String>,
}

/// How it is asked by HTTP.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpSpec {
    /// Put before the path.
    pub path_prefix: Option<String>,
    /// The host that it sees; the client's without it.
    pub authority: Option<String>,
    /// Request headers that are sent along, beside `authorization`: `name`, `prefix*`, `*suffix`.
    pub include_request_headers_in_check: Vec<String>,
    /// Headers that are added.
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// Of an answer that allows: headers that go upstream, in place of the client's.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Of an answer that allows: headers that go to the client.
    pub headers_to_downstream_on_allow: Vec<String>,
    /// Of a refusal: headers that go to the client; all without it.
    pub headers_to_downstream_on_deny: Vec<String>,
}

/// How much of a body is sent along.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BodySpec {
    /// Bytes. A request with more is refused with 413, or sent in part.
    pub max_request_bytes: u32,
    /// Whether it is sent in part.
    #[serde(default)]
    pub allow_partial_message: bool,
    /// Whether it is sent as bytes, for bodies that are not text (gRPC).
    #[serde(default)]
    pub pack_as_bytes: bool,
}

/// A route that is treated in another way.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// The route, or a named rule of it.
    pub target_ref: TargetRef,
    /// Nobody is asked about its requests.
    #[serde(default)]
    pub disabled: bool,
    /// What the authorizer is told beside the rest, or in its place (gRPC).
    #[serde(default)]
    pub context: BTreeMap<String, String>,
}

/// The longest time that a request may wait for an authorizer.
const MAX_TIMEOUT: std::time::Duration = std::time::Duration::from_mins(1);
/// The largest body that is kept for one, in bytes.
const MAX_BODY: i64 = 4 * 1024 * 1024;
/// Entries of one list.
const MAX_ENTRIES: usize = 64;

pub(super) fn check_external_authorizer(spec: &ExternalAuthorizerSpec, checks: &mut Checks<'_>) {
    if !spec.target_refs.is_empty() {
        check_targets(&spec.target_refs, "ExternalAuthorizer", checks);
    }
    check_service(&spec.backend_ref, "spec.backendRef", checks);
    checks.exactly_one("spec", &[("grpc", spec.grpc.is_some()), ("http", spec.http.is_some())]);
    checks.positive("spec.timeout", spec.timeout);
    if spec.timeout.is_some_and(|t| t.0 > MAX_TIMEOUT) {
        let hint = Some("a request that waits that long keeps a connection of its client");
        checks.error("spec.timeout", reason::OUT_OF_RANGE, "expected at most 1m", hint);
    }
    checks.range("spec.statusOnError", spec.status_on_error.unwrap_or(403), 400, 599);
    if spec.fail_open_header && !spec.fail_open {
        let hint = Some("set failOpen: true, or remove it");
        checks.error("spec.failOpenHeader", reason::CONFLICTING_FIELDS, "failOpen is not set", hint);
    }
    if let Some(body) = &spec.include_request_body_in_check {
        checks.range("spec.includeRequestBodyInCheck.maxRequestBytes", body.max_request_bytes, 1, MAX_BODY);
    }
    check_names("spec.reservedHeaders", &spec.reserved_headers, checks);
    if let Some(grpc) = &spec.grpc {
        check_names("spec.grpc.includeRequestHeadersInCheck", &grpc.include_request_headers_in_check, checks);
        check_authority("spec.grpc.authority", grpc.authority.as_deref(), checks);
        checks.count("spec.grpc.context", grpc.context.len(), MAX_ENTRIES);
    }
    if let Some(http) = &spec.http {
        check_http(http, checks);
    }
    check_routes(spec, checks);
}

fn check_http(http: &HttpSpec, checks: &mut Checks<'_>) {
    for (field, names) in [
        ("includeRequestHeadersInCheck", &http.include_request_headers_in_check),
        ("headersToUpstreamOnAllow", &http.headers_to_upstream_on_allow),
        ("headersToDownstreamOnAllow", &http.headers_to_downstream_on_allow),
        ("headersToDownstreamOnDeny", &http.headers_to_downstream_on_deny),
    ] {
        check_names(&format!("spec.http.{field}"), names, checks);
    }
    check_authority("spec.http.authority", http.authority.as_deref(), checks);
    if let Some(prefix) = &http.path_prefix
        && !is_path(prefix)
    {
        let message = format!("\"{prefix}\" is not the beginning of a path");
        let hint = Some("begin with / and leave out query and fragment");
        checks.error("spec.http.pathPrefix", reason::INVALID_VALUE, message, hint);
    }
    let added = &http.include_additional_headers_in_check;
    checks.count("spec.http.includeAdditionalHeadersInCheck", added.len(), MAX_ENTRIES);
    for (name, value) in added {
        let field = format!("spec.http.includeAdditionalHeadersInCheck.{name}");
        if !is_token(name) || is_framing(name) {
            let message = format!("\"{name}\" is not a header that can be added");
            checks.error(&field, reason::INVALID_VALUE, message, Some("letters, digits and -_. only"));
        }
        if !is_header_value(value) {
            bad_header_value(&field, checks);
        }
    }
}

fn check_routes(spec: &ExternalAuthorizerSpec, checks: &mut Checks<'_>) {
    checks.count("spec.routes", spec.routes.len(), MAX_ENTRIES);
    for (i, route) in spec.routes.iter().enumerate() {
        let at = format!("spec.routes[{i}]");
        let target = &route.target_ref;
        let known = matches!(target.kind.as_str(), "HTTPRoute" | "GRPCRoute");
        if target.group != "gateway.networking.k8s.io" || !known {
            let message = format!("{}/{} is not a kind of route", target.group, target.kind);
            let hint = Some("group: gateway.networking.k8s.io with kind: HTTPRoute or GRPCRoute");
            checks.error(&format!("{at}.targetRef"), reason::INVALID_VALUE, message, hint);
        }
        checks.exactly_one(&at, &[("disabled", route.disabled), ("context", !route.context.is_empty())]);
        if !route.context.is_empty() && spec.grpc.is_none() {
            let message = "only gRPC has a context";
            checks.error(&format!("{at}.context"), reason::CONFLICTING_FIELDS, message, None);
        }
        checks.count(format_args!("{at}.context"), route.context.len(), MAX_ENTRIES);
    }
}

/// Names of headers, of which an end may be left open.
fn check_names(field: &str, names: &[String], checks: &mut Checks<'_>) {
    checks.count(field, names.len(), MAX_ENTRIES);
    for (i, name) in names.iter().enumerate() {
        let bare = name.strip_suffix('*').or_else(|| name.strip_prefix('*')).unwrap_or(name);
        let open = bare.is_empty() && name == "*";
        if !open && (!is_token(bare) || bare.contains('*')) {
            let message = format!("\"{name}\" is not the name of a header, nor a pattern of names");
            let hint = Some("name, prefix* or *suffix");
            checks.error(&format!("{field}[{i}]"), reason::INVALID_VALUE, message, hint);
        }
    }
}

fn check_authority(field: &str, authority: Option<&str>, checks: &mut Checks<'_>) {
    if let Some(authority) = authority {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        checks.hostname(field, host, false);
    }
}

/// The beginning of a path, without what could end it.
pub(crate) fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#'))
}

fn is_framing(name: &str) -> bool {
    let framing = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
    ];
    framing.iter().any(|framing| name.eq_ignore_ascii_case(framing))
}
