//! What the operating system says of a process and all that descend from it: memory and CPU. Some proxies do their work
//! in children, and start new ones when they reload.
//!
//! Memory is what is mapped; what the kernel keeps for sockets is in nobody's account.

use std::fs::read_to_string;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// Ticks per second in `/proc/PID/stat`: USER_HZ, a constant of Linux's ABI.
const TICKS_PER_SECOND: f64 = 100.0;
/// What reading says of a process that ends meanwhile: no such process.
const ESRCH: i32 = 3;
/// Between two looks at memory that may still change.
const LOOK: Duration = Duration::from_millis(100);
/// Memory is at rest when it has stayed the same for so long ...
const REST: Duration = Duration::from_secs(2);
/// ... but for this share of it.
const SAME: f64 = 0.001;
/// What never rests is taken as it is then.
const NEVER: Duration = Duration::from_secs(20);

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident, with pages that others share counted in part.
    pub pss: f64,
    /// Resident.
    pub rss: f64,
}

/// Memory of a process and its descendants.
pub fn memory(pid: u32) -> Result<Memory, String> {
    let mut sum = Memory::default();
    for pid in family(pid) {
        let path = format!("/proc/{pid}/smaps_rollup");
        let Some(text) = read(&path)? else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
            kib.ok_or_else(|| format!("{path}: no {name}"))
        };
        sum.pss += field("Pss:")?;
        sum.rss += field("Rss:")?;
    }
    Ok(sum)
}

/// Memory once it has come to rest: proxies give back in their own time what they used while they were busy.
pub async fn settled(pid: u32) -> Result<Memory, String> {
    let started = Instant::now();
    let (mut last, mut since) = (memory(pid)?, Instant::now());
    while since.elapsed() < REST && started.elapsed() < NEVER {
        tokio::time::sleep(LOOK).await;
        let now = memory(pid)?;
        if (now.rss - last.rss).abs() > last.rss * SAME {
            (last, since) = (now, Instant::now());
        }
    }
    memory(pid)
}

/// Seconds of CPU that a process and its descendants have used, those that have ended included.
pub fn cpu_seconds(pid: u32) -> Result<f64, String> {
    let mut sum = 0.0;
    for pid in family(pid) {
        let path = format!("/proc/{pid}/stat");
        let Some(stat) = read(&path)? else { continue };
        // The name, in brackets, may hold spaces; utime, stime, cutime and cstime are fields 14 to 17.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: Option<Vec<f64>> =
            fields.get(11..15).map(|four| four.iter().flat_map(|f| f.parse()).collect());
        sum +=
            ticks.filter(|t| t.len() == 4).ok_or_else(|| format!("{path}: unreadable"))?.iter().sum::<f64>();
    }
    Ok(sum / TICKS_PER_SECOND)
}

/// How many processes they are.
pub fn processes(pid: u32) -> usize {
    family(pid).len()
}

/// Nothing of a process that has just ended: what it used is in its parent's account then.
fn read(path: &str) -> Result<Option<String>, String> {
    match read_to_string(path) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound) || error.raw_os_error() == Some(ESRCH) => {
            Ok(None)
        }
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// A process and what its main threads have forked.
fn family(pid: u32) -> Vec<u32> {
    let children = read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}
