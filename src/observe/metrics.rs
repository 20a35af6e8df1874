//! Every metric, in one struct.
//!
//! Names follow `jobcache_<noun>_<unit|total>`; labels come from enums, never from a URL or an id.
//! Process metrics have their conventional names (`process_...`). A family starts with its known
//! labels at zero: a series that first appears above zero does not look like an increase.
//!
//! `docs/metrics.md` says for each metric what to do about it.

mod cluster_metrics;
mod comparison_metrics;
mod counters;
mod labels;
mod limit_metrics;
mod near_metrics;
mod process;
mod reasons;
pub mod recent;
mod runtime;
mod sample;
mod snapshot;
mod store_metrics;
mod upstream_metrics;
mod warm_metrics;
mod webhook_metrics;

use std::{fmt, iter, sync::atomic::Ordering, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

pub use self::{
    comparison_metrics::{ComparisonMetrics, ComparisonResult},
    labels::{
        InvalidationLabels, KindLabels, MissLabels, OutcomeLabels, RequestLabels, SpanCounts,
    },
    limit_metrics::{Limit, LimitMetrics},
    reasons::ReasonCount,
    store_metrics::{BreakerMetrics, StoreErrorLabel, StoreOp},
    webhook_metrics::WebhookRefusal,
};
use self::{
    counters::Counters, labels::outcomes, process::ProcessCollector, reasons::ReasonHistory,
    recent::Recent, runtime::RuntimeCollector, store_metrics::StoreOperations,
};
use crate::observe::events::Events;

/// Bucket bounds of upstream times, in seconds: half a millisecond to a minute.
const UPSTREAM_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// Bucket bounds of rounds of the read barrier, in seconds. A round is a round trip to Redis and
/// nothing else.
const ROUND_BUCKETS: [f64; 11] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.25];

/// The metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: Counters<RequestLabels>,
    /// The counter of hits, looked up once because most requests are hits.
    hits: Counter,
    /// Reloads of the configuration by outcome.
    pub reloads: Family<OutcomeLabels, Counter>,
    /// Fills by outcome.
    pub fills: Counters<OutcomeLabels>,
    /// Invalidations by source and outcome.
    pub invalidations: Family<InvalidationLabels, Counter>,
    /// Bodies in which a rule of `[[invalidate]]` did not find the ids it looked for.
    pub rule_misses: Family<MissLabels, Counter>,
    /// Writes that dropped every job because a rule of `[[invalidate]]` missed some.
    pub rule_fallbacks: Counter,
    /// Writes at the jobs that named no job and matched no rule.
    pub unclaimed_writes: Counter,
    /// Requests answered by the upstream read of another request.
    pub flights_joined: Counter,
    /// Values under jobcache keys that another program wrote.
    pub foreign_values: Counter,
    /// Jobs that had changed after their TTL although no change was reported.
    pub silent_changes: Counter,
    /// Invalidations that the store has not confirmed.
    pub pending_invalidations: Gauge,
    /// How often there were too many of them, so that whole slots became pending.
    pub pending_overflows: Counter,
    /// 1 while there is a trusted connection to the store.
    pub store_up: Gauge,
    /// The masters of a Redis Cluster.
    pub cluster: cluster_metrics::ClusterMetrics,
    /// Whether requests ask the store.
    pub breaker: BreakerMetrics,
    operations: StoreOperations,
    /// Upstream exchanges by outcome.
    pub upstream_requests: Counters<OutcomeLabels>,
    /// Time to the upstream's response head, including the wait for a connection.
    pub upstream_response_seconds: Histogram,
    /// Connections opened to the upstream.
    pub upstream_connects: Counter,
    /// Changed certificates by outcome: `applied` or `failed`.
    pub tls_reloads: Family<OutcomeLabels, Counter>,
    /// State of the upstream, and its connections.
    pub upstream: upstream_metrics::UpstreamMetrics,
    /// Results of comparisons of entries with the upstream.
    pub comparisons: ComparisonMetrics,
    /// How much of each limit is in use, and how often each was reached.
    pub limits: LimitMetrics,
    /// Cache warming.
    pub warm: warm_metrics::WarmMetrics,
    /// Calls that need the webhook secret, and purges.
    pub webhook: webhook_metrics::WebhookMetrics,
    /// Open client connections.
    pub connections: Gauge,
    /// Client connections that ended with an error, by kind.
    pub connection_errors: Family<KindLabels, Counter>,
    /// Near entries.
    pub near: near_metrics::NearMetrics,
    /// Rounds of the read barrier that began.
    pub barrier_rounds: Counter,
    /// Time of an answered round of the read barrier. A lookup waits for at most two: the round
    /// under way and its own.
    pub barrier_round_seconds: Histogram,
    /// Lookups that waited for a round of the read barrier.
    pub barrier_waits: Counter,
    /// 1 while changes in the store are tracked.
    pub tracking_up: Gauge,
    /// Names of changed keys that the store reported.
    pub tracking_news: Counter,
    /// Recent events. They are kept here because every part that counts can reach them here.
    pub events: Events,
    /// Counts of the last ten minutes, for the status page.
    pub recent: Recent,
    /// Recent reasons why requests were not hits.
    reasons: ReasonHistory,
    /// Spans for a collector by outcome. The exporter counts them.
    spans: SpanCounts,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("store_up", &self.store_up.get())
            .field("pending", &self.pending_invalidations.get())
            .finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::with_span_counts(SpanCounts::default())
    }
}

