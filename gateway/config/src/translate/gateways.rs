//! Gateways to listeners.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use fieldgate_core::ir::{self, Hostname, ListenerKey, ObjectKey};
use gateway_api::experimental::gateways::{
    GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From,
    GatewayListenersAllowedRoutesNamespacesSelector as Selector, GatewayListenersTlsMode, GatewaySpec,
};
use imbl::OrdMap;

use super::backends::{Reference, granted};
use super::{Notes, Objects};
use crate::document::Object;
use crate::kinds::{Kind, Spec};

/// The class that needs not be written.
const CLASS: &str = "fieldgate";
/// How many proxies in front of the gateway are to be believed.
const TRUSTED_HOPS: &str = "fieldgate.dev/trusted-hops";
const GROUP: &str = "gateway.networking.k8s.io";

/// All listeners, with what routes need to know to attach.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    pub listeners: BTreeMap<ListenerKey, ir::Listener>,
    by_gateway: BTreeMap<(Arc<str>, Arc<str>), Vec<ListenerInfo>>,
}

/// A listener as a route sees it.
#[derive(Debug)]
pub(crate) struct ListenerInfo {
    pub key: ListenerKey,
    pub port: u16,
    pub hostname: Option<Hostname>,
    from: Allowed,
    kinds: Vec<String>,
}

#[derive(Debug)]
enum Allowed {
    Same,
    All,
    Selector(Box<Selector>),
}

impl Gateways {
    pub fn of(&self, namespace: &str, name: &str) -> Option<&Vec<ListenerInfo>> {
        self.by_gateway.get(&(Arc::from(namespace), Arc::from(name)))
    }

    pub fn names(&self, namespace: &str) -> Vec<String> {
        self.by_gateway.keys().filter(|(ns, _)| **ns == *namespace).map(|(_, n)| n.to_string()).collect()
    }

    /// Says on every listener how many routes are attached.
    pub fn count_routes(
        &self,
        routes: &OrdMap<ObjectKey, Arc<ir::Route>>,
        notes: &mut BTreeMap<ObjectKey, Notes>,
    ) {
        let mut counts: BTreeMap<&ListenerKey, usize> = BTreeMap::new();
        for attachment in routes.values().flat_map(|r| &r.attachments) {
            *counts.entry(&attachment.listener).or_default() += 1;
        }
        for key in self.listeners.keys() {
            let gateway =
                ObjectKey { kind: "Gateway", namespace: key.namespace.clone(), name: key.gateway.clone() };
            let attached = counts.get(key).copied().unwrap_or_default();
            let of_listener = notes.entry(gateway).or_default().conditions.iter_mut();
            for condition in of_listener.filter(|c| c.part == *key.name && c.kind == "Programmed") {
                condition.message = format!("{attached} routes attached");
            }
        }
    }
}

