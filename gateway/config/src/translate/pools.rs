//! Everything that has endpoints to pools: `Pool`, Service with EndpointSlices, ServiceEntry with WorkloadEntries.
//!
//! Each port of a Service and of a ServiceEntry is a pool. A pool that GRPCRoutes may use and whose protocol nobody
//! stated has a twin with the kind's name and ` (gRPC)`, which speaks HTTP/2, because gRPC can be nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    Balance, DnsName, Endpoint, Endpoints, HealthCheck, HealthKind, ObjectKey, Pool, PoolKey, PoolLimits,
    Protocol, ServiceIdentity,
};
use k8s_openapi::api::core::v1::{ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Notes, Objects};
use crate::document::Object;
use crate::kinds::fieldgate::{LoadBalancingPolicy, PoolProtocol, PoolSpec};
use crate::kinds::istio::{ServiceEntryPort, ServiceEntryResolution, ServiceEntrySpec, WorkloadEntrySpec};
use crate::kinds::{Kind, Spec};

/// How often names are looked up again at the least.
const REFRESH: Duration = Duration::from_secs(30);
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(crate) fn translate(
    objects: &Objects,
    notes: &mut BTreeMap<ObjectKey, Notes>,
) -> BTreeMap<PoolKey, Pool> {
    let mut pools = BTreeMap::new();
    let slices = Slices::of(objects);
    for object in objects.of(Kind::Service) {
        let Spec::Service(spec) = &object.spec else { continue };
        for port in spec.ports.iter().flatten() {
            insert(&mut pools, service_pool(object, spec, port, &slices), stated(port));
        }
        if spec.ports.as_ref().is_none_or(Vec::is_empty) {
            let note = notes.entry(object.key()).or_default();
            note.diagnostics.push(object.warning(
                "NoPorts",
                "spec.ports",
                "a Service without ports cannot be a backend",
            ));
        }
    }
    for object in objects.of(Kind::ServiceEntry) {
        let Spec::ServiceEntry(spec) = &object.spec else { continue };
        service_entry(object, spec, objects, notes.entry(object.key()).or_default(), &mut pools);
    }
    // Last, because a Pool may stand for a Service.
    for object in objects.of(Kind::Pool) {
        let Spec::Pool(spec) = &object.spec else { continue };
        let note = notes.entry(object.key()).or_default();
        if let Some(pool) = pool(object, spec, &pools, note) {
            note.condition("Accepted", true, "Accepted", "");
            insert(&mut pools, pool, spec.protocol != PoolProtocol::Http1);
        }
    }
    pools
}

/// Adds a pool, with its gRPC twin where the protocol was not stated.
fn insert(pools: &mut BTreeMap<PoolKey, Pool>, pool: Pool, stated: bool) {
    if !stated && pool.protocol == Protocol::Http1 {
        let kind = match pool.key.object.kind {
            "Pool" => "Pool (gRPC)",
            "Service" => "Service (gRPC)",
            _ => "Hostname (gRPC)",
        };
        let key = PoolKey { object: ObjectKey { kind, ..pool.key.object.clone() }, port: pool.key.port };
        pools.insert(key.clone(), Pool { key, protocol: Protocol::Http2, health: None, ..pool.clone() });
    }
    pools.insert(pool.key.clone(), pool);
}

