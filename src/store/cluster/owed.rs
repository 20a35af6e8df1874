//! Paying what is owed: invalidations that were not confirmed, and purges of all.
//!
//! There is one set for the process. What is in it goes to whoever owns the key when it is repeated.

use std::{convert::Infallible, sync::Arc};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Shard, World};
use crate::store::{
    Ended, StoreError,
    pending::Item,
    redis::{DETACHED_TIMEOUT, REPLAY_BATCH, keeper::PURGE_ALL_TIMEOUT},
};

/// Pays for ever.
pub(super) async fn pay(world: Arc<World>) -> Infallible {
    loop {
        world.pay_all().await;
        world.debts.due().await;
    }
}

impl World {
    /// Repeats what is due. What fails is postponed, so that this comes to an end.
    pub(super) async fn pay_all(&self) {
        if let Some(addition) = self.debts.pending.all() {
            self.purge_all(addition).await;
        }
        loop {
            let batch = self.debts.pending.batch(REPLAY_BATCH);
            if batch.is_empty() {
                break;
            }
            join_all(batch.iter().map(|item| self.repeat(item))).await;
        }
        self.debts.count();
    }

    async fn repeat(&self, item: &Item) {
        self.metrics.events.expect(item.key.main());
        let end = timeout(DETACHED_TIMEOUT, self.end_key(&item.key, &item.write, item.linger));
        self.debts.settle(item, end.await.unwrap_or(Err(StoreError::Timeout)));
    }

    /// Confirmed when every master has confirmed. What moves from one that was not looked through yet to
    /// one that was is missed, and no entry any more where it is now: it was stored in another epoch.
    pub(super) async fn purge_all(&self, addition: u64) -> Ended {
        self.metrics.events.expect_all();
        let purge = async {
            let shards = self.map.shards();
            if shards.is_empty() || self.map.read().unowned() > 0 {
                return Err(StoreError::Down);
            }
            let purges = join_all(shards.iter().map(|shard| self.purge_shard(shard))).await;
            let entries = purges.into_iter().sum::<Result<usize, _>>()?;
            // Those that came meanwhile were not looked through.
            let is_same = self
                .map
                .shards()
                .iter()
                .all(|now| shards.iter().any(|shard| Arc::ptr_eq(now, shard)));
            if is_same { Ok(entries) } else { Err(StoreError::Down) }
        };
        let purged = timeout(PURGE_ALL_TIMEOUT, purge).await;
        self.metrics.events.expect_no_more();
        self.debts.settle_all(addition, purged.unwrap_or(Err(StoreError::Timeout)))
    }

    async fn purge_shard(&self, shard: &Shard) -> Result<usize, StoreError> {
        let session = shard.redis.session()?;
        let (mut cursor, mut entries) = (0, 0);
        loop {
            let step = async {
                let (next, names) = session.scan(&self.config.prefix, cursor).await?;
                match session.delete(&names).await {
                    // Of a slot that is on its way: key by key.
                    Err(StoreError::Redirected(_)) => {
                        join_all(names.iter().map(|name| self.void(name)))
                            .await
                            .into_iter()
                            .collect::<Result<(), _>>()?;
                    }
                    other => other?,
                }
                Ok((next, names.len()))
            };
            let (next, deleted) =
                timeout(DETACHED_TIMEOUT, step).await.unwrap_or(Err(StoreError::Timeout))?;
            entries += deleted;
            if next == 0 {
                shard.redis.confirmed_all();
                return Ok(entries);
            }
            cursor = next;
        }
    }
}
