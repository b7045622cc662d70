//! A Gateway that is reached by every protocol.

use std::net::SocketAddr;

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

impl Edge {
    /// Writes Gateway `edge` and its certificate.
    pub fn new(stage: &Stage) -> Result<Self, String> {
        let authority = Authority::new(stage.path())?;
        let (plain, tls) = (ports::free(), ports::free());
        let listeners = [Listener::http("plain", plain.port()), Listener::https("tls", tls.port(), "shop")];
        stage.config.write("gateway", &config::gateway("edge", &listeners))?;
        stage.config.write("secret", &config::secret("shop", &authority.issue(&[HOST])?))?;
        Ok(Self { authority, plain, tls })
    }

    /// By every protocol: its name, curl's flags for it, and the URL's beginning.
    pub fn ways(&self) -> Vec<(&'static str, Vec<String>, String)> {
        let plain = format!("http://{}", self.plain);
        let tls = format!("https://{HOST}:{}", self.tls.port());
        let trust = |version: &str| {
            let resolve = format!("{HOST}:{}:{}", self.tls.port(), self.tls.ip());
            let ca = self.authority.file.display().to_string();
            [version, "--cacert", &ca, "--resolve", &resolve].map(str::to_owned).to_vec()
        };
        vec![
            ("h1", vec!["--http1.1".to_owned()], plain.clone()),
            ("h2c", vec!["--http2-prior-knowledge".to_owned()], plain),
            ("h1 over TLS", trust("--http1.1"), tls.clone()),
            ("h2 over TLS", trust("--http2"), tls),
        ]
    }
}
