//! Kinds that exist in the clusters people export from, and that are not read here.

/// Whether an object of that group and kind is somebody else's, rather than a slip of the pen.
pub fn is_known_elsewhere(group: &str, kind: &str) -> bool {
    if let Some((_, kinds)) = KINDS.iter().find(|(g, _)| *g == group) {
        return kinds.contains(&kind);
    }
    GROUPS.iter().any(|g| group == *g || group.strip_suffix(g).is_some_and(|rest| rest.ends_with('.')))
        // Kubernetes gives no kind's name away twice; others do (Knative has a Service).
        && !(group.ends_with("k8s.io") && super::Kind::from_name(kind).is_some())
}

/// By group, where this program reads some kinds of the group.
const KINDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Pod",
            "ServiceAccount",
            "Endpoints",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Node",
            "Event",
            "LimitRange",
            "ResourceQuota",
            "ReplicationController",
            "PodTemplate",
            "Binding",
        ],
    ),
    ("gateway.networking.k8s.io", &["TLSRoute", "TCPRoute", "UDPRoute", "BackendLBPolicy", "ListenerSet"]),
    (
        "networking.istio.io",
        &["VirtualService", "Gateway", "Sidecar", "EnvoyFilter", "WorkloadGroup", "ProxyConfig"],
    ),
    ("security.istio.io", &["PeerAuthentication"]),
    ("discovery.k8s.io", &[]),
    ("fieldgate.dev", &["Migration"]),
];

/// Whole groups; a group that ends in one of them, after a dot, counts too.
const GROUPS: &[&str] = &[
    "apps",
    "batch",
    "autoscaling",
    "policy",
    "extensions",
    "rbac.authorization.k8s.io",
    "networking.k8s.io",
    "storage.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "events.k8s.io",
    "certificates.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "metrics.k8s.io",
    "resource.k8s.io",
    "snapshot.storage.k8s.io",
    "gateway.networking.x-k8s.io",
    "inference.networking.k8s.io",
    "inference.networking.x-k8s.io",
    "kustomize.config.k8s.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "install.istio.io",
    "gateway.envoyproxy.io",
    "cert-manager.io",
    "monitoring.coreos.com",
    "argoproj.io",
    "fluxcd.io",
    "toolkit.fluxcd.io",
    "external-secrets.io",
    "externaldns.k8s.io",
    "bitnami.com",
    "keda.sh",
    "knative.dev",
    "crossplane.io",
    "traefik.io",
    "projectcontour.io",
    "cilium.io",
    "projectcalico.org",
    "metallb.io",
    "linkerd.io",
    "getambassador.io",
    "konghq.com",
    "k8s.nginx.org",
    "openshift.io",
    "cluster.x-k8s.io",
    "velero.io",
    "kyverno.io",
];
