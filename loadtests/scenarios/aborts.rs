//! Who goes away in the middle of an exchange is missed on the other side at once: the upstream's connection or stream
//! ends with the client's, and the client learns of an upstream's end.

use std::time::Duration;

use bytes::Bytes;
use fieldgate_loadtests::probe::{self, Ask, Exchange, Framing, Probe};
use fieldgate_loadtests::rig::wait;

use crate::context::{Context, Figures, Outcome, ensure};
use crate::crossing::{Crossing, Pair};

/// What "at once" may take on a busy machine. Every timeout that could also end an exchange is minutes long.
const PROMPT: Duration = Duration::from_secs(10);
const PIECE: Bytes = Bytes::from_static(&[b'.'; 64 * 1024]);
/// More than all buffers on the way hold.
const ENDLESS: &str = "/bytes/10000000000";
/// Longer than the scenario.
const NEVER: &str = "/delay/3600000";

/// Where an exchange stands when the client leaves.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Waiting,
    WaitingAfterUpload,
    Uploading,
    Downloading,
    /// Downloading, and nothing has been read for so long that every buffer is full.
    Stalled,
    BothWays,
}

const MOMENTS: [Moment; 6] = [
    Moment::Waiting,
    Moment::WaitingAfterUpload,
    Moment::Uploading,
    Moment::Downloading,
    Moment::Stalled,
    Moment::BothWays,
];

pub fn run(context: &Context) -> Outcome {
    let crossing = Crossing::start(context)?;
    let mut slowest = Duration::ZERO;
    let mut cases = 0;
    for pair in crossing.pairs() {
        for moment in MOMENTS {
            for resets in [true, false] {
                let how = if resets { "cancels" } else { "closes" };
                let took = probe::run(client_leaves(&crossing, &pair, moment, resets))
                    .map_err(|error| format!("{}, client {how}, {moment:?}: {error}", pair.name))?;
                slowest = slowest.max(took);
                cases += 1;
            }
        }
        probe::run(upstream_leaves(&pair)).map_err(|error| format!("{}, upload: {error}", pair.name))?;
    }
    let mut figures = Figures::default();
    figures.add(format!(
        "{cases} clients left; the upstream knew after {:.0} ms at the latest",
        slowest.as_secs_f64() * 1000.0
    ));
    figures.add("upstreams that reset in the middle of an upload: the client knew");
    Ok(figures)
}

async fn client_leaves(
    crossing: &Crossing,
    pair: &Pair,
    moment: Moment,
    resets: bool,
) -> Result<Duration, String> {
    let cancelled = || crossing.backend.counter("cancelled");
    let before = (cancelled()?, crossing.backend.counter("requests")?);
    let exchange = reach(&Probe::new(&pair.plan)?, moment).await?;
    wait::eventually(PROMPT, "the upstream to have the request", || {
        crossing.backend.counter("requests").is_ok_and(|requests| requests > before.1).then_some(())
    })
    .await?;
    let left = std::time::Instant::now();
    let connection = if resets {
        Some(exchange.cancel())
    } else {
        drop(exchange);
        None
    };
    wait::eventually(PROMPT, "the upstream to notice", || {
        cancelled().is_ok_and(|cancelled| cancelled > before.0).then_some(())
    })
    .await?;
    drop(connection);
    Ok(left.elapsed())
}

/// An exchange, brought to this moment.
async fn reach(probe: &Probe, moment: Moment) -> Result<Exchange, String> {
    let (target, body) = match moment {
        Moment::Waiting => (NEVER, Framing::None),
        Moment::WaitingAfterUpload => (NEVER, Framing::Counted(PIECE.len() as u64)),
        Moment::Uploading => ("/upload", Framing::Streamed),
        Moment::Downloading | Moment::Stalled => (ENDLESS, Framing::None),
        Moment::BothWays => ("/duplex", Framing::Streamed),
    };
    let mut exchange = probe.open(&Ask { body, ..Ask::get(target) }).await?;
    if body != Framing::None {
        exchange.sender.send(PIECE).await?;
    }
    if matches!(moment, Moment::WaitingAfterUpload) {
        exchange.sender.finish(&[]).await?;
    }
    if matches!(moment, Moment::Downloading | Moment::Stalled | Moment::BothWays) {
        let head = exchange.receiver.head().await?;
        ensure(head.status == 200, || format!("status {}", head.status))?;
        exchange.receiver.read(PIECE.len() as u64).await?;
    }
    if matches!(moment, Moment::Stalled) {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(exchange)
}

async fn upstream_leaves(pair: &Pair) -> Result<(), String> {
    let probe = Probe::new(&pair.plan)?;
    let mut exchange = probe.open(&Ask::post("/reset", Framing::Streamed)).await?;
    let Exchange { sender, receiver, .. } = &mut exchange;
    let upload = async {
        // Until the gateway takes no more.
        while sender.send(PIECE).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    let seen = tokio::select! {
        seen = receiver.complete() => seen,
        () = upload => unreachable!("it never ends"),
    };
    let known = !seen.error.is_empty() || matches!(seen.answer.status, 502 | 503);
    ensure(known && !seen.error.contains("in vain"), || format!("{seen:?}"))
}
