//! nginx: a server per host, found in a hash, with a location per route, found in a tree.

use std::fmt::Write as _;

use super::{Site, Start, Way, both};
use crate::scale::table::{self, BENCH, OTHER};

/// Connections beside those that are measured.
const SPARE: usize = 600;

pub fn configure(site: &Site<'_>) -> Result<Start, String> {
    for host in 0..site.table.hosts() {
        site.write(&file(host), &server(site, host, None))?;
    }
    let directory = site.directory.display();
    let (plain, [bench, other]) = (site.plain, site.backends);
    let tls = site.tls.map_or(String::new(), |(address, certificate)| {
        format!(
            "        listen {address} ssl http2 backlog=4096 default_server;
        ssl_certificate {};
        ssl_certificate_key {};\n",
            certificate.chain, certificate.key
        )
    });
    let processes = if site.reloads { "master_process on" } else { "master_process off" };
    let text = format!(
        "daemon off;
{processes};
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ worker_connections {}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    keepalive_timeout 600s;
    client_header_timeout 600s;
    keepalive_requests 100000000;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:s:4m;
    server_names_hash_max_size 4096;
    server_names_hash_bucket_size 128;
    proxy_http_version 1.1;
    proxy_set_header Connection \"\";
    upstream {BENCH} {{ server {bench}; keepalive 1024; keepalive_requests 100000000; }}
    upstream {OTHER} {{ server {other}; keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen {plain} backlog=4096 default_server;
{tls}        return 404;
    }}
    include {directory}/hosts/*.conf;
}}
",
        site.connections + SPARE
    );
    let path = site.write("nginx.conf", &text)?;
    Ok(Start { program: "nginx".into(), arguments: vec!["-c".to_owned(), path] })
}

pub fn way(site: &Site<'_>) -> Way {
    let host = table::host_of(site.table.middle());
    let texts = both(|changed| server(site, host, changed), site.table);
    Way::File { path: site.file(&file(host)), texts, signal: Some("HUP") }
}

fn file(host: usize) -> String {
    format!("hosts/{host}.conf")
}

fn server(site: &Site<'_>, host: usize, changed: Option<(usize, &str)>) -> String {
    let mut text = format!("server {{\n    listen {};\n", site.plain);
    if let Some((address, certificate)) = site.tls {
        let _ = write!(
            text,
            "    listen {address} ssl;\n    ssl_certificate {};\n    ssl_certificate_key {};\n",
            certificate.chain, certificate.key
        );
    }
    let _ = writeln!(text, "    server_name {};", table::host_name(host));
    for rule in site.table.of_host(host) {
        let target = table::target(rule, changed);
        let _ = writeln!(text, "    location {} {{ proxy_pass http://{target}; }}", table::path(rule));
    }
    text + "}\n"
}
