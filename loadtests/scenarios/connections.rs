//! A Pool's `maxConnectionsPerEndpoint` holds over all workers: requests beyond it wait their turn, and those that wait
//! too long are refused with their reason.

use std::time::Duration;

use fieldgate_loadtests::load::{Plan, Tally};
use fieldgate_loadtests::rig::{Backend, Gateway, config, http};

use crate::context::{Context, Figures, Outcome, WORKERS, ensure, ensure_flawless};

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    for (protocol, limit) in [("http1", 1), ("http1", 4), ("http1", 7), ("http2", 2)] {
        figures.add(waiting(context, protocol, limit)?);
    }
    figures.add(another_endpoint(context)?);
    figures.add(overflow(context)?);
    Ok(figures)
}

fn pool(protocol: &str, endpoints: &[&Backend], more: &str) -> String {
    let addresses: Vec<_> = endpoints.iter().map(|backend| backend.address).collect();
    config::pool("shop", &addresses, protocol) + more
}

/// Many clients by both protocols at once, few connections: nobody is refused and the limit holds.
fn waiting(context: &Context, protocol: &str, limit: u64) -> Result<String, String> {
    let requests: u64 = context.count(10_000, 1_000) * limit;
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let backend = stage.backend("one")?;
    let more = format!("  maxConnectionsPerEndpoint: {limit}\n  connectTimeout: 60s\n");
    stage.config.write("pool", &pool(protocol, &[&backend], &more))?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let _gateway = stage.gateway(&context.options())?;
    let plan = Plan { requests: Some(requests), connections: 32, timeout: PATIENCE, ..Plan::new(address) };
    let (h1, h2) = (plan.clone().start()?, plan.http2(4).start()?);
    let (h1, h2) = (h1.join(), h2.join());
    for (name, tally) in [("h1", &h1), ("h2", &h2)] {
        ensure_flawless(&format!("{protocol}, limit {limit}, {name}"), tally)?;
    }
    // One more is the connection that asks; and when a worker gives way to another, the backend may see the other's
    // connection before it has read the end of the one that was closed for it.
    let most = backend.counter("most_open")?;
    ensure(most <= limit + 1 + WORKERS as u64, || {
        format!("{protocol}: {most} connections where {limit} are allowed")
    })?;
    Ok(format!(
        "{protocol}: {} requests of 64 connections over at most {limit} connections by {WORKERS} workers, none failed",
        h1.sent + h2.sent
    ))
}

const PATIENCE: Duration = Duration::from_mins(1);

/// An endpoint at its limit is passed over as long as another has room.
fn another_endpoint(context: &Context) -> Result<String, String> {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let slow = Backend::start_always("slow", "/delay/300", stage.path())?;
    let quick = stage.backend("quick")?;
    let more = "  maxConnectionsPerEndpoint: 2\n  connectTimeout: 60s\n  loadBalancing: {policy: random}\n";
    stage.config.write("pool", &pool("http1", &[&slow, &quick], more))?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let _gateway = stage.gateway(&context.options())?;
    let requests = context.count(2_000, 500);
    let tally = Plan { requests: Some(requests), timeout: PATIENCE, ..Plan::new(address) }.run()?;
    ensure_flawless("two endpoints", &tally)?;
    let backends = tally.backends();
    let (slow, quick) = (backends.get("slow").copied().unwrap_or_default(), backends["quick"]);
    ensure(quick > slow, || format!("the slow endpoint got {slow} of {requests}, the quick one {quick}"))?;
    Ok(format!("a slow endpoint at its limit got {slow}, the one with room {quick}"))
}

/// More work than a connection does in time: some is refused, and says why.
fn overflow(context: &Context) -> Result<String, String> {
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let backend = Backend::start_always("one", "/delay/200", stage.path())?;
    let more = "  maxConnectionsPerEndpoint: 2\n  connectTimeout: 300ms\n";
    stage.config.write("pool", &pool("http1", &[&backend], more))?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    let gateway = stage.gateway(&context.options())?;
    let tally = Plan { requests: Some(100), connections: 32, ..Plan::new(address) }.run()?;
    let (served, refused) = (tally.status(200), tally.status(503));
    ensure(served > 0 && refused > 0 && served + refused == 100 && tally.errors() == 0, || {
        format!("{served} served, {refused} refused, {} errors of 100", tally.errors())
    })?;
    let flagged = flagged(&gateway, "UO")?;
    ensure(flagged == refused, || format!("{refused} were refused, {flagged} with the flag UO"))?;
    let most = backend.counter("most_open")?;
    ensure(most <= 3, || format!("{most} connections where 2 are allowed"))?;
    after_overflow(address)?;
    Ok(format!("too much work: {served} served, {refused} refused as UO"))
}

fn after_overflow(address: std::net::SocketAddr) -> Result<(), String> {
    let tally: Tally = Plan { requests: Some(4), connections: 1, ..Plan::new(address) }.run()?;
    ensure_flawless("after the overflow", &tally)
}

fn flagged(gateway: &Gateway, flag: &str) -> Result<u64, String> {
    let text = String::from_utf8_lossy(&http::get(gateway.admin, "/metrics")?.body).into_owned();
    let wanted = format!("response_flags=\"{flag}\"");
    let lines = text.lines().filter(|l| l.starts_with("istio_requests_total{") && l.contains(&wanted));
    Ok(lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
}
