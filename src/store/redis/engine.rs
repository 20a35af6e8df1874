//! The store on Redis for any number of servers, and which of them owns a key: one server owns all,
//! or each master of a cluster owns some of the slots.
//!
//! The purge of all is here as well: every master that owns pending slots renews their purge tokens,
//! which voids all entries there, and confirms its own slots. They are deleted afterwards.

use std::{
    borrow::Cow,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::join_all;
use redis::cmd;
use tokio::time::timeout;

use super::{
    cluster::Cluster, purge_token::PurgeTokens, session::Session, shard::Shard, state::StoreContext,
};
use crate::store::{
    BarrierWait, Ended, FarStore, Key, NodeStatus, Redirect, StoreError,
    barrier::BarrierDown,
    errors::{DETACHED_TIMEOUT, Result, StoreErrorKind},
    pending::PurgeAllTask,
    slots::{SlotSet, slot_of, slot_of_key},
    words::now_ms,
};

/// Time for a topology refresh that begins after now. One may be under way, and nodes that hang
/// slow down each of them.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);

/// The store on one Redis server or several.
pub(crate) struct RedisEngine {
    pub(super) topology: Topology,
    pub(crate) context: Arc<StoreContext>,
}

/// Which server owns a key.
pub(super) enum Topology {
    /// One master owns every key; its address comes from the URL or from sentinels.
    One(Arc<Shard>),
    /// The masters of a cluster.
    Cluster(Arc<Cluster>),
}

impl RedisEngine {
    /// Applies `look` to the server that owns a name now. If the slot changes hands meanwhile, its
    /// near entries are evicted, and what is sent to the former owner is refused. Hits do not clone
    /// the handle.
    fn with_owner<T>(&self, name: &[u8], look: impl FnOnce(&Arc<Shard>) -> T) -> Result<T> {
        match &self.topology {
            Topology::One(shard) => Ok(look(shard)),
            Topology::Cluster(cluster) => {
                cluster.slot_map().owner(slot_of(name)).map(look).ok_or(StoreError::Down)
            }
        }
    }

    pub(super) fn owner_of_name(&self, name: &[u8]) -> Result<Arc<Shard>> {
        self.with_owner(name, Arc::clone)
    }

    pub(crate) fn owner(&self, key: &Key) -> Result<Arc<Shard>> {
        self.owner_of_name(key.main().as_bytes())
    }

    /// Applies `look` to all servers, and to the number of slots without an owner.
    pub(super) fn with_shards<T>(&self, look: impl FnOnce(&[Arc<Shard>], usize) -> T) -> T {
        match &self.topology {
            Topology::One(shard) => look(std::slice::from_ref(shard), 0),
            Topology::Cluster(cluster) => {
                let map = cluster.slot_map();
                look(&map.shards, map.unowned())
            }
        }
    }

    /// How far away a server is that is too far away, if there is one.
    pub(crate) fn far(&self) -> Option<FarStore> {
        self.with_shards(|shards, _| shards.iter().find_map(|shard| shard.far()))
    }

    /// Returns all servers, each with the slots that it owned at one point in time.
    pub(super) fn shards_with_slots(&self) -> Vec<(Arc<Shard>, SlotSet)> {
        let with_slots = |shard: &Arc<Shard>| (Arc::clone(shard), shard.state.slots.snapshot());
        self.with_shards(|shards, _| shards.iter().map(with_slots).collect())
    }

    /// Waits until the owners are known that the keys had when this was called, or later. Returns
    /// whether they can have changed.
    pub(super) async fn refresh_owners(&self) -> bool {
        let Some(cluster) = self.cluster() else { return false };
        cluster.refreshes.next().await;
        true
    }

    /// The cluster, if it is one.
    pub(super) fn cluster(&self) -> Option<&Cluster> {
        if let Topology::Cluster(cluster) = &self.topology { Some(cluster) } else { None }
    }

    pub(crate) fn trust(&self, key: &Key) -> Result<i64> {
        if self.context.retry_queue.pending.contains(key) {
            return Err(StoreError::Pending);
        }
        self.with_owner(key.main().as_bytes(), |shard| shard.trust())?
    }

    /// Waits for the shard that owns the key. If the slot changes hands meanwhile, the reader does
    /// not pass.
    pub(crate) fn poll_barrier(
        &self,
        key: &Key,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        let polled = self.with_owner(key.main().as_bytes(), |shard| {
            if *wait.shard.get_or_insert(shard.number) != shard.number {
                return Poll::Ready(Err(BarrierDown));
            }
            shard.poll_barrier(staleness, wait, cx)
        });
        polled.unwrap_or(Poll::Ready(Err(BarrierDown)))
    }

    /// Uses the clock of any server that is up; they differ as much as the clocks of their
    /// machines.
    pub(crate) fn now_ms(&self) -> i64 {
        let told = self.with_shards(|shards, _| shards.iter().find_map(|s| s.now_ms()));
        told.unwrap_or_else(now_ms)
    }

    /// Whether every slot has an owner, and every owner is trusted.
    pub(crate) fn is_up(&self) -> bool {
        self.with_shards(|shards, unowned| unowned == 0 && shards.iter().all(|shard| shard.is_up()))
    }

    /// Whether any server is trusted.
    pub(super) fn is_any_up(&self) -> bool {
        self.with_shards(|shards, _| shards.iter().any(|shard| shard.is_up()))
    }

    /// Returns the masters of a cluster; empty if there is none.
    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        let map = cluster.slot_map();
        let nodes = map.shards.iter().map(|shard| NodeStatus {
            address: shard.state.address.clone(),
            slots: shard.state.slots.snapshot().iter().count(),
            up: shard.is_up(),
            tracked: shard.is_tracked(),
        });
        nodes.collect()
    }

    /// The slot of a key, and the address of its owner; `None` without a cluster.
    pub(crate) fn place(&self, key: &Key) -> Option<(u16, Option<String>)> {
        let slot = slot_of_key(key);
        let map = self.cluster()?.slot_map();
        Some((slot, map.owner(slot).map(|shard| shard.state.address.clone())))
    }

    pub(crate) async fn purge_all(&self) -> Ended {
        let queue = &self.context.retry_queue;
        // Every key is bypassed from here on, until this purge has been confirmed for its slot.
        let task = queue.pending.add_all().await;
        let ended = self.run_purge_all(&task).await;
        if ended == Ended::Pending {
            queue.changed.notify_one();
        }
        queue.update_gauge();
        ended
    }

    /// Purges the pending slots. Each master confirms those that it owns, whatever becomes of the
    /// others; the purge is confirmed as a whole when no slot is left.
    pub(super) async fn run_purge_all(&self, task: &PurgeAllTask) -> Ended {
        let purged = self.purge_pending_slots(task).await;
        if purged.is_ok() {
            self.context.purged.notify_one();
        }
        self.context.retry_queue.record_purge_all(task, purged)
    }

    /// Renews the purge tokens of the slots, and of those that have moved meanwhile once more.
    async fn purge_pending_slots(&self, task: &PurgeAllTask) -> Result<()> {
        let mut left = task.slots.clone();
        let mut done = self.purge_slots(&mut left, task).await;
        if let Err(StoreError::Redirected(Redirect::Moved)) = done {
            timeout(REFRESH_TIMEOUT, self.refresh_owners()).await?;
            done = self.purge_slots(&mut left, task).await;
        }
        done?;
        // Slots without an owner are not confirmed.
        if left.is_empty() { Ok(()) } else { Err(StoreError::Down) }
    }

    /// Purges slots at all their owners at the same time, and removes those that were confirmed. Returns
    /// the last failure.
    async fn purge_slots(&self, left: &mut SlotSet, task: &PurgeAllTask) -> Result<()> {
        let shares = self.shards_with_slots();
        let purges = shares.iter().map(async |(shard, owned)| {
            let slots = owned.intersection(left);
            self.purge_shard(shard, slots, task).await
        });
        let mut result = Ok(());
        for (confirmed, failed) in join_all(purges).await {
            *left = left.difference(&confirmed);
            // A move is the failure that a second attempt mends.
            if !matches!(result, Err(StoreError::Redirected(Redirect::Moved))) {
                result = failed.map_or(result, Err);
            }
        }
        result
    }

    /// Returns the slots that this server has confirmed, and the failure of the others.
    async fn purge_shard(
        &self,
        shard: &Shard,
        slots: SlotSet,
        task: &PurgeAllTask,
    ) -> (SlotSet, Option<StoreError>) {
        if slots.is_empty() {
            return (slots, None);
        }
        let purge = async {
            let session = shard.state.session()?;
            let renewed =
                timeout(DETACHED_TIMEOUT, self.renew_tokens(shard, &session, &slots)).await?;
            let (confirmed, failed) = renewed?;
            shard.state.note_purged(&session, &confirmed)?;
            self.context.retry_queue.pending.confirm_slots(&confirmed, task);
            Ok((confirmed, failed))
        };
        let purged: Result<_> = purge.await;
        purged.unwrap_or_else(|error| (SlotSet::NONE, Some(error)))
    }

    /// Renews the tokens of slots in one round trip. Returns the slots where all are renewed, and the
    /// last failure.
    async fn renew_tokens(
        &self,
        shard: &Shard,
        session: &Session,
        slots: &SlotSet,
    ) -> Result<(SlotSet, Option<StoreError>)> {
        let tokens = &self.context.purge_tokens;
        let new = PurgeTokens::random();
        let names: Vec<(u16, Cow<'_, str>)> = tokens.in_slots(slots).collect();
        let set = |name: &str| cmd("SET").arg(name).arg(&new).to_owned();
        let renewed = session.query_each(names.iter().map(|(_, name)| set(name))).await?;
        let mut renewals = Renewals { failed_slots: SlotSet::NONE, failed: None };
        let mut refused = Vec::new();
        for ((slot, name), renewed) in names.iter().zip(renewed) {
            match renewed {
                Err(error) if error.kind() == StoreErrorKind::Refused => {
                    refused.push((*slot, name));
                }
                Err(StoreError::Redirected(Redirect::Ask(_))) => {
                    renewals.note(*slot, self.query_single(shard, &set(name)).await);
                }
                renewed => renewals.note(*slot, renewed),
            }
        }
        // A server without memory takes no new one. Without a token nothing counts either.
        let deletions = refused.iter().map(|(_, name)| cmd("DEL").arg(&***name).to_owned());
        for ((slot, _), deleted) in refused.iter().zip(session.query_each(deletions).await?) {
            renewals.note(*slot, deleted);
        }
        let Renewals { failed_slots, failed } = renewals;
        let confirmed = match failed {
            Some(_) if tokens.is_one_for_all() => SlotSet::NONE,
            _ => slots.difference(&failed_slots),
        };
        Ok((confirmed, failed))
    }

    /// Deletes what purges of all have voided, in small steps: memory is freed, and readers need not
    /// refuse it one by one. Fences stay, because their writes are still in flight.
    pub(super) async fn sweep(&self) -> Result<()> {
        let events = &self.context.events;
        events.expect_own_purge_all();
        let mut result = Ok(());
        for (shard, _) in self.shards_with_slots() {
            for prefix in &self.context.prefixes {
                let swept = async { self.sweep_prefix(&*shard.state.session()?, prefix).await };
                result = swept.await.and(result);
            }
        }
        events.end_own_purge_all();
        result
    }

    async fn sweep_prefix(&self, session: &Session, prefix: &str) -> Result<()> {
        let mut cursor = 0;
        loop {
            let step = async {
                let (next, names) = session.scan(prefix, cursor).await?;
                let sweeps = names.iter().map(async |name| {
                    let token = self.context.purge_tokens.of_name(prefix, name);
                    session.sweep(name, &token).await
                });
                for swept in join_all(sweeps).await {
                    // The slot is moving, or is no longer this master's.
                    let Err(error) = swept else { continue };
                    let kind = error.kind();
                    if !matches!(kind, StoreErrorKind::Refused | StoreErrorKind::Redirected) {
                        return Err(error);
                    }
                }
                Ok::<_, StoreError>(next)
            };
            cursor = timeout(DETACHED_TIMEOUT, step).await??;
            if cursor == 0 {
                return Ok(());
            }
        }
    }
}

/// The failures of the renewals of purge tokens.
struct Renewals {
    failed_slots: SlotSet,
    failed: Option<StoreError>,
}

impl Renewals {
    fn note(&mut self, slot: u16, renewed: Result<()>) {
        if let Err(error) = renewed {
            self.failed_slots.insert(slot);
            self.failed = Some(error);
        }
    }
}
