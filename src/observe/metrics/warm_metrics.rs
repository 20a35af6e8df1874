//! Metrics of cache warming.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeLabels, counters::zeros};

/// The metrics of cache warming.
pub struct WarmMetrics {
    outcomes: Family<OutcomeLabels, Counter>,
    postponed: Family<OutcomeLabels, Counter>,
    sources: Family<SourceLabels, Counter>,
    waiting: Gauge,
}

/// Labels of the lists and files of jobs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    /// `file` or `list`.
    source: &'static str,
    /// `read` or `failed`.
    outcome: &'static str,
}

/// The final outcomes of a read.
const FINAL_OUTCOMES: [&str; 8] =
    ["stored", "present", "joined", "status", "unstorable", "passed", "overflow", "died"];
/// The outcomes that postpone a read, or end it when it has been postponed too long.
const POSTPONING_OUTCOMES: [&str; 6] = ["fenced", "leased", "revoked", "store", "upstream", "busy"];

impl Default for WarmMetrics {
    fn default() -> Self {
        let label = |outcome| OutcomeLabels { outcome };
        let sources = ["file", "list"]
            .into_iter()
            .flat_map(|source| ["read", "failed"].map(|outcome| SourceLabels { source, outcome }));
        Self {
            outcomes: zeros(FINAL_OUTCOMES.into_iter().chain(POSTPONING_OUTCOMES).map(label)),
            postponed: zeros(POSTPONING_OUTCOMES.map(label)),
            sources: zeros(sources),
            waiting: Gauge::default(),
        }
    }
}

impl WarmMetrics {
    /// Counts jobs by the final outcome of their reads.
    pub fn count(&self, outcome: &'static str, jobs: usize) {
        if jobs > 0 {
            self.outcomes.get_or_create(&OutcomeLabels { outcome }).inc_by(jobs as u64);
        }
    }

    /// Counts an attempt that failed and is to be repeated.
    pub fn postpone(&self, outcome: &'static str) {
        self.postponed.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts a file or list of jobs as read or failed.
    pub fn count_source(&self, source: &'static str, outcome: &'static str) {
        self.sources.get_or_create(&SourceLabels { source, outcome }).inc();
    }

    /// Sets how many jobs wait to be read.
    pub fn set_waiting(&self, jobs: usize) {
        self.waiting.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register("warm", "Jobs to be read ahead, by outcome", self.outcomes.clone());
        r.register(
            "warm_postponed",
            "Attempts to read a job ahead that are to be repeated, by cause",
            self.postponed.clone(),
        );
        r.register(
            "warm_sources",
            "Files and lists of jobs to be read ahead, by outcome",
            self.sources.clone(),
        );
        r.register("warm_waiting", "Jobs that wait to be read ahead", self.waiting.clone());
    }
}
