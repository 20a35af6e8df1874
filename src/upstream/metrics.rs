//! Metrics of the exchanges with the upstream, of its state and of its connections.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use crate::{
    limits::LimitHits,
    observe::metrics::{Counters, RecentTimes, Registry},
};

/// Bucket bounds of upstream times, in seconds: half a millisecond to a minute.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The metrics of the upstream.
#[derive(Debug)]
pub(crate) struct UpstreamMetrics {
    pub(super) requests: Counters<1>,
    /// Time to the response head, including the wait for a connection.
    response_seconds: Histogram,
    pub(crate) recent: Arc<RecentTimes>,
    pub(super) retries: Counter,
    /// 0 while the last three exchanges or more got no response, else 1.
    pub(crate) up: Gauge,
    pub(crate) connections: ConnectionMetrics,
    pub(super) limits: Arc<LimitHits>,
}

/// The metrics of its connections.
#[derive(Debug)]
pub(crate) struct ConnectionMetrics {
    /// Connections that were opened.
    pub(super) opened: Counter,
    /// Connections in use, including those of upgrades.
    pub(crate) in_use: Gauge,
    /// Requests that wait for a connection.
    pub(crate) waiting: Gauge,
    /// Idle connections.
    pub(crate) idle: Gauge,
    /// Connections that belong to one client connection, in use or idle.
    pub(super) bound: Gauge,
    /// Logins that found too many bound connections.
    pub(super) binds_refused: Counter,
}

impl UpstreamMetrics {
    pub(super) fn register(r: &mut Registry) -> Self {
        let metrics = Self {
            requests: r.counters_by(
                "outcome",
                "upstream_requests",
                "Upstream exchanges by outcome",
                ["answered"],
            ),
            response_seconds: r.seconds(
                "upstream_response",
                "Time to the upstream's response head, including the wait for a connection",
                BUCKETS,
            ),
            recent: Arc::default(),
            retries: r.counter(
                "upstream_retries",
                "Requests sent again over a new connection, because the kept one was closed",
            ),
            up: r.gauge(
                "upstream_up",
                "0 while the last three or more exchanges got no response from the upstream",
            ),
            connections: ConnectionMetrics::register(r),
            limits: LimitHits::shared(r),
        };
        // The upstream counts as up until it fails.
        metrics.up.set(1);
        metrics
    }

    /// Records the time to a response head.
    pub(super) fn record_response(&self, took: Duration) {
        self.response_seconds.observe(took.as_secs_f64());
        self.recent.observe(took, 1);
    }
}

impl ConnectionMetrics {
    fn register(r: &mut Registry) -> Self {
        Self {
            opened: r.counter("upstream_connects", "Connections opened to the upstream"),
            in_use: r.gauge(
                "upstream_connections_in_use",
                "Connections to the upstream in use, including those of upgrades",
            ),
            waiting: r.gauge(
                "upstream_waiting",
                "Requests that wait for a connection to the upstream",
            ),
            idle: r.gauge("upstream_connections_idle", "Idle connections to the upstream"),
            bound: r.gauge(
                "upstream_connections_bound",
                "Connections to the upstream that belong to one client connection, by a login over \
                 NTLM, Negotiate or Kerberos",
            ),
            binds_refused: r.counter(
                "upstream_binds_refused",
                "Logins over NTLM, Negotiate or Kerberos that got no connection of their own, because \
                 a quarter of upstream.max_connections was bound",
            ),
        }
    }
}
