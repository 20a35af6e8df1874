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
    invalidate::{Outcome, Source},
};
use crate::{events::EventKind, store::Ended};

/// How long a write waits until everything is dropped. After that the purge goes on in the background,
/// and this sidecar serves nothing from the cache until it is confirmed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets concurrent writes share one purge of all jobs, so that a burst of them does not walk through
/// the store once each.
#[derive(Debug)]
pub(super) struct Bulk {
    /// Number of purges requested so far.
    asked: AtomicU64,
    /// Last request that the latest purge covers, and its result. Locked while a purge runs.
    answered: Mutex<(u64, Ended)>,
}

impl Default for Bulk {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), answered: Mutex::new((0, Ended::Pending)) }
    }
}

impl Cache {
    /// Invalidates every job, as [`Cache::end`] does the jobs of a write.
    pub async fn end_all(self: &Arc<Self>, outcome: Outcome) -> Ended {
        let linger = self.linger(outcome);
        if !linger.is_zero() {
            let cache = Arc::clone(self);
            self.store.spawn(async move {
                tokio::time::sleep(linger).await;
                cache.drop_all().await;
            });
        }
        let cache = Arc::clone(self);
        let drop_all = self.store.spawn(async move { cache.drop_all().await });
        match timeout(PATIENCE, drop_all).await {
            Ok(Ok(ended)) => ended,
            _ => Ended::Pending,
        }
    }

    /// Drops everything by a purge that begins after the call, which may be shared.
    async fn drop_all(&self) -> Ended {
        let request = self.bulk.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.bulk.answered.lock().await;
        if answered.0 < request {
            let covered = self.bulk.asked.load(Ordering::SeqCst);
            let ended = self.store.purge_all().await;
            self.flights.detach_all();
            // As for the jobs of a write, Redis may report the change late.
            if let Some(near) = &self.near {
                near.flush();
            }
            self.count_invalidation(Source::WriteAll, ended);
            let by = Some("a write or reload that changes every job".into());
            self.metrics.events.publish_global(EventKind::PurgeAll, ended.as_str(), by);
            *answered = (covered, ended);
        }
        answered.1
    }
}
