//! HAProxy.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use super::{
    CHECK_SECONDS, CONNECT, Command, FAILURES, GRPC, Job, Limits, Proxy, Purpose, REQUEST_SECONDS, RETRIES,
    SLOW_START_SECONDS, TRY_SECONDS, Targets, write,
};

use crate::resilience::farm::Secrets;

/// Servers that a name has place for.
const PLACES: usize = 10;

/// Writes its file. A POST is not tried again once it was sent; a call of gRPC is.
pub fn configure(proxy: &Proxy, job: &Job, directory: &Path, address: SocketAddr) -> Result<Command, String> {
    let (connect, check) = (CONNECT.as_millis(), format!("{CHECK_SECONDS}s"));
    let mut defaults = format!("    timeout connect {connect}ms\n    timeout check {check}\n");
    let mut server = String::new();
    let mut policy = "";
    match job.purpose {
        Purpose::Availability => {
            // A try is bounded by the server's silence; there is no bound of a whole request.
            let _ = write!(
                defaults,
                "    timeout server {TRY_SECONDS}s
    timeout queue {REQUEST_SECONDS}s
    retries {RETRIES}
    option redispatch 1
    retry-on conn-failure empty-response response-timeout 502 503 504
    option httpchk GET /healthz
    default-server check inter {check} fall 2 rise 2 observe layer7 error-limit {FAILURES} on-error mark-down slowstart {SLOW_START_SECONDS}s
"
            );
            policy = "    http-request disable-l7-retry if METH_POST\n";
        }
        Purpose::Capacity(Limits { concurrency, queue, wait }) => {
            let _ = write!(
                defaults,
                "    timeout server {REQUEST_SECONDS}s\n    timeout queue {}ms\n    retries 0\n",
                wait.as_millis()
            );
            let _ = write!(server, " maxconn {concurrency} maxqueue {}", queue.div_ceil(2));
        }
        Purpose::Adaptive | Purpose::Throughput => {
            let _ = writeln!(defaults, "    timeout server {REQUEST_SECONDS}s");
        }
    }
    let (by_http1, by_http2) = (tls(job, "http/1.1"), tls(job, "h2"));
    let (resolvers, plain) = servers(&job.targets, &format!("{server}{by_http1}"));
    let http2 = format!("{server} proto h2{}{by_http2}", check_by_http1(job));
    let (_, http2) = servers(&job.targets, &http2);
    let text = format!(
        "global
    nbthread {}
    maxconn 9000
defaults
    mode http
    timeout client 60s
    http-reuse always
{defaults}{resolvers}frontend edge
    bind {address}
    use_backend calls if {{ path_beg {GRPC}/ }}
    default_backend shop
backend shop
{policy}{plain}backend calls
{http2}",
        job.threads()
    );
    let file = write(directory, "haproxy.cfg", &text)?;
    Ok(Command { program: proxy.program.clone(), arguments: ["-db", "-f", &file].map(str::to_owned).into() })
}

fn check_by_http1(job: &Job) -> &'static str {
    if job.purpose == Purpose::Availability { " check-proto h1" } else { "" }
}

fn tls(job: &Job, alpn: &str) -> String {
    let Some(tls) = &job.tls else { return String::new() };
    let (ca, name) = (tls.authority.display(), Secrets::NAME);
    format!(
        " ssl verify required ca-file {ca} sni str({name}) verifyhost {name} alpn {alpn} check-sni {name} check-alpn http/1.1"
    )
}

/// The section that resolves names, and the servers.
fn servers(targets: &Targets, options: &str) -> (String, String) {
    match targets {
        Targets::Addresses(addresses) => {
            let lines = addresses.iter().enumerate();
            let lines = lines.fold(String::new(), |mut lines, (number, address)| {
                let _ = writeln!(lines, "    server b{number} {address}{options}");
                lines
            });
            (String::new(), lines)
        }
        Targets::Name { name, port, server } => (
            format!(
                "resolvers dns
    nameserver one {server}
    timeout resolve 1s
    timeout retry 1s
    hold valid 1s
    hold obsolete 0s
    hold nx 1m
    hold other 1m
    hold refused 1m
    hold timeout 1m
"
            ),
            format!(
                "    server-template b 1-{PLACES} {name}:{port} resolvers dns init-addr none resolve-prefer ipv4{options}\n"
            ),
        ),
    }
}
