//! Metrics of comparisons of entries with the upstream.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeLabels, counters::zeros};

/// The result of a comparison; a label of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparisonResult {
    /// The response of the upstream equals the entry.
    Same,
    /// The response differs, and no purge or write has reported a change of the job.
    Different,
    /// The upstream refuses the reader or has no such job, and no change was reported.
    Refused,
    /// The response differs, and the entry has been dropped meanwhile.
    Changed,
    /// The upstream gave no response or a server error, which proves nothing.
    Failed,
    /// The response was not complete or could not be compared, or the store could not be asked.
    Unchecked,
    /// Too many comparisons were under way.
    Skipped,
}

impl ComparisonResult {
    /// Every result, in the order of declaration.
    pub const ALL: [Self; 7] = [
        Self::Same,
        Self::Different,
        Self::Refused,
        Self::Changed,
        Self::Failed,
        Self::Unchecked,
        Self::Skipped,
    ];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::Refused => "refused",
            Self::Changed => "changed",
            Self::Failed => "failed",
            Self::Unchecked => "unchecked",
            Self::Skipped => "skipped",
        }
    }
}

/// The metrics of shadow mode and of `verify`.
pub struct ComparisonMetrics {
    shadow: Family<OutcomeLabels, Counter>,
    verify: Family<OutcomeLabels, Counter>,
    /// Comparisons under way that no client waits for.
    pub under_way: Gauge,
}

impl Default for ComparisonMetrics {
    /// Starts with every result at zero, so that the absence of wrong entries is visible.
    fn default() -> Self {
        let zero = || zeros(ComparisonResult::ALL.map(labels));
        Self { shadow: zero(), verify: zero(), under_way: Gauge::default() }
    }
}

impl ComparisonMetrics {
    /// Counts a read that would have been a hit.
    pub fn count_shadow(&self, evidence: ComparisonResult) {
        self.shadow.get_or_create(&labels(evidence)).inc();
    }

    /// Counts a hit that was compared.
    pub fn count_verify(&self, evidence: ComparisonResult) {
        self.verify.get_or_create(&labels(evidence)).inc();
    }

    /// The number of reads that would have been hits, by result.
    pub fn shadow_total(&self, evidence: ComparisonResult) -> u64 {
        self.shadow.get_or_create(&labels(evidence)).get()
    }

    /// The number of compared hits, by result.
    pub fn verify_total(&self, evidence: ComparisonResult) -> u64 {
        self.verify.get_or_create(&labels(evidence)).get()
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "shadow",
            "Reads that would have been hits, by comparison with the upstream's response",
            self.shadow.clone(),
        );
        r.register(
            "verify",
            "Sampled hits, by comparison with the upstream's response",
            self.verify.clone(),
        );
        r.register(
            "trials",
            "Comparisons with the upstream under way that no client waits for",
            self.under_way.clone(),
        );
    }
}

fn labels(evidence: ComparisonResult) -> OutcomeLabels {
    OutcomeLabels { outcome: evidence.as_str() }
}
