//! Metrics of the changes that Redis reports, and of the read barrier.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use crate::observe::metrics::Registry;

/// Bucket bounds of rounds of the read barrier, in seconds. A round is a round trip to Redis and
/// nothing else.
const ROUND_BUCKETS: [f64; 11] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.25];

/// The metrics of tracking.
pub(crate) struct TrackingMetrics {
    /// 1 while changes in the store are tracked.
    pub(crate) up: Gauge,
    /// Names of changed keys that the store reported.
    pub(super) news: Counter,
    /// Rounds of the read barrier that began.
    pub(super) rounds: Counter,
    /// Time of an answered round of the read barrier. A lookup waits for at most two: the round
    /// under way and its own.
    pub(super) round_seconds: Histogram,
    /// Lookups that waited for a round of the read barrier.
    pub(super) waits: Counter,
}

impl TrackingMetrics {
    pub(in crate::store) fn register(r: &mut Registry) -> Self {
        Self {
            rounds: r
                .counter("barrier_rounds", "Rounds of the read barrier, each a PING and its reply"),
            round_seconds: r.seconds(
                "barrier_round",
                "Time of a round of the read barrier",
                ROUND_BUCKETS,
            ),
            waits: r
                .counter("barrier_waits", "Lookups that waited for a round of the read barrier"),
            up: r.gauge("tracking_up", "1 while changes in the store are tracked"),
            news: r.counter("tracking_news", "Names of changed keys that the store reported"),
        }
    }
}
