//! Configuration directories and the objects in them, as a user would write them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::certificates::Certified;

/// A directory of objects. Each write replaces a file in one step, as a careful tool does.
pub struct ConfigDir {
    path: PathBuf,
}

impl ConfigDir {
    /// A new directory below `parent`.
    pub fn new(parent: &Path) -> Result<Self, String> {
        let path = parent.join("config");
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `NAME.yaml`.
    pub fn write(&self, name: &str, text: &str) -> Result<(), String> {
        let target = self.path.join(format!("{name}.yaml"));
        let temporary = self.path.join(format!(".{name}.new"));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &target))
            .map_err(|error| format!("{}: {error}", target.display()))
    }

    /// Removes `NAME.yaml`.
    pub fn remove(&self, name: &str) -> Result<(), String> {
        let target = self.path.join(format!("{name}.yaml"));
        std::fs::remove_file(&target).map_err(|error| format!("{}: {error}", target.display()))
    }
}

/// A listener of a Gateway.
pub struct Listener<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its port.
    pub port: u16,
    /// The Secret of its certificate; it is an HTTP listener without one.
    pub secret: Option<&'a str>,
}

impl<'a> Listener<'a> {
    /// A plaintext listener.
    pub fn http(name: &'a str, port: u16) -> Self {
        Self { name, port, secret: None }
    }

    /// A TLS listener.
    pub fn https(name: &'a str, port: u16, secret: &'a str) -> Self {
        Self { name, port, secret: Some(secret) }
    }
}

/// A Gateway on loopback.
pub fn gateway(name: &str, listeners: &[Listener<'_>]) -> String {
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: fieldgate
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners:
"
    );
    for Listener { name, port, secret } in listeners {
        let protocol = if secret.is_some() { "HTTPS" } else { "HTTP" };
        let _ = writeln!(text, "  - name: {name}\n    port: {port}\n    protocol: {protocol}");
        if let Some(secret) = secret {
            let _ = writeln!(
                text,
                "    tls: {{mode: Terminate, certificateRefs: [{{kind: Secret, name: {secret}}}]}}"
            );
        }
    }
    text
}

/// A TLS Secret.
pub fn secret(name: &str, certified: &Certified) -> String {
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
type: kubernetes.io/tls
data:
  tls.crt: {}
  tls.key: {}
",
        STANDARD.encode(&certified.certificate),
        STANDARD.encode(&certified.key)
    )
}

/// A Pool of these endpoints; `protocol` is `http1` or `http2`.
pub fn pool(name: &str, endpoints: &[SocketAddr], protocol: &str) -> String {
    let mut text = format!(
        "apiVersion: fieldgate.dev/v1alpha1
kind: Pool
metadata: {{name: {name}}}
spec:
  protocol: {protocol}
  endpoints:
"
    );
    for endpoint in endpoints {
        let _ = writeln!(text, "  - {{address: {}, port: {}}}", endpoint.ip(), endpoint.port());
    }
    text
}

/// A Service with the EndpointSlice behind it; all endpoints share one port.
pub fn service(name: &str, endpoint: SocketAddr) -> String {
    let (address, port) = (endpoint.ip(), endpoint.port());
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{name: http, port: 80, targetPort: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: http, port: {port}, protocol: TCP}}]
endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]
"
    )
}

/// An HTTPRoute on Gateway `edge` that sends everything to these backends (see [`backend_refs`]) by weight.
pub fn route(name: &str, backends: &[(&str, u32)]) -> String {
    route_with_rule(name, backends, "")
}

/// As [`route`], for one host name.
pub fn route_for_host(name: &str, host: &str, backends: &[(&str, u32)]) -> String {
    route(name, backends).replace("  rules:", &format!("  hostnames: [{host}]\n  rules:"))
}

/// As [`route`]; `extra` holds more lines of its one rule, indented by four.
pub fn route_with_rule(name: &str, backends: &[(&str, u32)], extra: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs:
{}{extra}",
        backend_refs(backends)
    )
}

/// The items of a `backendRefs` list, indented by four: Pools, and as `service/NAME` Services on port 80.
pub fn backend_refs(backends: &[(&str, u32)]) -> String {
    backends.iter().fold(String::new(), |mut text, (name, weight)| {
        let _ = match name.strip_prefix("service/") {
            Some(name) => writeln!(text, "    - {{kind: Service, name: {name}, port: 80, weight: {weight}}}"),
            None => {
                writeln!(text, "    - {{group: fieldgate.dev, kind: Pool, name: {name}, weight: {weight}}}")
            }
        };
        text
    })
}

/// A TrafficPolicy on a route; `spec` holds the lines of its spec below `targetRef`, indented by two.
pub fn traffic_policy(name: &str, route: &str, spec: &str) -> String {
    policy("TrafficPolicy", name, route, spec)
}

/// A SplitPolicy on a route; `spec` as with [`traffic_policy`].
pub fn split_policy(name: &str, route: &str, spec: &str) -> String {
    policy("SplitPolicy", name, route, spec)
}

fn policy(kind: &str, name: &str, route: &str, spec: &str) -> String {
    format!(
        "apiVersion: fieldgate.dev/v1alpha1
kind: {kind}
metadata: {{name: {name}}}
spec:
  targetRef: {{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {route}}}
{spec}"
    )
}
