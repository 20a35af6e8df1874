//! Why requests were no hits: how often since the process began, and how often in the last minute.
//!
//! Once a second each count is kept, for a minute, so that what is counted pays nothing for it. Which
//! reasons there are is not known here: whoever knows says so once.

use std::{
    collections::VecDeque,
    sync::{Mutex, OnceLock, PoisonError},
};

use super::{Metrics, RequestLabels};

/// Looks that are kept: those of a minute.
const LOOKS: usize = 60;

/// How often something was the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// `miss` or `pass`.
    pub outcome: &'static str,
    /// In the words of `Cache-Status`.
    pub why: &'static str,
    /// Since the process began.
    pub life: u64,
    /// In the last minute.
    pub last_minute: u64,
}

/// What is looked at, and what stood at each second of the last minute.
#[derive(Default)]
pub(super) struct Reasons {
    labels: OnceLock<Vec<RequestLabels>>,
    looks: Mutex<VecDeque<Vec<u64>>>,
}

impl Metrics {
    /// Says which outcomes and reasons there are, once.
    pub fn watch(&self, reasons: impl Iterator<Item = (&'static str, &'static str)>) {
        let labels = reasons.map(|(outcome, reason)| RequestLabels { outcome, reason }).collect();
        let _ = self.reasons.labels.set(labels);
    }

    /// Those that there were, in the order in which they were said.
    pub fn reasons(&self) -> Vec<Reason> {
        let looks = self.reasons.looks.lock().unwrap_or_else(PoisonError::into_inner);
        // Younger than a minute: all of it was in the last one.
        let before = looks.front().filter(|_| looks.len() >= LOOKS).cloned().unwrap_or_default();
        drop(looks);
        let labels = self.reasons.labels.get().into_iter().flatten();
        let reasons = labels.enumerate().map(|(at, labels)| {
            let life = self.requests.count(labels);
            let last_minute = life.saturating_sub(before.get(at).copied().unwrap_or_default());
            Reason { outcome: labels.outcome, why: labels.reason, life, last_minute }
        });
        reasons.filter(|reason| reason.life > 0).collect()
    }

    /// To be called once a second.
    pub(super) fn look_at_reasons(&self) {
        let labels = self.reasons.labels.get().into_iter().flatten();
        let counts = labels.map(|labels| self.requests.count(labels)).collect();
        let mut looks = self.reasons.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.len() >= LOOKS {
            looks.pop_front();
        }
        looks.push_back(counts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_the_last_minute_is_told_in_all_alone() {
        let metrics = Metrics::default();
        metrics.watch([("miss", "fenced"), ("pass", "query"), ("pass", "range")].into_iter());
        let told = || -> Vec<_> {
            metrics.reasons().iter().map(|it| (it.why, it.life, it.last_minute)).collect()
        };
        metrics.request("pass", "query");
        metrics.request("miss", "fenced");
        assert_eq!(told(), [("fenced", 1, 1), ("query", 1, 1)]);
        metrics.look_at_reasons();
        metrics.request("pass", "query");
        for _ in 1..LOOKS {
            assert_eq!(told(), [("fenced", 1, 1), ("query", 2, 2)], "of less than a minute");
            metrics.look_at_reasons();
        }
        assert_eq!(told(), [("fenced", 1, 0), ("query", 2, 1)]);
        metrics.look_at_reasons();
        assert_eq!(told(), [("fenced", 1, 0), ("query", 2, 0)]);
        assert_eq!(metrics.reasons.looks.lock().unwrap().len(), LOOKS);
    }
}
