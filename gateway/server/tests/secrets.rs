//! Nothing that is secret is told: a gateway is given secrets that are marked, good ones and ones that are wrong in every way
//! that has a message, by file and by the admin server. Then all that the gateway tells is searched for the marks: what its
//! admin server shows, its log at the level `debug`, its access log, its audit log.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the admin server shows. A path that is new belongs here; `every_path_is_asked` holds the list against `/help`.
const PATHS: [&str; 17] = [
    "/ready",
    "/metrics",
    "/stats/prometheus",
    "/api/v1/status",
    "/api/v1/jwks",
    "/api/v1/objects",
    "/api/v1/splits",
    "/api/v1/pools",
    "/api/v1/pools/{namespace}/{pool}",
    "/api/v1/explain",
    "/config_dump",
    "/clusters",
    "/clusters?format=json",
    "/listeners",
    "/listeners?format=json",
    "/server_info",
    "/help",
];
/// For the gateway to have read what it was given.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn no_secret_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["shop.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (chain, key) = (certificate.pem(), key.serialize_pem());
    // The good key is known by its own lines; whatever is wrong, by a mark.
    let mut marks: Vec<String> =
        key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect();
    marks.push(base64(key.as_bytes())[40..80].to_owned());
    let mut mark = |name: &str| {
        let mark = format!("mark-{name}-5ecre7");
        // As it is in `data`, whatever stands before it: the middle of its encoding.
        marks.push(base64(mark.as_bytes())[..16].to_owned());
        marks.push(mark.clone());
        mark
    };
    let bad_key = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        base64(mark("badkey").as_bytes())
    );
    let port = free_address().port();
    let config = path("config");
    std::fs::create_dir(&config).unwrap();
    let write = |name: &str, text: &str| std::fs::write(config.join(name), text).unwrap();
    write("gateway.yaml", &gateway(port, free_address().port()));
    write("good.yaml", &secret("shop", "kubernetes.io/tls", &[("tls.crt", &chain), ("tls.key", &key)]));
    write("bad-key.yaml", &secret("bad", "kubernetes.io/tls", &[("tls.crt", &chain), ("tls.key", &bad_key)]));
    write(
        "no-pem.yaml",
        &secret("nopem", "kubernetes.io/tls", &[("tls.crt", &chain), ("tls.key", &mark("nopem"))]),
    );
    write(
        "opaque.yaml",
        &secret("opaque", "Opaque", &[("password", &mark("opaque")), ("key1", &mark("apikey"))]),
    );
    let head = "apiVersion: v1\nkind: Secret\nmetadata: {name: wrong}\ntype: kubernetes.io/tls\n";
    // Messages of a mistake in a text commonly quote it.
    write("string-data.yaml", &format!("{head}stringData: {{tls.key: {}}}\n", mark("stringdata")));
    write("no-base64.yaml", &format!("{head}data: {{tls.key: '{}!'}}\n", mark("nobase64")));
    write("no-map.yaml", &format!("{head}data: {}\n", mark("nomap")));
    write("a-list.yaml", &format!("{head}data: [{}]\n", mark("list")));
    write("no-yaml.yaml", &format!("{head}data: {{tls.key: {}\n", mark("noyaml")));
    write("tab.yaml", &format!("{head}data:\n\ttls.key: {}\n", mark("tab")));
    write("unknown.yaml", &format!("{head}dta: {{tls.key: {}}}\n", mark("field")));
    // A symmetric key is one that signs, too.
    let rule = |name: &str, keys: String| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}}}\n\
             spec: {{jwtRules: [{{issuer: {name}, jwks: '{keys}'}}]}}\n"
        )
    };
    write(
        "jwt.yaml",
        &rule(
            "jwt",
            format!("{{\"keys\":[{{\"kty\":\"oct\",\"k\":\"{}\"}}]}}", base64(mark("jwk").as_bytes())),
        ),
    );
    write(
        "bad-jwt.yaml",
        &rule("badjwt", format!("{{\"keys\":[{{\"kty\":\"oct\",\"k\":\"{}", mark("badjwk"))),
    );
    let gateway = Gateway::start(&config, directory.path());
    gateway.until("/api/v1/status", "no-yaml.yaml");
    let put = format!("{head}data: {{tls.key: '{}!'}}\n", mark("put"));
    let answer = gateway.ask(&format!(
        "PUT /api/v1/objects HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/yaml\r\nContent-Length: {}\r\n\r\n{put}",
        put.len()
    ));
    assert!(!answer.starts_with("HTTP/1.0 200"), "{answer}");
    let request = format!(
        "GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nAuthorization: Bearer {}\r\nCookie: session={}\r\n\r\n",
        mark("bearer"),
        mark("cookie"),
    );
    assert!(exchange(([127, 0, 0, 1], port).into(), &request).starts_with("HTTP/1.1 401"));

    let mut told = vec![("the answer to the PUT".to_owned(), answer)];
    told.extend(PATHS.iter().map(|path| ((*path).to_owned(), gateway.get(path))));
    every_path_is_asked(&gateway.get("/help"));
    let log = gateway.end();
    assert!(
        log.contains("bad-key") || log.contains("Secret default/bad"),
        "the bad key is not even mentioned: {log}"
    );
    told.push(("the log".to_owned(), log));
    for file in ["access.log", "audit.log"] {
        told.push((file.to_owned(), std::fs::read_to_string(path(file)).unwrap()));
    }
    for (place, text) in &told {
        assert!(!text.is_empty(), "{place} is empty");
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{place} tells {mark}:\n{text}");
        }
    }
}

