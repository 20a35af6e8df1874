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
        errors::{Budget, DETACHED_TIMEOUT, Redirect, StoreError},
        words::{Ended, Key, Token, millis},
        write::{BatchOutcome, Begun, KeyReceipt, RemovedEntry, Write},
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

static FENCE: LazyLock<String> =
    LazyLock::new(|| mutants::mutated_script("fence", include_str!("../lua/fence.lua")));

pub(super) async fn begin_by_key(
    topology: &Topology,
    shard: &Shard,
    key: &Key,
    write: &Token,
    fence: Duration,
) -> Result<(), StoreError> {
    let fenced = set_fence(topology, shard, key, write, fence).await;
    // Also if there is no memory for a fence.
    let deleted = delete_at(topology, shard, key.main().as_bytes()).await;
    // First, because a fence that is not confirmed may still arrive.
    fenced.and(deleted.map(drop))
}

pub(super) async fn end_by_key(
    topology: &Topology,
    shard: &Shard,
    key: &Key,
    write: &Token,
    linger: Duration,
) -> Result<KeyReceipt, StoreError> {
    let fenced = if linger.is_zero() {
        Ok(())
    } else {
        set_fence(topology, shard, key, write, linger).await
    };
    let receipt = delete_at(topology, shard, key.main().as_bytes()).await?;
    if linger.is_zero() {
        let mut lift = cmd("ZREM");
        lift.arg(key.companion("fence")).arg(write.as_str());
        query_single::<i64>(topology, shard, &lift).await?;
    }
    fenced.and_then(|()| shard.note_confirmed(key)).map(|()| receipt)
}

async fn set_fence(
    topology: &Topology,
    shard: &Shard,
    key: &Key,
    write: &Token,
    fence: Duration,
) -> Result<(), StoreError> {
    let mut set = cmd("EVAL");
    set.arg(&*FENCE).arg(1).arg(key.companion("fence"));
    set.arg(write.as_str()).arg(millis(fence));
    query_single::<i64>(topology, shard, &set).await.map(drop)
}

/// Deletes main, then meta and lease, one by one. The result describes main and the lease only.
pub(super) async fn delete_at(
    topology: &Topology,
    shard: &Shard,
    name: &[u8],
) -> Result<KeyReceipt, StoreError> {
    // A value that is not a string was written by a third party, and is deleted as well.
    let size: usize = query_single(topology, shard, cmd("STRLEN").arg(name)).await.unwrap_or(0);
    let deleted: usize = query_single(topology, shard, cmd("DEL").arg(name)).await?;
    let mut filling = 0;
    for role in ["meta", "lease"] {
        filling = query_single(topology, shard, cmd("DEL").arg(companion(name, role))).await?;
    }
    let is_entry = deleted > 0 && size > 0;
    let entry = is_entry.then_some(RemovedEntry { size, generation: None, age_ms: None });
    Ok(KeyReceipt { entry, filling: filling > 0 })
}

/// Sends a command of one key to the source or, if the key is no longer there, to the target.
async fn query_single<T: FromRedisValue>(
    topology: &Topology,
    shard: &Shard,
    command: &Cmd,
) -> Result<T, StoreError> {
    match shard.query(command).await {
        Err(StoreError::Redirected(Redirect::Ask(Some(to)))) => {
            topology.follow_redirect(shard, to, command).await
        }
        other => other,
    }
}

/// Whether the keys of a job are on two nodes, or about to be.
pub(super) fn is_split(error: &StoreError) -> bool {
    matches!(error, StoreError::Redirected(Redirect::Ask(_) | Redirect::TryAgain))
}
