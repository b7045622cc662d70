//! Asks a running gateway's admin server. One request, one connection, HTTP/1.0: the answer ends with the connection.

use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// An admin server that does not answer within this is stuck.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The JSON at `path`.
pub(super) fn get_json(admin: SocketAddr, path: &str) -> Result<Value, String> {
    let body = get(admin, path)?;
    serde_json::from_str(&body)
        .map_err(|error| format!("{admin} does not answer as a fieldgate does: {error}"))
}

/// The text at `path`.
pub(super) fn get(admin: SocketAddr, path: &str) -> Result<String, String> {
    let (head, body) = ask(admin, &format!("GET {path} HTTP/1.0\r\nHost: {admin}\r\n\r\n"))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body),
        _ => Err(format!("{admin}{path}: {}: {}", head.lines().next().unwrap_or(""), body.trim())),
    }
}

/// Sends a change; the status and the JSON of the answer.
pub(super) fn change(
    admin: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    if_generation: Option<u64>,
) -> Result<(u16, Value), String> {
    let condition = if_generation.map(|g| format!("If-Match: \"{g}\"\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: {admin}\r\nContent-Type: application/yaml\r\n{condition}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (head, body) = ask(admin, &request)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let value = serde_json::from_str(&body).map_err(|_| format!("{admin}{path}: {}", body.trim()))?;
    Ok((status, value))
}

/// Head and body of the answer.
fn ask(admin: SocketAddr, request: &str) -> Result<(String, String), String> {
    let answer = send(admin, request).map_err(|error| {
        format!("no gateway answers at {admin}: {error} (hint: name its admin address with --admin)")
    })?;
    let parts = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{admin} does not speak HTTP"))?;
    Ok((parts.0.to_owned(), parts.1.to_owned()))
}

fn send(admin: SocketAddr, request: &str) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    match std::env::var_os("FIELDGATE_ADMIN_CA") {
        None => exchange(stream, request),
        Some(authority) => exchange(secured(stream, admin, Path::new(&authority))?, request),
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// TLS, with what the environment names: FIELDGATE_ADMIN_CA, _CERT and _KEY (PEM), and _NAME for a server whose certificate
/// is for another name than its address.
fn secured(
    stream: TcpStream,
    admin: SocketAddr,
    authority: &Path,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let named = |variable: &str| {
        std::env::var_os(variable)
            .map(PathBuf::from)
            .ok_or_else(|| Error::other(format!("FIELDGATE_ADMIN_CA is set, and {variable} is not")))
    };
    let unreadable = |path: &Path, error: rustls::pki_types::pem::Error| {
        Error::other(format!("{}: {error}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(authority).map_err(|error| unreadable(authority, error))? {
        roots.add(root.map_err(|error| unreadable(authority, error))?).map_err(Error::other)?;
    }
    let (certificate, key) = (named("FIELDGATE_ADMIN_CERT")?, named("FIELDGATE_ADMIN_KEY")?);
    let chain = CertificateDer::pem_file_iter(&certificate).and_then(Iterator::collect);
    let chain: Vec<_> = chain.map_err(|error| unreadable(&certificate, error))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(Error::other)?;
    let name = match std::env::var("FIELDGATE_ADMIN_NAME") {
        Ok(name) => ServerName::try_from(name).map_err(Error::other)?,
        Err(_) => ServerName::from(admin.ip()),
    };
    let connection = ClientConnection::new(Arc::new(config), name).map_err(Error::other)?;
    Ok(StreamOwned::new(connection, stream))
}

/// A value for a query, percent-encoded (RFC 3986 section 2.1).
pub(super) fn encode(value: &str) -> String {
    value
        .bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
