//! Which server owns a key, and when that changes: one server owns all, or each master of a cluster
//! owns some of the slots.

use std::sync::Arc;

use redis::{Cmd, FromRedisValue};

use super::{cluster::Cluster, shard::Shard};
use crate::store::{
    errors::{Redirect, StoreError},
    node_address::NodeAddress,
    slots::{SlotSet, slot_of, slot_of_key},
    words::Key,
};

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
