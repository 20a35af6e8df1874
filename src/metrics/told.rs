//! What is told from the counters, and what is told when one is set.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{Metrics, recent::Totals};
use crate::events::What;

impl Metrics {
    /// All requests, by what became of them.
    pub fn totals(&self) -> Totals {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            hits: self.hits.get(),
            misses: count(&self.recent.misses),
            joined: self.flights_joined.get(),
            passes: count(&self.recent.passes),
            others: count(&self.recent.others),
            writes: count(&self.recent.writes),
            errors: count(&self.recent.errors),
        }
    }

    /// The store is trusted, or not.
    pub fn store_is_up(&self, up: bool) {
        let before = self.store_up.set(up.into());
        self.events.turned(before, up.into(), (What::StoreUp, What::StoreDown));
    }

    /// Changes in the store are tracked, or not.
    pub fn tracking_is_up(&self, up: bool) {
        let before = self.tracking_up.set(up.into());
        self.events.turned(before, up.into(), (What::TrackingUp, What::TrackingDown));
    }

    /// The upstream answers, or not.
    pub fn upstream_is_up(&self, up: bool) {
        let before = self.upstream.up.set(up.into());
        self.events.turned(before, up.into(), (What::UpstreamUp, What::UpstreamDown));
    }

    /// Counts the time to the head of an answer of the upstream.
    pub fn upstream_took(&self, took: Duration) {
        self.upstream_seconds.observe(took.as_secs_f64());
        self.recent.upstream_times.observe(took, 1);
    }
}
