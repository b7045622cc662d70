//! The generators: real clients, pinned beside the backend, and what they counted. Nothing is judged here.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::LOAD_CPU;
use crate::context::ensure;

/// What is asked of a proxy.
#[derive(Clone, Copy)]
pub enum Load {
    /// wrk: HTTP/1.1, each connection one request at a time.
    Http1 {
        /// Over TLS.
        tls: bool,
        /// Connections.
        connections: usize,
        /// A path of the backend.
        path: &'static str,
        /// Bytes of the request's body.
        upload: usize,
        /// Each request on a connection of its own.
        close: bool,
    },
    /// h2load: HTTP/2 over TLS.
    Http2 {
        /// Connections.
        connections: usize,
        /// Streams open at a time on each.
        streams: usize,
        /// A path of the backend.
        path: &'static str,
    },
    /// `openssl s_time`: a handshake, a request, and the end of the connection, one after the other.
    Handshakes {
        /// With the session of the connection before.
        resumed: bool,
    },
}

/// Where a proxy listens.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// Plaintext.
    pub plain: SocketAddr,
    /// TLS, HTTP/1.1 and HTTP/2 by ALPN.
    pub tls: SocketAddr,
}

/// What a generator counted.
pub struct Counted {
    /// Exchanges completed.
    pub requests: f64,
    /// In a second.
    pub per_second: f64,
    /// Latency in milliseconds, where the generator tells.
    pub p50: Option<f64>,
    /// The same.
    pub p99: Option<f64>,
}

impl Load {
    /// Runs the generator. `scratch` is a directory for what it needs.
    pub fn run(self, to: Addresses, seconds: u32, scratch: &Path) -> Result<Counted, String> {
        match self {
            Self::Http1 { tls, connections, path, upload, close } => {
                let (scheme, address) = if tls { ("https", to.tls) } else { ("http", to.plain) };
                let mut arguments = vec![format!("-c{connections}"), format!("-d{seconds}s")];
                if upload > 0 {
                    arguments.extend(["-s".to_owned(), upload_script(scratch, upload)?]);
                }
                if close {
                    arguments.extend(["-H".to_owned(), "Connection: close".to_owned()]);
                }
                wrk(&arguments, &format!("{scheme}://{address}{path}"))
            }
            Self::Http2 { connections, streams, path } => {
                h2load(connections, streams, seconds, &format!("https://{}{path}", to.tls))
            }
            Self::Handshakes { resumed } => handshakes(to.tls, resumed, seconds),
        }
    }
}

/// wrk with arguments beside the usual.
pub fn wrk(arguments: &[String], url: &str) -> Result<Counted, String> {
    let text =
        pinned("wrk", &[&["-t1".to_owned(), "--latency".to_owned()], arguments, &[url.to_owned()]].concat())?;
    for trouble in ["Non-2xx", "Socket errors"] {
        ensure(!text.contains(trouble), || format!("wrk on {url} saw failures:\n{text}"))?;
    }
    let requests = text.lines().find(|line| line.contains(" requests in "));
    let requests = requests.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let per_second = text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let percentile =
        |of: &str| text.lines().find_map(|line| milliseconds(line.trim().strip_prefix(of)?.trim()));
    counted(requests, per_second, &text).map(|counted| Counted {
        p50: percentile("50%"),
        p99: percentile("99%"),
        ..counted
    })
}

fn h2load(connections: usize, streams: usize, seconds: u32, url: &str) -> Result<Counted, String> {
    let arguments = [
        "-t1".to_owned(),
        format!("-c{connections}"),
        format!("-m{streams}"),
        format!("-D{seconds}"),
        url.to_owned(),
    ];
    let text = pinned("h2load", &arguments)?;
    // requests: 1 total, 1 started, 1 done, 1 succeeded, 0 failed, 0 errored, 0 timeout
    let numbers = text.lines().find_map(|line| {
        let rest = line.strip_prefix("requests: ")?;
        rest.split(", ").map(|part| part.split(' ').next()?.parse::<f64>().ok()).collect::<Option<Vec<_>>>()
    });
    let numbers = numbers.filter(|numbers| numbers.len() == 7).unwrap_or_default();
    ensure(numbers.iter().skip(4).all(|failed| *failed == 0.0), || {
        format!("h2load on {url} saw failures:\n{text}")
    })?;
    let done = numbers.get(3).copied();
    counted(done, done.map(|done| done / f64::from(seconds)), &text)
}

fn handshakes(address: SocketAddr, resumed: bool, seconds: u32) -> Result<Counted, String> {
    let mode = if resumed { "-reuse" } else { "-new" };
    let arguments =
        ["s_time", "-connect", &address.to_string(), mode, "-time", &seconds.to_string(), "-www", "/"];
    let text = pinned("openssl", &arguments.map(str::to_owned))?;
    // 10 connections in 2 real seconds, 270 bytes read per connection
    let line = text.lines().rfind(|line| line.contains(" real seconds"));
    let number = |index: usize| line.and_then(|line| line.split_whitespace().nth(index)?.parse::<f64>().ok());
    let (requests, elapsed) = (number(0), number(3));
    if resumed {
        // Each connection is a letter: r for a session that was resumed, * for one that was not.
        let letters = text.lines().find(|line| line.len() > 10 && line.chars().all(|c| "rtT*".contains(c)));
        let new = letters.map(|letters| letters.chars().filter(|c| *c == '*').count());
        ensure(new.is_some_and(|new| new <= 1), || format!("sessions were not resumed:\n{text}"))?;
    }
    counted(requests, requests.zip(elapsed).map(|(requests, elapsed)| requests / elapsed.max(1.0)), &text)
}

fn pinned(program: &str, arguments: &[String]) -> Result<String, String> {
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CPU.to_string(), program])
        .args(arguments)
        .output()
        .map_err(|error| {
            format!("taskset or {program}: {error}; `make setup` installs what scenarios need")
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure(output.status.success(), || {
        format!("{program} {} failed: {text}{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(text.into_owned())
}

fn counted(requests: Option<f64>, per_second: Option<f64>, text: &str) -> Result<Counted, String> {
    match (requests, per_second) {
        (Some(requests), Some(per_second)) if requests > 0.0 => {
            Ok(Counted { requests, per_second, p50: None, p99: None })
        }
        _ => Err(format!("the generator said something unexpected:\n{text}")),
    }
}

fn upload_script(scratch: &Path, bytes: usize) -> Result<String, String> {
    let path = scratch.join(format!("upload-{bytes}.lua"));
    let text = format!("wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {bytes})\n");
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path.display().to_string())
}

fn milliseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)] {
        if let Some(number) = text.strip_suffix(unit).and_then(|number| number.parse::<f64>().ok()) {
            return Some(number * factor);
        }
    }
    None
}
