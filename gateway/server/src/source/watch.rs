//! The thread that looks again when something may have changed.
//!
//! An event says where to look; what changed is found by looking. Now and then everything is looked at without any event,
//! so that a lost or misread one costs a late reload at worst, and every way of replacing a file works alike.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::Update;
use super::scan::{Found, Scanner, is_configuration};

/// A burst of writes is over after this long without one.
const QUIET: Duration = Duration::from_millis(10);

/// A burst that does not end, or a file that is not closed, is looked at after this long.
const PATIENCE: Duration = Duration::from_millis(250);

/// Everything is looked at this often, whatever the events say: a network file system gives none for what others write,
/// and none tells of a link in the middle of a path.
const RECONCILE: Duration = Duration::from_mins(1);

/// From so many files on, a look at everything is the shorter way.
const MANY: usize = 2048;

/// Directories found while looking may hold changes from before they were watched: look again, so often at most.
const MAX_ROUNDS: usize = 8;

enum Signal {
    Note(Note),
    Stop,
}

/// Something happened at these paths; at none in particular if there are none.
struct Note {
    what: What,
    paths: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Written to, and perhaps not for the last time.
    Written,
    /// Gone from there, and with it the watch.
    Gone,
    /// Complete.
    Done,
}

/// Where to look.
#[derive(Debug, PartialEq, Eq)]
enum Places {
    All,
    Some(BTreeSet<PathBuf>),
}

/// Events that follow each other closely and are answered by one look.
struct Burst {
    began: Instant,
    places: Places,
    /// Files that are being written: what they hold now is half of something.
    open: HashSet<PathBuf>,
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
            if let Some(note) = Note::of(event) {
                let _ = events.send(Signal::Note(note));
            }
        })
        .map_err(|error| format!("cannot watch files: {error}"))?;
        let mut watch =
            Watch { scanner, notify, watched: BTreeSet::new(), warned: false, reconciled: None, on_change };
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
    /// When everything was looked at last.
    reconciled: Option<Instant>,
    on_change: F,
}

impl<F: FnMut(Update)> Watch<F> {
    fn run(&mut self, signals: &Receiver<Signal>) {
        let mut places = Places::All;
        loop {
            self.look(&places);
            match self.wait(signals) {
                Some(next) => places = next,
                None => return,
            }
        }
    }

    /// Waits for a burst of events to begin and to end, or for the time to look at everything; `None` to stop.
    fn wait(&mut self, signals: &Receiver<Signal>) -> Option<Places> {
        let due = self.reconciled.map_or(Duration::ZERO, |at| RECONCILE.saturating_sub(at.elapsed()));
        let mut burst = match signals.recv_timeout(due) {
            Ok(Signal::Note(note)) => {
                let mut burst = Burst::new(Instant::now());
                self.take(note, &mut burst);
                burst
            }
            Err(RecvTimeoutError::Timeout) => return Some(Places::All),
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
        };
        while let Some(longer) = burst.lasts(Instant::now()) {
            match signals.recv_timeout(longer) {
                Ok(Signal::Note(note)) => self.take(note, &mut burst),
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        Some(burst.places)
    }

    fn take(&mut self, note: Note, burst: &mut Burst) {
        if note.what == What::Gone {
            self.forget(&note.paths);
        }
        burst.add(note);
    }

    fn look(&mut self, places: &Places) {
        if let Places::Some(paths) = places
            && let Some(found) = self.scanner.scan_paths(paths)
        {
            return self.report(found);
        }
        for _ in 0..MAX_ROUNDS {
            let found = self.scanner.scan();
            self.reconciled = Some(Instant::now());
            let fresh = self.watch();
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

    /// Watches exactly the directories that matter; whether one of them was not watched before.
    fn watch(&mut self) -> bool {
        let directories = self.scanner.directories();
        let old: Vec<_> = self.watched.difference(directories).cloned().collect();
        let new: Vec<_> = directories.difference(&self.watched).cloned().collect();
        self.forget(&old);
        let mut fresh = false;
        for directory in new {
            match self.notify.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory);
                    fresh = true;
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    tracing::error!(
                        "cannot watch {}: {error}; changes there are seen within a minute only \
                         (hint: raise the sysctl fs.inotify.max_user_watches)",
                        directory.display()
                    );
                }
                Err(_) => {}
            }
        }
        fresh
    }

    fn forget(&mut self, paths: &[PathBuf]) {
        for path in paths {
            if self.watched.remove(path) {
                // Fails if the directory is gone, and then there is nothing to undo.
                let _ = self.notify.unwatch(path);
            }
        }
    }
}

impl Note {
    /// Reading a file is an event too, and the look that it caused would cause the next.
    fn of(event: notify::Result<notify::Event>) -> Option<Self> {
        let nowhere = Self { what: What::Done, paths: Vec::new() };
        let Ok(event) = event else { return Some(nowhere) };
        if event.need_rescan() {
            return Some(nowhere);
        }
        let what = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => What::Done,
            EventKind::Access(_) => return None,
            EventKind::Modify(ModifyKind::Data(_)) => What::Written,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => What::Gone,
            _ => What::Done,
        };
        Some(Self { what, paths: event.paths })
    }
}

