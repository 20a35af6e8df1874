//! Invalidations: at whoever owns a key, and key by key where its slot is on its way.
//!
//! # While a slot is on its way
//!
//! Its keys are on two nodes, each on one of them at a time, and a script over the four keys of a job is
//! refused: with `TRYAGAIN` where some are here and some are not, with `ASK` where none is here, and at
//! the other node with `TRYAGAIN` unless all are there, the fence included. Reads may pass; a write or a
//! purge that was not confirmed would leave the entry to other sidecars. So it is taken apart into
//! commands of one key each, which are always served: at the source if the key is there, else it says
//! `ASK`, and the target serves whoever says `ASKING`. A key that the source does not have is not made
//! there any more (it says `ASK` to that, too), so between its answer and ours to the target the key
//! cannot slip back.
//!
//! Apart they are not atomic. This is why their order is enough:
//!
//! - **Begin** sets the fence, then deletes main, meta and lease. A lease that was granted before main
//!   was deleted has lost its placeholder, and its fill is refused. One that is asked for after that
//!   finds the fence. (No lease is granted while the slot is on its way; but it may arrive in between.)
//! - **End** deletes main, meta and lease, then lifts the fence; with a linger the fence is set first,
//!   as above. Once main is deleted nobody has a hit, and who fills has lost his placeholder. Whoever
//!   leases after that reads the upstream after the write.
//! - **A fill** is a script over main, meta and lease, of which meta is not there while a lease stands:
//!   it is refused while the slot is on its way. After that main has lost its placeholder, or another
//!   master is asked, whose epoch is not that of the lease. So it is with `admit` and `replace`, which
//!   name the fence and so are refused as well.
//! - **A script that was begun** at the source with all four keys there, and which removes one and then
//!   looks at it, is stopped half-way. What it did is a part of what is done again here.
//!
//! `MOVED` says that the map is out of date: it is learned anew and the key tried once more, within the
//! time that the caller has.

use std::{sync::LazyLock, time::Duration};

use futures_util::future::join_all;
use redis::{Cmd, FromRedisValue, cmd};
use tokio::time::{Instant, timeout};

use super::{Cluster, Shard, World, slot};
use crate::{
    mutants::{self, Mutant},
    store::{
        Begun, Budget, Ended, Key, Redirect, StoreError, Token, Was, WasEntry, Write, millis,
        redis::{DETACHED_TIMEOUT, PURGE_TIMEOUT, REPLAY_BATCH, session::companion},
        tally::Tally,
    },
};

static FENCE: LazyLock<String> =
    LazyLock::new(|| mutants::script("fence", include_str!("../lua/fence.lua")));

/// What is to be done at whoever owns a key.
#[derive(Clone, Copy, Debug)]
enum Errand<'e> {
    Begin(&'e Key, &'e Token, Duration),
    End(&'e Key, &'e Token, Duration),
    /// Of an entry under this name.
    Void(&'e [u8]),
}

impl Cluster {
    pub(in crate::store) async fn begin(
        &self,
        keys: &[Key],
        write: &Token,
        fence: Duration,
        budget: &mut Budget,
    ) -> (Begun, Result<(), StoreError>) {
        let begins = keys.iter().map(|key| self.world.begin_key(key, write, fence));
        let results = budget.spend_each(begins).await;
        self.world.blame(keys, &results);
        let result = results.into_iter().collect::<Result<(), _>>();
        // Connections are not held on to: the end goes to whoever owns the key then.
        let begun = if result.is_ok() { Begun::Confirmed(None) } else { Begun::Scattered };
        (begun, result)
    }

    pub(in crate::store) async fn renew(&self, write: &Write) {
        let begins = write.keys.iter().map(|key| self.world.begin_key(key, &write.id, write.fence));
        let _ = timeout(DETACHED_TIMEOUT, join_all(begins)).await;
    }

    /// Confirmed for every key, or remembered as pending for those that were not.
    pub(in crate::store) async fn end(
        &self,
        write: &Write,
        linger: Duration,
        budget: &mut Budget,
    ) -> Result<Ended, StoreError> {
        let mut tally = Tally::default();
        let results = self.world.end_each(&write.keys, &write.id, linger, budget).await;
        tally.take(&write.keys, results);
        // A begin that was sent and not confirmed may still come, and would leave its fence.
        let again = matches!(write.begun, Begun::Scattered);
        let unsure = if again { write.keys.iter().collect() } else { tally.unsure };
        self.world.debts.remember(&unsure, &write.id, linger).await;
        tally.ended
    }

    /// Ends keys in chunks. A chunk waits for `wait` at most; a master that is lost keeps nobody from
    /// asking the others.
    pub(in crate::store) async fn purge(
        &self,
        write: &Write,
        wait: Duration,
    ) -> (Result<Ended, StoreError>, Vec<Option<Was>>) {
        let deadline = Instant::now() + PURGE_TIMEOUT;
        let mut tally = Tally::default();
        for chunk in write.keys.chunks(REPLAY_BATCH) {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut budget = Budget::new(wait.min(left));
            let ends = self.world.end_each(chunk, &write.id, Duration::ZERO, &mut budget);
            tally.take(chunk, ends.await);
        }
        self.world.debts.remember(&tally.unsure, &write.id, Duration::ZERO).await;
        (tally.ended, tally.was)
    }

    pub(in crate::store) async fn purge_all(&self) -> Ended {
        // From here on every key is bypassed, until this very purge has been confirmed for its slot.
        let sweep = self.world.debts.pending.add_all().await;
        let ended = self.world.purge_all(&sweep).await;
        if ended == Ended::Pending {
            self.world.debts.hasten();
        }
        self.world.debts.count();
        ended
    }
}

