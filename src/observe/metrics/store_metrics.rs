//! Metrics of store operations, and of the breaker that keeps requests from a store that is down.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::counters::zeros;

/// Bucket bounds in seconds: from a round trip on one machine, over the budget of a request (50
/// ms), to times that no request waits for.
const BUCKETS: [f64; 13] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// The names of the errors.
const ERRORS: [&str; 6] = ["down", "pending", "timeout", "lost", "refused", "redirected"];
/// The errors that open the breaker; `redirected` comes from a cluster that is down.
const FATAL: [&str; 4] = ["timeout", "lost", "refused", "redirected"];

/// An error of the store, as far as metrics tell errors apart.
pub trait StoreErrorLabel {
    /// Returns the label.
    fn label(&self) -> &'static str;
}

/// Operations of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreOp {
    /// Reads a key.
    Read,
    /// Asks for a lease.
    Lease,
    /// Stores an entry.
    Fill,
    /// Lets another caller use an entry.
    Admit,
    /// Replaces the body of an entry with a newer one.
    Replace,
    /// Fences a job before a write.
    Begin,
    /// Invalidates.
    End,
}

impl StoreOp {
    /// Every operation, in the order of declaration.
    const ALL: [Self; 7] =
        [Self::Read, Self::Lease, Self::Fill, Self::Admit, Self::Replace, Self::Begin, Self::End];

    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Lease => "lease",
            Self::Fill => "fill",
            Self::Admit => "admit",
            Self::Replace => "replace",
            Self::Begin => "begin",
            Self::End => "end",
        }
    }
}

/// Times and errors of store operations.
pub(super) struct StoreOperations {
    seconds: Family<OpLabels, Histogram, fn() -> Histogram>,
    /// The histograms of the family, looked up once.
    histograms: [Histogram; StoreOp::ALL.len()],
    errors: Family<ErrorLabels, Counter>,
}

/// Whether requests ask the store.
pub struct BreakerMetrics {
    open: Gauge,
    openings: Family<OpeningLabels, Counter>,
    failures: Family<OpeningLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    op: &'static str,
    error: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpeningLabels {
    error: &'static str,
}

impl Default for StoreOperations {
    fn default() -> Self {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let seconds = Family::new_with_constructor(new);
        let labels = |op: StoreOp| OpLabels { op: op.as_str() };
        let histograms = StoreOp::ALL.map(|op| seconds.get_or_create_owned(&labels(op)));
        let errors = zeros(
            StoreOp::ALL
                .into_iter()
                .flat_map(|op| ERRORS.map(|error| ErrorLabels { op: op.as_str(), error })),
        );
        Self { seconds, histograms, errors }
    }
}

impl StoreOperations {
    /// Counts an operation, its time and its error.
    pub(super) fn count<T, E: StoreErrorLabel>(
        &self,
        op: StoreOp,
        result: &Result<T, E>,
        took: Duration,
    ) {
        // `ALL` is in the order of declaration.
        self.histograms[op as usize].observe(took.as_secs_f64());
        if let Err(error) = result {
            let labels = ErrorLabels { op: op.as_str(), error: error.label() };
            self.errors.get_or_create(&labels).inc();
        }
    }

    pub(super) fn register(&self, r: &mut Registry) {
        let seconds = self.seconds.clone();
        r.register_with_unit("store_operation", "Time of store operations", Unit::Seconds, seconds);
        r.register("store_errors", "Failed store operations, by error", self.errors.clone());
    }
}

impl Default for BreakerMetrics {
    /// Open, because nothing is known about the store yet.
    fn default() -> Self {
        let openings = zeros(FATAL.map(|error| OpeningLabels { error }));
        let failures = zeros(FATAL.into_iter().chain(["tls"]).map(|error| OpeningLabels { error }));
        let breaker = Self { open: Gauge::default(), openings, failures };
        breaker.open.set(1);
        breaker
    }
}

impl BreakerMetrics {
    /// Records that the store is trusted.
    pub fn close(&self) {
        self.open.set(0);
    }

    /// Records that the store, or a part of it, is not trusted.
    pub fn hold_open(&self) {
        self.open.set(1);
    }

    /// Records that the store was trusted and was lost.
    pub fn open(&self, error: &impl StoreErrorLabel) {
        self.open.set(1);
        self.openings.get_or_create(&OpeningLabels { error: error.label() }).inc();
    }

    /// Records that a connection could not be made, or that the store is not what it should be.
    pub fn fail(&self, error: &impl StoreErrorLabel) {
        self.failures.get_or_create(&OpeningLabels { error: error.label() }).inc();
    }

    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "store_connect_failures",
            "Failed connections to the store, by error",
            self.failures.clone(),
        );
        r.register(
            "breaker_open",
            "1 while requests do not ask the store, because it is down",
            self.open.clone(),
        );
        r.register(
            "breaker_openings",
            "Times that the store was trusted and then lost, by error",
            self.openings.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn an_operation_is_timed_under_its_own_name() {
        let operations = StoreOperations::default();
        for op in StoreOp::ALL {
            operations.count::<(), _>(op, &Err(StoreError::Timeout), Duration::ZERO);
            let labels = ErrorLabels { op: op.as_str(), error: "timeout" };
            assert_eq!(operations.errors.get_or_create(&labels).get(), 1, "{op:?}");
            let seconds = operations.seconds.get_or_create(&OpLabels { op: op.as_str() });
            assert!(format!("{:?}", *seconds).contains("count: 1,"), "{op:?}: {seconds:?}");
        }
    }
}
