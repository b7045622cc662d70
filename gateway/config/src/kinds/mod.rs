//! The kinds that are read, their groups and versions, and their typed specs.
//!
//! Gateway API's types are those of the crate `gateway-api` 0.22, experimental channel, since that is where
//! HTTPRoute has `retry` and `sessionPersistence`. They are generated from Gateway API 1.5.1; compared field by field
//! with the experimental CRDs of 1.6.1, nothing is missing from the kinds read here. What 1.6 changed is validation
//! (`retry.attempts` at least 1, `retry.codes` without repetition), and that is checked in `route`.
//! Kubernetes' own types are those of `k8s-openapi`. Istio's are in [`istio`], ours in [`fieldgate`] and [`pool`].
//!
//! This module says what a kind looks like and what its schema forbids; what objects mean together is not its matter.

mod backend_tls;
mod backend_traffic;
pub mod check;
pub mod destination_rule;
pub mod duration;
pub mod edge_policy;
pub mod external_authorizer;
pub mod fieldgate;
mod filter;
mod foreign;
mod gateway;
pub mod guard;
pub mod istio;
mod kubernetes;
pub mod login_policy;
pub mod number;
pub mod pool;
mod pool_check;
pub mod pool_health;
pub mod pool_tls;
pub mod pool_traffic;
pub mod rate_limit;
pub mod request_authentication;
mod route;
pub mod traffic_policy;

use std::fmt;

use gateway_api::backendtlspolicies::BackendTlsPolicySpec;
use gateway_api::experimental::xbackendtrafficpolicies::XBackendTrafficPolicySpec;
use gateway_api::experimental::{
    gatewayclasses::GatewayClassSpec, gateways::GatewaySpec, grpcroutes::GrpcRouteSpec,
    httproutes::HttpRouteSpec, referencegrants::ReferenceGrantSpec,
};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;

use crate::diagnostic::reason;
use crate::yaml::{Node, Nulls, Problem, Reader};
use check::Checks;
pub use foreign::is_known_elsewhere;

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    GatewayClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
    ReferenceGrant,
    Namespace,
    Service,
    EndpointSlice,
    Secret,
    ConfigMap,
    ServiceEntry,
    WorkloadEntry,
    AuthorizationPolicy,
    RequestAuthentication,
    Pool,
    SplitPolicy,
    TrafficPolicy,
    EdgePolicy,
    LoginPolicy,
    ExternalAuthorizer,
    RateLimitPolicy,
    DestinationRule,
    BackendTlsPolicy,
    BackendTrafficPolicy,
}

/// The typed content of an object.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Spec {
    GatewayClass(Box<GatewayClassSpec>),
    Gateway(Box<GatewaySpec>),
    HttpRoute(Box<HttpRouteSpec>),
    GrpcRoute(Box<GrpcRouteSpec>),
    /// A route's that is not kept: `document::Object::route` has it.
    Route,
    ReferenceGrant(Box<ReferenceGrantSpec>),
    /// Only the labels matter.
    Namespace,
    Service(Box<ServiceSpec>),
    /// Its `metadata` is empty: see the object's own.
    EndpointSlice(Box<EndpointSlice>),
    /// Its `metadata` is empty: see the object's own. `stringData` is merged into `data` already.
    Secret(Box<Secret>),
    /// Its `metadata` is empty: see the object's own.
    ConfigMap(Box<ConfigMap>),
    ServiceEntry(Box<istio::ServiceEntrySpec>),
    WorkloadEntry(Box<istio::WorkloadEntrySpec>),
    AuthorizationPolicy(Box<istio::AuthorizationPolicySpec>),
    RequestAuthentication(Box<request_authentication::RequestAuthenticationSpec>),
    Pool(Box<pool::PoolSpec>),
    SplitPolicy(Box<fieldgate::SplitPolicySpec>),
    TrafficPolicy(Box<traffic_policy::TrafficPolicySpec>),
    EdgePolicy(Box<edge_policy::EdgePolicySpec>),
    LoginPolicy(Box<login_policy::LoginPolicySpec>),
    ExternalAuthorizer(Box<external_authorizer::ExternalAuthorizerSpec>),
    RateLimitPolicy(Box<rate_limit::RateLimitPolicySpec>),
    DestinationRule(Box<destination_rule::DestinationRuleSpec>),
    BackendTlsPolicy(Box<BackendTlsPolicySpec>),
    BackendTrafficPolicy(Box<XBackendTrafficPolicySpec>),
}

