//! The audit log: who changed what, when, and what became of it. One JSON object per line.
//!
//! Each line holds the SHA-256 of the line before it, so that a line that is changed or taken out of the middle shows
//! ([`verify()`]); that the last lines are missing shows only beside a hash that was kept elsewhere. The hash is read off the
//! file each time, under a lock: during an upgrade two processes write to it. No request causes a line, so writing is
//! plain and immediate. Nothing secret is written: objects by name, never by content.

mod chain;
mod who;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

pub use chain::{Verified, verify};
pub use who::{Role, Who};

use chain::Log;

/// Names of files or objects that one line lists; of more it says how many.
const MAX_NAMES: usize = 100;
/// Bytes of a text in a line.
const MAX_TEXT: usize = 1024;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// What became of what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not, for this reason.
    Refused(String),
}

/// The log, or none. Cheap to share, used by the control side only.
#[derive(Default)]
pub struct Audit {
    log: Option<Mutex<Log>>,
    lost: AtomicU64,
}

impl Audit {
    /// Opens a log; without a target there is none.
    pub fn open(target: Option<Target>) -> Result<Self, String> {
        let log = target.map(Log::open).transpose()?.map(Mutex::new);
        Ok(Self { log, lost: AtomicU64::new(0) })
    }

    /// Writes a line: the `action`, who asked for it, what it was about, what became of it.
    pub fn record(&self, action: &str, who: &Who, about: Value, outcome: &Outcome) {
        let Some(log) = &self.log else { return };
        let mut line = Map::new();
        line.insert("time".to_owned(), json!(now()));
        line.insert("action".to_owned(), json!(action));
        line.insert("who".to_owned(), who.json());
        if let Value::Object(about) = about {
            line.extend(about);
        }
        match outcome {
            Outcome::Done => line.insert("result".to_owned(), json!("done")),
            Outcome::Refused(why) => {
                line.insert("reason".to_owned(), json!(shortened(why)));
                line.insert("result".to_owned(), json!("refused"))
            }
        };
        let Ok(mut log) = log.lock() else { return };
        if let Err(error) = log.append(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!("a line of the audit log is lost: {error}: {action} by {who}");
        }
    }

    /// Opens the file anew, after a log rotation moved it away.
    pub fn reopen(&self) {
        if let Some(Ok(mut log)) = self.log.as_ref().map(Mutex::lock) {
            log.reopen();
        }
    }

    /// Lines that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// As many as a line lists, and how many there are.
pub fn names<T: Into<Value>>(all: impl ExactSizeIterator<Item = T>) -> Value {
    let count = all.len();
    let mut listed: Vec<Value> = all.take(MAX_NAMES).map(Into::into).collect();
    if count > MAX_NAMES {
        listed.push(json!(format!("and {} more", count - MAX_NAMES)));
    }
    Value::Array(listed)
}

fn shortened(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// RFC 3339, to the millisecond.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// The date of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!([civil(0), civil(19_782), civil(11_016)], [(1970, 1, 1), (2024, 2, 29), (2000, 2, 29)]);
        assert_eq!(civil(20_453), (2025, 12, 31));
    }

    #[test]
    fn lines_say_who_what_and_what_became_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let audit = Audit::open(Some(Target::File(path.clone()))).unwrap();
        let who = Who::peer(Role::Operate, "127.0.0.1:4000".parse().unwrap());
        audit.record("drain", &who, json!({"pool": "Pool default/vms"}), &Outcome::Done);
        audit.record("quit", &who, json!({}), &Outcome::Refused("x".repeat(5000)));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["who"], json!({"role": "operate", "peer": "127.0.0.1:4000"}));
        assert_eq!((&lines[0]["pool"], &lines[0]["result"]), (&json!("Pool default/vms"), &json!("done")));
        assert_eq!(lines[1]["result"], "refused");
        assert_eq!(lines[1]["reason"].as_str().unwrap().len(), MAX_TEXT);
        assert_eq!(verify(&[path]).unwrap().lines, 2);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_counted() {
        let audit = Audit::open(Some(Target::File("/dev/full".into()))).unwrap();
        audit.record("quit", &Who::signal("SIGINT"), json!({}), &Outcome::Done);
        assert_eq!(audit.lost(), 1);
    }
}
