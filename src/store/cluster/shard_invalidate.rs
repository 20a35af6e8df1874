//! Invalidations: sent to the owner of a key, and key by key while its slot is moving.
//!
//! # While a slot is moving
//!
//! The keys of the slot are on two nodes, each key on one node at a time, and a script over the
//! four keys of a job is refused: by the source with `TRYAGAIN` if only some of the keys are there,
//! with `ASK` if none is; by the target with `TRYAGAIN` unless all of them are there, the fence
//! included. Reads may pass, but a write or a purge that was not confirmed would leave the entry to
//! other sidecars. So the script is split into commands of one key each, which are always served:
//! by the source if it has the key; otherwise the source answers `ASK`, and the target serves a
//! client that sends `ASKING`. The source does not create a key that it no longer has (it answers
//! `ASK` to that, too), so the key cannot slip back between the answer of the source and our
//! command to the target.
//!
//! The commands are not atomic together. Their order is enough:
//!
//! - **Begin** sets the fence, then deletes main, meta and lease. A lease that was granted before
//!   main was deleted has lost its placeholder, and its fill is refused. A lease that is requested
//!   later finds the fence. (No lease is granted while the slot is moving; but the move may end in
//!   between.)
//! - **End** deletes main, meta and lease, then lifts the fence; with a linger the fence is set
//!   first, as above. Once main is deleted there are no hits, and a fill in flight has lost its
//!   placeholder. A reader that takes a lease after that reads the upstream after the write.
//! - **A fill** is a script over main, meta and lease, and meta does not exist while a lease
//!   stands, so the fill is refused while the slot is moving. After the move either main has lost
//!   its placeholder, or another master is asked, and its epoch is not that of the lease. `admit`
//!   and `replace` name the fence, and so are refused as well.
//! - **A script that was begun** at the source while all four keys were there, and that removes a
//!   key and then looks at it, is stopped half-way. What it did is part of what is done again here.
//!
//! `MOVED` means that the slot map is out of date: the map is refreshed and the key tried once
//! more, within the time that the caller has.

use std::{sync::LazyLock, time::Duration};

use futures_util::future::join_all;
use redis::{Cmd, FromRedisValue, cmd};
use tokio::time::{Instant, timeout};

use super::{Cluster, ClusterState, Shard, slot};
use crate::{
    mutants::{self, Mutant},
    store::{
        Begun, Budget, Ended, Key, KeyReceipt, Redirect, RemovedEntry, StoreError, Token, Write,
        batch_outcome::BatchOutcome,
        millis,
        redis::{DETACHED_TIMEOUT, PURGE_TIMEOUT, REPLAY_BATCH, session::companion},
    },
};

static FENCE: LazyLock<String> =
    LazyLock::new(|| mutants::mutated_script("fence", include_str!("../lua/fence.lua")));

/// One operation on a key, for the owner of the key.
#[derive(Clone, Copy, Debug)]
enum KeyOp<'e> {
    Begin(&'e Key, &'e Token, Duration),
    End(&'e Key, &'e Token, Duration),
    /// Deletes the entry under this name.
    Delete(&'e [u8]),
}

impl Cluster {
    pub(in crate::store) async fn begin(
        &self,
        keys: &[Key],
        write: &Token,
        fence: Duration,
        budget: &mut Budget,
    ) -> (Begun, Result<(), StoreError>) {
        let begins = keys.iter().map(|key| self.state.begin_key(key, write, fence));
        let results = budget.spend_each(begins).await;
        self.state.report_late(keys, &results);
        let result = results.into_iter().collect::<Result<(), _>>();
        // No connection is remembered: the end goes to the owner of the key at that time.
        let begun = if result.is_ok() { Begun::Confirmed(None) } else { Begun::Scattered };
        (begun, result)
    }

    pub(in crate::store) async fn renew(&self, write: &Write) {
        let begins = write.keys.iter().map(|key| self.state.begin_key(key, &write.id, write.fence));
        let _ = timeout(DETACHED_TIMEOUT, join_all(begins)).await;
    }

