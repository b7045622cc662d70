//! Upgrades by HTTP/1.1 and HTTP/2, to upstreams of either: what flows, how it ends, and what is on record of it.

use fieldgate_loadtests::rig::{config, ports};

use crate::clients::python;
use crate::context::{Context, Outcome};
use crate::edge::{Edge, HOST};

/// Python's part runs these itself, for no good server does what they do.
const ODD: [(&str, &str); 3] = [("odd-h1", "http1"), ("odd-h2", "http2"), ("silent", "http2")];

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _h1 = stage.pools(&["h1"])?;
    let h2 = stage.backend("h2")?;
    stage.config.write("pool-h2", &config::pool("h2", &[h2.address], "http2"))?;
    let odd = ODD.map(|_| ports::free());
    for ((name, protocol), address) in ODD.iter().zip(&odd) {
        stage.config.write(&format!("pool-{name}"), &config::pool(name, &[*address], protocol))?;
    }
    stage.config.write("route", &routes())?;
    stage.config.write("policy", POLICY)?;
    let log = stage.path().join("access.log").display().to_string();
    let mut options = context.options();
    options.flags = ["--access-log", &log, "--access-log-format", "json", "--drain-time", "3s"]
        .map(str::to_owned)
        .to_vec();
    let gateway = stage.gateway(&options)?;
    python(
        "tunnels.py",
        &[
            &format!("--plain={}", edge.plain),
            &format!("--tls={}", edge.tls),
            &format!("--ca={}", edge.authority.file.display()),
            &format!("--odd-h1={}", odd[0]),
            &format!("--odd-h2={}", odd[1]),
            &format!("--silent={}", odd[2]),
            &format!("--access-log={log}"),
            &format!("--pid={}", gateway.process.pid()),
        ],
    )
    .map_err(|error| format!("{error}\nthe gateway's log:\n{}", gateway.process.log_tail()))
}

/// By the field `x-to`, so that every path can go everywhere.
fn routes() -> String {
    let names = ["h1", "h2"].into_iter().chain(ODD.map(|(name, _)| name));
    let rules = names.map(|name| {
        format!(
            "  - matches: [{{headers: [{{name: x-to, value: {name}}}]}}]
    backendRefs: [{{group: fieldgate.dev, kind: Pool, name: {name}}}]
"
        )
    });
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [{HOST}]
  rules:
{}",
        rules.collect::<String>()
    )
}

/// Policies see an upgrade as the GET that it is in HTTP/1.1.
const POLICY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}]
  action: DENY
  rules: [{to: [{operation: {methods: [GET], paths: [/denied]}}]}]
";
