//! The flags that limit a gateway, on real sockets: who is within a limit is served, who is not is reset at once, and room is
//! made where idle clients can go.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use fieldgate_loadtests::rig::{Backend, Gateway, GatewayOptions, config, http, wait};
use socket2::{Domain, Socket, Type};

use crate::context::{Context, Figures, Outcome, Stage, ensure};

const ALL: usize = 30;
const SOURCE: usize = 20;
const BOUND: Duration = Duration::from_secs(10);
/// The least that the flag takes, in MiB, and what of it is scarce.
const MEMORY: f64 = 32.0;
const SCARCE: f64 = 0.85;

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    figures.add(connections(context)?);
    figures.add(memory(context)?);
    Ok(figures)
}

struct Scene {
    edge: SocketAddr,
    gateway: Gateway,
    _backends: Vec<Backend>,
    _stage: Stage,
}

fn scene(context: &Context, flags: &[String]) -> Result<Scene, String> {
    let stage = context.stage()?;
    let edge = stage.plain_edge()?;
    let backends = stage.pools(&["shop"])?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let gateway = stage.gateway(&GatewayOptions { flags: flags.to_vec(), ..context.options() })?;
    Ok(Scene { edge, gateway, _backends: backends, _stage: stage })
}

fn connections(context: &Context) -> Result<String, String> {
    let flags = [format!("--max-connections={ALL}"), format!("--max-connections-per-source={SOURCE}")];
    let scene = scene(context, &flags)?;
    let (edge, gateway) = (scene.edge, &scene.gateway);
    let (one, other) = (Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2));
    // Within a head that does not end: they cannot be closed to make room.
    let mut held = (0..SOURCE - 2).map(|_| busy(one, edge)).collect::<Result<Vec<_>, _>>()?;
    // And two that are idle after a request.
    let idle = [served(one, edge)?, served(one, edge)?];
    ensure(served(one, edge).is_err(), || {
        format!("more than {SOURCE} connections of one source were served")
    })?;
    refused(gateway, "source")?;
    for _ in 0..ALL - SOURCE {
        held.push(busy(other, edge)?);
    }
    // Whoever comes now is refused, and makes the gateway close those that are idle.
    wait::until_true(BOUND, "room to be made", || served(other, edge).is_ok())?;
    refused(gateway, "connections")?;
    let gone = idle.into_iter().filter_map(|mut idle| idle.read(&mut [0]).ok()).filter(|n| *n == 0).count();
    ensure(gone > 0, || "no idle connection was closed".to_owned())?;
    for busy in &mut held {
        busy.write_all(b".").map_err(|error| format!("a busy connection: {error}"))?;
        answer(busy).map_err(|error| format!("a busy connection: {error}"))?;
    }
    drop(held);
    wait::until_true(BOUND, "all to be counted out", || {
        gateway.metric("fieldgate_connections_open", "").is_ok_and(|open| open == 0.0)
    })?;
    Ok(format!(
        "{ALL} connections in all and {SOURCE} of a source: held; {gone} idle ones closed to make room"
    ))
}

/// A gateway that has no memory left from its start: nobody is served, and its operator can see why.
fn memory(context: &Context) -> Result<String, String> {
    let scene = scene(context, &[format!("--max-memory={MEMORY}MiB")])?;
    let gateway = &scene.gateway;
    let used = gateway.process.memory_mib()?;
    if used < MEMORY * SCARCE {
        return Ok(format!("memory: not tried, for {used:.0} MiB are used only"));
    }
    let pressure = || gateway.metric("fieldgate_memory_pressure", "").unwrap_or_default();
    wait::until_true(BOUND, "memory to be scarce", || pressure() >= 1.0)?;
    wait::until_true(BOUND, "new connections to be refused", || {
        served(Ipv4Addr::LOCALHOST, scene.edge).is_err()
    })?;
    refused(gateway, "memory")?;
    let ready = http::get(gateway.admin, "/ready")?.status;
    ensure(ready == 200, || format!("/ready says {ready}"))?;
    Ok(format!("{used:.0} of {MEMORY} MiB used: new connections are reset, and the admin server answers"))
}

fn refused(gateway: &Gateway, why: &str) -> Result<(), String> {
    let count = gateway.metric("fieldgate_connections_refused_total", why)?;
    ensure(count >= 1.0, || format!("no connection was refused for {why}"))
}

/// A connection that was served once, and is in the middle of another request: of its body, for which there is more time
/// than for a head.
fn busy(source: Ipv4Addr, edge: SocketAddr) -> Result<TcpStream, String> {
    let mut stream = served(source, edge).map_err(|error| format!("within the limits: {error}"))?;
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\n")
        .map_err(|error| error.to_string())?;
    Ok(stream)
}

fn served(source: Ipv4Addr, edge: SocketAddr) -> Result<TcpStream, String> {
    let mut stream = from(source, edge).map_err(|error| error.to_string())?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").map_err(|error| error.to_string())?;
    answer(&mut stream)?;
    Ok(stream)
}

fn from(source: Ipv4Addr, edge: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&edge.into(), BOUND)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(BOUND))?;
    Ok(stream)
}

fn answer(stream: &mut TcpStream) -> Result<(), String> {
    let mut got = [0; 4096];
    let n = stream.read(&mut got).map_err(|error| error.to_string())?;
    let start = String::from_utf8_lossy(&got[..n.min(12)]).into_owned();
    ensure(start == "HTTP/1.1 200", || format!("answered {start:?}"))
}
