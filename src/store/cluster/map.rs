//! The map: which shard a slot belongs to, by what was learned last.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::{
    Address,
    slots::{SLOTS, SlotSet, Slots, slot_of},
    topology::{Master, Plan},
};
use crate::{
    mutants::{self, Mutant},
    store::{Key, StoreError, near::Watcher, redis::Redis},
};

/// One master, and the slots that it owns.
pub(super) struct Shard {
    /// Never used twice: another life of the same node is another shard.
    pub(super) number: u64,
    id: Box<str>,
    pub(super) address: Address,
    pub(super) slots: Arc<Slots>,
    pub(super) redis: Redis,
}

impl Shard {
    pub(super) fn new(number: u64, master: &Master, slots: Arc<Slots>, redis: Redis) -> Self {
        let (id, address) = (master.id.clone(), master.address.clone());
        Self { number, id, address, slots, redis }
    }

    fn is(&self, master: &Master) -> bool {
        self.id == master.id && self.address == master.address
    }
}

/// The map of now.
#[derive(Default)]
pub(super) struct Map {
    drawn: RwLock<Drawn>,
}

/// A map as it was drawn.
#[derive(Default)]
pub(super) struct Drawn {
    plan: Plan,
    /// In the order of the plan's masters.
    pub(super) shards: Vec<Arc<Shard>>,
}

impl Drawn {
    /// The shard that owns a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<Shard>> {
        let place = (*self.plan.owners.get(usize::from(slot))?)?;
        self.shards.get(usize::from(place))
    }

    /// The shard at an address.
    pub(super) fn at(&self, address: &Address) -> Option<&Arc<Shard>> {
        self.shards.iter().find(|shard| shard.address == *address)
    }

    /// Where a redirection leads to. Without a host that is where its sender is; with "?" the node ought to
    /// have a host name and has none, so that it is the one that we know with this port, if it is one.
    pub(super) fn known(&self, to: Address, sender: &Address) -> Address {
        let mut alike = self.nodes().iter().filter(|node| node.port == to.port);
        match (&*to.host, alike.next(), alike.next()) {
            ("?", Some(only), None) => only.clone(),
            ("?" | "", ..) => Address { host: sender.host.clone(), ..to },
            _ => to,
        }
    }

    /// Everybody who can be asked.
    pub(super) fn nodes(&self) -> &[Address] {
        &self.plan.nodes
    }

    /// The highest epoch of which anybody has told.
    pub(super) fn epoch(&self) -> u64 {
        self.plan.current_epoch
    }

    fn number(&self, slot: u16) -> Option<u64> {
        self.owner(slot).map(|shard| shard.number)
    }

    /// The slots that another shard owns on the next one.
    fn moved(&self, next: &Self) -> SlotSet {
        SlotSet::of(|slot| self.number(slot) != next.number(slot))
    }

    /// Tells each master in which epoch it claims its slots: before it gets one back it must not believe
    /// what it held of it then.
    fn heed_claims(&self, plan: &Plan) {
        for shard in &self.shards {
            if let Some(master) = plan.masters.iter().find(|master| shard.is(master)) {
                shard.redis.claims(master.epoch);
            }
        }
    }

    /// Slots that nobody owns.
    pub(super) fn unowned(&self) -> usize {
        usize::from(SLOTS) - self.plan.owners.iter().flatten().count()
    }
}

impl Map {
    /// A look at it. Not to be kept: who draws waits for it.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Drawn> {
        self.drawn.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard that owns a key.
    pub(super) fn shard(&self, key: &Key) -> Result<Arc<Shard>, StoreError> {
        self.shard_of(key.main().as_bytes())
    }

    /// The shard that owns a name.
    pub(super) fn shard_of(&self, name: &[u8]) -> Result<Arc<Shard>, StoreError> {
        self.read().owner(slot_of(name)).cloned().ok_or(StoreError::Down)
    }

    /// All shards, and what each of them owned at one time.
    pub(super) fn shares(&self) -> Vec<(Arc<Shard>, SlotSet)> {
        let drawn = self.read();
        drawn.shards.iter().map(|shard| (Arc::clone(shard), shard.slots.now())).collect()
    }

    /// Draws it anew; gives the shards that are none any more.
    ///
    /// What this process holds of a slot that changes hands goes under the lock: its news has come over
    /// the connection of the old owner, and may be on its way there still when the first reader passes
    /// the barrier of the new one. A reader who set out for the old owner before does not put in what he
    /// brings, as he noted where the key stood before he looked at the map.
    pub(super) fn draw(
        &self,
        plan: Plan,
        watcher: Option<&Arc<dyn Watcher>>,
        mut found: impl FnMut(&Master) -> Shard,
    ) -> Vec<Arc<Shard>> {
        let mut drawn = self.drawn.write().unwrap_or_else(PoisonError::into_inner);
        drawn.heed_claims(&plan);
        if drawn.plan.masters == plan.masters && drawn.plan.owners == plan.owners {
            drawn.plan = plan;
            return Vec::new();
        }
        let shard = |master: &Master| {
            let known = drawn.shards.iter().find(|shard| shard.is(master));
            known.cloned().unwrap_or_else(|| Arc::new(found(master)))
        };
        let shards = plan.masters.iter().map(shard).collect();
        let next = Drawn { plan, shards };
        let moved = drawn.moved(&next);
        if let Some(watcher) = watcher
            && !moved.is_empty()
            && !mutants::is(Mutant::NearAcrossMoves)
        {
            watcher.forget(&|name| moved.own(name));
        }
        for shard in drawn.shards.iter().chain(&next.shards) {
            shard.slots.assign(|slot| next.number(slot) == Some(shard.number));
        }
        let before = std::mem::replace(&mut *drawn, next).shards;
        let is_gone =
            |shard: &Arc<Shard>| !drawn.shards.iter().any(|now| now.number == shard.number);
        before.into_iter().filter(is_gone).collect()
    }
}
