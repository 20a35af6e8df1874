//! Ends a write that changes every job.
//!
//! There is no fence over all jobs. Instead, all entries and leases are dropped before the write is
//! answered, so that nothing read earlier is kept or stored. They are dropped a second time after the
//! time for which a single job's fence would linger, in case the upstream commits late or reads from a
//! replica.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::invalidate::{InvalidationSource, Invalidator, WriteOutcome};
use crate::{observe::events::EventKind, store::Ended};

/// How long a write waits until everything is dropped. After that the purge goes on in the background,
/// and this sidecar serves nothing from the cache until it is confirmed.
const MAX_WRITE_WAIT: Duration = Duration::from_secs(2);

impl Invalidator {
    /// Invalidates every job, as [`Invalidator::end`] does the jobs of a write.
    pub async fn end_all(self: &Arc<Self>, outcome: WriteOutcome) -> Ended {
        let linger = self.fence_time_after(outcome);
        if !linger.is_zero() {
            let invalidator = Arc::clone(self);
            self.state.store.spawn(async move {
                tokio::time::sleep(linger).await;
                invalidator.purge_all_shared().await;
            });
        }
        let invalidator = Arc::clone(self);
        let drop_all = self.state.store.spawn(async move { invalidator.purge_all_shared().await });
        match timeout(MAX_WRITE_WAIT, drop_all).await {
            Ok(Ok(ended)) => ended,
            _ => Ended::Pending,
        }
    }

    /// Drops everything by a purge that begins after the call, which may be shared.
    async fn purge_all_shared(&self) -> Ended {
        let purge = async {
            self.state.silent_changes.forget_all();
            let ended = self.state.store.purge_all().await;
            // As for the jobs of a write, Redis may report the change late.
            self.state.invalidate_all_locally();
            self.count_invalidation(InvalidationSource::WriteAll, ended);
            let by = Some("a write or reload that changes every job".into());
            self.state.events.publish_global(EventKind::PurgeAll, ended.as_str(), by);
            ended
        };
        self.shared_purge_all.join_or_run(purge).await
    }
}
