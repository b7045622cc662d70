//! The admin server: metrics, state and a few orders, over HTTP/1.1 on the control runtime.
//!
//! It listens on loopback unless told otherwise, shows everything except private keys, and is never on a request's path.
//! Who may ask it for what is decided in `access`, before anything else is looked at.

mod access;
mod change;
mod clusters;
mod drain;
mod dump;
mod guards;
mod pools;
mod scrape;
mod tls;
mod views;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json as value};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

pub use access::{Access, Options, Rule};
use pools::Pools;
pub use tls::{Tls, TlsFiles};

use crate::audit::{self, Who};
use crate::control::{AdminState, ApiWrite};
use crate::explain::{Question, explain};
use crate::panics;
use crate::worker::{Command, WorkerReport};

/// Connections served at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send a request's head, and an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to agree on TLS and to show its certificate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer waits for workers. One that is stuck must not take the metrics with it.
const WORKER_TIMEOUT: Duration = Duration::from_secs(2);

/// Paths with what they are for, as shown for a wrong one.
const PATHS: &[(&str, &str)] = &[
    ("GET /ready", "200 once all that is configured is served, else 503"),
    ("GET /metrics", "Prometheus metrics"),
    ("GET /stats/prometheus", "the same, where Istio's scrape looks for them"),
    ("GET /api/v1/status", "generation, listeners, rejected objects, connections"),
    ("GET /api/v1/objects", "every object with its conditions"),
    ("PUT /api/v1/objects", "put documents in force and into the directory (--api-write)"),
    ("DELETE /api/v1/objects/{kind}/{namespace}/{name}", "take an object out (--api-write)"),
    ("GET /api/v1/splits", "desired and achieved split per rule and backend"),
    ("GET /api/v1/pools", "limits and use, endpoints with health and load"),
    ("GET /api/v1/pools/{namespace}/{pool}", "one of them: NAME, service/NAME:PORT or hostname/NAME:PORT"),
    (
        "POST /api/v1/pools/{namespace}/{pool}/endpoints/{address}/drain",
        "no new requests there (--api-write)",
    ),
    ("POST /api/v1/pools/{namespace}/{pool}/endpoints/{address}/undrain", "back into service (--api-write)"),
    ("GET /api/v1/jwks", "sets of keys that tokens are checked with; never the keys themselves"),
    ("GET /api/v1/explain?method=&url=&header=&client=", "what becomes of a request, and why"),
    (
        "GET /api/v1/explain?method=&url=&header=&client=&principal=&claim=",
        "what becomes of a request, and why",
    ),
    ("GET /config_dump", "the configuration in force"),
    ("GET /clusters", "pools and endpoints, as Envoy shows them (?format=json)"),
    ("GET /listeners", "bound addresses (?format=json)"),
    ("GET /server_info", "version, state, uptime"),
    ("POST /drain_listeners", "finish what is in flight and end, as SIGTERM does"),
    ("POST /healthcheck/fail", "make /ready fail, for a load balancer in front; /healthcheck/ok ends that"),
    ("POST /quitquitquit", "end at once"),
    ("GET /help", "this list"),
];

type Answer = Response<Full<Bytes>>;

/// Serves until it is aborted; with `tls`, only clients that show a certificate.
pub async fn serve(listener: TcpListener, state: Arc<AdminState>, tls: Option<Arc<Tls>>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin server cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let state = Arc::clone(&state);
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                None => {
                    let who = Ok(state.access.plain(peer));
                    let local = stream.local_addr().unwrap_or(peer);
                    serve_client(state, Client { who, local, tls: false }, stream).await;
                }
                Some(tls) => serve_tls(state, &tls, stream, peer).await,
            }
            drop(permit);
        });
    }
}

/// Whoever is at the other end of a connection.
struct Client {
    /// Who, or why it may not even read.
    who: Result<Who, String>,
    /// The address that it reached.
    local: SocketAddr,
    tls: bool,
}

async fn serve_tls(state: Arc<AdminState>, tls: &Tls, stream: TcpStream, peer: SocketAddr) {
    let local = stream.local_addr().unwrap_or(peer);
    let accept = tokio_rustls::TlsAcceptor::from(tls.current()).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::warn!(%peer, "a client of the admin server is refused: {error}");
            return;
        }
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let names = certificate.and_then(tls::Names::of).unwrap_or_default();
    let who = state.access.certified(peer, &names);
    serve_client(state, Client { who, local, tls: true }, stream).await;
}

