//! ExternalAuthorizers, and ExternalAuth filters of HTTPRoutes, to IR.

use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{ExtAuthz, ExtAuthzProtocol, ExtAuthzRoute, GuardKind, PoolKey, StringMatch};
use gateway_api::experimental::httproutes::{
    HttpRouteRulesFiltersExternalAuth, HttpRouteRulesFiltersExternalAuthProtocol as Protocol,
};

use super::Notes;
use super::attached::Refusal;
use super::filters::Problem;
use super::guards::{Maker, service};
use super::policies::string;
use super::routes::Surroundings;
use crate::document::Object;
use crate::kinds::external_authorizer::{ExternalAuthorizerSpec, GrpcSpec, HttpSpec, RouteSpec, is_path};
use crate::kinds::fieldgate::TargetRef;
use crate::kinds::{Kind, Spec};

/// How external authorizers are made.
pub(crate) const MAKER: Maker = Maker { kind: Kind::ExternalAuthorizer, targets, make };

/// As Envoy's `ext_authz` filter.
const TIMEOUT: Duration = Duration::from_millis(200);
const STATUS_ON_ERROR: u16 = 403;
/// Of a filter: the largest body that is kept, in bytes.
const MAX_BODY: u32 = 4 * 1024 * 1024;

fn targets(spec: &Spec) -> &[TargetRef] {
    match spec {
        Spec::ExternalAuthorizer(spec) => &spec.target_refs,
        _ => &[],
    }
}

fn make(object: &Object, around: &Surroundings<'_>, _notes: &mut Notes) -> Result<GuardKind, Refusal> {
    let Spec::ExternalAuthorizer(spec) = &object.spec else { unreachable!("it is made for its own kind") };
    let ExternalAuthorizerSpec { backend_ref, grpc, http, include_request_body_in_check: body, .. } = &**spec;
    let pool = service(object, backend_ref, "spec.backendRef", around)?;
    let mut authorizer = plain(pool, ExtAuthzProtocol::Grpc { authority: None });
    if let Some(grpc) = grpc {
        by_grpc(grpc, &mut authorizer);
    }
    if let Some(http) = http {
        by_http(http, &mut authorizer);
    }
    if let Some(body) = body {
        authorizer.body_limit = body.max_request_bytes;
        authorizer.partial_body = body.allow_partial_message;
        authorizer.raw_body = body.pack_as_bytes;
    }
    authorizer.timeout = spec.timeout.map_or(TIMEOUT, |t| t.0);
    authorizer.fail_open = spec.fail_open;
    authorizer.fail_open_header = spec.fail_open_header;
    authorizer.status_on_error = spec.status_on_error.unwrap_or(STATUS_ON_ERROR);
    authorizer.own_headers.extend(names(&spec.reserved_headers));
    authorizer.routes = spec.routes.iter().map(|route| of_route(object, route)).collect();
    Ok(GuardKind::ExtAuthz(Box::new(authorizer)))
}

/// One that is asked about everything and told what it needs.
fn plain(pool: Arc<PoolKey>, protocol: ExtAuthzProtocol) -> ExtAuthz {
    ExtAuthz {
        pool,
        protocol,
        timeout: TIMEOUT,
        fail_open: false,
        status_on_error: STATUS_ON_ERROR,
        body_limit: 0,
        partial_body: false,
        raw_body: false,
        request_headers: Vec::new(),
        context: Vec::new(),
        peer_certificate: false,
        own_headers: Vec::new(),
        fail_open_header: false,
        routes: Vec::new(),
    }
}

fn by_grpc(spec: &GrpcSpec, authorizer: &mut ExtAuthz) {
    authorizer.protocol = ExtAuthzProtocol::Grpc { authority: spec.authority.as_deref().map(Into::into) };
    authorizer.request_headers = names(&spec.include_request_headers_in_check);
    authorizer.peer_certificate = spec.include_peer_certificate;
    authorizer.context = pairs(&spec.context);
}

