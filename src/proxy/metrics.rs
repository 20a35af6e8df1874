//! Metrics of requests.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::comparison_metrics::ComparisonMetrics;
use crate::{
    limits::LimitHits,
    observe::metrics::{Counters, Registry},
};

/// The metrics of the proxy.
pub(crate) struct ProxyMetrics {
    pub(crate) requests: RequestMetrics,
    /// Requests that are being answered.
    pub(crate) in_flight: Gauge,
    /// Bytes of writes that rules read.
    pub(crate) inspected: Gauge,
    /// Hits in this process by the repeat fast path, which does not read the header fields again;
    /// the other hits include them.
    pub(super) repeats: Counter,
    /// Results of comparisons of entries with the upstream.
    pub(crate) comparisons: ComparisonMetrics,
    pub(super) limits: Arc<LimitHits>,
}

/// Requests by what became of them.
pub(crate) struct RequestMetrics {
    /// By outcome (`hit`, `miss`, `pass`, `write`, `error`) and why it was not a hit; the reason is
    /// empty if there is nothing to add.
    by_reason: Counters<2>,
    /// The counter of hits, looked up once because most requests are hits.
    hits: Counter,
    /// Requests answered by the upstream read of another request.
    pub(super) joined: Counter,
    misses: AtomicU64,
    passes: AtomicU64,
    others: AtomicU64,
    writes: AtomicU64,
    errors: AtomicU64,
}

/// Requests since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestTotals {
    /// Requests answered from the cache.
    pub(crate) hits: u64,
    /// Requests answered by an upstream read that is shared by all waiting requests.
    pub(crate) misses: u64,
    /// The misses that were answered by the read of another request.
    pub(crate) joined: u64,
    /// Reads of a job that bypassed the cache.
    pub(crate) passes: u64,
    /// Other requests that bypassed the cache.
    pub(crate) others: u64,
    /// Writes.
    pub(crate) writes: u64,
    /// Requests answered with an error by jobcache itself.
    pub(crate) errors: u64,
}

impl ProxyMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            requests: RequestMetrics::register(r),
            in_flight: r.gauge("requests_in_flight", "Requests that are being answered"),
            inspected: r.bytes("inspected", "Writes held in memory because rules read them"),
            repeats: r.counter(
                "repeats",
                "Hits in this process by the header fields of the previous request on the connection",
            ),
            comparisons: ComparisonMetrics::register(r),
            limits: LimitHits::shared(r),
        }
    }
}

impl RequestMetrics {
    fn register(r: &mut Registry) -> Self {
        let by_reason = r.counters(
            "requests",
            "Requests by outcome and reason",
            ["outcome", "reason"],
            ["miss", "write", "hit"].map(|outcome| [outcome, ""]),
        );
        Self {
            hits: by_reason.handle(["hit", ""]),
            by_reason,
            joined: r.counter(
                "flights_joined",
                "Requests answered by the upstream read of another request",
            ),
            misses: AtomicU64::default(),
            passes: AtomicU64::default(),
            others: AtomicU64::default(),
            writes: AtomicU64::default(),
            errors: AtomicU64::default(),
        }
    }

    /// Counts a request by its outcome and reason, in the words of `Cache-Status`.
    pub(crate) fn count(&self, outcome: &'static str, reason: &'static str) {
        if outcome == "hit" {
            self.hits.inc();
            return;
        }
        self.by_reason.inc([outcome, reason]);
        let total = match (outcome, reason) {
            ("miss", _) => &self.misses,
            ("pass", "path" | "method" | "upgrade") => &self.others,
            ("pass", _) => &self.passes,
            ("write", _) => &self.writes,
            _ => &self.errors,
        };
        total.fetch_add(1, Ordering::Relaxed);
    }

    /// The requests with this outcome and reason.
    pub(crate) fn of_reason(&self, outcome: &'static str, reason: &'static str) -> u64 {
        self.by_reason.get([outcome, reason])
    }

    /// All requests, by outcome.
    pub(crate) fn totals(&self) -> RequestTotals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestTotals {
            hits: self.hits.get(),
            misses: load(&self.misses),
            joined: self.joined.get(),
            passes: load(&self.passes),
            others: load(&self.others),
            writes: load(&self.writes),
            errors: load(&self.errors),
        }
    }
}

impl RequestTotals {
    /// The requests since `before`.
    #[must_use]
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            joined: self.joined.saturating_sub(before.joined),
            passes: self.passes.saturating_sub(before.passes),
            others: self.others.saturating_sub(before.others),
            writes: self.writes.saturating_sub(before.writes),
            errors: self.errors.saturating_sub(before.errors),
        }
    }

    /// Reads of jobs.
    pub(crate) fn reads(&self) -> u64 {
        self.hits + self.misses + self.passes
    }

    /// Reads of jobs that did not need an upstream read of their own.
    pub(crate) fn saved(&self) -> u64 {
        self.hits + self.joined
    }

    /// The share of hits in the reads of jobs. `None` without reads.
    pub(crate) fn hit_ratio(&self) -> Option<f64> {
        #[allow(clippy::cast_precision_loss, reason = "a ratio is shown with a few digits")]
        let ratio = |part: u64, whole: u64| part as f64 / whole as f64;
        (self.reads() > 0).then(|| ratio(self.hits, self.reads()))
    }
}

#[cfg(test)]
mod tests {
    use super::RequestTotals;

    #[test]
    fn hits_and_shared_reads_are_what_the_upstream_is_spared() {
        let totals =
            RequestTotals { hits: 6, misses: 3, joined: 1, passes: 1, ..RequestTotals::default() };
        assert_eq!((totals.reads(), totals.saved(), totals.hit_ratio()), (10, 7, Some(0.6)));
        assert_eq!(RequestTotals::default().hit_ratio(), None);
    }
}
