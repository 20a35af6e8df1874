//! The part of the admin interface that a reload keeps: its state, the metrics of purges and of calls
//! that need the webhook secret, and the sources of `/status` that the cache does not lead to.

use std::sync::Arc;

use prometheus_client::metrics::{gauge::Gauge, histogram::Histogram};

use super::{caller_limits::CallerLimits, recent::Recent};
use crate::{
    cache::Cache,
    limits::{Limit, LimitHits, Quota},
    observe::{
        events::Events,
        metrics::{Counters, Registry},
    },
    proxy::metrics::ProxyMetrics,
    semantics::labels::labels,
    service::Drain,
    telemetry::LogFilter,
    upstream::metrics::UpstreamMetrics,
    warm::Warmer,
};

/// State that is shared by all configurations and survives a reload.
#[derive(Clone)]
pub struct AdminState {
    /// Memory budget for the bodies of purges.
    pub body_quota: Arc<Quota>,
    /// Filter of the log, which `PUT /log` changes.
    pub filter: LogFilter,
    /// Reads jobs again after a purge with `"refresh": true`.
    pub warmer: Warmer,
    pub(crate) metrics: Arc<AdminMetrics>,
    /// The metrics of all parts, for `/metrics`.
    pub registry: Arc<Registry>,
    pub(crate) status: StatusSources,
    /// The events that `/events` sends.
    pub events: Arc<Events>,
    /// Turns true when a shutdown begins.
    pub drain: Drain,
    /// Rate limits and budgets of callers.
    pub caller_limits: Arc<CallerLimits>,
}

/// Sources of `/status` that cannot be reached through the cache.
#[derive(Clone)]
pub(crate) struct StatusSources {
    /// Open client connections.
    pub(super) connections: Gauge,
    pub(super) proxy: Arc<ProxyMetrics>,
    pub(super) upstream: Arc<UpstreamMetrics>,
    pub(super) recent: Arc<Recent>,
}

impl StatusSources {
    pub(crate) fn new(
        connections: Gauge,
        cache: &Cache,
        proxy: &Arc<ProxyMetrics>,
        upstream: Arc<UpstreamMetrics>,
        events: &Arc<Events>,
    ) -> Self {
        let store = &cache.store().metrics().operations;
        let cache = cache.metrics();
        let times = [&cache.hit_times, &cache.miss_times, &upstream.recent, &store.recent];
        let recent = Recent::new(Arc::clone(proxy), times.map(Arc::clone), Arc::clone(events));
        Self { connections, proxy: Arc::clone(proxy), upstream, recent: Arc::new(recent) }
    }
}

/// Bucket bounds of clock skews in seconds. Correct clocks give 0 or 1. A call is refused past 300,
/// and a warning is logged past 60.
const SKEW_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 3600.0];

labels! {
    /// Why a call was refused. When a purge is refused, its jobs stay in the cache with their old
    /// state.
    pub(super) enum WebhookRefusal {
        /// The call had neither a token nor a signature.
        Unsigned = "unsigned",
        /// The bearer token was wrong.
        Bearer = "bearer",
        /// A header of the signature was missing or malformed.
        Header = "header",
        /// No secret of the configuration gives the signature of the body.
        Signature = "signature",
        /// The signature was valid, but its time was too far in the past or the future.
        Timestamp = "timestamp",
        /// There is no secret, and a browser sent the call for a page of another site.
        Origin = "origin",
        /// The body was not a valid purge.
        Malformed = "malformed",
        /// The body was too large.
        TooLarge = "too-large",
        /// The body did not arrive in time.
        Slow = "slow",
        /// There was no memory left for the body.
        Busy = "busy",
        /// There were too many purges in a second.
        Rate = "rate",
    }
}

/// The metrics of these calls.
pub(crate) struct AdminMetrics {
    refused: Counters<1>,
    /// Calls with a valid secret, by secret: `newest` or `older`.
    accepted: Counters<1>,
    skew: Histogram,
    /// Bytes of purges.
    purges: Gauge,
    pub(super) limits: Arc<LimitHits>,
}

impl AdminMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            refused: r.counters_by(
                "reason",
                "webhook_refused",
                "Refused calls of the webhook and of the pages that need its secret, by reason",
                WebhookRefusal::WORDS,
            ),
            accepted: r.counters_by(
                "secret",
                "webhook_accepted",
                "Calls with a valid webhook secret, by secret",
                ["newest", "older"],
            ),
            skew: r.seconds(
                "webhook_skew",
                "Clock skew of valid signatures, in either direction",
                SKEW_BUCKETS,
            ),
            purges: r.bytes("purges", "Purges held in memory while they are read"),
            limits: LimitHits::shared(r),
        }
    }

    /// Returns the quota of bytes for the bodies of purges.
    pub(crate) fn body_quota(&self, max_bytes: usize) -> Arc<Quota> {
        Quota::of(Limit::Inspected, max_bytes, &self.purges, &self.limits)
    }

    /// Counts a call that was refused.
    pub(super) fn count_refused(&self, refused: WebhookRefusal) {
        self.refused.inc([refused.as_str()]);
    }

    /// Counts a call with a valid secret. `place` is the position of that secret; 0 is the newest.
    pub(super) fn count_accepted(&self, place: usize) {
        self.accepted.inc([if place == 0 { "newest" } else { "older" }]);
    }

    /// Records the clock skew of a valid signature, in either direction.
    pub(super) fn record_skew(&self, seconds: u64) {
        // Above 2^53 the precision does not matter.
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        self.skew.observe(seconds as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::{AdminMetrics, Registry, WebhookRefusal};

    #[test]
    fn each_refusal_is_counted_under_its_own_reason() {
        let metrics = AdminMetrics::register(&mut Registry::default());
        for refusal in WebhookRefusal::ALL {
            metrics.count_refused(refusal);
            assert_eq!(metrics.refused.get([refusal.as_str()]), 1, "{refusal:?}");
        }
    }
}
