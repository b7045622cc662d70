//! Gateways to listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use fieldgate_core::ir::{self, Hostname, ListenerKey, ObjectKey};
use gateway_api::experimental::gateways::{
    GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From,
    GatewayListenersAllowedRoutesNamespacesSelector as Selector, GatewayListenersTlsMode, GatewaySpec,
};
use imbl::OrdMap;

use super::backends::{Reference, granted};
use super::client_tls::{self, MIN_VERSION, Why};
use super::{Notes, NotesOf, Objects};
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::{Kind, Spec};
use crate::status::ListenerStatus;

/// The class that needs not be written.
const CLASS: &str = "fieldgate";
/// How many proxies in front of the gateway are to be believed.
const TRUSTED_HOPS: &str = "fieldgate.dev/trusted-hops";
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

/// All listeners, with what routes need to know to attach.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    pub listeners: BTreeMap<ListenerKey, ir::Listener>,
    by_gateway: BTreeMap<(Arc<str>, Arc<str>), Vec<ListenerInfo>>,
    /// Gateways of other classes: somebody else's.
    others: BTreeSet<(Arc<str>, Arc<str>)>,
}

/// A listener as a route sees it.
#[derive(Debug, PartialEq)]
pub(crate) struct ListenerInfo {
    pub key: ListenerKey,
    pub port: u16,
    pub hostname: Option<Hostname>,
    from: Allowed,
    /// The kinds of routes that may attach.
    kinds: Vec<&'static str>,
}

#[derive(Debug, PartialEq)]
enum Allowed {
    Same,
    All,
    Selector(Box<Selector>),
}

impl Gateways {
    pub fn of(&self, namespace: &str, name: &str) -> Option<&[ListenerInfo]> {
        self.by_gateway.get(&(Arc::from(namespace), Arc::from(name))).map(Vec::as_slice)
    }

    /// Whether that Gateway is there and another controller's.
    pub fn is_other(&self, namespace: &str, name: &str) -> bool {
        self.others.contains(&(Arc::from(namespace), Arc::from(name)))
    }

    pub fn names(&self, namespace: &str) -> Vec<String> {
        self.by_gateway.keys().filter(|(ns, _)| **ns == *namespace).map(|(_, n)| n.to_string()).collect()
    }

    /// Whether routes cannot tell the two apart.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.by_gateway == other.by_gateway && self.others == other.others
    }

    /// What is reported of listeners beside conditions.
    pub fn statuses(&self, routes: &OrdMap<ObjectKey, Arc<ir::Route>>) -> Vec<ListenerStatus> {
        let mut counts: BTreeMap<&ListenerKey, usize> = BTreeMap::new();
        for attachment in routes.values().flat_map(|r| &r.attachments) {
            *counts.entry(&attachment.listener).or_default() += 1;
        }
        let infos = self.by_gateway.values().flatten();
        infos
            .map(|info| ListenerStatus {
                namespace: info.key.namespace.to_string(),
                gateway: info.key.gateway.to_string(),
                listener: info.key.name.to_string(),
                attached_routes: counts.get(&info.key).copied().unwrap_or_default(),
                supported_kinds: info.kinds.clone(),
            })
            .collect()
    }
}

impl ListenerInfo {
    pub fn allows_kind(&self, kind: &str) -> bool {
        self.kinds.contains(&kind)
    }

    pub fn allows_namespace(&self, objects: &Objects, namespace: &str) -> bool {
        match &self.from {
            Allowed::All => true,
            Allowed::Same => *self.key.namespace == *namespace,
            Allowed::Selector(selector) => {
                // Kubernetes puts this label on every namespace, so that it holds where none is written, too.
                let mut labels =
                    objects.get(Kind::Namespace, "", namespace).map(|o| o.labels.clone()).unwrap_or_default();
                labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
                selects(selector, &labels)
            }
        }
    }
}

