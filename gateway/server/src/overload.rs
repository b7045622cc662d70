//! The gateway's own limits: connections, memory, and how long requests wait for a worker.
//!
//! Who comes too much is refused early and cheaply, so that what was admitted is served as if nothing were wrong. Counts of
//! connections are shared by all workers and written when one opens or closes; per request a worker reads one cell of its
//! own ([`Gate`]). What a refusal looks like on the wire is the workers' business.

mod connections;
mod delay;
mod gate;
mod memory;
mod strikes;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::telemetry::exposition::Family;

pub use connections::{Connections, Permit, Place};
pub use delay::{Controller, watch};
pub use gate::Gate;
pub use memory::{Pressure, limit_of_cgroup, resident, watch as watch_memory};
pub use strikes::Strikes;

/// The gateway's limits, as it was told to keep them. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections that clients hold open, over all workers.
    pub connections: Option<usize>,
    /// The same per listening address.
    pub per_address: Option<usize>,
    /// The same per source: an IPv4 address, or an IPv6 /64.
    pub per_source: Option<usize>,
    /// Resident memory of the process in bytes.
    pub memory: Option<u64>,
    /// How long requests may wait for a worker before some are refused.
    pub delay: Option<Duration>,
    /// Sources that flood are held back.
    pub hold_back_floods: bool,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `--max-connections`.
    Connections,
    /// `--max-connections-per-address`.
    Address,
    /// `--max-connections-per-source`.
    Source,
    /// `--max-memory`.
    Memory,
    /// `--max-delay`.
    Delay,
    /// TLS handshakes under way.
    Handshakes,
    /// No file descriptor.
    Files,
    /// `--hold-back-floods`.
    Floods,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Connections,
        Self::Address,
        Self::Source,
        Self::Memory,
        Self::Delay,
        Self::Handshakes,
        Self::Files,
        Self::Floods,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Address => "address",
            Self::Source => "source",
            Self::Memory => "memory",
            Self::Delay => "delay",
            Self::Handshakes => "handshakes",
            Self::Files => "files",
            Self::Floods => "floods",
        }
    }
}

/// What all threads know of the load on this process.
#[derive(Debug, Default)]
pub struct Overload {
    limits: Limits,
    /// Who is connected.
    pub connections: Arc<Connections>,
    /// Who floods.
    pub strikes: Strikes,
    memory: AtomicU64,
    pressure: AtomicU8,
    workers: Box<[WorkerLoad]>,
    /// Workers that have lent the files they keep for a shortage.
    short: AtomicU32,
}

/// What a worker says of itself, some times per second while it is busy.
#[derive(Debug, Default)]
struct WorkerLoad {
    /// Microseconds.
    delay: AtomicU64,
    /// Per mille of new requests.
    refused: AtomicU32,
}

