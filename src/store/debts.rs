//! What this process still owes the store: the invalidations that are not confirmed, and what is told of
//! them.
//!
//! It keeps the books. Who repeats an invalidation, and over which connection, is for the engine.

use tokio::{sync::Notify, time::sleep_until};
use tracing::{debug, warn};

use super::{
    Ended, Key, StoreError, Token,
    pending::{Added, Item, Pending, Sweep},
};
use crate::{
    config,
    events::What,
    metrics::Metrics,
    mutants::{self, Mutant},
    throttle::Throttle,
};
use std::{future, sync::Arc, time::Duration};

/// The books.
#[derive(Debug)]
pub(super) struct Debts {
    pub(super) pending: Pending,
    /// Something became pending.
    due: Notify,
    metrics: Arc<Metrics>,
    unconfirmed: Throttle,
    purge_all: Throttle,
    overflow: Throttle,
}

impl Debts {
    /// With what the journal holds, if there is one.
    pub(super) fn open(
        config: &config::PendingConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        let pending = match &config.journal {
            None => Pending::new(config.limit),
            Some(path) => Pending::with_journal(config.limit, path)
                .map_err(|source| StoreError::Journal { path: path.clone(), source })?,
        };
        Ok(Self::of(pending, metrics))
    }

    fn of(pending: Pending, metrics: Arc<Metrics>) -> Self {
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
                Some(at) => sleep_until(at.into()).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = self.due.notified() => {}
        }
    }

    /// Something is to be repeated now.
    pub(super) fn hasten(&self) {
        self.due.notify_one();
    }

    pub(super) async fn remember(&self, keys: &[&Key], write: &Token, linger: Duration) {
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
                    "too many unconfirmed invalidations; every job in their slots is bypassed until all is purged"
                );
            }
        }
        self.count();
        self.due.notify_one();
    }

    /// What the repetition of an invalidation has come to.
    pub(super) fn settle<T>(&self, item: &Item, result: Result<T, StoreError>) {
        let Err(error) = result else {
            self.metrics.events.tell(item.key.main(), What::Confirmed, "");
            return self.pending.confirm(item);
        };
        self.pending.postpone(item);
        debug!(%error, key = item.key.main(), "an invalidation is still unconfirmed");
        if let Some(suppressed) = self.unconfirmed.admit(&error.to_string()) {
            let pending = self.pending.len();
            warn!(%error, pending, suppressed, "invalidations are unconfirmed; their jobs are bypassed");
        }
    }

    /// What a purge of all has come to: how many entries there were. Where there are several servers,
    /// what each has confirmed is confirmed already.
    pub(super) fn settle_all(&self, sweep: &Sweep, result: Result<usize, StoreError>) -> Ended {
        let error = match result {
            Ok(entries) => {
                self.pending.confirm_slots(&sweep.slots, sweep);
                return Ended::Confirmed { entries };
            }
            Err(error) => error,
        };
        self.pending.postpone_sweep(sweep);
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

    pub(super) fn count(&self) {
        self.metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }

    /// Says what is left when the process stops.
    pub(super) fn abandon(&self) {
        let left = self.pending.len();
        if left > 0 {
            warn!(
                pending = left,
                "stopped with unconfirmed invalidations; they run out with their TTL"
            );
        }
    }
}
