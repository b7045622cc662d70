//! `Pool` to IR: its own endpoints, those that it falls back to, its checks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_core::ir::{
    DnsName, Endpoint, EndpointTls, Endpoints, HealthCheck, HealthKind, HealthTls, Localities, Locality,
    ObjectKey, Pool, PoolKey, PoolTls, Protocol,
};

use super::backend_tls::BackendTls;
use super::backends::{BackendRef, Reference, granted, pool_key};
use super::destination_rules::DestinationRules;
use super::localities::all as all_of;
use super::pools::{Hosts, REFRESH, by_name, dns_name, identity, key, unresolved};
use super::service_entries::with_labels;
use super::upstream_tls::{Place, Trouble, Workload, closed, moved, without_exceptions};
use super::{Notes, Objects, pool_traffic};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::pool::{Fallback, PoolEndpoint, PoolProtocol, PoolSpec};
use crate::kinds::pool_health::{CheckTls, HealthCheck as HealthSpec};
use crate::kinds::pool_tls::{PoolEndpointTls, PoolTls as PoolTlsSpec, PoolTlsMode};
use crate::kinds::{Kind, Spec};

/// What a Pool may refer to.
pub(crate) struct Around<'a> {
    pub objects: &'a Objects,
    pub hosts: &'a Hosts,
    pub rules: &'a DestinationRules<'a>,
    pub policies: &'a BackendTls,
    /// Where the gateway stands.
    pub own: Option<&'a Locality>,
    /// What the gateway is known by in its mesh.
    pub workload: Option<&'a Workload>,
}

/// Why a reference does not hold.
struct Refusal {
    reason: &'static str,
    field: String,
    message: String,
    hint: Option<String>,
}

/// The first reference of a Pool that does not hold: reason and message.
type Reason = (&'static str, String);

/// All Pools, each after those that it falls back to.
pub(crate) fn in_order(objects: &Objects) -> Vec<&Arc<Object>> {
    fn visit<'o>(
        objects: &'o Objects,
        object: &'o Arc<Object>,
        seen: &mut BTreeSet<ObjectKey>,
        out: &mut Vec<&'o Arc<Object>>,
    ) {
        if seen.insert(object.key()) {
            for next in next_pools(objects, object) {
                visit(objects, next, seen, out);
            }
            out.push(object);
        }
    }
    let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
    for object in objects.of(Kind::Pool) {
        visit(objects, object, &mut seen, &mut out);
    }
    out
}

/// The Pools that a Pool falls back to.
fn next_pools<'o>(objects: &'o Objects, object: &Object) -> Vec<&'o Arc<Object>> {
    let Spec::Pool(spec) = &object.spec else { return Vec::new() };
    let pools = spec.fallback.iter().filter(|f| f.kind.as_deref() == Some("Pool"));
    let namespace = |f: &Fallback| f.namespace.clone().unwrap_or_else(|| object.namespace.to_string());
    pools.filter_map(|f| objects.get(Kind::Pool, &namespace(f), &f.name)).collect()
}

/// The way by which `from` falls back to `to`, both included.
fn way(objects: &Objects, from: &ObjectKey, to: &ObjectKey) -> Option<Vec<ObjectKey>> {
    let mut before: BTreeMap<ObjectKey, ObjectKey> = BTreeMap::new();
    let mut open = vec![from.clone()];
    while let Some(at) = open.pop() {
        if at == *to {
            let mut way = vec![at];
            while let Some(earlier) =
                way.last().and_then(|at| before.get(at)).filter(|_| way.last() != Some(from))
            {
                way.push(earlier.clone());
            }
            way.reverse();
            return Some(way);
        }
        let Some(object) = objects.by_key(&at) else { continue };
        for next in next_pools(objects, object).into_iter().map(|o| o.key()) {
            if next != *from && !before.contains_key(&next) {
                before.insert(next.clone(), at.clone());
                open.push(next);
            }
        }
    }
    None
}

