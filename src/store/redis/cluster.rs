//! The masters of a Redis Cluster: one shard for each, and the map of which shard owns a slot.
//!
//! Each master is served as a single Redis is: by a supervisor, a session, an epoch, a tracking
//! connection and its rounds. A lost master costs its own slots their cache and nothing else. This
//! module holds what a store with one master does not need: the slot map, its refresh
//! (`cluster/topology_refresh.rs`), and connections to nodes that are not our masters.
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
//!   (`invalidate.rs`).
//! - **The owner of a slot changes** in our map: the near entries of the slot are evicted before
//!   the new map is used (`Cluster::update_map`). Until we know of the change, the old owner no
//!   longer holds a key of the slot, and answers `MOVED`.
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

pub(super) mod plan;
pub(super) mod topology_refresh;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use redis::{Cmd, FromRedisValue};
use tokio::time::timeout;
use tracing::info;

use self::plan::{Master, Plan};
use super::{
    dial::{RedisConnection, Target},
    master_source::{ClusterMember, MasterSource, RefreshRounds},
    shard::Shard,
    state::{ShardState, StoreContext},
};
use crate::{
    config,
    mutants::{self, Mutant},
    observe::throttle::Throttle,
    store::{
        NodeAddress,
        errors::{DETACHED_TIMEOUT, Result},
        slots::{OwnedSlots, SLOTS, SlotSet},
    },
};

/// Connections to other nodes that are kept.
const MAX_TEMP_CONNECTIONS: usize = 32;

/// The masters of a cluster.
pub(super) struct Cluster {
    slot_map: RwLock<SlotMap>,
    pub(super) refreshes: Arc<RefreshRounds>,
    seeds: Vec<NodeAddress>,
    /// How to connect to any node, and with which credentials.
    target: Target,
    /// Connections to nodes that are not our masters, kept for the next topology refresh.
    temp_connections: Mutex<HashMap<NodeAddress, RedisConnection>>,
    /// Number of shards that were ever made.
    next_shard: AtomicU64,
    refresh_warnings: Throttle,
    context: Arc<StoreContext>,
}

impl Cluster {
    /// Makes an empty map; `topology_refresh` fills it.
    pub(super) fn new(
        seeds: &config::ClusterSeeds,
        config: &config::Config,
        context: Arc<StoreContext>,
    ) -> Result<Self> {
        let seed = |(host, port): &(String, u16)| NodeAddress::new(host, *port);
        Ok(Self {
            slot_map: RwLock::default(),
            refreshes: Arc::default(),
            seeds: seeds.hosts.iter().map(seed).collect(),
            target: Target::of_nodes(seeds, config, &context.metrics.tls)?,
            temp_connections: Mutex::default(),
            next_shard: AtomicU64::new(0),
            refresh_warnings: Throttle::default(),
            context,
        })
    }

    /// Starts the shard of a master that was not served before.
    fn new_shard(&self, Master { address, epoch, .. }: &Master) -> Shard {
        info!(node = %address, "found a master of the cluster");
        let slots = Arc::<OwnedSlots>::default();
        let source = MasterSource::Cluster(ClusterMember {
            target: self.target.at(address),
            address: address.clone(),
            slots: Arc::clone(&slots),
            refresh_rounds: Arc::clone(&self.refreshes),
            claimed_epoch: AtomicU64::new(*epoch),
        });
        let number = self.next_shard.fetch_add(1, Ordering::Relaxed);
        let context = Arc::clone(&self.context);
        Shard::start(number, ShardState::new(context, source, address.to_string(), slots))
    }

