//! Metrics of cache warming.

use prometheus_client::metrics::gauge::Gauge;

use crate::observe::metrics::{Counters, Registry};

/// The metrics of cache warming.
#[derive(Debug)]
pub(super) struct WarmMetrics {
    outcomes: Counters<1>,
    postponed: Counters<1>,
    /// By source, `file` or `list`, and outcome, `read` or `failed`.
    sources: Counters<2>,
    waiting: Gauge,
}

/// The final outcomes of a read.
const FINAL_OUTCOMES: [&str; 8] =
    ["stored", "present", "joined", "status", "unstorable", "passed", "overflow", "died"];
/// The outcomes that postpone a read, or end it when it has been postponed too long.
const POSTPONING_OUTCOMES: [&str; 6] = ["fenced", "leased", "revoked", "store", "upstream", "busy"];

impl WarmMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        let sources = ["file", "list"].map(|source| ["read", "failed"].map(|read| [source, read]));
        Self {
            outcomes: r.counters_by(
                "outcome",
                "warm",
                "Jobs to be read ahead, by outcome",
                FINAL_OUTCOMES.into_iter().chain(POSTPONING_OUTCOMES),
            ),
            postponed: r.counters_by(
                "outcome",
                "warm_postponed",
                "Attempts to read a job ahead that are to be repeated, by cause",
                POSTPONING_OUTCOMES,
            ),
            sources: r.counters(
                "warm_sources",
                "Files and lists of jobs to be read ahead, by outcome",
                ["source", "outcome"],
                sources.into_iter().flatten(),
            ),
            waiting: r.gauge("warm_waiting", "Jobs that wait to be read ahead"),
        }
    }

    /// Counts jobs by the final outcome of their reads.
    pub(super) fn count(&self, outcome: &'static str, jobs: usize) {
        if jobs > 0 {
            self.outcomes.add([outcome], jobs as u64);
        }
    }

    /// Counts an attempt that failed and is to be repeated.
    pub(super) fn postpone(&self, outcome: &'static str) {
        self.postponed.inc([outcome]);
    }

    /// Counts a file or list of jobs as read or failed.
    pub(super) fn count_source(&self, source: &'static str, outcome: &'static str) {
        self.sources.inc([source, outcome]);
    }

    /// Sets how many jobs wait to be read.
    pub(super) fn set_waiting(&self, jobs: usize) {
        self.waiting.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }
}
