//! The status of the servers: for metrics, for the log of events and for operators.

use std::{convert::Infallible, sync::Arc};

use tracing::info;

use super::engine::RedisEngine;
use crate::store::{node_status::NodeStatus, slots::slot_of_key, words::Key};

/// Publishes the status whenever a server becomes trusted or tracked, or stops being so.
pub(super) async fn publish_changes(engine: Arc<RedisEngine>) -> Infallible {
    let mut up_before = 0;
    let mut unowned_before = 0;
    loop {
        engine.context.status_changed.notified().await;
        let (masters, up, unowned) = engine.publish_status();
        if unowned < unowned_before {
            // Retries in slots that have an owner again can succeed now.
            engine.context.retry_queue.pending.make_all_due();
            engine.context.retry_queue.wake();
        }
        if up != up_before && engine.topology.cluster().is_some() {
            info!(up, masters, "the number of trusted masters has changed");
        }
        up_before = up;
        unowned_before = unowned;
    }
}

impl RedisEngine {
    /// Publishes how many masters are trusted and how many slots have no owner, and returns the
    /// number of masters and both. The store is up when all masters are trusted and all slots have
    /// an owner.
    fn publish_status(&self) -> (usize, usize, usize) {
        let metrics = &self.context.metrics;
        let (masters, up, tracked, unowned) = self.topology.with_shards(|shards, unowned| {
            let up = shards.iter().filter(|shard| shard.is_up()).count();
            let tracked = shards.iter().filter(|shard| shard.is_tracked()).count();
            (shards.len(), up, tracked, unowned)
        });
        let is_whole = masters > 0 && unowned == 0;
        if self.topology.cluster().is_some() {
            metrics.cluster.set_shards(up, masters - up, unowned);
        }
        metrics.set_store_up(is_whole && up == masters);
        metrics.set_tracking_up(is_whole && tracked == masters);
        if is_whole && up == masters {
            metrics.breaker.close();
        } else {
            metrics.breaker.hold_open();
        }
        (masters, up, unowned)
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
