//! Entries in this process.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    counters::Counters,
    labels::{OutcomeLabels, outcomes},
};

/// The metrics of the near layer.
pub struct Near {
    /// Bytes of the entries in this process.
    pub bytes: Gauge,
    /// Entries in this process.
    pub entries: Gauge,
    /// Entries that left this process for want of room.
    pub evictions: Counter,
    /// Times that all entries left this process: tracking began or was lost, or all keys were dropped.
    pub flushes: Counter,
    lookups: Counters<OutcomeLabels>,
    /// Those that were hits, looked up once: most are.
    hits: Counter,
    /// Hits in this process whose fields were not read anew; they are among the others.
    pub repeats: Counter,
}

impl Default for Near {
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

impl Near {
    /// Counts a lookup in this process by what it came to.
    pub fn lookup(&self, outcome: &'static str) {
        if outcome == "hit" {
            self.hits.inc();
        } else {
            self.lookups.inc(OutcomeLabels { outcome });
        }
    }

    pub(super) fn register(&self, r: &mut Registry) {
        let (bytes, evictions) = (self.bytes.clone(), self.evictions.clone());
        r.register_with_unit("near", "Entries in this process", Unit::Bytes, bytes);
        r.register("near_entries", "Entries in this process", self.entries.clone());
        r.register("near_evictions", "Entries that left this process for want of room", evictions);
        r.register(
            "near_flushes",
            "Times that all entries left this process",
            self.flushes.clone(),
        );
        r.register(
            "near_lookups",
            "Lookups in this process by what they came to",
            self.lookups.family(),
        );
        r.register(
            "repeats",
            "Hits in this process by the fields of the request before on the same connection",
            self.repeats.clone(),
        );
    }
}
