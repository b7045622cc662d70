//! TLS towards real servers: nginx with good certificates and with each kind of bad one, OpenSSL's `s_server`, a backend
//! that speaks no TLS, one that never answers. What is good is served, in HTTP/1.1 and HTTP/2; what is not is refused with
//! its reason in the access log, and never served in the clear.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fieldgate_loadtests::rig::certificates::{Authority, Certified};
use fieldgate_loadtests::rig::{Gateway, Process, config, http, ports, wait};

use crate::bench::find;
use crate::context::{Context, Figures, Outcome, Stage, ensure};

const NAME: &str = "backend.example";
const WORKLOAD: &str = "spiffe://cluster.local/ns/default/sa/shop";
const START: Duration = Duration::from_secs(20);
/// Requests for two hosts in turn.
const TURNS: usize = 20;
const ROTATIONS: usize = 3;

pub fn run(context: &Context) -> Outcome {
    let (nginx, openssl) = match (find::on_path("nginx"), find::on_path("openssl")) {
        (Ok(nginx), Ok(openssl)) => (nginx, openssl),
        (nginx, openssl) => {
            return Ok(Figures::skipped(nginx.err().or(openssl.err()).unwrap_or_default()));
        }
    };
    let stage = context.stage()?;
    let mut parties = Parties::start(&stage, &nginx, &openssl)?;
    let edge = stage.plain_edge()?;
    parties.write_pools(&stage)?;
    let log = stage.path().join("access.log");
    let mut options = context.options();
    options.flags = vec![
        "--access-log".into(),
        log.display().to_string(),
        "--workload-certificate".into(),
        parties.workload.display().to_string(),
    ];
    let gateway = stage.gateway(&options)?;
    let mut figures = Figures::default();
    serves(edge, &mut figures)?;
    keeps_hosts_apart(edge, &mut figures)?;
    does_not_blame(edge, &gateway, &mut figures)?;
    refuses(edge, &log, &mut figures)?;
    let clear = parties.plain.counter("requests")?;
    ensure(clear == 0, || format!("{clear} requests were sent in the clear"))?;
    shows(&gateway)?;
    rotates(edge, &mut parties, &mut figures)?;
    Ok(figures)
}

/// What is good: host, and what the backend says of the request.
fn serves(edge: SocketAddr, figures: &mut Figures) -> Result<(), String> {
    for (host, expected) in [
        ("h1.test", format!("HTTP/1.1 {NAME} -")),
        ("h2.test", format!("HTTP/2.0 {NAME} -")),
        ("auto-h2.test", format!("HTTP/2.0 {NAME} -")),
        ("auto-h1.test", format!("HTTP/1.1 {NAME} -")),
        ("mutual.test", format!("HTTP/1.1 {NAME} CN=rcgen self signed cert")),
        ("mesh.test", "HTTP/1.1 mesh.test CN=rcgen self signed cert".to_owned()),
        ("policy.test", format!("HTTP/1.1 {NAME} -")),
    ] {
        let response = http::get_host(edge, host, "/")?;
        let said = String::from_utf8_lossy(&response.body).trim().to_owned();
        ensure(response.status == 200 && said == expected, || {
            format!("{host}: {} and {said:?}, where {expected:?} was expected", response.status)
        })?;
    }
    let response = http::get_host(edge, "openssl.test", "/")?;
    let said = String::from_utf8_lossy(&response.body).into_owned();
    ensure(response.status == 200 && said.contains("TLSv1.2"), || {
        format!("OpenSSL: {} and {said:.200?}", response.status)
    })?;
    figures.add("HTTP/1.1, HTTP/2, what ALPN says, TLS 1.2, client certificates, a mesh's workload: served");
    Ok(())
}

/// The request's host is the name that is asked for: a connection of one host serves no other.
fn keeps_hosts_apart(edge: SocketAddr, figures: &mut Figures) -> Result<(), String> {
    for turn in 0..TURNS {
        let host = ["one.auto.test", "two.auto.test"][turn % 2];
        let response = http::get_host(edge, host, "/")?;
        let said = String::from_utf8_lossy(&response.body).into_owned();
        ensure(said.contains(&format!(" {host} ")), || format!("{host}: {} and {said:?}", response.status))?;
    }
    figures
        .add(format!("{TURNS} requests for two hosts in turn: each on connections with its own server name"));
    Ok(())
}

