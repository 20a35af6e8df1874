//! One purge of all jobs for several writes.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::store::Ended;

/// Lets concurrent writes share one purge of all jobs, so that a burst of them does not walk through
/// the store once each.
#[derive(Debug)]
pub(super) struct SharedPurgeAll {
    /// Number of purges requested so far.
    requested: AtomicU64,
    /// Last request that the latest purge covers, and its result. Locked while a purge runs.
    last_result: Mutex<(u64, Ended)>,
}

impl Default for SharedPurgeAll {
    fn default() -> Self {
        Self { requested: AtomicU64::new(0), last_result: Mutex::new((0, Ended::Pending)) }
    }
}

impl SharedPurgeAll {
    /// Returns the result of a purge that begins after the call: `purge`, or that of another caller.
    pub(super) async fn join_or_run(&self, purge: impl Future<Output = Ended>) -> Ended {
        let request = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.last_result.lock().await;
        if answered.0 < request {
            let covered = self.requested.load(Ordering::SeqCst);
            *answered = (covered, purge.await);
        }
        answered.1
    }
}