async fn serve_client<S>(state: Arc<AdminState>, client: Client, stream: S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let service = service_fn(|request| answer(&state, &client, request));
    // An error here is the client's: it went away or spoke no HTTP.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    state: &AdminState,
    client: &Client,
    request: Request<Incoming>,
) -> Result<Answer, Infallible> {
    let (method, path) = (request.method(), request.uri().path());
    let changes = !matches!(*method, Method::GET | Method::HEAD);
    let who = match &client.who {
        Ok(who) if changes => access::with_user(who.clone(), client.local).await,
        Ok(who) => who.clone(),
        Err(message) => return Ok(text(StatusCode::FORBIDDEN, format!("{message}\n"))),
    };
    let anyone = state.api_write == ApiWrite::Anyone;
    if let Some(why) = access::refusal(&who, client.tls, anyone, method, path, request.headers()) {
        if changes {
            tracing::warn!(%who, %method, path, "refused by the admin server: {why}");
            let about = value!({"asked": format!("{method} {path}")});
            state.audit.record("request", &who, about, &audit::Outcome::Refused(why.clone()));
        }
        return Ok(change::told(StatusCode::FORBIDDEN, &value!({"error": why})));
    }
    if change::is_change(&request) {
        return Ok(change::answer(state, &who, request).await);
    }
    if drain::is_order(&request) {
        return Ok(drain::order(state, &who, &request).await);
    }
    Ok(route(state, &who, &request).await)
}

async fn route<B>(state: &AdminState, who: &Who, request: &Request<B>) -> Answer {
    let path = request.uri().path();
    let query = Query(request.uri().query().unwrap_or_default());
    if matches!(path, "/drain_listeners" | "/quitquitquit" | "/healthcheck/fail" | "/healthcheck/ok") {
        return order(state, who, request);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return not_allowed("GET, HEAD");
    }
    let json_wanted = query.first("format").as_deref() == Some("json");
    let snapshot = || Arc::clone(&state.shared.published.load().snapshot);
    match path {
        "/ready" => ready(state),
        "/metrics" | "/stats/prometheus" => metrics(state).await,
        "/api/v1/status" => json(&views::status(state, &report(state).await)),
        "/api/v1/objects" => json(&views::objects(state).await),
        "/api/v1/splits" => json(&views::splits(&snapshot(), &report(state).await)),
        "/api/v1/pools" => json(&Pools::of(state).await.all()),
        "/api/v1/jwks" => json(&views::key_sets(state)),
        "/api/v1/explain" => explained(state, &query),
        "/config_dump" => json(&dump::config(&snapshot(), &state.view.load().rejections)),
        "/clusters" if json_wanted => json(&Pools::of(state).await.all()),
        "/clusters" => text(StatusCode::OK, clusters::text(&Pools::of(state).await)),
        "/listeners" if json_wanted => json(&views::listeners(state)),
        "/listeners" => text(StatusCode::OK, views::listeners_text(state)),
        "/server_info" => json(&views::server_info(state)),
        path if drain::is_pool(path) => drain::show(state, path).await,
        "/help" | "/" => text(StatusCode::OK, help()),
        _ => text(StatusCode::NOT_FOUND, format!("there is no {path}; there are:\n{}", help())),
    }
}

/// What changes something, asked for by somebody who may.
fn order<B>(state: &AdminState, who: &Who, request: &Request<B>) -> Answer {
    if *request.method() != Method::POST {
        return not_allowed("POST");
    }
    // Before it is done: one of them ends the process.
    let action = request.uri().path().trim_start_matches('/');
    tracing::info!(%who, "{action} by the admin server");
    state.audit.record(action, who, value!({}), &audit::Outcome::Done);
    match request.uri().path() {
        "/quitquitquit" => drop(state.quit.send_replace(true)),
        "/healthcheck/fail" => fail(state, true),
        "/healthcheck/ok" => fail(state, false),
        _ => state.drain(),
    }
    text(StatusCode::OK, "OK\n")
}