impl World {
    /// Ends keys at the same time; each result is its own.
    async fn end_each(
        &self,
        keys: &[Key],
        write: &Token,
        linger: Duration,
        budget: &mut Budget,
    ) -> Vec<Result<Was, StoreError>> {
        let ends = keys.iter().map(|key| self.end_key(key, write, linger));
        let results = budget.spend_each(ends).await;
        self.blame(keys, &results);
        results
    }

    /// Tells the masters that were late: for each it is one operation.
    fn blame<T>(&self, keys: &[Key], results: &[Result<T, StoreError>]) {
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
        let map = self.map.read();
        for shard in &map.shards {
            if late.iter().any(|slot| shard.slots.contains(*slot)) {
                shard.redis.was_late();
            }
        }
    }

    async fn begin_key(&self, key: &Key, write: &Token, fence: Duration) -> Result<(), StoreError> {
        self.at_owner(key.main().as_bytes(), Errand::Begin(key, write, fence)).await.map(drop)
    }

    /// Tells what there was.
    pub(super) async fn end_key(
        &self,
        key: &Key,
        write: &Token,
        linger: Duration,
    ) -> Result<Was, StoreError> {
        self.at_owner(key.main().as_bytes(), Errand::End(key, write, linger)).await
    }

    /// Deletes an entry, whatever its name.
    pub(super) async fn void(&self, name: &[u8]) -> Result<(), StoreError> {
        self.at_owner(name, Errand::Void(name)).await.map(drop)
    }

    /// At whoever owns a name; once more, if the map was out of date.
    async fn at_owner(&self, name: &[u8], errand: Errand<'_>) -> Result<Was, StoreError> {
        let shard = self.map.shard_of(name)?;
        match self.run(&shard, errand).await {
            Err(StoreError::Redirected(_)) if mutants::is(Mutant::RedirectedIsDone) => {
                Ok(Was::default())
            }
            Err(StoreError::Redirected(Redirect::Moved)) => {
                self.lessons.next().await;
                let shard = self.map.shard_of(name)?;
                self.run(&shard, errand).await
            }
            other => other,
        }
    }

    async fn run(&self, shard: &Shard, errand: Errand<'_>) -> Result<Was, StoreError> {
        let done = match errand {
            Errand::Begin(key, write, fence) => {
                shard.redis.begin_key(key, write, fence).await.map(|()| Was::default())
            }
            Errand::End(key, write, linger) => shard.redis.end_key(key, write, linger).await,
            Errand::Void(name) => return self.void_at(shard, name).await,
        };
        match (done, errand) {
            (Err(error), _) if !is_apart(&error) || mutants::is(Mutant::RedirectedIsDone) => {
                Err(error)
            }
            (Err(_), Errand::Begin(key, write, fence)) => {
                self.begin_apart(shard, key, write, fence).await.map(|()| Was::default())
            }
            (Err(_), Errand::End(key, write, linger)) => {
                self.end_apart(shard, key, write, linger).await
            }
            (done, _) => done,
        }
    }

    async fn begin_apart(
        &self,
        shard: &Shard,
        key: &Key,
        write: &Token,
        fence: Duration,
    ) -> Result<(), StoreError> {
        let fenced = self.fence(shard, key, write, fence).await;
        // Also where there is no room for a fence.
        self.void_at(shard, key.main().as_bytes()).await?;
        fenced
    }

    async fn end_apart(
        &self,
        shard: &Shard,
        key: &Key,
        write: &Token,
        linger: Duration,
    ) -> Result<Was, StoreError> {
        let fenced =
            if linger.is_zero() { Ok(()) } else { self.fence(shard, key, write, linger).await };
        let was = self.void_at(shard, key.main().as_bytes()).await?;
        if linger.is_zero() {
            let mut lift = cmd("ZREM");
            lift.arg(key.companion("fence")).arg(write.as_str());
            self.single::<i64>(shard, &lift).await?;
        }
        fenced.and_then(|()| shard.redis.confirmed(key)).map(|()| was)
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
        self.single::<i64>(shard, &set).await.map(drop)
    }

    /// Deletes main, and then meta and lease, one by one; tells of main only.
    async fn void_at(&self, shard: &Shard, name: &[u8]) -> Result<Was, StoreError> {
        // Whatever is not a string is somebody else's, and goes as well.
        let size: usize = self.single(shard, cmd("STRLEN").arg(name)).await.unwrap_or(0);
        let there: usize = self.single(shard, cmd("DEL").arg(name)).await?;
        let mut filling = 0;
        for role in ["meta", "lease"] {
            filling = self.single(shard, cmd("DEL").arg(companion(name, role))).await?;
        }
        let is_entry = there > 0 && size > 0;
        let entry = is_entry.then_some(WasEntry { size, generation: None, age_ms: None });
        Ok(Was { entry, filling: filling > 0 })
    }

    /// A command of one key, at the source or, if it is there no more, at the target.
    async fn single<T: FromRedisValue>(
        &self,
        shard: &Shard,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let to = match shard.redis.query(command).await {
            Err(StoreError::Redirected(Redirect::Ask(Some(to)))) => to,
            other => return other,
        };
        let to = self.map.read().known(to, &shard.address);
        let target = self.map.read().at(&to).cloned();
        match target.filter(|target| target.redis.is_up()) {
            Some(target) => target.redis.asking(command).await,
            // One that has no slot yet is no master of ours.
            None => self.guest(&to).await?.asking(command).await,
        }
    }
}

/// Whether the keys of a job are on two nodes, or about to be.
fn is_apart(error: &StoreError) -> bool {
    matches!(error, StoreError::Redirected(Redirect::Ask(_) | Redirect::TryAgain))
}
