//! Ends a write that changes every job.
//!
//! There is no fence over all jobs. Instead, all entries and leases are dropped before the write is
//! answered, so that nothing read earlier is kept or stored. They are dropped a second time after the
//! time for which a single job's fence would linger, in case the upstream commits late or reads from a
//! replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Mutex, time::timeout};

use super::{
    Cache,
    invalidate::{InvalidationSource, WriteOutcome},
};
use crate::{observe::events::EventKind, store::Ended};

/// How long a write waits until everything is dropped. After that the purge goes on in the background,
/// and this sidecar serves nothing from the cache until it is confirmed.
const MAX_WRITE_WAIT: Duration = Duration::from_secs(2);

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

impl Cache {
    /// Invalidates every job, as [`Cache::end`] does the jobs of a write.
    pub async fn end_all(self: &Arc<Self>, outcome: WriteOutcome) -> Ended {
        let linger = self.linger(outcome);
        if !linger.is_zero() {
            let cache = Arc::clone(self);
            self.store.spawn(async move {
                tokio::time::sleep(linger).await;
                cache.purge_all_shared().await;
            });
        }
        let cache = Arc::clone(self);
        let drop_all = self.store.spawn(async move { cache.purge_all_shared().await });
        match timeout(MAX_WRITE_WAIT, drop_all).await {
            Ok(Ok(ended)) => ended,
            _ => Ended::Pending,
        }
    }

    /// Drops everything by a purge that begins after the call, which may be shared.
    async fn purge_all_shared(&self) -> Ended {
        let request = self.shared_purge_all.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.shared_purge_all.last_result.lock().await;
        if answered.0 < request {
            let covered = self.shared_purge_all.requested.load(Ordering::SeqCst);
            self.silent_changes.forget_all();
            let ended = self.store.purge_all().await;
            self.flights.detach_all();
            self.silent_changes.forget_all();
            // As for the jobs of a write, Redis may report the change late.
            if let Some(near) = &self.near {
                near.flush();
            }
            self.count_invalidation(InvalidationSource::WriteAll, ended);
            let by = Some("a write or reload that changes every job".into());
            self.events.publish_global(EventKind::PurgeAll, ended.as_str(), by);
            *answered = (covered, ended);
        }
        answered.1
    }
}
