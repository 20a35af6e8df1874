//! Every metric, in one struct.
//!
//! Names follow `jobcache_<noun>_<unit|total>`; labels come from enums, never from a URL or an id.

mod evidence;
mod limits;
pub mod recent;
mod told;
mod upstream;

use std::{sync::atomic::Ordering, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use self::recent::Recent;
pub use self::{
    evidence::{Evidence, Trials},
    limits::{Limit, Limits},
};
use crate::{events::Events, store::StoreError, telemetry::Counts};

/// Bounds of the latency histograms in seconds: half a millisecond to a minute.
const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// What the process counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    /// Those that were hits, looked up once: most are.
    hits: Counter,
    /// Reloads of the configuration by what became of them.
    pub reloads: Family<OutcomeLabels, Counter>,
    /// Fills by what became of them.
    pub fills: Family<OutcomeLabels, Counter>,
    /// Invalidations by source and outcome.
    pub invalidations: Family<InvalidationLabels, Counter>,
    /// Bodies in which a rule of `[[invalidate]]` did not find what it looked for.
    pub rule_misses: Family<MissLabels, Counter>,
    /// Requests answered by another request's upstream read.
    pub flights_joined: Counter,
    /// Values found under our keys that somebody else wrote.
    pub foreign_values: Counter,
    /// Invalidations that the store has not confirmed.
    pub pending: Gauge,
    /// Times that there were too many of them.
    pub pending_overflows: Counter,
    /// 1 while a trusted connection to the store stands.
    pub store_up: Gauge,
    store_seconds: Family<OpLabels, Histogram, Latency>,
    store_errors: Family<StoreErrorLabels, Counter>,
    /// Upstream exchanges by outcome.
    pub upstream_requests: Family<OutcomeLabels, Counter>,
    /// From sending a request upstream to its response head.
    pub upstream_seconds: Histogram,
    /// Upstream connections opened.
    pub upstream_connects: Counter,
    /// Changed certificates by what became of them: `applied` or `failed`.
    pub tls_reloads: Family<OutcomeLabels, Counter>,
    /// How the upstream does, and what is in use of it.
    pub upstream: upstream::Upstream,
    /// What comparisons of entries with the upstream have come to.
    pub trials: Trials,
    /// What is in use of each limit, and how often one was met.
    pub limits: Limits,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Client connections that ended in an error, by its kind.
    pub connection_errors: Family<KindLabels, Counter>,
    /// Bytes of the entries in this process.
    pub near_bytes: Gauge,
    /// Entries in this process.
    pub near_entries: Gauge,
    /// Entries that left this process for want of room.
    pub near_evictions: Counter,
    /// Times that all entries left this process: tracking began or was lost, or all keys were dropped.
    pub near_flushes: Counter,
    near_lookups: Family<OutcomeLabels, Counter>,
    near_hits: Counter,
    /// Hits in this process whose fields were not read anew; they are among the others.
    pub repeats: Counter,
    /// Rounds of the read barrier, and the lookups that waited for them.
    pub barrier_rounds: Counter,
    /// Lookups that waited for a round of the read barrier.
    pub barrier_waits: Counter,
    /// 1 while changes in the store are tracked.
    pub tracking_up: Gauge,
    /// What happened lately, beside how often: it goes wherever the counters go.
    pub events: Events,
    /// The last ten minutes, for the status page.
    pub recent: Recent,
    /// Spans for a collector by what became of them; whoever sends them counts.
    spans: Counts,
}

/// Operations of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Reads a key.
    Read,
    /// Asks for the right to fill.
    Lease,
    /// Stores an entry.
    Fill,
    /// Lets another pair use an entry.
    Admit,
    /// Puts a newer body in the place of an entry.
    Replace,
    /// Fences before a write.
    Begin,
    /// Invalidates.
    End,
}

impl Op {
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

/// Labels of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `hit`, `miss`, `pass`, `write`, `error`.
    pub outcome: &'static str,
    /// Why it was not a hit; empty where there is nothing to add.
    pub reason: &'static str,
}