impl Metrics {
    /// Creates the metrics with a family of span counts that the exporter updates.
    pub fn with_span_counts(spans: SpanCounts) -> Self {
        let requests = labels::requests();
        let mut metrics = Self {
            registry: Registry::default(),
            hits: requests.handle(RequestLabels { outcome: "hit", reason: "" }),
            requests,
            reloads: Family::default(),
            fills: outcomes(["stored", "revoked", "failed"]),
            invalidations: labels::invalidations(),
            rule_misses: labels::rule_misses(),
            rule_fallbacks: Counter::default(),
            unclaimed_writes: Counter::default(),
            flights_joined: Counter::default(),
            foreign_values: Counter::default(),
            silent_changes: Counter::default(),
            pending_invalidations: Gauge::default(),
            pending_overflows: Counter::default(),
            store_up: Gauge::default(),
            cluster: cluster_metrics::ClusterMetrics::default(),
            breaker: BreakerMetrics::default(),
            operations: StoreOperations::default(),
            upstream_requests: outcomes(["answered"]),
            upstream_response_seconds: Histogram::new(UPSTREAM_BUCKETS),
            upstream_connects: Counter::default(),
            tls_reloads: outcomes(["applied", "failed"]).family(),
            upstream: upstream_metrics::UpstreamMetrics::default(),
            comparisons: ComparisonMetrics::default(),
            limits: LimitMetrics::default(),
            warm: warm_metrics::WarmMetrics::default(),
            webhook: webhook_metrics::WebhookMetrics::default(),
            connections: Gauge::default(),
            connection_errors: labels::connection_errors(),
            near: near_metrics::NearMetrics::default(),
            barrier_rounds: Counter::default(),
            barrier_round_seconds: Histogram::new(ROUND_BUCKETS),
            barrier_waits: Counter::default(),
            tracking_up: Gauge::default(),
            tracking_news: Counter::default(),
            events: Events::default(),
            recent: Recent::default(),
            reasons: ReasonHistory::default(),
            spans,
        };
        metrics.register();
        metrics
    }

    /// Counts a request by its outcome and reason, in the words of `Cache-Status`.
    pub fn count_request(&self, outcome: &'static str, reason: &'static str) {
        if outcome == "hit" {
            self.hits.inc();
            return;
        }
        self.requests.inc(RequestLabels { outcome, reason });
        let total = match (outcome, reason) {
            ("miss", _) => &self.recent.misses,
            ("pass", "path" | "method" | "upgrade") => &self.recent.others,
            ("pass", _) => &self.recent.passes,
            ("write", _) => &self.recent.writes,
            _ => &self.recent.errors,
        };
        total.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an operation of the store, its time and its error.
    pub fn record_store_op<T, E: StoreErrorLabel>(
        &self,
        op: StoreOp,
        result: &Result<T, E>,
        took: Duration,
    ) {
        self.operations.count(op, result, took);
        if result.as_ref().err().is_none_or(|error| error.label() != "down") {
            self.recent.store_times.observe(took, 1);
        }
    }

    /// Returns the text that Prometheus scrapes (`OpenMetrics` 1.0).
    pub fn exposition(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn register(&mut self) {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector::default()));
        self.register_ours(registry.sub_registry_with_prefix("jobcache"));
        self.registry = registry;
    }

