//! The store on Redis for any number of servers, and which of them owns a key: one server owns all,
//! or each master of a cluster owns some of the slots.
//!
//! The purge of all is here as well: every master that owns pending slots drops their entries and
//! confirms its own slots.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{cluster::Cluster, session::Session, shard::Shard, state::StoreContext};
use crate::store::{
    BarrierWait, Ended, Key, NodeStatus, StoreError,
    barrier::BarrierDown,
    errors::{DETACHED_TIMEOUT, Result},
    pending::PurgeAllTask,
    slots::{SlotSet, slot_of, slot_of_key},
    words::now_ms,
};

/// Time for a topology refresh that begins after now. One may be under way, and nodes that hang
/// slow down each of them.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// Time limit for all SCANs of one purge of all.
const PURGE_ALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The store on one Redis server or several.
pub(crate) struct RedisEngine {
    pub(super) topology: Topology,
    pub(crate) context: Arc<StoreContext>,
}

/// Which server owns a key.
pub(super) enum Topology {
    /// One master owns every key; its address comes from the URL or from sentinels.
    One(Arc<Shard>),
    /// The masters of a cluster.
    Cluster(Arc<Cluster>),
}

impl RedisEngine {
    /// Applies `look` to the server that owns a name now. If the slot changes hands meanwhile, its
    /// near entries are evicted, and what is sent to the former owner is refused. Hits do not clone
    /// the handle.
    fn with_owner<T>(&self, name: &[u8], look: impl FnOnce(&Arc<Shard>) -> T) -> Result<T> {
        match &self.topology {
            Topology::One(shard) => Ok(look(shard)),
            Topology::Cluster(cluster) => {
                cluster.slot_map().owner(slot_of(name)).map(look).ok_or(StoreError::Down)
            }
        }
    }

    pub(super) fn owner_of_name(&self, name: &[u8]) -> Result<Arc<Shard>> {
        self.with_owner(name, Arc::clone)
    }

    pub(crate) fn owner(&self, key: &Key) -> Result<Arc<Shard>> {
        self.owner_of_name(key.main().as_bytes())
    }

    /// Applies `look` to all servers, and to the number of slots without an owner.
    pub(super) fn with_shards<T>(&self, look: impl FnOnce(&[Arc<Shard>], usize) -> T) -> T {
        match &self.topology {
            Topology::One(shard) => look(std::slice::from_ref(shard), 0),
            Topology::Cluster(cluster) => {
                let map = cluster.slot_map();
                look(&map.shards, map.unowned())
            }
        }
    }

    /// Returns all servers, each with the slots that it owned at one point in time.
    pub(super) fn shards_with_slots(&self) -> Vec<(Arc<Shard>, SlotSet)> {
        let with_slots = |shard: &Arc<Shard>| (Arc::clone(shard), shard.state.slots.snapshot());
        self.with_shards(|shards, _| shards.iter().map(with_slots).collect())
    }

    /// Waits until the owners are known that the keys had when this was called, or later. Returns
    /// whether they can have changed.
    pub(super) async fn refresh_owners(&self) -> bool {
        let Some(cluster) = self.cluster() else { return false };
        cluster.refreshes.next().await;
        true
    }

    /// The cluster, if it is one.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        if let Topology::Cluster(cluster) = &self.topology { Some(cluster) } else { None }
    }

    pub(crate) fn trust(&self, key: &Key) -> Result<i64> {
        if self.context.retry_queue.pending.contains(key) {
            return Err(StoreError::Pending);
        }
        self.with_owner(key.main().as_bytes(), |shard| shard.trust())?
    }

    /// Waits for the shard that owns the key. If the slot changes hands meanwhile, the reader does
    /// not pass.
    pub(crate) fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        let polled = self.with_owner(key.main().as_bytes(), |shard| {
            if *wait.shard.get_or_insert(shard.number) != shard.number {
                return Poll::Ready(Err(BarrierDown));
            }
            shard.poll_barrier(staleness, wait, cx)
        });
        polled.unwrap_or(Poll::Ready(Err(BarrierDown)))
    }

    /// Uses the clock of any server that is up; they differ as much as the clocks of their
    /// machines.
    pub(crate) fn now_ms(&self) -> i64 {
        let told = self.with_shards(|shards, _| shards.iter().find_map(|s| s.now_ms()));
        told.unwrap_or_else(now_ms)
    }

    /// Whether every slot has an owner, and every owner is trusted.
    pub(crate) fn is_up(&self) -> bool {
        self.with_shards(|shards, unowned| unowned == 0 && shards.iter().all(|shard| shard.is_up()))
    }

    /// Whether any server is trusted.
    pub(super) fn is_any_up(&self) -> bool {
        self.with_shards(|shards, _| shards.iter().any(|shard| shard.is_up()))
    }

    /// Returns the masters of a cluster; empty if there is none.
    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        let map = cluster.slot_map();
        let nodes = map.shards.iter().map(|shard| NodeStatus {
            address: shard.state.address.clone(),
            slots: shard.state.slots.snapshot().iter().count(),
            up: shard.is_up(),
            tracked: shard.is_tracked(),
        });
        nodes.collect()
    }

    /// The slot of a key, and the address of its owner; `None` without a cluster.
    pub(crate) fn place(&self, key: &Key) -> Option<(u16, Option<String>)> {
        let slot = slot_of_key(key);
        let map = self.cluster()?.slot_map();
        Some((slot, map.owner(slot).map(|shard| shard.state.address.clone())))
    }

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
        let entries = purges.into_iter().sum::<Result<usize, _>>()?;
        // Slots without an owner are not confirmed.
        let left = |left: SlotSet, (_, owned): &(_, _)| left.difference(owned);
        let unowned = shares.iter().fold(task.slots.clone(), left);
        if unowned.is_empty() { Ok(entries) } else { Err(StoreError::Down) }
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

    /// Deletes every entry, in small steps. Fences stay, because their writes are still in flight.
    async fn purge_slots(&self, session: &Session, slots: &SlotSet) -> Result<usize> {
        let mut entries = 0;
        for prefix in &self.context.prefixes {
            entries += self.purge_prefix(session, slots, prefix).await?;
        }
        Ok(entries)
    }

    async fn purge_prefix(
        &self,
        session: &Session,
        slots: &SlotSet,
        prefix: &str,
    ) -> Result<usize> {
        let mut cursor = 0;
        let mut entries = 0;
        loop {
            let step = async {
                let (next, names) = session.scan(prefix, cursor).await?;
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
