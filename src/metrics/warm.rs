//! What became of the reads ahead of clients.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{OutcomeLabels, counters::zeros};

/// The metrics of cache warming.
pub struct Warm {
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

/// What a read may come to in the end.
const LAST: [&str; 8] =
    ["stored", "present", "joined", "status", "unstorable", "passed", "overflow", "died"];
/// What may stand in its way, for a while or to the end.
const IN_THE_WAY: [&str; 6] = ["fenced", "leased", "revoked", "store", "upstream", "busy"];

impl Default for Warm {
    fn default() -> Self {
        let label = |outcome| OutcomeLabels { outcome };
        let sources = ["file", "list"]
            .into_iter()
            .flat_map(|source| ["read", "failed"].map(|outcome| SourceLabels { source, outcome }));
        Self {
            outcomes: zeros(LAST.into_iter().chain(IN_THE_WAY).map(label)),
            postponed: zeros(IN_THE_WAY.map(label)),
            sources: zeros(sources),
            waiting: Gauge::default(),
        }
    }
}

impl Warm {
    /// Counts jobs by what their reads came to in the end.
    pub fn count(&self, outcome: &'static str, jobs: usize) {
        if jobs > 0 {
            self.outcomes.get_or_create(&OutcomeLabels { outcome }).inc_by(jobs as u64);
        }
    }

    /// Counts a try that was in vain, and is to be repeated.
    pub fn postpone(&self, outcome: &'static str) {
        self.postponed.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts a file or list of jobs that was read, or could not be.
    pub fn count_source(&self, source: &'static str, outcome: &'static str) {
        self.sources.get_or_create(&SourceLabels { source, outcome }).inc();
    }

    /// Tells how many jobs wait to be read.
    pub fn set_waiting(&self, jobs: usize) {
        self.waiting.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "warm",
            "Jobs that were to be read ahead, by what it came to",
            self.outcomes.clone(),
        );
        r.register(
            "warm_postponed",
            "Tries to read a job ahead that are to be repeated, by what stood in the way",
            self.postponed.clone(),
        );
        r.register(
            "warm_sources",
            "Files and lists of jobs to be read ahead, by whether they could be read",
            self.sources.clone(),
        );
        r.register("warm_waiting", "Jobs that wait to be read ahead", self.waiting.clone());
    }
}
