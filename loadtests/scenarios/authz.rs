//! Authorization policies beside Envoy: random policies, here as they are written, there as the filters that istiod would
//! send for them; the same requests to both; every verdict must be the same.

mod filters;
mod policies;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use fieldgate_loadtests::rig::{Process, Scripted, config, http, wait};
use socket2::{Domain, Socket, Type};

use crate::bench::find;
use crate::context::{Context, Figures, Outcome, ensure};
use policies::{Case, METHODS, Random};

const TIMEOUT: Duration = Duration::from_secs(20);

pub fn run(context: &Context) -> Outcome {
    let envoy = match find::envoy() {
        Ok(envoy) => envoy,
        Err(why) => return Ok(Figures::skipped(why)),
    };
    let stage = context.stage()?;
    let ours = stage.plain_edge()?;
    // The same port, which policies look at, on another address.
    let theirs = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), ours.port()));
    let mut random = Random(0x5eed);
    let (cases, requests) = (context.count(200, 20), 50);
    let cases: Vec<Case> = (0..cases).map(|n| Case::new(n, ours.port(), &mut random)).collect();
    let backend = Scripted::good("passed")?;
    let mut objects: Vec<String> = cases.iter().map(|case| case.objects(ours.port())).collect();
    objects.push(config::pool("shop", &[backend.address], "http1"));
    // A route may have 32 parents.
    for (at, some) in cases.chunks(32).enumerate() {
        let parents: Vec<_> = some.iter().map(|case| format!("{{name: case{}}}", case.number)).collect();
        let parents = format!("parentRefs: [{}]", parents.join(", "));
        let route = config::route(&format!("shop-{at}"), &[("shop", 1)]);
        objects.push(route.replace("parentRefs: [{name: edge}]", &parents));
    }
    stage.config.write("cases", &objects.join("---\n"))?;
    let _gateway = stage.gateway(&context.options())?;
    let file = stage.path().join("envoy.yaml");
    std::fs::write(&file, filters::envoy(theirs, &cases)).map_err(|e| format!("{}: {e}", file.display()))?;
    let file = file.display().to_string();
    let flags = ["--concurrency", "1", "--log-level", "error", "--use-dynamic-base-id", "-c", &file];
    let _envoy = Process::start("envoy", stage.path(), None, &envoy, &flags)?;
    wait::until_true(TIMEOUT, "Envoy listens", || TcpStream::connect(theirs).is_ok())?;
    let (mut asked, mut passed, mut policies) = (0, 0, 0);
    for case in &cases {
        policies += case.policies.len();
        for _ in 0..requests {
            let request = Request::random(case, &mut random);
            let (here, there) = (request.send(ours)?, request.send(theirs)?);
            ensure(here == there, || {
                format!("{request:?}: {here} here, {there} by Envoy; {}", case.objects(ours.port()))
            })?;
            ensure(here == 200 || here == 403, || format!("{request:?}: {here}"))?;
            asked += 1;
            passed += usize::from(here == 200);
        }
    }
    // Otherwise the comparison would say little.
    ensure(passed * 10 > asked && passed * 10 < asked * 9, || format!("{passed} of {asked} passed"))?;
    let mut figures = Figures::default();
    figures.add(format!(
        "{asked} requests under {policies} policies in {} sets: {passed} passed, {} were refused, by Envoy as here",
        cases.len(),
        asked - passed
    ));
    Ok(figures)
}

#[derive(Debug)]
struct Request {
    from: Ipv4Addr,
    head: String,
}

impl Request {
    fn random(case: &Case, random: &mut Random) -> Self {
        let method = random.of(METHODS);
        let host = random.of(&["a", "b", "A", "x.a"]);
        let port = random.of(&["", "", ":8080"]);
        let path = random.of(&[
            "/", "/a", "/a/", "/a/b", "/a/x/c", "/x/y/z", "/c", "/y/c", "/a?q=/b", "/s.css", "/a/%20", "/A",
        ]);
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}.case{}.test{port}\r\ncontent-length: 0\r\nconnection: close\r\n",
            case.number
        );
        for name in ["x-one", "x-two"] {
            for _ in 0..random.below(3) {
                head.push_str(&format!("{name}: {}\r\n", random.of(&["v", "w", "vw", "v,w", "other"])));
            }
        }
        let forwarded = random.of(&[
            "",
            "",
            "192.0.2.7",
            "192.0.2.8, 198.51.100.1",
            "2001:db8::1",
            "198.51.100.1, 192.0.2.7",
        ]);
        if !forwarded.is_empty() {
            head.push_str(&format!("x-forwarded-for: {forwarded}\r\n"));
        }
        head.push_str("\r\n");
        let from = random.of(&["127.0.0.1", "127.0.1.1", "127.0.1.2", "127.0.2.1", "127.0.3.1"]);
        Self { from: from.parse().unwrap_or(Ipv4Addr::LOCALHOST), head }
    }

    /// The status of the answer.
    fn send(&self, to: SocketAddr) -> Result<u16, String> {
        let exchange = || -> std::io::Result<Vec<u8>> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(IpAddr::V4(self.from), 0).into())?;
            socket.connect_timeout(&to.into(), TIMEOUT)?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(self.head.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(answer)
        };
        let answer = exchange().map_err(|error| format!("{self:?} at {to}: {error}"))?;
        Ok(http::parse(&answer).map_err(|error| format!("{self:?} at {to}: {error}"))?.status)
    }
}