/// What a client asks for says nothing of the endpoint: it is not left alone for a host that it is not.
fn does_not_blame(edge: SocketAddr, gateway: &Gateway, figures: &mut Figures) -> Result<(), String> {
    for _ in 0..TURNS {
        let odd = http::get_host(edge, "deep.below.auto.test", "/")?;
        ensure(odd.status == 503, || format!("a host that the certificate is not for: {}", odd.status))?;
        let good = http::get_host(edge, "one.auto.test", "/")?;
        ensure(good.status == 200, || format!("beside an odd host a good one got {}", good.status))?;
    }
    let pools = http::get_json(gateway.admin, "/api/v1/pools")?;
    let pool = pools.as_array().into_iter().flatten().find(|pool| pool["pool"] == "Pool default/auto-sni");
    let state = pool.map(|pool| pool["endpoints"][0]["state"].clone()).unwrap_or_default();
    ensure(state == "healthy", || format!("the endpoint is {state}"))?;
    figures.add("hosts that only the client asks for do not count against the endpoint");
    Ok(())
}

fn refuses(edge: SocketAddr, log: &Path, figures: &mut Figures) -> Result<(), String> {
    let cases = [
        ("expired.test", "the certificate has expired: it was valid until Jan  1 00:00:00 2021"),
        ("wrong-name.test", "the certificate is not for backend.example, but for other.example"),
        ("unknown.test", "not issued by an authority that is known here"),
        ("wrong-san.test", "none of which is expected"),
        ("plain.test", "the endpoint closed the connection during the handshake"),
        ("stalled.test", "the handshake was not over within the connect timeout of 300ms"),
        ("closed.test", "there are no authorities to believe"),
        ("closed-policy.test", "there are no authorities to believe"),
        ("anonymous.test", "the endpoint wants a client certificate"),
    ];
    for (host, _) in cases {
        let response = http::get_host(edge, host, "/")?;
        // nginx answers a client without a certificate by 400, within TLS.
        let expected = if host == "anonymous.test" { 400 } else { 503 };
        ensure(response.status == expected, || format!("{host}: {}", response.status))?;
    }
    let mut wrong = Vec::new();
    for (host, reason) in cases.iter().filter(|(host, _)| *host != "anonymous.test") {
        let line = wait::until(START, &format!("a line of the access log for {host}"), || {
            let text = std::fs::read_to_string(log).ok()?;
            text.lines().find(|line| line.contains(&format!("\"{host}\""))).map(str::to_owned)
        })?;
        let told = line.contains(" 503 UF") && line.contains("TLS_error: ") && line.contains(reason);
        if !told {
            wrong.push(format!("{host}: {reason:?} was expected: {line}"));
        }
    }
    ensure(wrong.is_empty(), || wrong.join("\n"))?;
    figures.add(format!("{} kinds of bad TLS are refused, each with its reason in the log", cases.len()));
    Ok(())
}

fn shows(gateway: &Gateway) -> Result<(), String> {
    for path in ["/config_dump", "/api/v1/pools", "/clusters"] {
        let response = http::get(gateway.admin, path)?;
        let text = String::from_utf8_lossy(&response.body).into_owned();
        let shown = text.contains("authorities of ConfigMap default/ca") && !text.contains("PRIVATE KEY");
        ensure(response.status == 200 && shown, || format!("{path} does not show TLS: {text:.300}"))?;
    }
    Ok(())
}

/// The workload's certificate is replaced under load.
fn rotates(edge: SocketAddr, parties: &mut Parties, figures: &mut Figures) -> Result<(), String> {
    let stop = AtomicBool::new(false);
    let serial = |response: &http::Response| response.header("x-serial").unwrap_or_default().to_owned();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let response = http::get_host(edge, "mesh.test", "/")?;
                ensure(response.status == 200, || format!("{} during a rotation", response.status))?;
                count += 1;
            }
            Ok::<usize, String>(count)
        });
        let rotate = || {
            for _ in 0..ROTATIONS {
                let before = serial(&http::get_host(edge, "mesh.test", "/")?);
                parties.write_workload()?;
                wait::until_true(START, "the new certificate to be shown", || {
                    http::get_host(edge, "mesh.test", "/").is_ok_and(|r| serial(&r) != before)
                })?;
            }
            Ok::<(), String>(())
        };
        let rotated = rotate();
        stop.store(true, Ordering::Relaxed);
        let count = load.join().map_err(|_| "the load panicked".to_owned())??;
        rotated?;
        figures.add(format!(
            "{ROTATIONS} rotations of the workload's certificate under {count} requests: none failed"
        ));
        Ok(())
    })
}

