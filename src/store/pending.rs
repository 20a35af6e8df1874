//! Invalidations that the store has not confirmed: a bounded set of keys, bypassed until it has.
//!
//! While another process with the same journal lives, this one only bypasses its jobs. When it has
//! ended, they are added here and repeated as if they had always been ours.

mod inner;

pub(super) use self::inner::{PendingItem, PurgeAllTask};

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::inner::{Due, Inner};
use super::{
    Key, Token,
    journal::{
        Durability, Journal, OpenedJournal,
        records::{JournalOwner, LiveRecords, Record},
        siblings::{SiblingState, Siblings},
    },
    slots::{SlotSet, slot_of_key},
};

/// The set of keys with an unconfirmed invalidation.
///
/// A key for which there is no room makes its whole slot pending, until a purge of all has been
/// confirmed there. Slots are those of a Redis Cluster; without a cluster they divide the keys just
/// as well.
pub struct PendingSet {
    limit: usize,
    journal: Option<Arc<Journal>>,
    /// Number of keys, plus one while whole slots are pending, plus the parts of siblings. Lets a
    /// reader pass without the lock.
    size: AtomicUsize,
    inner: Mutex<Inner>,
}

/// The journal of this process, for operators.
#[derive(Clone, Debug)]
pub struct JournalStatus {
    /// The file that this process writes.
    pub path: PathBuf,
    /// Number of other processes with unconfirmed invalidations.
    pub siblings: usize,
    /// Number of their invalidations, where all of some slots count as one.
    pub sibling_invalidations: usize,
}

impl PendingSet {
    /// Makes a set of at most `limit` keys, in memory only.
    pub fn new(limit: usize) -> Self {
        Self { limit, journal: None, size: AtomicUsize::new(0), inner: Mutex::default() }
    }

    /// Makes a set of at most `limit` keys that begins with the contents of the journal. Also
    /// returns the journals of other processes, of which nothing has been read yet.
    pub(super) fn with_journal(
        limit: usize,
        path: &Path,
        owner: &JournalOwner,
    ) -> io::Result<(Self, Siblings)> {
        let OpenedJournal { journal, records, siblings } = Journal::open(path, owner)?;
        let pending = Self { journal: Some(journal), ..Self::new(limit) };
        pending.restore(records);
        Ok((pending, siblings))
    }

    fn restore(&self, records: Vec<Record>) {
        let live = LiveRecords::replay(records);
        self.update(|inner| self.insert_live(inner, &live));
    }

    /// Returns whether this key must be bypassed.
    pub fn contains(&self, key: &Key) -> bool {
        // Acquire pairs with the Release in `update`: a reader that knows of an answer to a write
        // sees what was added before the answer.
        if self.size.load(Ordering::Acquire) == 0 {
            return false;
        }
        let inner = self.lock();
        inner.slots.contains(slot_of_key(key))
            || inner.keys.contains_key(key)
            || inner.is_pending_in_sibling(key)
    }

    /// Returns the number of pending keys, plus one while whole slots are pending. Those of
    /// siblings do not count.
    pub fn len(&self) -> usize {
        self.lock().own_len()
    }

    /// Returns whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers the unconfirmed invalidation of some keys by one write. With a journal it returns
    /// when the records are on the disk, or the disk has failed or takes too long. Returns the
    /// slots of the keys that found no room: every key in them is pending now.
    pub(super) async fn add(&self, keys: &[&Key], write: &Token, linger: Duration) -> SlotSet {
        let (overflowed, queued) = self.update(|inner| {
            let keys = keys.iter().map(|key| (*key, write, linger));
            let (records, overflowed) = self.insert_all(inner, keys);
            (overflowed, self.write_journal(inner, records, Durability::Awaited))
        });
        self.synced(queued).await;
        overflowed
    }

    /// Makes every key pending; returns what a purge of all has to confirm.
    pub(super) async fn add_all(&self) -> PurgeAllTask {
        self.add_slots(SlotSet::ALL).await
    }

    /// Makes every key in these slots pending.
    pub(super) async fn add_slots(&self, slots: SlotSet) -> PurgeAllTask {
        let (addition, queued) = self.update(|inner| {
            inner.insert_slots(&slots);
            let record = Record::slots_added(&slots);
            (inner.additions, self.write_journal(inner, vec![record], Durability::Awaited))
        });
        self.synced(queued).await;
        PurgeAllTask { slots, addition }
    }

