//! The servers behind the endpoints: what they do with a request, and how that changes.

use std::net::SocketAddr;

use crate::random::Random;

/// How a server is at the moment.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    Fine,
    /// So many percent of answers are 5xx.
    Failing(u64),
    /// So many times slower.
    Slow(u64),
    /// Refuses connections in every other period.
    Flapping(u64),
    Refusing,
    /// Takes what is sent and never answers.
    BlackHole,
    /// So many percent of connections break.
    Resetting(u64),
}

/// What comes of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    /// A status, with a time to wait in seconds.
    Busy(u16, u64),
    Refused,
    Reset {
        unsent: bool,
    },
    /// A kept connection had been closed by the peer.
    Stale {
        unsent: bool,
    },
    /// Until the one who waits gives up.
    Nothing,
}

pub struct Server {
    pub mode: Mode,
    /// The usual time to an answer.
    usual_ms: u64,
}

impl Server {
    pub fn new(random: &mut Random) -> Self {
        Self { mode: Mode::Fine, usual_ms: *random.one_of(&[2, 5, 20, 60, 60, 200, 500]) }
    }

    pub fn change(&mut self, random: &mut Random) {
        self.mode = match random.below(10) {
            0..=2 => Mode::Fine,
            3 => Mode::Failing(*random.one_of(&[5, 30, 100])),
            4 => Mode::Slow(random.between(2, 30)),
            5 => Mode::Flapping(random.between(300, 5000)),
            6 | 7 => Mode::Refusing,
            8 => Mode::BlackHole,
            _ => Mode::Resetting(*random.one_of(&[1, 20, 100])),
        };
    }

    /// What comes of a try that begins now, and after how many milliseconds.
    pub fn serve(&self, now_ms: u64, random: &mut Random) -> (Outcome, u64) {
        let took = self.usual_ms / 2 + random.wait(self.usual_ms / 2 + 1);
        match self.mode {
            _ if random.chance(1) => (Outcome::Stale { unsent: random.chance(30) }, 0),
            Mode::Failing(percent) if random.chance(percent) => {
                let status = *random.one_of(&[500, 502, 503, 503, 504]);
                let outcome = match random.below(8) {
                    0 => Outcome::Busy(503, random.between(0, 4)),
                    _ => Outcome::Status(status),
                };
                (outcome, took / 2)
            }
            Mode::Resetting(percent) if random.chance(percent) => {
                (Outcome::Reset { unsent: random.chance(20) }, took / 2)
            }
            Mode::Slow(factor) => (Outcome::Status(200), took * factor),
            _ if !self.listens(now_ms) => (Outcome::Refused, random.below(3)),
            Mode::BlackHole => (Outcome::Nothing, 0),
            _ => (Outcome::Status(*random.one_of(&[200, 200, 200, 200, 200, 204, 404, 409])), took),
        }
    }

    /// What an active check would find.
    pub fn is_well(&self, now_ms: u64) -> bool {
        self.listens(now_ms) && !matches!(self.mode, Mode::BlackHole | Mode::Failing(100))
    }

    fn listens(&self, now_ms: u64) -> bool {
        match self.mode {
            Mode::Refusing => false,
            Mode::Flapping(period) => (now_ms / period).is_multiple_of(2),
            _ => true,
        }
    }
}

/// The `n`th server of those that the pool in this slot can have as endpoints.
pub fn address(slot: usize, n: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, slot as u8, n as u8 + 1], 80))
}
