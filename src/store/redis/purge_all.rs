//! The purge of all, which does not depend on the number of entries.
//!
//! 1. All slots are pending from here on, so this sidecar trusts nothing (`pending/inner.rs`).
//! 2. Every master that owns pending slots renews their purge tokens (`purge_token.rs`) in one round
//!    trip. All entries and leases there are void with that, for every sidecar.
//! 3. Each master confirms its own slots, which are trusted again. A lost one does not delay the
//!    jobs of the others; the retry worker (`redis.rs`) repeats the rest.
//! 4. A task deletes afterwards what is void (`lua/sweep.lua`). Nobody waits for it, and it changes
//!    no answer.

use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use tokio::time::timeout;

use super::{
    engine::RedisEngine,
    purge_token::{PurgeTokens, TokenOfSlot},
    session::Session,
    shard::Shard,
};
use crate::store::{
    Ended, Redirect, StoreError,
    errors::{DETACHED_TIMEOUT, Result, StoreErrorKind},
    pending::PurgeAllTask,
    slots::SlotSet,
};

/// Time for a topology refresh that begins after now. One may be under way, and nodes that hang
/// slow down each of them.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);

impl RedisEngine {
    pub(crate) async fn purge_all(&self) -> Ended {
        let queue = &self.context.retry_queue;
        // Every key is bypassed from here on, until this purge has been confirmed for its slot.
        let task = queue.pending.add_all().await;
        let ended = self.run_purge_all(&task).await;
        if ended == Ended::Pending {
            queue.changed.notify_one();
        }
        queue.update_gauge();
        ended
    }

    /// Purges the pending slots. Each master confirms those that it owns, whatever becomes of the
    /// others; the purge is confirmed as a whole when no slot is left.
    pub(super) async fn run_purge_all(&self, task: &PurgeAllTask) -> Ended {
        let purged = self.purge_pending_slots(task).await;
        if purged.is_ok() {
            self.context.purged.notify_one();
        }
        self.context.retry_queue.record_purge_all(task, purged)
    }

    /// Renews the purge tokens of the slots, and of those that have moved meanwhile once more.
    async fn purge_pending_slots(&self, task: &PurgeAllTask) -> Result<()> {
        let mut left = task.slots.clone();
        let mut done = self.purge_slots(&mut left, task).await;
        if let Err(StoreError::Redirected(Redirect::Moved)) = done {
            timeout(REFRESH_TIMEOUT, self.refresh_owners()).await?;
            done = self.purge_slots(&mut left, task).await;
        }
        done?;
        // Slots without an owner are not confirmed.
        if left.is_empty() { Ok(()) } else { Err(StoreError::Down) }
    }

    /// Purges slots at all their owners at the same time, and removes those that were confirmed. Returns
    /// the last failure.
    async fn purge_slots(&self, left: &mut SlotSet, task: &PurgeAllTask) -> Result<()> {
        let shares = self.shards_with_slots();
        let purges = shares.iter().map(async |(shard, owned)| {
            let slots = owned.intersection(left);
            self.purge_shard(shard, slots, task).await
        });
        let mut result = Ok(());
        for (confirmed, failed) in join_all(purges).await {
            *left = left.difference(&confirmed);
            // A move is the failure that a second attempt mends.
            if !matches!(result, Err(StoreError::Redirected(Redirect::Moved))) {
                result = failed.map_or(result, Err);
            }
        }
        result
    }

    /// Returns the slots that this server has confirmed, and the failure of the others.
    async fn purge_shard(
        &self,
        shard: &Shard,
        slots: SlotSet,
        task: &PurgeAllTask,
    ) -> (SlotSet, Option<StoreError>) {
        if slots.is_empty() {
            return (slots, None);
        }
        let purge = async {
            let session = shard.state.session()?;
            let renewed =
                timeout(DETACHED_TIMEOUT, self.renew_tokens(shard, &session, &slots)).await?;
            let (confirmed, failed) = renewed?;
            shard.state.note_purged(&session, &confirmed)?;
            self.context.retry_queue.pending.confirm_slots(&confirmed, task);
            Ok((confirmed, failed))
        };
        let purged: Result<_> = purge.await;
        purged.unwrap_or_else(|error| (SlotSet::NONE, Some(error)))
    }

