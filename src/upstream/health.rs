//! Whether the upstream answers, as told by the exchanges that there are: nothing is sent to find out.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use tracing::{info, warn};

use super::UpstreamError;
use crate::{metrics::Metrics, throttle::Throttle};

/// So many exchanges in a row that got no answer, and the upstream counts as down: a single slow
/// endpoint among others that answer does not make it so.
const FAILURES: u32 = 3;

/// Tells the log and the metrics when the upstream begins to fail and when it answers again; each
/// request's own error is logged at debug, where it is answered.
#[derive(Debug)]
pub(super) struct Health {
    /// A warning stands that no answer has followed.
    failing: AtomicBool,
    warnings: Throttle,
    /// Exchanges since the last answer that got none.
    failures: AtomicU32,
    /// Held while the gauge is set: it must not be left behind by who is overtaken.
    gauge: Mutex<()>,
    metrics: Arc<Metrics>,
}

impl Health {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            failing: AtomicBool::default(),
            warnings: Throttle::default(),
            failures: AtomicU32::default(),
            gauge: Mutex::default(),
            metrics,
        }
    }

    /// Takes note of how an exchange ended. What is the client's fault, and what was not sent because
    /// too much was under way, says nothing of the upstream.
    pub(super) fn tell(&self, error: Option<&UpstreamError>) {
        match error {
            None => self.answered(),
            Some(error) if error.is_clients() => {}
            Some(error) => self.failed(error),
        }
    }

    fn answered(&self) {
        // Read before they are written: answers are many, and nearly always there is nothing to tell.
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
            warn!(%error, suppressed, "the upstream fails");
        }
    }

    fn count(&self, next: impl FnOnce(u32) -> u32) {
        let _gauge = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = next(self.failures.load(Ordering::Relaxed));
        self.failures.store(failures, Ordering::Relaxed);
        self.metrics.upstream_is_up(failures < FAILURES);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_upstream_is_down_after_three_failures_in_a_row_and_up_with_the_next_answer() {
        let metrics = Arc::new(Metrics::default());
        let health = Health::new(Arc::clone(&metrics));
        let limit = Duration::from_secs(1);
        let late = UpstreamError::ResponseTimeout { limit };
        let others = [
            UpstreamError::ClientStalled { limit },
            UpstreamError::Busy { limit: 1, waited: limit },
        ];
        for (told, up) in [
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
            health.tell(told);
            assert_eq!(metrics.upstream.up.get(), up, "{told:?}");
        }
    }
}
