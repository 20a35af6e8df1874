//! The store on Redis for any number of servers, and which of them owns a key: one server owns all,
//! or each master of a cluster owns some of the slots.
//!
//! Everything else asks this file for the owner: reads and fills (`operations.rs`), invalidations
//! (`invalidate.rs`) and purges of all (`purge_all.rs`).

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{cluster::Cluster, shard::Shard, state::StoreContext};
use crate::store::{
    BarrierWait, FarStore, Key, NodeStatus, StoreError,
    barrier::BarrierDown,
    errors::Result,
    slots::{SlotSet, slot_of, slot_of_key},
    words::now_ms,
};

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

    /// How far away a server is that is too far away, if there is one.
    pub(crate) fn far(&self) -> Option<FarStore> {
        self.with_shards(|shards, _| shards.iter().find_map(|shard| shard.far()))
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
}