impl Burst {
    fn new(now: Instant) -> Self {
        Self { began: now, places: Places::Some(BTreeSet::new()), open: HashSet::new() }
    }

    fn add(&mut self, note: Note) {
        if note.paths.is_empty() {
            self.places = Places::All;
        }
        for path in note.paths {
            if note.what != What::Written {
                self.open.remove(&path);
            } else if is_configuration(&path) {
                self.open.insert(path.clone());
            }
            if let Places::Some(paths) = &mut self.places {
                paths.insert(path);
                if paths.len() > MANY {
                    self.places = Places::All;
                }
            }
        }
    }

    /// How long to wait for the next event; `None` when it is over.
    fn lasts(&self, now: Instant) -> Option<Duration> {
        let left = PATIENCE.saturating_sub(now.saturating_duration_since(self.began));
        if left.is_zero() {
            return None;
        }
        Some(if self.open.is_empty() { QUIET.min(left) } else { left })
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

    fn note(what: What, paths: &[&str]) -> Note {
        Note { what, paths: paths.iter().map(PathBuf::from).collect() }
    }

    #[test]
    fn a_burst_of_writes_is_one_look() {
        let began = Instant::now();
        let mut burst = Burst::new(began);
        for n in 0..1000 {
            let path = format!("/d/{n}.yaml");
            burst.add(note(What::Written, &[&path]));
            burst.add(note(What::Done, &[&path]));
            assert_eq!(burst.lasts(began + Duration::from_micros(n)), Some(QUIET));
        }
        let Places::Some(paths) = &burst.places else { panic!("every place is known") };
        assert_eq!(paths.len(), 1000);
        // It may go on, but not for ever.
        assert_eq!(burst.lasts(began + Duration::from_millis(245)), Some(Duration::from_millis(5)));
        assert_eq!(burst.lasts(began + PATIENCE), None);
        // More places than a short look is good for.
        for n in 1000..=MANY {
            burst.add(note(What::Done, &[&format!("/d/{n}.yaml")]));
        }
        assert_eq!(burst.places, Places::All);
    }

    #[test]
    fn a_file_that_is_being_written_is_waited_for() {
        let began = Instant::now();
        let mut burst = Burst::new(began);
        burst.add(note(What::Written, &["/d/a.yaml"]));
        burst.add(note(What::Written, &["/d/b.yaml"]));
        assert_eq!(burst.lasts(began), Some(PATIENCE));
        burst.add(note(What::Done, &["/d/a.yaml"]));
        assert_eq!(burst.lasts(began), Some(PATIENCE));
        burst.add(note(What::Gone, &["/d/b.yaml"]));
        assert_eq!(burst.lasts(began), Some(QUIET));
        // A log beside the configuration is never finished.
        burst.add(note(What::Written, &["/d/x.log"]));
        assert_eq!(burst.lasts(began), Some(QUIET));
    }

    #[test]
    fn lost_events_are_made_up_for_by_looking_everywhere() {
        let overflow = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        for event in [Ok(overflow), Err(notify::Error::generic("lost"))] {
            let mut burst = Burst::new(Instant::now());
            burst.add(note(What::Done, &["/d/a.yaml"]));
            burst.add(Note::of(event).expect("it is not passed over"));
            assert_eq!(burst.places, Places::All);
        }
        let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(Note::of(Ok(notify::Event::new(read).add_path("/d/a.yaml".into()))).is_none());
    }

    #[test]
    fn a_mounted_config_map_is_seen_to_be_swapped() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for version in ["1", "2"] {
            fs::create_dir(path(&format!("..{version}"))).unwrap();
            fs::write(path(&format!("..{version}/a.yaml")), version).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/a.yaml", path("a.yaml")).unwrap();
        let (source, first) = Source::open(&[dir.path().to_owned()]).unwrap();
        assert_eq!(first.changes[0].text.as_deref(), Some("1"));
        let (send, updates) = mpsc::channel();
        let _watcher = source.watch(move |update| drop(send.send(update))).unwrap();
        symlink("..2", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        expect(&updates, "a.yaml", Some("2"));
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
