//! What the kernel says of a process, and what latencies say of a run.

use std::{fs, time::Duration};

/// Processor time of one process since it began, its children apart: of all its threads, as the
/// scheduler counts it, for turns are short and a clock's ticks are long.
pub fn cpu(pid: u32) -> Duration {
    let ran = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanoseconds = threads.filter_map(|thread| ran(thread.unwrap())).sum();
    Duration::from_nanos(nanoseconds)
}

/// KiB of memory that is resident: all of it, and what of it is no file's.
pub fn resident(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.map_or(0, |value| value.parse().unwrap())
    };
    (kib("VmRSS:"), kib("RssAnon:"))
}

/// The latency that so many hundredths did not exceed.
pub fn percentile(sorted: &[u32], hundredths: usize) -> Duration {
    let at = (sorted.len() * hundredths / 100).min(sorted.len().saturating_sub(1));
    Duration::from_micros(sorted.get(at).copied().unwrap_or(0).into())
}

/// The value in the middle; the mean of the two in the middle.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values {
        [] => f64::NAN,
        _ if values.len() % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