impl Around<'_> {
    /// The pool, unless it has nothing to be made of. `made` has all that it may stand for or fall back to.
    pub fn pool(
        &self,
        object: &Object,
        spec: &PoolSpec,
        made: &BTreeMap<PoolKey, Pool>,
        note: &mut Notes,
    ) -> Option<Pool> {
        let key = key("Pool", &object.namespace, &object.name, 0);
        let stated = match spec.protocol {
            PoolProtocol::Http1 => Protocol::Http1,
            PoolProtocol::Http2 => Protocol::Http2,
            PoolProtocol::Auto => Protocol::Auto,
        };
        let mut pool = if let Some(list) = &spec.endpoints {
            Pool::of(key, Endpoints::Static(list.iter().filter_map(endpoint).collect()))
        } else if let Some(dns) = &spec.dns {
            let refresh = dns.refresh.map_or(REFRESH, |d| d.0);
            let name = dns_name(&dns.name, refresh, Endpoint::new(unresolved(dns.port)));
            Pool::of(key, by_name(vec![name]))
        } else {
            match self.stands_for(object, spec, made) {
                // What is behind it knows better than defaults.
                Ok(found) => Pool { key, ..found },
                Err(refusal) => {
                    note.condition("Accepted", false, refusal.reason, refusal.message.clone());
                    refusal.note(object, note);
                    return None;
                }
            }
        };
        if stated != Protocol::Http1 {
            pool.protocol = stated;
        }
        note.condition("Accepted", true, "Accepted", "");
        let mut unresolved = None;
        if let Some(tls) = &spec.tls {
            if tls.mode != PoolTlsMode::IstioMutual {
                without_exceptions(&mut pool.endpoints);
            }
            pool.tls = Some(self.tls(object, "spec.tls", tls, &mut unresolved, note));
        }
        self.policies.apply(object, None, &mut pool);
        if let Endpoints::Static(endpoints) = &mut pool.endpoints {
            self.endpoints_tls(object, spec, endpoints, &mut unresolved, note);
        }
        let own = pool.endpoints.clone();
        pool.endpoints = self.endpoints(object, spec, &pool, made, &mut unresolved, note);
        pool_traffic::apply(spec, &mut pool, self.own, &mut |field, message, hint| {
            note.diagnostics.push(object.warning("UnsupportedValue", field, message).hint(hint));
        });
        if !spec.fallback.is_empty() {
            weigh_fallback(&own, &mut pool);
        }
        let health = spec.health_check.as_ref();
        pool.health = health.and_then(|h| self.health(object, h, &mut unresolved, note)).map(Arc::new);
        match unresolved {
            Some((reason, message)) => note.condition("ResolvedRefs", false, reason, message),
            None if spec.fallback.is_empty() => {}
            None => note.condition("ResolvedRefs", true, "ResolvedRefs", ""),
        }
        pool.service = identity(object, format!("{}.{}.pool.fieldgate", object.name, object.namespace));
        Some(pool)
    }

    fn tls(
        &self,
        object: &Object,
        at: &str,
        spec: &PoolTlsSpec,
        unresolved: &mut Option<Reason>,
        note: &mut Notes,
    ) -> Arc<PoolTls> {
        let origin: Arc<str> = object.key().to_string().into();
        let place = Place { objects: self.objects, namespace: &object.namespace, workload: self.workload };
        Arc::new(place.pool(&origin, spec).unwrap_or_else(|trouble| {
            let Trouble { field, message, hint } = trouble;
            let message = format!("{message}; no connection is made to endpoints that it is for");
            let reason = "InvalidCertificateRef";
            unresolved.get_or_insert_with(|| (reason, message.clone()));
            Refusal { reason, field: format!("{at}{field}"), message, hint }.note(object, note);
            closed(origin)
        }))
    }

    fn endpoints_tls(
        &self,
        object: &Object,
        spec: &PoolSpec,
        endpoints: &mut [Endpoint],
        unresolved: &mut Option<Reason>,
        note: &mut Notes,
    ) {
        for (i, given) in spec.endpoints.iter().flatten().enumerate() {
            let Some(tls) = &given.tls else { continue };
            let tls = match tls {
                PoolEndpointTls::Disable => EndpointTls::Plain,
                PoolEndpointTls::Own(own) => {
                    let at = format!("spec.endpoints[{i}].tls");
                    EndpointTls::Own(self.tls(object, &at, own, unresolved, note))
                }
            };
            let found = endpoints
                .iter_mut()
                .find(|e| e.address.port() == given.port && given.address.parse() == Ok(e.address.ip()));
            if let Some(endpoint) = found {
                endpoint.tls = tls;
            }
        }
    }

    /// The pool of the Service or host that a Pool is made of.
    fn stands_for(
        &self,
        object: &Object,
        spec: &PoolSpec,
        made: &BTreeMap<PoolKey, Pool>,
    ) -> Result<Pool, Refusal> {
        let refer = |place: &str, kind, namespace, name, port: u16| {
            let r =
                BackendRef { group: None, kind: Some(kind), namespace, name, port: Some(i32::from(port)) };
            let found = self.find(object, &r, made);
            found.map_err(|r| Refusal { field: format!("{place}{}", r.field), ..r })
        };
        match (&spec.service, &spec.hostname) {
            (Some(service), _) => {
                let namespace = service.namespace.as_deref();
                refer("spec.service", "Service", namespace, &service.name, service.port).cloned()
            }
            (None, Some(host)) => {
                let found = refer("spec.hostname", "Hostname", None, &host.name, host.port)?;
                host.subset.as_ref().map_or_else(|| Ok(found.clone()), |subset| self.subset(found, subset))
            }
            (None, None) => Err(Refusal {
                reason: "InvalidValue",
                field: "spec".to_owned(),
                message: "there are no endpoints".to_owned(),
                hint: None,
            }),
        }
    }

    /// The part of a host's pool that is a subset of its DestinationRule.
    fn subset(&self, found: &Pool, name: &str) -> Result<Pool, Refusal> {
        let refuse = |message, hint| {
            let field = "spec.hostname.subset".to_owned();
            Err(Refusal { reason: "BackendNotFound", field, message, hint })
        };
        let host = &found.service.host;
        let Some(rule) = self.rules.find(host, &found.key.object.namespace) else {
            let hint = Some("subsets are defined by a DestinationRule for the host".to_owned());
            return refuse(format!("there is no DestinationRule for {host}"), hint);
        };
        let Some(subset) = rule.subsets().iter().find(|s| s.name == name) else {
            let hint = did_you_mean_hint(name, rule.subsets().iter().map(|s| s.name.as_str()));
            return refuse(format!("{} has no subset \"{name}\"", rule.name()), hint);
        };
        let Some(endpoints) = with_labels(self.objects, &found.key, &subset.labels) else {
            return refuse(format!("{} has no endpoints whose labels are known", found.key), None);
        };
        let mut pool = Pool {
            protocol: found.protocol,
            service: found.service.clone(),
            ..Pool::of(found.key.clone(), endpoints)
        };
        rule.apply_to_subset(subset, &mut pool, found.key.port, self.own);
        Ok(pool)
    }

    /// Own endpoints and, as the next priorities, those of the fallback.
    fn endpoints(
        &self,
        object: &Object,
        spec: &PoolSpec,
        pool: &Pool,
        made: &BTreeMap<PoolKey, Pool>,
        unresolved: &mut Option<Reason>,
        note: &mut Notes,
    ) -> Endpoints {
        let mut all = Gathered::default();
        all.add_below(&pool.endpoints);
        for (i, entry) in spec.fallback.iter().enumerate() {
            match self.fallback(object, entry, pool.protocol, made) {
                Ok(found) => all.add_below(&with_tls_of(found, pool.tls.as_ref())),
                Err(refusal) => {
                    unresolved.get_or_insert_with(|| (refusal.reason, refusal.message.clone()));
                    let field = format!("spec.fallback[{i}]{}", refusal.field);
                    Refusal { field, ..refusal }.note(object, note);
                }
            }
        }
        all.done()
    }

    fn fallback<'p>(
        &self,
        object: &Object,
        entry: &Fallback,
        protocol: Protocol,
        made: &'p BTreeMap<PoolKey, Pool>,
    ) -> Result<&'p Pool, Refusal> {
        let r = BackendRef {
            group: entry.group.as_deref(),
            kind: entry.kind.as_deref(),
            namespace: entry.namespace.as_deref(),
            name: &entry.name,
            port: entry.port,
        };
        let refuse = |reason, message, hint: &str| {
            Err(Refusal { reason, field: String::new(), message, hint: Some(hint.to_owned()) })
        };
        if let Some(way) = self.way_back(object, &r) {
            let message = format!("falls back to itself: {way}");
            return refuse("Cycle", message, "remove this entry, or that of the other Pool");
        }
        let found = self.find(object, &r, made)?;
        if found.protocol != protocol {
            let message = format!(
                "{} speaks {}, and this pool {}: one list of priorities has one protocol",
                found.key,
                words(found.protocol),
                words(protocol)
            );
            let hint = match found.key.object.kind {
                "Pool" => "set spec.protocol of both alike",
                "Service" => "set spec.protocol here, or appProtocol of the Service's port, to the same",
                _ => "set spec.protocol here, or the protocol of the ServiceEntry's port, to the same",
            };
            return refuse("UnsupportedProtocol", message, hint);
        }
        Ok(found)
    }

    /// How a Pool that an entry names comes back to the Pool of the entry.
    fn way_back(&self, object: &Object, r: &BackendRef<'_>) -> Option<String> {
        let next = pool_key(r, &object.namespace)?.object;
        if next.kind != "Pool" {
            return None;
        }
        let way = way(self.objects, &next, &object.key())?;
        let names = std::iter::once(object.key()).chain(way).map(|k| k.to_string());
        Some(names.collect::<Vec<_>>().join(" -> "))
    }

    fn find<'p>(
        &self,
        object: &Object,
        r: &BackendRef<'_>,
        made: &'p BTreeMap<PoolKey, Pool>,
    ) -> Result<&'p Pool, Refusal> {
        let refuse = |reason, field: &str, message: String, hint| {
            Err(Refusal { reason, field: field.to_owned(), message, hint })
        };
        let (kind, group) = match r.kind {
            Some("Pool") => (Kind::Pool, "fieldgate.dev"),
            Some("Hostname") => (Kind::ServiceEntry, "networking.istio.io"),
            _ => (Kind::Service, ""),
        };
        let kind_name = r.kind.unwrap_or("Service");
        let namespace = r.namespace.unwrap_or(&object.namespace);
        let reference = Reference {
            from_group: "fieldgate.dev",
            from_kind: "Pool",
            from_namespace: &object.namespace,
            group,
            kind: kind_name,
            namespace,
            name: r.name,
        };
        if !granted(self.objects, &reference) {
            let message = format!("{kind_name} {namespace}/{} is in another namespace", r.name);
            return refuse("RefNotPermitted", ".namespace", message, Some(reference.hint()));
        }
        let Some(mut wanted) = pool_key(r, &object.namespace) else {
            return refuse("InvalidValue", ".port", format!("a {kind_name} needs a port"), None);
        };
        // Hosts of ServiceEntries are visible everywhere unless they say otherwise (Istio `exportTo`).
        if kind == Kind::ServiceEntry
            && r.namespace.is_none()
            && let Some(seen) = self.hosts.find(r.name, wanted.port, namespace)
        {
            wanted = seen;
        }
        if let Some(found) = made.get(&wanted) {
            return Ok(found);
        }
        let names: Vec<String> = match kind {
            Kind::ServiceEntry => {
                let hosts = made.keys().filter(|k| k.object.kind == "Hostname");
                hosts.map(|k| k.object.name.to_string()).collect()
            }
            kind => self.objects.names(kind, namespace),
        };
        if names.iter().any(|n| n == r.name) {
            let message = match kind {
                Kind::Pool => format!("Pool {namespace}/{} has no endpoints", r.name),
                _ => format!("{kind_name} {namespace}/{} has no port {}", r.name, wanted.port),
            };
            return refuse(
                "BackendNotFound",
                if kind == Kind::Pool { ".name" } else { ".port" },
                message,
                None,
            );
        }
        let hint = did_you_mean_hint(r.name, names.iter().map(String::as_str));
        refuse("BackendNotFound", ".name", format!("there is no {kind_name} {namespace}/{}", r.name), hint)
    }

    fn health(
        &self,
        object: &Object,
        spec: &HealthSpec,
        unresolved: &mut Option<Reason>,
        note: &mut Notes,
    ) -> Option<HealthCheck> {
        let tls = match spec.tls.as_ref().map(|tls| self.health_tls(object, tls)).transpose() {
            Ok(tls) => tls.map(Arc::new),
            Err(refusal) => {
                // With a check that cannot succeed there would be no endpoint left.
                let message = format!("{}; endpoints are not checked", refusal.message);
                unresolved.get_or_insert_with(|| (refusal.reason, message.clone()));
                Refusal { message, ..refusal }.note(object, note);
                return None;
            }
        };
        let interval = spec.interval.map_or(Duration::from_secs(5), |d| d.0);
        Some(HealthCheck {
            interval,
            jitter: spec.jitter.map_or(interval / 10, |d| d.0),
            timeout: spec.timeout.map_or(Duration::from_secs(1), |d| d.0),
            healthy: spec.healthy_threshold.unwrap_or(2),
            unhealthy: spec.unhealthy_threshold.unwrap_or(3),
            port: spec.port,
            tls,
            kind: health_kind(spec),
        })
    }

    fn health_tls(&self, object: &Object, tls: &CheckTls) -> Result<HealthTls, Refusal> {
        let mut pem = Vec::new();
        for (i, reference) in tls.ca_certificate_refs.iter().flatten().enumerate() {
            let field = format!("spec.healthCheck.tls.caCertificateRefs[{i}].name");
            let name = format!("Secret {}/{}", object.namespace, reference.name);
            let refuse =
                |message, hint| Err(Refusal { reason: "InvalidCertificateRef", field, message, hint });
            let secret = self.objects.get(Kind::Secret, &object.namespace, &reference.name);
            let Some(Spec::Secret(secret)) = secret.map(|o| &o.spec) else {
                let names = self.objects.names(Kind::Secret, &object.namespace);
                let hint = did_you_mean_hint(&reference.name, names.iter().map(String::as_str));
                return refuse(format!("there is no {name}"), hint);
            };
            let data =
                secret.data.as_ref().and_then(|d| d.get("ca.crt")).map(|b| &b.0[..]).unwrap_or_default();
            if !String::from_utf8_lossy(data).contains("-----BEGIN CERTIFICATE-----") {
                let hint = Some("a certificate in PEM begins with -----BEGIN CERTIFICATE-----".to_owned());
                return refuse(format!("{name} has no certificate in ca.crt"), hint);
            }
            pem.extend_from_slice(data);
            pem.push(b'\n');
        }
        Ok(HealthTls {
            server_name: tls.server_name.as_deref().map(Into::into),
            ca_pem: (!tls.insecure_skip_verify).then(|| pem.into()),
        })
    }
}

