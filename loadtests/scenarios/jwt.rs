//! Tokens before an issuer that goes down, is slow, answers garbage and rotates its keys: nobody with a good token notices.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::http::{self, Response};
use fieldgate_loadtests::rig::{Gateway, config, ports, wait};
use serde_json::{Value, json};

use crate::context::{Context, Figures, Outcome, ensure, ensure_flawless};

/// Longer than the longest pause between two fetches.
const BOUND: Duration = Duration::from_secs(80);
/// How long the gateway waits for keys here.
const TIMEOUT: Duration = Duration::from_secs(1);

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    let stage = context.stage()?;
    let edge = stage.plain_edge()?;
    let _backends = stage.pools(&["one", "vip"])?;
    let (a, b, c) = (Signer::new("a")?, Signer::new("b")?, Signer::new("c")?);
    let issuer = Issuer::start(&[&a])?;
    stage.config.write("tokens", &authentication(issuer.address))?;
    let by_claim = "    matches: [{headers: [{name: x-group, value: vip}]}]\n";
    stage.config.write("route-vip", &config::route_with_rule("vip", &[("vip", 1)], by_claim))?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let gateway = stage.gateway(&context.options())?;

    verdicts(edge, &a, &b)?;
    routes_by_claim(edge, &a)?;
    figures.add("good tokens pass, bad ones get 401 or 403; claims choose routes, forged headers do not");

    let plan = Plan { rate: Some(500.0), path: "/".to_owned(), ..Plan::new(edge) };
    let token = a.token(&json!({}));
    let headers = vec![("authorization".to_owned(), format!("Bearer {token}"))];
    let load = Plan { headers, duration: Some(Duration::from_mins(10)), ..plan }.start()?;
    for (name, mode) in [("down", Mode::Down), ("slow", Mode::Slow), ("garbage", Mode::Garbage)] {
        issuer.be(mode)?;
        let before = failures(&gateway)?;
        // A key that nobody has is a reason to look for it.
        ensure(status(edge, &c.token(&json!({})))? == 401, || "a token of a stranger passed".to_owned())?;
        wait::until_true(BOUND, &format!("a fetch to fail while the issuer is {name}"), || {
            failures(&gateway).is_ok_and(|now| now > before)
        })?;
        ensure(status(edge, &token)? == 200, || {
            format!("a good token is refused while the issuer is {name}")
        })?;
    }
    issuer.set(&[&a, &b]);
    issuer.be(Mode::Up)?;
    wait::until_true(BOUND, "the new key", || status(edge, &b.token(&json!({}))) == Ok(200))?;
    let asked = issuer.asked();
    for _ in 0..200 {
        let refused = status(edge, &c.token(&json!({})))?;
        ensure(refused == 401, || format!("a token of a stranger got {refused}"))?;
    }
    let more = issuer.asked() - asked;
    ensure(more <= 2, || format!("200 tokens of strangers made {more} fetches"))?;
    let tally = load.stop();
    ensure_flawless("a good token through all of it", &tally)?;
    figures.add(format!(
        "{} requests with a good token, none failed while the issuer was down, slow, garbled and rotated",
        tally.sent
    ));

    issuer.set(&[&b, &c]);
    wait::until_true(BOUND, "the next key", || status(edge, &c.token(&json!({}))) == Ok(200))?;
    ensure(status(edge, &token)? == 401, || "a token passes whose key was taken back".to_owned())?;
    ensure(status(edge, &b.token(&json!({})))? == 200, || "a key that stayed is lost".to_owned())?;
    shown(&gateway)?;
    figures
        .add("rotation is picked up, keys that are taken back are gone, strangers cannot make it ask often");
    drop(gateway);

    issuer.be(Mode::Down)?;
    let gateway = stage.gateway(&context.options())?;
    let answer = ask(edge, "GET", "/", &[&bearer(&b.token(&json!({})))])?;
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    ensure(answer.status == 401 && said.trim() == "Jwks remote fetch is failed", || {
        format!("before the first fetch: {} {said}", answer.status)
    })?;
    ensure(ask(edge, "GET", "/", &[])?.status == 200, || "a request without a token is refused".to_owned())?;
    issuer.be(Mode::Up)?;
    wait::until_true(BOUND, "the first keys", || status(edge, &b.token(&json!({}))) == Ok(200))?;
    figures.add("a start while the issuer is down serves those without tokens, and others once it is back");
    drop(gateway);
    Ok(figures)
}

fn authentication(issuer: SocketAddr) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens}}
spec:
  jwtRules:
  - issuer: https://issuer.test
    audiences: [shop]
    jwksUri: http://{issuer}/keys
    timeout: {}s
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{{header: x-group, claim: realm.group}}]
",
        TIMEOUT.as_secs()
    )
}

