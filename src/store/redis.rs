//! The store on Redis: one engine for one server, for a server that sentinels name, and for a
//! cluster.
//!
//! Each server is a shard (`redis/shard.rs`) with a supervisor, a session, an epoch, a tracking
//! connection and its rounds. The topology (`redis/engine.rs`) tells which shard owns a key: one
//! owns all, or each master of a cluster (`redis/cluster.rs`) owns some of the slots. Invalidations
//! (`redis/invalidate.rs`) and purges of all (`redis/purge_all.rs`) ask the topology, and are the
//! same for any number of shards.
//!
//! The retry worker repeats what was not confirmed. The process has one retry queue. An item goes
//! to the current owner of its key each time it is repeated. A purge of all goes to every master
//! that owns pending slots, and each confirms its own: a lost master, or a slot without an owner,
//! does not delay the jobs of the others. Nothing is repeated while no server is trusted; one that
//! becomes trusted makes everything due.

mod bulk_lane;
mod cluster;
mod dial;
mod distance;
mod engine;
mod first_contact;
mod invalidate;
mod lane;
mod large_keys;
mod large_values;
mod master_source;
mod purge_all;
mod purge_token;
mod recently_confirmed;
mod refusals;
mod sentinel;
mod server_info;
mod session;
mod shard;
mod shared_keys;
mod state;
mod supervisor;
mod tracking;
mod traffic;

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::timeout;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, info, warn};

use self::{
    cluster::{
        Cluster,
        topology_refresh::{probe_seeds, refresh_topology},
    },
    engine::Topology,
    invalidate::END_BATCH,
    master_source::MasterSource,
    purge_token::PurgeTokens,
    refusals::{TrialScope, check_commands},
    shared_keys::live_records,
    state::{ShardState, StoreContext},
    supervisor::connect_master,
};
pub(super) use self::{engine::RedisEngine, shard::Shard};
use super::{
    FarStore,
    errors::{DETACHED_TIMEOUT, Result, StoreError},
    metrics::StoreMetrics,
    near::Watcher,
    pending::PendingItem,
    slots::OwnedSlots,
    write::{KeyOp, WriteStep},
};
use crate::{
    config::{Config, NearMode, StoreUrl},
    observe::{
        events::{EventKind, Events},
        metrics::Registry,
    },
    tls::TlsMetrics,
};

/// Checks the URL, and starts to connect in the background, until the tasks are dropped.
pub(super) fn open(
    config: &Config,
    metrics: Arc<StoreMetrics>,
    events: Arc<Events>,
    tasks: TaskTracker,
    watcher: Option<Arc<dyn Watcher>>,
) -> Result<(Arc<RedisEngine>, Vec<AbortOnDropHandle<()>>)> {
    let context = Arc::new(StoreContext::new(config, metrics, events, tasks, watcher)?);
    let mut tasks = Vec::new();
    let topology = if let StoreUrl::Cluster(seeds) = &config.store.url {
        let cluster = Arc::new(Cluster::new(seeds, config, Arc::clone(&context))?);
        tasks.push(forever(refresh_topology(Arc::clone(&cluster))));
        Topology::Cluster(cluster)
    } else {
        let source = MasterSource::new(config, &context.metrics.tls)?;
        let address = config.store.url.to_string();
        let slots = Arc::<OwnedSlots>::default();
        slots.assign(|_| true);
        let state = ShardState::new(Arc::clone(&context), source, address, slots);
        Topology::One(Arc::new(Shard::start(0, state)))
    };
    let engine = Arc::new(RedisEngine { topology, context });
    tasks.push(forever(publish_changes(Arc::clone(&engine))));
    tasks.push(forever(retry_forever(Arc::clone(&engine))));
    tasks.push(forever(sweep_forever(Arc::clone(&engine))));
    Ok((engine, tasks))
}

/// Spawns a task that ends only when it is aborted.
fn forever(task: impl Future<Output = Infallible> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async { match task.await {} }))
}

