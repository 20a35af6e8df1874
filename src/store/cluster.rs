//! The store on a Redis Cluster: one shard for each master, and the map of which shard owns a slot.
//!
//! Each master is served by the engine for a single Redis: a supervisor, a session, an epoch, a
//! tracking connection and its rounds. A lost master costs its own slots their cache and nothing
//! else. This module holds what belongs to the process and not to one master: the slot map
//! (`slot_map.rs`) and its refresh (`topology_refresh.rs`), the invalidations
//! (`shard_invalidate.rs`), the retries of those that are not confirmed (`retry_worker.rs`), and
//! the key of the credential fingerprints.
//!
//! # Why nothing is stale although slots move
//!
//! The guarantee rests on four things: a deleted `job_status:<id>` is a hit nowhere and voids a
//! fill in flight; near entries are used only behind the barrier; an entry counts only in its
//! epoch; and an end that is not confirmed is pending and repeated. Each of them holds when the
//! owner of a slot changes:
//!
//! - **Key by key** (`MIGRATE`): a key is on one node at a time, and a client that deletes it is
//!   redirected to that node. A key that leaves is deleted at the source, which is news on the
//!   source's tracking connection, so its near entry is evicted. Scripts are refused while their
//!   keys are apart, so nothing is leased or filled; invalidations go key by key
//!   (`shard_invalidate.rs`).
//! - **The owner of a slot changes** in our map: the near entries of the slot are evicted before
//!   the new map is used (`slot_map.rs`). Until we know of the change, the old owner no longer
//!   holds a key of the slot, and answers `MOVED`.
//! - **Entries that moved along** from another master were stored in another epoch, and are not
//!   used. A fill under a lease that moved along is refused by this sidecar for the same reason. A
//!   slot that comes back may have lost a `DEL` to a failover at the other master. But to take the
//!   slot back, its master must raise its config epoch above that of the other, and the config
//!   epoch is part of ours.
//! - **A replica is promoted** (by failover or by hand): it has another `run_id`, and so another
//!   epoch. Entries that it received before are not used.
//! - **A deposed master** that does not know it: if it is cut off from the majority, it refuses
//!   keyed commands (`CLUSTERDOWN`) after `cluster-node-timeout`, before its replica is promoted,
//!   and a round of the barrier is such a command. If it hung, it does not answer our probes, and
//!   its session is over within a second, before its replica can have been promoted (with a
//!   `cluster-node-timeout` of 1 s or more); when it is back, it is trusted only after another node
//!   has answered as well. In a manual failover it holds back writes until it knows that it is
//!   deposed, so a read of the store ends with a command that counts as a write.

mod node_status;
mod probe;
mod refresh_rounds;
mod retry_worker;
mod shard_invalidate;
mod slot_map;
mod slots;
mod topology;
mod topology_refresh;

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

pub use self::{node_status::NodeStatus, topology::NodeAddress};
pub(super) use self::{
    probe::probe,
    refresh_rounds::RefreshRounds,
    slots::{OwnedSlots, SLOTS, SlotSet, slot_of},
    topology::text_field,
};
use self::{
    slot_map::{Shard, SlotMap},
    topology::Master,
};
use super::{
    BarrierWait, Budget, CredentialKey, Fill, Grant, Key, KeyState, Lease, Replacement, Seen,
    StoreError, StoredValue, Token,
    barrier::BarrierDown,
    near::Watcher,
    pending::JournalStatus,
    redis::{
        Redis, dial::Target, initial_credential_key, shard_context::ShardContext,
        temp_connection::TempConnection,
    },
    retry_queue::RetryQueue,
    sidecar_record::{SidecarRecord, SidecarRecords},
    unix_ms,
};
use crate::{
    clock, config,
    observe::{metrics::Metrics, throttle::Throttle},
};

/// The store on a Redis Cluster.
pub struct Cluster {
    state: Arc<ClusterState>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("seeds", &self.state.seeds)
            .field("shards", &self.state.slot_map.read().shards.len())
            .finish_non_exhaustive()
    }
}