impl Refusal {
    fn note(self, object: &Object, note: &mut Notes) {
        let mut error = object.error(self.reason, &self.field, self.message);
        error.hint = self.hint;
        note.diagnostics.push(error);
    }
}

/// Endpoints of several sources in one list of priorities.
#[derive(Default)]
struct Gathered {
    fixed: Vec<Endpoint>,
    names: Vec<DnsName>,
}

impl Gathered {
    /// Those that are there already keep their place.
    fn add_below(&mut self, endpoints: &Endpoints) {
        let base = self.priorities().last().map_or(0, |last| last + 1);
        let (fixed, names) = match endpoints {
            Endpoints::Static(fixed) => (fixed, &[][..]),
            Endpoints::Dns { fixed, names } => (fixed, &names[..]),
        };
        for endpoint in fixed {
            if self.fixed.iter().all(|e| e.address != endpoint.address) {
                self.fixed.push(Endpoint { priority: base + endpoint.priority, ..endpoint.clone() });
            }
        }
        for name in names {
            let port = name.endpoint.address.port();
            if self.names.iter().all(|n| n.host != name.host || n.endpoint.address.port() != port) {
                let endpoint = Endpoint { priority: base + name.endpoint.priority, ..name.endpoint.clone() };
                self.names.push(DnsName { endpoint, ..name.clone() });
            }
        }
    }

