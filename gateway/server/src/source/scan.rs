//! Looks at files: at all of them, or at those that an event named. What changed since the last look?
//!
//! A look at everything is what counts: it needs no event to be right. A look at named files is its short form, for
//! where nothing but regular files in directories is involved; as soon as a link, a directory or an error plays a part, it
//! is refused, and the caller looks at everything.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::hash::Hasher;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldgate_config::diagnostic::Location;
use fieldgate_config::{Diagnostic, FileChange};
use rustc_hash::{FxBuildHasher, FxHasher};

use super::STDIN;

/// A file above this is refused rather than read into memory.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// How deep directories are followed.
const MAX_DEPTH: usize = 32;

type Map<V> = HashMap<PathBuf, V, FxBuildHasher>;

/// Looks at files, and remembers what it saw.
pub(super) struct Scanner {
    roots: Vec<PathBuf>,
    stdin: Option<Result<String, Box<Diagnostic>>>,
    seen: Map<Seen>,
    layout: Layout,
    /// Counts looks at everything, to find what one of them did not meet.
    round: u32,
    last_problems: Vec<Diagnostic>,
}

/// What a look found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) changes: Vec<FileChange>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Whether `diagnostics` differ from the last time.
    pub(super) problems_changed: bool,
}

struct Seen {
    stamp: Stamp,
    round: u32,
    /// The hash of the text last reported; `None` if none ever was.
    content: Option<u64>,
    problem: Option<Box<Diagnostic>>,
}

/// Changes whenever a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: (u64, u64),
}

/// How the files lay at the last look at everything.
#[derive(Default)]
struct Layout {
    /// Where a change would show, without symbolic links.
    directories: BTreeSet<PathBuf>,
    /// Directories that were read, by the path without links, with the path under which they were read.
    read: Map<PathBuf>,
    /// The roots, without links.
    roots: HashSet<PathBuf>,
    /// Whether any file is reached through a link, and may change by what happens elsewhere.
    linked: bool,
    /// Paths below which nothing is known at present.
    blind: Vec<PathBuf>,
    problems: Vec<Diagnostic>,
    entered: HashSet<(u64, u64)>,
}

/// What an event at a path is about.
enum Meaning {
    Nothing,
    /// A file, by the path under which it is known.
    File(PathBuf),
    Everything,
}

impl Scanner {
    /// Checks that every path can be read at all, and reads standard input.
    pub(super) fn new(paths: &[PathBuf]) -> Result<Self, String> {
        let mut scanner = Self {
            roots: Vec::new(),
            stdin: None,
            seen: Map::default(),
            layout: Layout::default(),
            round: 0,
            last_problems: Vec::new(),
        };
        for path in paths {
            if path.as_os_str() == STDIN {
                scanner.stdin.get_or_insert_with(|| read_text(Path::new("<stdin>"), 0, io::stdin().lock()));
                continue;
            }
            let metadata =
                fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            if metadata.is_dir() {
                fs::read_dir(path).map_err(|error| format!("cannot list {}: {error}", path.display()))?;
            }
            scanner.roots.push(path.clone());
        }
        Ok(scanner)
    }

    /// Looks at everything. Only files that may have changed are read.
    pub(super) fn scan(&mut self) -> Found {
        self.round += 1;
        self.layout = Layout::default();
        let mut changes = Vec::new();
        self.take_stdin(&mut changes);
        for root in self.roots.clone() {
            self.layout.note_root(&root);
            match fs::metadata(&root) {
                Ok(metadata) if metadata.is_dir() => self.enter(&root, &metadata, 0, &mut changes),
                Ok(metadata) => changes.extend(self.look_at(&root, &metadata)),
                // A root was there at the start: it is being replaced, or a mount is gone. Not "no configuration".
                Err(error) => self.layout.cannot_read(&root, &error),
            }
        }
        self.forget_missing(&mut changes);
        // Directories give their entries in no order, and what is done first should not hang on that.
        changes.sort_by(|a, b| a.name.cmp(&b.name));
        self.found(changes)
    }

