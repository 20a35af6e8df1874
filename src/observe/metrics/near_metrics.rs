//! Metrics of the entries in this process.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    counters::Counters,
    labels::{OutcomeLabels, outcomes},
};

/// The metrics of the near entries.
pub struct NearMetrics {
    /// Size of the entries in this process, in bytes.
    pub bytes: Gauge,
    /// Entries in this process.
    pub entries: Gauge,
    /// Entries that left this process for lack of space.
    pub evictions: Counter,
    /// Times that all entries left this process: tracking began or was lost, or all keys were
    /// dropped.
    pub flushes: Counter,
    lookups: Counters<OutcomeLabels>,
    /// The counter of hits, looked up once because most lookups are hits.
    hits: Counter,
    /// Hits in this process by the repeat fast path, which does not read the header fields again;
    /// the other hits include them.
    pub repeats: Counter,
}

impl Default for NearMetrics {
    fn default() -> Self {
        let lookups = outcomes(["miss", "evicted", "untracked", "hit"]);
        Self {
            bytes: Gauge::default(),
            entries: Gauge::default(),
            evictions: Counter::default(),
            flushes: Counter::default(),
            hits: lookups.handle(OutcomeLabels { outcome: "hit" }),
            lookups,
            repeats: Counter::default(),
        }
    }
}

impl NearMetrics {
    /// Counts a lookup in this process by outcome.
    pub fn lookup(&self, outcome: &'static str) {
        if outcome == "hit" {
            self.hits.inc();
        } else {
            self.lookups.inc(OutcomeLabels { outcome });
        }
    }

    pub(super) fn register(&self, r: &mut Registry) {
        let bytes = self.bytes.clone();
        let evictions = self.evictions.clone();
        r.register_with_unit("near", "Size of the entries in this process", Unit::Bytes, bytes);
        r.register("near_entries", "Entries in this process", self.entries.clone());
        r.register("near_evictions", "Entries that left this process for lack of space", evictions);
        r.register(
            "near_flushes",
            "Times that all entries left this process",
            self.flushes.clone(),
        );
        r.register("near_lookups", "Lookups in this process by outcome", self.lookups.family());
        r.register(
            "repeats",
            "Hits in this process by the header fields of the previous request on the connection",
            self.repeats.clone(),
        );
    }
}