/// A load balancer in front then takes this gateway out. It goes on serving those who come.
fn fail(state: &AdminState, failing: bool) {
    if state.failing.swap(failing, Ordering::Relaxed) != failing {
        tracing::info!(failing, "whether /ready fails was changed by the admin server");
    }
}

fn ready(state: &AdminState) -> Answer {
    if state.is_ready() {
        return text(StatusCode::OK, "LIVE\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", views::why_not_ready(state)))
}

async fn metrics(state: &AdminState) -> Answer {
    flush(state).await;
    let published = state.shared.published.load_full();
    let view = state.view.load_full();
    let body = state.shared.telemetry.render(|out| {
        scrape::write(out, &published.snapshot, &view, now_ms(state));
        guards::write(out, &published);
        state.shared.overload.render(out);
        scrape::hardening(out, &state.hardened);
        scrape::audit(out, &state.audit);
        panics::render(out);
    });
    with_type(StatusCode::OK, "text/plain; version=0.0.4", body)
}

fn explained(state: &AdminState, query: &Query<'_>) -> Answer {
    let Some(url) = query.first("url") else {
        return text(
            StatusCode::BAD_REQUEST,
            "say which URL: /api/v1/explain?method=GET&url=http://host/path\n",
        );
    };
    let method = query.first("method").unwrap_or_else(|| "GET".to_owned());
    let headers: Vec<_> = query.all("header").collect();
    let snapshot = Arc::clone(&state.shared.published.load().snapshot);
    let claims: Vec<_> = query.all("claim").collect();
    let question =
        Question::new(&method, &url, &headers, query.first("client").as_deref()).and_then(|question| {
            question.with_principal(query.first("principal").as_deref()).with_claims(&claims)
        });
    match question {
        Ok(question) => match serde_json::to_value(explain(&snapshot, &question, now_ms(state))) {
            Ok(value) => json(&value),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        Err(message) => text(StatusCode::BAD_REQUEST, format!("{message}\n")),
    }
}

/// Makes every worker pour its counts into the shared ones.
async fn flush(state: &AdminState) {
    let _ = ask(state, Command::Flush).await;
}

/// What all workers say, added up by the views.
async fn report(state: &AdminState) -> Vec<WorkerReport> {
    ask(state, Command::Report).await
}

async fn ask<T>(state: &AdminState, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
    let replies: Vec<_> = state
        .workers
        .iter()
        .map(|worker| {
            let (reply, answer) = oneshot::channel();
            worker.send(command(reply));
            answer
        })
        .collect();
    let deadline = tokio::time::Instant::now() + WORKER_TIMEOUT;
    let mut answers = Vec::with_capacity(replies.len());
    for reply in replies {
        // A worker that has ended answers no more; its counts were flushed when it ended.
        if let Ok(Ok(answer)) = tokio::time::timeout_at(deadline, reply).await {
            answers.push(answer);
        }
    }
    answers
}

/// The clock that endpoint states are kept by.
fn now_ms(state: &AdminState) -> u64 {
    state.shared.started.elapsed().as_millis() as u64
}

fn is_draining(state: &AdminState) -> bool {
    state.shared.draining.load(Ordering::Relaxed)
}

fn is_failing(state: &AdminState) -> bool {
    state.failing.load(Ordering::Relaxed)
}

fn help() -> String {
    let width = PATHS.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    let lines: Vec<_> = PATHS.iter().map(|(path, what)| format!("  {path:width$}  {what}")).collect();
    lines.join("\n") + "\n"
}

fn json(value: &Value) -> Answer {
    with_type(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<String>) -> Answer {
    with_type(status, "text/plain; charset=utf-8", body.into())
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// A query string, decoded when it is asked.
struct Query<'q>(&'q str);

impl Query<'_> {
    fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = String> + 's {
        self.0.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| decode(value))
        })
    }

    fn first(&self, name: &str) -> Option<String> {
        self.all(name).next()
    }
}

/// A query's value: `%41` is `A` and `+` is a space, as forms are encoded.
fn decode(value: &str) -> String {
    decode_path(&value.replace('+', " "))
}

/// A part of a path: `%41` is `A`; what is no valid escape stands for itself.
fn decode_path(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The values of a query's parameter. For the fuzz targets.
#[cfg(fuzzing)]
pub fn query_values(query: &str, name: &str) -> Vec<String> {
    Query(query).all(name).collect()
}

#[cfg(test)]
mod tests;
