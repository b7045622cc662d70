//! What the operating system says of time spent: by this process's ended children, and by a core on anything.

/// Ticks per second in `/proc`: USER_HZ, a constant of Linux's ABI.
pub(super) const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU that children of this process have used which have ended and were waited for.
pub fn of_ended_children() -> Result<f64, String> {
    let stat = read("/proc/self/stat")?;
    // The name, in brackets, may hold spaces; cutime and cstime are fields 16 and 17.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    sum(&fields, [13, 14]).ok_or_else(|| format!("/proc/self/stat is unreadable: {stat}"))
}

/// Seconds that a core has not been idle, whoever used it: user, nice, system, interrupts, and what a host took away.
pub fn of_core(core: usize) -> Result<f64, String> {
    let stat = read("/proc/stat")?;
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name));
    let fields: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
    // user nice system idle iowait irq softirq steal
    sum(&fields, [0, 1, 2, 5, 6, 7]).ok_or_else(|| format!("/proc/stat has no core {core}"))
}

fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

fn sum<const N: usize>(fields: &[&str], indices: [usize; N]) -> Option<f64> {
    let ticks = indices.iter().map(|index| fields.get(*index)?.parse::<f64>().ok());
    ticks.sum::<Option<f64>>().map(|ticks| ticks / TICKS_PER_SECOND)
}
