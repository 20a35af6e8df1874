//! Paying what is owed: invalidations that were not confirmed, and purges of all.
//!
//! There is one set for the process. What is in it goes to whoever owns the key when it is repeated. A purge
//! of all goes to every master that owns slots for which it is owed, and is confirmed by each for its own:
//! one that is lost, or a slot without an owner, keeps the others' jobs from their cache no longer than
//! their own masters take.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{Shard, World};
use crate::store::{
    Ended, StoreError,
    cluster::SlotSet,
    pending::{Item, Sweep},
    redis::{DETACHED_TIMEOUT, REPLAY_BATCH, keeper::PURGE_ALL_TIMEOUT, session::Session},
};

/// For a lesson that begins after now: one may be under way, and nodes that hang hold each up.
const LESSON: Duration = Duration::from_secs(3);

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
        if let Some(sweep) = self.debts.pending.sweep() {
            self.purge_all(&sweep).await;
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

    /// Each master confirms for the slots that it owns, whatever becomes of the others; the whole is
    /// confirmed when no slot is left.
    pub(super) async fn purge_all(&self, sweep: &Sweep) -> Ended {
        let purged = self.sweep(sweep).await;
        self.debts.settle_all(sweep, purged)
    }

    /// Whose the slots are is looked at once, in a map that was learned after they became pending: `SCAN`
    /// names no key, so that a master from which a slot had gone before would look through it in vain and
    /// not say so. A slot that moves later is missed where it arrives, and what came along is no entry
    /// there: it was stored in another epoch. What is stored there anew was read from the upstream later.
    async fn sweep(&self, sweep: &Sweep) -> Result<usize, StoreError> {
        let is_owing = |(shard, own): &(Arc<Shard>, SlotSet)| {
            shard.redis.is_up() && !own.shared(&sweep.slots).is_empty()
        };
        if !self.map.shares().iter().any(is_owing) {
            return Err(StoreError::Down);
        }
        timeout(LESSON, self.lessons.next()).await.map_err(|_| StoreError::Timeout)?;
        let shares = self.map.shares();
        self.metrics.events.expect_all();
        let purges = shares.iter().map(|(shard, own)| self.purge_shard(shard, own, sweep));
        let purges = join_all(purges).await;
        self.metrics.events.expect_no_more();
        let mut owned = SlotSet::NONE;
        for (_, own) in &shares {
            owned.add(own);
        }
        let entries = purges.into_iter().sum::<Result<usize, _>>()?;
        // Nobody has confirmed for those without an owner.
        if sweep.slots.without(&owned).is_empty() { Ok(entries) } else { Err(StoreError::Down) }
    }

    async fn purge_shard(
        &self,
        shard: &Shard,
        own: &SlotSet,
        sweep: &Sweep,
    ) -> Result<usize, StoreError> {
        let slots = own.shared(&sweep.slots);
        if slots.is_empty() {
            return Ok(0);
        }
        let session = shard.redis.session()?;
        let purge = timeout(PURGE_ALL_TIMEOUT, self.look_through(&session, &slots));
        let entries = purge.await.unwrap_or(Err(StoreError::Timeout))?;
        shard.redis.purged(&session, &slots)?;
        self.debts.pending.confirm_slots(&slots, sweep);
        Ok(entries)
    }

    async fn look_through(&self, session: &Session, slots: &SlotSet) -> Result<usize, StoreError> {
        let (mut cursor, mut entries) = (0, 0);
        loop {
            let step = async {
                let (next, names) = session.scan(&self.config.prefix, cursor).await?;
                match session.delete(&names).await {
                    // Of a slot that is on its way, or that is none of this master's.
                    Err(StoreError::Redirected(_)) => self.void_each(&names, slots).await?,
                    other => other?,
                }
                Ok((next, names.len()))
            };
            let (next, deleted) =
                timeout(DETACHED_TIMEOUT, step).await.unwrap_or(Err(StoreError::Timeout))?;
            entries += deleted;
            if next == 0 {
                return Ok(entries);
            }
            cursor = next;
        }
    }

    /// Key by key. What lies here of other slots is their owners' to confirm, and with none, or one that is
    /// lost, must not keep these from it.
    async fn void_each(&self, names: &[Vec<u8>], slots: &SlotSet) -> Result<(), StoreError> {
        let voids = names.iter().map(async |name| match self.void(name).await {
            Err(error) if slots.own(name) => Err(error),
            _ => Ok(()),
        });
        join_all(voids).await.into_iter().collect()
    }
}
