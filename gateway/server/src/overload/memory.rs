//! How scarce memory is: looked at some times per second, and told to the workers when it changes.
//!
//! What counts is the resident memory of the process, which is what the kernel ends it for. Actions come in steps, as
//! with Envoy's overload manager, and end later than they began, so that they do not flutter.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Overload;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);
/// Per cent of the limit where a step begins, and where it ends.
const TIGHT: (u64, u64) = (85, 80);
const CRITICAL: (u64, u64) = (95, 90);

/// How scarce memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// It is not.
    #[default]
    None,
    /// New requests and connections are refused; HTTP/1 connections end after their response.
    Tight,
    /// Connections without a request are closed too, on either side.
    Critical,
}

impl Pressure {
    /// The reverse of `as u8`.
    pub fn from_level(level: u8) -> Self {
        match level {
            0 => Self::None,
            1 => Self::Tight,
            _ => Self::Critical,
        }
    }

    /// What follows from a look: so many bytes are used of so many.
    #[must_use]
    pub fn next(self, used: u64, limit: u64) -> Self {
        let percent = used.saturating_mul(100) / limit.max(1);
        let holds = |(begin, end), step| percent >= if self >= step { end } else { begin };
        if holds(CRITICAL, Self::Critical) {
            Self::Critical
        } else if holds(TIGHT, Self::Tight) {
            Self::Tight
        } else {
            Self::None
        }
    }
}

/// Looks at what `read` says, until the process ends, and tells every change; says nothing without a limit.
pub async fn watch(
    overload: Arc<Overload>,
    mut read: impl FnMut() -> Option<u64>,
    mut tell: impl FnMut(Pressure),
) {
    let Some(limit) = overload.limits.memory else { return };
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut now = Pressure::None;
    loop {
        period.tick().await;
        let Some(used) = read() else { continue };
        let next = now.next(used, limit);
        overload.note_memory(used, next);
        if next != now {
            let mib = |bytes: u64| bytes / (1024 * 1024);
            let (used, limit) = (mib(used), mib(limit));
            match next {
                Pressure::None => tracing::info!(used, limit, "memory in MiB: nothing is refused any more"),
                Pressure::Tight => {
                    tracing::warn!(
                        used,
                        limit,
                        "memory in MiB (--max-memory): new requests and connections are refused"
                    );
                }
                Pressure::Critical => {
                    tracing::error!(
                        used,
                        limit,
                        "memory in MiB (--max-memory): idle connections are closed too"
                    );
                }
            }
            now = next;
            tell(now);
        }
    }
}

/// Resident memory of this process in bytes.
pub fn resident() -> Option<u64> {
    resident_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn resident_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The least limit of the control groups that this process is in, of either version.
pub fn limit_of_cgroup() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_below(Path::new("/sys/fs/cgroup"), &groups)
}

fn limit_below(root: &Path, groups: &str) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (base, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            c if c.split(',').any(|c| c == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // A container may see its own group as the root, under whatever path.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let text = std::fs::read_to_string(base.join(group).join(file)).unwrap_or_default();
            let limit = text.trim().parse::<u64>().ok().filter(|limit| *limit < UNLIMITED);
            least = [least, limit].into_iter().flatten().min();
        }
    }
    least
}

/// Version 1 writes a number near 2^63 for no limit.
const UNLIMITED: u64 = 1 << 60;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::overload::Limits;

    #[test]
    fn steps_begin_above_and_end_below() {
        let mut pressure = Pressure::None;
        for (used, expected) in [
            (84, Pressure::None),
            (85, Pressure::Tight),
            (81, Pressure::Tight),
            (94, Pressure::Tight),
            (95, Pressure::Critical),
            (90, Pressure::Critical),
            (89, Pressure::Tight),
            (80, Pressure::Tight),
            (79, Pressure::None),
            (84, Pressure::None),
            (200, Pressure::Critical),
            (10, Pressure::None),
        ] {
            pressure = pressure.next(used, 100);
            assert_eq!(pressure, expected, "at {used}");
            assert_eq!(Pressure::from_level(pressure as u8), pressure);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_told_and_nothing_else() {
        let overload = Overload::new(Limits { memory: Some(100), ..Limits::default() }, 1);
        let mut readings = [10, 90, 91, 96, 96, 85, 50, 50].into_iter();
        let told = Mutex::new(Vec::new());
        let read = || readings.next();
        let watching = watch(overload.clone(), read, |pressure| told.lock().unwrap().push(pressure));
        let _ = tokio::time::timeout(Duration::from_secs(5), watching).await;
        use Pressure::{Critical, None, Tight};
        assert_eq!(*told.lock().unwrap(), [Tight, Critical, Tight, None]);
        assert_eq!(overload.pressure(), None);
    }

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(resident_of("VmPeak:\t 9 kB\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(resident_of("VmPeak:\t 9 kB\n"), None);
        assert!(resident().unwrap() > 1024 * 1024);
    }

    #[test]
    fn the_least_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "500\n");
        assert_eq!(limit_below(root.path(), "0::/a/b\n"), Some(500));
        assert_eq!(limit_below(root.path(), "0::/elsewhere\n"), None);
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/x/memory.limit_in_bytes", "300\n");
        assert_eq!(limit_below(root.path(), "4:cpu,memory:/x\n1:cpu:/y\n"), Some(300));
        assert_eq!(limit_below(root.path(), "4:memory:/\n"), None);
        write("memory.max", "200\n");
        assert_eq!(limit_below(root.path(), "0::/not/to/be/seen\n"), Some(200));
    }
}
