//! Upstream connections that the backend closes between two requests: no GET fails for it, and no POST is sent twice.

use std::net::SocketAddr;

use fieldgate_loadtests::load::{Plan, Tally};
use fieldgate_loadtests::rig::{Backend, config, ports};

use crate::context::{Context, Figures, Outcome, Stage, ensure, ensure_flawless};

/// Addresses of one backend: each is an endpoint with connections of its own, so that at the rate below they idle for
/// about as long as the backend waits before it closes.
const ENDPOINTS: u8 = 16;
const RATE: f64 = 1600.0;
/// How backends close, and the rate at which that meets requests most often.
const KINDS: [(&str, [&str; 2], Option<f64>); 3] = [
    ("after each answer", ["--close-after", "1"], None),
    ("after 7 answers", ["--close-after", "7"], None),
    ("after 10 ms idle", ["--close-idle", "10"], Some(RATE)),
];

pub fn run(context: &Context) -> Outcome {
    let requests = context.count(20_000, 3000);
    let mut figures = Figures::default();
    for protocol in ["http1", "http2"] {
        for (kind, options, rate) in KINDS {
            let stage = context.stage()?;
            let (edge, _backend) = backend(&stage, protocol, &options)?;
            let _gateway = stage.gateway(&context.options())?;
            let plan = Plan { requests: Some(requests), rate, ..Plan::new(edge) };
            let name = format!("{protocol}, closed {kind}");
            let gets = plan.clone().run()?;
            ensure_flawless(&format!("GET, {name}"), &gets)?;
            let posts = Plan { method: "POST".to_owned(), body: 10, path: "/upload".to_owned(), ..plan };
            let posts = Plan { requests: Some(requests / 4), ..posts }.run()?;
            figures.add(format!("{name}: {requests} GET, none failed; {}", refusals(&name, &posts)?));
        }
        figures.add(swallowed(context, protocol)?);
    }
    Ok(figures)
}

fn backend(stage: &Stage, protocol: &str, options: &[&str]) -> Result<(SocketAddr, Backend), String> {
    let edge = stage.plain_edge()?;
    let port = ports::free().port();
    let endpoints: Vec<SocketAddr> = (1..=ENDPOINTS).map(|last| ([127, 0, 0, last], port).into()).collect();
    let backend = Backend::start_with("one", ([0, 0, 0, 0], port).into(), stage.path(), None, options)?;
    stage.config.write("pool", &config::pool("one", &endpoints, protocol))?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    Ok((edge, backend))
}

/// A POST whose connection was closed may have been processed: the client is told so, with 503, and nothing else.
fn refusals(name: &str, posts: &Tally) -> Result<String, String> {
    let refused = posts.status(503);
    ensure(posts.failures() == refused, || format!("POST, {name}: {}", posts.describe_failures()))?;
    Ok(format!("of {} POST {refused} were given back as 503", posts.sent))
}

/// A backend that takes each POST and closes without an answer has seen each exactly once.
fn swallowed(context: &Context, protocol: &str) -> Result<String, String> {
    let requests = context.count(2000, 300);
    let stage = context.stage()?;
    let (edge, backend) = backend(&stage, protocol, &[])?;
    let _gateway = stage.gateway(&context.options())?;
    let post = Plan { requests: Some(requests), method: "POST".to_owned(), ..Plan::new(edge) };
    for body in [0, 10, 100_000] {
        // First connections that can be reused.
        ensure_flawless("warm-up", &Plan { requests: Some(200), ..Plan::new(edge) }.run()?)?;
        let before = backend.counter("requests")?;
        let tally = Plan { path: "/swallow".to_owned(), body, ..post.clone() }.run()?;
        let seen = backend.counter("requests")? - before;
        ensure(tally.status(503) == requests && seen == requests, || {
            format!(
                "{protocol}, POST of {body} bytes: {requests} sent, {seen} reached the backend; {}",
                tally.describe_failures()
            )
        })?;
    }
    Ok(format!("{protocol}, closed instead of an answer: {requests} POST reached the backend once each"))
}
