//! Invalidation by commands of one key each, while the slot of a job is moving.
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

use std::{sync::LazyLock, time::Duration};

use redis::{Cmd, FromRedisValue, cmd};

use super::{session::companion, shard::Shard, topology::Topology};
use crate::{
    mutants,
    store::{
        errors::{Redirect, StoreError},
        receipt::{KeyReceipt, RemovedEntry},
        words::{Key, Token, millis},
    },
};

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
