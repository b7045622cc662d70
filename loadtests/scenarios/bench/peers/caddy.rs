//! Caddy.

use super::{Certificate, Configured, each_route, write};
use crate::bench::load::Addresses;
use crate::bench::setup::{Denial, Setup, Site, Split, Upstream, denials};

/// See [`super::Kind`].
pub fn configure(site: &Site<'_>, to: Addresses) -> Configured {
    let Setup { upstream, denials: count, split, access_log, .. } = site.setup;
    if split != Split::None {
        return Ok(None);
    }
    let Certificate { chain, key, .. } = site.certificate;
    let versions = if upstream == Upstream::Http1 { "" } else { " versions h2c 2\n" };
    let transport = format!(
        "{} {{
        transport http {{
            keepalive_idle_conns_per_host 1024
           {versions}
        }}
    }}",
        site.backend
    );
    let routes = each_route(|route| format!("    reverse_proxy /r{route}/* {transport}\n"));
    let denied: String = denials(count).iter().enumerate().map(|(n, denial)| deny(n, denial)).collect();
    let log = if access_log {
        format!("    log {{\n        output file {}\n    }}\n", site.file("access.log"))
    } else {
        String::new()
    };
    // By port alone, because a host in the address would refuse requests without one.
    let (plain_port, tls_port) = (to.plain.port(), to.tls.port());
    let all = format!("    bind 127.0.0.1\n{log}{denied}{routes}    reverse_proxy {transport}\n");
    let storage = site.file("storage");
    let text = format!(
        "{{
    admin off
    auto_https off
    persist_config off
    storage file_system {storage}
    servers {{
        protocols h1 h2
    }}
}}
http://:{plain_port} {{
{all}}}
https://:{tls_port} {{
    tls {chain} {key}
{all}}}
"
    );
    let path = write(site, "Caddyfile", &text)?;
    Ok(Some(["run", "--adapter", "caddyfile", "--config", &path].map(str::to_owned).into()))
}

fn deny(number: usize, denial: &Denial) -> String {
    let matcher = match denial {
        Denial::Path(path) => return format!("    respond {path}* 403\n"),
        Denial::Method(method, path) => format!("method {method}\n        path {path}/*"),
        Denial::Source(network) => format!("remote_ip {network}"),
    };
    format!("    @deny{number} {{\n        {matcher}\n    }}\n    respond @deny{number} 403\n")
}
