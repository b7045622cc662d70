//! Fairness: what small requests notice of clients that download slowly and of many that upload, on the same worker.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::Parser;
use fieldgate_loadtests::rig::Process;
use socket2::{Domain, Protocol, Socket, Type};

use super::cases::Case;
use super::load::{PacedArguments, read_paced};
use super::measure::{self, Measured, Sample};
use super::peers::Subject;
use super::report::{Row, Table};
use super::setup::Setup;
use super::{Bench, LOAD_CPU};

/// Small requests per second: few enough that a proxy is never full of them.
const SMALL_RATE: f64 = 1000.0;
const SMALL_CONNECTIONS: usize = 16;
const UPLOADS_PER_SECOND: f64 = 300.0;
const UPLOAD_BYTES: usize = 1024 * 1024;
const UPLOAD_CONNECTIONS: usize = 64;
const SLOW_CLIENTS: usize = 8;
/// What each of them takes in a second.
const SLOW_BYTES: usize = 64 * 1024;
/// Not counted at the start of each run.
const WARM_UP: f64 = 0.3;
/// How much longer than the small requests the uploads go on, so that there are some at all times.
const MARGIN: f64 = 0.5;
const UNSTEADY: f64 = 1.0;
const UPLOADS_END: Duration = Duration::from_secs(30);

/// Small requests alone and beside the others, in the same round.
pub fn run(bench: &Bench<'_>, case: &Case) -> Result<Table, String> {
    let subjects = bench.start_all(Setup::PLAIN)?;
    let seconds = f64::from(bench.context.seconds);
    for subject in &subjects {
        beside(bench, subject, WARM_UP).map_err(|error| format!("{}: {error}", subject.name))?;
    }
    let samples = measure::rounds(bench, &subjects, |subject| {
        Ok((alone(bench, subject, seconds)?, beside(bench, subject, seconds)?))
    })?;
    let (alone, beside) = samples.into_iter().map(|rounds| rounds.into_iter().unzip()).unzip();
    let (alone, beside) = (measure::measured(&subjects, alone)?, measure::measured(&subjects, beside)?);
    Ok(table(case, &alone, &beside))
}

fn table(case: &Case, alone: &[Measured], beside: &[Measured]) -> Table {
    let p99 = |sample: &Sample| sample.latency.map(|latency| latency.p99);
    let p999 = |sample: &Sample| sample.latency.map(|latency| latency.p999);
    let (best, envoy) = (measure::best(beside, p99), measure::named(beside, "envoy"));
    let mut table = Table::new(&case.name, &case.about);
    for (alone, beside) in alone.iter().zip(beside) {
        let mut row = Row::new(&beside.name);
        row.shared(beside);
        // What the small requests have is their schedule's, and the uploads are at work on both cores too.
        row.remove("requests_per_second");
        row.remove("limit");
        row.number("alone_p99_ms", alone.median(p99), alone.is_trusted(p99, UNSTEADY));
        row.number("p99_ms", beside.median(p99), beside.is_steady(p99, UNSTEADY));
        row.number("p999_ms", beside.median(p999), beside.is_steady(p999, UNSTEADY));
        row.number("p99_growth", beside.ratio(alone, p99), true);
        row.number("p99_to_best_peer", best.and_then(|best| beside.ratio(best, p99)), true);
        row.number("p99_to_envoy", envoy.and_then(|envoy| beside.ratio(envoy, p99)), true);
        row.number("late_p999_ms", beside.median(|sample| sample.late.map(|late| late.p999)), true);
        table.rows.push(row);
    }
    table.best_peer = best.map(|best| best.name.clone());
    table
}

fn alone(bench: &Bench<'_>, subject: &Subject, seconds: f64) -> Result<Sample, String> {
    let small = PacedArguments {
        address: subject.to.plain,
        path: "/".to_owned(),
        body: 0,
        connections: SMALL_CONNECTIONS,
        rate: SMALL_RATE,
        seconds: seconds + WARM_UP,
        warm_up: WARM_UP,
    };
    measure::observe(&subject.process, Some(&bench.backend.process), || small.run())
}

fn beside(bench: &Bench<'_>, subject: &Subject, seconds: f64) -> Result<Sample, String> {
    let program = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    let start = |name: &str, words: &[String]| {
        Process::start(name, bench.stage.path(), Some(LOAD_CPU), &program, words)
    };
    let address = subject.to.plain;
    let _slow = start("trickle", &["trickle".to_owned(), format!("--address={address}")])?;
    let uploads = PacedArguments {
        address,
        path: "/upload".to_owned(),
        body: UPLOAD_BYTES,
        connections: UPLOAD_CONNECTIONS,
        rate: UPLOADS_PER_SECOND,
        seconds: seconds + WARM_UP + MARGIN,
        warm_up: 0.0,
    };
    let mut uploading = start("uploads", &uploads.words())?;
    let sample = alone(bench, subject, seconds)?;
    uploading.wait_exit(UPLOADS_END)?;
    read_paced(&uploading.log())?;
    Ok(sample)
}

/// The slow clients, as this program's own helper takes them.
#[derive(Parser)]
struct TrickleArguments {
    #[arg(long)]
    address: SocketAddr,
}

/// Downloads slowly for as long as it is left to.
pub fn trickle_main(arguments: &[String]) -> Result<(), String> {
    let TrickleArguments { address } = TrickleArguments::parse_from(arguments);
    trickle(address).map_err(|error| format!("slow clients of {address}: {error}"))
}

fn trickle(address: SocketAddr) -> io::Result<()> {
    const TIMES_A_SECOND: u32 = 20;
    let mut clients = (0..SLOW_CLIENTS).map(|_| slow_client(address)).collect::<io::Result<Vec<_>>>()?;
    let mut buffer = vec![0; SLOW_BYTES / TIMES_A_SECOND as usize];
    loop {
        for client in &mut clients {
            if client.read(&mut buffer)? == 0 {
                return Err(io::Error::other("a download that never ends has ended"));
            }
        }
        std::thread::sleep(Duration::from_secs(1) / TIMES_A_SECOND);
    }
}

fn slow_client(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // So small that the proxy soon has nowhere to put what it reads.
    socket.set_recv_buffer_size(SLOW_BYTES / 4)?;
    socket.connect(&address.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(format!("GET /bytes/107374182400 HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())?;
    Ok(stream)
}
