//! A Gateway that is reached by every protocol.

use std::net::SocketAddr;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::certificates::Authority;
use fieldgate_loadtests::rig::config::{self, Listener};
use fieldgate_loadtests::rig::ports;

use crate::context::Stage;

/// The name that its certificate is for.
pub const HOST: &str = "shop.test";

/// A plaintext and a TLS listener.
pub struct Edge {
    pub authority: Authority,
    pub plain: SocketAddr,
    pub tls: SocketAddr,
}

/// A protocol to reach the edge by.
pub struct Way {
    pub name: &'static str,
    /// A load, or probes, by it.
    pub plan: Plan,
    /// curl's flags for it.
    pub curl: Vec<String>,
    /// The beginning of URLs.
    pub base: String,
}

impl Edge {
    /// Writes Gateway `edge` and its certificate.
    pub fn new(stage: &Stage) -> Result<Self, String> {
        Self::for_hosts(stage, &[HOST])
    }

    /// As [`Edge::new`], with a certificate for these names.
    pub fn for_hosts(stage: &Stage, hosts: &[&str]) -> Result<Self, String> {
        let authority = Authority::new(stage.path())?;
        let (plain, tls) = (ports::free(), ports::free());
        let listeners = [Listener::http("plain", plain.port()), Listener::https("tls", tls.port(), "shop")];
        stage.config.write("gateway", &config::gateway("edge", &listeners))?;
        stage.config.write("secret", &config::secret("shop", &authority.issue(hosts)?))?;
        Ok(Self { authority, plain, tls })
    }

    /// By every protocol, asking for [`HOST`].
    pub fn ways(&self) -> [Way; 4] {
        self.ways_to(HOST)
    }

    /// By every protocol.
    pub fn ways_to(&self, host: &str) -> [Way; 4] {
        let plain = |name, flag: &str| {
            let host = format!("{host}:{}", self.plain.port());
            let plan = Plan { host, ..Plan::new(self.plain) };
            Way { name, plan, curl: vec![flag.to_owned()], base: format!("http://{}", self.plain) }
        };
        let tls = |name, flag: &str| {
            let name_and_port = format!("{host}:{}", self.tls.port());
            let resolve = format!("{name_and_port}:{}", self.tls.ip());
            let ca = self.authority.file.display().to_string();
            let curl = [flag, "--cacert", &ca, "--resolve", &resolve].map(str::to_owned).to_vec();
            let base = format!("https://{name_and_port}");
            let ca = Some(self.authority.file.clone());
            Way { name, plan: Plan { host: name_and_port, ca, ..Plan::new(self.tls) }, curl, base }
        };
        let http2 = |way: Way| Way { plan: way.plan.http2(1), ..way };
        [
            plain("h1", "--http1.1"),
            http2(plain("h2c", "--http2-prior-knowledge")),
            tls("h1 over TLS", "--http1.1"),
            http2(tls("h2 over TLS", "--http2")),
        ]
    }
}
