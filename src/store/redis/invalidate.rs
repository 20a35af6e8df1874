//! Invalidations: sent to the owner of a key, and key by key while its slot is moving (`by_key.rs`).
//!
//! `MOVED` means that the slot map is out of date: the map is refreshed and the key tried once
//! more, within the time that the caller has.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::{
    by_key::{begin_by_key, delete_at, end_by_key, is_split},
    classify::DETACHED_TIMEOUT,
    engine::RedisEngine,
    shard::Shard,
};
use crate::{
    mutants::{self, Mutant},
    store::{
        batch_outcome::BatchOutcome,
        budget::Budget,
        errors::{Redirect, StoreError},
        receipt::KeyReceipt,
        words::{Ended, Key, Token},
        write::{Begun, Write},
    },
};

/// Total time for one purge of listed jobs, over all its chunks. Its caller is a webhook, not a
/// poll.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of keys that are ended at the same time.
pub(super) const END_BATCH: usize = 64;

/// One operation on a key, for the owner of the key.
#[derive(Clone, Copy, Debug)]
enum KeyOp<'e> {
    Begin(&'e Key, &'e Token, Duration),
    End(&'e Key, &'e Token, Duration),
    /// Deletes the entry under this name.
    Delete(&'e [u8]),
}

impl RedisEngine {
    pub(in crate::store) async fn begin(
        &self,
        keys: &[Key],
        write: &Token,
        fence: Duration,
        budget: &mut Budget,
    ) -> (Begun, Result<(), StoreError>) {
        let begins = keys.iter().map(|key| self.begin_key(key, write, fence));
        let results = budget.spend_each(begins).await;
        self.report_late(keys, &results);
        let is_sent = |result: &Result<(), _>| !matches!(result, Err(StoreError::Down));
        let sent = results.iter().any(is_sent);
        let result = results.into_iter().collect::<Result<(), _>>();
        let begun = match &result {
            Ok(()) => Begun::Confirmed,
            Err(_) if sent => Begun::Unconfirmed,
            Err(_) => Begun::NotSent,
        };
        (begun, result)
    }

    pub(in crate::store) async fn renew(&self, write: &Write) {
        if write.begun != Begun::NotSent {
            let begins =
                write.renewed().iter().map(|key| self.begin_key(key, &write.id, write.fence));
            let _ = timeout(DETACHED_TIMEOUT, join_all(begins)).await;
        }
    }

    /// Returns the confirmation for all keys; those that were not confirmed are pending.
    pub(in crate::store) async fn end(
        &self,
        write: &Write,
        linger: Duration,
        budget: &mut Budget,
    ) -> Result<Ended, StoreError> {
        let mut outcome = BatchOutcome::default();
        let results = self.end_each(&write.keys, &write.id, linger, budget).await;
        outcome.add_results(&write.keys, results);
        let queue = &self.context.retry_queue;
        queue.pending.relax(&write.keys, &write.id, linger);
        // A begin that was sent and not confirmed may still arrive, and would leave its fence.
        let may_arrive_late = write.begun == Begun::Unconfirmed;
        let unsure =
            if may_arrive_late { write.keys.iter().collect() } else { outcome.unconfirmed };
        queue.add(&unsure, &write.id, linger).await;
        outcome.ended
    }

    /// Ends the keys of a purge in chunks, so that many keys do not use up the time for the answer.
    /// A chunk waits for `wait` at most. A lost master does not keep the keys of others from being
    /// ended; but if there is only one, and it fails for a reason other than a single key, the purge
    /// stops. All keys that are not confirmed by then become pending.
    pub(in crate::store) async fn purge(
        &self,
        write: &Write,
        wait: Duration,
    ) -> (Result<Ended, StoreError>, Vec<Option<KeyReceipt>>) {
        let deadline = Instant::now() + PURGE_TIMEOUT;
        let mut outcome = BatchOutcome::default();
        let mut chunks = write.keys.chunks(END_BATCH);
        for chunk in chunks.by_ref() {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut budget = Budget::new(wait.min(left));
            let ends = self.end_each(chunk, &write.id, Duration::ZERO, &mut budget);
            outcome.add_results(chunk, ends.await);
            if outcome.is_hopeless() && self.topology.cluster().is_none() {
                break;
            }
        }
        outcome.unconfirmed.extend(chunks.flatten());
        outcome.receipts.resize(write.keys.len(), None);
        self.context.retry_queue.add(&outcome.unconfirmed, &write.id, Duration::ZERO).await;
        (outcome.ended, outcome.receipts)
    }

    /// Ends keys at the same time; each has its own result, so that confirmed keys count even if
    /// others fail.
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

    /// Reports timeouts to the servers concerned: one operation for each, however many keys were
    /// late.
    fn report_late<T>(&self, keys: &[Key], results: &[Result<T, StoreError>]) {
        let late = keys
            .iter()
            .zip(results)
            .filter(|(_, result)| matches!(result, Err(StoreError::Timeout)));
        let mut shards: Vec<Arc<Shard>> =
            late.filter_map(|(key, _)| self.owner(key).ok()).collect();
        shards.sort_unstable_by_key(|shard| shard.number);
        shards.dedup_by_key(|shard| shard.number);
        for shard in shards {
            shard.note_timeout();
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

    /// Runs an operation at the owner of a name, and once more if that was out of date.
    async fn run_at_owner(&self, name: &[u8], op: KeyOp<'_>) -> Result<KeyReceipt, StoreError> {
        let shard = self.topology.owner(name)?;
        let done = self.run(&shard, op).await;
        let Err(StoreError::Redirected(redirect)) = &done else { return done };
        if mutants::is(Mutant::RedirectedIsDone) {
            return Ok(KeyReceipt::default());
        }
        if *redirect == Redirect::Moved && self.topology.refresh().await {
            return self.run(&*self.topology.owner(name)?, op).await;
        }
        done
    }

    async fn run(&self, shard: &Shard, op: KeyOp<'_>) -> Result<KeyReceipt, StoreError> {
        let done = match op {
            KeyOp::Begin(key, write, fence) => {
                shard.begin_key(key, write, fence).await.map(|()| KeyReceipt::default())
            }
            KeyOp::End(key, write, linger) => shard.end_key(key, write, linger).await,
            KeyOp::Delete(name) => return delete_at(&self.topology, shard, name).await,
        };
        match (done, op) {
            (Err(error), _) if !is_split(&error) || mutants::is(Mutant::RedirectedIsDone) => {
                Err(error)
            }
            (Err(_), KeyOp::Begin(key, write, fence)) => {
                begin_by_key(&self.topology, shard, key, write, fence)
                    .await
                    .map(|()| KeyReceipt::default())
            }
            (Err(_), KeyOp::End(key, write, linger)) => {
                end_by_key(&self.topology, shard, key, write, linger).await
            }
            (done, _) => done,
        }
    }
}