    /// Renews the tokens of slots in one round trip. Returns the slots where all are renewed, and the
    /// last failure.
    async fn renew_tokens(
        &self,
        shard: &Shard,
        session: &Session,
        slots: &SlotSet,
    ) -> Result<(SlotSet, Option<StoreError>)> {
        let tokens = &self.context.purge_tokens;
        let new = PurgeTokens::random();
        let set = |token: TokenOfSlot<'_>| cmd("SET").arg(&*token.name()).arg(&new).to_owned();
        let renewed = session.query_each(tokens.in_slots(slots).map(set)).await?;
        let mut renewals = Renewals { failed_slots: SlotSet::NONE, failed: None };
        let mut refused = Vec::new();
        for (token, renewed) in tokens.in_slots(slots).zip(renewed) {
            match renewed {
                Err(error) if error.kind() == StoreErrorKind::Refused => {
                    refused.push(token);
                }
                Err(StoreError::Redirected(Redirect::Ask(_))) => {
                    renewals.note(token.slot, self.query_single(shard, &set(token)).await);
                }
                renewed => renewals.note(token.slot, renewed),
            }
        }
        // A server that is full takes no new token. Without a token nothing counts either.
        let deletions = refused.iter().map(|token| cmd("DEL").arg(&*token.name()).to_owned());
        for (token, deleted) in refused.iter().zip(session.query_each(deletions).await?) {
            renewals.note(token.slot, deleted);
        }
        let Renewals { failed_slots, failed } = renewals;
        let confirmed = match failed {
            Some(_) if tokens.is_one_for_all() => SlotSet::NONE,
            _ => slots.difference(&failed_slots),
        };
        Ok((confirmed, failed))
    }

    /// Deletes what purges of all have voided, in small steps: memory is freed, and readers need not
    /// refuse it one by one. Fences stay, because their writes are still in flight.
    pub(super) async fn sweep(&self) -> Result<()> {
        let events = &self.context.events;
        events.expect_own_purge_all();
        let mut result = Ok(());
        for (shard, _) in self.shards_with_slots() {
            for prefix in &self.context.prefixes {
                let swept = async { self.sweep_prefix(&*shard.state.session()?, prefix).await };
                result = swept.await.and(result);
            }
        }
        events.end_own_purge_all();
        result
    }

    async fn sweep_prefix(&self, session: &Session, prefix: &str) -> Result<()> {
        let mut cursor = 0;
        loop {
            let step = async {
                let (next, names) = session.scan(prefix, cursor).await?;
                let sweeps = names.iter().map(async |name| {
                    let token = self.context.purge_tokens.of_name(prefix, name);
                    session.sweep(name, &token).await
                });
                for swept in join_all(sweeps).await {
                    // The slot is moving, or is no longer this master's.
                    let Err(error) = swept else { continue };
                    let kind = error.kind();
                    if !matches!(kind, StoreErrorKind::Refused | StoreErrorKind::Redirected) {
                        return Err(error);
                    }
                }
                Ok::<_, StoreError>(next)
            };
            cursor = timeout(DETACHED_TIMEOUT, step).await??;
            if cursor == 0 {
                return Ok(());
            }
        }
    }
}

/// The failures of the renewals of purge tokens.
struct Renewals {
    failed_slots: SlotSet,
    failed: Option<StoreError>,
}

impl Renewals {
    fn note(&mut self, slot: u16, renewed: Result<()>) {
        if let Err(error) = renewed {
            self.failed_slots.insert(slot);
            self.failed = Some(error);
        }
    }
}
