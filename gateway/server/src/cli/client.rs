//! Asks a running gateway's admin server. One request, one connection, HTTP/1.0: the answer ends with the connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

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
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
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