/// Who is behind the gateway.
struct Parties {
    authority: Authority,
    unknown: Authority,
    workload: PathBuf,
    ports: Vec<(&'static str, SocketAddr)>,
    plain: fieldgate_loadtests::rig::Backend,
    /// The kernel accepts for it, and nobody ever answers.
    stalled: TcpListener,
    /// They end with it.
    processes: Vec<Process>,
}

impl Parties {
    fn start(stage: &Stage, nginx: &Path, openssl: &Path) -> Result<Self, String> {
        let directory = stage.path();
        let below = |name: &str| {
            let path = directory.join(name);
            std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok::<PathBuf, String>(path)
        };
        let authority = Authority::new(&below("ca")?)?;
        let unknown = Authority::named("Somebody else", &below("unknown")?)?;
        let stalled = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        let mut parties = Self {
            workload: below("workload")?,
            ports: Vec::new(),
            plain: stage.backend("plain")?,
            stalled,
            processes: Vec::new(),
            authority,
            unknown,
        };
        parties.write_workload()?;
        let started = [parties.start_nginx(directory, nginx)?, parties.start_openssl(directory, openssl)?];
        parties.processes.extend(started);
        let stalled = parties.stalled.local_addr().map_err(|error| error.to_string())?;
        parties.ports.extend([("plain", parties.plain.address), ("stalled", stalled)]);
        Ok(parties)
    }

