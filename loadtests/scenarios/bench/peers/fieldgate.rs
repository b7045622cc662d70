//! The gateway itself.

use std::net::SocketAddr;

use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{ConfigDir, Gateway, GatewayOptions};
use serde_json::json;

use super::{ROUTES, Subject, addresses};
use crate::bench::setup::{Denial, Identities, Setup, Site, Split, Upstream, denials, grants};

/// Starts it, for what the site asks for.
pub fn start(options: &GatewayOptions, site: &Site<'_>) -> Result<Subject, String> {
    let to = addresses();
    let Setup { upstream, split, access_log, identities, .. } = site.setup;
    let config = ConfigDir::new(&site.directory)?;
    let listeners =
        [Listener::http("web", to.plain.port()), Listener::https("secure", to.tls.port(), "certificate")];
    let mut gateway = config::gateway("edge", &listeners);
    if identities != Identities::None {
        gateway.push_str(ASKS_CLIENTS);
        judging(&config, site)?;
    }
    config.write("gateway", &gateway)?;
    config.write("secret", &config::secret("certificate", &site.certificate.certified))?;
    let protocol = if upstream == Upstream::Http1 { "http1" } else { "http2" };
    let pool = |name: &str, backend: SocketAddr| config::pool(name, &[backend], protocol);
    config.write("pool", &pool("bench", site.backend))?;
    config.write("pool-new", &pool("bench-new", site.backend))?;
    let sides: &[_] =
        if split == Split::None { &[("bench", 1)] } else { &[("bench", 90), ("bench-new", 10)] };
    config.write("route", &config::route("bench", sides))?;
    if split == Split::Sticky {
        let spec = "  sticky: {cookie: {name: user}}\n";
        config.write("split", &config::split_policy("bench", "bench", spec))?;
    }
    for route in 0..ROUTES {
        let matches = format!("    matches: [{{path: {{type: PathPrefix, value: /r{route}}}}}]\n");
        let name = format!("bench-{route}");
        config.write(&name, &config::route_with_rule(&name, &[("bench", 1)], &matches))?;
    }
    for (number, denial) in denials(site.setup.denials).iter().enumerate() {
        config.write(&format!("policy-{number}"), &policy(number, denial))?;
    }
    let mut options = options.clone();
    if access_log {
        options.flags.extend(["--access-log".to_owned(), site.file("access.log")]);
    }
    let Gateway { process, .. } = Gateway::start(&options, &config, &site.directory)?;
    Ok(Subject { name: "fieldgate".to_owned(), process, to })
}

/// Clients have to show a certificate by the authorities in the ConfigMap `clients`.
const ASKS_CLIENTS: &str = "  tls: {frontend: {default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: clients}]}}}}\n";

/// What clients are judged by.
fn judging(config: &ConfigDir, site: &Site<'_>) -> Result<(), String> {
    let file = &site.certificate.authority.file;
    let authorities =
        std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let clients = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "clients"}, "data": {"ca.crt": authorities},
    });
    config.write("clients", &clients.to_string())?;
    let issuer = &site.certificate.issuer;
    let tokens = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication", "metadata": {"name": "tokens"},
        "spec": {"jwtRules": [
            {"issuer": issuer.name(), "jwks": issuer.jwks(), "forwardOriginalToken": true},
        ]},
    });
    config.write("tokens", &tokens.to_string())?;
    for (number, grant) in grants().iter().enumerate() {
        let rule = json!({
            "from": [{"source": {"principals": [grant.principal]}}],
            "to": [{"operation": {"paths": [format!("{}*", grant.path)]}}],
            "when": [{"key": "request.auth.claims[groups]", "values": [grant.group]}],
        });
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": format!("grant-{number}")},
            "spec": {"action": if grant.denies { "DENY" } else { "ALLOW" }, "rules": [rule]},
        });
        config.write(&format!("grant-{number}"), &policy.to_string())?;
    }
    Ok(())
}

fn policy(number: usize, denial: &Denial) -> String {
    let rule = match denial {
        Denial::Path(path) => format!("{{to: [{{operation: {{paths: [{path}, {path}/*]}}}}]}}"),
        Denial::Method(method, path) => {
            format!("{{to: [{{operation: {{methods: [{method}], paths: [{path}/*]}}}}]}}")
        }
        Denial::Source(network) => format!("{{from: [{{source: {{ipBlocks: [{network}]}}}}]}}"),
    };
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: deny-{number}}}
spec:
  action: DENY
  rules: [{rule}]
"
    )
}
