//! Metrics of calls to the admin listener that need the webhook secret, and of purges.

use std::sync::Arc;

use prometheus_client::metrics::{gauge::Gauge, histogram::Histogram};

use crate::{
    limits::{Limit, LimitHits, Quota},
    observe::metrics::{Counters, Registry},
};

/// Bucket bounds of clock skews in seconds. Correct clocks give 0 or 1. A call is refused past 300,
/// and a warning is logged past 60.
const SKEW_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 3600.0];

/// Why a call was refused. When a purge is refused, its jobs stay in the cache with their old
/// state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WebhookRefusal {
    /// The call had neither a token nor a signature.
    Unsigned,
    /// The bearer token was wrong.
    Bearer,
    /// A header of the signature was missing or malformed.
    Header,
    /// No secret of the configuration gives the signature of the body.
    Signature,
    /// The signature was valid, but its time was too far in the past or the future.
    Timestamp,
    /// There is no secret, and a browser sent the call for a page of another site.
    Origin,
    /// The body was not a valid purge.
    Malformed,
    /// The body was too large.
    TooLarge,
    /// The body did not arrive in time.
    Slow,
    /// There was no memory left for the body.
    Busy,
    /// There were too many purges in a second.
    Rate,
}

impl WebhookRefusal {
    const ALL: [Self; 11] = [
        Self::Unsigned,
        Self::Bearer,
        Self::Header,
        Self::Signature,
        Self::Timestamp,
        Self::Origin,
        Self::Malformed,
        Self::TooLarge,
        Self::Slow,
        Self::Busy,
        Self::Rate,
    ];

    /// The `reason` label in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unsigned => "unsigned",
            Self::Bearer => "bearer",
            Self::Header => "header",
            Self::Signature => "signature",
            Self::Timestamp => "timestamp",
            Self::Origin => "origin",
            Self::Malformed => "malformed",
            Self::TooLarge => "too-large",
            Self::Slow => "slow",
            Self::Busy => "busy",
            Self::Rate => "rate",
        }
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
                WebhookRefusal::ALL.map(WebhookRefusal::as_str),
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
