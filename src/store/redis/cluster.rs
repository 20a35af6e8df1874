//! The masters of a Redis Cluster: one shard for each, and the map of which shard owns a slot.
//!
//! Each master is served as a single Redis is: by a supervisor, a session, an epoch, a tracking
//! connection and its rounds. A lost master costs its own slots their cache and nothing else. This
//! module holds what a store with one master does not need: the slot map (`slot_map.rs`) and its
//! refresh (`topology_refresh.rs`).
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
//!   (`by_key.rs`).
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

pub(in crate::store) mod metrics;
pub(super) mod plan;
pub(super) mod probe;
pub(super) mod refresh_rounds;
pub(super) mod slot_map;
pub(super) mod topology_refresh;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use redis::{Cmd, FromRedisValue};

use self::{plan::Master, refresh_rounds::RefreshRounds, slot_map::SlotMap};
use super::{
    cluster_member::ClusterMember, context::StoreContext, dial::Target,
    master_source::MasterSource, shard::Shard, temp_connection::TempConnection,
};
use crate::{
    config,
    observe::throttle::Throttle,
    store::{errors::StoreError, near::Watcher, node_address::NodeAddress, slots::OwnedSlots},
};

/// Connections to other nodes that are kept.
const MAX_TEMP_CONNECTIONS: usize = 32;

/// The masters of a cluster.
pub(in crate::store) struct Cluster {
    pub(super) slot_map: SlotMap,
    pub(super) refreshes: Arc<RefreshRounds>,
    seeds: Vec<NodeAddress>,
    /// How to connect to any node, and with which credentials.
    target: Target,
    /// Connections to nodes that are not our masters, kept for the next topology refresh.
    temp_connections: Mutex<HashMap<NodeAddress, TempConnection>>,
    /// Number of shards that were ever made.
    next_shard: AtomicU64,
    refresh_warnings: Throttle,
    context: Arc<StoreContext>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("seeds", &self.seeds)
            .field("shards", &self.slot_map.read().shards.len())
            .finish_non_exhaustive()
    }
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
    /// Makes an empty map; `topology_refresh` fills it.
    pub(super) fn new(
        seeds: &config::ClusterSeeds,
        config: &config::Config,
        context: Arc<StoreContext>,
    ) -> Result<Self, StoreError> {
        let seed =
            |(host, port): &(String, u16)| NodeAddress { host: (&**host).into(), port: *port };
        Ok(Self {
            slot_map: SlotMap::default(),
            refreshes: Arc::default(),
            seeds: seeds.hosts.iter().map(seed).collect(),
            target: Target::from_seeds(seeds, config, &context.metrics.tls)?,
            temp_connections: Mutex::default(),
            next_shard: AtomicU64::new(0),
            refresh_warnings: Throttle::default(),
            context,
        })
    }

    /// Starts the shard of a master that was not served before.
    fn new_shard(&self, Master { address, epoch, .. }: &Master) -> Shard {
        let slots = Arc::<OwnedSlots>::default();
        let source = MasterSource::Cluster(ClusterMember {
            target: self.target.at(&address.host, address.port),
            address: address.clone(),
            slots: Arc::clone(&slots),
            refresh_rounds: Arc::clone(&self.refreshes),
            claimed_epoch: AtomicU64::new(*epoch),
        });
        let watcher = self.context.watcher.as_ref().map(|watcher| {
            let watcher = Arc::clone(watcher);
            let slots = Arc::clone(&slots);
            Arc::new(ShardWatcher { watcher, slots }) as Arc<dyn Watcher>
        });
        let number = self.next_shard.fetch_add(1, Ordering::Relaxed);
        let name = address.to_string();
        Shard::start(number, &self.context, source, name, slots, watcher)
    }

    /// Opens a connection to a node that is not one of our masters.
    async fn temp_connection(&self, node: &NodeAddress) -> Result<TempConnection, StoreError> {
        TempConnection::open(&self.target.at(&node.host, node.port)).await
    }

    /// Keeps a connection, in the place of another if there are too many.
    fn keep_connection(&self, node: NodeAddress, connection: TempConnection) {
        let mut kept = self.temp_connections.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_TEMP_CONNECTIONS
            && let Some(other) = kept.keys().next().cloned()
        {
            kept.remove(&other);
        }
        kept.insert(node, connection);
    }

    /// Runs a command of one key at the target of a redirection.
    pub(super) async fn follow_redirect<T: FromRedisValue>(
        &self,
        from: &Shard,
        to: NodeAddress,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let (to, target) = {
            let map = self.slot_map.read();
            let sender = NodeAddress::parse(from.address());
            let to = map.resolve_redirect(to, sender);
            let target = map.shard_at(&to).cloned();
            (to, target)
        };
        match target.filter(|target| target.is_up()) {
            Some(target) => target.asking(command).await,
            // A target without slots is not one of our masters yet.
            None => self.temp_connection(&to).await?.asking(command).await,
        }
    }
}