/// Connects as a session would, tries the commands, reads the records of the sidecars, and
/// disconnects. Also returns whether the server is too far away.
pub(super) async fn probe(config: &Config) -> Result<(Vec<String>, Option<FarStore>)> {
    if let StoreUrl::Cluster(seeds) = &config.store.url {
        return probe_seeds(seeds, config).await;
    }
    let source = MasterSource::new(config, &TlsMetrics::shared(&mut Registry::default()))?;
    let prefix = &config.store.prefix;
    let purge_tokens = Arc::new(PurgeTokens::new(&config.prefixes()));
    let (session, _) = connect_master(&source, prefix, &purge_tokens).await?;
    let connection = &session.lane.connection;
    let name = &format!("{{{prefix}}}:trial");
    let is_tracked = config.cache.near.mode != NearMode::Off;
    let trials = TrialScope { name, is_in_cluster: false, is_tracked };
    check_commands(connection, &session.target, trials).await?;
    let round_trip = session.health.distance.round_trip();
    let far = distance::measure(connection, round_trip, config.store.budget).await?;
    let read = live_records(prefix, session.now_ms());
    let records = timeout(DETACHED_TIMEOUT, session.query(&read)).await;
    Ok((records.ok().and_then(Result::ok).unwrap_or_default(), far))
}

/// Repeats what is due whenever a server is trusted.
async fn retry_forever(engine: Arc<RedisEngine>) -> Infallible {
    let queue = &engine.context.retry_queue;
    loop {
        if engine.is_any_up() {
            retry_due(&engine).await;
            queue.due().await;
        } else {
            queue.changed.notified().await;
        }
    }
}

/// Deletes what a purge of all has voided, after each one.
async fn sweep_forever(engine: Arc<RedisEngine>) -> Infallible {
    loop {
        engine.context.purged.notified().await;
        if let Err(error) = engine.sweep().await {
            // No reader uses it, and it ends with its TTL.
            debug!(%error, "not everything that a purge of all has voided is deleted");
        }
    }
}

/// Repeats what is due. Failures are postponed, so that this comes to an end.
async fn retry_due(engine: &RedisEngine) {
    let queue = &engine.context.retry_queue;
    if let Some(task) = queue.pending.due_purge_all() {
        engine.run_purge_all(&task).await;
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
    let PendingItem { key, write, linger: fence, .. } = item;
    let end = engine.run(KeyOp { step: WriteStep::End, key, write, fence: *fence });
    let ended = timeout(DETACHED_TIMEOUT, end).await.unwrap_or(Err(StoreError::Timeout));
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
        if !engine.is_any_up() {
            let shards = engine.shards_with_slots();
            join_all(shards.iter().map(|(shard, _)| shard.connect_once())).await;
        }
        queue.pending.make_all_due();
        retry_due(engine).await;
    };
    let _ = timeout(deadline, last_try).await;
    let pending = queue.pending.len();
    if pending > 0 {
        warn!(
            pending,
            "stopped with unconfirmed invalidations; their entries may be served until their TTL ends"
        );
    }
}

/// Publishes the status whenever a server becomes trusted or tracked, or stops being so. The store
/// is up when all masters are trusted and all slots have an owner.
async fn publish_changes(engine: Arc<RedisEngine>) -> Infallible {
    let StoreContext { metrics, events, retry_queue, .. } = &*engine.context;
    let is_cluster = engine.cluster().is_some();
    let (mut up_before, mut unowned_before) = (0, 0);
    loop {
        engine.context.status_changed.notified().await;
        let (masters, up, far, tracked, unowned) = engine.with_shards(|shards, unowned| {
            let up = shards.iter().filter(|shard| shard.is_up()).count();
            let far = shards.iter().any(|shard| shard.is_far());
            let tracked = shards.iter().filter(|shard| shard.is_tracked()).count();
            (shards.len(), up, far, tracked, unowned)
        });
        let is_whole = masters > 0 && unowned == 0;
        metrics.set_up(is_whole && up == masters, far, events);
        let kinds = (EventKind::TrackingUp, EventKind::TrackingDown);
        events.set_state(&metrics.tracking.up, is_whole && tracked == masters, kinds);
        if is_cluster {
            metrics.cluster.set_shards(up, masters - up, unowned);
        }
        if is_cluster && up != up_before {
            info!(up, masters, "the number of trusted masters has changed");
        }
        if unowned < unowned_before {
            // Retries in slots that have an owner again can succeed now.
            retry_queue.pending.make_all_due();
            retry_queue.changed.notify_one();
        }
        (up_before, unowned_before) = (up, unowned);
    }
}
