//! Metrics of the state of the upstream, and of its connections.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Gauges of the upstream; its exchanges are counted in [`Metrics`](super::Metrics).
pub struct UpstreamMetrics {
    /// 0 while the last three exchanges or more got no response, else 1.
    pub up: Gauge,
    /// Connections in use, including those of upgrades.
    pub in_use: Gauge,
    /// Requests that wait for a connection.
    pub waiting: Gauge,
    /// Idle connections.
    pub idle: Gauge,
    /// Connections that belong to one client connection, in use or idle.
    pub bound: Gauge,
    /// Logins that found too many bound connections.
    pub binds_refused: Counter,
    /// Requests that were sent again over a new connection.
    pub retries: Counter,
}

impl Default for UpstreamMetrics {
    fn default() -> Self {
        let up = Gauge::default();
        // The upstream counts as up until it fails.
        up.set(1);
        Self {
            up,
            in_use: Gauge::default(),
            waiting: Gauge::default(),
            idle: Gauge::default(),
            bound: Gauge::default(),
            binds_refused: Counter::default(),
            retries: Counter::default(),
        }
    }
}

impl UpstreamMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "upstream_up",
            "0 while the last three or more exchanges got no response from the upstream",
            self.up.clone(),
        );
        r.register(
            "upstream_connections_in_use",
            "Connections to the upstream in use, including those of upgrades",
            self.in_use.clone(),
        );
        r.register(
            "upstream_waiting",
            "Requests that wait for a connection to the upstream",
            self.waiting.clone(),
        );
        r.register(
            "upstream_connections_idle",
            "Idle connections to the upstream",
            self.idle.clone(),
        );
        r.register(
            "upstream_connections_bound",
            "Connections to the upstream that belong to one client connection, by a login over NTLM, \
             Negotiate or Kerberos",
            self.bound.clone(),
        );
        r.register(
            "upstream_binds_refused",
            "Logins over NTLM, Negotiate or Kerberos that got no connection of their own, because a \
             quarter of upstream.max_connections was bound",
            self.binds_refused.clone(),
        );
        r.register(
            "upstream_retries",
            "Requests sent again over a new connection, because the kept one was closed",
            self.retries.clone(),
        );
    }
}