    fn register_ours(&self, r: &mut Registry) {
        r.register("build", "The running build", Info::new(build_labels()));
        self.register_requests(r);
        r.register(
            "config_reloads",
            "Reloads of the configuration by outcome",
            self.reloads.clone(),
        );
        r.register("spans", "Spans for a collector by outcome", self.spans.clone());
        self.register_invalidations(r);
        r.register(
            "store_up",
            "1 while there is a trusted connection to the store",
            self.store_up.clone(),
        );
        self.cluster.register(r);
        self.breaker.register(r);
        self.operations.register(r);
        self.register_upstream(r);
        r.register("tls_reloads", "Changed certificates by outcome", self.tls_reloads.clone());
        r.register("connections", "Open client connections", self.connections.clone());
        r.register(
            "connection_errors",
            "Client connections that ended with an error, by kind",
            self.connection_errors.clone(),
        );
        self.limits.register(r);
        self.comparisons.register(r);
        self.warm.register(r);
        self.webhook.register(r);
        self.near.register(r);
        self.register_barrier(r);
        r.register_collector(Box::new(RuntimeCollector));
    }

    fn register_requests(&self, r: &mut Registry) {
        r.register("requests", "Requests by outcome and reason", self.requests.family());
        r.register("fills", "Fills by outcome", self.fills.family());
        r.register(
            "flights_joined",
            "Requests answered by the upstream read of another request",
            self.flights_joined.clone(),
        );
        r.register(
            "foreign_values",
            "Values under jobcache keys that another program wrote",
            self.foreign_values.clone(),
        );
        r.register(
            "silent_changes",
            "Jobs that had changed after their TTL although no write, purge or DEL was seen",
            self.silent_changes.clone(),
        );
    }

    fn register_invalidations(&self, r: &mut Registry) {
        r.register(
            "invalidations",
            "Invalidations by source and outcome",
            self.invalidations.clone(),
        );
        r.register(
            "rule_misses",
            "Bodies in which a rule of [[invalidate]] did not find the ids it looked for",
            self.rule_misses.clone(),
        );
        r.register(
            "rule_fallbacks",
            "Writes that dropped every job because a rule of [[invalidate]] did not find all",
            self.rule_fallbacks.clone(),
        );
        r.register(
            "unclaimed_writes",
            "Successful writes at the jobs that named no job and matched no rule",
            self.unclaimed_writes.clone(),
        );
        r.register(
            "pending_invalidations",
            "Invalidations that the store has not confirmed",
            self.pending_invalidations.clone(),
        );
        r.register(
            "pending_overflows",
            "Times that whole slots became pending, because too many invalidations were",
            self.pending_overflows.clone(),
        );
    }

    fn register_upstream(&self, r: &mut Registry) {
        r.register(
            "upstream_requests",
            "Upstream exchanges by outcome",
            self.upstream_requests.family(),
        );
        r.register_with_unit(
            "upstream_response",
            "Time to the upstream's response head, including the wait for a connection",
            Unit::Seconds,
            self.upstream_response_seconds.clone(),
        );
        r.register(
            "upstream_connects",
            "Connections opened to the upstream",
            self.upstream_connects.clone(),
        );
        self.upstream.register(r);
    }

    fn register_barrier(&self, r: &mut Registry) {
        r.register(
            "barrier_rounds",
            "Rounds of the read barrier, each a PING and its reply",
            self.barrier_rounds.clone(),
        );
        r.register_with_unit(
            "barrier_round",
            "Time of a round of the read barrier",
            Unit::Seconds,
            self.barrier_round_seconds.clone(),
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
        r.register(
            "tracking_news",
            "Names of changed keys that the store reported",
            self.tracking_news.clone(),
        );
    }
}

/// Labels of the build: the version and, if the build had `JOBCACHE_COMMIT` set, the commit.
fn build_labels() -> Vec<(&'static str, &'static str)> {
    let commit = option_env!("JOBCACHE_COMMIT").filter(|commit| !commit.is_empty());
    let version = ("version", env!("CARGO_PKG_VERSION"));
    iter::once(version).chain(commit.map(|commit| ("commit", commit))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn what_was_counted_stands_in_the_exposition() {
        let metrics = Metrics::default();
        metrics.count_request("hit", "");
        metrics.record_store_op::<(), _>(
            StoreOp::Read,
            &Err(StoreError::Timeout),
            Duration::from_millis(50),
        );
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
