//! Everything that has endpoints to pools: here Service with EndpointSlices; see [`pool`] for `Pool`, and
//! [`service_entries`](super::service_entries) for ServiceEntry with WorkloadEntries.
//!
//! Each port of a Service and of a ServiceEntry is a pool. A pool that a GRPCRoute refers to and whose protocol nobody
//! stated has a twin with the kind's name and ` (gRPC)`, which speaks HTTP/2, because gRPC can be nothing else; an
//! HTTPRoute to the same object keeps HTTP/1.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    DnsName, Endpoint, Endpoints, Locality, ObjectKey, Pool, PoolKey, Protocol, ServiceIdentity,
};
use gateway_api::experimental::grpcroutes::GrpcRouteSpec;
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::backend_tls::BackendTls;
use super::backend_traffic::Budgets;
use super::backends::{BackendRef, pool_key};
use super::destination_rules::DestinationRules;
use super::service_entries::{service_entry, warn_of_ignored_in_workload};
use super::upstream_tls::Workload;
use super::{NotesOf, Objects, localities, pool};
use crate::diagnostic::Diagnostic;
use crate::document::Object;
use crate::kinds::pool::PoolProtocol;
use crate::kinds::{Kind, Spec};

/// How often names are looked up again at the least.
pub(crate) const REFRESH: Duration = Duration::from_secs(30);
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The kinds that pools are made of.
pub(crate) const SOURCES: &[Kind] =
    &[Kind::Service, Kind::EndpointSlice, Kind::ServiceEntry, Kind::WorkloadEntry, Kind::Pool];

/// The kinds that say how pools are used. Routes do not look at them.
pub(crate) const SETTINGS: &[Kind] = &[
    Kind::DestinationRule,
    Kind::BackendTlsPolicy,
    Kind::BackendTrafficPolicy,
    Kind::ConfigMap,
    Kind::Secret,
];

/// What is remembered from one translation of pools to the next.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    /// What GRPCRoutes refer to, and how often.
    grpc_targets: BTreeMap<PoolKey, usize>,
    hosts: Hosts,
    /// Where the gateway stands.
    own: Option<Locality>,
    workload: Option<Workload>,
}

/// Which namespaces define a host and port, and who sees it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Hosts(BTreeMap<(Arc<str>, u16), Vec<Host>>);

#[derive(Debug, PartialEq)]
struct Host {
    namespace: Arc<str>,
    export_to: Vec<String>,
}

impl Hosts {
    /// The definition that a namespace sees: its own, else the oldest that is exported to it.
    pub fn find(&self, host: &str, port: u16, from: &str) -> Option<PoolKey> {
        let found = self.0.get(&(host.into(), port))?;
        let own = found.iter().find(|h| *h.namespace == *from);
        let seen = own.or_else(|| found.iter().find(|h| h.is_seen_from(from)))?;
        Some(key("Hostname", &seen.namespace, host, port))
    }
}

impl Host {
    fn is_seen_from(&self, namespace: &str) -> bool {
        self.export_to.is_empty() || self.export_to.iter().any(|e| e == "*" || e == namespace)
    }
}

