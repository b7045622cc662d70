//! Who does not read holds back who sends, through the gateway and in bounded memory: a client its upstream's answer,
//! an upstream its client's request, by every pair of protocols, one at a time and hundreds at once.

use std::time::Duration;

use bytes::Bytes;
use fieldgate_loadtests::load::Version;
use fieldgate_loadtests::probe::{self, Ask, Exchange, Framing, Probe};
use fieldgate_loadtests::rig::{http, wait};
use tokio::sync::watch;

use crate::context::{Context, Figures, Outcome, ensure};
use crate::crossing::{Crossing, Pair};

const MIB: u64 = 1024 * 1024;
/// What may lie in the sockets' and the gateway's buffers of one exchange together. The kernel's are the most of it.
const IN_FLIGHT: u64 = 32 * MIB;
/// Who sends nothing for so long is held back.
const STILL: Duration = Duration::from_millis(500);
const PIECE: Bytes = Bytes::from_static(&[b'.'; 64 * 1024]);
/// A window that never fills: then an HTTP/2 client holds back by not reading its socket, as HTTP/1.1 ones do.
const WIDE_OPEN: u32 = 1 << 30;
/// Resident memory of the gateway in MiB: of itself, and for each stalled exchange.
const MEMORY: (f64, f64) = (80.0, 0.5);
/// All of a crowd stall, or finish, within this time.
const CROWD: Duration = Duration::from_mins(2);

pub fn run(context: &Context) -> Outcome {
    let crossing = Crossing::start(context)?;
    let mut figures = Figures::default();
    for pair in crossing.pairs() {
        let by_socket = stalled_reader(&crossing, &pair, WIDE_OPEN)
            .map_err(|error| format!("{}, reader that stops: {error}", pair.name))?;
        if pair.plan.version == Version::Http2 {
            stalled_reader(&crossing, &pair, 64 * 1024)
                .map_err(|error| format!("{}, window that closes: {error}", pair.name))?;
        }
        let taken = probe::run(stalled_upstream(&crossing, &pair))
            .map_err(|error| format!("{}, upstream that stops: {error}", pair.name))?;
        figures.add(format!(
            "{}: held back after {} KiB down, {} KiB up",
            pair.name,
            by_socket / 1024,
            taken / 1024
        ));
    }
    let size = context.count(200, 24);
    for upstream in [Version::Http1, Version::Http2] {
        figures
            .add(crowd(&crossing, upstream, size).map_err(|error| format!("{upstream:?} crowd: {error}"))?);
    }
    Ok(figures)
}

/// Stops reading a download; how much the upstream had sent when it stopped too. The download goes on afterwards.
fn stalled_reader(crossing: &Crossing, pair: &Pair, window: u32) -> Result<u64, String> {
    let sent = || crossing.backend.counter("sent_bytes");
    let before = sent()?;
    probe::run(async {
        let probe = Probe::new(&pair.plan)?.with_window(window);
        let mut exchange = probe.open(&Ask::get(&format!("/bytes/{}", 1024 * MIB))).await?;
        exchange.receiver.head().await?;
        exchange.receiver.read(MIB / 2).await?;
        let mut last = sent()?;
        let stopped = loop {
            // The whole thread sleeps: nothing reads the socket meanwhile.
            std::thread::sleep(STILL);
            let now = sent()?;
            ensure(now - before <= IN_FLIGHT, || format!("the upstream has sent {} bytes", now - before))?;
            // Asking for the counter is itself an answer of a few hundred bytes.
            if now < last + 1024 {
                break now - before;
            }
            last = now;
        };
        exchange.receiver.read(IN_FLIGHT).await?;
        check_memory(crossing, 1)?;
        Ok(stopped)
    })
}

/// Uploads to an upstream that reads nothing; how much was taken before this side could send no more. The upload is
/// complete once the upstream reads on.
async fn stalled_upstream(crossing: &Crossing, pair: &Pair) -> Result<u64, String> {
    let mut taken = 0;
    let resume = |stalled_at| {
        taken = stalled_at;
        async { http::get(crossing.backend.address, "/resume").map(|_| ()) }
    };
    upload(&Probe::new(&pair.plan)?, resume).await?;
    ensure(taken <= IN_FLIGHT, || format!("{taken} bytes were taken"))?;
    Ok(taken)
}