fn by_http(spec: &HttpSpec, authorizer: &mut ExtAuthz) {
    let upstream_headers = names(&spec.headers_to_upstream_on_allow);
    authorizer.own_headers = upstream_headers.iter().filter(|name| !is_credential(name)).cloned().collect();
    authorizer.request_headers = names(&spec.include_request_headers_in_check);
    let added = spec.include_additional_headers_in_check.iter();
    authorizer.protocol = ExtAuthzProtocol::Http {
        path_prefix: spec.path_prefix.as_deref().unwrap_or_default().into(),
        authority: spec.authority.as_deref().map(Into::into),
        add: added.map(|(name, value)| (name.to_ascii_lowercase().into(), value.as_str().into())).collect(),
        upstream_headers,
        client_headers_on_success: names(&spec.headers_to_downstream_on_allow),
        client_headers_on_denied: names(&spec.headers_to_downstream_on_deny),
    };
}

/// What a client shows to prove who it is, it may show to the upstream too: an upstream that does not check it believes
/// anybody.
fn is_credential(name: &StringMatch) -> bool {
    match name {
        StringMatch::Exact(name) => matches!(&**name, "authorization" | "cookie"),
        StringMatch::Present => true,
        _ => false,
    }
}

fn of_route(object: &Object, route: &RouteSpec) -> (Arc<str>, ExtAuthzRoute) {
    let TargetRef { kind, name, section_name, .. } = &route.target_ref;
    // As rules are named (see `Rule::id`).
    let prefix = if kind == Kind::GrpcRoute.as_str() { "grpc:" } else { "" };
    let mut id = format!("{prefix}{}/{name}", object.namespace);
    if let Some(section) = section_name {
        id.push('/');
        id.push_str(section);
    }
    let differs =
        if route.disabled { ExtAuthzRoute::Off } else { ExtAuthzRoute::Context(pairs(&route.context)) };
    (id.into(), differs)
}

/// Names of headers, and patterns of names.
fn names(list: &[String]) -> Vec<StringMatch> {
    list.iter().map(|name| string(&name.to_ascii_lowercase())).collect()
}

fn pairs(map: &std::collections::BTreeMap<String, String>) -> Vec<(Arc<str>, Arc<str>)> {
    map.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect()
}

/// The guard of a filter (Gateway API, `HTTPExternalAuthFilter`), which never fails open.
pub(crate) fn of_filter(
    spec: &HttpRouteRulesFiltersExternalAuth,
    pool: Arc<PoolKey>,
) -> Result<GuardKind, Problem> {
    let lower = |list: Option<&Vec<String>>| -> Vec<StringMatch> {
        list.into_iter().flatten().map(|name| StringMatch::Exact(name.to_ascii_lowercase().into())).collect()
    };
    let mut authorizer = plain(pool, ExtAuthzProtocol::Grpc { authority: None });
    match spec.protocol {
        Protocol::Grpc => {
            authorizer.request_headers = lower(spec.grpc.as_ref().and_then(|g| g.allowed_headers.as_ref()));
        }
        Protocol::Http => {
            let http = spec.http.as_ref();
            let path = http.and_then(|h| h.path.as_deref()).unwrap_or_default();
            if !path.is_empty() && !is_path(path) {
                let message = format!("\"{path}\" is not the beginning of a path");
                return Err(("externalAuth.http.path".into(), message));
            }
            let mut upstream_headers = lower(http.and_then(|h| h.allowed_response_headers.as_ref()));
            authorizer.own_headers = upstream_headers.iter().filter(|n| !is_credential(n)).cloned().collect();
            if upstream_headers.is_empty() {
                upstream_headers.push(StringMatch::Present);
            }
            authorizer.request_headers = lower(http.and_then(|h| h.allowed_headers.as_ref()));
            authorizer.protocol = ExtAuthzProtocol::Http {
                path_prefix: path.into(),
                authority: None,
                add: Vec::new(),
                upstream_headers,
                client_headers_on_success: Vec::new(),
                client_headers_on_denied: Vec::new(),
            };
        }
    }
    let size = spec.forward_body.as_ref().and_then(|body| body.max_size).unwrap_or(0);
    authorizer.body_limit = u32::try_from(size).ok().filter(|size| *size <= MAX_BODY).ok_or_else(|| {
        let message = format!("expected 0 to {MAX_BODY}, found {size}");
        ("externalAuth.forwardBody.maxSize".to_owned(), message)
    })?;
    Ok(GuardKind::ExtAuthz(Box::new(authorizer)))
}
