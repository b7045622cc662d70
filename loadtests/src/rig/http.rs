//! The least HTTP client that asking an admin port needs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer, read to its end.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, decoded.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// `GET` on a connection of its own, with this `Host`.
pub fn get_host(address: SocketAddr, host: &str, path: &str) -> Result<Response, String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    exchange(address, request.as_bytes())
        .map_err(|error| format!("GET http://{host}{path} at {address}: {error}"))
}

/// `GET` on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Result<Response, String> {
    get_host(address, &address.to_string(), path)
}

/// `GET` of JSON.
pub fn get_json(address: SocketAddr, path: &str) -> Result<Value, String> {
    let response = get(address, path)?;
    if response.status != 200 {
        return Err(format!("GET http://{address}{path}: status {}", response.status));
    }
    serde_json::from_slice(&response.body).map_err(|error| format!("GET http://{address}{path}: {error}"))
}

/// `POST` without a body, answered by JSON.
pub fn post_json(address: SocketAddr, path: &str) -> Result<Value, String> {
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let failed = |error: String| format!("POST http://{address}{path}: {error}");
    let response = exchange(address, request.as_bytes()).map_err(failed)?;
    let text = String::from_utf8_lossy(&response.body);
    if response.status != 200 {
        return Err(failed(format!("status {}: {text}", response.status)));
    }
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

/// Connects with a bound on every read and write.
pub fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Splits an answer that ended with its connection.
pub fn parse(bytes: &[u8]) -> Result<Response, String> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Err("the answer ended within its head".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|h| (h.name.to_ascii_lowercase(), String::from_utf8_lossy(h.value).into_owned()))
        .collect();
    let mut response =
        Response { status: head.code.unwrap_or_default(), headers, body: bytes[length..].to_vec() };
    if response.header("transfer-encoding").is_some() {
        response.body = unchunk(&response.body)?;
    }
    Ok(response)
}

fn exchange(address: SocketAddr, request: &[u8]) -> Result<Response, String> {
    let mut stream = connect(address).map_err(|error| error.to_string())?;
    stream.write_all(request).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    parse(&bytes)
}

fn unchunk(mut bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").ok_or("a chunk size without its end")?;
        let size = std::str::from_utf8(&bytes[..end]).map_err(|error| error.to_string())?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(|error| error.to_string())?;
        if size == 0 {
            return Ok(body);
        }
        let chunk = bytes.get(end + 2..end + 2 + size).ok_or("a chunk shorter than its size")?;
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).ok_or("a chunk without its end")?;
    }
}
