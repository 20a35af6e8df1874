//! The retry queue: invalidations that the store has not confirmed, with their warnings and
//! metrics.
//!
//! The queue only keeps track of what is due; `redis/retry_worker.rs` repeats the invalidations.

use tokio::{sync::Notify, time::sleep_until};
use tracing::{debug, warn};

use super::{
    errors::StoreError,
    metrics::StoreMetrics,
    pending::{Added, PendingItem, PendingSet, PurgeAllTask, sibling_bypass::JournalStatus},
    words::{Ended, Key, Token},
};
use crate::{
    mutants::{self, Mutant},
    observe::throttle::Throttle,
};
use std::{future, sync::Arc, time::Duration};

/// The unconfirmed invalidations, and the signal to repeat them.
pub(super) struct RetryQueue {
    pub(super) pending: PendingSet,
    /// Notified when something is to be repeated.
    due: Notify,
    metrics: Arc<StoreMetrics>,
    unconfirmed: Throttle,
    purge_all: Throttle,
    overflow: Throttle,
}

impl RetryQueue {
    pub(super) fn new(pending: PendingSet, metrics: Arc<StoreMetrics>) -> Self {
        Self {
            pending,
            due: Notify::new(),
            metrics,
            unconfirmed: Throttle::default(),
            purge_all: Throttle::default(),
            overflow: Throttle::default(),
        }
    }

    /// Waits until something is to be repeated.
    pub(super) async fn due(&self) {
        let next = self.pending.next_due();
        let wait = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = self.due.notified() => {}
        }
    }

    /// Waits until something changes, whatever is due.
    pub(super) async fn woken(&self) {
        self.due.notified().await;
    }

    /// Wakes the task that repeats what is due.
    pub(super) fn wake(&self) {
        self.due.notify_one();
    }

    pub(super) async fn add(&self, keys: &[&Key], write: &Token, linger: Duration) {
        if keys.is_empty() || mutants::is(Mutant::NoPending) {
            return;
        }
        if self.pending.add(keys, write, linger).await == Added::Overflow {
            self.metrics.pending_overflows.inc();
            if let Some(suppressed) = self.overflow.admit("") {
                warn!(
                    pending = self.pending.len(),
                    slots = self.pending.slots(),
                    suppressed,
                    "more unconfirmed invalidations than pending.limit; every job in their slots is bypassed until a purge of all is confirmed"
                );
            }
        }
        self.update_gauge();
        self.due.notify_one();
    }

    /// Records the result of a repeated invalidation.
    pub(super) fn record<T>(&self, item: &PendingItem, result: Result<T, StoreError>) {
        let Err(error) = result else { return self.pending.confirm(item) };
        self.pending.postpone(item);
        debug!(%error, key = item.key.main(), "an invalidation is still unconfirmed");
        if let Some(suppressed) = self.unconfirmed.admit(&error.to_string()) {
            let pending = self.pending.len();
            warn!(%error, pending, suppressed, "invalidations are unconfirmed; their jobs are bypassed");
        }
    }

    /// Records the result of a purge of all: the number of entries that were removed. On a cluster,
    /// the slots of the masters that confirmed are settled already.
    pub(super) fn record_purge_all(
        &self,
        sweep: &PurgeAllTask,
        result: Result<usize, StoreError>,
    ) -> Ended {
        let error = match result {
            Ok(entries) => {
                self.pending.confirm_slots(&sweep.slots, sweep);
                return Ended::Confirmed { entries };
            }
            Err(error) => error,
        };
        self.pending.postpone_purge_all(sweep);
        debug!(%error, "a purge of all failed");
        if let Some(suppressed) = self.purge_all.admit(&error.to_string()) {
            let slots = self.pending.slots();
            warn!(
                %error, slots, suppressed,
                "a purge of all failed; every job in these slots is bypassed until it is confirmed"
            );
        }
        Ended::Pending
    }

    /// Returns the state of the journal, if there is one.
    pub(super) fn journal_status(&self) -> Option<JournalStatus> {
        self.pending.journal_status()
    }

    pub(super) fn update_gauge(&self) {
        self.metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }

    /// Logs what is left when the process stops.
    pub(super) fn log_remaining(&self) {
        let left = self.pending.len();
        if left > 0 {
            warn!(
                pending = left,
                "stopped with unconfirmed invalidations; their entries may be served until their TTL ends"
            );
        }
    }
}