/// State shared by the users of the store and its background tasks.
struct ClusterState {
    slot_map: SlotMap,
    refreshes: Arc<RefreshRounds>,
    seeds: Vec<NodeAddress>,
    /// How to connect to any node, and with which credentials.
    target: Target,
    config: config::StoreConfig,
    tracking: config::NearTracking,
    credential_key: Arc<RwLock<CredentialKey>>,
    has_secret: bool,
    retry_queue: Arc<RetryQueue>,
    records: Arc<SidecarRecords>,
    /// Connections to nodes that are not our masters, kept for the next topology refresh.
    temp_connections: Mutex<HashMap<NodeAddress, TempConnection>>,
    /// Notified when a master becomes trusted or tracked, or stops being so.
    status_changed: Arc<Notify>,
    /// Number of shards that were ever made.
    next_shard: AtomicU64,
    watcher: Option<Arc<dyn Watcher>>,
    tasks: TaskTracker,
    warnings: ClusterWarnings,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct ClusterWarnings {
    refresh: Throttle,
}

/// Limits a flush to the slots of one shard; on a single server a flush drops everything.
#[derive(Debug)]
struct ShardWatcher {
    watcher: Arc<dyn Watcher>,
    slots: Arc<OwnedSlots>,
}

impl Watcher for ShardWatcher {
    fn evict(&self, name: &[u8]) {
        self.watcher.evict(name);
    }

    fn flush(&self) {
        self.watcher.evict_matching(&|name| self.slots.contains_name(name));
    }

    fn evict_matching(&self, is_gone: &dyn Fn(&[u8]) -> bool) {
        self.watcher.evict_matching(is_gone);
    }
}

impl Cluster {
    /// Starts looking for the masters in the background.
    pub(super) fn open(
        seeds: &config::ClusterSeeds,
        config: &config::Config,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let world = Arc::new(ClusterState {
            slot_map: SlotMap::default(),
            refreshes: Arc::default(),
            seeds: seeds
                .hosts
                .iter()
                .map(|(host, port)| NodeAddress { host: (&**host).into(), port: *port })
                .collect(),
            target: Target::from_seeds(seeds, config, &metrics)?,
            config: config.store.clone(),
            tracking: config.near.tracking,
            credential_key: initial_credential_key(config),
            has_secret: config.credentials.secret.is_some(),
            retry_queue: RetryQueue::open(config, Arc::clone(&metrics))?,
            records: Arc::new(SidecarRecords::new(config)),
            temp_connections: Mutex::default(),
            status_changed: Arc::default(),
            next_shard: AtomicU64::new(0),
            watcher,
            tasks,
            warnings: ClusterWarnings::default(),
            metrics,
        });
        let own = || Arc::clone(&world);
        let tasks = [
            tokio::spawn(never(topology_refresh::refresh_topology(own()))),
            tokio::spawn(never(node_status::publish_changes(own()))),
            tokio::spawn(never(retry_worker::retry_forever(own()))),
        ];
        let tasks = tasks.map(AbortOnDropHandle::new);
        Ok(Self { state: world, _tasks: tasks })
    }

    pub(super) fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        if self.state.retry_queue.pending.contains(key) {
            return Err(StoreError::Pending);
        }
        let map = self.state.slot_map.read();
        map.owner(slot(key)).ok_or(StoreError::Down)?.redis.trust(key)
    }

    /// Asks the shard that owns the key. If the slot changes hands meanwhile, its near entries are
    /// evicted.
    pub(super) async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<(), StoreError> {
        self.state.slot_map.shard(key)?.redis.follow(key, budget).await
    }

