//! What HTTP lets an exchange consist of, seen the same by every client over every upstream: interim answers, answers
//! without a body, trailers both ways, 100-continue, answers that come early, bodies that flow both ways at once.

use bytes::Bytes;
use fieldgate_loadtests::load::Version;
use fieldgate_loadtests::probe::{self, Ask, Exchange, Framing, Probe, Seen};
use fieldgate_loadtests::rig::http::Response;

use crate::context::{Context, Figures, Outcome, ensure};
use crate::crossing::{Crossing, Pair};

const TRAILER: (&str, &str) = ("x-sum", "42");

/// A request, and what must be seen of its answer. All of them follow each other on one connection, so that one whose
/// end is misjudged spoils the next.
struct Check {
    name: &'static str,
    ask: Ask,
    body: Bytes,
    trailers: &'static [(&'static str, &'static str)],
    good: fn(&Seen) -> bool,
}

fn check(name: &'static str, ask: Ask, good: fn(&Seen) -> bool) -> Check {
    Check { name, ask, body: Bytes::new(), trailers: &[], good }
}

fn upload(
    name: &'static str,
    target: &str,
    framing: Framing,
    body: Vec<u8>,
    good: fn(&Seen) -> bool,
) -> Check {
    Check { body: body.into(), ..check(name, Ask::post(target, framing), good) }
}

