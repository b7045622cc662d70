//! A load balancer as pingora's own documentation builds one: `pingora-proxy` as it comes, one worker thread without
//! work stealing, ten routes by path, one path that is refused, connections to the backend kept. It is measured, and
//! must stay stock: nothing here is tuned that its users would not tune.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use clap::Parser;
use pingora_core::Result;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::{ALPN, HttpPeer};
use pingora_load_balancing::LoadBalancer;
use pingora_load_balancing::selection::RoundRobin;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// Routes by path, besides the one for everything else.
const ROUTES: usize = 9;
/// Idle connections to the backend that are kept; as many as the other peers may keep.
const KEPT: usize = 1024;
/// Streams at a time on a connection to an HTTP/2 backend; the default of one would make HTTP/1.1 of it.
const STREAMS: usize = 100;

/// A stock pingora-proxy load balancer.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Where it listens in plaintext.
    #[arg(long)]
    plain: SocketAddr,
    /// Where it listens for TLS, HTTP/2 and HTTP/1.1 by ALPN.
    #[arg(long)]
    tls: SocketAddr,
    /// Certificate chain, PEM.
    #[arg(long)]
    certificate: String,
    /// Private key, PEM.
    #[arg(long)]
    key: String,
    /// The backend of all routes.
    #[arg(long)]
    backend: SocketAddr,
    /// Speak HTTP/2 in cleartext to the backend.
    #[arg(long)]
    h2c: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let mut server = Server::new_with_opt_and_conf(
        None,
        ServerConf {
            threads: 1,
            work_stealing: false,
            upstream_keepalive_pool_size: KEPT,
            ..ServerConf::default()
        },
    );
    server.bootstrap();
    let balancer = Balancer::new(&arguments);
    let mut service = http_proxy_service(&server.configuration, balancer);
    service.add_tcp(&arguments.plain.to_string());
    let mut tls = TlsSettings::intermediate(&arguments.certificate, &arguments.key)
        .expect("the certificate and its key can be read");
    tls.enable_h2();
    service.add_tls_with_settings(&arguments.tls.to_string(), None, tls);
    server.add_service(service);
    server.run_forever();
}

struct Balancer {
    /// By prefix, the longest first; the last fits all.
    routes: Vec<(String, Arc<LoadBalancer<RoundRobin>>)>,
    h2c: bool,
}

impl Balancer {
    fn new(arguments: &Arguments) -> Self {
        let pool = LoadBalancer::try_from_iter([arguments.backend]).expect("an address is a backend");
        let pool = Arc::new(pool);
        let prefixes = (0..ROUTES).map(|route| format!("/r{route}/")).chain(std::iter::once("/".to_owned()));
        Self { routes: prefixes.map(|prefix| (prefix, Arc::clone(&pool))).collect(), h2c: arguments.h2c }
    }
}

#[async_trait]
impl ProxyHttp for Balancer {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        if session.req_header().uri.path().starts_with("/admin") {
            session.respond_error(403).await?;
            return Ok(true);
        }
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        let path = session.req_header().uri.path();
        let route = self.routes.iter().find(|(prefix, _)| path.starts_with(prefix.as_str()));
        let (_, pool) = route.unwrap_or_else(|| self.routes.last().expect("there is one for everything"));
        let backend = pool.select(b"", 1).ok_or_else(|| {
            pingora_core::Error::explain(pingora_core::ErrorType::ConnectNoRoute, "no backend is left")
        })?;
        let mut peer = HttpPeer::new(backend, false, String::new());
        if self.h2c {
            peer.options.alpn = ALPN::H2;
            peer.options.max_h2_streams = STREAMS;
        }
        Ok(Box::new(peer))
    }
}
