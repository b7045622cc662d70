//! TLS sessions outlive a binary upgrade: who has a ticket of the old process resumes with the new one.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_loadtests::rig::{Gateway, certificates, config, http};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, SupportedProtocolVersion};

use crate::context::{Context, Figures, Outcome, ensure};
use crate::edge::{Edge, HOST};

/// Covers the drain deadline of the old process.
const END: Duration = Duration::from_secs(90);

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let _backends = stage.pools(&["one"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let mut options = context.options();
    options.flags = vec!["--upgrade-socket".into(), stage.path().join("upgrade.sock").display().to_string()];
    let mut old = stage.gateway(&options)?;
    let clients = [
        ("TLS 1.2", client(&edge, &rustls::version::TLS12)?),
        ("TLS 1.3", client(&edge, &rustls::version::TLS13)?),
    ];
    for (version, client) in &clients {
        let first = handshake(&edge, client)?;
        ensure(first != HandshakeKind::Resumed, || {
            format!("{version}: the first handshake resumed something")
        })?;
        let second = handshake(&edge, client)?;
        ensure(second == HandshakeKind::Resumed, || format!("{version}: not resumed before the upgrade"))?;
    }
    options.flags.push("--upgrade".into());
    let mut new = Gateway::start_named("gateway-1", &options, &stage.config, stage.path())?;
    old.process.wait_exit(END)?;
    for (version, client) in &clients {
        let after = handshake(&edge, client)?;
        ensure(after == HandshakeKind::Resumed, || format!("{version}: {after:?} after the upgrade"))?;
    }
    // Keys live in memory only: a process that was not handed them does not have them.
    new.process.signal("TERM")?;
    new.process.wait_exit(END)?;
    options.flags.pop();
    let _fresh = Gateway::start_named("gateway-2", &options, &stage.config, stage.path())?;
    for (version, client) in &clients {
        let after = handshake(&edge, client)?;
        ensure(after != HandshakeKind::Resumed, || format!("{version}: resumed after a restart"))?;
    }
    let mut figures = Figures::default();
    figures.add("TLS 1.2 and 1.3 resume after an upgrade, and do a full handshake after a restart");
    Ok(figures)
}

fn client(edge: &Edge, version: &'static SupportedProtocolVersion) -> Result<Arc<ClientConfig>, String> {
    certificates::trusting(&edge.authority.file, &[version]).map(Arc::new)
}

/// One request on a connection of its own; tickets of TLS 1.3 come behind the handshake.
fn handshake(edge: &Edge, client: &Arc<ClientConfig>) -> Result<HandshakeKind, String> {
    let failed = |error: std::io::Error| format!("request by TLS: {error}");
    let name = ServerName::try_from(HOST).map_err(|error| error.to_string())?;
    let mut session = ClientConnection::new(Arc::clone(client), name).map_err(|error| error.to_string())?;
    let mut tcp = http::connect(edge.tls).map_err(failed)?;
    let mut stream = rustls::Stream::new(&mut session, &mut tcp);
    write!(stream, "GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").map_err(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(failed)?;
    let status = http::parse(&answer)?.status;
    ensure(status == 200, || format!("status {status}"))?;
    session.handshake_kind().ok_or_else(|| "no handshake".to_owned())
}
