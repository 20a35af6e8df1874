//! The store on a Redis Cluster: one master for each part of the slots, and the map of whose they are.
//!
//! Each master is served by the engine for a single Redis: a keeper, a session, an epoch, a tracking
//! connection and its rounds. A master that is lost costs its own slots their cache and nothing else.
//! What is of the process and not of a master is here: the map (`map.rs`) and how it is learned
//! (`learn.rs`), the invalidations (`invalidate.rs`) and those that are owed (`owed.rs`), and the key of
//! the fingerprints.
//!
//! # Why nothing is stale though slots move
//!
//! The guarantee rests on four things: a deleted `job_status:<id>` is a hit nowhere and voids a fill in
//! flight; what this process holds is used only behind the barrier; an entry counts only in its epoch;
//! and an end that is not confirmed is owed. Of each, when the owner of a slot changes:
//!
//! - **Key by key** (`MIGRATE`): a key is on one node at a time, and whoever deletes it is sent to that
//!   node. Leaving, it is deleted at the source, which is news on the source's tracking connection: what
//!   is near goes. Scripts are refused while their keys are apart, so that nothing is leased or filled;
//!   invalidations go key by key (`invalidate.rs`).
//! - **The owner of a slot changes** in our map: what is near of the slot goes before the new map is
//!   used (`map.rs`). Until we know, the old owner holds no key of it any more, and answers `MOVED`.
//! - **What came along** from another master was stored in another epoch, and is not believed. A fill
//!   under a lease that came along is refused here, for the same reason. A slot that comes back may
//!   have lost a `DEL` over there with a failover; but to take it back its master must raise its config
//!   epoch above that of the master that had it, and the config epoch is part of ours.
//! - **A replica is promoted** (failed over or by hand): another `run_id`, and so another epoch. What it
//!   did not hear of before is not believed.
//! - **A master that is none any more** and does not know it: cut off from the majority it refuses keyed
//!   commands (`CLUSTERDOWN`) after `cluster-node-timeout`, before its replica is promoted; a round of
//!   the barrier is such a command. One that hung does not answer our probes, and its session is over
//!   within a second, before its replica can have been promoted (with a `cluster-node-timeout` of 1 s or
//!   more); when it is back, it is trusted only once another node has borne witness after it answered.
//!   What remains is the time in which it hands over by hand, a few milliseconds, and is the limit that
//!   [`store`](super) states of a deposed master.

mod invalidate;
mod learn;
mod lessons;
mod map;
mod owed;
mod slots;
mod told;
mod topology;

