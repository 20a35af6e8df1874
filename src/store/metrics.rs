//! Metrics of the store: its operations, pending invalidations, and the breaker that keeps requests
//! from a store that is down. Also those of near entries, of tracking with the read barrier, and of
//! the masters of a Redis Cluster.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Unit,
};

use super::{Redirect, StoreError, errors::StoreErrorKind};
use crate::{
    observe::{
        events::{EventKind, Events},
        metrics::{Counters, RecentTimes, Registry},
    },
    semantics::labels::labels,
    tls::TlsMetrics,
};

/// Bucket bounds in seconds: from a round trip on one machine, over the budget of a request (50
/// ms), to times that no request waits for.
const BUCKETS: [f64; 13] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// The errors that open the breaker; `Redirected` comes from a cluster that is down.
const FATAL: [StoreErrorKind; 4] = [
    StoreErrorKind::Timeout,
    StoreErrorKind::Lost,
    StoreErrorKind::Refused,
    StoreErrorKind::Redirected,
];

labels! {
    /// Operations of the store.
    pub(crate) enum StoreOp {
        /// Reads a key.
        Read = "read",
        /// Asks for a lease.
        Lease = "lease",
        /// Stores an entry.
        Fill = "fill",
        /// Lets another caller use an entry.
        Admit = "admit",
        /// Replaces the body of an entry with a newer one.
        Replace = "replace",
        /// Fences a job before a write.
        Begin = "begin",
        /// Invalidates.
        End = "end",
    }
}

/// The metrics of the store.
pub(crate) struct StoreMetrics {
    /// 1 while there is a trusted connection to the store.
    up: Gauge,
    /// Invalidations that the store has not confirmed.
    pub(super) pending: Gauge,
    /// How often there were too many of them, so that whole slots became pending.
    pub(super) pending_overflows: Counter,
    pub(crate) operations: OperationMetrics,
    /// 1 while reads do not ask the store.
    breaker_open: Gauge,
    breaker_openings: Counters<1>,
    connect_failures: Counters<1>,
    /// Changes in the store, and the read barrier.
    pub(crate) tracking: TrackingMetrics,
    /// The masters of a Redis Cluster.
    pub(super) cluster: ClusterMetrics,
    pub(super) tls: TlsMetrics,
}

/// Times and errors of store operations.
pub(crate) struct OperationMetrics {
    /// The histograms of a family, looked up once.
    seconds: [Histogram; StoreOp::WORDS.len()],
    errors: Counters<2>,
    pub(crate) recent: Arc<RecentTimes>,
}

impl StoreMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        let metrics = Self {
            up: r.gauge("store_up", "1 while there is a trusted connection to the store"),
            pending: r
                .gauge("pending_invalidations", "Invalidations that the store has not confirmed"),
            pending_overflows: r.counter(
                "pending_overflows",
                "Times that whole slots became pending, because too many invalidations were",
            ),
            operations: OperationMetrics::register(r),
            connect_failures: r.counters_by(
                "error",
                "store_connect_failures",
                "Failed connections to the store, by error",
                FATAL.into_iter().chain([StoreErrorKind::Tls]).map(StoreErrorKind::as_str),
            ),
            breaker_open: r.gauge(
                "breaker_open",
                "1 while reads do not ask the store: it is down or too far away",
            ),
            breaker_openings: r.counters_by(
                "error",
                "breaker_openings",
                "Times that the store was trusted and then lost, by error",
                FATAL.map(StoreErrorKind::as_str),
            ),
            tracking: TrackingMetrics::register(r),
            cluster: ClusterMetrics::register(r),
            tls: TlsMetrics::shared(r),
        };
        // Nothing is known about the store yet.
        metrics.breaker_open.set(1);
        metrics
    }

    pub(super) fn is_breaker_open(&self) -> bool {
        self.breaker_open.get() == 1
    }

    /// Sets whether the whole store is trusted, and whether reads pass because it is too far away.
    pub(super) fn set_up(&self, is_up: bool, is_far: bool, events: &Events) {
        events.set_state(&self.up, is_up, (EventKind::StoreUp, EventKind::StoreDown));
        self.breaker_open.set((!is_up || is_far).into());
    }

    /// Records that the store was trusted and was lost.
    pub(super) fn open_breaker(&self, error: &StoreError) {
        self.breaker_open.set(1);
        self.breaker_openings.inc([error.kind().as_str()]);
    }

    /// Records that a connection could not be made, or that the store is not what it should be.
    pub(super) fn fail_to_connect(&self, error: &StoreError) {
        self.connect_failures.inc([error.kind().as_str()]);
    }
}

