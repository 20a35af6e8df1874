//! Invalidations: sent to the owner of a key, and key by key while its slot is moving.
//!
//! `MOVED` means that the slot map is out of date: the map is refreshed and the key tried once
//! more, within the time that the caller has.
//!
//! # While the slot of a job is moving
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

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::future::join_all;
use redis::{Cmd, FromRedisValue, cmd};
use tokio::time::{Instant, timeout};

use super::{
    engine::{RedisEngine, Topology},
    session::companion,
    shard::Shard,
};
use crate::{
    mutants::{self, Mutant},
    store::{
        Budget, Ended, Key, KeyReceipt, Redirect, RemovedEntry, StoreError, Token, Write,
        errors::{DETACHED_TIMEOUT, Result, StoreErrorKind},
        slots::slot_of_key,
        words::millis,
        write::{Begun, KeyOp, WriteStep, combined},
    },
};

/// Total time for one purge of listed jobs, over all its chunks. Its caller is a webhook, not a
/// poll.
const PURGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of keys that are ended at the same time.
pub(super) const END_BATCH: usize = 64;

/// Most keys of one round trip. A script over so many keeps the server busy for well below 1 ms.
const CHUNK: usize = 64;

static FENCE: LazyLock<String> =
    LazyLock::new(|| mutants::mutated_script("fence", include_str!("../lua/fence.lua")));

/// Steps on keys of one server, ordered by slot.
struct Chunk<'w> {
    shard: Arc<Shard>,
    /// The place of each among all steps.
    places: Vec<usize>,
    ops: Vec<KeyOp<'w>>,
}

impl RedisEngine {
    /// Fences the keys of a write, and records in it whether the fence stands.
    pub(crate) async fn begin(&self, write: &mut Write, budget: &mut Budget) -> Result<()> {
        let (step, fence) = (WriteStep::Begin, write.fence);
        let results = self.run_each(step, &write.keys, &write.id, fence, budget).await;
        let is_sent = results.iter().any(|result| !matches!(result, Err(StoreError::Down)));
        let result = results.into_iter().try_for_each(|result| result.map(drop));
        write.begun = match &result {
            Ok(()) => Begun::Confirmed,
            Err(_) if is_sent => Begun::Unconfirmed,
            Err(_) => Begun::NotSent,
        };
        result
    }

    pub(crate) async fn renew(&self, write: &Write) {
        if write.begun != Begun::NotSent {
            let (step, fence, write_id) = (WriteStep::Begin, write.fence, &write.id);
            let begins = write.renewed().iter();
            let begins = begins.map(|key| self.run(KeyOp { step, key, write: write_id, fence }));
            let _ = timeout(DETACHED_TIMEOUT, join_all(begins)).await;
        }
    }

    /// Returns the outcome for all keys, and the receipt of each; those that were not confirmed are
    /// pending.
    pub(crate) async fn end(
        &self,
        write: &Write,
        linger: Duration,
        budget: &mut Budget,
    ) -> (Result<Ended>, Vec<Option<KeyReceipt>>) {
        let results = self.run_each(WriteStep::End, &write.keys, &write.id, linger, budget).await;
        self.context.retry_queue.pending.relax(&write.keys, &write.id, linger);
        self.settle(write, linger, results).await
    }

