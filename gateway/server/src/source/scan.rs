//! One look at all files: what changed since the last.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldgate_config::diagnostic::Location;
use fieldgate_config::{Diagnostic, FileChange};

use super::STDIN;

/// A file above this is refused rather than read into memory.
const MAX_FILE_BYTES: u64 = 256 * 1024 * 1024;

/// How deep directories are followed.
const MAX_DEPTH: usize = 32;

/// Looks at files, and remembers what it saw.
pub(super) struct Scanner {
    roots: Vec<PathBuf>,
    stdin: Option<Result<String, Box<Diagnostic>>>,
    seen: BTreeMap<PathBuf, Seen>,
    last_problems: Vec<Diagnostic>,
}

/// What a look found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) changes: Vec<FileChange>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Whether `diagnostics` differ from the last time.
    pub(super) problems_changed: bool,
    /// Where a change would show, without symbolic links.
    pub(super) directories: BTreeSet<PathBuf>,
}

struct Seen {
    stamp: Stamp,
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

/// The files that there are now.
#[derive(Default)]
struct Listing {
    files: BTreeMap<PathBuf, Metadata>,
    directories: BTreeSet<PathBuf>,
    /// Paths below which nothing is known at present.
    blind: Vec<PathBuf>,
    problems: Vec<Diagnostic>,
    entered: HashSet<(u64, u64)>,
}

impl Scanner {
    /// Checks that every path can be read at all, and reads standard input.
    pub(super) fn new(paths: &[PathBuf]) -> Result<Self, String> {
        let mut scanner =
            Self { roots: Vec::new(), stdin: None, seen: BTreeMap::new(), last_problems: Vec::new() };
        for path in paths {
            if path.as_os_str() == STDIN {
                scanner.stdin.get_or_insert_with(|| read_text(Path::new("<stdin>"), io::stdin().lock()));
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
        let listing = self.list();
        let mut changes = Vec::new();
        self.take_stdin(&mut changes);
        for (path, metadata) in &listing.files {
            changes.extend(self.look_at(path, metadata));
        }
        self.forget_missing(&listing, &mut changes);
        let mut diagnostics = listing.problems;
        diagnostics.extend(self.seen.values().filter_map(|seen| seen.problem.as_deref().cloned()));
        if let Some(Err(problem)) = &self.stdin {
            diagnostics.push((**problem).clone());
        }
        let problems_changed = diagnostics != self.last_problems;
        self.last_problems.clone_from(&diagnostics);
        Found { changes, diagnostics, problems_changed, directories: listing.directories }
    }

    fn list(&self) -> Listing {
        let mut listing = Listing::default();
        for root in &self.roots {
            listing.note_parent(root);
            match fs::metadata(root) {
                Ok(metadata) if metadata.is_dir() => listing.enter(root, &metadata, 0),
                Ok(metadata) => listing.add_file(root, metadata),
                // A root was there at the start: it is being replaced, or a mount is gone. Not "no configuration".
                Err(error) => listing.cannot_read(root, &error),
            }
        }
        listing
    }

    fn take_stdin(&mut self, changes: &mut Vec<FileChange>) {
        if let Some(Ok(text)) = &mut self.stdin
            && !text.is_empty()
        {
            changes.push(FileChange { name: "<stdin>".into(), text: Some(std::mem::take(text)) });
        }
    }

    fn look_at(&mut self, path: &Path, metadata: &Metadata) -> Option<FileChange> {
        let stamp = Stamp::of(metadata);
        let before = self.seen.get(path);
        if before.is_some_and(|seen| seen.stamp == stamp) {
            return None;
        }
        let reported = before.and_then(|seen| seen.content);
        match read_file(path, metadata) {
            Ok(text) => {
                let content = hash(&text);
                self.seen.insert(path.to_owned(), Seen { stamp, content: Some(content), problem: None });
                (reported != Some(content)).then(|| FileChange { name: name(path), text: Some(text) })
            }
            // Gone since it was listed, or never there: a link into nowhere. The next look decides.
            Err(None) => None,
            Err(Some(problem)) => {
                self.seen.insert(path.to_owned(), Seen { stamp, content: reported, problem: Some(problem) });
                None
            }
        }
    }

    fn forget_missing(&mut self, listing: &Listing, changes: &mut Vec<FileChange>) {
        self.seen.retain(|path, seen| {
            let keep =
                listing.files.contains_key(path) || listing.blind.iter().any(|blind| path.starts_with(blind));
            if !keep && seen.content.is_some() {
                changes.push(FileChange { name: name(path), text: None });
            }
            keep
        });
    }
}

impl Listing {
    fn enter(&mut self, directory: &Path, metadata: &Metadata, depth: usize) {
        // A link to a directory above would go round for ever.
        if depth > MAX_DEPTH || !self.entered.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        self.note(directory);
        let entries = match fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(entries) => entries,
            Err(error) => return self.cannot_read(directory, &error),
        };
        for entry in entries {
            let path = entry.path();
            // Kubernetes keeps the versions of a mounted ConfigMap in `..2024_..`; editors keep their copies in `.x.swp`.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Follows links: a file of a mounted ConfigMap is one.
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => self.enter(&path, &metadata, depth + 1),
                Ok(metadata) if is_configuration(&path) => {
                    if entry.file_type().is_ok_and(|t| t.is_symlink()) {
                        self.note_target(&path);
                    }
                    self.add_file(&path, metadata);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => self.cannot_read(&path, &error),
            }
        }
    }

    fn add_file(&mut self, path: &Path, metadata: Metadata) {
        self.files.insert(path.to_owned(), metadata);
    }

    fn cannot_read(&mut self, path: &Path, error: &io::Error) {
        self.blind.push(path.to_owned());
        self.problems.push(unreadable(path, error));
    }

    fn note(&mut self, directory: &Path) {
        if let Ok(real) = directory.canonicalize() {
            self.directories.insert(real);
        }
    }

    /// Where `path` itself would be replaced: the directory that holds it, and that of what it links to.
    fn note_parent(&mut self, path: &Path) {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        self.note(parent);
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

fn is_configuration(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn read_file(path: &Path, metadata: &Metadata) -> Result<String, Option<Box<Diagnostic>>> {
    if metadata.size() > MAX_FILE_BYTES {
        let message = format!("the file is larger than {} MiB and is not read", MAX_FILE_BYTES >> 20);
        return Err(Some(Box::new(problem("UnreadableFile", path, 1, 1, message))));
    }
    match File::open(path) {
        Ok(file) => read_text(path, file).map_err(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(None),
        Err(error) => Err(Some(Box::new(unreadable(path, &error)))),
    }
}

fn read_text(path: &Path, from: impl Read) -> Result<String, Box<Diagnostic>> {
    let mut bytes = Vec::new();
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
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
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
            let root = format!("{}/", self.dir.path().display());
            let found = self.scanner.scan();
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
