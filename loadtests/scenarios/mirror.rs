//! Mirrors get what the primary gets, in full and in the share that was asked for; and whatever a mirror does, no
//! request of a client fails or waits for it, and memory stays bounded.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_loadtests::load::Plan;
use fieldgate_loadtests::rig::{Backend, Gateway, config, http, ports, wait};
use serde_json::Value;

use crate::clients::{GRPC_ROUTE, grpc_kinds, run_curl};
use crate::context::{Context, Figures, Outcome, Stage, WORKERS, ensure, ensure_flawless};
use crate::edge::{Edge, HOST, Way};

const MIB: usize = 1024 * 1024;
/// What a mirror may lag behind before it is given up holds this whole, so that each copy must arrive.
const BODY: usize = 768 * 1024;
/// Until copies that are under way have arrived, or were given up.
const SETTLE: Duration = Duration::from_secs(30);
/// Resident memory of a gateway whose mirrors stall, in MiB: two workers with their queues full and their most copies.
const MEMORY: f64 = 250.0;

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    same_requests(context, &mut figures)?;
    share(context, &mut figures)?;
    bad_mirrors(context, &mut figures)?;
    bounded_memory(context, &mut figures)?;
    grpc(context, &mut figures)?;
    Ok(figures)
}

/// A rule that mirrors everything, or a share, to these Pools.
fn mirrors(pools: &[&str], share: &str) -> String {
    pools.iter().fold("    filters:\n".to_owned(), |text, pool| {
        text + &format!(
            "    - type: RequestMirror\n      requestMirror:\n        \
             backendRef: {{group: fieldgate.dev, kind: Pool, name: {pool}}}\n{share}"
        )
    })
}

/// How the copies ended, by the gateway's metrics, and how many requests it counts as clients'.
fn counts(gateway: &Gateway) -> Result<(BTreeMap<String, u64>, u64), String> {
    let text = String::from_utf8_lossy(&http::get(gateway.admin, "/metrics")?.body).into_owned();
    let (mut copies, mut requests) = (BTreeMap::new(), 0);
    for line in text.lines() {
        let value = || line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).unwrap_or_default() as u64;
        if line.starts_with("fieldgate_mirror_requests_total{") {
            let outcome = line.split("outcome=\"").nth(1).and_then(|rest| rest.split('"').next());
            *copies.entry(outcome.unwrap_or_default().to_owned()).or_default() += value();
        } else if line.starts_with("istio_requests_total{") {
            requests += value();
        }
    }
    Ok((copies, requests))
}

/// Waits until so many copies have ended; gives how.
fn settled(gateway: &Gateway, copies: u64) -> Result<BTreeMap<String, u64>, String> {
    let ended = || counts(gateway).ok().filter(|(by, _)| by.values().sum::<u64>() >= copies);
    let found = wait::until(SETTLE, &format!("the end of {copies} copies"), ended)
        .map_err(|error| format!("{error}: {:?}", counts(gateway)))?;
    ensure(found.0.values().sum::<u64>() == copies, || format!("{copies} copies wanted, got {:?}", found.0))?;
    Ok(found.0)
}

/// What a backend has received: requests with length and checksum of their bodies, and trailers, in any order.
fn received(backend: &Backend) -> Result<Vec<String>, String> {
    let Value::Array(list) = http::get_json(backend.address, "/received")? else {
        return Err("/received is not a list".to_owned());
    };
    let mut list: Vec<_> = list.iter().map(ToString::to_string).collect();
    list.sort();
    Ok(list)
}

