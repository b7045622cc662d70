//! Configuration from files: directories, single files and standard input, read once and then watched.
//!
//! It says which files changed and what they hold now, nothing else; what they mean is `fieldgate-config`'s. A file that
//! cannot be read is not a file that is gone: it is reported, and what it said before stays in force.

mod scan;
mod watch;
pub mod write;

use std::path::PathBuf;

use fieldgate_config::{Diagnostic, FileChange};

use self::scan::Scanner;
pub use self::watch::Watcher;

/// The path that means standard input.
pub const STDIN: &str = "-";

/// What a look at the files found.
#[derive(Debug, Default)]
pub struct Update {
    /// Files that are new, changed or gone.
    pub changes: Vec<FileChange>,
    /// All present problems with reading files, those reported before included.
    pub diagnostics: Vec<Diagnostic>,
}

/// A set of files and what is known about them.
pub struct Source {
    scanner: Scanner,
}

impl Source {
    /// Reads everything once. Fails only if a path itself is not there or is nothing to read: a mistake on the command
    /// line, where going on would mean to serve nothing.
    pub fn open(paths: &[PathBuf]) -> Result<(Self, Update), String> {
        let mut scanner = Scanner::new(paths)?;
        let found = scanner.scan();
        let update = Update { changes: found.changes, diagnostics: found.diagnostics };
        Ok((Self { scanner }, update))
    }

    /// Watches the files from now on, and reports what has changed since they were opened. `on_change` is called on a
    /// thread of its own.
    pub fn watch(self, on_change: impl FnMut(Update) + Send + 'static) -> Result<Watcher, String> {
        Watcher::start(self.scanner, on_change)
    }
}
