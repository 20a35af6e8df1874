//! Resource usage of processes, from `/proc`.

use std::fs;

use crate::stats::real;

/// Returns the CPU seconds, in user and kernel mode, of these processes and all their descendants.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    let ticks: u64 = tree(roots).into_iter().filter_map(|pid| Some(Stat::of(pid)?.ticks)).sum();
    real(ticks) / real(rustix::param::clock_ticks_per_second())
}

/// Returns the memory in MiB as the proportional set size, which counts a page shared by several
/// processes once.
pub(crate) fn memory_mib(roots: &[u32]) -> f64 {
    let kib: u64 = tree(roots).into_iter().filter_map(pss_kib).sum();
    real(kib) / 1024.0
}

fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Returns these processes and their descendants.
fn tree(roots: &[u32]) -> Vec<u32> {
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::of(pid)?.parent)))
        .collect();
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Fields of `/proc/<pid>/stat`, see proc(5).
struct Stat {
    parent: u32,
    /// utime + stime of all threads.
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the name in brackets, which may contain anything.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Self { parent: fields.get(1)?.parse().ok()?, ticks })
    }
}
