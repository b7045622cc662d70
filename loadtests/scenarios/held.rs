//! What is open while a gateway changes: a steady load by every protocol, and exchanges that began before and must end
//! as if nothing had happened.

use bytes::Bytes;
use fieldgate_loadtests::load::{Plan, Running, Tally, Version};
use fieldgate_loadtests::probe::{Ask, Exchange, Framing, Probe};

use crate::context::{Figures, ensure, ensure_flawless};
use crate::edge::Way;

/// Requests per second of each load: steady, with room for what else happens on two cores.
const RATE: f64 = 300.0;
const CONNECTIONS: usize = 4;
const MIB: u64 = 1024 * 1024;
/// More than every buffer on the way holds, so that a download cannot end before its time.
const DOWNLOAD: u64 = 64 * MIB;
const PIECE: Bytes = Bytes::from_static(&[b'.'; MIB as usize / 4]);

/// Loads by every way, on connections that stay, and others that open a connection for each request.
pub struct Loads(Vec<(String, Running)>);

impl Loads {
    /// `reconnect`: whether a connection that the gateway ended in good order is replaced.
    pub fn start(ways: &[Way], reconnect: bool) -> Result<Self, String> {
        let mut loads = Vec::new();
        for way in ways {
            let streams = if way.plan.version == Version::Http2 { 4 } else { 1 };
            let kept =
                Plan { rate: Some(RATE), connections: CONNECTIONS, streams, reconnect, ..way.plan.clone() };
            loads.push((way.name.to_owned(), kept.start()?));
            // So seldom used that it counts as idle in between.
            let quiet = Plan { rate: Some(0.5), connections: 1, reconnect, ..way.plan.clone() };
            loads.push((format!("{}, mostly idle", way.name), quiet.start()?));
            if way.plan.version == Version::Http1 {
                let headers = vec![("connection".to_owned(), "close".to_owned())];
                let fresh = Plan { rate: Some(RATE / 3.0), headers, ..way.plan.clone() };
                loads.push((format!("{}, a connection each", way.name), fresh.start()?));
            }
        }
        Ok(Self(loads))
    }

    /// Complete answers so far.
    pub fn answered(&self) -> u64 {
        self.0.iter().map(|(_, load)| load.snapshot().completed()).sum()
    }

    /// Fails as soon as a request has.
    pub fn check(&self) -> Result<(), String> {
        let failed = self.0.iter().map(|(name, load)| (name, load.snapshot()));
        let failed: Vec<_> = failed
            .filter(|(_, tally)| tally.failures() > 0)
            .map(|(name, tally)| format!("{name}: {}", tally.describe_failures()))
            .collect();
        ensure(failed.is_empty(), || failed.join("; "))
    }

    /// Ends them and fails if any request did. `kept`: also if a connection that was to stay was ended.
    pub fn finish(self, kept: bool, figures: &mut Figures) -> Result<(), String> {
        for (name, load) in self.0 {
            let tally = load.stop();
            ensure_flawless(&name, &tally)?;
            if kept && !name.ends_with("a connection each") {
                ensure_kept(&name, &tally)?;
            }
            let p99 = tally.latency.percentile(0.99);
            let (sent, connections) = (tally.sent, tally.connections);
            figures.add(format!("{name}: {sent} requests on {connections} connections, p99 {p99} us"));
        }
        Ok(())
    }
}

fn ensure_kept(name: &str, tally: &Tally) -> Result<(), String> {
    let ended = tally.close_seen + tally.ended;
    ensure(ended == 0 && tally.connections <= CONNECTIONS as u64, || {
        format!("{name}: {} connections were opened and {ended} ended by the gateway", tally.connections)
    })
}

/// Exchanges in flight: a download and an upload by every way, and WebSockets by those that have them.
pub struct Held {
    downloads: Vec<(&'static str, Exchange, u64)>,
    uploads: Vec<(Exchange, u64)>,
    websockets: Vec<Exchange>,
}

impl Held {
    pub async fn open(ways: &[Way]) -> Result<Self, String> {
        let mut held = Self { downloads: Vec::new(), uploads: Vec::new(), websockets: Vec::new() };
        for way in ways {
            let probe = Probe::new(&way.plan)?;
            let mut download = probe.open(&Ask::get(&format!("/bytes/{DOWNLOAD}"))).await?;
            let head = download.receiver.head().await?;
            ensure(head.status == 200, || format!("download: status {}", head.status))?;
            held.downloads.push((way.name, download, 0));
            held.uploads.push((probe.open(&Ask::post("/upload", Framing::Streamed)).await?, 0));
            if way.plan.version == Version::Http1 {
                held.websockets.push(websocket(&probe).await?);
            }
        }
        held.step().await?;
        Ok(held)
    }

    /// Moves a piece of each, and checks that it arrived where that can be seen.
    pub async fn step(&mut self) -> Result<(), String> {
        for (way, download, read) in &mut self.downloads {
            let more = download.receiver.read(PIECE.len() as u64).await;
            *read += more.map_err(|error| format!("{way}: a download after {read} bytes: {error}"))?;
        }
        for (upload, sent) in &mut self.uploads {
            let taken = upload.sender.send(PIECE).await;
            taken.map_err(|error| format!("an upload after {sent} bytes: {error}"))?;
            *sent += PIECE.len() as u64;
        }
        for websocket in &mut self.websockets {
            echo(websocket).await.map_err(|error| format!("a WebSocket: {error}"))?;
        }
        Ok(())
    }

    /// Ends all of them, complete.
    pub async fn finish(mut self) -> Result<(), String> {
        self.step().await?;
        for (way, download, read) in &mut self.downloads {
            let rest = download.receiver.rest().await;
            let rest = rest.map_err(|error| format!("{way}: the rest of a download: {error}"))?;
            ensure(*read + rest == DOWNLOAD, || format!("{way}: a download lacks bytes: {read} + {rest}"))?;
        }
        for (upload, sent) in &mut self.uploads {
            let seen = upload.complete(Bytes::new(), &[]).await;
            let body = String::from_utf8_lossy(&seen.answer.body).into_owned();
            ensure(seen.error.is_empty() && body.starts_with(&format!("{{\"bytes\":{sent},")), || {
                format!("an upload of {sent} bytes: {} {body} {}", seen.answer.status, seen.error)
            })?;
        }
        Ok(())
    }
}

/// A masked close-free conversation needs no more of RFC 6455 than this.
async fn websocket(probe: &Probe) -> Result<Exchange, String> {
    let ask = Ask::get("/ws")
        .with("connection", "upgrade")
        .with("upgrade", "websocket")
        .with("sec-websocket-version", "13")
        .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut exchange = probe.open(&ask).await?;
    let head = exchange.receiver.head().await?;
    ensure(head.status == 101, || format!("WebSocket: status {}", head.status))?;
    Ok(exchange)
}

async fn echo(websocket: &mut Exchange) -> Result<(), String> {
    // A masked text frame; a mask of zeros leaves the payload as it is.
    websocket.sender.send(Bytes::from_static(b"\x81\x85\0\0\0\0hello")).await?;
    let mut back = Vec::new();
    while back.len() < 7 {
        back.extend(websocket.receiver.piece().await?.ok_or("a WebSocket ended")?);
    }
    ensure(back == b"\x81\x05hello", || format!("a WebSocket echoed {back:?}"))
}
