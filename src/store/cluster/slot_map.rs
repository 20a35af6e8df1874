//! The slot map: which shard owns a slot, as of the last topology refresh.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::{
    NodeAddress,
    slots::{OwnedSlots, SLOTS, SlotSet, slot_of},
    topology::{Master, Topology},
};
use crate::{
    mutants::{self, Mutant},
    store::{Key, StoreError, near::Watcher, redis::Redis},
};

/// One master and the slots that it owns.
pub(super) struct Shard {
    /// Never used twice: a node that comes back is another shard.
    pub(super) number: u64,
    id: Box<str>,
    pub(super) address: NodeAddress,
    pub(super) slots: Arc<OwnedSlots>,
    pub(super) redis: Redis,
}

impl Shard {
    pub(super) fn new(number: u64, master: &Master, slots: Arc<OwnedSlots>, redis: Redis) -> Self {
        let id = master.id.clone();
        let address = master.address.clone();
        Self { number, id, address, slots, redis }
    }

    fn is(&self, master: &Master) -> bool {
        self.id == master.id && self.address == master.address
    }
}

/// The current slot map.
#[derive(Default)]
pub(super) struct SlotMap {
    current: RwLock<SlotMapVersion>,
}

/// One version of the map.
#[derive(Default)]
pub(super) struct SlotMapVersion {
    topology: Topology,
    /// In the order of `plan.masters`.
    pub(super) shards: Vec<Arc<Shard>>,
}

impl SlotMapVersion {
    /// The shard that owns a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<Shard>> {
        let index = (*self.topology.owners.get(usize::from(slot))?)?;
        self.shards.get(usize::from(index))
    }

    /// The shard at an address.
    pub(super) fn shard_at(&self, address: &NodeAddress) -> Option<&Arc<Shard>> {
        self.shards.iter().find(|shard| shard.address == *address)
    }

    /// Returns the target of a redirection. Without a host it is at the address of its sender. With
    /// "?" the node should have a host name and has none: it is the only known node with this port,
    /// if there is just one.
    pub(super) fn resolve_redirect(&self, to: NodeAddress, sender: &NodeAddress) -> NodeAddress {
        let mut same_port = self.nodes().iter().filter(|node| node.port == to.port);
        match (&*to.host, same_port.next(), same_port.next()) {
            ("?", Some(only), None) => only.clone(),
            ("?" | "", ..) => NodeAddress { host: sender.host.clone(), ..to },
            _ => to,
        }
    }

    /// All nodes that can be asked.
    pub(super) fn nodes(&self) -> &[NodeAddress] {
        &self.topology.nodes
    }

    /// The highest epoch that any node has reported.
    pub(super) fn epoch(&self) -> u64 {
        self.topology.current_epoch
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
    fn pass_claims(&self, plan: &Topology) {
        for shard in &self.shards {
            if let Some(master) = plan.masters.iter().find(|master| shard.is(master)) {
                shard.redis.raise_claimed_epoch(master.epoch);
            }
        }
    }

    /// Number of slots without an owner.
    pub(super) fn unowned(&self) -> usize {
        usize::from(SLOTS) - self.topology.owners.iter().flatten().count()
    }
}

impl SlotMap {
    /// Returns the current version. Do not keep the guard: an update waits for it.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, SlotMapVersion> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard that owns a key.
    pub(super) fn shard(&self, key: &Key) -> Result<Arc<Shard>, StoreError> {
        self.shard_of(key.main().as_bytes())
    }

    /// The shard that owns a name.
    pub(super) fn shard_of(&self, name: &[u8]) -> Result<Arc<Shard>, StoreError> {
        self.read().owner(slot_of(name)).cloned().ok_or(StoreError::Down)
    }

    /// Returns all shards, each with the slots that it owned at one point in time.
    pub(super) fn shards_with_slots(&self) -> Vec<(Arc<Shard>, SlotSet)> {
        let drawn = self.read();
        drawn.shards.iter().map(|shard| (Arc::clone(shard), shard.slots.snapshot())).collect()
    }

    /// Updates the map; returns the shards that are no longer in it.
    ///
    /// Near entries of a slot that changes hands are evicted under the lock. News about them has
    /// come over the connection of the old owner, and may still be on its way there when the first
    /// reader passes the barrier of the new owner. A reader that set out for the old owner earlier
    /// does not insert what it reads, because it noted the generation of its key before it looked
    /// at the map.
    pub(super) fn update(
        &self,
        plan: Topology,
        watcher: Option<&Arc<dyn Watcher>>,
        mut new_shard: impl FnMut(&Master) -> Shard,
    ) -> Vec<Arc<Shard>> {
        let mut drawn = self.current.write().unwrap_or_else(PoisonError::into_inner);
        drawn.pass_claims(&plan);
        if drawn.topology.masters == plan.masters && drawn.topology.owners == plan.owners {
            drawn.topology = plan;
            return Vec::new();
        }
        let shard = |master: &Master| {
            let known = drawn.shards.iter().find(|shard| shard.is(master));
            known.cloned().unwrap_or_else(|| Arc::new(new_shard(master)))
        };
        let shards = plan.masters.iter().map(shard).collect();
        let next = SlotMapVersion { topology: plan, shards };
        let moved = drawn.moved(&next);
        if let Some(watcher) = watcher
            && !moved.is_empty()
            && !mutants::is(Mutant::NearAcrossMoves)
        {
            watcher.evict_matching(&|name| moved.contains_name(name));
        }
        for shard in drawn.shards.iter().chain(&next.shards) {
            shard.slots.assign(|slot| next.owner_number(slot) == Some(shard.number));
        }
        let before = std::mem::replace(&mut *drawn, next).shards;
        let is_gone =
            |shard: &Arc<Shard>| !drawn.shards.iter().any(|kept| kept.number == shard.number);
        before.into_iter().filter(is_gone).collect()
    }
}
