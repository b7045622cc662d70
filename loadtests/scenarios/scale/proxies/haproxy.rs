//! HAProxy: a map from host and path to the backend. The longest prefix is found in a tree.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Site, Start, Way, both};
use crate::context::ensure;
use crate::scale::table::{self, BENCH, OTHER};

const MAP: &str = "routes.map";
/// Connections beside those that are measured.
const SPARE: usize = 500;

pub fn configure(site: &Site<'_>) -> Result<Start, String> {
    let map = site.write(MAP, &map(site, None))?;
    let tls = site.tls.map_or(String::new(), |(address, certificate)| {
        format!("    bind {address} ssl crt {} alpn h2,http/1.1\n", certificate.both)
    });
    let (plain, [bench, other]) = (site.plain, site.backends);
    let text = format!(
        "global
    nbthread 1
    # Idle connections have no upstream connection: the limit holds for both, and there are fewer of the latter.
    no strict-limits
    maxconn {}
    stats socket {} level admin
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    http-reuse always
frontend edge
    bind {plain} backlog 4096
{tls}    use_backend %[base,map_beg({map},none)]
backend {BENCH}
    server one {bench}
backend {OTHER}
    server one {other}
backend none
    http-request return status 404
",
        site.connections + SPARE,
        site.file("stats.sock").display(),
    );
    let file = site.write("haproxy.cfg", &text)?;
    // With a master, a reload is a signal to it.
    let mode = if site.reloads { "-W" } else { "-db" };
    Ok(Start { program: "haproxy".into(), arguments: [mode, "-f", &file].map(str::to_owned).into() })
}

pub fn way(name: &str, site: &Site<'_>) -> Way {
    let (path, middle) = (site.file(MAP), site.table.middle());
    if name == "reload" {
        return Way::File {
            path,
            texts: both(|changed| map(site, changed), site.table),
            signal: Some("USR2"),
        };
    }
    let key = table::host(middle) + &table::path(middle);
    let commands = [BENCH, OTHER].map(|backend| format!("set map {} {key} {backend}\n", path.display()));
    Way::Socket { path: site.file("stats.sock"), commands }
}

/// Gives a command to the socket, which says nothing if all is well.
pub fn command(socket: &Path, command: &str) -> Result<(), String> {
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(command.as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok::<_, std::io::Error>(said)
    };
    let said = exchange().map_err(|error| format!("{}: {error}", socket.display()))?;
    ensure(said.trim().is_empty(), || format!("{}: {}", command.trim(), said.trim()))
}

fn map(site: &Site<'_>, changed: Option<(usize, &str)>) -> String {
    (0..site.table.routes).fold(String::new(), |mut text, rule| {
        let _ = writeln!(text, "{}{} {}", table::host(rule), table::path(rule), table::target(rule, changed));
        text
    })
}