impl Kind {
    /// All of them.
    pub const ALL: &'static [Kind] = &[
        Kind::GatewayClass,
        Kind::Gateway,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::ReferenceGrant,
        Kind::Namespace,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Secret,
        Kind::ConfigMap,
        Kind::ServiceEntry,
        Kind::WorkloadEntry,
        Kind::AuthorizationPolicy,
        Kind::RequestAuthentication,
        Kind::Pool,
        Kind::SplitPolicy,
        Kind::TrafficPolicy,
        Kind::EdgePolicy,
        Kind::LoginPolicy,
        Kind::ExternalAuthorizer,
        Kind::RateLimitPolicy,
        Kind::DestinationRule,
        Kind::BackendTlsPolicy,
        Kind::BackendTrafficPolicy,
    ];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::GatewayClass => "GatewayClass",
            Kind::Gateway => "Gateway",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::ReferenceGrant => "ReferenceGrant",
            Kind::Namespace => "Namespace",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Secret => "Secret",
            Kind::ConfigMap => "ConfigMap",
            Kind::ServiceEntry => "ServiceEntry",
            Kind::WorkloadEntry => "WorkloadEntry",
            Kind::AuthorizationPolicy => "AuthorizationPolicy",
            Kind::RequestAuthentication => "RequestAuthentication",
            Kind::Pool => "Pool",
            Kind::SplitPolicy => "SplitPolicy",
            Kind::TrafficPolicy => "TrafficPolicy",
            Kind::EdgePolicy => "EdgePolicy",
            Kind::LoginPolicy => "LoginPolicy",
            Kind::ExternalAuthorizer => "ExternalAuthorizer",
            Kind::RateLimitPolicy => "RateLimitPolicy",
            Kind::DestinationRule => "DestinationRule",
            Kind::BackendTlsPolicy => "BackendTLSPolicy",
            Kind::BackendTrafficPolicy => "XBackendTrafficPolicy",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|k| k.as_str() == name)
    }

    /// The API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        match self {
            Kind::GatewayClass
            | Kind::Gateway
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::ReferenceGrant
            | Kind::BackendTlsPolicy => "gateway.networking.k8s.io",
            Kind::Namespace | Kind::Service | Kind::Secret | Kind::ConfigMap => "",
            Kind::EndpointSlice => "discovery.k8s.io",
            Kind::ServiceEntry | Kind::WorkloadEntry | Kind::DestinationRule => "networking.istio.io",
            Kind::AuthorizationPolicy | Kind::RequestAuthentication => "security.istio.io",
            Kind::BackendTrafficPolicy => "gateway.networking.x-k8s.io",
            Kind::Pool
            | Kind::SplitPolicy
            | Kind::TrafficPolicy
            | Kind::EdgePolicy
            | Kind::LoginPolicy
            | Kind::ExternalAuthorizer
            | Kind::RateLimitPolicy => "fieldgate.dev",
        }
    }

    /// The versions that are read, the preferred one first.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Kind::BackendTlsPolicy => &["v1", "v1alpha3"],
            Kind::GatewayClass | Kind::Gateway | Kind::HttpRoute | Kind::ReferenceGrant => &["v1", "v1beta1"],
            Kind::GrpcRoute
            | Kind::Namespace
            | Kind::Service
            | Kind::Secret
            | Kind::ConfigMap
            | Kind::EndpointSlice => &["v1"],
            Kind::ServiceEntry | Kind::WorkloadEntry | Kind::DestinationRule => {
                &["v1", "v1beta1", "v1alpha3"]
            }
            Kind::Pool
            | Kind::SplitPolicy
            | Kind::TrafficPolicy
            | Kind::EdgePolicy
            | Kind::LoginPolicy
            | Kind::ExternalAuthorizer
            | Kind::RateLimitPolicy
            | Kind::BackendTrafficPolicy => &["v1alpha1"],
            Kind::AuthorizationPolicy | Kind::RequestAuthentication => &["v1", "v1beta1"],
        }
    }

    /// The preferred `apiVersion`.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.versions()[0].to_owned(),
            group => format!("{group}/{}", self.versions()[0]),
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Kind::GatewayClass | Kind::Namespace)
    }

    /// Whether a name may have no dots: it becomes a DNS label.
    pub(crate) const fn is_named_by_label(self) -> bool {
        matches!(self, Kind::Namespace | Kind::Service)
    }

    /// The fields at the top of an object beside `apiVersion`, `kind` and `metadata`.
    pub(crate) const fn top_fields(self) -> &'static [&'static str] {
        match self {
            Kind::EndpointSlice => &["addressType", "endpoints", "ports"],
            Kind::Secret => &["data", "stringData", "type", "immutable"],
            Kind::ConfigMap => &["data", "binaryData", "immutable"],
            _ => &["spec", "status"],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What reading a spec gave.
pub(crate) struct SpecResult {
    /// The spec, unless there are errors.
    pub spec: Option<Spec>,
    pub errors: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

/// Reads the content of an object of `kind` from its document.
pub(crate) fn read(kind: Kind, root: &Node<'_>) -> SpecResult {
    let nulls = match kind {
        Kind::Namespace | Kind::Service | Kind::EndpointSlice | Kind::Secret | Kind::ConfigMap => {
            Nulls::Absent
        }
        _ => Nulls::Refused,
    };
    let reader = Reader::new(nulls, kind == Kind::Secret);
    let mut checks = Checks::new(root);
    let spec = read_spec(kind, root, &reader, &mut checks);
    let (spec, mut errors) = match spec {
        Ok(spec) => (Some(spec), Vec::new()),
        Err(problem) => (None, vec![*problem]),
    };
    errors.extend(checks.into_problems());
    let mut warnings = Vec::new();
    // A cluster newer than the types writes EndpointSlices itself, with fields that nobody typed.
    let unknown = if kind == Kind::EndpointSlice { &mut warnings } else { &mut errors };
    unknown.extend(reader.into_unknown());
    SpecResult { spec: spec.filter(|_| errors.is_empty()), errors, warnings }
}

fn read_spec(
    kind: Kind,
    root: &Node<'_>,
    reader: &Reader,
    checks: &mut Checks<'_>,
) -> Result<Spec, Box<Problem>> {
    Ok(match kind {
        Kind::GatewayClass => Spec::GatewayClass(boxed(root, reader)?),
        Kind::Gateway => Spec::Gateway(checked(root, reader, checks, gateway::check_gateway)?),
        Kind::HttpRoute => Spec::HttpRoute(checked(root, reader, checks, route::check_http_route)?),
        Kind::GrpcRoute => Spec::GrpcRoute(checked(root, reader, checks, route::check_grpc_route)?),
        Kind::ReferenceGrant => {
            Spec::ReferenceGrant(checked(root, reader, checks, gateway::check_reference_grant)?)
        }
        Kind::Namespace => Spec::Namespace,
        Kind::Service => Spec::Service(checked(root, reader, checks, kubernetes::check_service)?),
        Kind::EndpointSlice => {
            let slice: EndpointSlice = reader.read(root, "", TYPE_AND_METADATA)?;
            kubernetes::check_endpoint_slice(&slice, checks);
            Spec::EndpointSlice(Box::new(slice))
        }
        Kind::Secret => {
            Spec::Secret(Box::new(merge_string_data(reader.read(root, "", TYPE_AND_METADATA)?)))
        }
        Kind::ConfigMap => Spec::ConfigMap(reader.read(root, "", TYPE_AND_METADATA)?),
        Kind::ServiceEntry => Spec::ServiceEntry(checked(root, reader, checks, istio::check_service_entry)?),
        Kind::WorkloadEntry => Spec::WorkloadEntry(checked(root, reader, checks, |spec, checks| {
            istio::check_workload(spec, "spec", checks);
        })?),
        Kind::AuthorizationPolicy => {
            // Without a spec it is the policy that allows nothing.
            if root.get("spec").is_none() {
                return Ok(Spec::AuthorizationPolicy(Box::default()));
            }
            Spec::AuthorizationPolicy(checked(root, reader, checks, istio::check_authorization_policy)?)
        }
        Kind::RequestAuthentication => {
            let check = request_authentication::check_request_authentication;
            Spec::RequestAuthentication(checked(root, reader, checks, check)?)
        }
        Kind::Pool => Spec::Pool(checked(root, reader, checks, pool_check::check_pool)?),
        Kind::SplitPolicy => Spec::SplitPolicy(checked(root, reader, checks, fieldgate::check_split_policy)?),
        Kind::DestinationRule => {
            Spec::DestinationRule(checked(root, reader, checks, destination_rule::check_destination_rule)?)
        }
        Kind::BackendTlsPolicy => {
            Spec::BackendTlsPolicy(checked(root, reader, checks, backend_tls::check_backend_tls_policy)?)
        }
        Kind::BackendTrafficPolicy => Spec::BackendTrafficPolicy(checked(
            root,
            reader,
            checks,
            backend_traffic::check_backend_traffic_policy,
        )?),
        Kind::TrafficPolicy => {
            Spec::TrafficPolicy(checked(root, reader, checks, traffic_policy::check_traffic_policy)?)
        }
        Kind::LoginPolicy => {
            Spec::LoginPolicy(checked(root, reader, checks, login_policy::check_login_policy)?)
        }
        Kind::EdgePolicy => Spec::EdgePolicy(checked(root, reader, checks, edge_policy::check_edge_policy)?),
        Kind::ExternalAuthorizer => Spec::ExternalAuthorizer(checked(
            root,
            reader,
            checks,
            external_authorizer::check_external_authorizer,
        )?),
        Kind::RateLimitPolicy => {
            Spec::RateLimitPolicy(checked(root, reader, checks, rate_limit::check_rate_limit_policy)?)
        }
    })
}

const TYPE_AND_METADATA: &[&str] = &["apiVersion", "kind", "metadata"];

fn checked<T: DeserializeOwned>(
    root: &Node<'_>,
    reader: &Reader,
    checks: &mut Checks<'_>,
    check: impl FnOnce(&T, &mut Checks<'_>),
) -> Result<Box<T>, Box<Problem>> {
    let spec = boxed(root, reader)?;
    check(&spec, checks);
    Ok(spec)
}

fn boxed<T: DeserializeOwned>(root: &Node<'_>, reader: &Reader) -> Result<Box<T>, Box<Problem>> {
    let Some(entry) = root.entry("spec") else {
        return Err(Box::new(Problem {
            reason: reason::MISSING_FIELD,
            line: root.line,
            column: root.column,
            field: "spec".to_owned(),
            message: "the required field \"spec\" is missing".to_owned(),
            hint: Some("is it indented below another field?".to_owned()),
        }));
    };
    if entry.value.is_null() {
        return Err(Box::new(Problem {
            reason: reason::WRONG_TYPE,
            line: entry.line,
            column: entry.column,
            field: "spec".to_owned(),
            message: "expected a mapping, found nothing (null)".to_owned(),
            hint: Some("the fields of spec are indented below it".to_owned()),
        }));
    }
    reader.read(&entry.value, "spec", &[])
}

/// As the API server does on a write.
fn merge_string_data(mut secret: Secret) -> Secret {
    if let Some(strings) = secret.string_data.take() {
        let data = secret.data.get_or_insert_default();
        data.extend(strings.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))));
    }
    secret
}
