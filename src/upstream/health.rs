//! Whether the upstream answers, judged by the exchanges of clients: no probes are sent.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use prometheus_client::metrics::gauge::Gauge;
use tracing::{info, warn};

use super::error::UpstreamError;
use crate::observe::{
    events::{EventKind, Events},
    throttle::Throttle,
};

/// Failures in a row after which the upstream counts as down. One slow endpoint among others that
/// answer does not reach this number.
const FAILURES_UNTIL_DOWN: u32 = 3;

/// Reports to the log and the metrics when the upstream begins to fail and when it answers again.
/// The error of each request is logged at debug level where the request is answered.
pub(super) struct Health {
    /// A warning was logged and no answer has followed it yet.
    failing: AtomicBool,
    warnings: Throttle,
    /// Failures since the last answer.
    failures: AtomicU32,
    /// 1 while the upstream is up. Locked while it is set, so that a delayed update cannot overwrite a
    /// newer one.
    gauge: Mutex<Gauge>,
    events: Arc<Events>,
}

impl Health {
    pub(super) fn new(gauge: Gauge, events: Arc<Events>) -> Self {
        Self {
            failing: AtomicBool::default(),
            warnings: Throttle::default(),
            failures: AtomicU32::default(),
            gauge: Mutex::new(gauge),
            events,
        }
    }

    /// Records how an exchange ended. Errors of the client say nothing about the upstream. Nor does
    /// a request that was not sent because too many were under way: it causes a warning, but does
    /// not count as a failure.
    pub(super) fn record(&self, error: Option<&UpstreamError>) {
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
        if !matches!(error, UpstreamError::Busy { .. }) {
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