/// Uploads to `/stall` until it stalls; then waits for `resume`, ends, and checks that every byte arrived.
async fn upload<R>(probe: &Probe, resume: impl FnOnce(u64) -> R) -> Result<(), String>
where
    R: Future<Output = Result<(), String>>,
{
    let mut exchange = probe.open(&Ask::post("/stall", Framing::Streamed)).await?;
    let Exchange { sender, receiver, .. } = &mut exchange;
    let mut sent = 0;
    loop {
        ensure(sent <= 2 * IN_FLIGHT, || format!("{sent} bytes were taken"))?;
        let send = sender.send(PIECE);
        tokio::pin!(send);
        let in_time = tokio::time::timeout(STILL, &mut send).await;
        if let Ok(result) = in_time {
            result?;
            sent += PIECE.len() as u64;
            continue;
        }
        resume(sent).await?;
        send.await?;
        sent += PIECE.len() as u64;
        break;
    }
    sender.finish(&[]).await?;
    let seen = receiver.complete().await;
    let body = String::from_utf8_lossy(&seen.answer.body).into_owned();
    ensure(body.starts_with(&format!("{{\"bytes\":{sent},")), || {
        format!("sent {sent} bytes: status {}, {body} {}", seen.answer.status, seen.error)
    })
}

/// Half of a crowd stops reading, half uploads to an upstream that stops; others are served all the same, and when all
/// go on, all finish.
fn crowd(crossing: &Crossing, upstream: Version, size: usize) -> Result<String, String> {
    let pairs: Vec<_> = crossing.pairs().into_iter().filter(|pair| pair.upstream == upstream).collect();
    probe::run(async {
        let (go, gone) = watch::channel(false);
        let (stalled, count) = watch::channel(0_usize);
        let mut tasks = Vec::new();
        for number in 0..size {
            let pair = &pairs[number % pairs.len()];
            let probe = Probe::new(&pair.plan)?.with_window(64 * 1024);
            let (mut gone, stalled) = (gone.clone(), stalled.clone());
            let hold = async move |_| {
                stalled.send_modify(|count| *count += 1);
                gone.wait_for(|gone| *gone).await.map(|_| ()).map_err(|error| error.to_string())
            };
            tasks.push(if number / pairs.len() % 2 == 0 {
                tokio::task::spawn_local(async move { download(&probe, hold).await })
            } else {
                tokio::task::spawn_local(async move { upload(&probe, hold).await })
            });
        }
        wait::eventually(CROWD, "the crowd to stall", || {
            (*count.borrow() == size || tasks.iter().any(tokio::task::JoinHandle::is_finished)).then_some(())
        })
        .await?;
        let memory = check_memory(crossing, size)?;
        for pair in &pairs {
            let seen = Probe::new(&pair.plan)?.ask(&Ask::get("/bytes/100000"), "").await?;
            let served = seen.error.is_empty() && seen.answer.body.len() == 100_000;
            ensure(served, || format!("meanwhile, {}: {} {}", pair.name, seen.answer.status, seen.error))?;
        }
        http::get(crossing.backend.address, "/resume")?;
        go.send_replace(true);
        for task in tasks {
            let finished = tokio::time::timeout(CROWD, task).await.map_err(|_| "one never finished")?;
            finished.map_err(|error| error.to_string())??;
        }
        Ok(format!("{size} at once to {upstream:?}: {memory:.0} MiB, others served meanwhile, all finished"))
    })
}

async fn download<R>(probe: &Probe, hold: impl FnOnce(u64) -> R) -> Result<(), String>
where
    R: Future<Output = Result<(), String>>,
{
    let size = 16 * MIB;
    let mut exchange = probe.open(&Ask::get(&format!("/bytes/{size}"))).await?;
    exchange.receiver.head().await?;
    let read = exchange.receiver.read(1).await?;
    hold(read).await?;
    let read = read + exchange.receiver.rest().await?;
    ensure(read == size, || format!("{read} of {size} bytes came"))
}

fn check_memory(crossing: &Crossing, exchanges: usize) -> Result<f64, String> {
    let memory = crossing.gateway.process.memory_mib()?;
    let bound = MEMORY.0 + MEMORY.1 * exchanges as f64;
    ensure(memory <= bound, || {
        format!("the gateway has {memory:.0} MiB with {exchanges} stalled; allowed are {bound:.0}")
    })?;
    Ok(memory)
}