/// Labels of families with one dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// What it came to.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::invalidations`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct InvalidationLabels {
    /// `write`, `write-body` (the second end of a write, when its answer has come to its end),
    /// `write-all` (by a rule, or because routes or rules have changed), `purge`, `purge-all` or
    /// `evidence` (the entry was not what the upstream answers).
    pub source: &'static str,
    /// `confirmed` or `pending`.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::rule_misses`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MissLabels {
    /// `request` or `response`.
    pub body: &'static str,
    /// `too-large`, `encoded`, `slow`, `not-json`, `not-found` or `too-many`.
    pub reason: &'static str,
}

/// Labels of [`Metrics::connection_errors`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// `malformed` and `head-too-large` (which were answered with a bare 400, 414 or 431),
    /// `timeout`, `unread` (took nothing of its answer for too long), `flood` (HTTP/2 resets,
    /// continuations and the like), `incomplete` (hung up in the middle), `tls` and `proxy-protocol`
    /// (not spoken, or not as it must be) or `broken`.
    pub kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpLabels {
    op: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreErrorLabels {
    op: &'static str,
    error: &'static str,
}

#[derive(Clone, Debug)]
struct Latency;

impl MetricConstructor<Histogram> for Latency {
    fn new_metric(&self) -> Histogram {
        Histogram::new(LATENCY_BUCKETS)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::counting(Counts::default())
    }
}

impl Metrics {
    /// With spans that somebody else counts.
    pub fn counting(spans: Counts) -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        let near_lookups = Family::<OutcomeLabels, Counter>::default();
        let mut metrics = Self {
            registry: Registry::with_prefix("jobcache"),
            hits: requests.get_or_create_owned(&RequestLabels { outcome: "hit", reason: "" }),
            requests,
            near_hits: near_lookups.get_or_create_owned(&OutcomeLabels { outcome: "hit" }),
            near_lookups,
            reloads: Family::default(),
            repeats: Counter::default(),
            fills: Family::default(),
            invalidations: Family::default(),
            rule_misses: Family::default(),
            flights_joined: Counter::default(),
            foreign_values: Counter::default(),
            pending: Gauge::default(),
            pending_overflows: Counter::default(),
            store_up: Gauge::default(),
            store_seconds: Family::new_with_constructor(Latency),
            store_errors: Family::default(),
            upstream_requests: Family::default(),
            upstream_seconds: Histogram::new(LATENCY_BUCKETS),
            upstream_connects: Counter::default(),
            tls_reloads: Family::default(),
            upstream: upstream::Upstream::default(),
            trials: Trials::default(),
            limits: Limits::default(),
            connections: Gauge::default(),
            connection_errors: Family::default(),
            near_bytes: Gauge::default(),
            near_entries: Gauge::default(),
            near_evictions: Counter::default(),
            near_flushes: Counter::default(),
            barrier_rounds: Counter::default(),
            barrier_waits: Counter::default(),
            tracking_up: Gauge::default(),
            events: Events::default(),
            recent: Recent::default(),
            spans,
        };
        metrics.register();
        metrics
    }

    /// Counts a request by what became of it and why, as in `Cache-Status`.
    pub fn request(&self, outcome: &'static str, reason: &'static str) {
        if outcome == "hit" {
            self.hits.inc();
            return;
        }
        self.requests.get_or_create(&RequestLabels { outcome, reason }).inc();
        let total = match (outcome, reason) {
            ("miss", _) => &self.recent.misses,
            ("pass", "path" | "method") => &self.recent.others,
            ("pass", _) => &self.recent.passes,
            ("write", _) => &self.recent.writes,
            _ => &self.recent.errors,
        };
        total.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a lookup in this process by what it came to.
    pub fn near_lookup(&self, outcome: &'static str) {
        if outcome == "hit" {
            self.near_hits.inc();
        } else {
            self.near_lookups.get_or_create(&OutcomeLabels { outcome }).inc();
        }
    }

    /// Counts an operation of the store, its time and its failure.
    pub fn store_op<T>(&self, op: Op, result: &Result<T, StoreError>, took: Duration) {
        let op = op.as_str();
        self.store_seconds.get_or_create(&OpLabels { op }).observe(took.as_secs_f64());
        if !matches!(result, Err(StoreError::Down)) {
            self.recent.store_times.observe(took, 1);
        }
        if let Err(error) = result {
            let error = match error {
                StoreError::Down => "down",
                StoreError::Pending => "pending",
                StoreError::Timeout | StoreError::Spent => "timeout",
                StoreError::Lost(_) => "lost",
                StoreError::Refused(_) | StoreError::Journal { .. } => "refused",
            };
            self.store_errors.get_or_create(&StoreErrorLabels { op, error }).inc();
        }
    }

    /// The text that Prometheus scrapes (`OpenMetrics` 1.0).
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "The version that runs", build);
        r.register("requests", "Requests by outcome and reason", self.requests.clone());
        r.register(
            "config_reloads",
            "Reloads of the configuration by what became of them",
            self.reloads.clone(),
        );
        r.register("spans", "Spans for a collector by what became of them", self.spans.clone());
        r.register("fills", "Fills by what became of them", self.fills.clone());
        r.register(
            "invalidations",
            "Invalidations by source and outcome",
            self.invalidations.clone(),
        );
        r.register(
            "rule_misses",
            "Bodies in which a rule of [[invalidate]] did not find what it looked for",
            self.rule_misses.clone(),
        );
        r.register(
            "flights_joined",
            "Requests answered by another request's upstream read",
            self.flights_joined.clone(),
        );
        r.register(
            "foreign_values",
            "Values found under our keys that somebody else wrote",
            self.foreign_values.clone(),
        );
        r.register(
            "pending_invalidations",
            "Invalidations that the store has not confirmed",
            self.pending.clone(),
        );
        r.register(
            "pending_overflows",
            "Times that there were too many unconfirmed invalidations",
            self.pending_overflows.clone(),
        );
        r.register("store_up", "1 while the store is trusted", self.store_up.clone());
        r.register_with_unit(
            "store_operation",
            "Time of store operations",
            Unit::Seconds,
            self.store_seconds.clone(),
        );
        r.register("store_errors", "Failed store operations", self.store_errors.clone());
        r.register(
            "upstream_requests",
            "Upstream exchanges by outcome",
            self.upstream_requests.clone(),
        );
        r.register_with_unit(
            "upstream_response",
            "Time to the upstream's response head",
            Unit::Seconds,
            self.upstream_seconds.clone(),
        );
        r.register(
            "upstream_connects",
            "Connections opened to the upstream",
            self.upstream_connects.clone(),
        );
        r.register(
            "tls_reloads",
            "Changed certificates by what became of them",
            self.tls_reloads.clone(),
        );
        r.register("connections", "Client connections that are open", self.connections.clone());
        r.register(
            "connection_errors",
            "Client connections that ended in an error, by its kind",
            self.connection_errors.clone(),
        );
        self.upstream.register(r);
        self.limits.register(r);
        self.trials.register(r);
        self.register_near();
    }

    fn register_near(&mut self) {
        let r = &mut self.registry;
        let bytes = self.near_bytes.clone();
        r.register_with_unit("near", "Entries in this process", Unit::Bytes, bytes);
        r.register("near_entries", "Entries in this process", self.near_entries.clone());
        r.register(
            "near_evictions",
            "Entries that left this process for want of room",
            self.near_evictions.clone(),
        );
        r.register(
            "near_flushes",
            "Times that all entries left this process",
            self.near_flushes.clone(),
        );
        r.register(
            "near_lookups",
            "Lookups in this process by what they came to",
            self.near_lookups.clone(),
        );
        r.register(
            "repeats",
            "Hits in this process by the fields of the request before on the same connection",
            self.repeats.clone(),
        );
        r.register(
            "barrier_rounds",
            "Rounds of the read barrier: a PING and its answer",
            self.barrier_rounds.clone(),
        );
        r.register(
            "barrier_waits",
            "Lookups that waited for a round of the read barrier",
            self.barrier_waits.clone(),
        );
        r.register(
            "tracking_up",
            "1 while changes in the store are tracked",
            self.tracking_up.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_stands_in_the_exposition() {
        let metrics = Metrics::default();
        metrics.request("hit", "");
        metrics.store_op::<()>(Op::Read, &Err(StoreError::Timeout), Duration::from_millis(50));
        let text = metrics.exposition();
        for line in [
            "jobcache_requests_total{outcome=\"hit\",reason=\"\"} 1",
            "jobcache_store_errors_total{op=\"read\",error=\"timeout\"} 1",
            "jobcache_store_operation_seconds_count{op=\"read\"} 1",
            "jobcache_store_up 0",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
