//! Slots of which every key is pending, until a purge of all has been confirmed there. Pure.
//!
//! Slots are confirmed one by one, because a lost master withholds only the confirmation of its
//! own. They share one due time: a purge goes to the masters that own some of them, and costs the
//! others nothing.

use tokio::time::Instant;

use super::item::{Due, RETRY};
use crate::store::slots::{SLOTS, SlotSet};

/// Pending slots, each with the last addition that made it pending.
#[derive(Debug, Default)]
pub(super) struct PendingSlots {
    /// Indexed by slot; 0 for a slot that is not pending. Empty while none is.
    additions: Vec<u64>,
    due: Option<Due>,
}

/// The slots that one purge of all has to confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct PurgeAllTask {
    pub(in crate::store) slots: SlotSet,
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

    /// Returns all pending slots, if they are to be purged now.
    pub(super) fn due(&self, now: Instant) -> Option<SlotSet> {
        self.due.filter(|due| due.at <= now).map(|_| self.slots())
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.map(|due| due.at)
    }

    pub(super) fn make_due(&mut self) {
        self.due = self.due.map(|due| Due::now(due.addition));
    }

    /// Postpones the next attempt, unless slots were added since that are to be purged at once.
    pub(super) fn postpone(&mut self, sweep: &PurgeAllTask) {
        if let Some(due) = self.due.as_mut().filter(|due| due.addition <= sweep.addition) {
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