impl Pools {
    /// Counts what a GRPCRoute refers to, and says whether the set of targets is another now.
    pub fn note_grpc_route(&mut self, old: Option<&Object>, new: Option<&Object>) -> bool {
        let mut other = false;
        // New before old: what both refer to does not come and go.
        for key in new.map(grpc_targets).unwrap_or_default() {
            let count = self.grpc_targets.entry(key).or_default();
            other |= *count == 0;
            *count += 1;
        }
        for key in old.map(grpc_targets).unwrap_or_default() {
            if let Some(count) = self.grpc_targets.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    other = true;
                    self.grpc_targets.remove(&key);
                }
            }
        }
        other
    }

    pub fn set_locality(&mut self, own: Locality) {
        self.own = Some(own);
    }

    /// Says whether that is another than before.
    pub fn set_workload(&mut self, workload: Option<Workload>) -> bool {
        std::mem::replace(&mut self.workload, workload.clone()) != workload
    }

    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Says whether routes find other hosts than before.
    pub fn index_hosts(&mut self, objects: &Objects) -> bool {
        let mut hosts = Hosts::default();
        for object in objects.by_age(Kind::ServiceEntry) {
            let Spec::ServiceEntry(spec) = &object.spec else { continue };
            for host in &spec.hosts {
                for port in &spec.ports {
                    hosts.0.entry((host.as_str().into(), port.number as u16)).or_default().push(Host {
                        namespace: object.namespace.clone(),
                        export_to: spec.export_to.clone(),
                    });
                }
            }
        }
        let other = hosts != self.hosts;
        self.hosts = hosts;
        other
    }

    pub fn translate(&self, objects: &Objects, notes: &mut NotesOf) -> BTreeMap<PoolKey, Pool> {
        let mut pools = BTreeMap::new();
        let own = self.own.as_ref();
        let rules = DestinationRules::of(objects, own, self.workload.as_ref(), notes);
        let budgets = Budgets::of(objects, notes);
        let policies = BackendTls::of(objects, notes);
        let slices = Slices::of(objects);
        for object in objects.of(Kind::Service) {
            let Spec::Service(spec) = &object.spec else { continue };
            let tcp = |p: &&ServicePort| p.protocol.as_deref().is_none_or(|p| p == "TCP");
            let nearby = prefers_own_zone(object, spec);
            if nearby && own.is_none() {
                notes.entry(object.key()).or_default().diagnostics.push(unknown_place(object, spec));
            }
            for port in spec.ports.iter().flatten().filter(tcp) {
                let mut pool = service_pool(object, spec, port, &slices);
                if let Some(own) = own.filter(|_| nearby) {
                    localities::prefer_own_zone(own, &mut pool.endpoints);
                }
                budgets.apply(object, &mut pool);
                rules.apply(&mut pool, own, &[]);
                policies.apply(object, port.name.as_deref(), &mut pool);
                self.insert(&mut pools, pool, stated(port));
            }
        }
        for object in objects.by_age(Kind::ServiceEntry) {
            let Spec::ServiceEntry(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            for (mut pool, stated) in service_entry(object, spec, objects, &pools, note) {
                rules.apply(&mut pool, own, &spec.subject_alt_names);
                self.insert(&mut pools, pool, stated);
            }
        }
        for object in objects.of(Kind::WorkloadEntry) {
            let Spec::WorkloadEntry(spec) = &object.spec else { continue };
            warn_of_ignored_in_workload(object, spec, "spec", notes.entry(object.key()).or_default());
        }
        rules.note_lost(pools.values(), notes);
        // Last, because a Pool may stand for a Service or have one to fall back to.
        let around = pool::Around {
            policies: &policies,
            objects,
            hosts: &self.hosts,
            rules: &rules,
            own,
            workload: self.workload.as_ref(),
        };
        for object in pool::in_order(objects) {
            let Spec::Pool(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            if let Some(pool) = around.pool(object, spec, &pools, note) {
                self.insert(&mut pools, pool, spec.protocol != PoolProtocol::Http1);
            }
        }
        pools
    }

    /// Adds a pool, with its gRPC twin where the protocol was not stated and a GRPCRoute asks for it.
    fn insert(&self, pools: &mut BTreeMap<PoolKey, Pool>, pool: Pool, stated: bool) {
        // A GRPCRoute may leave a host's namespace open, so hosts are compared without it.
        let asked = |pool: &Pool| match pool.key.object.kind {
            "Hostname" => self.grpc_targets.keys().any(|k| {
                k.object.kind == "Hostname"
                    && k.object.name == pool.key.object.name
                    && k.port == pool.key.port
            }),
            _ => self.grpc_targets.contains_key(&pool.key),
        };
        if !stated && pool.protocol == Protocol::Http1 && asked(&pool) {
            let object = ObjectKey { kind: twin_kind(pool.key.object.kind), ..pool.key.object.clone() };
            let key = PoolKey { object, port: pool.key.port };
            pools.insert(key.clone(), Pool { key, protocol: Protocol::Http2, ..pool.clone() });
        }
        pools.insert(pool.key.clone(), pool);
    }
}

/// The kind under which a pool's gRPC twin goes.
pub(crate) fn twin_kind(kind: &str) -> &'static str {
    match kind {
        "Pool" => "Pool (gRPC)",
        "Service" => "Service (gRPC)",
        _ => "Hostname (gRPC)",
    }
}

