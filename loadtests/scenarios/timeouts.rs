//! Timeouts of a route: a try whose time is up is made again elsewhere where the route says `retry`; without that, and
//! when the whole request's time is up, the client is told 504.

use std::net::{SocketAddr, TcpListener};

use fieldgate_loadtests::rig::{Gateway, config, http};

use crate::context::{Context, Figures, Outcome, Stage, ensure};

const REQUESTS: usize = 20;
/// Two tries of this and a margin for a busy machine; far less than the peer that never answers would take.
const TRY: &str = "300ms";

pub fn run(context: &Context) -> Outcome {
    let stage = context.stage()?;
    let edge = stage.plain_edge()?;
    let good = stage.backend("good")?;
    // The kernel accepts for it, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let silent = silent.local_addr().map(|address| (silent, address)).map_err(|error| error.to_string())?;
    stage.config.write("pool", &config::pool("both", &[good.address, silent.1], "http1"))?;
    stage.config.write("silent", &config::pool("silent", &[silent.1], "http1"))?;
    write(&stage, "both", &format!("backendRequest: {TRY}"), true)?;
    let gateway = stage.gateway(&context.options())?;
    let mut figures = Figures::default();

    ensure(statuses(edge)?.iter().all(|status| *status == 200), || {
        "a try in time failed all the same".to_owned()
    })?;
    let retried = gateway.metric("fieldgate_upstream_retries_total", "")?;
    ensure(retried >= 1.0, || "no request met the silent endpoint".to_owned())?;
    figures.add(format!("with retry: {REQUESTS} requests, {retried} of them on a second try, none failed"));

    // Another pool, for in the first the silent endpoint is left alone by now.
    stage.config.write("fresh", &config::pool("fresh", &[good.address, silent.1], "http1"))?;
    change(&gateway, &stage, "fresh", &format!("backendRequest: {TRY}"), false)?;
    let statuses = statuses(edge)?;
    let late = statuses.iter().filter(|status| **status == 504).count();
    ensure(late > 0 && statuses.iter().all(|status| [200, 504].contains(status)), || {
        format!("without retry, 200 and 504 were expected: {statuses:?}")
    })?;
    figures.add(format!("without retry: {late} of {REQUESTS} got 504"));

    change(&gateway, &stage, "silent", "request: 700ms, backendRequest: 300ms", true)?;
    let response = http::get(edge, "/")?;
    ensure(response.status == 504, || {
        format!("the request's own time was up, and it got {}", response.status)
    })?;
    let tries = gateway.metric("fieldgate_upstream_retries_total", "silent")?;
    ensure((1.0..=2.0).contains(&tries), || format!("{tries} more tries fitted into 700 ms of 300 ms each"))?;
    figures.add(format!("all of the request's time: 504 after {tries} more tries"));
    Ok(figures)
}

fn write(stage: &Stage, pool: &str, timeouts: &str, retry: bool) -> Result<(), String> {
    let retry = if retry { "    retry: {attempts: 3, codes: [503]}\n" } else { "" };
    let extra = format!("    timeouts: {{{timeouts}}}\n{retry}");
    stage.config.write("route", &config::route_with_rule("shop", &[(pool, 1)], &extra))
}

fn change(gateway: &Gateway, stage: &Stage, pool: &str, timeouts: &str, retry: bool) -> Result<(), String> {
    gateway.change(|| write(stage, pool, timeouts, retry)).map(|_| ())
}

fn statuses(edge: SocketAddr) -> Result<Vec<u16>, String> {
    (0..REQUESTS).map(|_| http::get(edge, "/").map(|response| response.status)).collect()
}
