//! Faults that a backend has while somebody on its Unix socket says so: a line in, `ok` out.
//!
//! Neither `/healthz` nor `/stats` has any of them, so that what finds a fault is what requests come to.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::sync::watch;

use super::State;
use super::answer::{Answer, Cut, Whole};

/// What a truncated answer sends; it declares twice as much.
const TRUNCATED: u64 = 64;
/// How long a backend is cold.
const COLD: Duration = Duration::from_secs(3);

/// The faults that are on.
pub(super) struct Faults {
    delay: AtomicU64,
    /// Of 1,000 answers, so many are resets.
    resets: AtomicU64,
    asked: AtomicU64,
    /// The status of all answers; 0 is none.
    status: AtomicU16,
    truncates: AtomicBool,
    /// Since when it is cold, and how many milliseconds its first answer takes longer.
    cold: Mutex<Option<(Instant, u64)>>,
    listens: watch::Sender<bool>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            delay: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            status: AtomicU16::new(0),
            truncates: AtomicBool::new(false),
            cold: Mutex::new(None),
            listens: watch::Sender::new(true),
        }
    }
}

impl Faults {
    /// Whether there is a listening socket.
    pub(super) fn listens(&self) -> watch::Receiver<bool> {
        self.listens.subscribe()
    }

    /// How long an answer is held back.
    pub(super) fn delay(&self) -> Duration {
        let cold = self.cold.lock().expect("nobody panics with the lock").map_or(0.0, |(since, millis)| {
            let left = 1.0 - since.elapsed().as_secs_f64() / COLD.as_secs_f64();
            millis as f64 * left.max(0.0)
        });
        Duration::from_secs_f64((self.delay.load(Ordering::Relaxed) as f64 + cold) / 1000.0)
    }

    /// What takes the place of an answer.
    pub(super) fn answer(&self) -> Option<Answer> {
        let resets = self.resets.load(Ordering::Relaxed);
        // Evenly: the thousandths that the count has passed since the last request.
        if resets > 0 {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            if (asked + 1) * resets / 1000 > asked * resets / 1000 {
                return Some(Answer::Reset);
            }
        }
        if self.truncates.load(Ordering::Relaxed) {
            return Some(Answer::Truncate(Cut::Length, TRUNCATED));
        }
        let status = StatusCode::from_u16(self.status.load(Ordering::Relaxed)).ok()?;
        Some(Answer::Whole(Whole::text(status, "a fault\n")))
    }

    fn obey(&self, line: &str) -> Result<(), String> {
        let (word, value) = line.trim().split_once(' ').unwrap_or((line.trim(), "0"));
        let number: u64 = value.parse().map_err(|_| format!("{value}: expected a number"))?;
        match word {
            "delay" => self.delay.store(number, Ordering::Relaxed),
            "resets" => self.resets.store(number, Ordering::Relaxed),
            "status" => self.status.store(u16::try_from(number).unwrap_or(500), Ordering::Relaxed),
            "truncate" => self.truncates.store(true, Ordering::Relaxed),
            "cold" => {
                *self.cold.lock().expect("nobody panics with the lock") = Some((Instant::now(), number));
            }
            "refuse" => self.listens.send_modify(|listens| *listens = false),
            "heal" => {
                self.delay.store(0, Ordering::Relaxed);
                self.resets.store(0, Ordering::Relaxed);
                self.status.store(0, Ordering::Relaxed);
                self.truncates.store(false, Ordering::Relaxed);
                self.listens.send_modify(|listens| *listens = true);
            }
            _ => return Err(format!("{word}: no such fault")),
        }
        Ok(())
    }
}

/// Takes orders at this path, on a thread of its own.
pub(super) fn listen(path: &Path, state: Arc<State>) -> io::Result<()> {
    // A backend that was killed has left its socket behind.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            if BufReader::new(&stream).read_line(&mut line).is_ok() {
                let answer = state.faults.obey(&line).err().unwrap_or_else(|| "ok".to_owned());
                let _ = writeln!(&stream, "{answer}");
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_of_a_thousand_are_reset() {
        let faults = Faults::default();
        faults.obey("resets 10\n").unwrap();
        let resets = (0..1000).filter(|_| matches!(faults.answer(), Some(Answer::Reset))).count();
        assert_eq!(resets, 10);
        faults.obey("heal").unwrap();
        assert!(faults.answer().is_none());
    }

    #[test]
    fn an_order_that_is_not_understood_is_refused() {
        let faults = Faults::default();
        assert!(faults.obey("delay soon").is_err());
        assert!(faults.obey("explode").is_err());
        assert_eq!(faults.delay(), Duration::ZERO);
    }
}