fn same_requests(context: &Context, figures: &mut Figures) -> Result<(), String> {
    let body: Vec<u8> = (0..BODY as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for protocol in ["http1", "http2"] {
        let stage = context.stage()?;
        let edge = Edge::new(&stage)?;
        let primary = stage.pools(&["one"])?;
        let [a, b] = ["a", "b"].map(|name| Backend::start_always(name, "/upload", stage.path()));
        let (a, b) = (a?, b?);
        for mirror in [&a, &b] {
            let pool = config::pool(&mirror.name, &[mirror.address], protocol);
            stage.config.write(&format!("pool-{}", mirror.name), &pool)?;
        }
        stage
            .config
            .write("route", &config::route_with_rule("shop", &[("one", 1)], &mirrors(&["a", "b"], "")))?;
        let gateway = stage.gateway(&context.options())?;
        let sent = every_kind_of_body(&stage, &edge, &body)?;
        let list = |backend: &Backend| received(backend).map(|list| (list.len() == sent).then_some(list));
        let copies = |backend: &Backend| {
            wait::until(SETTLE, "every request at the mirror", || list(backend).ok().flatten())
                .map_err(|error| format!("{protocol}: {error}: {:?} of {sent}", received(backend)))
        };
        let (at_primary, at_a, at_b) = (received(&primary[0])?, copies(&a)?, copies(&b)?);
        ensure(at_primary == at_a && at_primary == at_b, || {
            format!("{protocol}: the primary got {at_primary:#?}, mirrors {at_a:#?} and {at_b:#?}")
        })?;
        let ended = settled(&gateway, 2 * sent as u64)?;
        ensure(ended["sent"] == 2 * sent as u64, || format!("{protocol}: {ended:?}"))?;
        let requests = counts(&gateway)?.1;
        ensure(requests == sent as u64, || {
            format!("{sent} requests of clients are {requests} in istio_requests_total")
        })?;
        figures.add(format!(
            "{sent} requests by h1 and h2, in plaintext and TLS, are the same at two mirrors by {protocol}"
        ));
        upgrade_is_not_copied(edge.plain, &gateway, 2 * sent as u64)?;
    }
    Ok(())
}

/// Sends requests of all kinds to `/upload`, none like another; says how many.
fn every_kind_of_body(stage: &Stage, edge: &Edge, body: &[u8]) -> Result<usize, String> {
    let file = stage.path().join("body");
    std::fs::write(&file, body).map_err(|error| format!("{}: {error}", file.display()))?;
    let data = format!("@{}", file.display());
    let kinds: [&[&str]; 5] = [
        &[],
        &["-X", "DELETE"],
        &["--data-binary", &data],
        &["--data-binary", &data, "-H", "transfer-encoding: chunked"],
        &["--data-binary", "hello", "-H", "expect: 100-continue"],
    ];
    let mut sent = 0;
    for Way { curl: flags, base, .. } in edge.ways() {
        for (kind, more) in kinds.iter().enumerate() {
            let url = format!("{base}/upload?{sent}-{kind}");
            // All ways have one host, so that heads are alike at all backends.
            let arguments: Vec<&str> = more.iter().copied().chain(["-H", "host: shop.test", &url]).collect();
            run_curl(&flags, &arguments)?;
            sent += 1;
        }
    }
    let request = format!(
        "POST /upload?trailer HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         5\r\nhello\r\n0\r\nx-trailer: the end\r\n\r\n"
    );
    let mut stream = http::connect(edge.plain).map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_to_end(&mut answer))
        .map_err(|error| format!("trailers: {error}"))?;
    ensure(http::parse(&answer)?.status == 200, || "trailers were refused".to_owned())?;
    Ok(sent + 1)
}

fn upgrade_is_not_copied(address: SocketAddr, gateway: &Gateway, copies: u64) -> Result<(), String> {
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let mut stream = http::connect(address).map_err(|error| error.to_string())?;
    let mut head = [0; 12];
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_exact(&mut head))
        .map_err(|error| format!("upgrade: {error}"))?;
    ensure(head.ends_with(b" 101"), || format!("upgrade: {}", String::from_utf8_lossy(&head)))?;
    // One more ordinary request has its copies, and they are all there are.
    let answer = http::get_host(address, HOST, "/after")?;
    ensure(answer.status == 200, || format!("after the upgrade: {}", answer.status))?;
    settled(gateway, copies + 2).map(|_| ())
}

fn share(context: &Context, figures: &mut Figures) -> Result<(), String> {
    let requests: u64 = context.count(20_000, 2_000);
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let backends = stage.pools(&["one", "shadow"])?;
    stage.config.write("route", &config::route("shop", &[("one", 1)]))?;
    let gateway = stage.gateway(&context.options())?;
    let shares =
        [("percent: 25", 0.25), ("fraction: {numerator: 1, denominator: 3}", 1.0 / 3.0), ("percent: 0", 0.0)];
    for (text, share) in shares {
        let mirrors = mirrors(&["shadow"], &format!("        {text}\n"));
        gateway.change(|| {
            stage.config.write("route", &config::route_with_rule("shop", &[("one", 1)], &mirrors))
        })?;
        let before = counts(&gateway)?.0.values().sum::<u64>();
        let arrived = backends[1].counter("requests")?;
        let tally = Plan { requests: Some(requests), ..Plan::new(address) }.run()?;
        ensure_flawless(text, &tally)?;
        let expected = requests as f64 * share;
        let found = || {
            let copies = counts(&gateway).ok()?.0.values().sum::<u64>() - before;
            let arrived = backends[1].counter("requests").ok()? - arrived;
            let exact = (copies as f64 - expected).abs() <= WORKERS as f64;
            (exact && arrived == copies).then_some(copies)
        };
        let what = format!("{expected} copies of {requests} within {WORKERS}, all of which arrived ({text})");
        let copies =
            wait::until(SETTLE, &what, found).map_err(|error| format!("{error}: {:?}", counts(&gateway)))?;
        figures.add(format!("{text}: {copies} of {requests}"));
    }
    Ok(())
}