impl ListenerInfo {
    /// Whether a route of this kind and namespace may attach.
    pub fn allows(&self, objects: &Objects, namespace: &str, kind: &str) -> bool {
        let by_kind = self.kinds.is_empty() || self.kinds.iter().any(|k| k == kind);
        let by_namespace = match &self.from {
            Allowed::All => true,
            Allowed::Same => *self.key.namespace == *namespace,
            Allowed::Selector(selector) => objects
                .of(Kind::Namespace)
                .find(|o| *o.name == *namespace)
                .is_some_and(|o| selects(selector, &o.labels)),
        };
        by_kind && by_namespace
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

pub(crate) fn translate(objects: &Objects, notes: &mut BTreeMap<ObjectKey, Notes>) -> Gateways {
    let mut gateways = Gateways::default();
    let mut ports: BTreeMap<(u16, IpAddr), Vec<(ListenerKey, Option<Hostname>, bool)>> = BTreeMap::new();
    // Older first, so that a conflict is the newcomer's (Gateway API).
    let mut all: Vec<&Arc<Object>> = objects.of(Kind::Gateway).collect();
    all.sort_by_key(|o| (o.creation_timestamp.is_none(), o.creation_timestamp, o.key()));
    for object in all {
        let Spec::Gateway(spec) = &object.spec else { continue };
        let note = notes.entry(object.key()).or_default();
        if spec.gateway_class_name != CLASS {
            note.diagnostics.push(
                object
                    .warning(
                        "OtherGatewayClass",
                        "spec.gatewayClassName",
                        format!(
                            "this Gateway belongs to class \"{}\" and is left alone",
                            spec.gateway_class_name
                        ),
                    )
                    .hint("Fieldgate serves Gateways of class \"fieldgate\""),
            );
            continue;
        }
        let hosts = addresses(object, spec, note);
        let mut programmed = 0;
        for (at, listener) in spec.listeners.iter().enumerate() {
            let Some(translated) = one(object, at, listener, &hosts, objects, note) else { continue };
            let tls = translated.tls.is_some();
            let conflict = hosts.iter().find_map(|ip| {
                let taken = ports.get(&(listener.port as u16, *ip))?;
                taken.iter().find_map(|(key, hostname, other_tls)| {
                    if *other_tls != tls {
                        Some(("ProtocolConflict", key.clone()))
                    } else if *hostname == translated.hostname {
                        Some(("HostnameConflict", key.clone()))
                    } else {
                        None
                    }
                })
            });
            if let Some((reason, other)) = conflict {
                let message = format!("port {} is taken by listener {other}", listener.port);
                note.part(&listener.name, "Conflicted", true, reason, message.clone());
                note.part(&listener.name, "Programmed", false, "Invalid", message.clone());
                note.diagnostics.push(
                    object
                        .error(reason, &format!("spec.listeners[{at}]"), message)
                        .hint("listeners on one port need the same protocol and different host names"),
                );
                continue;
            }
            for ip in &hosts {
                ports.entry((listener.port as u16, *ip)).or_default().push((
                    translated.key.clone(),
                    translated.hostname.clone(),
                    tls,
                ));
            }
            note.part(&listener.name, "Accepted", true, "Accepted", "");
            note.part(&listener.name, "Programmed", true, "Programmed", "");
            programmed += 1;
            let info = info(listener, &translated);
            gateways
                .by_gateway
                .entry((object.namespace.clone(), object.name.clone()))
                .or_default()
                .push(info);
            gateways.listeners.insert(translated.key.clone(), translated);
        }
        let all_well = programmed == spec.listeners.len();
        gateways.by_gateway.entry((object.namespace.clone(), object.name.clone())).or_default();
        note.condition(
            "Accepted",
            all_well || programmed > 0,
            if all_well { "Accepted" } else { "ListenersNotValid" },
            "",
        );
        note.condition(
            "Programmed",
            programmed > 0,
            if programmed > 0 { "Programmed" } else { "Invalid" },
            "",
        );
    }
    gateways
}

fn info(listener: &GatewayListeners, translated: &ir::Listener) -> ListenerInfo {
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
        kinds: allowed
            .and_then(|a| a.kinds.as_ref())
            .map(|k| k.iter().map(|k| k.kind.clone()).collect())
            .unwrap_or_default(),
    }
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
    at: usize,
    listener: &GatewayListeners,
    hosts: &[IpAddr],
    objects: &Objects,
    note: &mut Notes,
) -> Option<ir::Listener> {
    let field = |rest: &str| format!("spec.listeners[{at}].{rest}");
    let https = match listener.protocol.as_str() {
        "HTTP" => false,
        "HTTPS" => true,
        other => {
            let message = format!("protocol {other} is not served yet");
            note.part(&listener.name, "Accepted", false, "UnsupportedProtocol", message.clone());
            let error = object.error("UnsupportedProtocol", &field("protocol"), message);
            note.diagnostics.push(error.hint("HTTP or HTTPS"));
            return None;
        }
    };
    let hostname = match listener.hostname.as_deref().filter(|h| !h.is_empty()) {
        None => None,
        Some(text) => Some(hostname(text)),
    };
    let tls = if https { Some(Arc::new(tls(object, at, listener, objects, note)?)) } else { None };
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
    Some(ir::Listener {
        key: ListenerKey {
            namespace: object.namespace.clone(),
            gateway: object.name.clone(),
            name: listener.name.as_str().into(),
        },
        addresses: hosts.iter().map(|ip| SocketAddr::new(*ip, listener.port as u16)).collect(),
        hostname,
        tls,
        client: ir::ClientTrust { trusted_hops },
        labels: labels.into(),
    })
}

/// A host name pattern; the document layer has checked it.
pub(crate) fn hostname(text: &str) -> Hostname {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::Wildcard(suffix.into()),
        None => Hostname::Exact(text.into()),
    }
}