    fn priorities(&self) -> BTreeSet<u32> {
        let names = self.names.iter().map(|n| &n.endpoint);
        self.fixed.iter().chain(names).map(|e| e.priority).collect()
    }

    /// Priorities without gaps: one that has no endpoints has nothing to say.
    fn done(mut self) -> Endpoints {
        let ranks: BTreeMap<u32, u32> = self.priorities().into_iter().zip(0..).collect();
        let names = self.names.iter_mut().map(|n| &mut n.endpoint);
        for endpoint in self.fixed.iter_mut().chain(names) {
            endpoint.priority = ranks[&endpoint.priority];
        }
        if self.names.is_empty() {
            return Endpoints::Static(self.fixed);
        }
        Endpoints::Dns { fixed: self.fixed, names: self.names }
    }
}

/// A pool's endpoints, to be connected to as they are in their own pool.
fn with_tls_of(pool: &Pool, tls: Option<&Arc<PoolTls>>) -> Endpoints {
    let mut endpoints = pool.endpoints.clone();
    let (fixed, names) = match &mut endpoints {
        Endpoints::Static(fixed) => (fixed, &mut [][..]),
        Endpoints::Dns { fixed, names } => (fixed, &mut names[..]),
    };
    for endpoint in fixed.iter_mut().chain(names.iter_mut().map(|name| &mut name.endpoint)) {
        moved(endpoint, pool.tls.as_ref(), tls);
    }
    endpoints
}

