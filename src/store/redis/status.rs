//! The status of the servers: for metrics, for the log of events and for operators.

use std::{convert::Infallible, sync::Arc};

use tracing::info;

use super::engine::RedisEngine;
use crate::observe::events::EventKind;

/// Publishes the status whenever a server becomes trusted or tracked, or stops being so.
pub(super) async fn publish_changes(engine: Arc<RedisEngine>) -> Infallible {
    let mut up_before = 0;
    let mut unowned_before = 0;
    loop {
        engine.context.status_changed.notified().await;
        let (masters, up, unowned) = publish_status(&engine);
        if unowned < unowned_before {
            // Retries in slots that have an owner again can succeed now.
            engine.context.retry_queue.pending.make_all_due();
            engine.context.retry_queue.wake();
        }
        if up != up_before && engine.topology.cluster().is_some() {
            info!(up, masters, "the number of trusted masters has changed");
        }
        up_before = up;
        unowned_before = unowned;
    }
}

/// Publishes how many masters are trusted and how many slots have no owner, and returns the
/// number of masters and both. The store is up when all masters are trusted and all slots have
/// an owner.
fn publish_status(engine: &RedisEngine) -> (usize, usize, usize) {
    let (metrics, events) = (&engine.context.metrics, &engine.context.events);
    let (masters, up, tracked, unowned) = engine.topology.with_shards(|shards, unowned| {
        let up = shards.iter().filter(|shard| shard.is_up()).count();
        let tracked = shards.iter().filter(|shard| shard.is_tracked()).count();
        (shards.len(), up, tracked, unowned)
    });
    let is_whole = masters > 0 && unowned == 0;
    if engine.topology.cluster().is_some() {
        metrics.cluster.set_shards(up, masters - up, unowned);
    }
    metrics.set_up(is_whole && up == masters, events);
    let kinds = (EventKind::TrackingUp, EventKind::TrackingDown);
    events.set_state(&metrics.tracking.up, is_whole && tracked == masters, kinds);
    (masters, up, unowned)
}