use std::{
    collections::HashMap,
    convert::Infallible,
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

pub(super) use self::{
    lessons::Lessons,
    slots::{SLOTS, SlotSet, Slots, slot_of},
    topology::text_field,
};
use self::{
    map::{Map, Shard},
    topology::{Master, View},
};
pub use self::{told::Node, topology::Address};
use super::{
    Budget, CredentialKey, Fill, Grant, Key, Lease, Replacement, Seen, State, StoreError, Stored,
    Token, Wait,
    barrier::Down,
    debts::Debts,
    near::Watcher,
    redis::{Redis, connect::Target, errand::Guest, first_credential_key, part::Part},
    unix_ms,
};
use crate::{clock, config, metrics::Metrics, throttle::Throttle};

/// The store on a Redis Cluster.
#[derive(Debug)]
pub struct Cluster {
    world: Arc<World>,
    _tasks: [AbortOnDropHandle<()>; 3],
}

/// What those who use the store and those who keep it have in common.
#[derive(Debug)]
struct World {
    map: Map,
    lessons: Arc<Lessons>,
    seeds: Vec<Address>,
    /// Any node, and who we are there.
    target: Target,
    config: config::StoreConfig,
    tracking: config::NearTracking,
    credential_key: Arc<RwLock<CredentialKey>>,
    has_secret: bool,
    debts: Arc<Debts>,
    /// Connections to nodes that are no masters of ours, by which they are asked again.
    guests: Mutex<HashMap<Address, Guest>>,
    /// Told when a master has become trusted or tracked, or is not any more.
    turned: Arc<Notify>,
    /// Shards that there have been.
    shards: AtomicU64,
    watcher: Option<Arc<dyn Watcher>>,
    tasks: TaskTracker,
    warnings: Warnings,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Warnings {
    learn: Throttle,
}

/// What a shard has the watcher drop: its own slots, where a server that stands alone drops all.
#[derive(Debug)]
struct Share {
    watcher: Arc<dyn Watcher>,
    slots: Arc<Slots>,
}

impl Watcher for Share {
    fn evict(&self, name: &[u8]) {
        self.watcher.evict(name);
    }

    fn flush(&self) {
        self.watcher.forget(&|name| self.slots.own(name));
    }

    fn forget(&self, is_gone: &dyn Fn(&[u8]) -> bool) {
        self.watcher.forget(is_gone);
    }
}

impl Cluster {
    /// Starts to look for the masters in the background.
    pub(super) fn open(
        seeds: &config::ClusterSeeds,
        config: &config::Config,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let world = Arc::new(World {
            map: Map::default(),
            lessons: Arc::default(),
            seeds: seeds
                .hosts
                .iter()
                .map(|(host, port)| Address { host: (&**host).into(), port: *port })
                .collect(),
            target: Target::of_seeds(seeds, config, &metrics)?,
            config: config.store.clone(),
            tracking: config.near.tracking,
            credential_key: first_credential_key(config),
            has_secret: config.credentials.secret.is_some(),
            debts: Arc::new(Debts::open(&config.pending, Arc::clone(&metrics))?),
            guests: Mutex::default(),
            turned: Arc::default(),
            shards: AtomicU64::new(0),
            watcher,
            tasks,
            warnings: Warnings::default(),
            metrics,
        });
        let own = || Arc::clone(&world);
        let tasks = [
            tokio::spawn(never(learn::learn(own()))),
            tokio::spawn(never(told::look_out(own()))),
            tokio::spawn(never(owed::pay(own()))),
        ];
        let tasks = tasks.map(AbortOnDropHandle::new);
        Ok(Self { world, _tasks: tasks })
    }

    pub(super) fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        if self.world.debts.pending.contains(key) {
            return Err(StoreError::Pending);
        }
        let map = self.world.map.read();
        map.owner(slot(key)).ok_or(StoreError::Down)?.redis.trust(key)
    }

    /// By the shard that owns the key; should it change hands meanwhile, what is near of its slot goes.
    pub(super) async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<(), StoreError> {
        self.world.map.shard(key)?.redis.follow(key, budget).await
    }

    /// Of the shard that owns the key; should it change hands meanwhile, nobody passes.
    pub(super) fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut Wait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Down>> {
        let map = self.world.map.read();
        let Some(shard) = map.owner(slot(key)) else { return Poll::Ready(Err(Down)) };
        if *wait.shard.get_or_insert(shard.number) != shard.number {
            return Poll::Ready(Err(Down));
        }
        shard.redis.poll_barrier(staleness, wait, cx)
    }

    pub(super) async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen, StoreError> {
        self.world.map.shard(key)?.redis.read(key, budget).await
    }

    pub(super) async fn inspect(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<State, StoreError> {
        self.world.map.shard(key)?.redis.inspect(key, budget).await
    }

    pub(super) async fn lease(
        &self,
        key: &Key,
        token: Token,
        refused: Option<&Stored>,
        budget: &mut Budget,
    ) -> Result<Grant, StoreError> {
        self.world.map.shard(key)?.redis.lease(key, token, refused, budget).await
    }

    /// To whoever owns the slot now. If that is another master than granted the lease, or the same
    /// after it took the slot back, its epoch is another, and the fill is refused.
    pub(super) async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        self.world.map.shard(&lease.key)?.redis.fill(lease, body, meta, ttl).await
    }

    pub(super) async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        pair: &str,
    ) -> Result<Fill, StoreError> {
        self.world.map.shard(key)?.redis.admit(key, seen, generation, pair).await
    }

    pub(super) async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill, StoreError> {
        self.world.map.shard(key)?.redis.replace(key, seen, generation, new).await
    }

    pub(super) async fn release(&self, lease: Lease) {
        // Without an owner it runs out by itself.
        if let Ok(shard) = self.world.map.shard(&lease.key) {
            shard.redis.release(lease).await;
        }
    }

    pub(super) fn credential_key(&self) -> CredentialKey {
        self.world.credential_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// By the clock of any master. They are as far apart as the clocks of their machines.
    pub(super) fn now_ms(&self) -> i64 {
        let map = self.world.map.read();
        let up = map.shards.iter().find(|shard| shard.redis.is_up());
        up.map_or_else(|| unix_ms(clock::now()), |shard| shard.redis.now_ms())
    }

    pub(super) fn pending(&self) -> usize {
        self.world.debts.pending.len()
    }

    /// Stops after a last try to pay what is owed.
    pub(super) async fn close(&self, deadline: Duration) {
        let debts = &self.world.debts;
        if debts.pending.is_empty() {
            return;
        }
        debts.pending.hurry();
        let _ = timeout(deadline, self.world.pay_all()).await;
        debts.abandon();
    }
}

/// Asks the seeds, one after the other, for the masters. Whether those answer is not looked at.
pub(super) async fn probe(
    seeds: &config::ClusterSeeds,
    config: &config::Config,
) -> Result<(), StoreError> {
    let target = Target::of_seeds(seeds, config, &Arc::default())?;
    let mut last = StoreError::Down;
    for (host, port) in &seeds.hosts {
        let asked = async { Guest::open(&target.at(host, *port)).await?.lesson().await };
        let address = Address { host: (&**host).into(), port: *port };
        match asked.await {
            Ok((slots, nodes, info)) => match View::parse(&address, &slots, &nodes, &info) {
                Some(_) => return Ok(()),
                None => last = StoreError::Refused("it tells of no cluster".into()),
            },
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl World {
    /// Another master to be served.
    fn shard(&self, master: &Master) -> Shard {
        let slots = Arc::<Slots>::default();
        let part = Part {
            address: master.address.clone(),
            slots: Arc::clone(&slots),
            claimed: AtomicU64::new(master.epoch),
            lessons: Arc::clone(&self.lessons),
            tracking: self.tracking,
            turned: Arc::clone(&self.turned),
            metrics: Arc::clone(&self.metrics),
        };
        let watcher = self.watcher.as_ref().map(|watcher| {
            let (watcher, slots) = (Arc::clone(watcher), Arc::clone(&slots));
            Arc::new(Share { watcher, slots }) as Arc<dyn Watcher>
        });
        let target = self.target.at(&master.address.host, master.address.port);
        let key = (Arc::clone(&self.credential_key), self.has_secret);
        let (debts, tasks) = (Arc::clone(&self.debts), self.tasks.clone());
        let redis = Redis::member(target, &self.config, part, debts, key, tasks, watcher);
        Shard::new(self.shards.fetch_add(1, Ordering::Relaxed), master, slots, redis)
    }

    /// A connection to a node that is no master of ours.
    async fn guest(&self, node: &Address) -> Result<Guest, StoreError> {
        Guest::open(&self.target.at(&node.host, node.port)).await
    }
}

/// For what ends with its task and not before.
async fn never(task: impl Future<Output = Infallible>) {
    match task.await {}
}

fn slot(key: &Key) -> u16 {
    slot_of(key.main().as_bytes())
}