/// Weights are of localities of the pool's own. Those that only its fallback has would get nothing without one, and there
/// would be no failover; they get what their endpoints weigh.
fn weigh_fallback(own: &Endpoints, pool: &mut Pool) {
    let Localities::Weighted(weights) = &mut pool.spread.localities else { return };
    let locality = |e: &Endpoint| e.locality.as_deref().cloned().unwrap_or_default();
    let known: BTreeSet<Locality> =
        all_of(own).map(locality).chain(weights.iter().map(|(l, _)| l.clone())).collect();
    let mut more: BTreeMap<Locality, u32> = BTreeMap::new();
    for endpoint in all_of(&pool.endpoints) {
        let place = locality(endpoint);
        if !known.contains(&place) {
            let weight = more.entry(place).or_default();
            *weight = weight.saturating_add(endpoint.weight);
        }
    }
    weights.extend(more);
}

fn endpoint(spec: &PoolEndpoint) -> Option<Endpoint> {
    let locality = match (&spec.locality, &spec.zone) {
        (Some(l), _) => Some(Locality {
            region: l.region.as_str().into(),
            zone: l.zone.as_str().into(),
            subzone: l.subzone.as_str().into(),
        }),
        (None, Some(zone)) => Some(Locality::of_zone(zone)),
        (None, None) => None,
    };
    Some(Endpoint {
        address: SocketAddr::new(spec.address.parse().ok()?, spec.port),
        weight: spec.weight.max(1),
        locality: locality.map(Arc::new),
        priority: spec.priority,
        draining: spec.drain || spec.weight == 0,
        degraded: spec.degraded,
        workload: spec.hostname.as_deref().map(Into::into),
        hash_key: spec.hash_key.as_deref().map(Into::into),
        tls: EndpointTls::AsPool,
    })
}

fn words(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "HTTP/1.1",
        Protocol::Http2 => "HTTP/2",
        Protocol::Auto => "what the client speaks (auto)",
    }
}

fn health_kind(spec: &HealthSpec) -> HealthKind {
    if let Some(grpc) = &spec.grpc {
        return HealthKind::Grpc {
            service: grpc.service.as_str().into(),
            authority: grpc.authority.as_deref().map(Into::into),
        };
    }
    let Some(http) = &spec.http else { return HealthKind::Tcp };
    HealthKind::Http {
        method: http.method.as_deref().unwrap_or("GET").into(),
        path: http.path.as_deref().unwrap_or("/").into(),
        host: http.host.as_deref().map(Into::into),
        expected: match &http.expected_statuses {
            None => vec![(200, 299)],
            Some(ranges) => ranges.iter().map(|r| (r.first, r.last)).collect(),
        },
    }
}