fn checks() -> Vec<Check> {
    let head = |target| Ask::new("HEAD", target);
    let streamed = Framing::Streamed;
    vec![
        check("103", Ask::get("/103"), |seen| hints(seen) == ["</1.css>; rel=preload"] && is_root(seen)),
        check("103 three times", Ask::get("/103/3"), |seen| {
            hints(seen) == [1, 2, 3].map(|n| format!("</{n}.css>; rel=preload")) && is_root(seen)
        }),
        check(
            "103 twice after a POST",
            Ask { body: Framing::Counted(0), ..Ask::post("/103/2", streamed) },
            |seen| hints(seen).len() == 2 && is_root(seen),
        ),
        check("HEAD with a length", head("/bytes/1000000"), |seen| is_bare(seen, 200, Some("1000000"))),
        check("HEAD without a length", head("/slow-body"), |seen| is_bare(seen, 200, None)),
        check("HEAD of trailers", head("/trailers"), |seen| is_bare(seen, 200, None)),
        check("HEAD of a 404", head("/status/404"), |seen| is_bare(seen, 404, Some("0"))),
        check("204", Ask::get("/status/204"), |seen| is_bare(seen, 204, None)),
        check("HEAD of a 204", head("/status/204"), |seen| is_bare(seen, 204, None)),
        check("304", Ask::get("/status/304"), |seen| is_bare(seen, 304, None)),
        check("304 with a length", Ask::get("/status/304?length=128"), |seen| {
            is_bare(seen, 304, Some("128"))
        }),
        check("HEAD of a 304", head("/status/304?length=128"), |seen| is_bare(seen, 304, Some("128"))),
        check("an empty 200", Ask::get("/status/200"), |seen| is_bare(seen, 200, Some("0"))),
        check("a length", Ask::get("/bytes/100000"), |seen| {
            length(&seen.answer) == Some("100000") && seen.answer.body.len() == 100_000
        }),
        check("no length", Ask::get("/slow-body"), |seen| {
            length(&seen.answer).is_none() && seen.answer.body.len() == 1280
        }),
        check("trailers", Ask::get("/trailers").with("te", "trailers"), |seen| {
            has(&seen.trailers, "x-trailer", "the end") && is_root(seen)
        }),
        Check {
            trailers: &[TRAILER],
            ..upload("trailers of the request", "/echo", streamed, b"hello".to_vec(), |seen| {
                let report = String::from_utf8_lossy(&seen.answer.body);
                report.contains(r#""body":"hello""#) && report.contains(r#"["x-sum","42"]"#)
            })
        },
        Check {
            trailers: &[TRAILER],
            ..upload("only trailers", "/echo", streamed, Vec::new(), |seen| {
                String::from_utf8_lossy(&seen.answer.body).contains(r#"["x-sum","42"]"#)
            })
        },
        upload("a counted upload", "/upload", Framing::Counted(300_000), vec![b'.'; 300_000], |seen| {
            received(seen, 300_000)
        }),
        upload("a streamed upload", "/upload", streamed, vec![b'.'; 300_000], |seen| received(seen, 300_000)),
        check("an empty upload", Ask::post("/upload", Framing::Counted(0)), |seen| received(seen, 0)),
        upload("an empty streamed upload", "/upload", streamed, Vec::new(), |seen| received(seen, 0)),
        check("POST without a body", Ask::post("/upload", Framing::None), |seen| received(seen, 0)),
        Check {
            ask: Ask { body: Framing::Counted(5), ..Ask::get("/upload") },
            ..upload("GET with a body", "/upload", streamed, b"hello".to_vec(), |seen| received(seen, 5))
        },
        check("the end", Ask::get("/"), is_root),
    ]
}

pub fn run(context: &Context) -> Outcome {
    let crossing = Crossing::start(context)?;
    let mut wrong = Vec::new();
    let mut figures = Figures::default();
    for pair in crossing.pairs() {
        let mut count = 0;
        let mut note = |name: &str, result: Result<(), String>| {
            count += 1;
            wrong.extend(result.err().map(|error| format!("\n  {}, {name}: {error}", pair.name)));
        };
        probe::run(async {
            one_connection(&pair, &mut note).await?;
            note("100-continue", continues(&pair).await);
            note("an early answer", early(&pair).await);
            note("both ways at once", duplex(&pair).await);
            Ok(())
        })?;
        figures.add(format!("{}: {count} checks", pair.name));
    }
    ensure(wrong.is_empty(), || wrong.concat())?;
    Ok(figures)
}

async fn one_connection(pair: &Pair, note: &mut impl FnMut(&str, Result<(), String>)) -> Result<(), String> {
    let probe = Probe::new(&pair.plan)?;
    let mut connection: Option<Exchange> = None;
    for Check { name, ask, body, trailers, good } in checks() {
        let mut exchange = match connection.take() {
            Some(previous) => previous.again(&ask).await?,
            None => probe.open(&ask).await?,
        };
        let seen = exchange.complete(body, trailers).await;
        note(name, ensure(seen.error.is_empty() && good(&seen), || describe(&seen)));
        // Only what is in order can be followed on the same connection.
        connection = seen.error.is_empty().then_some(exchange);
    }
    Ok(())
}

/// The body is sent only after 100 has come.
async fn continues(pair: &Pair) -> Result<(), String> {
    let ask = Ask::post("/upload", Framing::Counted(5)).with("expect", "100-continue");
    let mut exchange = Probe::new(&pair.plan)?.open(&ask).await?;
    let head = exchange.receiver.head().await?;
    ensure(head.status == 100, || format!("instead of 100 came {}", head.status))?;
    let seen = exchange.complete("hello".into(), &[]).await;
    ensure(received(&seen, 5) && seen.interim.is_empty(), || describe(&seen))
}

/// 413 comes in full although the upload has not ended, and although the client goes on sending.
async fn early(pair: &Pair) -> Result<(), String> {
    let probe = Probe::new(&pair.plan)?;
    for (framing, bytes) in [(Framing::Counted(1 << 30), 64 * 1024), (Framing::Streamed, 8 << 20)] {
        let mut exchange = probe.open(&Ask::post("/early", framing)).await?;
        let body = Bytes::from(vec![b'.'; bytes]);
        let Exchange { sender, receiver, .. } = &mut exchange;
        let upload = async {
            let _ = sender.send(body).await;
            // The request stays unfinished.
            std::future::pending::<()>().await;
        };
        let seen = tokio::select! {
            biased;
            seen = receiver.complete() => seen,
            () = upload => unreachable!("it never ends"),
        };
        let complete = seen.error.is_empty() && seen.answer.body == b"too large\n";
        ensure(seen.answer.status == 413 && complete, || describe(&seen))?;
        // The rest of the upload cannot be told from a next request, so HTTP/1.1 has to end the connection.
        let closes = seen.answer.header("connection") == Some("close");
        ensure(closes == (pair.plan.version == Version::Http1), || describe(&seen))?;
    }
    Ok(())
}

/// Each piece comes back before the next is sent.
async fn duplex(pair: &Pair) -> Result<(), String> {
    let mut exchange = Probe::new(&pair.plan)?.open(&Ask::post("/duplex", Framing::Streamed)).await?;
    let head = exchange.receiver.head().await?;
    ensure(head.status == 200, || format!("status {}", head.status))?;
    for round in 0..5 {
        let piece = format!("round {round}");
        exchange.sender.send(piece.clone().into()).await?;
        let mut back = Vec::new();
        while back.len() < piece.len() {
            back.extend(exchange.receiver.piece().await?.ok_or("the answer ended before the request")?);
        }
        ensure(back == piece.as_bytes(), || format!("sent {piece:?}, back came {back:?}"))?;
    }
    exchange.sender.finish(&[]).await?;
    ensure(exchange.receiver.rest().await? == 0, || "more came than was sent".to_owned())
}

fn hints(seen: &Seen) -> Vec<&str> {
    let hints = seen.interim.iter().filter(|interim| interim.status == 103);
    hints.filter_map(|hint| hint.header("link")).collect()
}

fn is_root(seen: &Seen) -> bool {
    seen.answer.status == 200 && seen.answer.body == [b'.'; 128]
}

/// No body, and neither framing nor a length that the upstream did not give.
fn is_bare(seen: &Seen, status: u16, content_length: Option<&str>) -> bool {
    let answer = &seen.answer;
    answer.status == status && answer.body.is_empty() && length(answer) == content_length
}

fn received(seen: &Seen, bytes: u64) -> bool {
    seen.answer.status == 200
        && String::from_utf8_lossy(&seen.answer.body).starts_with(&format!("{{\"bytes\":{bytes},"))
}

fn length(answer: &Response) -> Option<&str> {
    answer.header("content-length")
}

fn has(fields: &probe::Fields, name: &str, value: &str) -> bool {
    fields.iter().any(|field| field.0 == name && field.1 == value)
}

fn describe(seen: &Seen) -> String {
    let body = String::from_utf8_lossy(&seen.answer.body);
    let body: String = body.chars().take(300).collect();
    format!(
        "{} interim, status {}, {:?}, {} bytes: {body}, trailers {:?}, error {:?}",
        seen.interim.len(),
        seen.answer.status,
        seen.answer.headers,
        seen.answer.body.len(),
        seen.trailers,
        seen.error
    )
}