    /// Returns the current version. Do not keep the guard: an update waits for it.
    pub(super) fn slot_map(&self) -> RwLockReadGuard<'_, SlotMap> {
        self.slot_map.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the map; returns the shards that are no longer in it.
    ///
    /// Near entries of a slot that changes hands are evicted under the lock. News about them has
    /// come over the connection of the old owner, and may still be on its way there when the first
    /// reader passes the barrier of the new owner. A reader that set out for the old owner earlier
    /// does not insert what it reads, because it noted the generation of its key before it looked
    /// at the map.
    fn update_map(&self, plan: Plan) -> Vec<Arc<Shard>> {
        let mut drawn = self.slot_map.write().unwrap_or_else(PoisonError::into_inner);
        drawn.pass_claims(&plan);
        if drawn.plan.masters == plan.masters && drawn.plan.owners == plan.owners {
            drawn.plan = plan;
            return Vec::new();
        }
        let shard = |master: &Master| {
            let known = drawn.shard_of(|known| known.is(master));
            known.cloned().unwrap_or_else(|| Arc::new(self.new_shard(master)))
        };
        let shards = plan.masters.iter().map(shard).collect();
        let next = SlotMap { plan, shards };
        let moved = drawn.moved(&next);
        if let Some((watcher, _)) = &self.context.watcher
            && !moved.is_empty()
            && !mutants::is(Mutant::NearAcrossMoves)
        {
            watcher.evict_matching(&|name| moved.contains_name(name));
        }
        for shard in drawn.shards.iter().chain(&next.shards) {
            shard.state.slots.assign(|slot| next.owner_number(slot) == Some(shard.number));
        }
        let before = std::mem::replace(&mut *drawn, next).shards;
        let is_gone =
            |shard: &Arc<Shard>| !drawn.shards.iter().any(|kept| kept.number == shard.number);
        before.into_iter().filter(is_gone).collect()
    }

    /// Opens a connection to a node that is not one of our masters.
    async fn temp_connection(&self, node: &NodeAddress) -> Result<RedisConnection> {
        timeout(DETACHED_TIMEOUT, self.target.at(node).connect()).await?
    }

    /// Keeps a connection, in the place of another if there are too many.
    fn keep_connection(&self, node: NodeAddress, connection: RedisConnection) {
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
    ) -> Result<T> {
        let (to, target) = {
            let map = self.slot_map();
            let sender = NodeAddress::parse(&from.state.address);
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

/// One version of the slot map.
#[derive(Default)]
pub(super) struct SlotMap {
    plan: Plan,
    /// In the order of `plan.masters`.
    pub(super) shards: Vec<Arc<Shard>>,
}

impl SlotMap {
    /// The shard that owns a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<Shard>> {
        let index = (*self.plan.owners.get(usize::from(slot))?)?;
        self.shards.get(usize::from(index))
    }

    /// The shard at an address.
    pub(super) fn shard_at(&self, address: &NodeAddress) -> Option<&Arc<Shard>> {
        self.shard_of(|master| master.address == *address)
    }

    /// The shard of the first master that satisfies `is_it`.
    fn shard_of(&self, is_it: impl Fn(&Master) -> bool) -> Option<&Arc<Shard>> {
        self.shards.get(self.plan.masters.iter().position(is_it)?)
    }

    /// Returns the target of a redirection. Without a host it is at the host of its sender. With
    /// "?" the node should have a host name and has none: it is the only known node with this port,
    /// if there is just one.
    pub(super) fn resolve_redirect(
        &self,
        to: NodeAddress,
        sender: Option<NodeAddress>,
    ) -> NodeAddress {
        let mut same_port = self.plan.nodes.iter().filter(|node| node.port == to.port);
        match (&*to.host, same_port.next(), same_port.next(), sender) {
            ("?", Some(only), None, _) => only.clone(),
            ("?" | "", .., Some(sender)) => NodeAddress { port: to.port, ..sender },
            _ => to,
        }
    }

    fn owner_number(&self, slot: u16) -> Option<u64> {
        self.owner(slot).map(|shard| shard.number)
    }

    /// The slots that have another owner in the next version.
    fn moved(&self, next: &Self) -> SlotSet {
        SlotSet::from_fn(|slot| self.owner_number(slot) != next.owner_number(slot))
    }

    /// Tells each master the epoch in which it claims its slots. It must know before it gets a slot
    /// back, so that it does not believe what it held of the slot in the past.
    fn pass_claims(&self, plan: &Plan) {
        for master in &plan.masters {
            if let Some(shard) = self.shard_of(|known| known.is(master)) {
                shard.raise_claimed_epoch(master.epoch);
            }
        }
    }

    /// Number of slots without an owner.
    pub(super) fn unowned(&self) -> usize {
        usize::from(SLOTS) - self.plan.owners.iter().flatten().count()
    }
}
