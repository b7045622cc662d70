//! ServiceEntry with WorkloadEntries to pools.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fieldgate_core::ir::{DnsName, Endpoint, EndpointTls, Endpoints, Locality, Pool, PoolKey, Protocol};

use super::pools::{REFRESH, by_name, dns_name, identity, key, unresolved};
use super::{Notes, Objects};
use crate::document::Object;
use crate::kinds::istio::{
    ServiceEntryLocation, ServiceEntryPort, ServiceEntryResolution, ServiceEntrySpec, WorkloadEntrySpec,
};
use crate::kinds::{Kind, Spec};

/// Istio's label of workloads: `istio` or `disabled`.
const TLS_MODE: &str = "security.istio.io/tlsMode";

/// A ServiceEntry's pools, each with whether its protocol was stated.
pub(crate) fn service_entry(
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
    for Workload { place, spec, .. } in workloads.iter().filter(|_| by_address) {
        let address = spec.address.as_deref().unwrap_or_default();
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
            let endpoints = endpoints(spec, host, &workloads, port);
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

fn endpoints(
    spec: &ServiceEntrySpec,
    host: &str,
    workloads: &[Workload<'_>],
    port: &ServiceEntryPort,
) -> Endpoints {
    if spec.resolution == ServiceEntryResolution::Static {
        Endpoints::Static(workloads.iter().filter_map(|w| endpoint(w, port)).collect())
    } else {
        by_name(names(host, workloads, port))
    }
}

/// Of a host and port's endpoints those that bear all of these labels.
pub(crate) fn with_labels(
    objects: &Objects,
    wanted: &PoolKey,
    labels: &BTreeMap<String, String>,
) -> Option<Endpoints> {
    let namespace = &wanted.object.namespace;
    objects.by_age(Kind::ServiceEntry).into_iter().filter(|o| o.namespace == *namespace).find_map(|o| {
        let Spec::ServiceEntry(spec) = &o.spec else { return None };
        let host = spec.hosts.iter().find(|h| **h == *wanted.object.name)?;
        let port = spec.ports.iter().find(|p| p.number == u32::from(wanted.port))?;
        let mut workloads = workloads(o, spec, objects);
        workloads.retain(|w| labels.iter().all(|(k, v)| w.label(k) == Some(v)));
        if workloads.is_empty() {
            return Some(Endpoints::Static(Vec::new()));
        }
        Some(endpoints(spec, host, &workloads, port))
    })
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
        "connections to endpoints are encrypted as a DestinationRule says, not by the location: MESH_INTERNAL has no effect",
        "write a DestinationRule with tls: {mode: ISTIO_MUTUAL} for the host",
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

pub(crate) fn warn_of_ignored_in_workload(
    object: &Object,
    spec: &WorkloadEntrySpec,
    at: &str,
    note: &mut Notes,
) {
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
            "identities of single endpoints are not compared: this field has no effect",
            "name those of all endpoints in subjectAltNames of a DestinationRule or of the ServiceEntry",
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

/// A workload of an entry.
struct Workload<'o> {
    /// Its place in the entry.
    place: String,
    spec: &'o WorkloadEntrySpec,
    /// Itself, if it is an object of its own.
    object: Option<&'o Object>,
}

impl Workload<'_> {
    fn label(&self, key: &str) -> Option<&String> {
        self.spec.labels.get(key).or_else(|| self.object?.labels.get(key))
    }

    /// Whether it takes part in the mesh's TLS. One of which nothing is said does: the rule is asked for.
    fn tls(&self) -> EndpointTls {
        match self.label(TLS_MODE).map(String::as_str) {
            Some("disabled") => EndpointTls::Plain,
            _ => EndpointTls::AsPool,
        }
    }
}

/// The endpoints written out, or those that the selector finds in the entry's namespace.
fn workloads<'o>(object: &Object, spec: &'o ServiceEntrySpec, objects: &'o Objects) -> Vec<Workload<'o>> {
    let Some(selector) = &spec.workload_selector else {
        let inline = spec.endpoints.iter().enumerate();
        let workload = |(at, spec)| {
            let place = format!("spec.endpoints[{at}].address");
            Workload { place, spec, object: None }
        };
        return inline.map(workload).collect();
    };
    objects
        .of(Kind::WorkloadEntry)
        .filter(|o| o.namespace == object.namespace)
        .filter_map(|o| {
            let Spec::WorkloadEntry(w) = &o.spec else { return None };
            let workload = Workload { place: "spec.workloadSelector".to_owned(), spec: w, object: Some(o) };
            let labelled = |(k, v): (&String, &String)| workload.label(k) == Some(v);
            // Istio: an empty selector selects nothing.
            let selected = !selector.labels.is_empty() && selector.labels.iter().all(labelled);
            selected.then_some(workload)
        })
        .collect()
}

fn endpoint(workload: &Workload<'_>, port: &ServiceEntryPort) -> Option<Endpoint> {
    let w = workload.spec;
    let ip: IpAddr = w.address.as_deref()?.parse().ok()?;
    Some(Endpoint {
        address: SocketAddr::new(ip, workload_port(w, port)),
        weight: weight(w),
        locality: locality(w),
        workload: workload.object.map(|o| o.name.clone()),
        tls: workload.tls(),
        ..Endpoint::new(unresolved(0))
    })
}

fn names(host: &str, workloads: &[Workload<'_>], port: &ServiceEntryPort) -> Vec<DnsName> {
    if workloads.is_empty() {
        let port = port.target_port.unwrap_or(port.number) as u16;
        return vec![dns_name(host, REFRESH, Endpoint::new(unresolved(port)))];
    }
    let of = |workload: &Workload<'_>| {
        let w = workload.spec;
        let endpoint = Endpoint {
            weight: weight(w),
            locality: locality(w),
            tls: workload.tls(),
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