fn selects(selector: &Selector, labels: &BTreeMap<String, String>) -> bool {
    let by_labels = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    by_labels
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let listed = value.is_some_and(|v| e.values.iter().flatten().any(|w| w == v));
            match e.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

pub(crate) fn translate(objects: &Objects, notes: &mut NotesOf) -> Gateways {
    let mut gateways = Gateways::default();
    let mut taken = Taken::default();
    // Older first, so that a conflict is the newcomer's (Gateway API).
    for object in objects.by_age(Kind::Gateway) {
        let Spec::Gateway(spec) = &object.spec else { continue };
        let note = notes.entry(object.key()).or_default();
        let own = (object.namespace.clone(), object.name.clone());
        if spec.gateway_class_name != CLASS {
            let message =
                format!("this Gateway belongs to class \"{}\" and is left alone", spec.gateway_class_name);
            let warning = object.warning("OtherGatewayClass", "spec.gatewayClassName", message);
            note.diagnostics.push(warning.hint("Fieldgate serves Gateways of class \"fieldgate\""));
            gateways.others.insert(own);
            continue;
        }
        for (field, set) in [
            ("defaultScope", spec.default_scope.is_some()),
            ("allowedListeners", spec.allowed_listeners.is_some()),
        ] {
            if set {
                let message = format!("{field} is not supported and has no effect");
                note.diagnostics.push(object.warning("UnsupportedValue", &format!("spec.{field}"), message));
            }
        }
        let hosts = addresses(object, spec, note);
        let mut programmed = Vec::new();
        let mut in_service = 0;
        for (at, listener) in spec.listeners.iter().enumerate().filter(|_| !hosts.is_empty()) {
            let Some((translated, standing)) = one(object, spec, at, &hosts, objects, note) else { continue };
            if let Some((reason, other)) = taken.claim(&translated, listener.port as u16, &hosts) {
                let message = format!("port {} is taken by listener {other}", listener.port);
                note.part(&listener.name, "Accepted", false, reason, message.clone());
                note.part(&listener.name, "Conflicted", true, reason, message.clone());
                note.part(&listener.name, "Programmed", false, "Invalid", message.clone());
                note.diagnostics.push(
                    object
                        .error(reason, &format!("spec.listeners[{at}]"), message)
                        .hint("listeners on one port need the same protocol and different host names"),
                );
                continue;
            }
            standing.note(&listener.name, note);
            note.part(&listener.name, "Conflicted", false, "NoConflicts", "");
            in_service += usize::from(standing.closed.is_none());
            programmed.push(info(object, at, listener, &translated, &standing, note));
            gateways.listeners.insert(translated.key.clone(), translated);
        }
        gateway_conditions(spec, &hosts, in_service, note);
        gateways.by_gateway.insert(own, programmed);
    }
    gateways
}

fn gateway_conditions(spec: &GatewaySpec, hosts: &[IpAddr], programmed: usize, note: &mut Notes) {
    let asked = spec.addresses.as_ref().map_or(0, Vec::len);
    if hosts.len() < asked.max(1) {
        let message = "not every address of spec.addresses can be bound";
        note.condition("Accepted", !hosts.is_empty(), "UnsupportedAddress", message);
    } else if programmed < spec.listeners.len() {
        let message = format!("{programmed} of {} listeners are valid", spec.listeners.len());
        note.condition("Accepted", programmed > 0, "ListenersNotValid", message);
    } else {
        note.condition("Accepted", true, "Accepted", "");
    }
    let reason = if programmed > 0 { "Programmed" } else { "Invalid" };
    note.condition("Programmed", programmed > 0, reason, "");
}

/// Which listener has which port of which address.
#[derive(Default)]
struct Taken(BTreeMap<(u16, IpAddr), Vec<Claim>>);

struct Claim {
    key: ListenerKey,
    hostname: Option<Hostname>,
    tls: bool,
}

impl Taken {
    /// Claims the port for a listener; what stands against it otherwise, and nothing is claimed.
    fn claim(
        &mut self,
        listener: &ir::Listener,
        port: u16,
        hosts: &[IpAddr],
    ) -> Option<(&'static str, ListenerKey)> {
        let tls = listener.tls.is_some();
        for claim in hosts.iter().filter_map(|ip| self.0.get(&(port, *ip))).flatten() {
            if claim.tls != tls {
                return Some(("ProtocolConflict", claim.key.clone()));
            }
            if claim.hostname == listener.hostname {
                return Some(("HostnameConflict", claim.key.clone()));
            }
        }
        for ip in hosts {
            let claim = Claim { key: listener.key.clone(), hostname: listener.hostname.clone(), tls };
            self.0.entry((port, *ip)).or_default().push(claim);
        }
        None
    }
}

fn info(
    object: &Object,
    at: usize,
    listener: &GatewayListeners,
    translated: &ir::Listener,
    standing: &Standing,
    note: &mut Notes,
) -> ListenerInfo {
    let allowed = listener.allowed_routes.as_ref();
    let namespaces = allowed.and_then(|a| a.namespaces.as_ref());
    let from = match namespaces.and_then(|n| n.from.as_ref()) {
        None | Some(From::Same) => Allowed::Same,
        Some(From::All) => Allowed::All,
        Some(From::Selector) => {
            Allowed::Selector(Box::new(namespaces.and_then(|n| n.selector.clone()).unwrap_or_default()))
        }
    };
    ListenerInfo {
        key: translated.key.clone(),
        port: listener.port as u16,
        hostname: translated.hostname.clone(),
        from,
        kinds: route_kinds(object, at, listener, standing, note),
    }
}

/// The kinds of routes that a listener takes, and whether all its references hold.
fn route_kinds(
    object: &Object,
    at: usize,
    listener: &GatewayListeners,
    standing: &Standing,
    note: &mut Notes,
) -> Vec<&'static str> {
    const SERVED: [&str; 2] = ["HTTPRoute", "GRPCRoute"];
    let asked = listener.allowed_routes.as_ref().and_then(|a| a.kinds.as_ref()).filter(|k| !k.is_empty());
    let mut kinds = Vec::new();
    let mut bad = standing.bad_refs.clone();
    if asked.is_none() {
        kinds.extend(SERVED);
    }
    for (index, k) in asked.into_iter().flatten().enumerate() {
        let group = k.group.as_deref().unwrap_or(GROUP);
        match SERVED.into_iter().find(|s| *s == k.kind && group == GROUP) {
            Some(served) => kinds.push(served),
            None => {
                let message = format!("routes of kind {} of group \"{group}\" are not served", k.kind);
                let field = format!("spec.listeners[{at}].allowedRoutes.kinds[{index}]");
                let error = object.error("InvalidRouteKinds", &field, message.clone());
                note.diagnostics.push(error.hint("HTTPRoute or GRPCRoute"));
                bad.get_or_insert(("InvalidRouteKinds", message));
            }
        }
    }
    match bad {
        None => note.part(&listener.name, "ResolvedRefs", true, "ResolvedRefs", ""),
        Some((reason, message)) => note.part(&listener.name, "ResolvedRefs", false, reason, message),
    }
    kinds
}

