//! Which files the process may open (landlock).
//!
//! Rules hold for directories as they are when the process starts, and for all that is put below them later. A directory
//! that is itself replaced by another is a different one: therefore the directory above a configuration is readable too,
//! unless that one holds more than the gateway's.
//!
//! Ports are not restricted: which upstreams there are changes with the configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};

use crate::source::STDIN;

/// The newest version whose rights are all known here. An older kernel enforces those that it knows.
const VERSION: ABI = ABI::V6;

/// Links in configuration directories that are followed to where they lead.
const MAX_LINKS: usize = 1000;
/// Entries of configuration directories that are looked at for links.
const MAX_ENTRIES: usize = 200_000;

/// What names, certificates and limits are read from. What is not there is passed over.
const SYSTEM: [&str; 22] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/ssl",
    "/etc/openssl",
    "/etc/certs",
    "/etc/pki",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/lib/ssl",
    "/var/lib/ca-certificates",
    "/proc/self",
    "/proc/sys/vm",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/proc/stat",
    "/dev/null",
    "/dev/urandom",
];

type Rights = BitFlags<AccessFs>;

const READ: Rights = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const APPEND: Rights = make_bitflags!(AccessFs::{ReadFile | WriteFile | MakeReg});
const REPLACE: Rights =
    make_bitflags!(AccessFs::{ReadFile | WriteFile | MakeReg | MakeSock | RemoveFile | Truncate});
const EDIT: Rights =
    make_bitflags!(AccessFs::{ReadFile | ReadDir | WriteFile | MakeReg | MakeDir | RemoveFile | Truncate});

/// The paths that the command line names.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Configuration: directories and files.
    pub config: Vec<PathBuf>,
    /// Whether the configuration is written too.
    pub config_is_written: bool,
    /// Logs, which are created and appended to.
    pub logs: Vec<PathBuf>,
    /// Files and sockets that are created, replaced and removed.
    pub replaced: Vec<PathBuf>,
    /// Single files that are read.
    pub read: Vec<PathBuf>,
}

impl Places {
    /// Files that the process creates where only root may, so that it can open them again as somebody else.
    pub(super) fn appended(&self) -> impl Iterator<Item = &Path> {
        self.logs.iter().map(PathBuf::as_path)
    }

    fn rules(&self, readable: &[PathBuf]) -> BTreeMap<PathBuf, Rights> {
        let mut rules = BTreeMap::new();
        let mut add = |path: PathBuf, rights: Rights| *rules.entry(path).or_insert(BitFlags::EMPTY) |= rights;
        for path in SYSTEM {
            add(path.into(), READ);
        }
        add("/dev/null".into(), AccessFs::WriteFile.into());
        // Where the roots of the system are, if somebody says so.
        for variable in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
            let named = std::env::var_os(variable).unwrap_or_default();
            for path in std::env::split_paths(&named).filter(|path| path.is_absolute()) {
                add(path, READ);
            }
        }
        // For the names in a panic's backtrace.
        if let Ok(program) = std::env::current_exe() {
            add(program, AccessFs::ReadFile.into());
        }
        for path in readable {
            add(path.clone(), READ);
        }
        for path in &self.read {
            add(directory_of(path), READ);
        }
        let config = if self.config_is_written { EDIT } else { READ };
        for path in self.config.iter().filter(|path| path.as_os_str() != STDIN) {
            for place in places_of(path) {
                add(place, config);
            }
            for target in targets_of_links(path) {
                add(target, READ);
            }
        }
        for path in &self.logs {
            let is_other = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
            if is_other {
                // A device: only it, not all beside it.
                add(path.clone(), AccessFs::WriteFile.into());
            } else {
                add(directory_of(path), APPEND);
            }
        }
        for path in &self.replaced {
            add(directory_of(path), REPLACE);
        }
        rules
    }
}

