//! Measurements of the pollers and the pipeline.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::stats::{median, quantile};

/// The measurements, shared by all tasks.
#[derive(Debug, Default)]
pub(crate) struct Figures(Mutex<Counts>);

/// Counts since the last [`Figures::reset`], except `stale`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) polls: u64,
    /// Polls answered from the API because the store or another sidecar's fill was late.
    pub(crate) late: u64,
    /// Polls without a usable answer.
    pub(crate) failed: u64,
    /// Answers older than a purge that was acknowledged before the poll was sent; never reset.
    pub(crate) stale: u64,
    pub(crate) purges: u64,
    pub(crate) purges_refused: u64,
    pub(crate) hit: Latencies,
    pub(crate) miss: Latencies,
    pub(crate) purge: Latencies,
}

/// Latencies in milliseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Vec<f64>);

/// The source of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Cache,
    Upstream,
    /// The upstream, because the store or another sidecar's fill was late.
    Late,
}

impl Source {
    /// Reads the source from `Cache-Status`: `jobcache; hit; ttl=213` is a hit.
    pub(crate) fn of(cache_status: &str) -> Self {
        let contains =
            |word: &str| cache_status.split(';').any(|part| part.trim().starts_with(word));
        if contains("hit") {
            Self::Cache
        } else if contains("detail=store-") || contains("detail=leased") {
            Self::Late
        } else {
            Self::Upstream
        }
    }
}

impl Figures {
    /// Resets the counts after warming up.
    pub(crate) fn reset(&self) {
        let mut counts = self.lock();
        let stale = counts.stale;
        *counts = Counts { stale, ..Counts::default() };
    }

    pub(crate) fn answered(&self, source: Source, took: Duration, stale: bool) {
        let mut counts = self.lock();
        counts.polls += 1;
        counts.stale += u64::from(stale);
        counts.late += u64::from(source == Source::Late);
        match source {
            Source::Cache => counts.hit.add(took),
            Source::Upstream | Source::Late => counts.miss.add(took),
        }
    }

    pub(crate) fn failed(&self) {
        let mut counts = self.lock();
        counts.polls += 1;
        counts.failed += 1;
    }

    pub(crate) fn purged(&self, took: Duration) {
        let mut counts = self.lock();
        counts.purges += 1;
        counts.purge.add(took);
    }

    pub(crate) fn purge_refused(&self) {
        self.lock().purges_refused += 1;
    }

    /// Returns the current counts.
    pub(crate) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Latencies {
    fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1e3);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the median and the 99th percentile.
    pub(crate) fn quantiles(&self) -> Option<(f64, f64)> {
        Some((median(&self.0)?, quantile(&self.0, 0.99)?))
    }
}
