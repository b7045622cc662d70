//! The thread that writes lines out.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use metrics::Counter;

use super::Target;

/// How long batches are gathered before they are written, while there are any. A worker that queues one then need not
/// wake the thread, which would cost it a system call.
const GATHER: Duration = Duration::from_millis(20);

/// Bytes written at once.
const BATCH_BYTES: usize = 256 * 1024;

/// What the thread is told.
pub(super) enum Message {
    /// Lines, each with its end.
    Lines(Vec<u8>),
    /// The file was moved away.
    Reopen,
    /// Say when everything before this is written.
    Flush(SyncSender<()>),
}

/// Opens the target and starts the thread. It ends when the log is dropped and its queue is empty.
/// Lines that could not be written are counted in `lost`.
pub(super) fn start(target: Target, messages: Receiver<Message>, lost: Counter) -> Result<(), String> {
    let output = open(&target).map_err(|error| describe(&target, &error))?;
    let writer = Writer { target, output, batch: Vec::with_capacity(BATCH_BYTES), failing: false, lost };
    thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || writer.run(&messages))
        .map_err(|error| format!("cannot start the thread that writes the access log: {error}"))?;
    Ok(())
}

struct Writer {
    target: Target,
    output: Output,
    batch: Vec<u8>,
    failing: bool,
    lost: Counter,
}

enum Output {
    Stdout,
    File(File),
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(first) = messages.recv() {
            self.take(first);
            loop {
                let before = self.batch.len();
                while let Ok(message) = messages.try_recv() {
                    self.take(message);
                }
                if self.batch.len() == before && before == 0 {
                    break;
                }
                self.write();
                thread::sleep(GATHER);
            }
        }
        self.write();
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Lines(lines) => {
                self.batch.extend_from_slice(&lines);
                if self.batch.len() >= BATCH_BYTES {
                    self.write();
                }
            }
            Message::Reopen => {
                self.write();
                match open(&self.target) {
                    Ok(output) => self.output = output,
                    Err(error) => {
                        tracing::error!("{}; the old file stays in use", describe(&self.target, &error));
                    }
                }
            }
            Message::Flush(done) => {
                self.write();
                let _ = done.send(());
            }
        }
    }

    fn write(&mut self) {
        let mut rest = &self.batch[..];
        let result = match &mut self.output {
            Output::Stdout => write_out(&mut io::stdout().lock(), &mut rest),
            Output::File(file) => write_out(file, &mut rest),
        };
        if result.is_err() {
            self.lost.increment(rest.iter().filter(|byte| **byte == b'\n').count() as u64);
        }
        self.batch.clear();
        match result {
            Ok(()) => self.failing = false,
            // A full disk would otherwise fill the error log as well.
            Err(_) if self.failing => {}
            Err(error) => {
                self.failing = true;
                tracing::error!(
                    "{}; lines are lost until it can be written again",
                    describe(&self.target, &error)
                );
            }
        }
    }
}

/// As `write_all` and `flush`; on failure `rest` is what was not written.
fn write_out(output: &mut impl Write, rest: &mut &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => *rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    output.flush()
}

fn open(target: &Target) -> io::Result<Output> {
    match target {
        Target::Stdout => Ok(Output::Stdout),
        Target::File(path) => append(path).map(Output::File),
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn describe(target: &Target, error: &io::Error) -> String {
    match target {
        Target::Stdout => format!("cannot write the access log to standard output: {error}"),
        Target::File(path) => format!("cannot write the access log {}: {error}", path.display()),
    }
}
