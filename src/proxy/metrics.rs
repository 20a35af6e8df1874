//! Metrics of requests, of comparisons with the upstream, and of writes that name no job.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::Method;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tracing::warn;

pub(crate) use super::push::PushMetrics;
use crate::{
    cache::ComparisonResult,
    limits::LimitHits,
    observe::{
        events::EventKind,
        metrics::{Counters, Registry},
        throttle::HourlyPerName,
    },
    semantics::{
        policy::Bypass,
        route::{Routes, WriteTarget},
    },
};

/// Longest method that a warning shows. Clients may invent others.
const MAX_METHOD: usize = 16;

/// Reasons of requests that are no read of a job.
const NO_READS: [Bypass; 3] = [Bypass::Path, Bypass::Method, Bypass::Upgrade];

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
    pub(super) unclaimed: UnclaimedWrites,
    pub(crate) push: Arc<PushMetrics>,
}

/// Requests by what became of them.
pub(crate) struct RequestMetrics {
    /// Requests by outcome (`hit`, `miss`, `pass`, `write`, `error`) and by the reason why it was
    /// not a hit. The reason is empty if there is nothing to add.
    by_reason: Counters<2>,
    /// The counter of hits, looked up once because most requests are hits.
    hits: Counter,
    /// Requests answered by the upstream read of another request.
    pub(super) joined: Counter,
    /// All other requests.
    others: Mutex<RequestTotals>,
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

/// The metrics of shadow mode and of `verify`. Every result starts at zero, so that the absence of
/// wrong entries is visible.
pub(crate) struct ComparisonMetrics {
    /// Reads that would have been hits, by result.
    pub(crate) shadow: Counters<1>,
    /// Compared hits, by result.
    pub(crate) verify: Counters<1>,
    /// Comparisons under way that no client waits for.
    pub(super) under_way: Gauge,
}

/// Counts and reports unclaimed writes: successful writes at the jobs that name none of them and
/// match no rule.
///
/// Such a write (`POST /jobs/cancel-all`) may change jobs, and their entries are served until the
/// TTL ends. So the log proposes the rule to add.
pub(super) struct UnclaimedWrites {
    warnings: HourlyPerName,
    total: Counter,
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
            unclaimed: UnclaimedWrites {
                warnings: HourlyPerName::default(),
                total: r.counter(
                    "unclaimed_writes",
                    "Successful writes at the jobs that named no job and matched no rule",
                ),
            },
            push: Arc::new(PushMetrics::register(r)),
        }
    }
}

impl ComparisonMetrics {
    fn register(r: &mut Registry) -> Self {
        let mut by_result =
            |name, help| r.counters_by("outcome", name, help, ComparisonResult::WORDS);
        Self {
            shadow: by_result(
                "shadow",
                "Reads that would have been hits, by comparison with the upstream's response",
            ),
            verify: by_result("verify", "Sampled hits, by comparison with the upstream's response"),
            under_way: r.gauge(
                "trials",
                "Comparisons with the upstream under way that no client waits for",
            ),
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
            others: Mutex::default(),
        }
    }

    /// Counts a request by what became of it and the reason, in the words of `Cache-Status`.
    pub(crate) fn count(&self, kind: EventKind, reason: &'static str) {
        if kind == EventKind::Hit {
            self.hits.inc();
            return;
        }
        self.by_reason.inc([kind.as_str(), reason]);
        let mut others = self.others();
        let total = match kind {
            EventKind::Miss => &mut others.misses,
            EventKind::Pass if NO_READS.iter().any(|why| why.as_str() == reason) => {
                &mut others.others
            }
            EventKind::Pass => &mut others.passes,
            EventKind::Write => &mut others.writes,
            _ => &mut others.errors,
        };
        *total += 1;
    }

    /// The requests with this outcome and reason.
    pub(crate) fn of_reason(&self, outcome: &'static str, reason: &'static str) -> u64 {
        self.by_reason.get([outcome, reason])
    }

    /// All requests, by outcome.
    pub(crate) fn totals(&self) -> RequestTotals {
        RequestTotals { hits: self.hits.get(), joined: self.joined.get(), ..*self.others() }
    }

    fn others(&self) -> MutexGuard<'_, RequestTotals> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
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

impl UnclaimedWrites {
    /// Counts a write that matched no rule, if its target is at the jobs and names none.
    pub(super) fn count(&self, routes: &Routes, method: &Method, target: &WriteTarget) {
        let Some(shape) = routes.unclaimed_shape(target.path_and_query()) else { return };
        self.total.inc();
        if !self.warnings.admits(&shape) {
            return;
        }
        let methods = match method.as_str() {
            name if name.len() <= MAX_METHOD => format!("methods = [\"{name}\"]\n"),
            _ => String::new(),
        };
        // A write at the collection usually creates a job, and must not drop the others.
        let jobs = if routes.is_collection(&shape) {
            "response = [\"/id\"]\non_miss = \"ignore\""
        } else {
            "all = true"
        };
        let rule = format!("[[invalidate]]\n{methods}path = \"{shape}\"\n{jobs}");
        warn!(
            path = shape,
            rule,
            "a write at the jobs named no job and matched no [[invalidate]] rule; if it changes jobs, \
             they are served from the cache until their TTL ends; add this rule, or one that says with \
             request, response or query where the ids are"
        );
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