    /// Looks at what events named, or not at all where only a look at everything can tell what they mean.
    pub(super) fn scan_paths(&mut self, paths: &BTreeSet<PathBuf>) -> Option<Found> {
        if self.layout.linked || !self.layout.blind.is_empty() {
            return None;
        }
        let mut changes = Vec::new();
        for path in paths {
            let path = match self.layout.meaning(path) {
                Meaning::Nothing => continue,
                Meaning::File(path) => path,
                Meaning::Everything => return None,
            };
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_file() => {
                    if is_configuration(&path) {
                        changes.extend(self.look_at(&path, &metadata));
                    }
                }
                Ok(metadata) if metadata.is_dir() || metadata.is_symlink() => return None,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if self.seen.remove(&path).is_some_and(|seen| seen.content.is_some()) {
                        changes.push(FileChange { name: name(&path), text: None });
                    }
                }
                Err(_) => return None,
            }
        }
        Some(self.found(changes))
    }

    /// Where a change would show, without symbolic links.
    pub(super) fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.layout.directories
    }

    fn found(&mut self, changes: Vec<FileChange>) -> Found {
        let mut diagnostics = self.layout.problems.clone();
        diagnostics.extend(self.seen.values().filter_map(|seen| seen.problem.as_deref().cloned()));
        if let Some(Err(problem)) = &self.stdin {
            diagnostics.push((**problem).clone());
        }
        diagnostics.sort_by(Diagnostic::by_place);
        let problems_changed = diagnostics != self.last_problems;
        self.last_problems.clone_from(&diagnostics);
        Found { changes, diagnostics, problems_changed }
    }

    fn take_stdin(&mut self, changes: &mut Vec<FileChange>) {
        if let Some(Ok(text)) = &mut self.stdin
            && !text.is_empty()
        {
            changes.push(FileChange { name: "<stdin>".into(), text: Some(std::mem::take(text)) });
        }
    }

    fn enter(&mut self, directory: &Path, metadata: &Metadata, depth: usize, changes: &mut Vec<FileChange>) {
        // A link to a directory above would go round for ever.
        if depth > MAX_DEPTH || !self.layout.entered.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        self.layout.note_read(directory);
        let entries = match fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => return self.layout.cannot_read(directory, &error),
        };
        for entry in entries {
            if is_hidden(entry.file_name().as_encoded_bytes()) {
                continue;
            }
            let path = entry.path();
            let mut metadata = entry.metadata();
            let linked = metadata.as_ref().is_ok_and(Metadata::is_symlink);
            if linked {
                // Followed: a file of a mounted ConfigMap is one.
                self.layout.note_link(&path);
                metadata = fs::metadata(&path);
            }
            match metadata {
                Ok(metadata) if metadata.is_dir() => self.enter(&path, &metadata, depth + 1, changes),
                Ok(metadata) if metadata.is_file() && is_configuration(&path) => {
                    changes.extend(self.look_at(&path, &metadata));
                }
                Ok(_) => {}
                // Gone since it was listed; but a link that is there and leads nowhere was not taken away.
                Err(error) if error.kind() == ErrorKind::NotFound && !(linked && path.is_symlink()) => {}
                Err(error) => self.layout.cannot_read(&path, &error),
            }
        }
    }

    fn look_at(&mut self, path: &Path, metadata: &Metadata) -> Option<FileChange> {
        let (stamp, round) = (Stamp::of(metadata), self.round);
        let mut reported = None;
        if let Some(seen) = self.seen.get_mut(path) {
            seen.round = round;
            if seen.stamp == stamp {
                return None;
            }
            reported = seen.content;
        }
        match read_file(path, metadata) {
            Ok(text) => {
                let content = hash(&text);
                let seen = Seen { stamp, round, content: Some(content), problem: None };
                self.seen.insert(path.to_owned(), seen);
                (reported != Some(content)).then(|| FileChange { name: name(path), text: Some(text) })
            }
            // Gone since it was listed. The next look decides.
            Err(None) => None,
            Err(Some(problem)) => {
                let seen = Seen { stamp, round, content: reported, problem: Some(problem) };
                self.seen.insert(path.to_owned(), seen);
                None
            }
        }
    }

    fn forget_missing(&mut self, changes: &mut Vec<FileChange>) {
        let (round, blind) = (self.round, &self.layout.blind);
        self.seen.retain(|path, seen| {
            let keep = seen.round == round || blind.iter().any(|blind| path.starts_with(blind));
            if !keep && seen.content.is_some() {
                changes.push(FileChange { name: name(path), text: None });
            }
            keep
        });
    }
}

