//! Metrics of shadow mode and of `verify`.

use prometheus_client::metrics::gauge::Gauge;

use crate::{
    cache::ComparisonResult,
    observe::metrics::{Counters, Registry},
};

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

impl ComparisonMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        Self {
            shadow: r.counters_by(
                "outcome",
                "shadow",
                "Reads that would have been hits, by comparison with the upstream's response",
                ComparisonResult::ALL.map(ComparisonResult::as_str),
            ),
            verify: r.counters_by(
                "outcome",
                "verify",
                "Sampled hits, by comparison with the upstream's response",
                ComparisonResult::ALL.map(ComparisonResult::as_str),
            ),
            under_way: r.gauge(
                "trials",
                "Comparisons with the upstream under way that no client waits for",
            ),
        }
    }

    /// Counts a read that would have been a hit.
    pub(super) fn count_shadow(&self, result: ComparisonResult) {
        self.shadow.inc([result.as_str()]);
    }

    /// Counts a hit that was compared.
    pub(super) fn count_verify(&self, result: ComparisonResult) {
        self.verify.inc([result.as_str()]);
    }
}