impl OperationMetrics {
    fn register(r: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS);
        let seconds = Family::new_with_constructor(new);
        let seconds =
            r.add_with_unit("store_operation", "Time of store operations", Unit::Seconds, seconds);
        let errors = StoreOp::WORDS.map(|op| StoreErrorKind::WORDS.map(|error| [op, error]));
        Self {
            seconds: StoreOp::WORDS.map(|op| seconds.get_or_create_owned(&[("op", op)])),
            errors: r.counters(
                "store_errors",
                "Failed store operations, by error",
                ["op", "error"],
                errors.into_iter().flatten(),
            ),
            recent: Arc::default(),
        }
    }

    /// Counts an operation, its time and its error.
    pub(super) fn record<T>(&self, op: StoreOp, result: &Result<T, StoreError>, took: Duration) {
        self.seconds[op as usize].observe(took.as_secs_f64());
        if let Err(error) = result {
            self.errors.inc([op.as_str(), error.kind().as_str()]);
        }
        if !matches!(result, Err(StoreError::Down)) {
            self.recent.observe(took, 1);
        }
    }
}

labels! {
    /// Why there is no near hit.
    pub enum NearMiss {
        /// Near entries were not looked at: there are none, or the store is not trusted for the key.
        Unasked = "unasked",
        /// There is no entry that is a hit for the request.
        NoEntry = "miss",
        /// The barrier is down, so changes are not known here.
        Untracked = "untracked",
        /// The entry was changed while the request waited for the barrier.
        Evicted = "evicted",
    }
}

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
        let misses = NearMiss::ALL.into_iter().filter(|miss| *miss != NearMiss::Unasked);
        let lookups = r.counters_by(
            "outcome",
            "near_lookups",
            "Lookups in this process by outcome",
            misses.map(NearMiss::as_str).chain(["hit"]),
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

/// Bucket bounds of rounds of the read barrier, in seconds. A round is a round trip to Redis and
/// nothing else.
const ROUND_BUCKETS: [f64; 11] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.25];

/// The metrics of tracking.
pub(crate) struct TrackingMetrics {
    /// 1 while changes in the store are tracked.
    pub(crate) up: Gauge,
    /// Names of changed keys that the store reported.
    pub(super) news: Counter,
    /// Rounds of the read barrier that began.
    pub(super) rounds: Counter,
    /// Time of an answered round of the read barrier. A lookup waits for at most two: the round
    /// under way and its own.
    pub(super) round_seconds: Histogram,
    /// Lookups that waited for a round of the read barrier.
    pub(super) waits: Counter,
}

impl TrackingMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        Self {
            rounds: r
                .counter("barrier_rounds", "Rounds of the read barrier, each a PING and its reply"),
            round_seconds: r.seconds(
                "barrier_round",
                "Time of a round of the read barrier",
                ROUND_BUCKETS,
            ),
            waits: r
                .counter("barrier_waits", "Lookups that waited for a round of the read barrier"),
            up: r.gauge("tracking_up", "1 while changes in the store are tracked"),
            news: r.counter("tracking_news", "Names of changed keys that the store reported"),
        }
    }
}

/// The metrics of a Redis Cluster; all zero for any other store.
pub(crate) struct ClusterMetrics {
    up: Gauge,
    down: Gauge,
    /// Slots that no master owns.
    unowned: Gauge,
    pub(crate) redirections: Counters<1>,
    /// Times that the slot map was refreshed.
    pub(super) refreshes: Counter,
}

impl ClusterMetrics {
    pub(crate) fn register(r: &mut Registry) -> Self {
        let shards = r.add(
            "store_shards",
            "Masters of the Redis Cluster by whether they are trusted",
            Family::<[(&str, &str); 1], Gauge>::default(),
        );
        let shards = |state| shards.get_or_create_owned(&[("state", state)]);
        Self {
            up: shards("up"),
            down: shards("down"),
            unowned: r
                .gauge("store_slots_unowned", "Slots of the Redis Cluster that no master owns"),
            redirections: r.counters_by(
                "kind",
                "store_redirections",
                "Operations that a node of the Redis Cluster redirected, by kind",
                Redirect::WORDS,
            ),
            refreshes: r.counter(
                "store_topology_refreshes",
                "Times that the slot map of the Redis Cluster was refreshed",
            ),
        }
    }

    /// Sets the numbers of trusted masters, of other masters, and of slots without a master.
    pub(crate) fn set_shards(&self, up: usize, down: usize, unowned: usize) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.up.set(number(up));
        self.down.set(number(down));
        self.unowned.set(number(unowned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_timed_under_its_own_name() {
        let mut registry = Registry::default();
        let operations = OperationMetrics::register(&mut registry);
        for op in StoreOp::ALL {
            operations.record::<()>(op, &Err(StoreError::Timeout), Duration::ZERO);
            let text = registry.exposition();
            let name = op.as_str();
            for line in [
                format!("jobcache_store_errors_total{{op=\"{name}\",error=\"timeout\"}} 1"),
                format!("jobcache_store_operation_seconds_count{{op=\"{name}\"}} 1"),
            ] {
                assert!(text.contains(&line), "{line} is missing in\n{text}");
            }
        }
    }
}
