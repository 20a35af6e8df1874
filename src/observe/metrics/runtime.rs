//! Metrics of the serving threads, read from tokio at each scrape.
//!
//! Only values that tokio keeps anyway, by a stable interface. All threads are one series: one
//! series per thread would be as many as there are CPUs and say no more about load.

use std::{fmt, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};
use tokio::runtime::Handle;

use super::sample::{counter, gauge};

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