fn addresses(object: &Object, spec: &GatewaySpec, note: &mut Notes) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for (at, address) in spec.addresses.iter().flatten().enumerate() {
        let field = format!("spec.addresses[{at}]");
        let kind = address.r#type.as_deref().unwrap_or("IPAddress");
        let value = address.value.as_deref().unwrap_or_default();
        match (kind, value.parse()) {
            ("IPAddress", Ok(ip)) => out.push(ip),
            ("IPAddress", Err(_)) => note.diagnostics.push(
                object
                    .error(
                        "AddressNotUsable",
                        &format!("{field}.value"),
                        format!("\"{value}\" is not an IP address"),
                    )
                    .hint("leave `addresses` out to bind all interfaces"),
            ),
            _ => note.diagnostics.push(
                object
                    .error(
                        "UnsupportedAddress",
                        &format!("{field}.type"),
                        format!("addresses of type {kind} cannot be bound"),
                    )
                    .hint("use type IPAddress, or leave `addresses` out to bind all interfaces"),
            ),
        }
    }
    if spec.addresses.as_ref().is_none_or(Vec::is_empty) {
        out.push(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    }
    out
}

fn one(
    object: &Object,
    spec: &GatewaySpec,
    at: usize,
    hosts: &[IpAddr],
    objects: &Objects,
    note: &mut Notes,
) -> Option<(ir::Listener, Standing)> {
    let listener = spec.listeners.get(at)?;
    let field = |rest: &str| format!("spec.listeners[{at}].{rest}");
    let https = match listener.protocol.as_str() {
        "HTTP" => false,
        "HTTPS" => true,
        other => {
            let message = format!("protocol {other} is not served yet");
            note.part(&listener.name, "Accepted", false, "UnsupportedProtocol", message.clone());
            note.part(&listener.name, "Programmed", false, "Invalid", message.clone());
            let error = object.error("UnsupportedProtocol", &field("protocol"), message);
            note.diagnostics.push(error.hint("HTTP or HTTPS"));
            return None;
        }
    };
    let hostname = listener.hostname.as_deref().filter(|h| !h.is_empty()).map(hostname);
    let clients = client_tls::translate(object, spec, at, objects, note);
    let mut standing = Standing { bad_refs: clients.bad_refs, ..Standing::default() };
    if let Some((reason, why)) = clients.refused {
        standing.not_accepted = Some((reason, why.clone()));
        standing.closed = Some(why);
    }
    let tls = match https.then(|| certificates(object, at, listener, objects, note)) {
        None => None,
        Some(Ok(certificates)) => Some(certificates),
        Some(Err(refused)) => {
            let (not_accepted, bad_refs) = refused.parts();
            standing.not_accepted = standing.not_accepted.or(not_accepted);
            standing.bad_refs = standing.bad_refs.or(bad_refs);
            standing.closed.get_or_insert(refused.message);
            if clients.validation.is_none() {
                standing.note_all(&listener.name, note);
                return None;
            }
            // Its names must not fall to a listener that asks clients for less.
            Some(Vec::new())
        }
    };
    let tls = tls.map(|certificates| {
        Arc::new(ir::ListenerTls {
            certificates,
            min_tls13: min_tls13(listener),
            clients: clients.validation,
        })
    });
    let trusted_hops = match object.annotations.get(TRUSTED_HOPS).map(|v| v.parse()) {
        None => 0,
        Some(Ok(hops)) => hops,
        Some(Err(_)) => {
            note.diagnostics.push(object.error(
                "InvalidValue",
                "metadata.annotations",
                format!("{TRUSTED_HOPS} must be a number of proxies, such as \"1\""),
            ));
            0
        }
    };
    let mut labels: Vec<(Arc<str>, Arc<str>)> =
        object.labels.iter().map(|(k, v)| (Arc::from(k.as_str()), Arc::from(v.as_str()))).collect();
    labels.push((format!("{GROUP}/gateway-name").into(), object.name.clone()));
    let translated = ir::Listener {
        key: ListenerKey {
            namespace: object.namespace.clone(),
            gateway: object.name.clone(),
            name: listener.name.as_str().into(),
        },
        addresses: hosts.iter().map(|ip| SocketAddr::new(*ip, listener.port as u16)).collect(),
        hostname,
        tls,
        client: ir::ClientTrust {
            trusted_hops,
            client_cert: clients.forward,
            client_cert_details: clients.details,
        },
        labels: labels.into(),
        guards: [].into(),
    };
    Some((translated, standing))
}

