//! The gateway itself.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command as Program;

use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::{ConfigDir, ports};

use super::{
    BUDGET, CHECK_SECONDS, CONNECT, Command, EJECTION_SECONDS, FAILURES, GRPC, Job, Limits, Proxy, Purpose,
    REQUEST_SECONDS, RETRIES, SLOW_START_SECONDS, TRY_SECONDS, Targets, write,
};
use crate::context::ensure;
use crate::resilience::farm::Secrets;

/// For what may be processed twice.
const ALWAYS: &str = "connect-failure, refused-stream, reset, gateway-error";
/// For what may not: it was certainly not processed.
const UNSENT: &str = "connect-failure, refused-stream, reset-before-request";

/// Writes its objects. A POST is not tried again once it was sent; a call of gRPC is.
pub fn configure(proxy: &Proxy, job: &Job, directory: &Path, address: SocketAddr) -> Result<Command, String> {
    let config = ConfigDir::new(directory)?;
    config.write("gateway", &config::gateway("edge", &[Listener::http("web", address.port())]))?;
    write_objects(&config, job)?;
    check(proxy, &config)?;
    let program = program(proxy, job, directory)?;
    let (admin, threads) = (ports::free().to_string(), job.threads().to_string());
    let path = config.path().display().to_string();
    let words = ["run", "--config", &path, "--admin", &admin, "--workers", &threads];
    Ok(Command { program, arguments: words.map(str::to_owned).into() })
}

fn write_objects(config: &ConfigDir, job: &Job) -> Result<(), String> {
    let pools = [("shop", "http1"), ("calls", "http2")];
    let pools = pools.map(|(name, protocol)| pool(job, name, protocol) + &protection(job) + &tls(job));
    if let Some(tls) = &job.tls {
        let at = |error| format!("{}: {error}", tls.authority.display());
        let authority = std::fs::read_to_string(&tls.authority).map_err(at)?.replace('\n', "\n    ");
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca}}\ndata:\n  ca.crt: |\n    {authority}\n"
        );
        config.write("ca", &map)?;
    }
    config.write("pools", &pools.join("---\n"))?;
    let is_post = "    - {path: {type: PathPrefix, value: /}, method: POST}\n";
    let is_call = format!("    - {{path: {{type: PathPrefix, value: {GRPC}}}}}\n");
    config.write("posts", &route("posts", "shop", is_post))?;
    config.write("calls", &route("calls", "calls", &is_call))?;
    config.write("shop", &route("shop", "shop", ""))?;
    if job.purpose == Purpose::Availability {
        let calls = format!("{ALWAYS}, cancelled, deadline-exceeded, unavailable");
        let policies = [("shop", ALWAYS, true), ("calls", &calls, true), ("posts", UNSENT, false)];
        let policies = policies.map(|(name, on, again)| policy(name, on, again)).join("---\n");
        config.write("policies", &policies)?;
    }
    Ok(())
}

fn pool(job: &Job, name: &str, protocol: &str) -> String {
    match &job.targets {
        Targets::Addresses(addresses) => config::pool(name, addresses, protocol),
        Targets::Name { name: host, port, .. } => format!(
            "apiVersion: fieldgate.dev/v1alpha1
kind: Pool
metadata: {{name: {name}}}
spec:
  protocol: {protocol}
  dns: {{name: {host}, port: {port}, refresh: 1s}}
"
        ),
    }
}

fn tls(job: &Job) -> String {
    let Some(_) = &job.tls else { return String::new() };
    let name = Secrets::NAME;
    format!("  tls: {{caCertificateRefs: [{{kind: ConfigMap, name: ca}}], sni: {name}}}\n")
}

fn protection(job: &Job) -> String {
    match job.purpose {
        Purpose::Availability => {
            let (percent, min) = BUDGET;
            format!(
                "  connectTimeout: {}ms
  healthCheck: {{interval: {CHECK_SECONDS}s, timeout: {CHECK_SECONDS}s, unhealthyThreshold: 2, http: {{path: /healthz}}}}
  loadBalancing: {{policy: leastRequest, slowStart: {{window: {SLOW_START_SECONDS}s}}}}
  outlierDetection:
    consecutive5xx: {FAILURES}
    consecutiveGatewayFailure: {FAILURES}
    enforcingConsecutiveGatewayFailure: 100
    splitExternalLocalOriginErrors: true
    consecutiveLocalOriginFailure: {FAILURES}
    interval: 1s
    baseEjectionTime: {EJECTION_SECONDS}s
    maxEjectionPercent: 50
    successfulActiveHealthCheckUnejectHost: false
  limits: {{retryBudget: {{percent: {percent}, minRetryConcurrency: {min}}}}}
",
                CONNECT.as_millis()
            )
        }
        Purpose::Capacity(Limits { concurrency, queue, wait }) => format!(
            "  maxConnectionsPerEndpoint: {concurrency}
  limits: {{maxPendingRequests: {queue}, queueTimeout: {}ms}}
",
            wait.as_millis()
        ),
        Purpose::Adaptive => "  limits: {adaptiveConcurrency: {minRttInterval: 30s}}\n".to_owned(),
        Purpose::Throughput => String::new(),
    }
}

fn route(name: &str, pool: &str, matches: &str) -> String {
    let timeouts = format!("    timeouts: {{request: {REQUEST_SECONDS}s}}\n");
    let matches = if matches.is_empty() { String::new() } else { format!("    matches:\n{matches}") };
    config::route_with_rule(name, &[(pool, 1)], &(matches + &timeouts))
}

fn policy(route: &str, on: &str, again: bool) -> String {
    // The time of a try that may not be repeated would only end it sooner.
    let time = if again { format!("perTryTimeout: {TRY_SECONDS}s, ") } else { String::new() };
    let retry =
        format!("  retry: {{attempts: {RETRIES}, {time}on: [{on}], backoff: {{base: 25ms, max: 250ms}}}}\n");
    config::traffic_policy(route, route, &retry)
}

/// A field that is not understood would leave the gateway to do another job than its peers.
fn check(proxy: &Proxy, config: &ConfigDir) -> Result<(), String> {
    let output = Program::new(&proxy.program).arg("check").arg(config.path()).output();
    let output = output.map_err(|error| format!("{}: {error}", proxy.program.display()))?;
    let said = [output.stdout, output.stderr].concat();
    ensure(output.status.success(), || {
        format!("the gateway refuses its configuration:\n{}", String::from_utf8_lossy(&said))
    })
}

/// The gateway asks the servers of `resolv.conf`: where it is to ask another, it gets one of its own.
fn program(proxy: &Proxy, job: &Job, directory: &Path) -> Result<std::path::PathBuf, String> {
    let Targets::Name { server, .. } = &job.targets else { return Ok(proxy.program.clone()) };
    let resolv = write(directory, "resolv.conf", &format!("nameserver {}\noptions ndots:0\n", server.ip()))?;
    let gateway = proxy.program.display();
    let script = write(
        directory,
        "gateway.sh",
        &format!(
            "#!/bin/sh
exec unshare --mount sh -c 'mount --bind \"{resolv}\" /etc/resolv.conf && exec \"$0\" \"$@\"' \"{gateway}\" \"$@\"
"
        ),
    )?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).map_err(|error| format!("{script}: {error}"))?;
    Ok(script.into())
}