fn every_path_is_asked(help: &str) {
    let shown = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("GET "))
        .map(|line| line.split(' ').next().unwrap_or_default().split('?').next().unwrap_or_default());
    for path in shown {
        assert!(PATHS.contains(&path), "GET {path} is not searched for secrets");
    }
}

fn gateway(port: u16, tls: u16) -> String {
    let reference = |name: &str| format!("{{kind: Secret, name: {name}}}");
    let listener = |name: &str, port: u16, secret: &str| {
        format!(
            "  - {{name: {name}, protocol: HTTPS, port: {port}, hostname: {name}.test, tls: {{certificateRefs: [{}]}}}}\n",
            reference(secret)
        )
    };
    let listeners: String =
        ["shop", "bad", "nopem", "wrong", "opaque"].iter().map(|name| listener(name, tls, name)).collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
         gatewayClassName: fieldgate\n  addresses: [{{type: IPAddress, value: 127.0.0.1}}]\n  listeners:\n  \
         - {{name: web, protocol: HTTP, port: {port}}}\n{listeners}"
    )
}

fn secret(name: &str, kind: &str, data: &[(&str, &str)]) -> String {
    let data: Vec<_> =
        data.iter().map(|(key, value)| format!("  {key}: {}\n", base64(value.as_bytes()))).collect();
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ntype: {kind}\ndata:\n{}",
        data.concat()
    )
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= chunk.len() { letter as char } else { '=' });
        }
    }
    text
}

struct Gateway {
    child: Child,
    admin: SocketAddr,
    log: std::path::PathBuf,
}

impl Gateway {
    fn start(config: &Path, directory: &Path) -> Self {
        let log = directory.join("log");
        let admin = free_address();
        let file = |name: &str| directory.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_fieldgate"))
            .args([
                "run",
                "--workers",
                "1",
                "--log-level",
                "debug",
                "--api-write",
                "--admin",
                &admin.to_string(),
            ])
            .arg("--config")
            .arg(config)
            .arg("--access-log")
            .arg(file("access.log"))
            .arg("--audit-log")
            .arg(file("audit.log"))
            .stderr(std::fs::File::create(&log).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, admin, log }
    }

    fn until(&self, path: &str, text: &str) {
        let begun = Instant::now();
        while !(TcpStream::connect(self.admin).is_ok() && self.get(path).contains(text)) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{path} never tells {text}: {:?}",
                std::fs::read_to_string(&self.log)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    fn ask(&self, request: &str) -> String {
        exchange(self.admin, request)
    }

    /// All that it logged until its end.
    fn end(mut self) -> String {
        self.ask("POST /drain_listeners HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        self.child.wait().unwrap();
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Either fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