    /// Returns the confirmation for all keys; those that were not confirmed are pending.
    pub(in crate::store) async fn end(
        &self,
        write: &Write,
        linger: Duration,
        budget: &mut Budget,
    ) -> Result<Ended, StoreError> {
        let mut outcome = BatchOutcome::default();
        let results = self.state.end_each(&write.keys, &write.id, linger, budget).await;
        outcome.add_results(&write.keys, results);
        self.state.retry_queue.pending.relax(&write.keys, &write.id, linger);
        // A begin that was sent and not confirmed may still arrive, and would leave its fence.
        let may_arrive_late = matches!(write.begun, Begun::Scattered);
        let unsure =
            if may_arrive_late { write.keys.iter().collect() } else { outcome.unconfirmed };
        self.state.retry_queue.add(&unsure, &write.id, linger).await;
        outcome.ended
    }

    /// Ends keys in chunks. A chunk waits for `wait` at most; a lost master does not keep the keys
    /// of the others from being ended.
    pub(in crate::store) async fn purge(
        &self,
        write: &Write,
        wait: Duration,
    ) -> (Result<Ended, StoreError>, Vec<Option<KeyReceipt>>) {
        let deadline = Instant::now() + PURGE_TIMEOUT;
        let mut outcome = BatchOutcome::default();
        for chunk in write.keys.chunks(REPLAY_BATCH) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut budget = Budget::new(wait.min(left));
            let ends = self.state.end_each(chunk, &write.id, Duration::ZERO, &mut budget);
            outcome.add_results(chunk, ends.await);
        }
        self.state.retry_queue.add(&outcome.unconfirmed, &write.id, Duration::ZERO).await;
        (outcome.ended, outcome.receipts)
    }

    pub(in crate::store) async fn purge_all(&self) -> Ended {
        // Every key is bypassed from here on, until this purge has been confirmed for its slot.
        let sweep = self.state.retry_queue.pending.add_all().await;
        let ended = self.state.purge_all(&sweep).await;
        if ended == Ended::Pending {
            self.state.retry_queue.wake();
        }
        self.state.retry_queue.update_gauge();
        ended
    }
}

impl ClusterState {
    /// Ends keys at the same time; each has its own result.
    async fn end_each(
        &self,
        keys: &[Key],
        write: &Token,
        linger: Duration,
        budget: &mut Budget,
    ) -> Vec<Result<KeyReceipt, StoreError>> {
        let ends = keys.iter().map(|key| self.end_key(key, write, linger));
        let results = budget.spend_each(ends).await;
        self.report_late(keys, &results);
        results
    }

    /// Reports timeouts to the masters concerned: one operation for each, however many keys were
    /// late.
    fn report_late<T>(&self, keys: &[Key], results: &[Result<T, StoreError>]) {
        let mut late: Vec<u16> = keys
            .iter()
            .zip(results)
            .filter(|(_, result)| matches!(result, Err(StoreError::Timeout)))
            .map(|(key, _)| slot(key))
            .collect();
        late.dedup();
        if late.is_empty() {
            return;
        }
        let map = self.slot_map.read();
        for shard in &map.shards {
            if late.iter().any(|slot| shard.slots.contains(*slot)) {
                shard.redis.note_timeout();
            }
        }
    }

    async fn begin_key(&self, key: &Key, write: &Token, fence: Duration) -> Result<(), StoreError> {
        self.run_at_owner(key.main().as_bytes(), KeyOp::Begin(key, write, fence)).await.map(drop)
    }

    /// Returns what was found under the key.
    pub(super) async fn end_key(
        &self,
        key: &Key,
        write: &Token,
        linger: Duration,
    ) -> Result<KeyReceipt, StoreError> {
        self.run_at_owner(key.main().as_bytes(), KeyOp::End(key, write, linger)).await
    }

    /// Deletes an entry; the name need not be a valid key.
    pub(super) async fn delete_entry(&self, name: &[u8]) -> Result<(), StoreError> {
        self.run_at_owner(name, KeyOp::Delete(name)).await.map(drop)
    }

    /// Runs an operation at the owner of a name, and once more if the slot map was out of date.
    async fn run_at_owner(&self, name: &[u8], op: KeyOp<'_>) -> Result<KeyReceipt, StoreError> {
        let shard = self.slot_map.shard_of(name)?;
        match self.run(&shard, op).await {
            Err(StoreError::Redirected(_)) if mutants::is(Mutant::RedirectedIsDone) => {
                Ok(KeyReceipt::default())
            }
            Err(StoreError::Redirected(Redirect::Moved)) => {
                self.refreshes.next().await;
                let shard = self.slot_map.shard_of(name)?;
                self.run(&shard, op).await
            }
            other => other,
        }
    }

