//! One line per request, to standard output or a file.
//!
//! A worker gathers lines in memory of its own and hands them over by the batch; a thread of its own writes them out. Where
//! that thread cannot keep up or cannot write, lines are dropped and counted: a request never waits for a log.

mod batch;
mod format;
mod operator;
mod writer;

use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use std::{str::FromStr, sync::Arc};

use metrics::Counter;

pub use self::batch::Batch;
use self::format::Compiled;
use self::writer::Message;
use super::{Outcome, Telemetry};

/// Batches that may wait for the writer, of about [`batch::FULL`] bytes each.
const QUEUE: usize = 256;

/// Bytes of one line; what is longer is cut, so that the queue has a bound in bytes.
const MAX_LINE_BYTES: usize = 8192;

/// What is logged, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where lines go.
    pub target: Target,
    /// How lines look.
    pub format: Format,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// How lines look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Istio's default text.
    Text,
    /// JSON with Istio's keys, and the generation of the configuration.
    Json,
    /// Text with Envoy's `%OPERATORS%`.
    Custom(String),
}

impl Format {
    fn compile(&self) -> Result<Compiled, String> {
        match self {
            Self::Text => Compiled::text(format::ISTIO_TEXT),
            Self::Json => Compiled::json(&format::ISTIO_JSON),
            Self::Custom(text) => Compiled::text(text),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    /// `text`, `json`, or a text with operators, which is checked here.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            custom if custom.contains('%') => {
                Compiled::text(custom)?;
                Ok(Self::Custom(custom.to_owned()))
            }
            other => Err(format!(
                "`{other}` is no format; use `text`, `json`, or a text with operators such as \
                 `%REQ(:METHOD)% %RESPONSE_CODE% %DURATION%`"
            )),
        }
    }
}

/// The line that a format makes of a request. For the fuzz targets.
#[cfg(fuzzing)]
pub fn line(format: &Format, outcome: &Outcome<'_>) -> Result<Vec<u8>, String> {
    let mut line = Vec::new();
    format.compile()?.write(outcome, &mut line);
    Ok(line)
}

/// An open access log.
pub struct AccessLog {
    format: Compiled,
    queue: SyncSender<Message>,
    dropped: Counter,
}

impl AccessLog {
    /// Opens the target and starts the thread that writes to it.
    pub fn open(options: &Options, telemetry: &Telemetry) -> Result<Arc<Self>, String> {
        let format = options.format.compile()?;
        let (queue, messages) = sync_channel(QUEUE);
        let dropped = telemetry.access_log_dropped();
        writer::start(options.target.clone(), messages, dropped.clone())?;
        Ok(Arc::new(Self { format, queue, dropped }))
    }

    /// Logs a request into a worker's batch, and hands that over when it is full. Never waits.
    pub fn log(&self, batch: &mut Batch, outcome: &Outcome<'_>) {
        let line = batch.begin();
        let start = line.len();
        self.format.write(outcome, line);
        line.truncate(start + MAX_LINE_BYTES - 1);
        line.push(b'\n');
        if batch.end() {
            self.hand_over(batch);
        }
    }

    /// Gives the writer what a worker has gathered.
    pub fn hand_over(&self, batch: &mut Batch) {
        let Some((bytes, lines)) = batch.take() else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(Message::Lines(bytes))
        {
            self.dropped.increment(lines);
        }
    }

    /// Opens the file anew, after a log rotation moved it away. Waits for the queue, so not for workers.
    pub fn reopen(&self) {
        let _ = self.queue.send(Message::Reopen);
    }

