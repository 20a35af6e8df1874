//! Metrics of push.

use std::sync::Arc;

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use super::topic::Version;
use crate::{
    limits::GaugeGuard,
    observe::metrics::{Counters, RecentTimes, Registry},
};

/// How a version is sent to a waiter.
const FORMS: [&str; 2] = ["poll", "stream"];

/// Bounds of the delivery latency, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// The metrics of push.
pub(crate) struct PushMetrics {
    /// Requests that have a place among the waiters.
    pub(crate) waiting: Gauge,
    pub(crate) held_polls: Gauge,
    pub(crate) open_streams: Gauge,
    pub(crate) topics: Gauge,
    /// Versions that were sent to a waiter, by form.
    delivered: Counters<1>,
    /// Reads because of news.
    pub(crate) woken: Counter,
    /// Reads without news.
    pub(crate) rechecks: Counter,
    /// Requests that were answered as if push were off, for lack of places.
    pub(crate) refused: Counter,
    /// Time from the news about a job to its delivery.
    latency: Histogram,
    /// The latencies of the last minute.
    pub(crate) recent: Arc<RecentTimes>,
}

impl PushMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            waiting: r
                .gauge("push_waiting", "Requests that have a place among the waiters of push"),
            held_polls: r.gauge("push_held_polls", "Polls that are held until their job changes"),
            open_streams: r.gauge("push_open_streams", "Open streams of events"),
            topics: r.gauge("push_topics", "Jobs that are read for waiters, by job and identity"),
            delivered: r.counters_by(
                "form",
                "push_delivered",
                "New versions of jobs that were sent to waiters",
                FORMS,
            ),
            woken: r.counter("push_woken", "Reads of waiting topics because of news"),
            rechecks: r.counter("push_rechecks", "Reads of waiting topics without news"),
            refused: r.counter(
                "push_refused",
                "Requests for push that were answered as if push were off: too many wait",
            ),
            latency: r.seconds(
                "push_delivery",
                "Time from the news about a job to its new version on the way to a waiter",
                BUCKETS,
            ),
            recent: Arc::default(),
        }
    }

    /// Counts a held poll as long as the guard lives.
    pub(super) fn hold_poll(&self) -> GaugeGuard {
        GaugeGuard::increment(&self.held_polls)
    }

    /// Counts an open stream as long as the guard lives.
    pub(super) fn hold_stream(&self) -> GaugeGuard {
        GaugeGuard::increment(&self.open_streams)
    }

    /// Counts a topic as long as the guard lives.
    pub(super) fn count_topic(&self) -> GaugeGuard {
        GaugeGuard::increment(&self.topics)
    }

    /// Versions that were sent to a waiter.
    pub(crate) fn delivered(&self) -> u64 {
        FORMS.into_iter().map(|form| self.delivered.get([form])).sum()
    }

    /// Counts the new version that answers a held poll.
    pub(super) fn count_poll(&self, version: &Version) {
        self.count("poll", version);
    }

    /// Counts the version that a stream sends.
    pub(super) fn count_event(&self, version: &Version) {
        self.count("stream", version);
    }

    fn count(&self, form: &'static str, version: &Version) {
        self.delivered.inc([form]);
        if let Some(at) = version.news_at {
            let took = at.elapsed();
            self.latency.observe(took.as_secs_f64());
            self.recent.observe(took, 1);
        }
    }
}
