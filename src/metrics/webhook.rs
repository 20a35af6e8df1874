//! Calls of the admin listener that ask for the webhook secret, and purges.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::counters::zeros;

/// Bounds of skews in seconds. Of clocks that are right it is 0 or 1; past the last but one a call is
/// refused, and past 60 it is warned of.
const SKEW_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 3600.0];

/// Why a call was refused. Who sends purges and is refused leaves old jobs in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It had neither token nor signature.
    Unsigned,
    /// It had another bearer token.
    Bearer,
    /// A header of its signature was missing, or could not be read.
    Header,
    /// It had no signature of its body by a secret of ours.
    Signature,
    /// Its signature was right, and of a time too long ago or too far ahead.
    Timestamp,
    /// There is no secret, and a browser sent it for a page of another site.
    Origin,
    /// It was no purge as a purge is written.
    Malformed,
    /// Its body was too large.
    TooLarge,
    /// Its body did not come in time.
    Slow,
    /// There was no room for its body.
    Busy,
    /// There were too many purges in a second.
    Rate,
}

impl Refused {
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

    /// The word for metrics.
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
pub struct Webhook {
    refused: Family<ReasonLabels, Counter>,
    /// Of those that know a secret.
    accepted: Family<SecretLabels, Counter>,
    skew: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// Which of the configured secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SecretLabels {
    /// `newest` or `older`.
    secret: &'static str,
}

const NEWEST: SecretLabels = SecretLabels { secret: "newest" };
const OLDER: SecretLabels = SecretLabels { secret: "older" };

impl Default for Webhook {
    fn default() -> Self {
        let reasons = Refused::ALL.map(|refused| ReasonLabels { reason: refused.as_str() });
        Self {
            refused: zeros(reasons),
            accepted: zeros([NEWEST, OLDER]),
            skew: Histogram::new(SKEW_BUCKETS),
        }
    }
}

impl Webhook {
    /// Counts a call that was refused.
    pub fn refused(&self, refused: Refused) {
        self.refused.get_or_create(&ReasonLabels { reason: refused.as_str() }).inc();
    }

    /// Counts one by who knows a secret: the one in this place, counted from 0, which is the newest.
    pub fn accepted(&self, place: usize) {
        self.accepted.get_or_create(if place == 0 { &NEWEST } else { &OLDER }).inc();
    }

    /// Takes how far the time of a right signature was off, in either direction.
    pub fn skew(&self, seconds: u64) {
        // Past 2^53 it does not matter.
        #[allow(clippy::cast_precision_loss, reason = "as above")]
        self.skew.observe(seconds as f64);
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "webhook_refused",
            "Calls of the webhook and of pages that ask for its secret which were refused, by why",
            self.refused.clone(),
        );
        r.register(
            "webhook_accepted",
            "Calls that a webhook secret has opened, by which of them",
            self.accepted.clone(),
        );
        r.register_with_unit(
            "webhook_skew",
            "How far the times of right signatures are off, in either direction",
            Unit::Seconds,
            self.skew.clone(),
        );
    }
}