fn grpc_targets(route: &Object) -> Vec<PoolKey> {
    if route.kind != Kind::GrpcRoute {
        return Vec::new();
    }
    route.route(|spec| match spec {
        Spec::GrpcRoute(spec) => targets(spec, &route.namespace),
        _ => Vec::new(),
    })
}

fn targets(spec: &GrpcRouteSpec, own_namespace: &str) -> Vec<PoolKey> {
    let mut keys = Vec::new();
    for rule in spec.rules.iter().flatten() {
        let mut refer = |group, kind, namespace, name, port| {
            let r = BackendRef { group, kind, namespace, name, port };
            keys.extend(pool_key(&r, own_namespace));
        };
        for b in rule.backend_refs.iter().flatten() {
            refer(b.group.as_deref(), b.kind.as_deref(), b.namespace.as_deref(), &b.name, b.port);
            for m in b.filters.iter().flatten().filter_map(|f| f.request_mirror.as_ref()) {
                let b = &m.backend_ref;
                refer(b.group.as_deref(), b.kind.as_deref(), b.namespace.as_deref(), &b.name, b.port);
            }
        }
        for m in rule.filters.iter().flatten().filter_map(|f| f.request_mirror.as_ref()) {
            let b = &m.backend_ref;
            refer(b.group.as_deref(), b.kind.as_deref(), b.namespace.as_deref(), &b.name, b.port);
        }
    }
    keys
}

fn stated(port: &ServicePort) -> bool {
    port.app_protocol.is_some() || port.name.as_deref().is_some_and(|n| protocol_named(n).is_some())
}

/// Slices by the service that they belong to.
struct Slices<'o>(BTreeMap<(Arc<str>, String), Vec<&'o EndpointSlice>>);

impl<'o> Slices<'o> {
    fn of(objects: &'o Objects) -> Self {
        let mut map: BTreeMap<(Arc<str>, String), Vec<&EndpointSlice>> = BTreeMap::new();
        for object in objects.of(Kind::EndpointSlice) {
            if let (Spec::EndpointSlice(slice), Some(service)) =
                (&object.spec, object.labels.get(SERVICE_NAME))
            {
                map.entry((object.namespace.clone(), service.clone())).or_default().push(slice);
            }
        }
        Self(map)
    }

    fn endpoints(&self, service: &Object, port: &ServicePort) -> Vec<Endpoint> {
        let slices = self.0.get(&(service.namespace.clone(), service.name.to_string()));
        let mut out: Vec<Endpoint> = Vec::new();
        for slice in slices.into_iter().flatten() {
            let Some(number) = target_port(slice, port) else { continue };
            for endpoint in &slice.endpoints {
                let conditions = endpoint.conditions.as_ref();
                // Absent conditions are to be read as ready (EndpointConditions).
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
                let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
                let draining = !ready && serving && terminating;
                if !ready && !draining {
                    continue;
                }
                for address in &endpoint.addresses {
                    let Ok(ip) = address.parse::<IpAddr>() else { continue };
                    let address = SocketAddr::new(ip, number);
                    if out.iter().all(|e| e.address != address) {
                        let locality = endpoint.zone.as_deref().map(|z| Arc::new(Locality::of_zone(z)));
                        out.push(Endpoint { locality, draining, ..Endpoint::new(address) });
                    }
                }
            }
        }
        out.sort_by_key(|e| e.address);
        out
    }
}

