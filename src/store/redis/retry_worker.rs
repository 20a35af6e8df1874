//! The retry worker: repeats invalidations that were not confirmed, and purges of all.
//!
//! The process has one retry queue. An item goes to the current owner of its key each time it is
//! repeated. A purge of all goes to every master that owns pending slots, and each confirms its
//! own: a lost master, or a slot without an owner, does not delay the jobs of the others. Nothing is
//! repeated while no server is trusted; one that becomes trusted makes everything due.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{classify::DETACHED_TIMEOUT, engine::RedisEngine, invalidate::END_BATCH};
use crate::{
    observe::events::EventKind,
    store::{errors::StoreError, pending::PendingItem},
};

/// Runs for ever.
pub(super) async fn retry_forever(engine: Arc<RedisEngine>) -> Infallible {
    let queue = &engine.context.retry_queue;
    loop {
        if engine.topology.is_any_up() {
            retry_due(&engine).await;
            queue.due().await;
        } else {
            queue.woken().await;
        }
    }
}

/// Repeats what is due. Failures are postponed, so that this comes to an end.
async fn retry_due(engine: &RedisEngine) {
    let queue = &engine.context.retry_queue;
    if let Some(sweep) = queue.pending.due_purge_all() {
        engine.sweep(&sweep).await;
    }
    loop {
        let batch = queue.pending.batch(END_BATCH);
        if batch.is_empty() {
            break;
        }
        join_all(batch.iter().map(|item| repeat(engine, item))).await;
        queue.update_gauge();
    }
    queue.update_gauge();
}

async fn repeat(engine: &RedisEngine, item: &PendingItem) {
    engine.context.events.expect_own_change(item.key.main());
    let end = timeout(DETACHED_TIMEOUT, engine.end_key(&item.key, &item.write, item.linger));
    let ended = end.await.unwrap_or(Err(StoreError::Timeout));
    if ended.is_ok() {
        engine.context.events.record(item.key.main(), EventKind::Confirmed, "");
    }
    engine.context.retry_queue.record(item, ended);
}

/// Tries a last time to confirm what is pending, within `deadline`.
pub(super) async fn close(engine: &RedisEngine, deadline: Duration) {
    let queue = &engine.context.retry_queue;
    if queue.pending.is_empty() {
        return;
    }
    let last_try = async {
        if !engine.topology.is_any_up() {
            let shards = engine.topology.shards_with_slots();
            join_all(shards.iter().map(|(shard, _)| shard.connect_once())).await;
        }
        queue.pending.make_all_due();
        retry_due(engine).await;
    };
    let _ = timeout(deadline, last_try).await;
    queue.log_remaining();
}
