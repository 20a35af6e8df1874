//! Metrics of the cache.

use std::sync::Arc;

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::{
    observe::metrics::{Counters, RecentTimes, Registry},
    store::NearMetrics,
};

/// The metrics of the cache.
pub(crate) struct CacheMetrics {
    pub(super) fills: Counters<1>,
    /// Invalidations by source: `write`, `write-body` (the second invalidation of a write, at the
    /// end of its response body), `write-all` (by a rule, or because routes or rules have changed),
    /// `purge`, `purge-all` or `evidence` (the entry differed from the response of the upstream);
    /// and by outcome: `confirmed` or `pending`.
    pub(super) invalidations: Counters<2>,
    /// Values under jobcache keys that another program wrote.
    pub(super) foreign_values: Counter,
    /// Jobs that had changed after their TTL although no change was reported.
    pub(crate) silent_changes: Counter,
    /// Upstream reads that other requests may share.
    pub(crate) flights: Gauge,
    /// Bytes of responses that are held until they are stored.
    pub(crate) captured: Gauge,
    pub(crate) near: Arc<NearMetrics>,
    /// Recent times from a request to its response head, for sampled hits.
    pub(crate) hit_times: Arc<RecentTimes>,
    /// The same for misses.
    pub(crate) miss_times: Arc<RecentTimes>,
}

impl CacheMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        let sources = ["write", "write-body", "write-all", "purge", "purge-all", "evidence"];
        let invalidations =
            sources.map(|source| ["confirmed", "pending"].map(|ended| [source, ended]));
        Self {
            fills: r.counters_by(
                "outcome",
                "fills",
                "Fills by outcome",
                ["stored", "revoked", "failed"],
            ),
            invalidations: r.counters(
                "invalidations",
                "Invalidations by source and outcome",
                ["source", "outcome"],
                invalidations.into_iter().flatten(),
            ),
            foreign_values: r
                .counter("foreign_values", "Values under jobcache keys that another program wrote"),
            silent_changes: r.counter(
                "silent_changes",
                "Jobs that had changed after their TTL although no write, purge or DEL was seen",
            ),
            flights: r.gauge(
                "flights",
                "Upstream reads that other requests may share, under way or next",
            ),
            captured: r.bytes("captured", "Responses held in memory until they are stored"),
            near: Arc::new(NearMetrics::register(r)),
            hit_times: Arc::default(),
            miss_times: Arc::default(),
        }
    }
}
