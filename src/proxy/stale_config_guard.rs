//! The guard for writes that outlive the routes and rules they were classified by.
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

use std::sync::Arc;

use super::exchange::ProxyContext;
use crate::cache::WriteOutcome;

/// A write under way that no route and no rule covers. If the client or the upstream gives up
/// before there is an answer, the outcome is unknown.
#[derive(Debug)]
pub(super) struct StaleConfigGuard {
    context: Arc<ProxyContext>,
    answered: bool,
}

impl StaleConfigGuard {
    pub(super) fn new(context: &Arc<ProxyContext>) -> Self {
        Self { context: Arc::clone(context), answered: false }
    }

    /// Notes that the write has an answer. Returns whether the write counts as one that changes
    /// every job.
    pub(super) fn answered(mut self) -> bool {
        self.answered = true;
        self.context.stale_config.is_stale()
    }
}

impl Drop for StaleConfigGuard {
    fn drop(&mut self) {
        if !self.answered && self.context.stale_config.is_stale() {
            let cache = Arc::clone(&self.context.cache);
            self.context
                .tasks
                .spawn(async move { cache.invalidator.end_all(WriteOutcome::Unknown).await });
        }
    }
}
