//! HAProxy.

use super::{Certificate, Configured, each_route, write};
use crate::bench::load::Addresses;
use crate::bench::setup::{Denial, Setup, Site, Split, Upstream, denials};

/// See [`super::Kind`].
pub fn configure(site: &Site<'_>, to: Addresses) -> Configured {
    let Setup { upstream, denials: count, split, access_log, .. } = site.setup;
    let Addresses { plain, tls } = to;
    let Certificate { both, .. } = site.certificate;
    let routes = each_route(|route| format!("    use_backend bench if {{ path_beg /r{route}/ }}\n"));
    let denied: String = denials(count).iter().map(deny).collect();
    let backend = site.backend;
    let protocol = if upstream == Upstream::Http1 { "" } else { " proto h2" };
    let servers = match split {
        Split::None => format!("    server one {backend}{protocol}\n"),
        Split::Weighted => {
            format!("    server one {backend} weight 90\n    server two {backend} weight 10\n")
        }
        Split::Sticky => return Ok(None),
    };
    let (log, log_format) = if access_log {
        ("    log stdout format raw local0\n", "    log global\n    option httplog\n")
    } else {
        ("", "")
    };
    let text = format!(
        "global
    nbthread 1
    maxconn 9000
    ssl-default-bind-options ssl-min-ver TLSv1.2
{log}defaults
    mode http
{log_format}    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend edge
    bind {plain}
    bind {tls} ssl crt {both} alpn h2,http/1.1
{denied}{routes}    default_backend bench
backend bench
{servers}"
    );
    Ok(Some(vec!["-db".to_owned(), "-f".to_owned(), write(site, "haproxy.cfg", &text)?]))
}

fn deny(denial: &Denial) -> String {
    match denial {
        Denial::Path(path) => format!("    http-request deny if {{ path_beg {path} }}\n"),
        Denial::Method(method, path) => {
            format!("    http-request deny if {{ method {method} }} {{ path_beg {path}/ }}\n")
        }
        Denial::Source(network) => format!("    http-request deny if {{ src {network} }}\n"),
    }
}