    /// Waits until everything queued so far is written, or `limit` has passed. For the end of the process.
    pub fn flush(&self, limit: Duration) {
        let (done, wait) = sync_channel(1);
        let queue = self.queue.clone();
        // From another thread: a queue that is full takes it once there is room, which may be never.
        let asked = std::thread::Builder::new().spawn(move || queue.send(Message::Flush(done)));
        if asked.is_ok() {
            let _ = wait.recv_timeout(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::testing::Sample;

    const LONG: Duration = Duration::from_mins(1);

    /// A batch of one line, handed over.
    fn log(log: &AccessLog, outcome: &Outcome<'_>) {
        let mut batch = Batch::default();
        log.log(&mut batch, outcome);
        log.hand_over(&mut batch);
    }

    #[test]
    fn lines_reach_the_file_and_a_moved_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let format = Format::Custom("%REQ(:METHOD)% %RESPONSE_CODE%".to_owned());
        let options = Options { target: Target::File(path.clone()), format };
        let log = AccessLog::open(&options, &Telemetry::new()).unwrap();
        let sample = Sample::default();
        self::log(&log, &sample.outcome());
        log.flush(LONG);
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        self::log(&log, &Outcome { status: 503, ..sample.outcome() });
        log.flush(LONG);
        assert_eq!(std::fs::read_to_string(moved).unwrap(), "GET 200\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "GET 503\n");
    }

    #[test]
    fn a_full_disk_drops_and_counts() {
        let format = Format::Custom("%REQ(:METHOD)%".to_owned());
        let options = Options { target: Target::File("/dev/full".into()), format };
        let telemetry = Telemetry::new();
        let log = AccessLog::open(&options, &telemetry).unwrap();
        (0..3).for_each(|_| self::log(&log, &Sample::default().outcome()));
        log.flush(LONG);
        assert!(telemetry.render(|_| ()).contains("fieldgate_access_log_dropped_total 3\n"));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let telemetry = Telemetry::new();
        let (queue, _messages) = sync_channel(1);
        let dropped = telemetry.access_log_dropped();
        let log = AccessLog { format: Compiled::text("%PROTOCOL%").unwrap(), queue, dropped };
        for _ in 0..3 {
            self::log(&log, &Sample::default().outcome());
        }
        assert!(telemetry.render(|_| ()).contains("fieldgate_access_log_dropped_total 2\n"));
    }

    #[test]
    fn a_flush_waits_for_its_turn_in_a_full_queue() {
        let telemetry = Telemetry::new();
        let (queue, messages) = sync_channel(1);
        let dropped = telemetry.access_log_dropped();
        let log = Arc::new(AccessLog { format: Compiled::text("%PROTOCOL%").unwrap(), queue, dropped });
        self::log(&log, &Sample::default().outcome());
        let flushing = std::thread::spawn({
            let log = log.clone();
            move || log.flush(LONG)
        });
        assert!(matches!(messages.recv(), Ok(Message::Lines(_))));
        let Ok(Message::Flush(done)) = messages.recv() else { panic!("not a flush") };
        assert!(!flushing.is_finished());
        done.send(()).unwrap();
        flushing.join().unwrap();
    }

    #[test]
    fn long_lines_are_cut() {
        let telemetry = Telemetry::new();
        let (queue, messages) = sync_channel(1);
        let dropped = telemetry.access_log_dropped();
        let log = AccessLog { format: Compiled::text("%REQ(:PATH)%").unwrap(), queue, dropped };
        let mut sample = Sample::default();
        sample.head.set_target(&format!("/{}", "a".repeat(MAX_LINE_BYTES)));
        self::log(&log, &sample.outcome());
        let Message::Lines(line) = messages.recv().unwrap() else { panic!("not a line") };
        assert_eq!((line.len(), line.last()), (MAX_LINE_BYTES, Some(&b'\n')));
    }

    #[test]
    fn a_full_batch_is_handed_over_by_itself_and_counted_if_dropped() {
        let telemetry = Telemetry::new();
        let (queue, messages) = sync_channel(1);
        let dropped = telemetry.access_log_dropped();
        let log = AccessLog { format: Compiled::text("%REQ(:PATH)%").unwrap(), queue, dropped };
        let (mut batch, mut sample) = (Batch::default(), Sample::default());
        sample.head.set_target(&format!("/{}", "a".repeat(1022)));
        for _ in 0..32 {
            log.log(&mut batch, &sample.outcome());
        }
        assert!(batch.is_empty());
        assert!(matches!(messages.try_recv(), Ok(Message::Lines(lines)) if lines.len() == 32 * 1024));
        for _ in 0..70 {
            log.log(&mut batch, &sample.outcome());
        }
        assert!(telemetry.render(|_| ()).contains("fieldgate_access_log_dropped_total 32\n"));
    }

    #[test]
    fn an_unusable_file_says_which() {
        let target = Target::File("/proc/no-such-directory/log".into());
        let error =
            AccessLog::open(&Options { target, format: Format::Text }, &Telemetry::new()).err().unwrap();
        assert!(error.contains("/proc/no-such-directory/log"), "{error}");
    }

    #[test]
    fn formats_are_checked_when_parsed() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!(Format::from_str("jsn").unwrap_err().contains("is no format"));
        assert!(Format::from_str("%NOPE%").unwrap_err().contains("NOPE"));
    }
}
