//! What stands behind the gateway: servers that work, slow down, err, refuse, break, go silent, flap.

use crate::dice::Dice;

/// How a server is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Well,
    /// So many times slower.
    Slow(u64),
    /// So many percent of its answers are 5xx.
    Erring(u64),
    /// Nobody listens.
    Refusing,
    /// Packets vanish.
    Silent,
    /// So many percent of exchanges break.
    Breaking(u64),
    /// Works and refuses by turns, each so many ms.
    Flapping(u64),
}

/// What a try at it comes to, if it is given the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Answer(u16),
    Refused,
    /// `unsent`: before anything was sent, or the peer said that it has not begun.
    Broken {
        unsent: bool,
    },
    /// Nothing ever comes.
    Never,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub mode: Mode,
    base_ms: u64,
}

impl Server {
    pub fn new(dice: &mut Dice) -> Self {
        Self { mode: Mode::Well, base_ms: dice.between(2, 30) }
    }

    pub fn turn(&mut self, dice: &mut Dice) {
        self.mode = match dice.below(13) {
            0..=4 => Mode::Well,
            5 => Mode::Slow(dice.between(2, 100)),
            6 | 7 => Mode::Erring(dice.between(5, 100)),
            8 | 9 => Mode::Refusing,
            10 => Mode::Silent,
            11 => Mode::Breaking(dice.between(5, 100)),
            _ => Mode::Flapping(dice.between(50, 3000)),
        };
    }

    /// What an active check finds.
    pub fn passes_check(&self, now_ms: u64) -> bool {
        match self.mode {
            Mode::Well | Mode::Slow(_) | Mode::Erring(..80) | Mode::Breaking(..80) => true,
            Mode::Flapping(every) => (now_ms / every).is_multiple_of(2),
            _ => false,
        }
    }

    /// What a request that comes now is in for, and when.
    pub fn serve(&self, now_ms: u64, dice: &mut Dice) -> (u64, Fate) {
        let ms = dice.about(self.base_ms);
        let ok = Fate::Answer(if dice.below(500) > 0 { 200 } else { dice.one_of(&[404, 409, 429, 500]) });
        match self.mode {
            Mode::Well => (ms, ok),
            Mode::Slow(times) => (ms * times, ok),
            Mode::Erring(percent) if dice.percent(percent) => {
                (ms, Fate::Answer(dice.one_of(&[500, 502, 503, 503, 504])))
            }
            Mode::Breaking(percent) if dice.percent(percent) => {
                (ms, Fate::Broken { unsent: dice.percent(30) })
            }
            Mode::Erring(_) | Mode::Breaking(_) => (ms, ok),
            Mode::Refusing => (1, Fate::Refused),
            Mode::Silent => (0, Fate::Never),
            Mode::Flapping(_) if self.passes_check(now_ms) => (ms, ok),
            Mode::Flapping(_) => (1, Fate::Refused),
        }
    }
}
