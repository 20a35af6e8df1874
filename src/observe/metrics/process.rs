//! Metrics that are read when Prometheus scrapes: the runtime, and the resources of the process under
//! the conventional names
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>), without the
//! prefix `jobcache_`.
//!
//! The resources come from `/proc/self`, which the kernel serves from memory. A system without it
//! has the start time and the limit of open files only.

use std::{
    fmt, fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};
use tokio::runtime::Handle;

use crate::clock;

/// Reads the metrics of this process.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    started_at: SystemTime,
}

/// The fields of `/proc/self/stat` that are exported (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct ProcStat {
    /// User and system time, in ticks.
    cpu_ticks: u64,
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Default for ProcessCollector {
    /// Takes the current time as the start of the process.
    fn default() -> Self {
        Self { started_at: clock::now() }
    }
}

impl ProcStat {
    fn parse(text: &str) -> Option<Self> {
        // The name is the second field, in parentheses, and may contain any character.
        let (_, fields) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // Fields have their numbers in proc(5), which start at 3 here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let started_at = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = Some(&Unit::Seconds);
        let help = "Start of this process, as a Unix time.";
        gauge(e, "process_start_time", help, seconds, started_at.as_secs_f64())?;
        if let Some(open) = open_files() {
            gauge(e, "process_open_fds", "Open files, including connections.", None, open)?;
        }
        if let Some(limit) = getrlimit(Resource::Nofile).current {
            gauge(e, "process_max_fds", "Limit of open files.", None, limit)?;
        }
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let Some(stat) = stat.as_deref().and_then(ProcStat::parse) else { return Ok(()) };
        #[allow(clippy::cast_precision_loss, reason = "exact for 2.8 million years of 100 Hz")]
        let cpu_seconds = stat.cpu_ticks as f64 / clock_ticks_per_second() as f64;
        counter(e, "process_cpu", "CPU time, user and system.", seconds, cpu_seconds)?;
        gauge(e, "process_threads", "Threads.", None, stat.threads)?;
        let bytes = Some(&Unit::Bytes);
        let resident = stat.resident_pages * page_size() as u64;
        gauge(e, "process_resident_memory", "Memory in RAM.", bytes, resident)?;
        let help = "Mapped memory, in RAM or not.";
        gauge(e, "process_virtual_memory", help, bytes, stat.virtual_bytes)
    }
}

fn open_files() -> Option<u64> {
    const OPEN: &str = "/proc/self/fd";
    // Linux 6.2 and newer report the number of open files as the size of the directory.
    let size = fs::metadata(OPEN).ok()?.len();
    if size > 0 {
        return Some(size);
    }
    // The directory itself is one of them.
    Some((fs::read_dir(OPEN).ok()?.count() as u64).saturating_sub(1))
}

/// Reads the metrics of the runtime that runs the scrape. Outside a runtime there are none.
#[derive(Debug)]
pub(super) struct RuntimeCollector;

impl Collector for RuntimeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(handle) = Handle::try_current() else { return Ok(()) };
        let e = &mut encoder;
        let metrics = handle.metrics();
        let workers = metrics.num_workers();
        gauge(e, "runtime_workers", "Worker threads.", None, workers)?;
        let tasks = metrics.num_alive_tasks();
        gauge(e, "runtime_tasks", "Tasks, a few per connection.", None, tasks)?;
        let help = "Tasks that are ready to run and wait for a thread.";
        gauge(e, "runtime_queue_depth", help, None, metrics.global_queue_depth())?;
        let busy: Duration = (0..workers).map(|w| metrics.worker_total_busy_duration(w)).sum();
        let help = "Busy time of all worker threads together.";
        counter(e, "runtime_busy", help, Some(&Unit::Seconds), busy.as_secs_f64())?;
        let parks: u64 = (0..workers).map(|w| metrics.worker_park_count(w)).sum();
        let help = "Times that a worker thread had nothing to do and went to sleep.";
        counter(e, "runtime_parks", help, None, parks)
    }
}

/// Encodes a gauge. `help` is a sentence with its full stop.
fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

/// Encodes a counter. `help` is a sentence with its full stop.
fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl EncodeCounterValue,
) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, unit, MetricType::Counter)?;
    ConstCounter::new(value).encode(encoder)
}

#[cfg(test)]
mod tests {
    use super::ProcStat;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20 0 5 0 4711 1048576 256 184467440737";
        let stat =
            ProcStat { cpu_ticks: 150, threads: 5, virtual_bytes: 1_048_576, resident_pages: 256 };
        assert_eq!(ProcStat::parse(&format!("42 (job) cache (x)) {fields}")), Some(stat));
        assert_eq!(ProcStat::parse("42 (jobcache) S 1 2"), None);
        assert_eq!(ProcStat::parse(""), None);
    }
}
