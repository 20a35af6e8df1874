//! The store on Redis for any number of servers, and which of them owns a key: one server owns all,
//! or each master of a cluster owns some of the slots.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use redis::{Cmd, FromRedisValue};

use super::{cluster::Cluster, shard::Shard, state::StoreContext};
use crate::{
    clock,
    store::{
        barrier::{BarrierDown, BarrierWait},
        errors::{NodeAddress, Redirect, StoreError},
        slots::{SlotSet, slot_of, slot_of_key},
        words::{Key, NodeStatus, unix_ms},
    },
};

/// The store on one Redis server or several.
pub struct RedisEngine {
    pub(super) topology: Topology,
    pub(in crate::store) context: Arc<StoreContext>,
}

impl fmt::Debug for RedisEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisEngine").field("topology", &self.topology).finish_non_exhaustive()
    }
}

impl RedisEngine {
    /// The server that owns a key now. If the slot changes hands meanwhile, its near entries are
    /// evicted, and what is sent to the former owner is refused.
    pub(in crate::store) fn owner(&self, key: &Key) -> Result<Arc<Shard>, StoreError> {
        self.topology.owner(key.main().as_bytes())
    }

    pub(in crate::store) fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        if self.context.retry_queue.pending.contains(key) {
            return Err(StoreError::Pending);
        }
        self.topology.with_owner(key, Shard::trust)?
    }

    /// Waits for the shard that owns the key. If the slot changes hands meanwhile, the reader does
    /// not pass.
    pub(in crate::store) fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        let polled = self.topology.with_owner(key, |shard| {
            if *wait.shard.get_or_insert(shard.number) != shard.number {
                return Poll::Ready(Err(BarrierDown));
            }
            shard.poll_barrier(staleness, wait, cx)
        });
        polled.unwrap_or(Poll::Ready(Err(BarrierDown)))
    }

    /// Uses the clock of any server that is up; they differ as much as the clocks of their
    /// machines.
    pub(in crate::store) fn now_ms(&self) -> i64 {
        let told = self.topology.with_shards(|shards, _| shards.iter().find_map(|s| s.now_ms()));
        told.unwrap_or_else(|| unix_ms(clock::now()))
    }

    /// Whether every slot has an owner, and every owner is trusted.
    pub(in crate::store) fn is_up(&self) -> bool {
        self.topology.is_up()
    }

    /// Returns the masters of a cluster; empty if there is none.
    pub(in crate::store) fn nodes(&self) -> Vec<NodeStatus> {
        let Some(cluster) = self.topology.cluster() else { return Vec::new() };
        let map = cluster.slot_map.read();
        let nodes = map.shards.iter().map(|shard| NodeStatus {
            address: shard.address().to_owned(),
            slots: shard.slots().snapshot().iter().count(),
            up: shard.is_up(),
            tracked: shard.is_tracked(),
        });
        nodes.collect()
    }

    /// The slot of a key, and the address of its owner; `None` without a cluster.
    pub(in crate::store) fn place(&self, key: &Key) -> Option<(u16, Option<String>)> {
        let slot = slot_of_key(key);
        let map = self.topology.cluster()?.slot_map.read();
        Some((slot, map.owner(slot).map(|shard| shard.address().to_owned())))
    }
}

/// Which server owns a key.
#[derive(Debug)]
pub(super) enum Topology {
    /// One master owns every key; its address comes from the URL or from sentinels.
    One(Arc<Shard>),
    /// The masters of a cluster.
    Cluster(Arc<Cluster>),
}

impl Topology {
    /// Applies `look` to the owner of a key. Hits do not clone its handle.
    pub(super) fn with_owner<T>(
        &self,
        key: &Key,
        look: impl FnOnce(&Shard) -> T,
    ) -> Result<T, StoreError> {
        match self {
            Self::One(shard) => Ok(look(shard)),
            Self::Cluster(cluster) => {
                let map = cluster.slot_map.read();
                map.owner(slot_of_key(key)).map(|shard| look(shard)).ok_or(StoreError::Down)
            }
        }
    }

    /// The owner of a name.
    pub(super) fn owner(&self, name: &[u8]) -> Result<Arc<Shard>, StoreError> {
        match self {
            Self::One(shard) => Ok(Arc::clone(shard)),
            Self::Cluster(cluster) => {
                cluster.slot_map.read().owner(slot_of(name)).cloned().ok_or(StoreError::Down)
            }
        }
    }

    /// Applies `look` to all servers, and to the number of slots without an owner.
    pub(super) fn with_shards<T>(&self, look: impl FnOnce(&[Arc<Shard>], usize) -> T) -> T {
        match self {
            Self::One(shard) => look(std::slice::from_ref(shard), 0),
            Self::Cluster(cluster) => {
                let map = cluster.slot_map.read();
                look(&map.shards, map.unowned())
            }
        }
    }

    /// Returns all servers, each with the slots that it owned at one point in time.
    pub(super) fn shards_with_slots(&self) -> Vec<(Arc<Shard>, SlotSet)> {
        let with_slots = |shard: &Arc<Shard>| (Arc::clone(shard), shard.slots().snapshot());
        self.with_shards(|shards, _| shards.iter().map(with_slots).collect())
    }

    /// Whether every slot has an owner, and every owner is trusted.
    pub(super) fn is_up(&self) -> bool {
        self.with_shards(|shards, unowned| unowned == 0 && shards.iter().all(|shard| shard.is_up()))
    }

    /// Whether any server is trusted.
    pub(super) fn is_any_up(&self) -> bool {
        self.with_shards(|shards, _| shards.iter().any(|shard| shard.is_up()))
    }

    /// Waits until the owners are known that the keys had when this was called, or later. Returns
    /// whether they can have changed.
    pub(super) async fn refresh(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::Cluster(cluster) => {
                cluster.refreshes.next().await;
                true
            }
        }
    }

    /// Runs a command of one key at the node to which the owner of the key has redirected it.
    pub(super) async fn follow_redirect<T: FromRedisValue>(
        &self,
        from: &Shard,
        to: NodeAddress,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        match self {
            Self::One(_) => Err(StoreError::Redirected(Redirect::Ask(Some(to)))),
            Self::Cluster(cluster) => cluster.follow_redirect(from, to, command).await,
        }
    }

    /// The cluster, if it is one.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        if let Self::Cluster(cluster) = self { Some(cluster) } else { None }
    }
}