impl Layout {
    fn meaning(&self, path: &Path) -> Meaning {
        if self.directories.contains(path) || self.roots.contains(path) {
            return Meaning::Everything;
        }
        let (Some(parent), Some(file)) = (path.parent(), path.file_name()) else {
            return Meaning::Everything;
        };
        match self.read.get(parent) {
            Some(read) if !is_hidden(file.as_encoded_bytes()) => Meaning::File(read.join(file)),
            // In a directory that is watched for a root in it, what is beside the root is nobody's business.
            _ => Meaning::Nothing,
        }
    }

    fn cannot_read(&mut self, path: &Path, error: &io::Error) {
        self.blind.push(path.to_owned());
        self.problems.push(unreadable(path, error));
    }

    fn note_read(&mut self, directory: &Path) {
        if let Ok(real) = directory.canonicalize() {
            self.directories.insert(real.clone());
            self.read.insert(real, directory.to_owned());
        }
    }

    /// Where a root itself would be replaced: the directory that holds it, and that of what it links to.
    fn note_root(&mut self, root: &Path) {
        // `.` and `..` have no name under which they could be replaced.
        if root.file_name().is_some() {
            let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            self.directories.extend(parent.canonicalize());
        }
        self.roots.extend(root.canonicalize());
        if root.is_symlink() {
            self.linked = true;
        }
        self.note_target(root);
    }

    fn note_link(&mut self, path: &Path) {
        self.linked = true;
        self.note_target(path);
    }

    fn note_target(&mut self, path: &Path) {
        if let Ok(real) = path.canonicalize()
            && let Some(parent) = real.parent()
        {
            self.directories.insert(parent.to_owned());
        }
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
            inode: (metadata.dev(), metadata.ino()),
        }
    }
}

/// Kubernetes keeps the versions of a mounted ConfigMap in `..2024_..`; editors keep their copies in `.x.swp`.
fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(b".")
}