    /// Waits for the shard that owns the key. If the slot changes hands meanwhile, the reader does
    /// not pass.
    pub(super) fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        let map = self.state.slot_map.read();
        let Some(shard) = map.owner(slot(key)) else { return Poll::Ready(Err(BarrierDown)) };
        if *wait.shard.get_or_insert(shard.number) != shard.number {
            return Poll::Ready(Err(BarrierDown));
        }
        shard.redis.poll_barrier(staleness, wait, cx)
    }

    pub(super) async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen, StoreError> {
        self.state.slot_map.shard(key)?.redis.read(key, budget).await
    }

    pub(super) async fn inspect(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<KeyState, StoreError> {
        self.state.slot_map.shard(key)?.redis.inspect(key, budget).await
    }

    pub(super) async fn lease(
        &self,
        key: &Key,
        token: Token,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant, StoreError> {
        self.state.slot_map.shard(key)?.redis.lease(key, token, refused, budget).await
    }

    /// Sent to the current owner of the slot. If that is not the master that granted the lease, or
    /// that master has lost the slot and taken it back, the epoch differs and the fill is refused.
    pub(super) async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        self.state.slot_map.shard(&lease.key)?.redis.fill(lease, body, meta, ttl).await
    }

    pub(super) async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        caller: &str,
    ) -> Result<Fill, StoreError> {
        self.state.slot_map.shard(key)?.redis.admit(key, seen, generation, caller).await
    }

    pub(super) async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill, StoreError> {
        self.state.slot_map.shard(key)?.redis.replace(key, seen, generation, new).await
    }

    pub(super) async fn release(&self, lease: Lease) {
        // Without an owner the lease expires by itself.
        if let Ok(shard) = self.state.slot_map.shard(&lease.key) {
            shard.redis.release(lease).await;
        }
    }

    /// Replaces the configuration that is recorded for other sidecars.
    pub(super) fn record(&self, record: SidecarRecord) {
        self.state.records.replace(record);
    }

    pub(super) fn credential_key(&self) -> CredentialKey {
        self.state.credential_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses the clock of any master that is up; they differ as much as the clocks of their
    /// machines.
    pub(super) fn now_ms(&self) -> i64 {
        let map = self.state.slot_map.read();
        let up = map.shards.iter().find(|shard| shard.redis.is_up());
        up.map_or_else(|| unix_ms(clock::now()), |shard| shard.redis.now_ms())
    }

    pub(super) fn pending(&self) -> usize {
        self.state.retry_queue.pending.len()
    }

    pub(super) fn journal_status(&self) -> Option<JournalStatus> {
        self.state.retry_queue.journal_status()
    }

    /// Tries a last time to confirm what is pending, within `deadline`.
    pub(super) async fn close(&self, deadline: Duration) {
        let retry_queue = &self.state.retry_queue;
        if retry_queue.pending.is_empty() {
            return;
        }
        retry_queue.pending.make_all_due();
        let _ = timeout(deadline, self.state.retry_due()).await;
        retry_queue.log_remaining();
    }
}

impl ClusterState {
    /// Makes the shard of a master that was not served before.
    fn new_shard(&self, master: &Master) -> Shard {
        let slots = Arc::<OwnedSlots>::default();
        let part = ShardContext {
            address: master.address.clone(),
            slots: Arc::clone(&slots),
            claimed_epoch: AtomicU64::new(master.epoch),
            refresh_rounds: Arc::clone(&self.refreshes),
            tracking: self.tracking,
            state_changed: Arc::clone(&self.status_changed),
            metrics: Arc::clone(&self.metrics),
            records: Arc::clone(&self.records),
        };
        let watcher = self.watcher.as_ref().map(|watcher| {
            let watcher = Arc::clone(watcher);
            let slots = Arc::clone(&slots);
            Arc::new(ShardWatcher { watcher, slots }) as Arc<dyn Watcher>
        });
        let target = self.target.at(&master.address.host, master.address.port);
        let key = (Arc::clone(&self.credential_key), self.has_secret);
        let retry_queue = Arc::clone(&self.retry_queue);
        let tasks = self.tasks.clone();
        let redis =
            Redis::cluster_master(target, &self.config, part, retry_queue, key, tasks, watcher);
        Shard::new(self.next_shard.fetch_add(1, Ordering::Relaxed), master, slots, redis)
    }

    /// Opens a connection to a node that is not one of our masters.
    async fn temp_connection(&self, node: &NodeAddress) -> Result<TempConnection, StoreError> {
        TempConnection::open(&self.target.at(&node.host, node.port)).await
    }
}

/// Runs a task that ends only when it is aborted.
async fn never(task: impl Future<Output = Infallible>) {
    match task.await {}
}

fn slot(key: &Key) -> u16 {
    slot_of(key.main().as_bytes())
}
