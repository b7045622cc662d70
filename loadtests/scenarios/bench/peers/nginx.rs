//! nginx.

use super::{Certificate, Configured, each_route, write};
use crate::bench::load::Addresses;
use crate::bench::setup::{Denial, Setup, Site, Split, Upstream, denials};

/// See [`super::Kind`].
pub fn configure(site: &Site<'_>, to: Addresses) -> Configured {
    let Setup { upstream, denials: count, split, access_log, .. } = site.setup;
    let Addresses { plain, tls } = to;
    let Certificate { chain, key, .. } = site.certificate;
    let directory = site.directory.display();
    let pass = match upstream {
        Upstream::Http1 => {
            "proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection \"\";"
        }
        Upstream::Grpc => "grpc_pass grpc://bench;",
        // It speaks HTTP/2 to a backend for gRPC only.
        Upstream::Http2 => return Ok(None),
    };
    let backend = site.backend;
    let servers = match split {
        Split::None => format!("server {backend};"),
        Split::Weighted => format!("server {backend} weight=90; server {backend} weight=10;"),
        Split::Sticky => return Ok(None),
    };
    let log = if access_log { site.file("access.log") } else { "off".to_owned() };
    let routes = each_route(|route| format!("        location /r{route}/ {{ {pass} }}\n"));
    let denied: String = denials(count).iter().map(|denial| deny(denial, pass)).collect();
    let text = format!(
        "daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections 16384; }}
http {{
    access_log {log};
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    keepalive_requests 100000000;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:s:4m;
    upstream bench {{ {servers} keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen {plain} backlog=4096;
        listen {tls} ssl http2 backlog=4096;
        ssl_certificate {chain};
        ssl_certificate_key {key};
{denied}{routes}        location / {{ {pass} }}
    }}
}}
"
    );
    Ok(Some(vec!["-c".to_owned(), write(site, "nginx.conf", &text)?]))
}

fn deny(denial: &Denial, pass: &str) -> String {
    match denial {
        Denial::Path(path) => format!("        location {path} {{ return 403; }}\n"),
        Denial::Method("DELETE", path) => {
            let others = "GET POST PUT PATCH OPTIONS";
            format!("        location {path}/ {{ limit_except {others} {{ deny all; }} {pass} }}\n")
        }
        Denial::Method(method, path) => {
            format!(
                "        location {path}/ {{ if ($request_method = {method}) {{ return 403; }} {pass} }}\n"
            )
        }
        Denial::Source(network) => format!("        deny {network};\n"),
    }
}
