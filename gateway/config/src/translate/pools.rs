//! Everything that has endpoints to pools: `Pool`, Service with EndpointSlices, ServiceEntry with WorkloadEntries.
//!
//! Each port of a Service and of a ServiceEntry is a pool. A pool that a GRPCRoute refers to and whose protocol nobody
//! stated has a twin with the kind's name and ` (gRPC)`, which speaks HTTP/2, because gRPC can be nothing else; an
//! HTTPRoute to the same object keeps HTTP/1.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    Balance, DnsName, Endpoint, Endpoints, HealthCheck, HealthKind, Locality, ObjectKey, Pool, PoolKey,
    PoolLimits, Protocol, ServiceIdentity,
};
use gateway_api::experimental::grpcroutes::GrpcRouteSpec;
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::backends::{BackendRef, Reference, granted, pool_key};
use super::{Notes, NotesOf, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::fieldgate::{LoadBalancingPolicy, PoolProtocol, PoolService, PoolSpec};
use crate::kinds::istio::{
    ServiceEntryLocation, ServiceEntryPort, ServiceEntryResolution, ServiceEntrySpec, WorkloadEntrySpec,
};
use crate::kinds::{Kind, Spec};

/// How often names are looked up again at the least.
const REFRESH: Duration = Duration::from_secs(30);
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The kinds that pools are made of.
pub(crate) const SOURCES: &[Kind] =
    &[Kind::Service, Kind::EndpointSlice, Kind::ServiceEntry, Kind::WorkloadEntry, Kind::Pool];

/// What is remembered from one translation of pools to the next.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    /// What GRPCRoutes refer to, and how often.
    grpc_targets: BTreeMap<PoolKey, usize>,
    hosts: Hosts,
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
        let slices = Slices::of(objects);
        for object in objects.of(Kind::Service) {
            let Spec::Service(spec) = &object.spec else { continue };
            let tcp = |p: &&ServicePort| p.protocol.as_deref().is_none_or(|p| p == "TCP");
            for port in spec.ports.iter().flatten().filter(tcp) {
                self.insert(&mut pools, service_pool(object, spec, port, &slices), stated(port));
            }
        }
        for object in objects.by_age(Kind::ServiceEntry) {
            let Spec::ServiceEntry(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            for (pool, stated) in service_entry(object, spec, objects, &pools, note) {
                self.insert(&mut pools, pool, stated);
            }
        }
        for object in objects.of(Kind::WorkloadEntry) {
            let Spec::WorkloadEntry(spec) = &object.spec else { continue };
            warn_of_ignored_in_workload(object, spec, "spec", notes.entry(object.key()).or_default());
        }
        // Last, because a Pool may stand for a Service.
        for object in objects.of(Kind::Pool) {
            let Spec::Pool(spec) = &object.spec else { continue };
            let note = notes.entry(object.key()).or_default();
            if let Some(pool) = pool(object, spec, objects, &pools, note) {
                note.condition("Accepted", true, "Accepted", "");
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

fn by_name(names: Vec<DnsName>) -> Endpoints {
    Endpoints::Dns { fixed: Vec::new(), names }
}

fn dns_name(host: &str, refresh: Duration, endpoint: Endpoint) -> DnsName {
    DnsName { host: host.into(), refresh, endpoint }
}

/// Stands for the addresses of a name.
fn unresolved(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

/// Istio's convention: the protocol is what stands before the first dash of the port's name.
fn protocol_named(name: &str) -> Option<Protocol> {
    match name.split('-').next()? {
        "http2" | "grpc" | "h2c" => Some(Protocol::Http2),
        "http" | "http1" => Some(Protocol::Http1),
        _ => None,
    }
}

fn key(kind: &'static str, namespace: &Arc<str>, name: &str, port: u16) -> PoolKey {
    PoolKey { object: ObjectKey { kind, namespace: namespace.clone(), name: name.into() }, port }
}

fn identity(object: &Object, host: String) -> ServiceIdentity {
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

fn pool(
    object: &Object,
    spec: &PoolSpec,
    objects: &Objects,
    pools: &BTreeMap<PoolKey, Pool>,
    note: &mut Notes,
) -> Option<Pool> {
    let mut protocol = match spec.protocol {
        PoolProtocol::Http1 => Protocol::Http1,
        PoolProtocol::Http2 => Protocol::Http2,
        PoolProtocol::Auto => Protocol::Auto,
    };
    let endpoints = if let Some(list) = &spec.endpoints {
        Endpoints::Static(
            list.iter()
                .filter_map(|e| {
                    Some(Endpoint {
                        address: SocketAddr::new(e.address.parse().ok()?, e.port),
                        weight: e.weight.max(1),
                        locality: e.zone.as_deref().map(|z| Arc::new(Locality::of_zone(z))),
                        draining: e.drain || e.weight == 0,
                        workload: e.hostname.as_deref().map(Into::into),
                        ..Endpoint::new(unresolved(0))
                    })
                })
                .collect(),
        )
    } else if let Some(dns) = &spec.dns {
        let refresh = dns.refresh.map_or(REFRESH, |d| d.0);
        by_name(vec![dns_name(&dns.name, refresh, Endpoint::new(unresolved(dns.port)))])
    } else {
        let found = pooled_service(object, spec.service.as_ref()?, objects, pools, note)?;
        if protocol == Protocol::Http1 {
            // The Service knows better than a default.
            protocol = found.protocol;
        }
        found.endpoints.clone()
    };
    let limits = PoolLimits::default();
    let key = key("Pool", &object.namespace, &object.name, 0);
    Some(Pool {
        protocol,
        balance: match spec.load_balancing.policy {
            LoadBalancingPolicy::LeastRequest => Balance::default(),
            LoadBalancingPolicy::RoundRobin => Balance::RoundRobin,
            LoadBalancingPolicy::Random => Balance::Random,
        },
        health: spec.health_check.as_ref().map(|h| Arc::new(health(h))),
        limits: PoolLimits {
            connect_timeout: spec.connect_timeout.map_or(limits.connect_timeout, |d| d.0),
            idle_timeout: spec.idle_timeout.map_or(limits.idle_timeout, |d| d.0),
            max_connections: spec.max_connections_per_endpoint.unwrap_or(limits.max_connections),
            ..limits
        },
        service: identity(object, format!("{}.{}.pool.fieldgate", object.name, object.namespace)),
        ..Pool::of(key, endpoints)
    })
}

fn pooled_service<'p>(
    object: &Object,
    service: &PoolService,
    objects: &Objects,
    pools: &'p BTreeMap<PoolKey, Pool>,
    note: &mut Notes,
) -> Option<&'p Pool> {
    let mut refuse = |reason: &'static str, field: &str, message: String, hint: Option<String>| {
        note.condition("Accepted", false, reason, message.clone());
        let mut error = object.error(reason, &format!("spec.service{field}"), message);
        error.hint = hint;
        note.diagnostics.push(error);
        None
    };
    let namespace: Arc<str> = service.namespace.as_deref().map_or(object.namespace.clone(), Into::into);
    let reference = Reference {
        from_group: "fieldgate.dev",
        from_kind: "Pool",
        from_namespace: &object.namespace,
        group: "",
        kind: "Service",
        namespace: &namespace,
        name: &service.name,
    };
    if !granted(objects, &reference) {
        let message = format!("Service {namespace}/{} is in another namespace", service.name);
        return refuse("RefNotPermitted", ".namespace", message, Some(reference.hint()));
    }
    if let Some(found) = pools.get(&key("Service", &namespace, &service.name, service.port)) {
        return Some(found);
    }
    if objects.get(Kind::Service, &namespace, &service.name).is_some() {
        let message = format!("Service {namespace}/{} has no port {}", service.name, service.port);
        return refuse("BackendNotFound", ".port", message, None);
    }
    let names = objects.names(Kind::Service, &namespace);
    let hint = did_you_mean_hint(&service.name, names.iter().map(String::as_str));
    refuse("BackendNotFound", ".name", format!("there is no Service {namespace}/{}", service.name), hint)
}

fn health(spec: &crate::kinds::fieldgate::HealthCheck) -> HealthCheck {
    let interval = spec.interval.map_or(Duration::from_secs(5), |d| d.0);
    HealthCheck {
        interval,
        jitter: spec.jitter.map_or(interval / 10, |d| d.0),
        timeout: spec.timeout.map_or(Duration::from_secs(1), |d| d.0),
        healthy: spec.healthy_threshold.unwrap_or(2),
        unhealthy: spec.unhealthy_threshold.unwrap_or(3),
        port: None,
        tls: None,
        kind: match &spec.http {
            None => HealthKind::Tcp,
            Some(http) => HealthKind::Http {
                method: http.method.as_deref().unwrap_or("GET").into(),
                path: http.path.as_deref().unwrap_or("/").into(),
                host: http.host.as_deref().map(Into::into),
                expected: match &http.expected_statuses {
                    None => vec![(200, 299)],
                    Some(ranges) => ranges.iter().map(|r| (r.first, r.last)).collect(),
                },
            },
        },
    }
}

/// A ServiceEntry's pools, each with whether its protocol was stated.
fn service_entry(
    object: &Object,
    spec: &ServiceEntrySpec,
    objects: &Objects,
    pools: &BTreeMap<PoolKey, Pool>,
    note: &mut Notes,
) -> Vec<(Pool, bool)> {
    let mut found = Vec::new();
    if matches!(spec.resolution, ServiceEntryResolution::None | ServiceEntryResolution::DynamicDns) {
        let message = "endpoints are known only with resolution STATIC, DNS or DNS_ROUND_ROBIN";
        let error = object.error("UnsupportedValue", "spec.resolution", message);
        note.diagnostics.push(error.hint("set spec.resolution to one of these"));
        note.condition("Accepted", false, "UnsupportedValue", message);
        return found;
    }
    warn_of_ignored(object, spec, note);
    let workloads = workloads(object, spec, objects);
    let mut refused = None;
    let mut refuse = |reason: &'static str, field: &str, message: &str, hint: &str| {
        refused.get_or_insert((reason, message.to_owned()));
        note.diagnostics.push(object.error(reason, field, message).hint(hint));
    };
    let by_address = spec.resolution == ServiceEntryResolution::Static;
    let mut unusable = Vec::new();
    for (place, w, _) in workloads.iter().filter(|_| by_address) {
        let address = w.address.as_deref().unwrap_or_default();
        if address.parse::<IpAddr>().is_err() {
            let message = format!("\"{address}\" is not an IP address, which resolution STATIC needs");
            unusable.push(object.warning("UnsupportedValue", place, message).hint("for names, use DNS"));
        }
    }
    for (at, port) in spec.ports.iter().enumerate() {
        let Some(protocol) = entry_protocol(port) else {
            let written = port.protocol.as_deref().unwrap_or_default();
            let message = format!("a port of protocol {written} cannot be reached yet");
            refuse(
                "UnsupportedProtocol",
                &format!("spec.ports[{at}].protocol"),
                &message,
                "HTTP, HTTP2 or GRPC",
            );
            continue;
        };
        for (index, host) in spec.hosts.iter().enumerate() {
            let place = format!("spec.hosts[{index}]");
            if host.contains('*') {
                if at == 0 {
                    let message = "a wildcard host cannot be a backend";
                    refuse("UnsupportedValue", &place, message, "name each host");
                }
                continue;
            }
            let key = key("Hostname", &object.namespace, host, port.number as u16);
            if pools.contains_key(&key) || found.iter().any(|(p, _): &(Pool, bool)| p.key == key) {
                let message = format!("{host}:{} is defined by another ServiceEntry", port.number);
                refuse("Conflicted", &place, &message, "the older one, then the first by name, is used");
                continue;
            }
            let endpoints = if by_address {
                Endpoints::Static(workloads.iter().filter_map(|w| endpoint(w, port)).collect())
            } else {
                by_name(names(host, &workloads, port))
            };
            let mut service = identity(object, host.clone());
            service.name = host.as_str().into();
            let pool = Pool { protocol, service, ..Pool::of(key, endpoints) };
            found.push((pool, port.protocol.is_some()));
        }
    }
    note.diagnostics.extend(unusable);
    match refused {
        None => note.condition("Accepted", true, "Accepted", ""),
        Some((reason, message)) => note.condition("Accepted", false, reason, message),
    }
    found
}

/// Fields whose author expects something that does not happen.
fn warn_of_ignored(object: &Object, spec: &ServiceEntrySpec, note: &mut Notes) {
    let mut warn = |ignored: bool, field: &str, message: &str, hint: &str| {
        if ignored {
            note.diagnostics.push(object.warning("UnsupportedValue", field, message).hint(hint));
        }
    };
    warn(
        !spec.addresses.is_empty(),
        "spec.addresses",
        "virtual addresses are not listened on: this field has no effect",
        "a route finds the hosts by name: kind Hostname, group networking.istio.io",
    );
    warn(
        spec.location == ServiceEntryLocation::MeshInternal,
        "spec.location",
        "connections to endpoints are not encrypted, whatever the location: MESH_INTERNAL has no effect",
        "endpoints that insist on mutual TLS cannot be reached yet",
    );
    warn(
        !spec.subject_alt_names.is_empty(),
        "spec.subjectAltNames",
        "the certificates of endpoints are not checked: this field has no effect",
        "connections to endpoints are plain until TLS to upstreams is there",
    );
    warn(
        spec.export_to.iter().any(|e| e == "~"),
        "spec.exportTo",
        "\"~\" hides the hosts from other namespaces only: routes of this namespace still find them",
        "write \".\" for that, or remove the ServiceEntry",
    );
    warn(
        spec.resolution == ServiceEntryResolution::DnsRoundRobin,
        "spec.resolution",
        "every address that a name resolves to is an endpoint, as with DNS",
        "write DNS to say so",
    );
    for (at, endpoint) in spec.endpoints.iter().enumerate() {
        warn_of_ignored_in_workload(object, endpoint, &format!("spec.endpoints[{at}]"), note);
    }
}

fn warn_of_ignored_in_workload(object: &Object, spec: &WorkloadEntrySpec, at: &str, note: &mut Notes) {
    let mut warn = |field: &str, message: &str, hint: &str| {
        let warning = object.warning("UnsupportedValue", &format!("{at}.{field}"), message);
        note.diagnostics.push(warning.hint(hint));
    };
    if spec.network.is_some() {
        warn(
            "network",
            "an endpoint is connected to directly, in whatever network it is: this field has no effect",
            "give an address that can be reached from here",
        );
    }
    if spec.service_account.is_some() {
        warn(
            "serviceAccount",
            "the identities of endpoints are not checked: this field has no effect",
            "connections to endpoints are plain until TLS to upstreams is there",
        );
    }
}

fn entry_protocol(port: &ServiceEntryPort) -> Option<Protocol> {
    match port.protocol.as_deref().unwrap_or("HTTP").to_ascii_uppercase().as_str() {
        "HTTP" | "HTTP_PROXY" => Some(Protocol::Http1),
        "HTTP2" | "GRPC" | "GRPC-WEB" => Some(Protocol::Http2),
        _ => None,
    }
}

/// A workload with its place in the entry, and its name if it is an object of its own.
type Workload<'o> = (String, &'o WorkloadEntrySpec, Option<&'o Arc<str>>);

/// The endpoints written out, or those that the selector finds in the entry's namespace.
fn workloads<'o>(object: &Object, spec: &'o ServiceEntrySpec, objects: &'o Objects) -> Vec<Workload<'o>> {
    let Some(selector) = &spec.workload_selector else {
        let inline = spec.endpoints.iter().enumerate();
        return inline.map(|(at, w)| (format!("spec.endpoints[{at}].address"), w, None)).collect();
    };
    objects
        .of(Kind::WorkloadEntry)
        .filter(|o| o.namespace == object.namespace)
        .filter_map(|o| {
            let Spec::WorkloadEntry(w) = &o.spec else { return None };
            let labelled = |(k, v): (&String, &String)| w.labels.get(k).or(o.labels.get(k)) == Some(v);
            // Istio: an empty selector selects nothing.
            let selected = !selector.labels.is_empty() && selector.labels.iter().all(labelled);
            selected.then(|| ("spec.workloadSelector".to_owned(), &**w, Some(&o.name)))
        })
        .collect()
}

fn endpoint((_, w, name): &Workload<'_>, port: &ServiceEntryPort) -> Option<Endpoint> {
    let ip: IpAddr = w.address.as_deref()?.parse().ok()?;
    Some(Endpoint {
        address: SocketAddr::new(ip, workload_port(w, port)),
        weight: weight(w),
        locality: locality(w),
        workload: name.cloned(),
        ..Endpoint::new(unresolved(0))
    })
}

fn names(host: &str, workloads: &[Workload<'_>], port: &ServiceEntryPort) -> Vec<DnsName> {
    if workloads.is_empty() {
        let port = port.target_port.unwrap_or(port.number) as u16;
        return vec![dns_name(host, REFRESH, Endpoint::new(unresolved(port)))];
    }
    let of = |(_, w, _): &Workload<'_>| {
        let endpoint = Endpoint {
            weight: weight(w),
            locality: locality(w),
            ..Endpoint::new(unresolved(workload_port(w, port)))
        };
        Some(dns_name(w.address.as_deref()?, REFRESH, endpoint))
    };
    workloads.iter().filter_map(of).collect()
}

/// Zero is what protobuf makes of a weight that is not written.
fn weight(w: &WorkloadEntrySpec) -> u32 {
    w.weight.unwrap_or(1).max(1)
}

/// A workload's own port of that name, else the entry's target port, else its port.
fn workload_port(w: &WorkloadEntrySpec, port: &ServiceEntryPort) -> u16 {
    w.ports.get(&port.name).copied().or(port.target_port).unwrap_or(port.number) as u16
}

fn locality(w: &WorkloadEntrySpec) -> Option<Arc<Locality>> {
    w.locality.as_deref().map(|l| Arc::new(Locality::parse(l)))
}