fn stated(port: &ServicePort) -> bool {
    port.app_protocol.is_some() || port.name.as_deref().is_some_and(|n| n.starts_with("http"))
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
                if !ready && !(serving && terminating) {
                    continue;
                }
                for address in &endpoint.addresses {
                    let Ok(ip) = address.parse::<IpAddr>() else { continue };
                    let address = SocketAddr::new(ip, number);
                    if out.iter().all(|e| e.address != address) {
                        out.push(Endpoint {
                            address,
                            weight: 1,
                            zone: endpoint.zone.as_deref().map(Into::into),
                            draining: !ready,
                            workload: None,
                        });
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
    let found = by_name.or_else(by_target).or_else(|| (ports.len() == 1).then(|| &ports[0]))?;
    found.port.and_then(|p| u16::try_from(p).ok())
}

fn service_pool(object: &Object, spec: &ServiceSpec, port: &ServicePort, slices: &Slices<'_>) -> Pool {
    let protocol = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c" | "grpc" | "http2") => Protocol::Http2,
        Some(_) => Protocol::Http1,
        None => by_name(port.name.as_deref().unwrap_or("")),
    };
    let endpoints = match (&spec.type_, &spec.external_name) {
        (Some(kind), Some(name)) if kind == "ExternalName" => Endpoints::Dns(vec![DnsName {
            host: name.as_str().into(),
            port: port.port as u16,
            weight: 1,
            zone: None,
            refresh: REFRESH,
        }]),
        _ => Endpoints::Static(slices.endpoints(object, port)),
    };
    Pool {
        key: key("Service", &object.namespace, &object.name, port.port as u16),
        endpoints,
        protocol,
        balance: Balance::LeastRequest,
        health: None,
        limits: PoolLimits::default(),
        service: identity(object, format!("{}.{}.svc.cluster.local", object.name, object.namespace)),
    }
}

/// Istio's convention: the protocol is what stands before the first dash of the port's name.
fn by_name(name: &str) -> Protocol {
    match name.split('-').next() {
        Some("http2" | "grpc" | "h2c") => Protocol::Http2,
        _ => Protocol::Http1,
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

fn pool(object: &Object, spec: &PoolSpec, pools: &BTreeMap<PoolKey, Pool>, note: &mut Notes) -> Option<Pool> {
    let endpoints = if let Some(list) = &spec.endpoints {
        Endpoints::Static(
            list.iter()
                .filter_map(|e| {
                    Some(Endpoint {
                        address: SocketAddr::new(e.address.parse().ok()?, e.port),
                        weight: e.weight.max(1),
                        zone: e.zone.as_deref().map(Into::into),
                        draining: e.drain || e.weight == 0,
                        workload: e.hostname.as_deref().map(Into::into),
                    })
                })
                .collect(),
        )
    } else if let Some(dns) = &spec.dns {
        Endpoints::Dns(vec![DnsName {
            host: dns.name.as_str().into(),
            port: dns.port,
            weight: 1,
            zone: None,
            refresh: dns.refresh.map_or(REFRESH, |d| d.0),
        }])
    } else {
        let service = spec.service.as_ref()?;
        let namespace: Arc<str> = service.namespace.as_deref().map_or(object.namespace.clone(), Into::into);
        let Some(found) = pools.get(&key("Service", &namespace, &service.name, service.port)) else {
            let message =
                format!("there is no Service {namespace}/{} with port {}", service.name, service.port);
            note.condition("Accepted", false, "BackendNotFound", message.clone());
            note.diagnostics.push(object.error("BackendNotFound", "spec.service", message));
            return None;
        };
        found.endpoints.clone()
    };
    let limits = PoolLimits::default();
    Some(Pool {
        key: key("Pool", &object.namespace, &object.name, 0),
        endpoints,
        protocol: match spec.protocol {
            PoolProtocol::Http1 => Protocol::Http1,
            PoolProtocol::Http2 => Protocol::Http2,
            PoolProtocol::Auto => Protocol::Auto,
        },
        balance: match spec.load_balancing.policy {
            LoadBalancingPolicy::LeastRequest => Balance::LeastRequest,
            LoadBalancingPolicy::RoundRobin => Balance::RoundRobin,
            LoadBalancingPolicy::Random => Balance::Random,
        },
        health: spec.health_check.as_ref().map(|h| Arc::new(health(h))),
        limits: PoolLimits {
            connect_timeout: spec.connect_timeout.map_or(limits.connect_timeout, |d| d.0),
            idle_timeout: spec.idle_timeout.map_or(limits.idle_timeout, |d| d.0),
            max_connections: spec.max_connections_per_endpoint.unwrap_or(limits.max_connections),
        },
        service: identity(object, format!("{}.{}.pool.fieldgate", object.name, object.namespace)),
    })
}

fn health(spec: &crate::kinds::fieldgate::HealthCheck) -> HealthCheck {
    let interval = spec.interval.map_or(Duration::from_secs(5), |d| d.0);
    HealthCheck {
        interval,
        jitter: spec.jitter.map_or(interval / 10, |d| d.0),
        timeout: spec.timeout.map_or(Duration::from_secs(1), |d| d.0),
        healthy: spec.healthy_threshold.unwrap_or(2),
        unhealthy: spec.unhealthy_threshold.unwrap_or(3),
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

fn service_entry(
    object: &Object,
    spec: &ServiceEntrySpec,
    objects: &Objects,
    note: &mut Notes,
    pools: &mut BTreeMap<PoolKey, Pool>,
) {
    let mut refuse = |field: &str, message: &str, hint: &str| {
        note.condition("Accepted", false, "UnsupportedValue", message);
        note.diagnostics.push(object.error("UnsupportedValue", field, message).hint(hint));
    };
    if matches!(spec.resolution, ServiceEntryResolution::None | ServiceEntryResolution::DynamicDns) {
        return refuse(
            "spec.resolution",
            "endpoints are known only with resolution STATIC, DNS or DNS_ROUND_ROBIN",
            "set spec.resolution",
        );
    }
    for (at, port) in spec.ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("HTTP").to_ascii_uppercase();
        let protocol = match protocol.as_str() {
            "HTTP" | "HTTP_PROXY" => Protocol::Http1,
            "HTTP2" | "GRPC" | "GRPC-WEB" => Protocol::Http2,
            other => {
                let message = format!("a port of protocol {other} cannot be reached yet");
                refuse(&format!("spec.ports[{at}].protocol"), &message, "HTTP, HTTP2 or GRPC");
                continue;
            }
        };
        for (index, host) in spec.hosts.iter().enumerate() {
            if host.contains('*') {
                refuse(
                    &format!("spec.hosts[{index}]"),
                    "a wildcard host cannot be a backend",
                    "name each host",
                );
                continue;
            }
            let key = key("Hostname", &object.namespace, host, port.number as u16);
            if pools.contains_key(&key) {
                refuse(
                    &format!("spec.hosts[{index}]"),
                    &format!("{host}:{} is defined by another ServiceEntry", port.number),
                    "the first by name is used",
                );
                continue;
            }
            let endpoints = match spec.resolution {
                ServiceEntryResolution::Static => {
                    Endpoints::Static(static_endpoints(object, spec, port, objects))
                }
                _ => Endpoints::Dns(names(host, spec, port)),
            };
            let mut service = identity(object, host.clone());
            service.name = host.as_str().into();
            insert(
                pools,
                Pool {
                    key,
                    endpoints,
                    protocol,
                    balance: Balance::LeastRequest,
                    health: None,
                    limits: PoolLimits::default(),
                    service,
                },
                port.protocol.is_some(),
            );
        }
    }
    if note.conditions.is_empty() {
        note.condition("Accepted", true, "Accepted", "");
    }
}

fn static_endpoints(
    object: &Object,
    spec: &ServiceEntrySpec,
    port: &ServiceEntryPort,
    objects: &Objects,
) -> Vec<Endpoint> {
    let endpoint = |w: &WorkloadEntrySpec, name: Option<&Arc<str>>| -> Option<Endpoint> {
        let ip: IpAddr = w.address.as_deref()?.parse().ok()?;
        Some(Endpoint {
            address: SocketAddr::new(ip, workload_port(w, port)),
            weight: w.weight.unwrap_or(1).max(1),
            zone: zone(w),
            draining: w.weight == Some(0),
            workload: name.cloned(),
        })
    };
    match &spec.workload_selector {
        None => spec.endpoints.iter().filter_map(|w| endpoint(w, None)).collect(),
        Some(selector) => objects
            .of(Kind::WorkloadEntry)
            .filter(|o| o.namespace == object.namespace)
            .filter_map(|o| match &o.spec {
                Spec::WorkloadEntry(w) => {
                    let labelled =
                        |(k, v): (&String, &String)| w.labels.get(k).or(o.labels.get(k)) == Some(v);
                    selector.labels.iter().all(labelled).then(|| endpoint(w, Some(&o.name)))?
                }
                _ => None,
            })
            .collect(),
    }
}

fn names(host: &str, spec: &ServiceEntrySpec, port: &ServiceEntryPort) -> Vec<DnsName> {
    let name = |host: &str, port: u16, weight: u32, zone: Option<Arc<str>>| DnsName {
        host: host.into(),
        port,
        weight,
        zone,
        refresh: REFRESH,
    };
    if spec.endpoints.is_empty() {
        return vec![name(host, port.target_port.unwrap_or(port.number) as u16, 1, None)];
    }
    spec.endpoints
        .iter()
        .filter_map(|w| {
            Some(name(w.address.as_deref()?, workload_port(w, port), w.weight.unwrap_or(1).max(1), zone(w)))
        })
        .collect()
}

/// A workload's own port of that name, else the entry's target port, else its port.
fn workload_port(w: &WorkloadEntrySpec, port: &ServiceEntryPort) -> u16 {
    w.ports.get(&port.name).copied().or(port.target_port).unwrap_or(port.number) as u16
}

/// The second part of `region/zone/subzone`.
fn zone(w: &WorkloadEntrySpec) -> Option<Arc<str>> {
    w.locality.as_deref()?.split('/').nth(1).map(Into::into)
}
