//! The state of the pending set: keys, slots and the records of siblings, and when each is
//! repeated. No lock and no disk.
//!
//! A slot of which every key is pending stays so until a purge of all has been confirmed there.
//! Slots are confirmed one by one, because a lost master withholds only the confirmation of its
//! own. They share one due time: a purge goes to the masters that own some of them, and costs the
//! others nothing.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::store::{
    Key, Token,
    journal::records::{LiveRecords, Record},
    slots::{SLOTS, SlotSet, slot_of_key},
};

/// The contents of a [`PendingSet`](super::PendingSet).
#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) keys: HashMap<Key, PendingItem>,
    /// The same keys in the order in which they are to be repeated: one that fails goes to the
    /// back.
    pub(super) due: BTreeMap<(Instant, u64), Key>,
    /// Slots of which every key is pending.
    pub(super) slots: PendingSlots,
    /// Invalidations that other processes with the same journal have not confirmed. They repeat
    /// them; the jobs are bypassed here as well.
    pub(super) siblings: BTreeMap<usize, LiveRecords>,
    /// Records that have left the journal of a sibling since the last scan but one. Another process
    /// may have adopted them into a file that this scan had already read, so their jobs are
    /// bypassed until the next scan.
    pub(super) leaving: Vec<LiveRecords>,
    /// Counts additions, so that a confirmation only removes what it confirmed.
    pub(super) additions: u64,
}

impl Inner {
    pub(super) fn own_len(&self) -> usize {
        self.keys.len() + usize::from(!self.slots.is_empty())
    }

    pub(super) fn insert_slots(&mut self, slots: &SlotSet) {
        self.additions += 1;
        self.slots.add(slots, self.additions);
    }

    /// Everything that is pending, as journal records.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> {
        let added =
            |item: &PendingItem| Record::added(item.key.main(), item.write.as_str(), item.linger);
        let slots = self.slots.slots();
        let all_slots = (!slots.is_empty()).then(|| Record::slots_added(&slots));
        self.keys.values().map(added).chain(all_slots)
    }

    pub(super) fn put(&mut self, item: PendingItem) {
        self.due.insert(item.due.order(), item.key.clone());
        self.keys.insert(item.key.clone(), item);
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<PendingItem> {
        let item = self.keys.remove(key)?;
        self.due.remove(&item.due.order());
        Some(item)
    }

    pub(super) fn is_pending_in_sibling(&self, key: &Key) -> bool {
        let mut records = self.siblings.values().chain(&self.leaving);
        records.any(|sibling| {
            sibling.keys.contains_key(key) || sibling.slots.contains(slot_of_key(key))
        })
    }

    pub(super) fn sibling_parts(&self) -> usize {
        self.siblings.len() + self.leaving.len()
    }

    pub(super) fn set_sibling(&mut self, number: usize, live: Option<LiveRecords>) {
        let before = match live {
            Some(live) => self.siblings.insert(number, live),
            None => self.siblings.remove(&number),
        };
        self.leaving.extend(before);
    }
}

/// First and longest pause before a failed invalidation is repeated; the pause doubles in between.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One unconfirmed invalidation.
#[derive(Clone, Debug)]
pub struct PendingItem {
    /// The key to invalidate.
    pub key: Key,
    /// The write that set the fence to lift.
    pub write: Token,
    /// How long the fence lingers.
    pub linger: Duration,
    /// The longest linger of other writes to the key that were pending before.
    pub(super) linger_of_others: Duration,
    pub(super) due: Due,
}

impl PendingItem {
    /// Returns the linger that a later end of this write must keep: each end of a write replaces
    /// the linger of the one before.
    pub(super) fn others(&self, write: &Token) -> Duration {
        if self.write == *write { self.linger_of_others } else { self.linger }
    }
}

/// When something is to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) addition: u64,
    pub(super) at: Instant,
    pub(super) failures: u32,
}

impl Due {
    pub(super) fn now(addition: u64) -> Self {
        Self { addition, at: Instant::now(), failures: 0 }
    }

    pub(super) fn postpone(&mut self) {
        let pause = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        self.at = Instant::now() + pause;
        self.failures += 1;
    }

    pub(super) fn order(self) -> (Instant, u64) {
        (self.at, self.addition)
    }
}

/// Pending slots, each with the last addition that made it pending.
#[derive(Debug, Default)]
pub(super) struct PendingSlots {
    /// Indexed by slot; 0 for a slot that is not pending. Empty while none is.
    additions: Vec<u64>,
    pub(super) due: Option<Due>,
}

/// The slots that one purge of all has to confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PurgeAllTask {
    pub(crate) slots: SlotSet,
    /// The last addition before the purge began. It does not confirm later additions.
    pub(super) addition: u64,
}

impl PendingSlots {
    pub(super) fn is_empty(&self) -> bool {
        self.additions.is_empty()
    }

    pub(super) fn contains(&self, slot: u16) -> bool {
        self.additions.get(usize::from(slot)).is_some_and(|addition| *addition > 0)
    }

    pub(super) fn slots(&self) -> SlotSet {
        SlotSet::from_fn(|slot| self.contains(slot))
    }

    /// Makes slots pending, to be purged at once.
    pub(super) fn add(&mut self, slots: &SlotSet, addition: u64) {
        slots.iter().for_each(|slot| self.insert(slot, addition));
        if !self.is_empty() {
            self.due = Some(Due::now(addition));
        }
    }

    /// Makes the slot of a key pending that found no room. However many there are, there is one
    /// attempt a second.
    pub(super) fn overflow(&mut self, slot: u16, addition: u64) {
        self.insert(slot, addition);
        let now = Due::now(addition);
        self.due = Some(self.due.map_or(now, |due| {
            let at = due.at.min(now.at + RETRY.0);
            Due { at, failures: 0, ..due }
        }));
    }

    fn insert(&mut self, slot: u16, addition: u64) {
        if self.additions.is_empty() {
            self.additions = vec![0; usize::from(SLOTS)];
        }
        self.additions[usize::from(slot)] = addition;
    }

    pub(super) fn make_due(&mut self) {
        self.due = self.due.map(|due| Due::now(due.addition));
    }

    /// Postpones the next attempt, unless slots were added since that are to be purged at once.
    pub(super) fn postpone(&mut self, task: &PurgeAllTask) {
        if let Some(due) = self.due.as_mut().filter(|due| due.addition <= task.addition) {
            due.postpone();
        }
    }

    /// Removes the slots that are confirmed, and returns them; slots with a later addition stay.
    pub(super) fn confirm(&mut self, slots: &SlotSet, addition: u64) -> SlotSet {
        let confirmed = slots.intersection(&SlotSet::from_fn(|slot| {
            self.contains(slot) && self.additions[usize::from(slot)] <= addition
        }));
        for slot in confirmed.iter() {
            self.additions[usize::from(slot)] = 0;
        }
        if self.slots().is_empty() {
            *self = Self::default();
        }
        confirmed
    }
}
