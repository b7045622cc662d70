use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::control::{self, ApiWrite, Event, View};
use crate::published::{Published, Shared};
use crate::telemetry::Telemetry;

use super::*;

#[test]
fn queries_are_decoded() {
    let query = Query("method=GET&header=a%3A+b&header=c&url=http%3A%2F%2Fx%2F%3Fq%3D1&bad=%zz%4");
    assert_eq!(query.first("method").as_deref(), Some("GET"));
    assert_eq!(query.all("header").collect::<Vec<_>>(), ["a: b", "c"]);
    assert_eq!(query.first("url").as_deref(), Some("http://x/?q=1"));
    assert_eq!(query.first("bad").as_deref(), Some("%zz%4"));
    assert_eq!(query.first("none"), None);
}

/// An admin server of a gateway that has no workers and no control task.
struct Admin {
    address: std::net::SocketAddr,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Admin {
    async fn start(view: View) -> Self {
        Self::start_with(view, ApiWrite::Off).await
    }

    async fn start_with(view: View, api_write: ApiWrite) -> Self {
        Self::start_secured(view, api_write, None, &[]).await
    }

    /// With TLS, if there are files for it, and these roles.
    async fn start_secured(view: View, api_write: ApiWrite, tls: Option<TlsFiles>, roles: &[&str]) -> Self {
        let roles = roles.iter().map(|role| role.parse().unwrap()).collect();
        let access = Options { tls: tls.clone(), roles, plaintext: false };
        let published = Published::nothing(None);
        let (control, events) = control::channel();
        let state = AdminState {
            shared: Arc::new(Shared {
                published: Arc::new(ArcSwap::from_pointee(published)),
                telemetry: Telemetry::new(),
                started: Instant::now(),
                workers: 1,
                room_news: Arc::default(),
                overload: Arc::default(),
                draining: AtomicBool::new(false),
            }),
            workers: Vec::new(),
            view: Arc::new(ArcSwap::from_pointee(view)),
            control,
            drain_time: Duration::from_secs(7),
            quit: watch::Sender::new(false),
            api_write,
            failing: AtomicBool::new(false),
            hardened: Arc::default(),
            access: Access::new(&access, false),
            audit: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = tls.map(|files| Arc::new(Tls::open(files).unwrap()));
        tokio::spawn(serve(listener, Arc::new(state), tls));
        Self { address, events }
    }

    async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(format!("{request}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.0")).await
    }
}

#[tokio::test]
async fn readiness_says_why_not() {
    let answer = Admin::start(View::default()).await.get("/ready").await;
    assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
    assert!(answer.contains("no configuration is published yet"), "{answer}");
    let admin = Admin::start(View { generation: 1, ..View::default() }).await;
    assert!(admin.get("/ready").await.starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn every_path_answers_and_a_wrong_one_lists_them() {
    let mut admin = Admin::start(View::default()).await;
    // As at the end of the process: nobody answers what is asked of the control task.
    admin.events.close();
    for (path, _) in PATHS.iter().filter(|(path, _)| path.starts_with("GET ")) {
        let path = path[4..].split('?').next().unwrap();
        let expected = match path {
            "/ready" => "HTTP/1.0 503",
            "/api/v1/explain" => "HTTP/1.0 400",
            "/api/v1/pools/{namespace}/{pool}" => "HTTP/1.0 404",
            _ => "HTTP/1.0 200",
        };
        let answer = admin.get(path).await;
        assert!(answer.starts_with(expected), "{path}: {answer}");
    }
    let wrong = admin.get("/metric").await;
    assert!(wrong.starts_with("HTTP/1.0 404") && wrong.contains("GET /metrics"), "{wrong}");
}

#[tokio::test]
async fn orders_are_posted_and_not_by_web_pages() {
    let mut admin = Admin::start(View::default()).await;
    assert!(admin.get("/drain_listeners").await.starts_with("HTTP/1.0 405"));
    let from_page = "POST /drain_listeners HTTP/1.0\r\nOrigin: http://evil.example\r\nContent-Length: 0";
    assert!(admin.ask(from_page).await.starts_with("HTTP/1.0 403"));
    assert!(admin.events.try_recv().is_err(), "nothing was ordered");
    admin.ask("POST /drain_listeners HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0").await;
    let Ok(Event::Drain { deadline }) = admin.events.try_recv() else { panic!("no drain was ordered") };
    assert_eq!(deadline, Duration::from_secs(7));
}

#[tokio::test]
async fn readiness_can_be_taken_back_for_a_load_balancer_in_front() {
    let admin = Admin::start(View { generation: 1, ..View::default() }).await;
    let post = async |path: &str| {
        admin.ask(&format!("POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0")).await
    };
    assert!(admin.get("/healthcheck/fail").await.starts_with("HTTP/1.0 405"));
    assert!(post("/healthcheck/fail").await.starts_with("HTTP/1.0 200"));
    let answer = admin.get("/ready").await;
    assert!(answer.starts_with("HTTP/1.0 503") && answer.contains("/healthcheck/ok"), "{answer}");
    assert!(admin.get("/server_info").await.contains("DRAINING"));
    assert!(post("/healthcheck/ok").await.starts_with("HTTP/1.0 200"));
    assert!(admin.get("/ready").await.starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn endpoints_are_drained_where_it_is_allowed_and_never_by_web_pages() {
    let drain = "POST /api/v1/pools/default/vms/endpoints/10.0.0.1:80/drain HTTP/1.0\r\nContent-Length: 0";
    let local = "Host: localhost";
    let mut admin = Admin::start(View::default()).await;
    let answer = admin.ask(&format!("{drain}\r\n{local}")).await;
    assert!(answer.starts_with("HTTP/1.0 403") && answer.contains("--api-write"), "{answer}");

    let mut allowed = Admin::start_with(View::default(), ApiWrite::Loopback).await;
    for (request, status) in [
        (format!("{drain}\r\n{local}\r\nOrigin: http://evil.example"), 403),
        (format!("{drain}\r\nHost: evil.example"), 403),
        (format!("{drain}\r\n{local}").replace("POST", "PUT"), 405),
        (format!("{drain}\r\n{local}").replace(":80", ""), 400),
        (format!("{drain}\r\n{local}").replace("/vms", "/service/vms"), 404),
        (format!("{drain}\r\n{local}").replace("/drain", "/drown"), 405),
    ] {
        let answer = allowed.ask(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.0 {status}")), "{request}: {answer}");
    }
    assert!(admin.events.try_recv().is_err() && allowed.events.try_recv().is_err(), "nobody was asked");

    let control = async {
        let Some(Event::DrainEndpoint(order)) = allowed.events.recv().await else {
            panic!("no drain was asked for")
        };
        assert!(order.drained);
        let _ = order.reply.send(Err(format!("{} has no endpoint {}", order.pool, order.address)));
    };
    let address = allowed.address;
    let ask = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{drain}\r\n{local}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let ((), answer) = tokio::join!(control, ask);
    assert!(answer.starts_with("HTTP/1.0 404"), "{answer}");
    assert!(answer.contains("Pool default/vms has no endpoint 10.0.0.1:80"), "{answer}");
}

#[tokio::test]
async fn rejected_objects_are_counted_once_each_and_by_known_kinds() {
    use fieldgate_config::check_text;
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {x: 1, y: 2}\n";
    let other = "apiVersion: nobody.example/v1\nkind: Thing\nmetadata: {name: b}\nspec: {}\n";
    let mut diagnostics = check_text(&[("a.yaml", route), ("b.yaml", other)]);
    for diagnostic in &mut diagnostics {
        diagnostic.severity = fieldgate_config::diagnostic::Severity::Error;
    }
    let admin = Admin::start(View { generation: 3, diagnostics, ..View::default() }).await;
    let answer = admin.get("/metrics").await;
    for line in [
        "fieldgate_config_generation 3",
        "fieldgate_config_rejected_objects{kind=\"HTTPRoute\"} 1",
        "fieldgate_config_rejected_objects{kind=\"unknown\"} 1",
        "fieldgate_config_rejected_objects{kind=\"Gateway\"} 0",
    ] {
        assert!(answer.lines().any(|l| l == line), "{line} is not in {answer}");
    }
}

#[tokio::test]
async fn objects_are_changed_where_it_is_allowed_and_never_by_web_pages() {
    let put = "PUT /api/v1/objects HTTP/1.0";
    let yaml = "Content-Type: application/yaml";
    let local = "Host: 127.0.0.1:15000";
    let mut admin = Admin::start(View::default()).await;
    let answer = admin.ask(&format!("{put}\r\n{local}\r\n{yaml}\r\nContent-Length: 0")).await;
    assert!(answer.starts_with("HTTP/1.0 403") && answer.contains("--api-write"), "{answer}");
    assert!(admin.events.try_recv().is_err());

    let mut admin = Admin::start_with(View::default(), ApiWrite::Loopback).await;
    for (request, status) in [
        (format!("{put}\r\n{local}\r\n{yaml}\r\nOrigin: http://evil.example\r\nContent-Length: 0"), 403),
        (format!("{put}\r\nHost: evil.example\r\n{yaml}\r\nContent-Length: 0"), 403),
        (format!("{put}\r\n{yaml}\r\nContent-Length: 0"), 403),
        (format!("{put}\r\n{local}\r\nContent-Length: 0"), 415),
        (format!("{put}\r\n{local}\r\nContent-Type: text/plain\r\nContent-Length: 0"), 415),
        (format!("{put}\r\n{local}\r\n{yaml}\r\nContent-Length: 5000000"), 413),
        (format!("{put}\r\n{local}\r\n{yaml}\r\nIf-Match: x\r\nContent-Length: 0"), 400),
        (format!("POST /api/v1/objects HTTP/1.0\r\n{local}\r\n{yaml}\r\nContent-Length: 0"), 405),
        (format!("DELETE /api/v1/objects/Pool/default HTTP/1.0\r\n{local}"), 404),
        ("DELETE /api/v1/objects/Pool/default/vms HTTP/1.0\r\nHost: evil.example".to_owned(), 403),
    ] {
        let answer = admin.ask(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.0 {status}")), "{request}: {answer}");
    }
    assert!(admin.events.try_recv().is_err(), "nobody was asked for a change");
}

#[tokio::test]
async fn a_change_is_handed_on_and_its_answer_comes_back() {
    use crate::control::{Refused, What, Why};
    let mut admin = Admin::start_with(View::default(), ApiWrite::Loopback).await;
    let request = "DELETE /api/v1/objects/Pool/prod/vms HTTP/1.0\r\nHost: localhost\r\nIf-Match: \"4\"";
    let control = async {
        let Some(Event::Change(change)) = admin.events.recv().await else {
            panic!("no change was asked for")
        };
        let What::Delete(key) = change.what else { panic!("a deletion was asked for") };
        let answer =
            Err(Refused { why: Why::Stale, message: "too late".to_owned(), diagnostics: Vec::new() });
        let _ = change.reply.send(answer);
        (key.to_string(), change.if_generation)
    };
    let address = admin.address;
    let ask = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (asked, answer) = tokio::join!(control, ask);
    assert_eq!(asked, ("Pool prod/vms".to_owned(), Some(4)));
    assert!(answer.starts_with("HTTP/1.0 412") && answer.contains("too late"), "{answer}");
}

/// An authority, and files of what it signs.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem, directory: tempfile::tempdir().unwrap() }
    }

    /// Chain and key, PEM.
    fn issue(&self, name: rcgen::SanType) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![name];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn of_spiffe(&self, id: &str) -> (String, String) {
        self.issue(rcgen::SanType::URI(id.try_into().unwrap()))
    }

    /// Files for a server on loopback whose clients this authority signs.
    fn files(&self) -> TlsFiles {
        let path = |name: &str| self.directory.path().join(name);
        let files =
            TlsFiles { certificate: path("cert.pem"), key: path("key.pem"), client_ca: path("ca.pem") };
        let (chain, key) = self.issue(rcgen::SanType::IpAddress([127, 0, 0, 1].into()));
        for (path, text) in files.paths().into_iter().zip([&chain, &key, &self.pem]) {
            std::fs::write(path, text).unwrap();
        }
        files
    }
}

/// Asks by TLS; without a certificate if `shown` is `None`. An error is a handshake that failed, or no answer.
async fn ask_by_tls(
    admin: SocketAddr,
    server: &Authority,
    shown: Option<&(String, String)>,
    request: &str,
) -> std::io::Result<String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
                .unwrap()
        }
    };
    let stream = TcpStream::connect(admin).await?;
    let name = rustls::pki_types::ServerName::from(admin.ip());
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(format!("{request}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer).await;
    if answer.is_empty() {
        Err(read.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()))
    } else {
        Ok(answer)
    }
}

#[tokio::test]
async fn certificates_have_roles() {
    let (own, foreign) = (Authority::new(), Authority::new());
    let roles = ["operate=spiffe://corp/ops", "read=spiffe://corp/dev/*"];
    let files = own.files();
    let mut admin = Admin::start_secured(View::default(), ApiWrite::Off, Some(files.clone()), &roles).await;
    let get = "GET /config_dump HTTP/1.0";
    let drain = "POST /drain_listeners HTTP/1.0\r\nContent-Length: 0";
    let from_page = format!("{drain}\r\nOrigin: https://evil.example");
    let (ops, dev) = (own.of_spiffe("spiffe://corp/ops"), own.of_spiffe("spiffe://corp/dev/ann"));
    let (other, forged) = (own.of_spiffe("spiffe://corp/else"), foreign.of_spiffe("spiffe://corp/ops"));
    for (shown, request, expected) in [
        (Some(&dev), get, Some(200)),
        (Some(&dev), drain, Some(403)),
        (Some(&other), get, Some(403)),
        (Some(&other), drain, Some(403)),
        (Some(&ops), &from_page, Some(403)),
        (Some(&forged), get, None),
        (None, get, None),
        (Some(&ops), get, Some(200)),
    ] {
        let answer = ask_by_tls(admin.address, &own, shown, request).await;
        let status = answer.as_ref().ok().map(|text| text.split(' ').nth(1).unwrap().parse().unwrap());
        assert_eq!(status, expected, "{request}: {answer:?}");
    }
    assert!(
        admin.get("/metrics").await.is_empty() || !admin.get("/metrics").await.contains("200"),
        "in plaintext"
    );
    assert!(admin.events.try_recv().is_err(), "nothing was ordered");
    assert!(ask_by_tls(admin.address, &own, Some(&ops), drain).await.unwrap().contains(" 200 "));
    assert!(matches!(admin.events.try_recv(), Ok(Event::Drain { .. })));

    // Another authority, in the same file: whoever the one before signed is not known any more.
    let changed = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::write(&files.client_ca, &foreign.pem).unwrap();
    std::fs::File::open(&files.client_ca).unwrap().set_modified(changed).unwrap();
    assert!(ask_by_tls(admin.address, &own, Some(&ops), get).await.is_err());
    assert!(ask_by_tls(admin.address, &own, Some(&forged), get).await.unwrap().contains(" 200 "));
    // What cannot be read leaves that in use.
    std::fs::write(&files.client_ca, "nothing").unwrap();
    assert!(ask_by_tls(admin.address, &own, Some(&forged), get).await.unwrap().contains(" 200 "));
}
