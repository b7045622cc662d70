//! The load client as a program: sends a load, accounts for every request, reports JSON.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use fieldgate_loadtests::load::{Identity, Plan, Running, Tally, Users, Version};

const POLL: Duration = Duration::from_millis(20);

/// A load client that counts every request by its outcome and never retries one.
///
/// The exit code is 0 when no request failed, 1 when one did (a status of 400 and above counts as failed).
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where to send: http://host:port/path or https://host:port/path.
    url: String,
    /// Trust this CA (PEM); required for https.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// The client certificate to show (PEM).
    #[arg(long, requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, requires = "cert")]
    key: Option<PathBuf>,
    /// Connect here instead of to the URL's host.
    #[arg(long)]
    connect_to: Option<SocketAddr>,
    /// Speak HTTP/2 (prior knowledge on http, ALPN on https).
    #[arg(long)]
    http2: bool,
    /// Connections kept open.
    #[arg(long, short, default_value_t = 16)]
    connections: usize,
    /// Concurrent streams on each HTTP/2 connection.
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Client threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Stop after this many requests.
    #[arg(long, short = 'n')]
    requests: Option<u64>,
    /// Stop after this many seconds (10 when no number of requests is given).
    #[arg(long, short)]
    seconds: Option<f64>,
    /// Requests per second of all connections together; as fast as answers come without it.
    #[arg(long, short)]
    rate: Option<f64>,
    /// Request method.
    #[arg(long, short = 'X', default_value = "GET")]
    method: String,
    /// A header of every request, `name: value`.
    #[arg(long, short = 'H')]
    header: Vec<String>,
    /// Bytes of request body.
    #[arg(long, default_value_t = 0)]
    body: usize,
    /// Simulate so many users, told apart by header or cookie.
    #[arg(long)]
    users: Option<usize>,
    /// The users' header (the default is `x-user`).
    #[arg(long, conflicts_with_all = ["user_cookie", "cookie_jar"])]
    user_header: Option<String>,
    /// The users' cookie.
    #[arg(long, conflicts_with = "cookie_jar")]
    user_cookie: Option<String>,
    /// Each user keeps and sends the cookies that the server sets.
    #[arg(long)]
    cookie_jar: bool,
    /// Print a line per second to standard error.
    #[arg(long)]
    progress: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(tally) => {
            println!("{:#}", tally.report());
            if tally.failures() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("fieldgate-load: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<Tally, String> {
    let running = plan(arguments)?.start()?;
    if arguments.progress {
        print_progress(&running);
    }
    Ok(running.join())
}

fn plan(arguments: &Arguments) -> Result<Plan, String> {
    let url: http::Uri = arguments.url.parse().map_err(|error| format!("{}: {error}", arguments.url))?;
    let host = url.authority().ok_or_else(|| format!("{}: a URL with a host is needed", arguments.url))?;
    let tls = url.scheme_str() == Some("https");
    if tls && arguments.ca.is_none() {
        return Err("https needs --ca FILE: the CA to trust".to_owned());
    }
    let port = host.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let address = match arguments.connect_to {
        Some(address) => address,
        None => (host.host(), port)
            .to_socket_addrs()
            .map_err(|error| format!("{host}: {error}"))?
            .next()
            .ok_or_else(|| format!("{host}: no address"))?,
    };
    let headers = arguments.header.iter().map(|header| split_header(header)).collect::<Result<_, _>>()?;
    let default_seconds = if arguments.requests.is_none() { Some(10.0) } else { None };
    Ok(Plan {
        host: host.to_string(),
        path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        method: arguments.method.clone(),
        headers,
        body: arguments.body,
        version: if arguments.http2 { Version::Http2 } else { Version::Http1 },
        ca: arguments.ca.clone().filter(|_| tls),
        certificate: arguments.cert.clone().zip(arguments.key.clone()),
        connections: arguments.connections,
        streams: arguments.streams,
        threads: arguments.threads,
        requests: arguments.requests,
        duration: arguments.seconds.or(default_seconds).map(Duration::from_secs_f64),
        rate: arguments.rate,
        users: arguments.users.map(|count| Users { count, identity: identity(arguments) }),
        ..Plan::new(address)
    })
}

fn identity(arguments: &Arguments) -> Identity {
    match (&arguments.user_header, &arguments.user_cookie) {
        _ if arguments.cookie_jar => Identity::CookieJar,
        (_, Some(cookie)) => Identity::Cookie(cookie.clone()),
        (Some(header), None) => Identity::Header(header.clone()),
        (None, None) => Identity::Header("x-user".to_owned()),
    }
}

fn split_header(header: &str) -> Result<(String, String), String> {
    let (name, value) =
        header.split_once(':').ok_or_else(|| format!("{header:?}: expected `name: value`"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn print_progress(running: &Running) {
    let mut before = running.snapshot();
    while !running.is_finished() {
        std::thread::sleep(POLL);
        let now = running.snapshot();
        if now.seconds - before.seconds < 1.0 && !running.is_finished() {
            continue;
        }
        let earlier = before.backends();
        let split: Vec<String> = now
            .backends()
            .into_iter()
            .map(|(backend, count)| format!("{backend} {}", count - earlier.get(&backend).unwrap_or(&0)))
            .collect();
        eprintln!(
            "{:6.1} s  {:7} requests  {:4} errors  {}",
            now.seconds,
            now.completed() - before.completed(),
            now.failures() - before.failures(),
            split.join("  ")
        );
        before = now;
    }
}
