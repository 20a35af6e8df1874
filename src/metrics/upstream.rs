//! How the upstream does, and what is in use of it.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// The upstream's gauges; its exchanges are counted in [`Metrics`](super::Metrics).
pub struct Upstream {
    /// 1 unless the last exchanges all failed.
    pub up: Gauge,
    /// Connections in use, those of upgrades included.
    pub in_use: Gauge,
    /// Requests that wait for one.
    pub waiting: Gauge,
    /// Unused connections that are kept.
    pub idle: Gauge,
    /// Requests that were sent again over a new connection.
    pub retries: Counter,
}

impl Default for Upstream {
    fn default() -> Self {
        let up = Gauge::default();
        // Until it is known to be otherwise.
        up.set(1);
        let (in_use, waiting, idle) = (Gauge::default(), Gauge::default(), Gauge::default());
        Self { up, in_use, waiting, idle, retries: Counter::default() }
    }
}

impl Upstream {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "upstream_up",
            "0 while the last exchanges, three or more, all got no answer from the upstream",
            self.up.clone(),
        );
        r.register(
            "upstream_connections_in_use",
            "Connections to the upstream in use, upgrades included",
            self.in_use.clone(),
        );
        r.register(
            "upstream_waiting",
            "Requests that wait for a connection to the upstream",
            self.waiting.clone(),
        );
        r.register(
            "upstream_connections_idle",
            "Unused connections to the upstream that are kept",
            self.idle.clone(),
        );
        r.register(
            "upstream_retries",
            "Requests sent again over a new connection, the kept one having been closed",
            self.retries.clone(),
        );
    }
}
