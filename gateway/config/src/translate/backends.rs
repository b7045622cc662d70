//! References from routes to what answers: which pool is meant, and whether the reference is allowed.

use std::sync::Arc;

use fieldgate_core::ir::{BackendTarget, ObjectKey, PoolKey};

use super::Objects;
use super::pools::twin_kind;
use super::routes::Surroundings;
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::{Kind, Spec};

/// A reference that may cross namespaces.
pub(crate) struct Reference<'a> {
    pub from_group: &'a str,
    pub from_kind: &'a str,
    pub from_namespace: &'a str,
    pub group: &'a str,
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
}

impl Reference<'_> {
    /// What would allow it.
    pub fn hint(&self) -> String {
        format!(
            "add a ReferenceGrant in namespace {} from {} in namespace {} to {}",
            self.namespace, self.from_kind, self.from_namespace, self.kind
        )
    }
}

/// Whether a reference stays in its namespace or is granted by the namespace that it goes to.
pub(crate) fn granted(objects: &Objects, r: &Reference<'_>) -> bool {
    r.from_namespace == r.namespace
        || objects.of(Kind::ReferenceGrant).filter(|o| *o.namespace == *r.namespace).any(|o| {
            let Spec::ReferenceGrant(grant) = &o.spec else { return false };
            grant
                .from
                .iter()
                .any(|f| f.group == r.from_group && f.kind == r.from_kind && f.namespace == r.from_namespace)
                && grant.to.iter().any(|t| {
                    t.group == r.group && t.kind == r.kind && t.name.as_ref().is_none_or(|n| n == r.name)
                })
        })
}

/// A backend reference as all kinds of routes write it.
pub(crate) struct BackendRef<'a> {
    pub group: Option<&'a str>,
    pub kind: Option<&'a str>,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
    pub port: Option<i32>,
}

/// Why a reference cannot be used: Gateway API's reason, the field in the reference, the message and a hint.
pub(crate) struct Unresolved {
    pub reason: &'static str,
    pub field: &'static str,
    pub message: String,
    pub hint: Option<String>,
}

impl Unresolved {
    pub fn target(&self) -> BackendTarget {
        BackendTarget::Invalid(self.message.as_str().into())
    }
}

/// The pool that a reference means.
pub(crate) fn resolve(
    route: &Object,
    around: &Surroundings<'_>,
    r: &BackendRef<'_>,
    grpc: bool,
) -> Result<Arc<PoolKey>, Unresolved> {
    let Surroundings { objects, pools, pool_keys, hosts, .. } = around;
    let group = r.group.unwrap_or("");
    let kind = r.kind.unwrap_or("Service");
    let namespace = r.namespace.unwrap_or(&route.namespace);
    let wanted = Reference {
        from_group: route.kind.group(),
        from_kind: route.kind.as_str(),
        from_namespace: &route.namespace,
        group,
        kind,
        namespace,
        name: r.name,
    };
    if !matches!(
        (group, kind),
        ("", "Service") | ("fieldgate.dev", "Pool") | ("networking.istio.io", "Hostname")
    ) {
        return Err(Unresolved {
            reason: "InvalidKind",
            field: "kind",
            message: format!("a {kind} of group \"{group}\" cannot be a backend"),
            hint: Some("Service, Pool (group fieldgate.dev) or Hostname (group networking.istio.io)".into()),
        });
    }
    if !granted(objects, &wanted) {
        return Err(Unresolved {
            reason: "RefNotPermitted",
            field: "namespace",
            message: format!("{kind} {namespace}/{} is in another namespace", r.name),
            hint: Some(wanted.hint()),
        });
    }
    let Some(wanted) = pool_key(r, &route.namespace) else {
        return Err(Unresolved {
            reason: "InvalidValue",
            field: "port",
            message: format!("a {kind} needs a port"),
            hint: None,
        });
    };
    // Hosts of ServiceEntries are visible everywhere unless they say otherwise (Istio `exportTo`).
    let wanted = match wanted.object.kind {
        "Hostname" if r.namespace.is_none() => {
            hosts.find(&wanted.object.name, wanted.port, namespace).unwrap_or(wanted)
        }
        _ => wanted,
    };
    let twin = PoolKey { object: twin_of(&wanted.object), port: wanted.port };
    match pools.get(&twin).filter(|_| grpc).or_else(|| pools.get(&wanted)) {
        // One for all who name it.
        Some(pool) => Ok(pool_keys.get(&pool.key).cloned().unwrap_or_else(|| Arc::new(pool.key.clone()))),
        None => Err(not_found(around, &wanted)),
    }
}

/// The key that a reference of a known kind means, if it states all that is needed.
pub(crate) fn pool_key(r: &BackendRef<'_>, own_namespace: &str) -> Option<PoolKey> {
    let kind = match r.kind.unwrap_or("Service") {
        "Pool" => "Pool",
        "Hostname" => "Hostname",
        _ => "Service",
    };
    let port = if kind == "Pool" { 0 } else { u16::try_from(r.port?).ok()? };
    let namespace = r.namespace.unwrap_or(own_namespace).into();
    Some(PoolKey { object: ObjectKey { kind, namespace, name: r.name.into() }, port })
}

fn twin_of(object: &ObjectKey) -> ObjectKey {
    ObjectKey { kind: twin_kind(object.kind), ..object.clone() }
}

fn not_found(around: &Surroundings<'_>, wanted: &PoolKey) -> Unresolved {
    let Surroundings { objects, pools, .. } = around;
    let ObjectKey { kind, namespace, name } = &wanted.object;
    let port = wanted.port;
    let first = PoolKey { object: wanted.object.clone(), port: 0 };
    let ports: Vec<String> = pools
        .range(first..)
        .map(|(k, _)| k)
        .take_while(|k| k.object == wanted.object)
        .map(|k| k.port.to_string())
        .collect();
    if !ports.is_empty() {
        return Unresolved {
            reason: "BackendNotFound",
            field: "port",
            message: format!("{kind} {namespace}/{name} has no port {port}"),
            hint: Some(format!("its ports: {}", ports.join(", "))),
        };
    }
    let names = match *kind {
        "Pool" => objects.names(Kind::Pool, namespace),
        "Service" => objects.names(Kind::Service, namespace),
        _ => pools.keys().filter(|k| k.object.kind == *kind).map(|k| k.object.name.to_string()).collect(),
    };
    let unusable = match *kind {
        "Pool" => objects.get(Kind::Pool, namespace, name).is_some(),
        "Service" => objects.get(Kind::Service, namespace, name).is_some(),
        _ => false,
    };
    let (message, hint) = if unusable {
        (format!("{kind} {namespace}/{name} has nothing that can be reached"), None)
    } else {
        let hint = did_you_mean_hint(name, names.iter().map(String::as_str));
        (format!("there is no {kind} {namespace}/{name}"), hint)
    };
    Unresolved { reason: "BackendNotFound", field: "name", message, hint }
}
