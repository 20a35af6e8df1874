//! The end of a write that changes every job.
//!
//! There is no fence over all jobs. Entries and leases go before the write is answered, so what was
//! read before is neither kept nor stored; they go once more when the time is up for which a single
//! job's fence would linger, for an upstream that commits late or reads from a replica.

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
use crate::{events::What, store::Ended};

/// How long a write waits until everything is gone. It goes on by itself, and until it is confirmed
/// this sidecar serves nothing from the cache.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lets many who want everything gone share one purge, so that a burst of bulk writes does not walk
/// through the store once each.
#[derive(Debug)]
pub(super) struct Bulk {
    asked: AtomicU64,
    /// Up to which question the last purge answers, and what it came to. Held while one runs.
    answered: Mutex<(u64, Ended)>,
}

impl Default for Bulk {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), answered: Mutex::new((0, Ended::Pending)) }
    }
}

impl Cache {
    /// Invalidates every job, as [`Cache::end`] does those of a write.
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

    /// By a purge that begins after the call.
    async fn drop_all(&self) -> Ended {
        let question = self.bulk.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.bulk.answered.lock().await;
        if answered.0 < question {
            let covered = self.bulk.asked.load(Ordering::SeqCst);
            let ended = self.store.purge_all().await;
            self.flights.detach_all();
            // As for the jobs of a write, where the news of it may be late.
            if let Some(near) = &self.near {
                near.flush();
            }
            self.count_invalidation(Source::WriteAll, ended);
            let by = Some("a write or reload that changes every job".into());
            self.metrics.events.tell_all(What::PurgeAll, ended.as_str(), by);
            *answered = (covered, ended);
        }
        answered.1
    }
}