/// How a listener stands that keeps its port and its names.
#[derive(Default)]
struct Standing {
    not_accepted: Option<Why>,
    bad_refs: Option<Why>,
    /// Why it serves nobody.
    closed: Option<String>,
}

impl Standing {
    fn note(&self, listener: &str, note: &mut Notes) {
        match &self.not_accepted {
            None => note.part(listener, "Accepted", true, "Accepted", ""),
            Some((reason, why)) => note.part(listener, "Accepted", false, reason, why),
        }
        match &self.closed {
            None => note.part(listener, "Programmed", true, "Programmed", ""),
            Some(why) => note.part(listener, "Programmed", false, "Invalid", why),
        }
    }

    fn note_all(&self, listener: &str, note: &mut Notes) {
        self.note(listener, note);
        if let Some((reason, why)) = &self.bad_refs {
            note.part(listener, "ResolvedRefs", false, reason, why);
        }
    }
}

fn min_tls13(listener: &GatewayListeners) -> bool {
    let options = listener.tls.as_ref().and_then(|tls| tls.options.as_ref());
    options.and_then(|options| options.get(MIN_VERSION)).is_some_and(|version| version.trim() == "1.3")
}

/// A host name pattern; the document layer has checked it.
pub(crate) fn hostname(text: &str) -> Hostname {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::Wildcard(suffix.into()),
        None => Hostname::Exact(text.into()),
    }
}

