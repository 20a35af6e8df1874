//! Metrics of client connections.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use crate::{
    limits::LimitHits,
    observe::metrics::{Counters, Registry},
    tls::TlsMetrics,
};

/// The kinds of errors: `malformed` and `head-too-large` (answered with a bare 400, 414 or 431),
/// `timeout`, `unread` (the client read nothing of its response for too long), `flood` (HTTP/2
/// resets, continuations and the like), `incomplete` (the client hung up within a message), `tls`
/// and `proxy-protocol` (the handshake or the header is missing or malformed) or `broken`.
const KINDS: [&str; 9] = [
    "malformed",
    "head-too-large",
    "timeout",
    "unread",
    "flood",
    "incomplete",
    "tls",
    "proxy-protocol",
    "broken",
];

/// The metrics of the client connections of all listeners.
#[derive(Debug)]
pub struct ServerMetrics {
    /// Open client connections.
    pub(crate) connections: Gauge,
    pub(super) errors: Counters<1>,
    pub(super) limits: Arc<LimitHits>,
    pub(crate) tls: TlsMetrics,
}

impl ServerMetrics {
    /// Registers the metrics.
    pub fn register(r: &mut Registry) -> Self {
        Self {
            connections: r.gauge("connections", "Open client connections"),
            errors: r.counters_by(
                "kind",
                "connection_errors",
                "Client connections that ended with an error, by kind",
                KINDS,
            ),
            limits: LimitHits::shared(r),
            tls: TlsMetrics::shared(r),
        }
    }
}
