//! Fieldgate: an HTTPRoute of sixteen rules per file.

use std::io::{Read, Write};
use std::net::SocketAddr;

use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::http;

use super::{Site, Start, Way, both};
use crate::context::Context;
use crate::scale::table::{self, BENCH, OTHER};

/// Where the admin port takes objects.
pub const OBJECTS: &str = "/api/v1/objects";

pub fn configure(context: &Context, site: &Site<'_>, admin: SocketAddr) -> Result<Start, String> {
    let mut listeners = vec![Listener::http("web", site.plain.port())];
    if let Some((address, certificate)) = site.tls {
        listeners.push(Listener::https("secure", address.port(), "certificate"));
        site.write("config/secret.yaml", &config::secret("certificate", &certificate.certified))?;
    }
    site.write("config/gateway.yaml", &config::gateway("edge", &listeners))?;
    for (name, address) in [BENCH, OTHER].into_iter().zip(site.backends) {
        site.write(&format!("config/pool-{name}.yaml"), &config::pool(name, &[address], "http1"))?;
    }
    for object in 0..site.table.objects() {
        site.write(&file(object), &site.table.object(object, None))?;
    }
    let (directory, admin) = (site.file("config").display().to_string(), admin.to_string());
    let arguments = ["run", "--config", &directory, "--admin", &admin, "--workers", "1", "--api-write"]
        .map(str::to_owned);
    Ok(Start { program: context.gateway.clone(), arguments: arguments.into() })
}

pub fn way(name: &str, site: &Site<'_>) -> Way {
    let object = table::object_of(site.table.middle());
    let texts = both(|changed| site.table.object(object, changed), site.table);
    match name {
        "api" => Way::Api { objects: texts },
        _ => Way::File { path: site.file(&file(object)), texts, signal: None },
    }
}

fn file(object: usize) -> String {
    format!("config/route-{object}.yaml")
}

/// Puts an object to the admin port; gives the answer's status.
pub fn put(admin: SocketAddr, object: &str) -> Result<u16, String> {
    let exchange = || {
        let mut stream = http::connect(admin)?;
        write!(
            stream,
            "PUT {OBJECTS} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\ncontent-type: application/yaml\r\n\
             content-length: {}\r\n\r\n{object}",
            object.len()
        )?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = exchange().map_err(|error| format!("PUT http://{admin}{OBJECTS}: {error}"))?;
    http::parse(&bytes).map(|answer| answer.status)
}
