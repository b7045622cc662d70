//! The metrics of a running gateway, by the rules of Prometheus: what `promtool check metrics` looks at, and promtool itself
//! where it is installed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

/// Istio prescribes the name and its unit. There must be no other exception.
const BY_ISTIO: &str = "istio_request_duration_milliseconds";

#[test]
fn metrics_are_as_prometheus_wants_them() {
    let text = Gateway::start().metrics_after_a_request();
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(kinds.insert(name, kind).is_none(), "{name} has two types");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        let units = ["_milliseconds", "_microseconds", "_minutes", "_hours", "_kib", "_mib", "_percent"];
        assert!(name == BY_ISTIO || !units.iter().any(|unit| name.contains(unit)), "the unit of {name}");
    }
    assert!(kinds.len() > 10, "{text}");
    assert!(kinds.contains_key(BY_ISTIO), "the request was not counted: {text}");
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(seen.insert(series), "{series} is there twice");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let known = family.is_some_and(|f| kinds.get(f) == Some(&"histogram")) || kinds.contains_key(name);
        assert!(known, "{name} has no type");
    }
    promtool(&text);
}

/// One finding is known and wanted.
fn promtool(text: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = started else {
        println!("skipped: promtool is not installed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    let findings: Vec<_> = said.lines().filter(|line| !line.starts_with(BY_ISTIO)).collect();
    assert!(findings.is_empty(), "promtool check metrics: {said}");
}

/// A gateway process with one listener and no route. It is killed when dropped.
struct Gateway {
    child: Child,
    listener: SocketAddr,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Gateway {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = free_address();
        let gateway = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
             gatewayClassName: fieldgate\n  addresses: [{{type: IPAddress, value: 127.0.0.1}}]\n  \
             listeners: [{{name: web, protocol: HTTP, port: {}}}]\n",
            listener.port()
        );
        std::fs::write(directory.path().join("gateway.yaml"), gateway).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_fieldgate"))
            .args(["run", "--workers", "1", "--admin", "127.0.0.1:0", "--config"])
            .arg(directory.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line =
            log.find(|line| line.contains("admin server listening")).expect("the admin server's address");
        let admin = line.rsplit('=').next().unwrap().trim().parse().unwrap();
        log.find(|line| line.contains("fieldgate serves")).expect("the gateway serves");
        Self { child, listener, admin, _directory: directory }
    }

    fn metrics_after_a_request(&self) -> String {
        assert!(get(self.listener, "/").starts_with("HTTP/1.1 404 "));
        let answer = get(self.admin, "/metrics");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Either fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
