//! One purge of all for writes that arrive together.
//!
//! A purge of all is one round trip, but it drops every entry that was filled since the last one, and a
//! sweep of the whole store follows it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::store::Ended;

/// Lets concurrent writes share one purge of all jobs.
#[derive(Default)]
pub(super) struct SharedPurgeAll {
    /// Number of purges requested so far.
    requested: AtomicU64,
    /// Last request that the latest purge covers, and its result. Locked while a purge runs.
    last_result: Mutex<Option<(u64, Ended)>>,
}

impl SharedPurgeAll {
    /// Returns the result of a purge that begins after the call: `purge`, or that of another caller.
    pub(super) async fn join_or_run(&self, purge: impl Future<Output = Ended>) -> Ended {
        let request = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last_result = self.last_result.lock().await;
        if let Some((covered, ended)) = *last_result
            && covered >= request
        {
            return ended;
        }
        let covered = self.requested.load(Ordering::SeqCst);
        let ended = purge.await;
        *last_result = Some((covered, ended));
        ended
    }
}
