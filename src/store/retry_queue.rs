//! The retry queue: invalidations that the store has not confirmed, with their warnings and
//! metrics.
//!
//! The queue only keeps track of what is due; the retry worker (`redis.rs`) repeats the
//! invalidations.
//!
//! Other processes may have the same `pending.journal`: a new process takes over from an old one
//! while that still runs, and each has a journal of its own. A task reads what the others have not
//! confirmed, and adopts it when they end.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout_at},
};
use tracing::{debug, warn};

use super::{
    Ended, Key, StoreError, Token,
    errors::Result,
    journal::{
        records::JournalOwner,
        siblings::{EndedJournal, SiblingState, Siblings},
    },
    metrics::StoreMetrics,
    pending::{PendingItem, PendingSet, PurgeAllTask},
    problems::Problems,
};
use crate::{
    config,
    mutants::{self, Mutant},
    observe::throttle::Throttle,
};

/// The unconfirmed invalidations, and the signal to repeat them.
pub(super) struct RetryQueue {
    pub(super) pending: PendingSet,
    /// Notified when something is to be repeated.
    pub(super) changed: Notify,
    metrics: Arc<StoreMetrics>,
    problems: Arc<Problems>,
    unconfirmed: Throttle,
    purge_all: Throttle,
    overflow: Throttle,
}

impl RetryQueue {
    pub(super) fn new(
        pending: PendingSet,
        metrics: Arc<StoreMetrics>,
        problems: Arc<Problems>,
    ) -> Self {
        Self {
            pending,
            changed: Notify::new(),
            metrics,
            problems,
            unconfirmed: Throttle::default(),
            purge_all: Throttle::default(),
            overflow: Throttle::default(),
        }
    }

    /// Waits until something is to be repeated.
    pub(super) async fn due(&self) {
        match self.pending.next_due() {
            // In time or not, something is to be repeated.
            Some(at) => drop(timeout_at(at, self.changed.notified()).await),
            None => self.changed.notified().await,
        }
    }

    pub(super) async fn add(&self, keys: &[&Key], write: &Token, linger: Duration) {
        if keys.is_empty() || mutants::is(Mutant::NoPending) {
            return;
        }
        if !self.pending.add(keys, write, linger).await.is_empty() {
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
        self.changed.notify_one();
    }

    /// Records the result of a repeated invalidation.
    pub(super) fn record<T>(&self, item: &PendingItem, result: Result<T>) {
        let Err(error) = result else { return self.pending.confirm(item) };
        self.pending.postpone(item);
        debug!(%error, key = item.key.main(), "an invalidation is still unconfirmed");
        if let Some(suppressed) = self.problems.admit_in_session(&error, &self.unconfirmed) {
            let pending = self.pending.len();
            warn!(%error, pending, suppressed, "invalidations are unconfirmed; their jobs are bypassed");
        }
    }

    /// Records the result of a purge of all. On a cluster, the slots of the masters that confirmed are
    /// settled already. The entries that it has voided are not counted.
    pub(super) fn record_purge_all(&self, task: &PurgeAllTask, result: Result<()>) -> Ended {
        let error = match result {
            Ok(()) => {
                self.pending.confirm_slots(&task.slots, task);
                return Ended::Confirmed { entries: 0 };
            }
            Err(error) => error,
        };
        self.pending.postpone_purge_all(task);
        debug!(%error, "a purge of all failed");
        if let Some(suppressed) = self.problems.admit_in_session(&error, &self.purge_all) {
            let slots = self.pending.slots();
            warn!(
                %error, slots, suppressed,
                "a purge of all failed; every job in these slots is bypassed until it is confirmed"
            );
        }
        Ended::Pending
    }

    pub(super) fn update_gauge(&self) {
        self.metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }
}

/// Interval between two looks at the siblings. A process that ends, or a job that becomes pending
/// in one, is known within a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Opens the retry queue with the contents of the journal, if one is configured, and watches the
/// journals of other processes with the same setting.
pub(super) fn open_queue(
    config: &config::Config,
    metrics: Arc<StoreMetrics>,
    problems: Arc<Problems>,
) -> Result<Arc<RetryQueue>> {
    let limit = config.pending.limit;
    let Some(path) = &config.pending.journal else {
        return Ok(Arc::new(RetryQueue::new(PendingSet::new(limit), metrics, problems)));
    };
    let owner =
        JournalOwner { store: config.store.url.identity(), prefix: config.store.prefix.clone() };
    let (pending, mut siblings) = PendingSet::with_journal(limit, path, &owner)
        .map_err(|source| StoreError::Journal { path: path.clone(), source })?;
    // Before the first request: what the others owe is not served from here. Twice, in case one
    // of them adopts a journal during the first scan.
    for _ in 0..2 {
        pending.bypass_siblings(siblings.scan());
        siblings.forget_scan();
    }
    let queue = Arc::new(RetryQueue::new(pending, metrics, problems));
    tokio::spawn(watch_siblings(Arc::downgrade(&queue), siblings));
    Ok(queue)
}

/// Runs until the queue is dropped.
async fn watch_siblings(queue: Weak<RetryQueue>, mut siblings: Siblings) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Journals with records that are here but not on the disk yet. They stay locked, and as they
    // are.
    let mut held: Vec<(usize, EndedJournal)> = Vec::new();
    loop {
        look.tick().await;
        let scan = spawn_blocking(move || {
            let states = siblings.scan();
            (siblings, states)
        });
        // The task fails only if the process is about to end.
        let Ok((back, mut states)) = scan.await else { return };
        siblings = back;
        let Some(queue) = queue.upgrade() else { return };
        states.retain(|(number, _)| held.iter().all(|(held, _)| held != number));
        let is_behind = !held.is_empty();
        adopt_ended(&queue, states, &mut held).await;
        if is_behind && queue.pending.persist().await {
            release(std::mem::take(&mut held)).await;
        }
    }
}

/// Bypasses the jobs of siblings that live, and adopts those of siblings that have ended.
async fn adopt_ended(
    queue: &Arc<RetryQueue>,
    states: Vec<(usize, SiblingState)>,
    held: &mut Vec<(usize, EndedJournal)>,
) {
    let (ended, others): (Vec<_>, Vec<_>) =
        states.into_iter().partition(|(_, state)| matches!(state, SiblingState::Ended(..)));
    queue.pending.bypass_siblings(others);
    for (number, state) in ended {
        let SiblingState::Ended(live, ended) = state else { continue };
        if queue.pending.adopt(number, live).await {
            release(vec![(number, ended)]).await;
        } else {
            held.push((number, ended));
        }
        queue.update_gauge();
        queue.changed.notify_one();
    }
}

async fn release(journals: Vec<(usize, EndedJournal)>) {
    // A failure means that the process is about to end: the files stay as they are.
    let _ = spawn_blocking(|| journals.into_iter().for_each(|(_, ended)| ended.empty())).await;
}
