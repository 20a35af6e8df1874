//! The purge of all: every master that owns pending slots drops its entries, and each confirms its
//! own.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{engine::RedisEngine, session::Session, shard::Shard};
use crate::store::{
    Ended, StoreError,
    errors::{DETACHED_TIMEOUT, Result},
    pending::PurgeAllTask,
    slots::SlotSet,
};

/// Time for a topology refresh that begins after now. One may be under way, and nodes that hang
/// slow down each of them.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit for all SCANs of one purge of all.
const PURGE_ALL_TIMEOUT: Duration = Duration::from_secs(30);

impl RedisEngine {
    pub(crate) async fn purge_all(&self) -> Ended {
        let queue = &self.context.retry_queue;
        // Every key is bypassed from here on, until this purge has been confirmed for its slot.
        let task = queue.pending.add_all().await;
        let ended = self.run_purge_all(&task).await;
        if ended == Ended::Pending {
            queue.changed.notify_one();
        }
        queue.update_gauge();
        ended
    }

    /// Purges the pending slots. Each master confirms those that it owns, whatever becomes of the
    /// others; the purge is confirmed as a whole when no slot is left.
    pub(super) async fn run_purge_all(&self, task: &PurgeAllTask) -> Ended {
        let purged = self.purge_pending_slots(task).await;
        self.context.retry_queue.record_purge_all(task, purged)
    }

    /// Reads the owners of the slots once, from a map that was refreshed after the slots became
    /// pending: `SCAN` names no key, so a master that a slot has left would find nothing of it and
    /// report success. A slot that moves later is missed where it arrives, but what moved along is
    /// no entry there, because it was stored in another epoch. A new entry there was read from the
    /// upstream later.
    async fn purge_pending_slots(&self, task: &PurgeAllTask) -> Result<usize> {
        let owns_pending = |(shard, owned): &(Arc<Shard>, SlotSet)| {
            shard.is_up() && !owned.intersection(&task.slots).is_empty()
        };
        if !self.shards_with_slots().iter().any(owns_pending) {
            return Err(StoreError::Down);
        }
        timeout(REFRESH_TIMEOUT, self.refresh_owners()).await?;
        let shares = self.shards_with_slots();
        let events = &self.context.events;
        events.expect_own_purge_all();
        let purges = shares.iter().map(|(shard, owned)| self.purge_shard(shard, owned, task));
        let purges = join_all(purges).await;
        events.end_own_purge_all();
        let mut all_owned = SlotSet::NONE;
        for (_, owned) in &shares {
            all_owned.insert_all(owned);
        }
        let entries = purges.into_iter().sum::<Result<usize, _>>()?;
        // Slots without an owner are not confirmed.
        if task.slots.difference(&all_owned).is_empty() {
            Ok(entries)
        } else {
            Err(StoreError::Down)
        }
    }

    async fn purge_shard(
        &self,
        shard: &Shard,
        owned: &SlotSet,
        task: &PurgeAllTask,
    ) -> Result<usize> {
        let slots = owned.intersection(&task.slots);
        if slots.is_empty() {
            return Ok(0);
        }
        let session = shard.state.session()?;
        let purge = self.purge_slots(&session, &slots);
        let entries = timeout(PURGE_ALL_TIMEOUT, purge).await??;
        shard.state.note_purged(&session, &slots)?;
        self.context.retry_queue.pending.confirm_slots(&slots, task);
        Ok(entries)
    }

    /// Deletes every entry under the prefix, in small steps. Fences stay, because their writes are
    /// still in flight.
    async fn purge_slots(&self, session: &Session, slots: &SlotSet) -> Result<usize> {
        let mut cursor = 0;
        let mut entries = 0;
        loop {
            let step = async {
                let (next, names) = session.scan(&self.context.config.prefix, cursor).await?;
                match session.delete(&names).await {
                    // The slot is moving, or is no longer this master's.
                    Err(StoreError::Redirected(_)) => self.delete_each(&names, slots).await?,
                    other => other?,
                }
                Ok::<_, StoreError>((next, names.len()))
            };
            let (next, deleted) = timeout(DETACHED_TIMEOUT, step).await??;
            entries += deleted;
            if next == 0 {
                return Ok(entries);
            }
            cursor = next;
        }
    }

    /// Deletes names one by one. Names that lie here but belong to other slots are for the owners
    /// of those to confirm; if such a slot has no owner, or a lost one, it must not delay these
    /// slots.
    async fn delete_each(&self, names: &[Vec<u8>], slots: &SlotSet) -> Result<()> {
        let voids = names.iter().map(async |name| match self.delete_entry(name).await {
            Err(error) if slots.contains_name(name) => Err(error),
            _ => Ok(()),
        });
        join_all(voids).await.into_iter().collect()
    }
}