fn tls(
    object: &Object,
    at: usize,
    listener: &GatewayListeners,
    objects: &Objects,
    note: &mut Notes,
) -> Option<ir::ListenerTls> {
    let field = |rest: &str| format!("spec.listeners[{at}].tls{rest}");
    let mut refuse = |reason: &'static str, place: String, message: String, hint: &str| {
        note.part(&listener.name, "ResolvedRefs", false, reason, message.clone());
        note.part(&listener.name, "Programmed", false, "Invalid", message.clone());
        note.diagnostics.push(object.error(reason, &place, message).hint(hint));
    };
    let config = listener.tls.as_ref();
    if config.is_some_and(|t| t.mode == Some(GatewayListenersTlsMode::Passthrough)) {
        refuse(
            "UnsupportedProtocol",
            field(".mode"),
            "Passthrough is not served yet".into(),
            "use mode Terminate",
        );
        return None;
    }
    let refs = config.and_then(|t| t.certificate_refs.as_ref()).filter(|r| !r.is_empty());
    let Some(refs) = refs else {
        refuse(
            "InvalidCertificateRef",
            field(""),
            "an HTTPS listener needs certificateRefs".into(),
            "name a Secret of type kubernetes.io/tls",
        );
        return None;
    };
    let mut certificates = Vec::new();
    for (index, reference) in refs.iter().enumerate() {
        let place = field(&format!(".certificateRefs[{index}]"));
        let namespace = reference.namespace.as_deref().unwrap_or(&object.namespace);
        let group = reference.group.as_deref().unwrap_or("");
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        if (group, kind) != ("", "Secret") {
            refuse(
                "InvalidCertificateRef",
                place,
                format!("a certificate cannot come from a {kind} of group \"{group}\""),
                "name a Secret",
            );
            return None;
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
            refuse(
                "RefNotPermitted",
                place,
                format!("Secret {namespace}/{} is in another namespace", reference.name),
                &wanted.hint(),
            );
            return None;
        }
        match objects.get(Kind::Secret, namespace, &reference.name).map(|o| certificate(o)) {
            Some(Some(certificate)) => certificates.push(Arc::new(certificate)),
            Some(None) => {
                refuse(
                    "InvalidCertificateRef",
                    place,
                    format!("Secret {namespace}/{} lacks tls.crt or tls.key", reference.name),
                    "its type should be kubernetes.io/tls",
                );
                return None;
            }
            None => {
                refuse(
                    "InvalidCertificateRef",
                    place,
                    format!("there is no Secret {namespace}/{}", reference.name),
                    "is it in the directory?",
                );
                return None;
            }
        }
    }
    let min_tls13 = config
        .and_then(|t| t.options.as_ref())
        .and_then(|o| o.get("fieldgate.dev/min-tls-version"))
        .is_some_and(|v| v == "1.3");
    note.part(&listener.name, "ResolvedRefs", true, "ResolvedRefs", "");
    Some(ir::ListenerTls { certificates, min_tls13 })
}

fn certificate(object: &Object) -> Option<ir::Certificate> {
    let Spec::Secret(secret) = &object.spec else { return None };
    let data = secret.data.as_ref()?;
    Some(ir::Certificate {
        origin: format!("Secret {}/{}", object.namespace, object.name).into(),
        chain_pem: data.get("tls.crt")?.0.as_slice().into(),
        key_pem: data.get("tls.key")?.0.as_slice().into(),
    })
}