/// A slice's port: by the service port's name; a single unnamed port is the one that is meant.
fn target_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let name = port.name.as_deref().unwrap_or("");
    let by_name = ports.iter().find(|p| p.name.as_deref().unwrap_or("") == name);
    let by_target = || match &port.target_port {
        Some(IntOrString::String(target)) => ports.iter().find(|p| p.name.as_deref() == Some(target)),
        _ => None,
    };
    // Slices written by hand often leave the name out.
    let only = || ports.first().filter(|p| ports.len() == 1 && p.name.as_deref().unwrap_or("").is_empty());
    let found = by_name.or_else(by_target).or_else(only)?;
    found.port.and_then(|p| u16::try_from(p).ok())
}

fn service_pool(object: &Object, spec: &ServiceSpec, port: &ServicePort, slices: &Slices<'_>) -> Pool {
    let protocol = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c" | "grpc" | "http2" | "h2c") => Protocol::Http2,
        Some(_) => Protocol::Http1,
        None => port.name.as_deref().and_then(protocol_named).unwrap_or_default(),
    };
    let endpoints = match (&spec.type_, &spec.external_name) {
        (Some(kind), Some(name)) if kind == "ExternalName" => {
            let port = match port.target_port {
                Some(IntOrString::Int(target)) => target as u16,
                _ => port.port as u16,
            };
            by_name(vec![dns_name(name, REFRESH, Endpoint::new(unresolved(port)))])
        }
        _ => Endpoints::Static(slices.endpoints(object, port)),
    };
    let key = key("Service", &object.namespace, &object.name, port.port as u16);
    let service = identity(object, format!("{}.{}.svc.cluster.local", object.name, object.namespace));
    Pool { protocol, service, ..Pool::of(key, endpoints) }
}

pub(crate) fn by_name(names: Vec<DnsName>) -> Endpoints {
    Endpoints::Dns { fixed: Vec::new(), names }
}

pub(crate) fn dns_name(host: &str, refresh: Duration, endpoint: Endpoint) -> DnsName {
    DnsName { host: host.into(), refresh, endpoint }
}

/// Stands for the addresses of a name.
pub(crate) fn unresolved(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

/// Whether a Service asks for endpoints nearby.
fn prefers_own_zone(object: &Object, spec: &ServiceSpec) -> bool {
    match spec.traffic_distribution.as_deref() {
        Some(how) => matches!(how, "PreferClose" | "PreferSameZone" | "PreferSameNode"),
        None => object.annotations.get(TOPOLOGY_MODE).is_some_and(|mode| mode.eq_ignore_ascii_case("auto")),
    }
}

fn unknown_place(object: &Object, spec: &ServiceSpec) -> Diagnostic {
    let field = match spec.traffic_distribution {
        Some(_) => "spec.trafficDistribution",
        None => "metadata.annotations",
    };
    let message = "the gateway does not know where it stands: endpoints nearby are not preferred";
    object.warning("UnsupportedValue", field, message).hint("start it with --locality region/zone")
}

/// Istio's convention: the protocol is what stands before the first dash of the port's name.
fn protocol_named(name: &str) -> Option<Protocol> {
    match name.split('-').next()? {
        "http2" | "grpc" | "h2c" => Some(Protocol::Http2),
        "http" | "http1" => Some(Protocol::Http1),
        _ => None,
    }
}

pub(crate) fn key(kind: &'static str, namespace: &Arc<str>, name: &str, port: u16) -> PoolKey {
    PoolKey { object: ObjectKey { kind, namespace: namespace.clone(), name: name.into() }, port }
}

pub(crate) fn identity(object: &Object, host: String) -> ServiceIdentity {
    let label = |names: &[&str]| -> Arc<str> {
        names.iter().find_map(|n| object.labels.get(*n)).map_or("unknown", String::as_str).into()
    };
    ServiceIdentity {
        host: host.into(),
        name: object.name.clone(),
        namespace: object.namespace.clone(),
        workload: "unknown".into(),
        app: label(&["app", "app.kubernetes.io/name"]),
        version: label(&["version", "app.kubernetes.io/version"]),
    }
}
