//! What becomes of requests whose first try fails, or is slow, or may not be made: retries with their bodies, hedging,
//! budgets, queues, affinity, hashing, faults, deadlines, ejection. Each backend does exactly what its part asks for.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_loadtests::rig::{Gateway, Reply, Response, Scripted, config, http};

use crate::context::{Context, Figures, Outcome, Stage, ensure};

pub fn run(context: &Context) -> Outcome {
    let mut figures = Figures::default();
    for part in [
        bodies,
        large_body,
        conditions,
        retry_after,
        hedging,
        affinity,
        hashing,
        faults,
        deadlines,
        queue,
        budget,
        ejection,
        impatience,
    ] {
        figures.add(part(context)?);
    }
    Ok(figures)
}

/// A stage with Pool `shop` of these endpoints, more lines of its spec, and a TrafficPolicy with these lines.
fn play(
    context: &Context,
    endpoints: &[SocketAddr],
    pool: &str,
    policy: &str,
) -> Result<(Stage, Gateway, SocketAddr), String> {
    let stage = context.stage()?;
    let edge = stage.plain_edge()?;
    stage.config.write("pool", &(config::pool("shop", endpoints, "http1") + pool))?;
    stage.config.write("route", &config::route("shop", &[("shop", 1)]))?;
    if !policy.is_empty() {
        stage.config.write("policy", &config::traffic_policy("shop", "shop", policy))?;
    }
    let gateway = stage.gateway(&context.options())?;
    Ok((stage, gateway, edge))
}