    async fn run(&self, shard: &Shard, op: KeyOp<'_>) -> Result<KeyReceipt, StoreError> {
        let done = match op {
            KeyOp::Begin(key, write, fence) => {
                shard.redis.begin_key(key, write, fence).await.map(|()| KeyReceipt::default())
            }
            KeyOp::End(key, write, linger) => shard.redis.end_key(key, write, linger).await,
            KeyOp::Delete(name) => return self.delete_at(shard, name).await,
        };
        match (done, op) {
            (Err(error), _) if !is_split(&error) || mutants::is(Mutant::RedirectedIsDone) => {
                Err(error)
            }
            (Err(_), KeyOp::Begin(key, write, fence)) => {
                self.begin_by_key(shard, key, write, fence).await.map(|()| KeyReceipt::default())
            }
            (Err(_), KeyOp::End(key, write, linger)) => {
                self.end_by_key(shard, key, write, linger).await
            }
            (done, _) => done,
        }
    }

    async fn begin_by_key(
        &self,
        shard: &Shard,
        key: &Key,
        write: &Token,
        fence: Duration,
    ) -> Result<(), StoreError> {
        let fenced = self.fence(shard, key, write, fence).await;
        // Also if there is no memory for a fence.
        self.delete_at(shard, key.main().as_bytes()).await?;
        fenced
    }

    async fn end_by_key(
        &self,
        shard: &Shard,
        key: &Key,
        write: &Token,
        linger: Duration,
    ) -> Result<KeyReceipt, StoreError> {
        let fenced =
            if linger.is_zero() { Ok(()) } else { self.fence(shard, key, write, linger).await };
        let receipt = self.delete_at(shard, key.main().as_bytes()).await?;
        if linger.is_zero() {
            let mut lift = cmd("ZREM");
            lift.arg(key.companion("fence")).arg(write.as_str());
            self.query_single::<i64>(shard, &lift).await?;
        }
        fenced.and_then(|()| shard.redis.note_confirmed(key)).map(|()| receipt)
    }

    async fn fence(
        &self,
        shard: &Shard,
        key: &Key,
        write: &Token,
        fence: Duration,
    ) -> Result<(), StoreError> {
        let mut set = cmd("EVAL");
        set.arg(&*FENCE).arg(1).arg(key.companion("fence"));
        set.arg(write.as_str()).arg(millis(fence));
        self.query_single::<i64>(shard, &set).await.map(drop)
    }

    /// Deletes main, then meta and lease, one by one. The result describes main and the lease only.
    async fn delete_at(&self, shard: &Shard, name: &[u8]) -> Result<KeyReceipt, StoreError> {
        // A value that is not a string was written by a third party, and is deleted as well.
        let size: usize = self.query_single(shard, cmd("STRLEN").arg(name)).await.unwrap_or(0);
        let deleted: usize = self.query_single(shard, cmd("DEL").arg(name)).await?;
        let mut filling = 0;
        for role in ["meta", "lease"] {
            filling = self.query_single(shard, cmd("DEL").arg(companion(name, role))).await?;
        }
        let is_entry = deleted > 0 && size > 0;
        let entry = is_entry.then_some(RemovedEntry { size, generation: None, age_ms: None });
        Ok(KeyReceipt { entry, filling: filling > 0 })
    }

    /// Sends a command of one key to the source or, if the key is no longer there, to the target.
    async fn query_single<T: FromRedisValue>(
        &self,
        shard: &Shard,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let to = match shard.redis.query(command).await {
            Err(StoreError::Redirected(Redirect::Ask(Some(to)))) => to,
            other => return other,
        };
        let to = self.slot_map.read().resolve_redirect(to, &shard.address);
        let target = self.slot_map.read().shard_at(&to).cloned();
        match target.filter(|target| target.redis.is_up()) {
            Some(target) => target.redis.asking(command).await,
            // A target without slots is not one of our masters yet.
            None => self.temp_connection(&to).await?.asking(command).await,
        }
    }
}

/// Whether the keys of a job are on two nodes, or about to be.
fn is_split(error: &StoreError) -> bool {
    matches!(error, StoreError::Redirected(Redirect::Ask(_) | Redirect::TryAgain))
}