impl Overload {
    /// Limits for so many workers.
    pub fn new(limits: Limits, workers: usize) -> Arc<Self> {
        Arc::new(Self {
            limits,
            connections: Arc::new(Connections::new(limits)),
            workers: (0..workers).map(|_| WorkerLoad::default()).collect(),
            ..Self::default()
        })
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How scarce memory is, as of the last look at it.
    pub fn pressure(&self) -> Pressure {
        Pressure::from_level(self.pressure.load(Ordering::Relaxed))
    }

    /// A worker has given away the files that it keeps for a shortage: nobody is to take them for new connections.
    pub fn files_lent(&self) {
        self.short.fetch_add(1, Ordering::Relaxed);
    }

    /// It has them back.
    pub fn files_back(&self) {
        self.short.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether a worker lacks files.
    pub fn lacks_files(&self) -> bool {
        self.short.load(Ordering::Relaxed) > 0
    }

    fn note_memory(&self, used: u64, pressure: Pressure) {
        self.memory.store(used, Ordering::Relaxed);
        self.pressure.store(pressure as u8, Ordering::Relaxed);
    }

    fn note_delay(&self, worker: usize, delay: Duration, admitted: f64) {
        if let Some(load) = self.workers.get(worker) {
            load.delay.store(delay.as_micros() as u64, Ordering::Relaxed);
            load.refused.store(((1.0 - admitted) * 1000.0) as u32, Ordering::Relaxed);
        }
    }

    /// Writes what is true now, for a scrape.
    pub fn render(&self, out: &mut String) {
        let mut gauge = |name: &str, help: &str, value: f64| {
            Family::begin(out, name, "gauge", help).sample(&[], value);
        };
        let (open, limit) = (self.connections.open(), self.limits.connections);
        let help = "Connections of clients over all listeners.";
        gauge("fieldgate_connections_open", help, open as f64);
        if let Some(limit) = limit {
            gauge("fieldgate_connections_limit", "How many there may be (--max-connections).", limit as f64);
        }
        if let Some(limit) = self.limits.memory {
            let used = self.memory.load(Ordering::Relaxed);
            gauge("fieldgate_memory_bytes", "Resident memory of the process.", used as f64);
            gauge("fieldgate_memory_limit_bytes", "What it may be (--max-memory).", limit as f64);
            let help = "How scarce memory is: 0 it is not, 1 new requests are refused, 2 idle connections are closed too.";
            gauge("fieldgate_memory_pressure", help, f64::from(self.pressure() as u8));
        }
        let help = "How long a request waits for the worker at present, in seconds.";
        let mut family = Family::begin(out, "fieldgate_worker_delay_seconds", "gauge", help);
        for (index, load) in self.workers.iter().enumerate() {
            let delay = load.delay.load(Ordering::Relaxed) as f64 / 1e6;
            family.sample(&[("worker", &index.to_string())], delay);
        }
        let help =
            "The share of new requests that the worker refuses because they would wait too long, 0 to 1.";
        let mut family = Family::begin(out, "fieldgate_worker_refused_ratio", "gauge", help);
        for (index, load) in self.workers.iter().enumerate() {
            let refused = f64::from(load.refused.load(Ordering::Relaxed)) / 1000.0;
            family.sample(&[("worker", &index.to_string())], refused);
        }
    }
}

/// Whether an error says that there is no file descriptor, in the process (`EMFILE`) or the system (`ENFILE`): our own
/// fault, and never an endpoint's.
pub fn out_of_files(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].iter().any(|e| number == Some(e.raw_os_error()))
}

/// Files that are no connections: sockets that listen, logs, configuration, the runtimes' own.
const OTHER_FILES: u64 = 128;

/// Connections of clients that leave room for those to upstreams: three quarters of the files that the process may open, for
/// most clients are idle most of the time, and an idle one needs none upstream.
pub fn default_connections() -> Option<usize> {
    let files = getrlimit(Resource::Nofile).current?;
    Some(connections_of(files))
}

fn connections_of(files: u64) -> usize {
    (files.saturating_sub(OTHER_FILES) / 4 * 3).max(16) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_upstreams() {
        for (files, connections) in [(1024, 672), (20_000, 14_904), (1_048_576, 786_336), (10, 16)] {
            assert_eq!(connections_of(files), connections, "{files}");
        }
    }

    #[test]
    fn a_lack_of_files_is_told_from_other_errors() {
        for (number, expected) in [(24, true), (23, true), (111, false), (99, false)] {
            assert_eq!(out_of_files(&io::Error::from_raw_os_error(number)), expected, "{number}");
        }
        assert!(!out_of_files(&io::Error::other("x")));
    }

    #[test]
    fn refusals_are_where_their_number_says() {
        for (index, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, index);
        }
    }

    #[test]
    fn what_is_rendered_is_what_was_noted() {
        let overload =
            Overload::new(Limits { connections: Some(5), memory: Some(1000), ..Limits::default() }, 2);
        overload.note_memory(900, Pressure::Tight);
        overload.note_delay(1, Duration::from_millis(150), 0.25);
        let mut text = String::new();
        overload.render(&mut text);
        for line in [
            "fieldgate_connections_open 0",
            "fieldgate_connections_limit 5",
            "fieldgate_memory_bytes 900",
            "fieldgate_memory_limit_bytes 1000",
            "fieldgate_memory_pressure 1",
            "fieldgate_worker_delay_seconds{worker=\"0\"} 0",
            "fieldgate_worker_delay_seconds{worker=\"1\"} 0.15",
            "fieldgate_worker_refused_ratio{worker=\"1\"} 0.75",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
    }
}
