//! How the threads that serve are doing, read from tokio when it is asked for.
//!
//! Only what tokio keeps anyway and promises to keep telling. Threads are told together: one by one
//! they would be as many series as there are CPUs, and say no more about load.

use std::{fmt, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};
use tokio::runtime::Handle;

use super::sample::{counter, gauge};

/// Reads the figures of the runtime that asks; where none does there is nothing to tell.
#[derive(Debug)]
pub(super) struct Runtime;

impl Collector for Runtime {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(handle) = Handle::try_current() else { return Ok(()) };
        let (e, figures) = (&mut encoder, handle.metrics());
        let workers = figures.num_workers();
        gauge(e, "runtime_workers", "Threads that serve.", None, workers)?;
        let tasks = figures.num_alive_tasks();
        gauge(e, "runtime_tasks", "Tasks: a few a connection.", None, tasks)?;
        let help = "Tasks that are ready to run and wait for any thread.";
        gauge(e, "runtime_queue_depth", help, None, figures.global_queue_depth())?;
        let busy: Duration = (0..workers).map(|w| figures.worker_total_busy_duration(w)).sum();
        let help = "Time in which the threads that serve had something to do, all together.";
        counter(e, "runtime_busy", help, Some(&Unit::Seconds), busy.as_secs_f64())?;
        let parks: u64 = (0..workers).map(|w| figures.worker_park_count(w)).sum();
        let help = "Times that a thread that serves had nothing to do and went to sleep.";
        counter(e, "runtime_parks", help, None, parks)
    }
}