fn verdicts(edge: SocketAddr, signer: &Signer, stranger: &Signer) -> Result<(), String> {
    let expired = signer.token(&json!({ "exp": now() - 100 }));
    let future = signer.token(&json!({ "nbf": now() + 1000 }));
    let unsigned =
        format!("{}.{}.", encode(&json!({"alg": "none"})), encode(&json!({"iss": "https://issuer.test"})));
    let table = [
        (None, 200, ""),
        (Some(signer.token(&json!({}))), 200, ""),
        (Some(signer.token(&json!({ "exp": now() - 30 }))), 200, ""),
        (Some(expired), 401, "Jwt is expired"),
        (Some(future), 401, "Jwt not yet valid"),
        (Some(signer.token(&json!({ "iss": "https://other.test" }))), 401, "Jwt issuer is not configured"),
        (Some(signer.token(&json!({ "aud": "other" }))), 403, "Audiences in Jwt are not allowed"),
        (Some(stranger.token(&json!({}))), 401, "Jwks doesn't have key to match kid or alg from Jwt"),
        (Some(unsigned), 401, "Jwt header [alg] is not supported"),
        (
            Some("garbage".to_owned()),
            401,
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
        ),
    ];
    for (token, expected, text) in table {
        let fields: Vec<String> = token.iter().map(|token| bearer(token)).collect();
        let answer = ask(edge, "GET", "/path?query", &fields.iter().map(|f| &**f).collect::<Vec<_>>())?;
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        ensure(answer.status == expected && (expected == 200 || said == text), || {
            format!("{text:?} was expected with {expected}, not {} {said:?}", answer.status)
        })?;
        if expected != 200 {
            let challenge = answer.header("www-authenticate").unwrap_or_default().to_owned();
            let wanted = format!("Bearer realm=\"http://{edge}/path\", error=\"invalid_token\"");
            ensure(challenge == wanted, || format!("www-authenticate: {challenge}"))?;
        }
    }
    let preflight = ["origin: https://a.test", "access-control-request-method: GET", &bearer("garbage")];
    let answer = ask(edge, "OPTIONS", "/", &preflight)?;
    ensure(answer.status == 200, || format!("a preflight got {}", answer.status))?;
    let answer =
        ask(edge, "POST", "/a.B/C", &["content-type: application/grpc", "content-length: 0", &bearer("x")])?;
    let code = answer.header("grpc-status").unwrap_or_default().to_owned();
    ensure(answer.status == 200 && code == "16", || format!("gRPC: {} {code}", answer.status))?;
    let in_query = ask(edge, "GET", &format!("/echo?a=1&access_token={}", signer.token(&json!({}))), &[])?;
    let seen = String::from_utf8_lossy(&in_query.body).into_owned();
    ensure(in_query.status == 200 && !seen.contains("access_token"), || format!("in the query: {seen}"))
}

/// A header made of a claim is there before a route is chosen; one that a client made is not.
fn routes_by_claim(edge: SocketAddr, signer: &Signer) -> Result<(), String> {
    let vip = bearer(&signer.token(&json!({ "realm": { "group": "vip" } })));
    let plain = bearer(&signer.token(&json!({ "realm": { "group": "all" } })));
    let forged = "x-group: vip";
    for (fields, expected) in [
        (vec![&*vip], "vip"),
        (vec![&*vip, "x-group: all"], "vip"),
        (vec![&*plain], "one"),
        (vec![&*plain, forged], "one"),
        (vec![forged, "x-payload: e30"], "one"),
    ] {
        let answer = ask(edge, "GET", "/echo", &fields)?;
        let by = answer.header("x-backend").unwrap_or_default().to_owned();
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        ensure(answer.status == 200 && by == expected, || {
            format!(
                "{} was expected, not {} {by} for {} fields: {body}",
                expected,
                answer.status,
                fields.len()
            )
        })?;
        ensure(!body.contains("authorization") && !body.contains("\"e30\""), || format!("upstream: {body}"))?;
    }
    Ok(())
}

/// What an operator sees of keys: names, never the keys.
fn shown(gateway: &Gateway) -> Result<(), String> {
    let sets = http::get_json(gateway.admin, "/api/v1/jwks")?;
    let kids: Vec<&str> =
        sets[0]["keys"].as_array().into_iter().flatten().filter_map(|key| key["kid"].as_str()).collect();
    ensure(kids == ["b", "c"], || format!("/api/v1/jwks: {sets}"))?;
    let age = gateway.metric("fieldgate_jwks_age_seconds", "uri=")?;
    let keys = gateway.metric("fieldgate_jwks_keys", "uri=")?;
    let refused = gateway.metric("fieldgate_jwt_requests_total", "result=\"unknown_key\"")?;
    let known = gateway.metric("fieldgate_jwt_tokens_total", "cache=\"hit\"")?;
    ensure(keys == 2.0 && age < 300.0 && refused >= 200.0 && known > 100.0, || {
        format!("metrics: keys {keys}, age {age}, unknown keys {refused}, known tokens {known}")
    })?;
    let objects = http::get_json(gateway.admin, "/api/v1/objects")?.to_string();
    ensure(objects.contains("KeysReady"), || format!("/api/v1/objects: {objects}"))
}

