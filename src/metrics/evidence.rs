//! What comparisons of entries with the upstream have come to.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeLabels, counters::zeros};

/// What a comparison has come to; a label of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The upstream answers what the entry says.
    Same,
    /// It answers something else, and nobody has said that the job has changed.
    Different,
    /// It turns the reader away, or has no such job, and likewise.
    Refused,
    /// It answers something else, and the entry has gone meanwhile.
    Changed,
    /// It gave no answer, or an error of its own, which proves nothing.
    Failed,
    /// It was not asked for the whole, or not heard out, or the store could not be asked.
    Unchecked,
    /// As many comparisons were under way as may be.
    Skipped,
}

impl Evidence {
    /// Every one, in the order of declaration.
    pub const ALL: [Self; 7] = [
        Self::Same,
        Self::Different,
        Self::Refused,
        Self::Changed,
        Self::Failed,
        Self::Unchecked,
        Self::Skipped,
    ];

    /// The word for logs and metrics.
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
pub struct Trials {
    shadow: Family<OutcomeLabels, Counter>,
    verify: Family<OutcomeLabels, Counter>,
    /// Comparisons behind the back of a client that are under way.
    pub under_way: Gauge,
}

impl Default for Trials {
    /// Every outcome is there from the beginning: that none was found wrong is to be seen.
    fn default() -> Self {
        let none = || zeros(Evidence::ALL.map(labels));
        Self { shadow: none(), verify: none(), under_way: Gauge::default() }
    }
}

impl Trials {
    /// Counts what a hit would have been.
    pub fn shadow(&self, evidence: Evidence) {
        self.shadow.get_or_create(&labels(evidence)).inc();
    }

    /// Counts what a hit was.
    pub fn verify(&self, evidence: Evidence) {
        self.verify.get_or_create(&labels(evidence)).inc();
    }

    /// What hits would have been, so far.
    pub fn shadow_count(&self, evidence: Evidence) -> u64 {
        self.shadow.get_or_create(&labels(evidence)).get()
    }

    /// What hits were, so far.
    pub fn verify_count(&self, evidence: Evidence) -> u64 {
        self.verify.get_or_create(&labels(evidence)).get()
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "shadow",
            "Reads that would have been hits, by how the upstream's answer compares",
            self.shadow.clone(),
        );
        r.register(
            "verify",
            "Hits that were drawn, by how the upstream's answer compares",
            self.verify.clone(),
        );
        r.register(
            "trials",
            "Comparisons with the upstream that are under way behind the back of a client",
            self.under_way.clone(),
        );
    }
}

fn labels(evidence: Evidence) -> OutcomeLabels {
    OutcomeLabels { outcome: evidence.as_str() }
}
