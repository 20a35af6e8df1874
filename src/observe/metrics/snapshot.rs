//! Totals of the counters, and the gauges that also produce an event when they change.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{Metrics, recent::RequestTotals};
use crate::observe::events::EventKind;

impl Metrics {
    /// All requests, by outcome.
    pub fn totals(&self) -> RequestTotals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestTotals {
            hits: self.hits.get(),
            misses: load(&self.recent.misses),
            joined: self.flights_joined.get(),
            passes: load(&self.recent.passes),
            others: load(&self.recent.others),
            writes: load(&self.recent.writes),
            errors: load(&self.recent.errors),
        }
    }

    /// Sets whether the store is trusted.
    pub fn set_store_up(&self, up: bool) {
        let before = self.store_up.set(up.into());
        self.events.publish_transition(
            before,
            up.into(),
            (EventKind::StoreUp, EventKind::StoreDown),
        );
    }

    /// Sets whether changes in the store are tracked.
    pub fn set_tracking_up(&self, up: bool) {
        let before = self.tracking_up.set(up.into());
        self.events.publish_transition(
            before,
            up.into(),
            (EventKind::TrackingUp, EventKind::TrackingDown),
        );
    }

    /// Sets whether the upstream answers.
    pub fn set_upstream_up(&self, up: bool) {
        let before = self.upstream.up.set(up.into());
        self.events.publish_transition(
            before,
            up.into(),
            (EventKind::UpstreamUp, EventKind::UpstreamDown),
        );
    }

    /// Records the time to the response head of the upstream.
    pub fn record_upstream_time(&self, took: Duration) {
        self.upstream_response_seconds.observe(took.as_secs_f64());
        self.recent.upstream_times.observe(took, 1);
    }
}
