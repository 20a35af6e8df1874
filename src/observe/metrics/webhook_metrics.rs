//! Metrics of calls to the admin listener that need the webhook secret, and of purges.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::counters::zeros;

/// Bucket bounds of clock skews in seconds. Correct clocks give 0 or 1. A call is refused past 300,
/// and a warning is logged past 60.
const SKEW_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 3600.0];

/// Why a call was refused. When a purge is refused, its jobs stay in the cache with their old
/// state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookRefusal {
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
    pub fn as_str(self) -> &'static str {
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
pub struct WebhookMetrics {
    refused: Family<ReasonLabels, Counter>,
    /// Calls with a valid secret, by secret.
    accepted: Family<SecretLabels, Counter>,
    skew: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Which of the configured secrets was used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    /// `newest` or `older`.
    secret: &'static str,
}

const NEWEST: SecretLabels = SecretLabels { secret: "newest" };
const OLDER: SecretLabels = SecretLabels { secret: "older" };

impl Default for WebhookMetrics {
    fn default() -> Self {
        let reasons = WebhookRefusal::ALL.map(|refused| ReasonLabels { reason: refused.as_str() });
        Self {
            refused: zeros(reasons),
            accepted: zeros([NEWEST, OLDER]),
            skew: Histogram::new(SKEW_BUCKETS),
        }
    }
}

impl WebhookMetrics {
    /// Counts a call that was refused.
    pub fn count_refused(&self, refused: WebhookRefusal) {
        self.refused.get_or_create(&ReasonLabels { reason: refused.as_str() }).inc();
    }

    /// Counts a call with a valid secret. `place` is the position of that secret; 0 is the newest.
    pub fn count_accepted(&self, place: usize) {
        self.accepted.get_or_create(if place == 0 { &NEWEST } else { &OLDER }).inc();
    }

    /// Records the clock skew of a valid signature, in either direction.
    pub fn record_skew(&self, seconds: u64) {
        // Above 2^53 the precision does not matter.
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        self.skew.observe(seconds as f64);
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "webhook_refused",
            "Refused calls of the webhook and of the pages that need its secret, by reason",
            self.refused.clone(),
        );
        r.register(
            "webhook_accepted",
            "Calls with a valid webhook secret, by secret",
            self.accepted.clone(),
        );
        r.register_with_unit(
            "webhook_skew",
            "Clock skew of valid signatures, in either direction",
            Unit::Seconds,
            self.skew.clone(),
        );
    }
}