    /// Ends the keys of a purge in chunks, so that many keys do not use up the time for the answer.
    /// A chunk waits for `wait` at most. A lost master does not keep the keys of others from being
    /// ended; but if there is only one, and it fails for a reason other than a single key, the
    /// purge stops. All keys that are not confirmed by then become pending.
    pub(crate) async fn purge(
        &self,
        write: &Write,
        wait: Duration,
    ) -> (Result<Ended>, Vec<Option<KeyReceipt>>) {
        // A purge can wait for a server that is far away; nobody waits for the answer as for a poll.
        let is_far = self.with_shards(|shards, _| shards.iter().any(|shard| shard.is_far()));
        let wait = if is_far { wait.max(DETACHED_TIMEOUT) } else { wait };
        let deadline = Instant::now() + PURGE_TIMEOUT;
        let mut results = Vec::with_capacity(write.keys.len());
        for chunk in write.keys.chunks(END_BATCH) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut budget = Budget::new(wait.min(left));
            let (step, linger) = (WriteStep::End, Duration::ZERO);
            results.extend(self.run_each(step, chunk, &write.id, linger, &mut budget).await);
            let failed = results.iter().rev().find_map(|result| result.as_ref().err());
            let is_hopeless = failed.is_some_and(|error| error.kind() != StoreErrorKind::Refused);
            if is_hopeless && self.cluster().is_none() {
                break;
            }
        }
        self.settle(write, Duration::ZERO, results).await
    }

    /// Makes the keys pending that are not among the confirmed results.
    async fn settle(
        &self,
        write: &Write,
        linger: Duration,
        results: Vec<Result<KeyReceipt>>,
    ) -> (Result<Ended>, Vec<Option<KeyReceipt>>) {
        let (ended, mut receipts) = combined(results);
        receipts.resize(write.keys.len(), None);
        // A begin that was sent and not confirmed may still arrive, and would leave its fence.
        let may_arrive_late = write.begun == Begun::Unconfirmed;
        let ends = write.keys.iter().zip(&receipts);
        let unsure = ends.filter(|(_, receipt)| may_arrive_late || receipt.is_none());
        let unsure: Vec<&Key> = unsure.map(|(key, _)| key).collect();
        self.context.retry_queue.add(&unsure, &write.id, linger).await;
        (ended, receipts)
    }

    /// Takes a step of a write on some keys at the same time; each has its own result, so that
    /// confirmed keys count even if others fail. Timeouts are reported to the servers concerned:
    /// one operation for each, however many keys were late.
    async fn run_each(
        &self,
        step: WriteStep,
        keys: &[Key],
        write: &Token,
        fence: Duration,
        budget: &mut Budget,
    ) -> Vec<Result<KeyReceipt>> {
        let steps = keys.iter().map(|key| KeyOp { step, key, write, fence });
        let began = Instant::now();
        let results = if keys.len() > 1 {
            self.run_chunks(steps, budget).await
        } else {
            budget.spend_each(steps.map(|op| self.run(op))).await
        };
        let is_late = |result: &Result<_, _>| matches!(result, Err(StoreError::Timeout));
        let late = keys.iter().zip(&results).filter(|(_, result)| is_late(result));
        let shards = late.filter_map(|(key, _)| self.owner(key).ok());
        let shards: BTreeMap<u64, Arc<Shard>> = shards.map(|shard| (shard.number, shard)).collect();
        for shard in shards.values() {
            shard.note_timeout(began);
        }
        results
    }

    /// Takes steps on many keys in few round trips: one by one, the thousand jobs that a request may name
    /// would keep this process busy for long.
    async fn run_chunks<'w>(
        &self,
        ops: impl ExactSizeIterator<Item = KeyOp<'w>>,
        budget: &mut Budget,
    ) -> Vec<Result<KeyReceipt>> {
        let mut results: Vec<_> = (0..ops.len()).map(|_| Err(StoreError::Down)).collect();
        let chunks = self.chunks(ops);
        let done = budget.spend_each(chunks.iter().map(|chunk| self.run_chunk(chunk))).await;
        for (chunk, done) in chunks.iter().zip(done) {
            match done {
                Ok(done) => {
                    for (at, result) in chunk.places.iter().zip(done) {
                        results[*at] = result;
                    }
                }
                Err(error) => {
                    chunk.places.iter().for_each(|at| results[*at] = Err(error.of_another_key()));
                }
            }
        }
        results
    }

    /// Sorts steps by the owners of their keys, and by their slots. Those without an owner are left out.
    fn chunks<'w>(&self, ops: impl Iterator<Item = KeyOp<'w>>) -> Vec<Chunk<'w>> {
        let mut chunks: Vec<Chunk<'w>> = Vec::new();
        let mut add = |shard: &Arc<Shard>, at: usize, op: KeyOp<'w>| match chunks.last_mut() {
            Some(last) if last.shard.number == shard.number && last.ops.len() < CHUNK => {
                last.places.push(at);
                last.ops.push(op);
            }
            _ => chunks.push(Chunk { shard: Arc::clone(shard), places: vec![at], ops: vec![op] }),
        };
        match &self.topology {
            Topology::One(shard) => ops.enumerate().for_each(|(at, op)| add(shard, at, op)),
            Topology::Cluster(cluster) => {
                let map = cluster.slot_map();
                let owned = ops.enumerate().filter_map(|(at, op)| {
                    let slot = slot_of_key(op.key);
                    Some((map.owner(slot)?, slot, at, op))
                });
                let mut owned: Vec<_> = owned.collect();
                owned.sort_by_key(|(shard, slot, ..)| (shard.number, *slot));
                for (shard, _, at, op) in owned {
                    add(shard, at, op);
                }
            }
        }
        chunks
    }

    async fn run_chunk(&self, chunk: &Chunk<'_>) -> Result<Vec<Result<KeyReceipt>>> {
        let results = chunk.shard.run_all(&chunk.ops).await?;
        let is_settled = |result: &Option<Result<_>>| matches!(result, Some(result) if !matches!(result, Err(StoreError::Redirected(_))));
        let left = chunk.ops.iter().zip(&results).filter(|(_, result)| !is_settled(result));
        let mut left = join_all(left.map(|(op, _)| self.run(*op))).await.into_iter();
        let settled = results.into_iter().map(|result| match result {
            Some(result) if !matches!(result, Err(StoreError::Redirected(_))) => result,
            // As many as are not settled.
            _ => left.next().unwrap_or(Err(StoreError::Down)),
        });
        Ok(settled.collect())
    }

    /// Takes a step at the owner of the key, and once more if that was out of date. Returns what
    /// was found under the key.
    pub(super) async fn run(&self, op: KeyOp<'_>) -> Result<KeyReceipt> {
        let done = self.run_at(&*self.owner(op.key)?, op).await;
        if self.was_outdated(&done).await {
            return self.run_at(&*self.owner(op.key)?, op).await;
        }
        done
    }

    async fn run_at(&self, shard: &Shard, op: KeyOp<'_>) -> Result<KeyReceipt> {
        match shard.run(op).await {
            Err(StoreError::Redirected(_)) if mutants::is(Mutant::RedirectedIsDone) => {
                Ok(KeyReceipt::default())
            }
            // The keys of the job are on two nodes, or about to be.
            Err(StoreError::Redirected(Redirect::Ask(_) | Redirect::TryAgain)) => {
                self.run_by_key(shard, op).await
            }
            done => done,
        }
    }

    /// Returns whether the slot map was out of date, and has been refreshed.
    async fn was_outdated(&self, done: &Result<KeyReceipt>) -> bool {
        matches!(done, Err(StoreError::Redirected(Redirect::Moved))) && self.refresh_owners().await
    }

    async fn run_by_key(&self, shard: &Shard, op: KeyOp<'_>) -> Result<KeyReceipt> {
        let KeyOp { step, key, write, fence } = op;
        let fence_key = key.companion("fence");
        let lifts = step == WriteStep::End && fence.is_zero();
        let mut fenced = Ok(0);
        if !lifts {
            let mut set = cmd("EVAL");
            set.arg(&*FENCE).arg(1).arg(&fence_key).arg(write.as_str()).arg(millis(fence));
            fenced = self.query_single::<i64>(shard, &set).await;
        }
        // Also if there is no memory for a fence.
        let deleted = self.delete_by_key(shard, key.main().as_bytes()).await;
        if step == WriteStep::Begin {
            // First, because a fence that is not confirmed may still arrive.
            return fenced.and(deleted);
        }
        let receipt = deleted?;
        if lifts {
            let mut lift = cmd("ZREM");
            lift.arg(&fence_key).arg(write.as_str());
            self.query_single::<i64>(shard, &lift).await?;
        }
        fenced?;
        shard.note_confirmed(key)?;
        Ok(receipt)
    }

    /// Deletes main, then meta and lease, one by one. The result describes main and the lease only.
    async fn delete_by_key(&self, shard: &Shard, name: &[u8]) -> Result<KeyReceipt> {
        // A value that is not a string was written by a third party, and is deleted as well.
        let size: usize =
            self.query_single(shard, cmd("STRLEN").arg(name)).await.unwrap_or_default();
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
    pub(super) async fn query_single<T: FromRedisValue>(
        &self,
        shard: &Shard,
        command: &Cmd,
    ) -> Result<T> {
        match (shard.query(command).await, self.cluster()) {
            (Err(StoreError::Redirected(Redirect::Ask(Some(to)))), Some(cluster)) => {
                cluster.follow_redirect(shard, to, command).await
            }
            (other, _) => other,
        }
    }
}