    /// Adds keys, each with its linger. Returns their records, and the slots of the keys that found no
    /// room, which become pending.
    fn insert_all<'k>(
        &self,
        inner: &mut Inner,
        keys: impl Iterator<Item = (&'k Key, &'k Token, Duration)>,
    ) -> (Vec<Record>, SlotSet) {
        let mut records = Vec::new();
        let mut overflowed = SlotSet::NONE;
        for (key, write, linger) in keys {
            inner.additions += 1;
            let addition = inner.additions;
            if inner.keys.len() >= self.limit && !inner.keys.contains_key(key) {
                inner.slots.overflow(slot_of_key(key), addition);
                overflowed.insert(slot_of_key(key));
                continue;
            }
            let linger_of_others =
                inner.remove(key).map_or(Duration::ZERO, |item| item.others(write));
            let linger = linger.max(linger_of_others);
            records.push(Record::added(key.main(), write.as_str(), linger));
            let (key, write, due) = (key.clone(), write.clone(), Due::now(addition));
            inner.put(PendingItem { key, write, linger, linger_of_others, due });
        }
        if !overflowed.is_empty() {
            records.push(Record::slots_added(&overflowed));
        }
        (records, overflowed)
    }

    /// Adds everything of another journal, and returns its records.
    fn insert_live(&self, inner: &mut Inner, live: &LiveRecords) -> Vec<Record> {
        let mut ends = Vec::new();
        for (key, of_key) in &live.keys {
            ends.extend(of_key.iter().map(|(write, linger)| (key, write, *linger)));
        }
        let (mut records, _) = self.insert_all(inner, ends.into_iter());
        if !live.slots.is_empty() {
            inner.insert_slots(&live.slots);
            records.push(Record::slots_added(&live.slots));
        }
        records
    }

    /// Applies the linger of an end of a write to its earlier ends that are still pending. A longer
    /// linger of theirs would only keep the job uncached.
    pub(super) fn relax(&self, keys: &[Key], write: &Token, linger: Duration) {
        // Most ends of writes leave without the lock, as most readers do in `contains`.
        if self.size.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut inner = self.lock();
        for key in keys {
            if let Some(item) = inner.keys.get_mut(key).filter(|item| item.write == *write) {
                item.linger = linger.max(item.linger_of_others);
            }
        }
    }

    /// Returns what a purge of all has to confirm, if one is due.
    pub(super) fn due_purge_all(&self) -> Option<PurgeAllTask> {
        let inner = self.lock();
        inner.slots.due.filter(|due| due.at <= Instant::now())?;
        Some(PurgeAllTask { slots: inner.slots.slots(), addition: inner.additions })
    }

    /// Returns up to `limit` items that are due, those that have waited longest first.
    pub fn batch(&self, limit: usize) -> Vec<PendingItem> {
        let inner = self.lock();
        let due = inner.due.range(..=(Instant::now(), u64::MAX)).take(limit);
        due.filter_map(|(_, key)| inner.keys.get(key).cloned()).collect()
    }

    /// Returns when something is to be repeated next.
    pub fn next_due(&self) -> Option<Instant> {
        let inner = self.lock();
        let first = inner.due.first_key_value().map(|((at, _), _)| *at);
        first.into_iter().chain(inner.slots.due.map(|due| due.at)).min()
    }

    /// Makes everything due now: there is a new connection, or the process is about to stop.
    pub fn make_all_due(&self) {
        let mut inner = self.lock();
        let keys = std::mem::take(&mut inner.keys);
        inner.due.clear();
        for mut item in keys.into_values() {
            item.due = Due::now(item.due.addition);
            inner.put(item);
        }
        inner.slots.make_due();
    }

    /// Repeats this item later, behind the others: it could not be confirmed.
    pub fn postpone(&self, item: &PendingItem) {
        let mut inner = self.lock();
        if inner.keys.get(&item.key).is_some_and(|current| current.due == item.due) {
            let mut item = item.clone();
            inner.remove(&item.key);
            item.due.postpone();
            inner.put(item);
        }
    }

    /// Repeats a purge of all later: it could not be confirmed, or not in every slot.
    pub(super) fn postpone_purge_all(&self, task: &PurgeAllTask) {
        self.lock().slots.postpone(task);
    }

    /// Removes this item, which the store has confirmed. It stays if it was added again in the
    /// meantime.
    pub fn confirm(&self, item: &PendingItem) {
        self.update(|inner| {
            let current = inner.keys.get(&item.key);
            if current.is_some_and(|current| current.due.addition == item.due.addition) {
                inner.remove(&item.key);
                let record = Record::Confirmed { key: item.key.main().into() };
                self.write_journal(inner, vec![record], Durability::Lazy);
            }
        });
    }

    /// Removes these slots, in which a purge of all has been confirmed. Slots that were added again
    /// after it began stay.
    pub(super) fn confirm_slots(&self, slots: &SlotSet, task: &PurgeAllTask) {
        self.update(|inner| {
            let confirmed = inner.slots.confirm(slots, task.addition);
            if confirmed.is_empty() {
                return;
            }
            let record = if inner.slots.is_empty() {
                Record::AllConfirmed
            } else {
                Record::SlotsConfirmed { ranges: confirmed.ranges() }
            };
            self.write_journal(inner, vec![record], Durability::Lazy);
        });
    }

    /// Returns the number of slots that are pending as a whole.
    pub(super) fn slots(&self) -> usize {
        self.lock().slots.slots().iter().count()
    }

    /// Queues records for the journal, and returns the number of the batch to wait for. Called
    /// under the lock, so that the journal has everything in the order in which it happened.
    fn write_journal(&self, inner: &Inner, records: Vec<Record>, sync: Durability) -> Option<u64> {
        let journal = self.journal.as_ref()?;
        let is_empty = inner.keys.is_empty() && inner.slots.is_empty();
        Some(if is_empty || journal.is_long(inner.keys.len()) {
            journal.rewrite(inner.records().collect(), sync)
        } else {
            journal.append(records, sync)
        })
    }

    /// Returns whether the batch is on the disk; true without a journal.
    async fn synced(&self, queued: Option<u64>) -> bool {
        match (&self.journal, queued) {
            (Some(journal), Some(queued)) => journal.synced(queued).await,
            _ => true,
        }
    }

    fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = change(&mut inner);
        self.size.store(inner.own_len() + inner.sibling_parts(), Ordering::Release);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state of the journal, if there is one.
    pub(crate) fn journal_status(&self) -> Option<JournalStatus> {
        let path = self.journal.as_ref()?.path().to_owned();
        let inner = self.lock();
        let count = |live: &LiveRecords| live.keys.len() + usize::from(!live.slots.is_empty());
        let sibling_invalidations = inner.siblings.values().map(count).sum();
        Some(JournalStatus { path, siblings: inner.siblings.len(), sibling_invalidations })
    }

    /// Bypasses what the siblings have not confirmed by a scan of them, whether they live or not.
    pub(crate) fn bypass_siblings(&self, scan: Vec<(usize, SiblingState)>) {
        self.update(|inner| {
            // This scan has found them wherever they are now.
            inner.leaving.clear();
            for (number, state) in scan {
                match state {
                    SiblingState::Live(live) | SiblingState::Ended(live, _) if !live.is_empty() => {
                        inner.set_sibling(number, Some(live));
                    }
                    SiblingState::Unchanged => {}
                    _ => inner.set_sibling(number, None),
                }
            }
        });
    }

    /// Takes over what a process has left that has ended. Its file may be emptied once this returns
    /// true: the records are on the disk here. Until then they are in this process only.
    pub(crate) async fn adopt(&self, number: usize, live: LiveRecords) -> bool {
        if live.is_empty() {
            self.update(|inner| inner.set_sibling(number, None));
            return true;
        }
        let queued = self.update(|inner| {
            // Under one lock, so that no reader finds the keys neither there nor here.
            inner.set_sibling(number, None);
            let records = self.insert_live(inner, &live);
            self.write_journal(inner, records, Durability::Awaited)
        });
        self.synced(queued).await
    }

    /// Writes everything that is pending to the journal again. Returns whether it is on the disk.
    pub(crate) async fn persist(&self) -> bool {
        let queued = self.update(|inner| {
            let journal = self.journal.as_ref()?;
            Some(journal.rewrite(inner.records().collect(), Durability::Awaited))
        });
        self.synced(queued).await
    }
}

#[cfg(test)]
mod tests;
