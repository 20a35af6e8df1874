//! Metrics of the exchanges with the upstream, of its state and of its connections. No probes are
//! sent: the exchanges of clients show whether it answers.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};
use tracing::{info, warn};

use super::error::{UpstreamError, UpstreamErrorKind};
use crate::{
    limits::{Limit, LimitHits},
    observe::{
        events::{EventKind, Events},
        metrics::{Counters, RecentTimes, Registry},
        throttle::Throttle,
    },
};

/// Bucket bounds of upstream times, in seconds: half a millisecond to a minute.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// The metrics of the upstream.
pub(crate) struct UpstreamMetrics {
    requests: Counters<1>,
    /// Time to the response head, including the wait for a connection.
    response_seconds: Histogram,
    pub(crate) recent: Arc<RecentTimes>,
    pub(super) retries: Counter,
    health: Health,
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
    /// Connections in use, without those of streams.
    pub(crate) in_use: Gauge,
    /// Open streams.
    pub(crate) streams: Gauge,
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
    pub(super) fn register(r: &mut Registry, events: Arc<Events>) -> Self {
        let up = r.gauge(
            "upstream_up",
            "0 while the last three or more exchanges got no response from the upstream",
        );
        // The upstream counts as up until it fails.
        up.set(1);
        Self {
            requests: r.counters_by(
                "outcome",
                "upstream_requests",
                "Upstream exchanges by outcome",
                ["answered"].into_iter().chain(UpstreamErrorKind::WORDS),
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
            health: Health::new(up.clone(), events),
            up,
            connections: ConnectionMetrics::register(r),
            limits: LimitHits::shared(r),
        }
    }

    /// Records how an exchange ended, and the time to its response head. A failed exchange says
    /// nothing about that time.
    pub(super) fn record<T>(&self, result: &Result<T, UpstreamError>, took: Duration) {
        self.health.record(result.as_ref().err());
        match result {
            Ok(_) => {
                self.requests.inc(["answered"]);
                self.response_seconds.observe(took.as_secs_f64());
                self.recent.observe(took, 1);
            }
            Err(error) => {
                self.requests.inc([error.as_str()]);
                if matches!(error, UpstreamError::ClientSlow { .. }) {
                    self.limits.count(Limit::UploadRate);
                }
            }
        }
    }
}

impl ConnectionMetrics {
    fn register(r: &mut Registry) -> Self {
        Self {
            opened: r.counter("upstream_connects", "Connections opened to the upstream"),
            in_use: r.gauge(
                "upstream_connections_in_use",
                "Connections to the upstream in use, without those of streams",
            ),
            streams: r.gauge(
                "upstream_streams",
                "Open streams: upgrades, event streams, and answers with a body that is still open \
                 a second after its head",
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

/// Failures in a row after which the upstream counts as down. One slow endpoint among others that
/// answer does not reach this number.
const FAILURES_UNTIL_DOWN: u32 = 3;

/// Reports to the log and the metrics when the upstream begins to fail and when it answers again.
/// The error of each request is logged at debug level where the request is answered.
#[derive(Default)]
struct Health {
    /// A warning was logged and no answer has followed it yet.
    failing: AtomicBool,
    warnings: Throttle,
    /// Failures since the last answer.
    failures: AtomicU32,
    /// 1 while the upstream is up. Locked while it is set, so that a delayed update cannot
    /// overwrite a newer one.
    gauge: Mutex<Gauge>,
    events: Arc<Events>,
}

impl Health {
    fn new(gauge: Gauge, events: Arc<Events>) -> Self {
        Self { gauge: Mutex::new(gauge), events, ..Self::default() }
    }

    /// Records how an exchange ended. Errors of the client say nothing about the upstream. Nor does
    /// a request that was not sent because too many were under way: it causes a warning, but does
    /// not count as a failure.
    fn record(&self, error: Option<&UpstreamError>) {
        match error {
            None => self.answered(),
            Some(error) if error.is_client_error() => {}
            Some(error) => self.failed(error),
        }
    }

    fn answered(&self) {
        // Read before writing: answers are frequent, and there is nearly always nothing to report.
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.count(|_| 0);
        }
        if self.failing.load(Ordering::Relaxed) && self.failing.swap(false, Ordering::Relaxed) {
            info!("the upstream answers again");
        }
    }

    fn failed(&self, error: &UpstreamError) {
        if !matches!(error, UpstreamError::Busy { .. } | UpstreamError::TooManyStreams { .. }) {
            self.count(|failures| failures.saturating_add(1));
        }
        if let Some(suppressed) = self.warnings.admit(error.as_str()) {
            self.failing.store(true, Ordering::Relaxed);
            warn!(%error, suppressed, "requests to the upstream fail");
        }
    }

    fn count(&self, next: impl FnOnce(u32) -> u32) {
        let gauge = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = next(self.failures.load(Ordering::Relaxed));
        self.failures.store(failures, Ordering::Relaxed);
        let kinds = (EventKind::UpstreamUp, EventKind::UpstreamDown);
        self.events.set_state(&gauge, failures < FAILURES_UNTIL_DOWN, kinds);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_upstream_is_down_after_three_failures_in_a_row_and_up_with_the_next_answer() {
        let gauge = Gauge::default();
        gauge.set(1);
        let health = Health::new(gauge.clone(), Arc::default());
        let limit = Duration::from_secs(1);
        let late = UpstreamError::ResponseTimeout { limit };
        let others = [
            UpstreamError::ClientStalled { limit },
            UpstreamError::Busy { limit: 1, waited: limit },
        ];
        for (error, up) in [
            (None, 1),
            (Some(&late), 1),
            (Some(&late), 1),
            (None, 1),
            (Some(&late), 1),
            (Some(&late), 1),
            (Some(&others[0]), 1),
            (Some(&others[1]), 1),
            (Some(&late), 0),
            (Some(&late), 0),
            (None, 1),
        ] {
            health.record(error);
            assert_eq!(gauge.get(), up, "{error:?}");
        }
    }
}