/// Mirrors that do what mirrors should not, beside one that is well.
fn bad_mirrors(context: &Context, figures: &mut Figures) -> Result<(), String> {
    let requests: u64 = context.count(20_000, 2_000);
    // Longer than a client waits: a request that waited for its mirror would fail.
    let kinds = [
        ("well", "/"),
        ("slow", "/delay/30000"),
        ("stalled", "/stall"),
        ("resetting", "/reset"),
        ("early", "/early"),
    ];
    for (kind, path) in kinds.into_iter().chain([("refusing", "")]) {
        for protocol in ["http1", "http2"] {
            let stage = context.stage()?;
            let address = stage.plain_edge()?;
            let _primary = stage.pools(&["one"])?;
            let mirror = match path {
                "" => None,
                path => Some(Backend::start_always("shadow", path, stage.path())?),
            };
            let at = mirror.as_ref().map_or_else(ports::free, |mirror| mirror.address);
            stage.config.write("pool-shadow", &config::pool("shadow", &[at], protocol))?;
            let rule = mirrors(&["shadow"], "");
            stage.config.write("route", &config::route_with_rule("shop", &[("one", 1)], &rule))?;
            let gateway = stage.gateway(&context.options())?;
            let get = Plan { requests: Some(requests), ..Plan::new(address) };
            let post = Plan {
                requests: Some(requests / 20),
                method: "POST".to_owned(),
                path: "/upload".to_owned(),
                body: MIB / 2,
                ..Plan::new(address)
            };
            let mut rates = Vec::new();
            for plan in [get.clone(), get.http2(4), post.clone(), post.http2(4)] {
                let tally = plan.run()?;
                ensure_flawless(&format!("{kind} {protocol} mirror"), &tally)?;
                rates.push(format!("{:.0}", tally.completed() as f64 / tally.seconds));
            }
            figures.add(format!(
                "{kind} mirror by {protocol}: no request failed; GET and 512 KiB POST by h1, h2: {} a second; copies {:?}",
                rates.join(", "),
                counts(&gateway)?.0
            ));
        }
    }
    Ok(())
}

/// Large uploads with a mirror that stops reading: what it does not take is given up, not gathered.
fn bounded_memory(context: &Context, figures: &mut Figures) -> Result<(), String> {
    let size = context.count(100, 32) * MIB;
    let stage = context.stage()?;
    let address = stage.plain_edge()?;
    let _primary = stage.pools(&["one"])?;
    let mirror = Backend::start_always("shadow", "/stall", stage.path())?;
    stage.config.write("pool-shadow", &config::pool("shadow", &[mirror.address], "http1"))?;
    let rule = mirrors(&["shadow"], "");
    stage.config.write("route", &config::route_with_rule("shop", &[("one", 1)], &rule))?;
    let gateway = stage.gateway(&context.options())?;
    let upload = Plan { method: "POST".to_owned(), path: "/upload".to_owned(), ..Plan::new(address) };
    let large = Plan { requests: Some(8), body: size, connections: 4, timeout: SETTLE * 4, ..upload.clone() };
    for plan in [large.clone(), large.http2(1)] {
        ensure_flawless("large uploads", &plan.run()?)?;
    }
    let peak = gateway.process.peak_memory_mib()?;
    ensure(peak <= MEMORY, || format!("the gateway's memory rose to {peak:.0} MiB; allowed are {MEMORY}"))?;
    let ended = settled(&gateway, 16)?;
    ensure(ended["dropped"] == 16, || format!("copies of large uploads to a stalled mirror: {ended:?}"))?;
    figures
        .add(format!("stalled mirror, 16 uploads of {} MiB: peak {peak:.0} MiB, copies dropped", size / MIB));
    // Small enough for a queue each, and more of them than all queues together hold.
    let many = Plan { requests: Some(context.count(4000, 400)), body: MIB / 2, connections: 64, ..upload };
    ensure_flawless("many uploads", &many.run()?)?;
    let peak = gateway.process.peak_memory_mib()?;
    ensure(peak <= MEMORY, || format!("the gateway's memory rose to {peak:.0} MiB; allowed are {MEMORY}"))?;
    figures.add(format!("stalled mirror, many uploads of 512 KiB: peak {peak:.0} MiB"));
    Ok(())
}

/// grpcio's calls with a mirror beside them: each call is answered, and each that was completed is at the mirror.
fn grpc(context: &Context, figures: &mut Figures) -> Result<(), String> {
    let stage = context.stage()?;
    let edge = Edge::new(&stage)?;
    let server = ports::free();
    let mirror = Backend::start_always("shadow", "/upload", stage.path())?;
    stage.config.write("pool", &config::pool("grpc", &[server], "http2"))?;
    stage.config.write("pool-shadow", &config::pool("shadow", &[mirror.address], "http2"))?;
    stage.config.write("route", &format!("{GRPC_ROUTE}{}", mirrors(&["shadow"], "")))?;
    let gateway = stage.gateway(&context.options())?;
    grpc_kinds(&edge, server, 4)?;
    // "hello" with the five bytes of its frame, by either transport.
    let unary = || {
        let list = received(&mirror).unwrap_or_default();
        list.iter().filter(|r| r.contains("/Unary\"") && r.contains("\"bytes\":10,")).count()
    };
    wait::until_true(SETTLE, "copies of the unary calls", || unary() == 2)
        .map_err(|error| format!("{error}; received {:?}", received(&mirror)))?;
    figures.add(format!("grpcio: all calls as without a mirror; copies {:?}", counts(&gateway)?.0));
    Ok(())
}
