//! What is told of the masters: to metrics, to the log of events and to operators.

use std::{convert::Infallible, sync::Arc};

use tracing::info;

use super::{Cluster, World, slot, slots::SLOTS};
use crate::store::Key;

/// A master, for operators.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it is reached.
    pub address: String,
    /// How many slots it owns.
    pub slots: usize,
    /// Whether it is trusted.
    pub up: bool,
    /// Whether its changes are tracked.
    pub tracked: bool,
}

/// Tells whenever a master has become trusted or tracked, or is not any more.
pub(super) async fn look_out(world: Arc<World>) -> Infallible {
    let (mut before, mut unowned_before) = (0, 0);
    loop {
        world.turned.notified().await;
        let (up, unowned) = world.tell();
        if up > before || unowned < unowned_before {
            // What is owed to it, or of slots that have an owner again, can be paid now.
            world.debts.pending.hurry();
            world.debts.hasten();
        }
        if up != before {
            info!(up, masters = world.map.read().shards.len(), "masters of the cluster are up");
        }
        (before, unowned_before) = (up, unowned);
    }
}

impl World {
    /// Tells how many masters are trusted, and how many slots have no owner; the store is up when all are
    /// and none is.
    fn tell(&self) -> (usize, usize) {
        let map = self.map.read();
        let shards = map.shards.len();
        let up = map.shards.iter().filter(|shard| shard.redis.is_up()).count();
        let tracked = map.shards.iter().filter(|shard| shard.redis.is_tracked()).count();
        let unowned = map.unowned();
        drop(map);
        let is_whole = shards > 0 && unowned == 0;
        self.metrics.cluster.shards_are(up, shards - up, unowned);
        self.metrics.store_is_up(is_whole && up == shards);
        self.metrics.tracking_is_up(is_whole && tracked == shards);
        if is_whole && up == shards {
            self.metrics.breaker.close();
        } else {
            self.metrics.breaker.hold_open();
        }
        (up, unowned)
    }
}

impl Cluster {
    /// Whether every slot has an owner that is trusted.
    pub(in crate::store) fn is_up(&self) -> bool {
        !self.world.is_amiss()
    }

    pub(in crate::store) fn nodes(&self) -> Vec<Node> {
        let map = self.world.map.read();
        let node = |shard: &Arc<super::Shard>| Node {
            address: shard.address.to_string(),
            slots: (0..SLOTS).filter(|slot| shard.slots.contains(*slot)).count(),
            up: shard.redis.is_up(),
            tracked: shard.redis.is_tracked(),
        };
        map.shards.iter().map(node).collect()
    }

    /// The slot of a key, and who owns it.
    pub(in crate::store) fn place(&self, key: &Key) -> (u16, Option<String>) {
        let slot = slot(key);
        let map = self.world.map.read();
        (slot, map.owner(slot).map(|shard| shard.address.to_string()))
    }
}
