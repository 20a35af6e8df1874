//! What is pending, here and in the journals of siblings. Pure.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::{item::PendingItem, pending_slots::PendingSlots};
use crate::store::{
    journal::records::{LiveRecords, Record},
    slots::{SlotSet, slot_of_key},
    words::Key,
};

/// What is pending.
#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) keys: HashMap<Key, PendingItem>,
    /// The same keys in the order in which they are to be repeated: one that fails goes to the
    /// back.
    pub(super) due: BTreeMap<(Instant, u64), Key>,
    /// Slots of which every key is pending.
    pub(super) slots: PendingSlots,
    /// What other processes with the same journal have not confirmed. They repeat it; it is bypassed
    /// here as well.
    pub(super) siblings: BTreeMap<usize, LiveRecords>,
    /// What has left the journal of a sibling since the last scan but one. Another process may have
    /// adopted it into a file that this scan had already read, so it is bypassed until the next scan.
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
