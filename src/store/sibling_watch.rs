//! Watches the journals of other processes with the same `pending.journal`.
//!
//! A new process takes over from an old one while that still runs, and each has a journal of its own.
//! This task reads what the others have not confirmed, and adopts it when they end.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{
    errors::StoreError,
    journal::{
        records::JournalOwner,
        siblings::{EndedJournal, SiblingState, Siblings},
    },
    metrics::StoreMetrics,
    pending::{PendingSet, sibling_bypass::empty as empty_journal},
    retry_queue::RetryQueue,
};
use crate::config;

/// Interval between two looks at the siblings. A process that ends, or a job that becomes pending in
/// one, is known within a second.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Opens the retry queue with the contents of the journal, if one is configured, and watches the
/// journals of other processes with the same setting.
pub(super) fn open_queue(
    config: &config::Config,
    metrics: Arc<StoreMetrics>,
) -> Result<Arc<RetryQueue>, StoreError> {
    let limit = config.pending.limit;
    let Some(path) = &config.pending.journal else {
        return Ok(Arc::new(RetryQueue::new(PendingSet::new(limit), metrics)));
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
    let queue = Arc::new(RetryQueue::new(pending, metrics));
    tokio::spawn(watch_siblings(Arc::downgrade(&queue), siblings));
    Ok(queue)
}

/// Runs until the queue is dropped.
async fn watch_siblings(queue: Weak<RetryQueue>, mut siblings: Siblings) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Journals with records that are here but not on the disk yet. They stay locked, and as they are.
    let mut held: Vec<(usize, EndedJournal)> = Vec::new();
    loop {
        look.tick().await;
        let scan = spawn_blocking(move || {
            let states = siblings.scan();
            (siblings, states)
        });
        // It fails only if the process is about to end.
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
        queue.wake();
    }
}

async fn release(journals: Vec<(usize, EndedJournal)>) {
    // A failure means that the process is about to end: the files stay as they are.
    let _ =
        spawn_blocking(|| journals.into_iter().for_each(|(_, ended)| empty_journal(ended))).await;
}
