//! The slot map: which shard owns a slot, as of the last topology refresh.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::plan::{Master, Plan};
use crate::{
    mutants::{self, Mutant},
    store::{
        near::Watcher,
        node_address::NodeAddress,
        redis::shard::Shard,
        slots::{SLOTS, SlotSet},
    },
};

/// The current slot map.
#[derive(Default)]
pub(in crate::store::redis) struct SlotMap {
    current: RwLock<SlotMapVersion>,
}

/// One version of the map.
#[derive(Default)]
pub(in crate::store::redis) struct SlotMapVersion {
    plan: Plan,
    /// In the order of `plan.masters`.
    pub(in crate::store::redis) shards: Vec<Arc<Shard>>,
}

impl SlotMapVersion {
    /// The shard that owns a slot.
    pub(in crate::store::redis) fn owner(&self, slot: u16) -> Option<&Arc<Shard>> {
        let index = (*self.plan.owners.get(usize::from(slot))?)?;
        self.shards.get(usize::from(index))
    }

    /// The address and the shard of each master.
    pub(super) fn masters(&self) -> impl Iterator<Item = (&NodeAddress, &Arc<Shard>)> {
        self.plan.masters.iter().map(|master| &master.address).zip(&self.shards)
    }

    /// The shard at an address.
    pub(super) fn shard_at(&self, address: &NodeAddress) -> Option<&Arc<Shard>> {
        self.shard_of(|master| master.address == *address)
    }

    /// The shard of the first master that satisfies `is_it`.
    fn shard_of(&self, is_it: impl Fn(&Master) -> bool) -> Option<&Arc<Shard>> {
        self.shards.get(self.plan.masters.iter().position(is_it)?)
    }

    /// Returns the target of a redirection. Without a host it is at the host of its sender. With "?"
    /// the node should have a host name and has none: it is the only known node with this port, if there is
    /// just one.
    pub(super) fn resolve_redirect(
        &self,
        to: NodeAddress,
        sender: Option<NodeAddress>,
    ) -> NodeAddress {
        let mut same_port = self.nodes().iter().filter(|node| node.port == to.port);
        match (&*to.host, same_port.next(), same_port.next(), sender) {
            ("?", Some(only), None, _) => only.clone(),
            ("?" | "", .., Some(sender)) => NodeAddress { port: to.port, ..sender },
            _ => to,
        }
    }

    /// All nodes that can be asked.
    pub(super) fn nodes(&self) -> &[NodeAddress] {
        &self.plan.nodes
    }

    /// The highest epoch that any node has reported.
    pub(super) fn epoch(&self) -> u64 {
        self.plan.current_epoch
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
    pub(in crate::store::redis) fn unowned(&self) -> usize {
        usize::from(SLOTS) - self.plan.owners.iter().flatten().count()
    }
}

impl SlotMap {
    /// Returns the current version. Do not keep the guard: an update waits for it.
    pub(in crate::store::redis) fn read(&self) -> RwLockReadGuard<'_, SlotMapVersion> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
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
        plan: Plan,
        watcher: Option<&Arc<dyn Watcher>>,
        mut new_shard: impl FnMut(&Master) -> Shard,
    ) -> Vec<Arc<Shard>> {
        let mut drawn = self.current.write().unwrap_or_else(PoisonError::into_inner);
        drawn.pass_claims(&plan);
        if drawn.plan.masters == plan.masters && drawn.plan.owners == plan.owners {
            drawn.plan = plan;
            return Vec::new();
        }
        let shard = |master: &Master| {
            let known = drawn.shard_of(|known| known.is(master));
            known.cloned().unwrap_or_else(|| Arc::new(new_shard(master)))
        };
        let shards = plan.masters.iter().map(shard).collect();
        let next = SlotMapVersion { plan, shards };
        let moved = drawn.moved(&next);
        if let Some(watcher) = watcher
            && !moved.is_empty()
            && !mutants::is(Mutant::NearAcrossMoves)
        {
            watcher.evict_matching(&|name| moved.contains_name(name));
        }
        for shard in drawn.shards.iter().chain(&next.shards) {
            shard.slots().assign(|slot| next.owner_number(slot) == Some(shard.number));
        }
        let before = std::mem::replace(&mut *drawn, next).shards;
        let is_gone =
            |shard: &Arc<Shard>| !drawn.shards.iter().any(|kept| kept.number == shard.number);
        before.into_iter().filter(is_gone).collect()
    }
}
