//! What the process takes of the machine, under the names that every exporter gives it
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>), without our prefix.
//!
//! Read when it is asked for, from `/proc/self`, which answers from memory. A system without it has
//! the start time only.

use std::{
    fmt, fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::sample::{counter, gauge};
use crate::clock;

/// Reads the figures of this process.
#[derive(Debug)]
pub(super) struct Process {
    started_at: SystemTime,
}

/// The fields of `/proc/self/stat` that are told (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// User and system, in ticks.
    cpu_ticks: u64,
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Default for Process {
    /// Of a process that starts now.
    fn default() -> Self {
        Self { started_at: clock::now() }
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name comes second, in parentheses, and may hold any character.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // By their numbers in proc(5), of which the third is the first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let started_at = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = Some(&Unit::Seconds);
        let help = "When this process started, since 1970.";
        gauge(e, "process_start_time", help, seconds, started_at.as_secs_f64())?;
        if let Some(open) = open_files() {
            gauge(e, "process_open_fds", "Open files, connections among them.", None, open)?;
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge(e, "process_max_fds", "How many files may be open.", None, limit)?;
        }
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let Some(stat) = stat.as_deref().and_then(Stat::parse) else { return Ok(()) };
        #[allow(clippy::cast_precision_loss, reason = "exact for 2.8 million years of 100 Hz")]
        let cpu_seconds = stat.cpu_ticks as f64 / clock_ticks_per_second() as f64;
        counter(e, "process_cpu", "Time on a CPU, user and system.", seconds, cpu_seconds)?;
        gauge(e, "process_threads", "Threads.", None, stat.threads)?;
        let bytes = Some(&Unit::Bytes);
        let resident = stat.resident_pages * page_size() as u64;
        gauge(e, "process_resident_memory", "Memory that is in RAM.", bytes, resident)?;
        let help = "Memory that is mapped, in RAM or not.";
        gauge(e, "process_virtual_memory", help, bytes, stat.virtual_bytes)
    }
}

fn open_files() -> Option<u64> {
    const OPEN: &str = "/proc/self/fd";
    // Linux 6.2 and newer say it without being counted through.
    let told = fs::metadata(OPEN).ok()?.len();
    if told > 0 {
        return Some(told);
    }
    // One of them is the directory's own.
    Some((fs::read_dir(OPEN).ok()?.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::Stat;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0 5 0 4711 1048576 256 184467440737";
        let stat =
            Stat { cpu_ticks: 150, threads: 5, virtual_bytes: 1_048_576, resident_pages: 256 };
        assert_eq!(Stat::parse(&format!("42 (job) cache (x)) {fields}")), Some(stat));
        assert_eq!(Stat::parse("42 (jobcache) S 1 2"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
