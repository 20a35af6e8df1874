//! Measurements of the pollers and the pipeline.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Number of latencies kept per source, so that they describe the present.
const LATENCIES_KEPT: usize = 10_000;

/// Counters shared by pollers and pipeline.
#[derive(Default)]
pub(super) struct Figures(Mutex<DemoCounts>);

#[derive(Default)]
struct DemoCounts {
    totals: DemoTotals,
    /// By [`AnswerSource`].
    latencies: [Latencies; 2],
    streams: StreamTotals,
    /// By [`DemoGroup`].
    changes: [Changes; 2],
}

/// Totals of the streams since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamTotals {
    /// Requests for a stream.
    pub(super) requests: u64,
    /// Streams that were refused or broke off, and events without a job.
    pub(super) failed: u64,
    /// Events older than an earlier one, or than a purge that was acknowledged before the request.
    pub(super) stale: u64,
}

/// How clients learn of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DemoGroup {
    Polling,
    Push,
}

/// The changes that a group of clients has seen.
#[derive(Default)]
struct Changes {
    count: u64,
    delays: Latencies,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DemoTotals {
    /// Polls, answered or not.
    pub(super) polls: u64,
    /// Polls answered from the cache.
    pub(super) hits: u64,
    /// Polls without a usable answer.
    pub(super) failed: u64,
    /// Answers older than a purge that was acknowledged before the poll was sent.
    pub(super) stale: u64,
    /// Purges answered with 200.
    pub(super) purges: u64,
    /// Purge requests with any other answer, or none.
    pub(super) purges_refused: u64,
}

/// Result of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PollOutcome {
    /// A status of the job.
    Answered { source: AnswerSource, took: Duration, version: u64, stale: bool },
    /// Any other answer, or none.
    Failed,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerSource {
    Cache,
    Upstream,
}

/// Median and 99th percentile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantiles {
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

#[derive(Clone, Default)]
struct Latencies(VecDeque<Duration>);

impl Figures {
    pub(super) fn record_poll(&self, poll: PollOutcome) {
        let mut counts = self.lock();
        counts.totals.polls += 1;
        let PollOutcome::Answered { source, took, stale, .. } = poll else {
            counts.totals.failed += 1;
            return;
        };
        counts.totals.stale += u64::from(stale);
        counts.totals.hits += u64::from(source == AnswerSource::Cache);
        counts.latencies[source as usize].add(took);
    }

    pub(super) fn stream_requested(&self) {
        self.lock().streams.requests += 1;
    }

    pub(super) fn stream_failed(&self) {
        self.lock().streams.failed += 1;
    }

    pub(super) fn stale_event(&self) {
        self.lock().streams.stale += 1;
    }

    /// Records how long after a change a client of this group has seen it.
    pub(super) fn record_change(&self, group: DemoGroup, delay: Duration) {
        let changes = &mut self.lock().changes[group as usize];
        changes.count += 1;
        changes.delays.add(delay);
    }

    pub(super) fn streams(&self) -> StreamTotals {
        self.lock().streams
    }

    /// The number of changes that clients of this group have seen, and the most recent delays.
    pub(super) fn changes(&self, group: DemoGroup) -> (u64, Option<Quantiles>) {
        let counts = self.lock();
        let Changes { count, ref delays } = counts.changes[group as usize];
        let delays = delays.clone();
        drop(counts);
        (count, delays.quantiles())
    }

    pub(super) fn purge_acknowledged(&self) {
        self.lock().totals.purges += 1;
    }

    pub(super) fn purge_refused(&self) {
        self.lock().totals.purges_refused += 1;
    }

    pub(super) fn totals(&self) -> DemoTotals {
        self.lock().totals
    }

    /// Latencies of the most recent answers from each source; `None` before the first.
    pub(super) fn latencies(&self) -> [Option<Quantiles>; 2] {
        let kept = self.lock().latencies.clone();
        kept.map(Latencies::quantiles)
    }

    fn lock(&self) -> MutexGuard<'_, DemoCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latencies {
    fn add(&mut self, took: Duration) {
        if self.0.len() == LATENCIES_KEPT {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    fn quantiles(self) -> Option<Quantiles> {
        let mut sorted = Vec::from(self.0);
        sorted.sort_unstable();
        Quantiles::of(&sorted)
    }
}

impl Quantiles {
    fn of(sorted: &[Duration]) -> Option<Self> {
        let last = sorted.len().checked_sub(1)?;
        Some(Self { p50: sorted[last / 2], p99: sorted[last * 99 / 100] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_source() {
        let figures = Figures::default();
        for ms in 1..=101 {
            let took = Duration::from_millis(ms);
            figures.record_poll(PollOutcome::Answered {
                source: AnswerSource::Cache,
                took,
                version: 1,
                stale: ms == 7,
            });
        }
        figures.record_poll(PollOutcome::Failed);
        let [p50, p99] = [51, 100].map(Duration::from_millis);
        assert_eq!(figures.latencies(), [Some(Quantiles { p50, p99 }), None]);
        let counted =
            DemoTotals { polls: 102, hits: 101, failed: 1, stale: 1, ..DemoTotals::default() };
        assert_eq!(figures.totals(), counted);
    }

    #[test]
    fn the_number_of_latencies_is_bounded() {
        let mut latencies = Latencies::default();
        for _ in 0..=LATENCIES_KEPT {
            latencies.add(Duration::ZERO);
        }
        assert_eq!(latencies.0.len(), LATENCIES_KEPT);
    }
}
