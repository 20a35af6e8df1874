//! Metrics of the entries in this process.

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::observe::metrics::{Counters, Registry};

/// The metrics of the near entries.
#[derive(Debug)]
pub struct NearMetrics {
    /// Size of the entries in this process, in bytes.
    pub bytes: Gauge,
    /// Entries in this process.
    pub entries: Gauge,
    /// Entries that left this process for lack of space.
    pub(super) evictions: Counter,
    /// Times that all entries left this process: tracking began or was lost, or all keys were
    /// dropped.
    pub(super) flushes: Counter,
    lookups: Counters<1>,
    /// The counter of hits, looked up once because most lookups are hits.
    hits: Counter,
}

impl NearMetrics {
    /// Registers the metrics.
    pub fn register(r: &mut Registry) -> Self {
        let lookups = r.counters_by(
            "outcome",
            "near_lookups",
            "Lookups in this process by outcome",
            ["miss", "evicted", "untracked", "hit"],
        );
        Self {
            hits: lookups.handle(["hit"]),
            lookups,
            bytes: r.bytes("near", "Size of the entries in this process"),
            entries: r.gauge("near_entries", "Entries in this process"),
            evictions: r
                .counter("near_evictions", "Entries that left this process for lack of space"),
            flushes: r.counter("near_flushes", "Times that all entries left this process"),
        }
    }

    /// Counts a lookup in this process by outcome.
    pub fn count_lookup(&self, outcome: &'static str) {
        if outcome == "hit" {
            self.hits.inc();
        } else {
            self.lookups.inc([outcome]);
        }
    }
}
