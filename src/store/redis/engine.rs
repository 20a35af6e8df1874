//! The store on Redis: what holds for any number of servers.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{context::StoreContext, shard::Shard, topology::Topology};
use crate::{
    clock,
    store::{
        barrier::{BarrierDown, BarrierWait},
        errors::StoreError,
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

    /// Tries a last time to confirm what is pending, within `deadline`.
    pub(in crate::store) async fn close(&self, deadline: Duration) {
        let queue = &self.context.retry_queue;
        if queue.pending.is_empty() {
            return;
        }
        let last_try = async {
            if !self.topology.is_any_up() {
                let shards = self.topology.shards_with_slots();
                join_all(shards.iter().map(|(shard, _)| shard.connect_once())).await;
            }
            queue.pending.make_all_due();
            self.retry_due().await;
        };
        let _ = timeout(deadline, last_try).await;
        queue.log_remaining();
    }
}