/// Whether a file of that name is read.
pub(super) fn is_configuration(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn read_file(path: &Path, metadata: &Metadata) -> Result<String, Option<Box<Diagnostic>>> {
    if metadata.size() > MAX_FILE_BYTES {
        let message = format!("the file is larger than {} MiB and is not read", MAX_FILE_BYTES >> 20);
        return Err(Some(Box::new(problem("UnreadableFile", path, 1, 1, message))));
    }
    match File::open(path) {
        Ok(file) => read_text(path, metadata.size(), file).map_err(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(None),
        Err(error) => Err(Some(Box::new(unreadable(path, &error)))),
    }
}

/// `size` is what to expect; there may be more or less.
fn read_text(path: &Path, size: u64, from: impl Read) -> Result<String, Box<Diagnostic>> {
    // One byte more, for the read that finds the end.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    from.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| Box::new(unreadable(path, &error)))?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|b| **b == b'\n').count();
        let start = good.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let column = 1 + String::from_utf8_lossy(&good[start..]).chars().count();
        let problem = problem("InvalidUtf8", path, line, column, "the file is not UTF-8 text from here on");
        Box::new(problem.hint("save it in UTF-8; a file in UTF-16 or Latin-1 is not read"))
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let problem = problem("UnreadableFile", path, 1, 1, format!("cannot be read: {error}"));
    match error.kind() {
        ErrorKind::PermissionDenied => problem.hint("let the user that runs the gateway read it"),
        _ => problem,
    }
}

fn problem(
    reason: &'static str,
    path: &Path,
    line: usize,
    column: usize,
    message: impl Into<String>,
) -> Diagnostic {
    let location = Location { file: name(path), line: line as u32, column: column as u32 };
    Diagnostic::error(reason, location, message)
}

fn name(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

fn hash(text: &str) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(text.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Dir {
        dir: tempfile::TempDir,
        scanner: Scanner,
    }

    impl Dir {
        fn with(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let scanner = Scanner::new(&[dir.path().to_owned()]).unwrap();
            let this = Self { dir, scanner };
            for (name, text) in files {
                this.write(name, text);
            }
            this
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        /// `+name text` for what is there, `-name` for what is gone, `!reason name:line:column` for problems.
        fn check(&mut self, expected: &[&str]) {
            let found = self.scanner.scan();
            self.compare(&found, expected);
        }

        /// As [`check`](Self::check), of a look at these paths only.
        fn check_paths_only(&mut self, paths: &[&str], expected: &[&str]) {
            let real = self.dir.path().canonicalize().unwrap();
            let paths = paths.iter().map(|p| real.join(p)).collect();
            let found = self.scanner.scan_paths(&paths).expect("a short look suffices");
            self.compare(&found, expected);
        }

        /// The same, and a look at everything finds nothing after it.
        fn check_paths(&mut self, paths: &[&str], expected: &[&str]) {
            self.check_paths_only(paths, expected);
            let problems: Vec<_> = expected.iter().copied().filter(|e| e.starts_with('!')).collect();
            self.check(&problems);
        }

        /// Nothing but a look at everything tells what an event at the path means.
        fn check_refused(&mut self, path: &str) {
            let path = self.dir.path().canonicalize().unwrap().join(path);
            assert!(self.scanner.scan_paths(&[path].into()).is_none());
        }

        fn compare(&self, found: &Found, expected: &[&str]) {
            let root = format!("{}/", self.dir.path().display());
            let mut lines: Vec<_> = found
                .changes
                .iter()
                .map(|c| match &c.text {
                    Some(text) => format!("+{} {text}", c.name),
                    None => format!("-{}", c.name),
                })
                .chain(found.diagnostics.iter().map(|d| format!("!{} {}", d.reason, d.location)))
                .map(|line| line.replace(&root, ""))
                .collect();
            lines.sort();
            assert_eq!(lines, expected);
        }
    }

    #[test]
    fn directories_are_read_through_and_only_what_is_configuration() {
        let mut dir = Dir::with(&[
            ("a.yaml", "1"),
            ("sub/b.yml", "2"),
            ("sub/c.JSON", "3"),
            ("d.txt", "4"),
            (".e.yaml", "5"),
            (".git/f.yaml", "6"),
        ]);
        symlink(dir.path("."), dir.path("sub/loop")).unwrap();
        dir.check(&["+a.yaml 1", "+sub/b.yml 2", "+sub/c.JSON 3"]);
        dir.check(&[]);
    }

    #[test]
    fn only_changes_are_reported() {
        let mut dir = Dir::with(&[("a.yaml", "1"), ("b.yaml", "1")]);
        dir.check(&["+a.yaml 1", "+b.yaml 1"]);
        dir.write("a.yaml", "1");
        dir.write("c.yaml", "3");
        dir.check(&["+c.yaml 3"]);
        dir.write("new", "2");
        fs::rename(dir.path("new"), dir.path("a.yaml")).unwrap();
        fs::remove_file(dir.path("b.yaml")).unwrap();
        dir.check(&["+a.yaml 2", "-b.yaml"]);
    }

    #[test]
    fn a_mounted_config_map_is_swapped_by_its_data_link() {
        let mut dir = Dir::with(&[("..1/a.yaml", "1"), ("..2/a.yaml", "2")]);
        symlink("..1", dir.path("..data")).unwrap();
        symlink("..data/a.yaml", dir.path("a.yaml")).unwrap();
        dir.check(&["+a.yaml 1"]);
        symlink("..2", dir.path("..data_tmp")).unwrap();
        fs::rename(dir.path("..data_tmp"), dir.path("..data")).unwrap();
        dir.check(&["+a.yaml 2"]);
    }

    #[test]
    fn a_file_that_turns_bad_keeps_its_last_text_in_force() {
        let mut dir = Dir::with(&[("a.yaml", "1")]);
        dir.check(&["+a.yaml 1"]);
        dir.write("a.yaml", b"ok\nx\xc3\xa4\xff");
        dir.check(&["!InvalidUtf8 a.yaml:2:3"]);
        dir.check(&["!InvalidUtf8 a.yaml:2:3"]);
        dir.write("a.yaml", "1");
        dir.check(&[]);
        fs::remove_file(dir.path("a.yaml")).unwrap();
        dir.check(&["-a.yaml"]);
    }

    #[test]
    fn what_events_name_is_looked_at_alone() {
        let mut dir = Dir::with(&[("a.yaml", "1"), ("sub/b.yaml", "1"), ("c.yaml", "1")]);
        dir.check(&["+a.yaml 1", "+c.yaml 1", "+sub/b.yaml 1"]);
        dir.write("sub/b.yaml", "2");
        dir.check_paths(&["sub/b.yaml"], &["+sub/b.yaml 2"]);
        // By rename, as careful tools do, with the events of both names.
        dir.write(".new", "2");
        fs::rename(dir.path(".new"), dir.path("a.yaml")).unwrap();
        fs::remove_file(dir.path("c.yaml")).unwrap();
        dir.check_paths(&[".new", "a.yaml", "c.yaml"], &["+a.yaml 2", "-c.yaml"]);
        dir.write("d.yaml", "1");
        dir.write("e.txt", "1");
        dir.check_paths(&["d.yaml", "e.txt", "never-there.yaml"], &["+d.yaml 1"]);
        dir.write("d.yaml", b"\xff");
        dir.check_paths(&["d.yaml"], &["!InvalidUtf8 d.yaml:1:1"]);
        dir.write("d.yaml", "2");
        dir.check_paths(&["d.yaml"], &["+d.yaml 2"]);
        // What is beside the root means nothing.
        dir.check_paths(&["../elsewhere.yaml"], &[]);
    }

    #[test]
    fn a_look_at_everything_finds_what_no_event_named() {
        let mut dir = Dir::with(&[("a.yaml", "1"), ("b.yaml", "1")]);
        dir.check(&["+a.yaml 1", "+b.yaml 1"]);
        dir.write("a.yaml", "2");
        fs::remove_file(dir.path("b.yaml")).unwrap();
        dir.write("c.yaml", "3");
        dir.check_paths_only(&["c.yaml"], &["+c.yaml 3"]);
        dir.check(&["+a.yaml 2", "-b.yaml"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_not_a_file_that_is_gone() {
        let mut dir = Dir::with(&[("a.yaml", "1")]);
        dir.check(&["+a.yaml 1"]);
        fs::remove_file(dir.path("a.yaml")).unwrap();
        symlink("nowhere", dir.path("a.yaml")).unwrap();
        dir.check(&["!UnreadableFile a.yaml:1:1"]);
        fs::remove_file(dir.path("a.yaml")).unwrap();
        dir.check(&["-a.yaml"]);
    }

    #[test]
    fn directories_and_links_need_a_look_at_everything() {
        let mut dir = Dir::with(&[("a.yaml", "1"), ("sub/b.yaml", "1")]);
        dir.check(&["+a.yaml 1", "+sub/b.yaml 1"]);
        dir.check_refused("sub");
        dir.check_refused("");
        dir.write("new/c.yaml", "1");
        dir.check_refused("new");
        dir.check(&["+new/c.yaml 1"]);
        symlink("a.yaml", dir.path("link.yaml")).unwrap();
        dir.check_refused("link.yaml");
        dir.check(&["+link.yaml 1"]);
        // From now on a.yaml is two files.
        dir.write("a.yaml", "2");
        dir.check_refused("a.yaml");
        dir.check(&["+a.yaml 2", "+link.yaml 2"]);
        fs::remove_file(dir.path("link.yaml")).unwrap();
        dir.check(&["-link.yaml"]);
        dir.write("a.yaml", "3");
        dir.check_paths(&["a.yaml"], &["+a.yaml 3"]);
    }

    #[test]
    fn while_something_cannot_be_read_everything_is_looked_at() {
        let mut dir = Dir::with(&[("root/a.yaml", "1"), ("b.yaml", "1")]);
        dir.scanner = Scanner::new(&[dir.path("root"), dir.path("b.yaml")]).unwrap();
        dir.check(&["+b.yaml 1", "+root/a.yaml 1"]);
        fs::rename(dir.path("root"), dir.path("away")).unwrap();
        dir.check_refused("root");
        dir.check(&["!UnreadableFile root:1:1"]);
        dir.check_refused("b.yaml");
        dir.check_refused("anything");
    }

    #[test]
    fn a_root_that_vanishes_is_a_problem_and_not_an_empty_configuration() {
        let mut dir = Dir::with(&[("root/a.yaml", "1")]);
        dir.scanner = Scanner::new(&[dir.path("root")]).unwrap();
        dir.check(&["+root/a.yaml 1"]);
        fs::rename(dir.path("root"), dir.path("away")).unwrap();
        dir.check(&["!UnreadableFile root:1:1"]);
        fs::rename(dir.path("away"), dir.path("root")).unwrap();
        dir.check(&[]);
    }

    #[test]
    fn a_path_that_is_not_there_is_refused_at_the_start() {
        let error = Scanner::new(&["/no/such/path".into()]).err().unwrap();
        assert!(error.contains("/no/such/path"), "{error}");
    }
}
