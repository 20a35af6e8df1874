//! The store on Redis: one engine for one server, for a server that sentinels name, and for a
//! cluster.
//!
//! Each server is a shard (`redis/shard.rs`) with a supervisor, a session, an epoch, a tracking
//! connection and its rounds. The topology (`redis/topology.rs`) tells which shard owns a key: one
//! owns all, or each master of a cluster (`redis/cluster.rs`) owns some of the slots. Invalidations
//! (`redis/invalidate.rs`), purges of all and retries (`redis/retry_worker.rs`) ask the topology,
//! and are the same for any number of shards.

mod by_key;
mod classify;
pub(super) mod cluster;
mod cluster_member;
mod connect;
mod context;
mod dial;
mod engine;
mod grace;
mod invalidate;
mod master_source;
mod purge_all;
mod recently_confirmed;
mod reconnect;
mod record_keeper;
mod retry_worker;
mod sentinel;
mod server_info;
mod session;
mod shard;
mod state;
mod status;
mod supervisor;
mod temp_connection;
mod topology;
pub(super) mod tracking;

use std::{convert::Infallible, fmt, ops::Deref, sync::Arc, time::Duration};

use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use self::{
    cluster::{Cluster, topology_refresh::refresh_topology},
    connect::connect_master,
    context::StoreContext,
    engine::RedisEngine,
    master_source::MasterSource,
    retry_worker::retry_forever,
    shard::Shard,
    status::publish_changes,
    topology::Topology,
};
use super::{
    errors::StoreError,
    metrics::StoreMetrics,
    near::Watcher,
    sidecar_record::{RecordMismatch, SidecarRecord},
    slots::OwnedSlots,
};
use crate::{
    config::{Config, StoreUrl},
    observe::{events::Events, metrics::Registry},
    tls::TlsMetrics,
};

/// The engine and its background tasks.
pub struct Redis {
    engine: Arc<RedisEngine>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

impl Deref for Redis {
    type Target = RedisEngine;

    fn deref(&self) -> &RedisEngine {
        &self.engine
    }
}

impl Redis {
    /// Checks the URL, and starts to connect in the background.
    pub(super) fn open(
        config: &Config,
        metrics: Arc<StoreMetrics>,
        events: Arc<Events>,
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let context = Arc::new(StoreContext::new(config, metrics, events, tasks, watcher)?);
        let mut tasks = Vec::new();
        let topology = if let StoreUrl::Cluster(seeds) = &config.store.url {
            let cluster = Arc::new(Cluster::new(seeds, config, Arc::clone(&context))?);
            tasks.push(forever(refresh_topology(Arc::clone(&cluster))));
            Topology::Cluster(cluster)
        } else {
            let source = MasterSource::new(config, &context.metrics.tls)?;
            let address = config.store.url.to_string();
            let slots = Arc::new(OwnedSlots::all());
            let watcher = context.watcher.clone();
            Topology::One(Arc::new(Shard::start(0, &context, source, address, slots, watcher)))
        };
        let engine = Arc::new(RedisEngine { topology, context });
        tasks.push(forever(publish_changes(Arc::clone(&engine))));
        tasks.push(forever(retry_forever(Arc::clone(&engine))));
        Ok(Self { engine, _tasks: tasks })
    }

    /// Tries a last time to confirm what is pending, within `deadline`.
    pub(super) async fn close(&self, deadline: Duration) {
        retry_worker::close(&self.engine, deadline).await;
    }
}

/// Spawns a task that ends only when it is aborted.
fn forever(task: impl Future<Output = Infallible> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async { match task.await {} }))
}

/// Connects as a session would, reads the records of other sidecars, and disconnects.
pub(super) async fn probe(config: &Config) -> Result<Vec<RecordMismatch>, StoreError> {
    if let StoreUrl::Cluster(seeds) = &config.store.url {
        return cluster::probe::probe(seeds, config).await;
    }
    let source = MasterSource::new(config, &TlsMetrics::shared(&mut Registry::default()))?;
    let records = connect_master(&source).await?.records(&config.store.prefix).await;
    let ours = SidecarRecord::of(config);
    Ok(records.iter().filter_map(|record| ours.mismatch(record)).collect())
}
