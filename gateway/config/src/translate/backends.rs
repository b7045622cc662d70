//! References from routes to what answers: which pool is meant, and whether the reference is allowed.

use fieldgate_core::ir::{BackendTarget, ObjectKey, Pool, PoolKey};
use imbl::OrdMap;
use std::sync::Arc;

use super::Objects;
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
    objects: &Objects,
    pools: &OrdMap<PoolKey, Arc<Pool>>,
    r: &BackendRef<'_>,
    grpc: bool,
) -> Result<PoolKey, Unresolved> {
    let group = r.group.unwrap_or("");
    let kind = r.kind.unwrap_or("Service");
    let namespace = r.namespace.unwrap_or(&route.namespace);
    let wanted = Reference {
        from_group: "gateway.networking.k8s.io",
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
    let port = match (kind, r.port) {
        ("Pool", _) => 0,
        (_, Some(port)) => port as u16,
        (_, None) => {
            return Err(Unresolved {
                reason: "InvalidValue",
                field: "port",
                message: format!("a {kind} needs a port"),
                hint: None,
            });
        }
    };
    let kind: &'static str = match kind {
        "Pool" => "Pool",
        "Hostname" => "Hostname",
        _ => "Service",
    };
    let find = |kind: &'static str| {
        let object = ObjectKey { kind, namespace: namespace.into(), name: r.name.into() };
        pools.get_key_value(&PoolKey { object, port }).map(|(k, _)| k.clone())
    };
    // A gRPC route may use a pool's twin that speaks HTTP/2 (see `pools`).
    let twin: Option<&'static str> = match (grpc, kind) {
        (true, "Pool") => Some("Pool (gRPC)"),
        (true, "Service") => Some("Service (gRPC)"),
        (true, "Hostname") => Some("Hostname (gRPC)"),
        _ => None,
    };
    if let Some(key) = twin.and_then(find).or_else(|| find(kind)) {
        return Ok(key);
    }
    // Hosts of ServiceEntries are visible everywhere unless they say otherwise.
    if kind == "Hostname"
        && let Some((key, _)) = pools
            .iter()
            .find(|(k, _)| k.object.kind == "Hostname" && *k.object.name == *r.name && k.port == port)
    {
        return Ok(key.clone());
    }
    Err(not_found(objects, pools, kind, namespace, r.name, port))
}

fn not_found(
    objects: &Objects,
    pools: &OrdMap<PoolKey, Arc<Pool>>,
    kind: &'static str,
    namespace: &str,
    name: &str,
    port: u16,
) -> Unresolved {
    let ports: Vec<String> = pools
        .keys()
        .filter(|k| k.object.kind == kind && *k.object.namespace == *namespace && *k.object.name == *name)
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
    let names = match kind {
        "Pool" => objects.names(Kind::Pool, namespace),
        "Service" => objects.names(Kind::Service, namespace),
        _ => pools.keys().filter(|k| k.object.kind == kind).map(|k| k.object.name.to_string()).collect(),
    };
    Unresolved {
        reason: "BackendNotFound",
        field: "name",
        message: format!("there is no {kind} {namespace}/{name}"),
        hint: did_you_mean_hint(name, names.iter().map(String::as_str)),
    }
}
