//! The store on Redis: what holds for any number of servers.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use super::{context::StoreContext, shard::Shard, topology::Topology};
use crate::{
    clock,
    store::{
        barrier::{BarrierDown, BarrierWait},
        errors::StoreError,
        node_status::NodeStatus,
        slots::slot_of_key,
        words::{Key, unix_ms},
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