fn send(edge: SocketAddr, method: &str, fields: &str, body: &[u8]) -> Result<Response, String> {
    let head = format!(
        "{method} / HTTP/1.1\r\nhost: x\r\n{fields}content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = http::connect(edge).map_err(|error| error.to_string())?;
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    // A request that is refused before its end may see its connection reset after the answer.
    let read = stream.read_to_end(&mut answer);
    http::parse(&answer).map_err(|error| format!("{method}: {error} ({sent:?}, {read:?})"))
}

/// A body that one endpoint has swallowed reaches the next as a whole; but only if the request may be repeated.
fn bodies(context: &Context) -> Result<String, String> {
    let body: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
    let retry = "  retry: {attempts: 2, on: [reset]}\n";
    for (method, policy, status) in
        [("POST", retry, 200), ("POST", "", 503), ("PUT", "", 200), ("PATCH", retry, 200)]
    {
        let bad = Scripted::start(|_, _| Reply::Reset)?;
        let good = Scripted::good("good")?;
        // In turn, so that one of any two meets the bad one first.
        let in_turn = "  loadBalancing: {policy: roundRobin}\n";
        let (_stage, _gateway, edge) = play(context, &[bad.address, good.address], in_turn, policy)?;
        let mut seen = Vec::new();
        while bad.received().is_empty() {
            seen.push(send(edge, method, "", &body)?.status);
            ensure(seen.len() < 20, || "the bad endpoint was never asked".to_owned())?;
        }
        ensure(seen.last() == Some(&status), || format!("{method} with {policy:?}: {seen:?}, not {status}"))?;
        let arrived = good.received();
        let whole = arrived.iter().all(|request| request.body == body);
        ensure(whole, || format!("{method}: a body arrived changed"))?;
        let answered = seen.iter().filter(|status| **status == 200).count();
        ensure(arrived.len() == answered, || format!("{method}: {} arrived, {seen:?}", arrived.len()))?;
    }
    Ok("a body of 50,000 bytes is sent again where the method or the route allows it, and not where not"
        .into())
}

/// What is larger than may be kept has one try.
fn large_body(context: &Context) -> Result<String, String> {
    let bad = Scripted::start(|_, _| Reply::Reset)?;
    let policy = "  retry: {attempts: 2, on: [reset], bodyLimit: 1000}\n";
    let (_stage, _gateway, edge) = play(context, &[bad.address], "", policy)?;
    let (small, large) = (vec![b'.'; 1000], vec![b'.'; 1001]);
    let status = send(edge, "POST", "", &small)?.status;
    let tries = bad.received().len();
    ensure((status, tries) == (503, 3), || format!("a small body: {status} after {tries} tries"))?;
    let status = send(edge, "POST", "", &large)?.status;
    let more = bad.received().len() - tries;
    ensure((status, more) == (503, 1), || format!("a large body: {status} after {more} tries"))?;
    Ok("a body of 1,000 bytes had three tries, one of 1,001 one".into())
}

/// A response is replaced if the route's conditions say so.
fn conditions(context: &Context) -> Result<String, String> {
    for (policy, status, fields, wanted) in [
        ("on: [gateway-error]", 503, "", 2),
        ("on: [gateway-error]", 500, "", 1),
        ("on: [5xx]", 500, "", 2),
        ("on: [retriable-4xx]", 409, "", 2),
        ("on: [retriable-status-codes], statusCodes: [418]", 418, "", 2),
        ("on: [retriable-headers], headers: [x-again]", 200, "x-again: 1\r\n", 2),
        ("on: [unavailable]", 200, "content-type: application/grpc\r\ngrpc-status: 14\r\n", 2),
        ("on: [unavailable]", 200, "content-type: application/grpc\r\ngrpc-status: 5\r\n", 1),
    ] {
        let backend = Scripted::start(move |_, _| Reply::Status(status, fields, ""))?;
        let policy = format!("  retry: {{attempts: 1, {policy}}}\n");
        let (_stage, _gateway, edge) = play(context, &[backend.address], "", &policy)?;
        let grpc = if fields.contains("grpc") { "content-type: application/grpc\r\n" } else { "" };
        let answer = send(edge, "POST", grpc, b"")?;
        let tries = backend.received().len();
        ensure((answer.status, tries) == (status, wanted), || {
            format!("{policy:?} at {status} {fields:?}: {} after {tries} tries, not {wanted}", answer.status)
        })?;
    }
    Ok("eight conditions on responses mean what Envoy's words say".into())
}

/// A server that says when to come again is obeyed; one that asks for too long is not waited for.
fn retry_after(context: &Context) -> Result<String, String> {
    let backend = Scripted::start(|number, _| match number {
        0 => Reply::Status(503, "retry-after: 1\r\n", ""),
        1 => Reply::Status(200, "", ""),
        _ => Reply::Status(503, "retry-after: 60\r\n", ""),
    })?;
    let policy = "  retry: {attempts: 1, on: [5xx], retryAfterMax: 5s}\n";
    let (_stage, _gateway, edge) = play(context, &[backend.address], "", policy)?;
    let begun = Instant::now();
    let status = send(edge, "GET", "", b"")?.status;
    let waited = begun.elapsed();
    ensure(status == 200 && waited >= Duration::from_millis(950), || {
        format!("{status} after {waited:?}, where a second was asked for")
    })?;
    let status = send(edge, "GET", "", b"")?.status;
    let tries = backend.received().len();
    ensure((status, tries) == (503, 3), || format!("{status}, {tries} tries in all"))?;
    Ok(format!("a second try came after {:.1} s as asked; a minute was not waited for", waited.as_secs_f64()))
}

/// A slow endpoint delays nobody for long where a second try may run beside the first.
fn hedging(context: &Context) -> Result<String, String> {
    let slow = Scripted::start(|_, _| Reply::Late(Duration::from_secs(3), 200))?;
    let quick = Scripted::good("quick")?;
    let policy = "  retry: {attempts: 1, on: [5xx], hedge: {after: 100ms, atOnce: 2}}\n";
    let in_turn = "  loadBalancing: {policy: roundRobin}\n  limits: {retryBudget: {percent: 100}}\n";
    let (_stage, gateway, edge) = play(context, &[slow.address, quick.address], in_turn, policy)?;
    let begun = Instant::now();
    for method in ["GET", "POST", "GET", "POST"] {
        let answer = send(edge, method, "", b"some body")?;
        ensure(answer.status == 200 && answer.body == b"quick", || {
            format!("{method}: {} {:?}", answer.status, String::from_utf8_lossy(&answer.body))
        })?;
    }
    let took = begun.elapsed();
    ensure(took < Duration::from_secs(3), || format!("four requests took {took:?}"))?;
    let won = gateway.metric("fieldgate_upstream_hedges_won_total", "")?;
    ensure(won >= 1.0, || "no second try won".to_owned())?;
    Ok(format!(
        "beside an endpoint that takes 3 s, four requests took {:.1} s; {won} second tries won",
        took.as_secs_f64()
    ))
}

/// A client stays at the endpoint that its cookie names, as long as that can have it.
fn affinity(context: &Context) -> Result<String, String> {
    let backends = [Scripted::good("a")?, Scripted::good("b")?, Scripted::good("c")?];
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let policy = "  affinity: {cookie: {name: fg-home}}\n";
    let (stage, gateway, edge) = play(context, &addresses, "", policy)?;
    let first = send(edge, "GET", "", b"")?;
    let cookie = first.header("set-cookie").and_then(|c| c.split(';').next()).unwrap_or_default().to_owned();
    ensure(cookie.starts_with("fg-home="), || format!("set-cookie: {cookie:?}"))?;
    let fields = format!("cookie: x=y; {cookie}\r\n");
    for _ in 0..20 {
        let answer = send(edge, "GET", &fields, b"")?;
        ensure(answer.body == first.body, || "the client was sent elsewhere".to_owned())?;
        ensure(answer.header("set-cookie").is_none(), || "the cookie was set again".to_owned())?;
    }
    let bad = send(edge, "GET", "cookie: fg-home=AAAA\r\n", b"")?;
    ensure(bad.status == 200 && bad.header("set-cookie").is_some(), || {
        "a bad cookie was not replaced".into()
    })?;
    // Its endpoint leaves the pool.
    let home = backends.iter().find(|b| !b.received().is_empty() && b.received().len() > 20);
    let home = home.ok_or("no endpoint had the client's requests")?.address;
    let left: Vec<_> = addresses.iter().copied().filter(|address| *address != home).collect();
    gateway.change(|| stage.config.write("pool", &config::pool("shop", &left, "http1")))?;
    let moved = send(edge, "GET", &fields, b"")?;
    ensure(moved.status == 200 && moved.body != first.body && moved.header("set-cookie").is_some(), || {
        "the client got no new home".to_owned()
    })?;
    Ok("20 requests stayed at the endpoint of their cookie; when it left, the client got another and a new cookie".into())
}

/// Requests with one key go to one endpoint, whichever worker has them.
fn hashing(context: &Context) -> Result<String, String> {
    for policy in ["ringHash", "maglev"] {
        let backends = [Scripted::good("a")?, Scripted::good("b")?, Scripted::good("c")?];
        let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
        let pool = format!("  loadBalancing: {{policy: {policy}, hash: [{{header: x-user}}]}}\n");
        let (_stage, _gateway, edge) = play(context, &addresses, &pool, "")?;
        let mut homes = BTreeSet::new();
        for user in 0..60 {
            let fields = format!("x-user: user-{user}\r\n");
            let bodies: Result<BTreeSet<_>, String> =
                (0..3).map(|_| send(edge, "GET", &fields, b"").map(|answer| answer.body)).collect();
            let bodies = bodies?;
            ensure(bodies.len() == 1, || format!("{policy}: user {user} was at {} endpoints", bodies.len()))?;
            homes.extend(bodies);
        }
        ensure(homes.len() == 3, || format!("{policy}: 60 users at {} of 3 endpoints", homes.len()))?;
    }
    Ok("ring hash and Maglev keep 60 users at one endpoint each, over all workers".into())
}

/// Faults hit whom they are meant for.
fn faults(context: &Context) -> Result<String, String> {
    let backend = Scripted::good("good")?;
    let policy = "  fault:\n    headers: [{name: x-fault, value: please}]\n    delay: {percent: 100, time: 300ms}\n    abort: {percent: 100, status: 418}\n";
    let (_stage, _gateway, edge) = play(context, &[backend.address], "", policy)?;
    ensure(send(edge, "GET", "", b"")?.status == 200, || "a request without the header was hit".to_owned())?;
    let begun = Instant::now();
    let hit = send(edge, "GET", "x-fault: please\r\n", b"")?.status;
    let waited = begun.elapsed();
    ensure(hit == 418 && waited >= Duration::from_millis(290), || format!("{hit} after {waited:?}"))?;
    ensure(backend.received().len() == 1, || "an aborted request reached the backend".to_owned())?;
    Ok("a fault delays and aborts the requests that ask for it, and no others".into())
}

/// A gRPC client's deadline is kept for it.
fn deadlines(context: &Context) -> Result<String, String> {
    let backend = Scripted::start(|_, _| Reply::Silence)?;
    let (_stage, _gateway, edge) = play(context, &[backend.address], "", "")?;
    let begun = Instant::now();
    let answer = send(edge, "POST", "content-type: application/grpc\r\ngrpc-timeout: 300m\r\n", b"")?;
    let (status, took) = (answer.header("grpc-status").map(str::to_owned), begun.elapsed());
    ensure(status.as_deref() == Some("4") && took < Duration::from_secs(5), || {
        format!("grpc-status {status:?} after {took:?}")
    })?;
    Ok("a call of 300 ms to a silent server ended as DEADLINE_EXCEEDED".into())
}

/// Requests beyond what a pool may have wait, if it has a queue, and are refused if not.
fn queue(context: &Context) -> Result<String, String> {
    let slow = || Scripted::start(|_, _| Reply::Late(Duration::from_millis(300), 200));
    let backend = slow()?;
    let (_stage, gateway, edge) = play(context, &[backend.address], "  limits: {maxRequests: 1}\n", "")?;
    let statuses = at_once(edge, 4)?;
    ensure(statuses.iter().filter(|s| **s == 503).count() == 3, || format!("without a queue: {statuses:?}"))?;
    let refused = gateway.metric("fieldgate_upstream_refused_total", "")?;
    ensure(refused == 3.0, || format!("{refused} were counted as refused"))?;
    let backend = slow()?;
    let limits = "  limits: {maxRequests: 1, queueTimeout: 5s}\n";
    let (_stage, _gateway, edge) = play(context, &[backend.address], limits, "")?;
    let statuses = at_once(edge, 4)?;
    ensure(statuses.iter().all(|s| *s == 200), || format!("with a queue: {statuses:?}"))?;
    let limits = "  limits: {maxRequests: 1, queueTimeout: 5s, maxPendingRequests: 1}\n";
    let (_stage, _gateway, edge) = play(context, &[backend.address], limits, "")?;
    let statuses = at_once(edge, 4)?;
    ensure(statuses.iter().filter(|s| **s == 200).count() == 2, || {
        format!("with a queue of one: {statuses:?}")
    })?;
    Ok("of four requests where one may be under way: three refused, or all queued, or as many as the queue holds".into())
}

fn at_once(edge: SocketAddr, count: usize) -> Result<Vec<u16>, String> {
    let threads: Vec<_> = (0..count)
        .map(|_| std::thread::spawn(move || send(edge, "GET", "", b"").map(|answer| answer.status)))
        .collect();
    threads.into_iter().map(|t| t.join().map_err(|_| "a client panicked".to_owned())?).collect()
}

/// Where all fail, retries do not multiply the load.
fn budget(context: &Context) -> Result<String, String> {
    let backend = Scripted::start(|_, _| Reply::Late(Duration::from_millis(20), 503))?;
    let policy = "  retry: {attempts: 3, on: [5xx], backoff: {base: 1ms, max: 10ms}}\n";
    let (_stage, gateway, edge) = play(context, &[backend.address], "", policy)?;
    const REQUESTS: usize = 400;
    for _ in 0..REQUESTS / 40 {
        let statuses = at_once(edge, 40)?;
        ensure(statuses.iter().all(|s| *s == 503), || format!("{statuses:?}"))?;
    }
    let tries = backend.received().len();
    // A fifth of those in flight, or three of each of two workers, may be retries at any time; alone it would be 1,600.
    ensure((REQUESTS + 1..REQUESTS * 2).contains(&tries), || {
        format!("{REQUESTS} requests made {tries} tries")
    })?;
    let refused = gateway.metric("fieldgate_upstream_retries_refused_total", "")?;
    ensure(refused > 0.0, || "no retry was refused for the budget".to_owned())?;
    Ok(format!(
        "{REQUESTS} requests to a pool that always fails made {tries} tries, where four each were allowed"
    ))
}

/// What clients do is not held against an endpoint: deadlines that nobody can keep, bodies that never come.
fn impatience(context: &Context) -> Result<String, String> {
    let backend = Scripted::start(|_, _| Reply::Late(Duration::from_millis(300), 200))?;
    let timeouts = "  timeouts: {request: 800ms}\n";
    let (_stage, gateway, edge) = play(context, &[backend.address], "", timeouts)?;
    for _ in 0..5 {
        let answer = send(edge, "POST", "content-type: application/grpc\r\ngrpc-timeout: 1n\r\n", b"")?;
        let status = answer.header("grpc-status").unwrap_or_default().to_owned();
        ensure(status == "4", || format!("a deadline of 1 ns ended as {status:?}"))?;
    }
    let half = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\nconnection: close\r\n\r\nhalf";
    for _ in 0..5 {
        let mut stream = http::connect(edge).map_err(|error| error.to_string())?;
        stream.write_all(half).map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(|error| error.to_string())?;
        let status = http::parse(&answer)?.status;
        ensure(status == 504, || format!("half a body got {status}"))?;
    }
    let ejections = gateway.metric("fieldgate_upstream_ejections_total", "")?;
    ensure(ejections == 0.0, || format!("{ejections} ejections for what clients did"))?;
    ensure(send(edge, "GET", "", b"")?.status == 200, || "the endpoint is not served any more".to_owned())?;
    Ok("clients with deadlines of 1 ns and without the rest of their bodies had no endpoint ejected".into())
}

/// An endpoint that answers with errors only is left alone.
fn ejection(context: &Context) -> Result<String, String> {
    let bad = Scripted::start(|_, _| Reply::Status(500, "", ""))?;
    let good = [Scripted::good("a")?, Scripted::good("b")?];
    let addresses = [bad.address, good[0].address, good[1].address];
    let pool = "  loadBalancing: {policy: roundRobin}\n  outlierDetection: {consecutive5xx: 5, baseEjectionTime: 30s, maxEjectionPercent: 50}\n";
    let (_stage, gateway, edge) = play(context, &addresses, pool, "")?;
    let statuses: Result<Vec<_>, String> =
        (0..100).map(|_| send(edge, "GET", "", b"").map(|answer| answer.status)).collect();
    let failed = statuses?.iter().filter(|s| **s == 500).count();
    ensure(failed == 5 && bad.received().len() == 5, || {
        format!(
            "{failed} of 100 failed, {} reached the bad endpoint; five make it an outlier",
            bad.received().len()
        )
    })?;
    let counted = gateway.metric("fieldgate_upstream_ejections_total", "")?;
    ensure(counted == 1.0, || format!("{counted} ejections were counted"))?;
    Ok("after five 500 in a row an endpoint got none of 95 requests".into())
}
