//! The file that says which process serves.

use std::path::{Path, PathBuf};

/// Removed when dropped, unless another process has written itself in since.
pub struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    /// Writes the id of this process.
    pub fn write(path: &Path) -> Result<Self, String> {
        let text = format!("{}\n", std::process::id());
        std::fs::write(path, &text)
            .map_err(|error| format!("cannot write the pid file {}: {error}", path.display()))?;
        Ok(Self { path: path.to_owned(), text })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if std::fs::read_to_string(&self.path).is_ok_and(|text| text == self.text) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_goes_with_the_process_that_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let file = PidFile::write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());

        let file = PidFile::write(&path).unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists(), "the next process's file stays");
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = PidFile::write(&dir.path().join("no/such/pid")).err().unwrap();
        assert!(error.contains("no/such/pid"), "{error}");
    }
}
