//! The status of the masters: for metrics, for the log of events and for operators.

use std::{convert::Infallible, sync::Arc};

use tracing::info;

use super::{Cluster, ClusterState, slot, slots::SLOTS};
use crate::store::Key;

/// A master, for operators.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The address at which it is reached.
    pub address: String,
    /// Number of slots that it owns.
    pub slots: usize,
    /// Whether it is trusted.
    pub up: bool,
    /// Whether changes on it are tracked.
    pub tracked: bool,
}

/// Publishes the status whenever a master becomes trusted or tracked, or stops being so.
pub(super) async fn publish_changes(world: Arc<ClusterState>) -> Infallible {
    let mut up_before = 0;
    let mut unowned_before = 0;
    loop {
        world.status_changed.notified().await;
        let (up, unowned) = world.publish_status();
        if up > up_before || unowned < unowned_before {
            // Retries for that master, or in slots that have an owner again, can succeed now.
            world.retry_queue.pending.make_all_due();
            world.retry_queue.wake();
        }
        if up != up_before {
            info!(
                up,
                masters = world.slot_map.read().shards.len(),
                "the number of trusted masters has changed"
            );
        }
        up_before = up;
        unowned_before = unowned;
    }
}

impl ClusterState {
    /// Publishes how many masters are trusted and how many slots have no owner, and returns both.
    /// The store is up when all masters are trusted and all slots have an owner.
    fn publish_status(&self) -> (usize, usize) {
        let map = self.slot_map.read();
        let shards = map.shards.len();
        let up = map.shards.iter().filter(|shard| shard.redis.is_up()).count();
        let tracked = map.shards.iter().filter(|shard| shard.redis.is_tracked()).count();
        let unowned = map.unowned();
        drop(map);
        let is_whole = shards > 0 && unowned == 0;
        self.metrics.cluster.set_shards(up, shards - up, unowned);
        self.metrics.set_store_up(is_whole && up == shards);
        self.metrics.set_tracking_up(is_whole && tracked == shards);
        if is_whole && up == shards {
            self.metrics.breaker.close();
        } else {
            self.metrics.breaker.hold_open();
        }
        (up, unowned)
    }
}

impl Cluster {
    /// Whether every slot has an owner, and every master is trusted.
    pub(in crate::store) fn is_up(&self) -> bool {
        !self.state.is_degraded()
    }

    pub(in crate::store) fn nodes(&self) -> Vec<NodeStatus> {
        let map = self.state.slot_map.read();
        let node = |shard: &Arc<super::Shard>| NodeStatus {
            address: shard.address.to_string(),
            slots: (0..SLOTS).filter(|slot| shard.slots.contains(*slot)).count(),
            up: shard.redis.is_up(),
            tracked: shard.redis.is_tracked(),
        };
        map.shards.iter().map(node).collect()
    }

    /// The slot of a key, and the address of its owner.
    pub(in crate::store) fn place(&self, key: &Key) -> (u16, Option<String>) {
        let slot = slot(key);
        let map = self.state.slot_map.read();
        (slot, map.owner(slot).map(|shard| shard.address.to_string()))
    }
}