    fn start_nginx(&mut self, directory: &Path, nginx: &Path) -> Result<Process, String> {
        let good = self.authority.issue(&[NAME, "*.auto.test"])?;
        let servers: [(&str, Certified, &str, &str); 6] = [
            ("good", good, "ssl http2", ""),
            ("http1", self.authority.issue(&[NAME])?, "ssl", ""),
            ("expired", self.authority.issue_expired(&[NAME])?, "ssl", ""),
            ("other", self.authority.issue(&["other.example"])?, "ssl", ""),
            ("unknown", self.unknown.issue(&[NAME])?, "ssl", ""),
            ("mesh", self.authority.issue(&[WORKLOAD, NAME])?, "ssl", "on"),
        ];
        let mut text = format!(
            "daemon off;\npid {0}/nginx.pid;\nerror_log {0}/nginx-error.log;\nevents {{}}\nhttp {{\naccess_log off;\n",
            directory.display()
        );
        for (name, certified, listen, clients) in servers {
            let (certificate, key) = certified.write(directory, &format!("nginx-{name}"))?;
            let address = ports::free();
            let clients = if clients.is_empty() {
                String::new()
            } else {
                format!("ssl_verify_client on; ssl_client_certificate {};", self.authority.file.display())
            };
            let _ = writeln!(
                text,
                "server {{ listen {address} {listen}; ssl_certificate {}; ssl_certificate_key {}; {clients}
  add_header x-serial $ssl_client_serial;
  location / {{ default_type text/plain; return 200 \"$server_protocol $ssl_server_name $subject\"; }} }}",
                certificate.display(),
                key.display()
            );
            self.ports.push((name, address));
        }
        text.push_str("map $ssl_client_s_dn $subject { default $ssl_client_s_dn; \"\" -; }\n}\n");
        let file = directory.join("nginx.conf");
        std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        let words = ["-c", &file.display().to_string(), "-p", &directory.display().to_string()];
        let mut process = Process::start("nginx", directory, None, nginx, &words.map(str::to_owned))?;
        process.wait_listening(self.port("mesh"))?;
        Ok(process)
    }

    fn start_openssl(&mut self, directory: &Path, openssl: &Path) -> Result<Process, String> {
        let (certificate, key) = self.authority.issue(&[NAME])?.write(directory, "openssl")?;
        let address = ports::free();
        let words = [
            "s_server",
            "-accept",
            &address.to_string(),
            "-cert",
            &certificate.display().to_string(),
            "-key",
            &key.display().to_string(),
            "-tls1_2",
            "-www",
            "-quiet",
        ];
        let mut process = Process::start("openssl", directory, None, openssl, &words.map(str::to_owned))?;
        process.wait_listening(address)?;
        self.ports.push(("openssl", address));
        Ok(process)
    }

    fn port(&self, name: &str) -> SocketAddr {
        let found = self.ports.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("there is no party {name}")).1
    }

    fn write_workload(&self) -> Result<(), String> {
        let own = self.authority.issue(&["spiffe://cluster.local/ns/edge/sa/gateway"])?;
        let roots = std::fs::read_to_string(&self.authority.file).map_err(|error| error.to_string())?;
        for (name, text) in
            [("cert-chain.pem", &own.certificate), ("key.pem", &own.key), ("root-cert.pem", &roots)]
        {
            let path = self.workload.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// A pool and a route for each host, of the same name.
    fn write_pools(&self, stage: &Stage) -> Result<(), String> {
        let config = &stage.config;
        let roots = std::fs::read_to_string(&self.authority.file).map_err(|error| error.to_string())?;
        let roots = roots.trim().replace('\n', "\n    ");
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca}}\ndata:\n  ca.crt: |\n    {roots}\n"
        );
        config.write("ca", &map)?;
        config.write("own", &config::secret("own", &self.authority.issue(&["gateway.example"])?))?;
        let ca = "caCertificateRefs: [{kind: ConfigMap, name: ca}]";
        let named = format!("{ca}, sni: {NAME}");
        for (name, party, protocol, tls) in [
            ("h1", "good", "http1", named.clone()),
            ("h2", "good", "http2", named.clone()),
            ("auto-h2", "good", "auto", named.clone()),
            ("auto-h1", "http1", "auto", named.clone()),
            (
                "mutual",
                "mesh",
                "http1",
                format!("{named}, mode: mutual, clientCertificateRef: {{name: own}}"),
            ),
            ("mesh", "mesh", "http1", "mode: istioMutual".to_owned()),
            ("anonymous", "mesh", "http1", named.clone()),
            ("openssl", "openssl", "http1", named.clone()),
            ("expired", "expired", "http1", named.clone()),
            ("wrong-name", "other", "http1", named.clone()),
            ("unknown", "unknown", "http1", named.clone()),
            ("wrong-san", "good", "http1", format!("{named}, subjectAltNames: ['spiffe://td/x', x.example]")),
            ("plain", "plain", "http1", named.clone()),
            ("stalled", "stalled", "http1", named.clone()),
            ("closed", "plain", "http1", "caCertificateRefs: [{name: none}]".to_owned()),
        ] {
            let pool = config::pool(name, &[self.port(party)], protocol);
            config.write(
                &format!("pool-{name}"),
                &format!("{pool}  connectTimeout: 300ms\n  tls: {{{tls}}}\n"),
            )?;
            config.write(name, &config::route_for_host(name, &format!("{name}.test"), &[(name, 1)]))?;
        }
        let pool = config::pool("auto-sni", &[self.port("good")], "http1");
        config.write("pool-auto-sni", &format!("{pool}  tls: {{{ca}}}\n"))?;
        config.write("auto-sni", &config::route_for_host("auto-sni", "'*.auto.test'", &[("auto-sni", 1)]))?;
        for (name, party, authority) in [("policy", "good", "ca"), ("closed-policy", "plain", "none")] {
            config.write(&format!("service-{name}"), &config::service(name, self.port(party)))?;
            let policy = format!(
                "apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {name}}}]
  validation: {{hostname: {NAME}, caCertificateRefs: [{{group: '', kind: ConfigMap, name: {authority}}}]}}
"
            );
            config.write(&format!("policy-{name}"), &policy)?;
            let service = format!("service/{name}");
            config.write(name, &config::route_for_host(name, &format!("{name}.test"), &[(&service, 1)]))?;
        }
        Ok(())
    }
}
