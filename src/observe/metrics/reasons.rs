//! Why requests were not hits: counts since the process started and of the last minute.
//!
//! Once a second every count is sampled, and the samples of a minute are kept, so counting itself
//! costs nothing more. The reasons are not defined here: the caller registers them once.

use std::{
    collections::VecDeque,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{Metrics, RequestLabels};

/// Samples that are kept: those of one minute.
const MAX_SAMPLES: usize = 60;

/// The counts of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// `miss` or `pass`.
    pub outcome: &'static str,
    /// The reason, in the words of `Cache-Status`.
    pub reason: &'static str,
    /// Requests since the process started.
    pub total: u64,
    /// Requests in the last minute.
    pub last_minute: u64,
}

/// The registered reasons, and their counts at each second of the last minute.
#[derive(Default)]
pub(super) struct ReasonHistory {
    labels: OnceLock<Vec<RequestLabels>>,
    samples: Mutex<VecDeque<Vec<u64>>>,
}

impl Metrics {
    /// Registers the outcomes and reasons, once.
    pub fn register_reasons(&self, reasons: impl Iterator<Item = (&'static str, &'static str)>) {
        let labels = reasons.map(|(outcome, reason)| RequestLabels { outcome, reason }).collect();
        let _ = self.reasons.labels.set(labels);
    }

    /// Returns the reasons that have occurred, in the order of registration.
    pub fn reasons(&self) -> Vec<ReasonCount> {
        let samples = self.reasons.samples.lock().unwrap_or_else(PoisonError::into_inner);
        // A process younger than a minute: all counts are of the last minute.
        let before =
            samples.front().filter(|_| samples.len() >= MAX_SAMPLES).cloned().unwrap_or_default();
        drop(samples);
        let labels = self.reasons.labels.get().into_iter().flatten();
        let reasons = labels.enumerate().map(|(index, labels)| {
            let life = self.requests.count(labels);
            let last_minute = life.saturating_sub(before.get(index).copied().unwrap_or_default());
            ReasonCount { outcome: labels.outcome, reason: labels.reason, total: life, last_minute }
        });
        reasons.filter(|reason| reason.total > 0).collect()
    }

    /// Samples the counts; called once a second.
    pub(super) fn sample_reasons(&self) {
        let labels = self.reasons.labels.get().into_iter().flatten();
        let counts = labels.map(|labels| self.requests.count(labels)).collect();
        let mut samples = self.reasons.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_the_last_minute_is_told_in_all_alone() {
        let metrics = Metrics::default();
        metrics.register_reasons(
            [("miss", "fenced"), ("pass", "query"), ("pass", "range")].into_iter(),
        );
        let counts = || -> Vec<_> {
            metrics.reasons().iter().map(|it| (it.reason, it.total, it.last_minute)).collect()
        };
        metrics.count_request("pass", "query");
        metrics.count_request("miss", "fenced");
        assert_eq!(counts(), [("fenced", 1, 1), ("query", 1, 1)]);
        metrics.sample_reasons();
        metrics.count_request("pass", "query");
        for _ in 1..MAX_SAMPLES {
            assert_eq!(counts(), [("fenced", 1, 1), ("query", 2, 2)], "of less than a minute");
            metrics.sample_reasons();
        }
        assert_eq!(counts(), [("fenced", 1, 0), ("query", 2, 1)]);
        metrics.sample_reasons();
        assert_eq!(counts(), [("fenced", 1, 0), ("query", 2, 0)]);
        assert_eq!(metrics.reasons.samples.lock().unwrap().len(), MAX_SAMPLES);
    }
}
