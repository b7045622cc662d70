//! Writes single files of the configuration, for changes that come by the admin server.
//!
//! A file is replaced whole by a rename, so that a reader sees the old text or the new one. What is reached through a
//! symbolic link is not written: a mounted ConfigMap would be changed behind its owner's back, or undone by it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The text of a file; `None` if it is not there.
pub fn read(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Why a file must not be written here, if so.
pub fn is_managed_elsewhere(path: &Path) -> Option<String> {
    let linked = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let mounted = path.parent().is_some_and(|parent| linked(&parent.join("..data")));
    (linked(path) || mounted).then(|| {
        format!(
            "{} is reached through a symbolic link, as files of a mounted ConfigMap are \
             (hint: change it where it comes from)",
            path.display()
        )
    })
}

/// Puts a text in the place of a file, or removes it; `secret` is for a new file that nobody else may read.
pub fn replace(path: &Path, text: Option<&str>, secret: bool) -> Result<(), String> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                " (hint: let the user that runs the gateway write the directory, or change the files where they come from)"
            }
            _ => "",
        };
        format!("cannot write {}: {error}{hint}", path.display())
    };
    let Some(text) = text else { return fs::remove_file(path).map_err(failed) };
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed)?;
    let new = beside(path);
    let written = write(&new, text, path, secret).and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(failed)
}

/// Makes what was written outlast a failure of power. Takes as long as the disk does, so nobody waits for it.
pub fn sync(path: &Path) {
    let directory = path.parent().unwrap_or(Path::new("."));
    for place in [path, directory] {
        if let Ok(file) = File::open(place)
            && let Err(error) = file.sync_all()
        {
            tracing::warn!("cannot be sure that {} is on the disk: {error}", place.display());
        }
    }
}

/// A dot-file is no configuration, so that nobody reads half of it.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}

fn write(new: &Path, text: &str, old: &Path, secret: bool) -> io::Result<()> {
    let mode = match fs::metadata(old) {
        Ok(metadata) => metadata.permissions().mode() & 0o7777,
        Err(_) if secret => 0o600,
        Err(_) => 0o644,
    };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(new)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api/a.yaml");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        replace(&path, Some("1"), true).unwrap();
        assert_eq!((read(&path), mode()), (Ok(Some("1".to_owned())), 0o600));
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        replace(&path, Some("2"), false).unwrap();
        assert_eq!((read(&path), mode()), (Ok(Some("2".to_owned())), 0o640));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        replace(&path, None, false).unwrap();
        assert_eq!(read(&path), Ok(None));
    }

    #[test]
    fn links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("real.yaml"), "1").unwrap();
        std::os::unix::fs::symlink("real.yaml", path("link.yaml")).unwrap();
        assert!(is_managed_elsewhere(&path("link.yaml")).is_some());
        assert_eq!(is_managed_elsewhere(&path("real.yaml")), None);
        std::os::unix::fs::symlink(".", path("..data")).unwrap();
        assert!(is_managed_elsewhere(&path("new.yaml")).is_some());
    }
}