/// Restricts this thread and those that it starts to these places.
pub(super) fn restrict(places: &Places, readable: &[PathBuf]) -> Result<(), String> {
    let failed = |error: landlock::RulesetError| format!("the kernel takes no rules: {error}");
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))
        .map_err(failed)?
        .scope(Scope::from_all(VERSION))
        .map_err(failed)?
        .create()
        .map_err(failed)?;
    for (path, rights) in places.rules(readable) {
        let is_directory = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        // What is not there cannot be allowed; whoever needs it will say that it is missing.
        let Ok(handle) = PathFd::new(&path) else { continue };
        let rights = if is_directory { rights } else { rights & AccessFs::from_file(VERSION) };
        rules = rules.add_rule(PathBeneath::new(handle, rights)).map_err(failed)?;
    }
    let status = rules.restrict_self().map_err(failed)?;
    match status.ruleset {
        RulesetStatus::NotEnforced => {
            Err("this kernel has no landlock, or it is not switched on (hint: Linux 5.13, lsm=landlock)"
                .to_owned())
        }
        _ => Ok(()),
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

/// The directory of a configuration, where a link to it leads, and what is above either if it is the gateway's own.
fn places_of(path: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if !path.is_dir() {
        places.push(directory_of(path));
        if let Ok(real) = fs::canonicalize(path) {
            places.push(directory_of(&real));
        }
        return places;
    }
    for form in [std::path::absolute(path).ok(), fs::canonicalize(path).ok()].into_iter().flatten() {
        if let Some(parent) = form.parent().filter(|parent| is_of_one_purpose(parent)) {
            places.push(parent.to_owned());
        }
        places.push(form);
    }
    places
}

/// `/srv/edge` is; `/etc`, which holds everything's settings, and homes are not.
fn is_of_one_purpose(directory: &Path) -> bool {
    let names = directory.components().filter(|part| matches!(part, Component::Normal(_))).count();
    names >= 2 && !directory.starts_with("/home") && !directory.starts_with("/root")
}

/// The directories of files that are linked to from elsewhere in a configuration.
fn targets_of_links(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MAX_ENTRIES || found.len() >= MAX_LINKS {
                return found;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(kind) if kind.is_symlink() => found.extend(target(&entry.path())),
                _ => {}
            }
        }
    }
    found
}

fn target(link: &Path) -> Option<PathBuf> {
    let target = fs::canonicalize(link).ok()?;
    if target.is_dir() { Some(target) } else { Some(directory_of(&target)) }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::thread;

    use super::*;

    /// On a thread of its own: rules are a thread's, and cannot be taken off again.
    fn restricted(places: Places, readable: Vec<PathBuf>, then: impl FnOnce() + Send + 'static) {
        let inside = move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            match restrict(&places, &readable) {
                Ok(()) => then(),
                Err(missing) => eprintln!("skipped: {missing}"),
            }
        };
        thread::spawn(inside).join().unwrap();
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn only_named_places_are_open() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["config", "logs", "run", "elsewhere", "more"] {
            fs::create_dir_all(at("gw").join(name)).unwrap();
            fs::write(at("gw").join(name).join("f"), "x").unwrap();
        }
        let at = |name: &str| dir.path().join("gw").join(name);
        std::os::unix::fs::symlink(at("elsewhere/f"), at("config/link")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("f"), "x").unwrap();
        let places = Places {
            config: vec![at("config")],
            config_is_written: false,
            logs: vec![at("logs/access.log")],
            replaced: vec![at("run/pid")],
            read: Vec::new(),
        };
        let (outside_file, config, logs, run) =
            (outside.path().join("f"), at("config"), at("logs"), at("run"));
        restricted(places, Vec::new(), move || {
            assert!(fs::read(config.join("f")).is_ok() && fs::read(config.join("link")).is_ok());
            assert!(denied(fs::write(config.join("f"), "y")) && denied(fs::write(config.join("new"), "y")));
            assert!(denied(fs::remove_file(config.join("f"))));
            // A log is created anew after it was moved away, and is not removed.
            let open = |name| fs::OpenOptions::new().append(true).create(true).open(logs.join(name));
            assert!(open("access.log").is_ok() && denied(fs::remove_file(logs.join("access.log"))));
            assert!(fs::write(run.join("pid"), "1").is_ok() && fs::remove_file(run.join("pid")).is_ok());
            assert!(denied(fs::read(&outside_file)) && denied(fs::read("/proc/version")));
            assert!(
                denied(fs::read("/proc/1/environ")) || rustix::process::getpid().as_raw_nonzero().get() == 1
            );
            assert!(fs::read_to_string("/proc/self/status").is_ok());
        });
    }

    #[test]
    fn a_configuration_that_is_written_is_writable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let places = Places { config: vec![path.clone()], config_is_written: true, ..Places::default() };
        restricted(places, Vec::new(), move || {
            fs::create_dir(path.join("api")).unwrap();
            fs::write(path.join("api/.a.new"), "x").unwrap();
            fs::rename(path.join("api/.a.new"), path.join("api/a.yaml")).unwrap();
            fs::remove_file(path.join("api/a.yaml")).unwrap();
        });
    }

    #[test]
    fn what_else_is_read_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("jwks.json"), "{}").unwrap();
        restricted(Places::default(), vec![path.clone()], move || {
            assert!(
                fs::read(path.join("jwks.json")).is_ok() && denied(fs::write(path.join("jwks.json"), ""))
            );
        });
    }

    #[test]
    fn a_directory_above_is_only_open_if_it_is_the_gateways() {
        for (path, own) in [
            ("/srv/edge", true),
            ("/etc", false),
            ("/", false),
            ("/home/ann/edge", false),
            ("/root/x", false),
        ] {
            assert_eq!(is_of_one_purpose(Path::new(path)), own, "{path}");
        }
    }
}
