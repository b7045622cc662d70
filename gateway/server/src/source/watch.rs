//! The thread that looks again when something may have changed.
//!
//! An event only says "look"; what changed is found by looking. So a lost or misread event costs a late reload at worst,
//! and every way of replacing a file works alike.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::Update;
use super::scan::{Found, Scanner};

/// A burst of writes is over after this long without one.
const QUIET: Duration = Duration::from_millis(20);

/// A burst that does not end is looked at after this long.
const PATIENCE: Duration = Duration::from_millis(250);

/// Directories found while looking may hold changes from before they were watched: look again, so often at most.
const MAX_ROUNDS: usize = 8;

enum Signal {
    /// Something happened; these paths are gone, and with them their watches.
    Look {
        gone: Vec<PathBuf>,
    },
    Stop,
}

/// Watches until it is dropped.
pub struct Watcher {
    stop: Sender<Signal>,
}

impl Watcher {
    pub(super) fn start(
        scanner: Scanner,
        on_change: impl FnMut(Update) + Send + 'static,
    ) -> Result<Self, String> {
        let (stop, signals) = channel();
        let events = stop.clone();
        let notify = notify::recommended_watcher(move |event| {
            if let Some(signal) = signal_of(event) {
                let _ = events.send(signal);
            }
        })
        .map_err(|error| format!("cannot watch files: {error}"))?;
        let mut watch = Watch { scanner, notify, watched: BTreeSet::new(), warned: false, on_change };
        thread::Builder::new()
            .name("source".to_owned())
            .spawn(move || watch.run(&signals))
            .map_err(|error| format!("cannot start the thread that watches files: {error}"))?;
        Ok(Self { stop })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.stop.send(Signal::Stop);
    }
}

struct Watch<F> {
    scanner: Scanner,
    notify: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    warned: bool,
    on_change: F,
}

impl<F: FnMut(Update)> Watch<F> {
    fn run(&mut self, signals: &Receiver<Signal>) {
        loop {
            self.look();
            if !self.wait(signals) {
                return;
            }
        }
    }

    /// Waits for a burst of events to begin and to end; `false` to stop.
    fn wait(&mut self, signals: &Receiver<Signal>) -> bool {
        let Ok(Signal::Look { gone }) = signals.recv() else { return false };
        self.forget(gone);
        let limit = Instant::now() + PATIENCE;
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            match signals.recv_timeout(QUIET.min(left)) {
                Ok(Signal::Look { gone }) => self.forget(gone),
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn look(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let found = self.scanner.scan();
            let fresh = self.watch(&found.directories);
            self.report(found);
            if !fresh {
                return;
            }
        }
    }

    fn report(&mut self, found: Found) {
        if !found.changes.is_empty() || found.problems_changed {
            (self.on_change)(Update { changes: found.changes, diagnostics: found.diagnostics });
        }
    }

    /// Watches exactly these directories; whether one of them was not watched before.
    fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let old: Vec<_> = self.watched.difference(directories).cloned().collect();
        self.forget(old);
        let mut fresh = false;
        for directory in directories {
            if self.watched.contains(directory) {
                continue;
            }
            match self.notify.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory.clone());
                    fresh = true;
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    tracing::error!(
                        "cannot watch {}: {error}; changes there are not seen \
                         (hint: raise the sysctl fs.inotify.max_user_watches)",
                        directory.display()
                    );
                }
                Err(_) => {}
            }
        }
        fresh
    }

    fn forget(&mut self, paths: Vec<PathBuf>) {
        for path in paths {
            if self.watched.remove(&path) {
                // Fails if the directory is gone, and then there is nothing to undo.
                let _ = self.notify.unwatch(&path);
            }
        }
    }
}

/// Reading a file is an event too, and the look that it caused would cause the next.
fn signal_of(event: notify::Result<notify::Event>) -> Option<Signal> {
    let Ok(event) = event else { return Some(Signal::Look { gone: vec![] }) };
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Signal::Look { gone: vec![] }),
        EventKind::Access(_) => None,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
            Some(Signal::Look { gone: event.paths })
        }
        _ => Some(Signal::Look { gone: vec![] }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::super::Source;
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    /// Waits for a change of `name` to `text`; what comes before may be a part of it.
    fn expect(updates: &mpsc::Receiver<Update>, name: &str, text: Option<&str>) {
        loop {
            let update =
                updates.recv_timeout(LONG).unwrap_or_else(|_| panic!("no change of {name} to {text:?}"));
            if update.changes.iter().any(|c| c.name.ends_with(name) && c.text.as_deref() == text) {
                return;
            }
        }
    }

    #[test]
    fn every_way_of_changing_files_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.yaml"), "1").unwrap();
        let (source, first) = Source::open(&[dir.path().to_owned()]).unwrap();
        assert_eq!(first.changes.len(), 1);
        fs::write(path("b.yaml"), "between").unwrap();
        let (send, updates) = mpsc::channel();
        let _watcher = source.watch(move |update| drop(send.send(update))).unwrap();
        expect(&updates, "b.yaml", Some("between"));

        fs::write(path("a.yaml"), "written").unwrap();
        expect(&updates, "a.yaml", Some("written"));
        fs::write(path("tmp"), "renamed").unwrap();
        fs::rename(path("tmp"), path("a.yaml")).unwrap();
        expect(&updates, "a.yaml", Some("renamed"));
        fs::create_dir_all(path("deep/er")).unwrap();
        fs::write(path("deep/er/c.yaml"), "new").unwrap();
        expect(&updates, "deep/er/c.yaml", Some("new"));
        fs::write(path("deep/er/c.yaml"), "again").unwrap();
        expect(&updates, "deep/er/c.yaml", Some("again"));
        fs::remove_dir_all(path("deep")).unwrap();
        expect(&updates, "deep/er/c.yaml", None);
        fs::create_dir_all(path("deep/er")).unwrap();
        fs::write(path("deep/er/c.yaml"), "back").unwrap();
        expect(&updates, "deep/er/c.yaml", Some("back"));
    }

    #[test]
    fn a_single_file_and_a_link_to_elsewhere_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("a.yaml"), elsewhere.path().join("real.yaml"));
        fs::write(&target, "1").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let (source, _) = Source::open(&[link]).unwrap();
        let (send, updates) = mpsc::channel();
        let _watcher = source.watch(move |update| drop(send.send(update))).unwrap();
        fs::write(&target, "2").unwrap();
        expect(&updates, "a.yaml", Some("2"));
    }
}
