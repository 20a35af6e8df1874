//! Whether a reload has put other routes or rules into force, and the guard for writes that outlive
//! those they were classified by.
//!
//! A reload may add a route or a rule that covers a write already under way. Nothing was fenced for
//! that write, and the jobs that its path or body names are no longer known. Meanwhile reads by the
//! new routes fill the cache with what the write is about to change. So from the reload on, such a
//! write counts as one that changes every job, as under a rule with `all = true`: every entry is
//! dropped before the write is answered. The reload itself also drops every entry, at once and
//! again after `store.linger`, for writes that were answered or given up just before.
//!
//! Not covered: a write that was passed on, had its response head sent before the reload, and
//! commits only at the end of its body, after the reload.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio_util::task::TaskTracker;

use crate::cache::{Cache, WriteOutcome};

/// Whether other routes or rules are in force. It is set before they come into force: a write that
/// finds it unset was answered before any read by the new rules.
#[derive(Clone, Debug, Default)]
pub(super) struct StaleConfig(Arc<AtomicBool>);

impl StaleConfig {
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stale(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Guards a write that no route and no rule covers.
    pub(super) fn guard(&self, cache: &Arc<Cache>, tasks: &TaskTracker) -> StaleConfigGuard {
        let (stale, cache, tasks) = (self.clone(), Arc::clone(cache), tasks.clone());
        StaleConfigGuard { stale, cache, tasks, answered: false }
    }
}

/// A write under way that no route and no rule covers. If the client or the upstream gives up
/// before there is an answer, the outcome is unknown.
#[derive(Debug)]
pub(super) struct StaleConfigGuard {
    stale: StaleConfig,
    cache: Arc<Cache>,
    tasks: TaskTracker,
    answered: bool,
}

impl StaleConfigGuard {
    /// Notes that the write has an answer. Returns whether the write counts as one that changes
    /// every job.
    pub(super) fn answered(mut self) -> bool {
        self.answered = true;
        self.stale.is_stale()
    }
}

impl Drop for StaleConfigGuard {
    fn drop(&mut self) {
        if !self.answered && self.stale.is_stale() {
            let cache = Arc::clone(&self.cache);
            self.tasks.spawn(async move { cache.invalidator.end_all(WriteOutcome::Unknown).await });
        }
    }
}