fn failures(gateway: &Gateway) -> Result<f64, String> {
    gateway.metric("fieldgate_jwks_fetches_total", "result=\"failure\"")
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}")
}

fn status(edge: SocketAddr, token: &str) -> Result<u16, String> {
    Ok(ask(edge, "GET", "/", &[&bearer(token)])?.status)
}

fn ask(edge: SocketAddr, method: &str, target: &str, fields: &[&str]) -> Result<Response, String> {
    let fields = fields.iter().fold(String::new(), |all, field| all + field + "\r\n");
    let request = format!("{method} {target} HTTP/1.1\r\nhost: {edge}\r\nconnection: close\r\n{fields}\r\n");
    let mut bytes = Vec::new();
    let exchange = http::connect(edge).and_then(|mut stream| {
        stream.write_all(request.as_bytes())?;
        stream.read_to_end(&mut bytes)
    });
    exchange.map_err(|error| format!("{method} {target}: {error}"))?;
    http::parse(&bytes)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A key of the issuer, or of somebody who would like to be.
struct Signer {
    kid: &'static str,
    pair: EcdsaKeyPair,
}

impl Signer {
    fn new(kid: &'static str) -> Result<Self, String> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Ok(Self { kid, pair: pair.map_err(|error| format!("a key cannot be made: {error}"))? })
    }

    fn key(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let [x, y] = [1..33, 33..65].map(|part| URL_SAFE_NO_PAD.encode(&point[part]));
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid, "x": x, "y": y })
    }

    /// A good token but for these claims.
    fn token(&self, claims: &Value) -> String {
        let mut all =
            json!({ "iss": "https://issuer.test", "sub": "me", "aud": ["shop"], "exp": now() + 3600 });
        for (name, value) in claims.as_object().into_iter().flatten() {
            all[name] = value.clone();
        }
        let signed = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": self.kid })), encode(&all));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.expect("the system has random numbers")))
    }
}

/// How the issuer is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Up,
    /// Nobody listens.
    Down,
    /// It answers much too late.
    Slow,
    /// It answers what is no set of keys.
    Garbage,
}

/// An issuer's web server.
struct Issuer {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    document: Mutex<String>,
    mode: Mutex<Mode>,
    asked: AtomicU64,
    listening: AtomicBool,
}

impl Issuer {
    fn start(signers: &[&Signer]) -> Result<Self, String> {
        let state = State {
            document: Mutex::default(),
            mode: Mutex::new(Mode::Down),
            asked: AtomicU64::new(0),
            listening: AtomicBool::new(false),
        };
        let issuer = Self { address: ports::free(), state: Arc::new(state) };
        issuer.set(signers);
        issuer.be(Mode::Up)?;
        Ok(issuer)
    }

    /// Publishes these keys.
    fn set(&self, signers: &[&Signer]) {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.key()).collect();
        *lock(&self.state.document) = json!({ "keys": keys }).to_string();
    }

    fn be(&self, mode: Mode) -> Result<(), String> {
        *lock(&self.state.mode) = mode;
        if mode == Mode::Down {
            // Its accept ends, and with it the socket.
            let _ = TcpStream::connect(self.address);
            return wait::until_true(BOUND, "the issuer's end", || {
                !self.state.listening.load(Ordering::Acquire)
            });
        }
        if !self.state.listening.load(Ordering::Acquire) {
            let listener =
                TcpListener::bind(self.address).map_err(|error| format!("{}: {error}", self.address))?;
            self.state.listening.store(true, Ordering::Release);
            let state = Arc::clone(&self.state);
            std::thread::spawn(move || state.serve(listener));
        }
        Ok(())
    }

    fn asked(&self) -> u64 {
        self.state.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.be(Mode::Down);
    }
}

impl State {
    fn serve(&self, listener: TcpListener) {
        for stream in listener.incoming() {
            if *lock(&self.mode) == Mode::Down {
                break;
            }
            // A client that goes away is not the issuer's concern.
            let _ = stream.and_then(|stream| self.answer(stream));
        }
        drop(listener);
        self.listening.store(false, Ordering::Release);
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut request = [0; 4096];
        let length = stream.read(&mut request)?;
        if !request[..length].starts_with(b"GET /keys ") {
            return Ok(());
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let body = match *lock(&self.mode) {
            Mode::Garbage => "<html>503</html>".to_owned(),
            _ => lock(&self.document).clone(),
        };
        if *lock(&self.mode) == Mode::Slow {
            // Until the client has had enough.
            stream.set_read_timeout(Some(20 * TIMEOUT))?;
            let _ = stream.read(&mut request);
        }
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
