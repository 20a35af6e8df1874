//! Why requests were not hits: counts since the process started and of the last minute.
//!
//! Once a second every count is sampled, and the samples of a minute are kept, so counting itself
//! costs nothing more.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use crate::{
    proxy::metrics::RequestMetrics,
    semantics::policy::{Bypass, NoStore},
};

/// Samples that are kept: those of one minute.
const MAX_SAMPLES: usize = 60;

/// The counts of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReasonCount {
    /// `miss` or `pass`.
    pub(super) outcome: &'static str,
    /// The reason, in the words of `Cache-Status`.
    pub(super) reason: &'static str,
    /// Requests since the process started.
    pub(super) total: u64,
    /// Requests in the last minute.
    pub(super) last_minute: u64,
}

/// All reasons, and their counts at each second of the last minute.
pub(super) struct ReasonHistory {
    reasons: Vec<(&'static str, &'static str)>,
    samples: Mutex<VecDeque<Vec<u64>>>,
}

impl Default for ReasonHistory {
    fn default() -> Self {
        Self { reasons: outcome_reasons().collect(), samples: Mutex::default() }
    }
}

impl ReasonHistory {
    /// Returns the reasons that have occurred.
    pub(super) fn counts(&self, requests: &RequestMetrics) -> Vec<ReasonCount> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        // A process younger than a minute: all counts are of the last minute.
        let before =
            samples.front().filter(|_| samples.len() >= MAX_SAMPLES).cloned().unwrap_or_default();
        drop(samples);
        let reasons = self.reasons.iter().enumerate().map(|(index, &(outcome, reason))| {
            let total = requests.of_reason(outcome, reason);
            let last_minute = total.saturating_sub(before.get(index).copied().unwrap_or_default());
            ReasonCount { outcome, reason, total, last_minute }
        });
        reasons.filter(|reason| reason.total > 0).collect()
    }

    /// Samples the counts; called once a second.
    pub(super) fn sample(&self, requests: &RequestMetrics) {
        let count = |&(outcome, reason): &_| requests.of_reason(outcome, reason);
        let counts = self.reasons.iter().map(count).collect();
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= MAX_SAMPLES {
            samples.pop_front();
        }
        samples.push_back(counts);
    }
}

/// Returns all pairs of an outcome and a reason.
fn outcome_reasons() -> impl Iterator<Item = (&'static str, &'static str)> {
    let bypass = || Bypass::ALL.iter().map(|why| why.as_str());
    // A word that is both a bypass and a no-store reason is listed once.
    let no_store = NoStore::ALL.iter().map(|why| why.as_str());
    let no_store = no_store.filter(move |why| bypass().all(|other| other != *why));
    let miss = bypass().chain(no_store).map(|why| ("miss", why));
    miss.chain(bypass().map(|why| ("pass", why)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observe::metrics::Registry, proxy::metrics::ProxyMetrics};

    #[test]
    fn what_was_before_the_last_minute_is_told_in_all_alone() {
        let ProxyMetrics { requests, .. } = ProxyMetrics::register(&mut Registry::default());
        let history = ReasonHistory::default();
        let counts = || -> Vec<_> {
            let counts = history.counts(&requests);
            counts.iter().map(|it| (it.reason, it.total, it.last_minute)).collect()
        };
        requests.count("pass", "query");
        requests.count("miss", "fenced");
        assert_eq!(counts(), [("fenced", 1, 1), ("query", 1, 1)]);
        history.sample(&requests);
        requests.count("pass", "query");
        for _ in 1..MAX_SAMPLES {
            assert_eq!(counts(), [("fenced", 1, 1), ("query", 2, 2)], "of less than a minute");
            history.sample(&requests);
        }
        assert_eq!(counts(), [("fenced", 1, 0), ("query", 2, 1)]);
        history.sample(&requests);
        assert_eq!(counts(), [("fenced", 1, 0), ("query", 2, 0)]);
        assert_eq!(history.samples.lock().unwrap().len(), MAX_SAMPLES);
    }
}