/// Why the certificates of a listener cannot be had.
struct Refused {
    reason: &'static str,
    message: String,
}

impl Refused {
    /// What is not accepted, and what does not resolve.
    fn parts(&self) -> (Option<Why>, Option<Why>) {
        let why = Some((self.reason, self.message.clone()));
        if self.reason == "UnsupportedProtocol" { (why, None) } else { (None, why) }
    }
}

fn certificates(
    object: &Object,
    at: usize,
    listener: &GatewayListeners,
    objects: &Objects,
    note: &mut Notes,
) -> Result<Vec<Arc<ir::Certificate>>, Refused> {
    let field = |rest: &str| format!("spec.listeners[{at}].tls{rest}");
    let mut refuse = |reason: &'static str, place: String, message: String, hint: &str| {
        note.diagnostics.push(object.error(reason, &place, message.clone()).hint(hint));
        Err(Refused { reason, message })
    };
    let config = listener.tls.as_ref();
    if config.is_some_and(|t| t.mode == Some(GatewayListenersTlsMode::Passthrough)) {
        return refuse(
            "UnsupportedProtocol",
            field(".mode"),
            "Passthrough is not served yet".into(),
            "use mode Terminate",
        );
    }
    let refs = config.and_then(|t| t.certificate_refs.as_ref()).filter(|r| !r.is_empty());
    let Some(refs) = refs else {
        return refuse(
            "InvalidCertificateRef",
            field(""),
            "an HTTPS listener needs certificateRefs".into(),
            "name a Secret of type kubernetes.io/tls",
        );
    };
    let mut certificates = Vec::new();
    for (index, reference) in refs.iter().enumerate() {
        let place = field(&format!(".certificateRefs[{index}]"));
        let namespace = reference.namespace.as_deref().unwrap_or(&object.namespace);
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        if (group, kind) != ("", "Secret") {
            return refuse(
                "InvalidCertificateRef",
                place,
                format!("a certificate cannot come from a {kind} of group \"{group}\""),
                "name a Secret",
            );
        }
        let wanted = Reference {
            from_group: GROUP,
            from_kind: "Gateway",
            from_namespace: &object.namespace,
            group: "",
            kind: "Secret",
            namespace,
            name: &reference.name,
        };
        if !granted(objects, &wanted) {
            return refuse(
                "RefNotPermitted",
                place,
                format!("Secret {namespace}/{} is in another namespace", reference.name),
                &wanted.hint(),
            );
        }
        let Some(secret) = objects.get(Kind::Secret, namespace, &reference.name) else {
            let names = objects.names(Kind::Secret, namespace);
            let hint = did_you_mean_hint(&reference.name, names.iter().map(String::as_str))
                .unwrap_or_else(|| "is its file among those that are read?".to_owned());
            let message = format!("there is no Secret {namespace}/{}", reference.name);
            return refuse("InvalidCertificateRef", format!("{place}.name"), message, &hint);
        };
        match certificate(secret) {
            Ok(certificate) => certificates.push(Arc::new(certificate)),
            Err(why) => {
                let message = format!("Secret {namespace}/{} {why}", reference.name);
                return refuse(
                    "InvalidCertificateRef",
                    place,
                    message,
                    "it should be of type kubernetes.io/tls",
                );
            }
        }
    }
    Ok(certificates)
}

/// Only what can be told without parsing; the rest is found where TLS is set up.
fn certificate(object: &Object) -> Result<ir::Certificate, String> {
    let Spec::Secret(secret) = &object.spec else { return Err("is none".to_owned()) };
    let part = |name: &str, marker: &str| {
        let bytes = secret.data.as_ref().and_then(|d| d.get(name)).map(|b| b.0.as_slice());
        let bytes = bytes.filter(|b| !b.is_empty()).ok_or_else(|| format!("has no {name}"))?;
        match memchr::memmem::find(bytes, marker.as_bytes()) {
            Some(_) => Ok(bytes.into()),
            None => Err(format!("has a {name} without PEM")),
        }
    };
    Ok(ir::Certificate {
        origin: format!("Secret {}/{}", object.namespace, object.name).into(),
        chain_pem: part("tls.crt", "-----BEGIN CERTIFICATE-----")?,
        key_pem: part("tls.key", "PRIVATE KEY-----")?,
    })
}
