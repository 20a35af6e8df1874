//! Invalidations that the store has not confirmed: a bounded set of keys, bypassed until it has.

mod pending_slots;
mod sibling_bypass;

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use self::pending_slots::PendingSlots;
pub(super) use self::pending_slots::PurgeAllTask;
pub use self::sibling_bypass::JournalStatus;
pub(super) use self::sibling_bypass::empty as empty_journal;
use super::{
    Key, Token,
    cluster::{SlotSet, slot_of},
    journal::{Durability, Journal, JournalOwner, LiveRecords, OpenedJournal, Record, Siblings},
};

/// First and longest pause before a failed invalidation is repeated; the pause doubles in between.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The set of keys with an unconfirmed invalidation.
///
/// A key for which there is no room makes its whole slot pending, until a purge of all has been
/// confirmed there. Slots are those of a Redis Cluster; without a cluster they divide the keys just
/// as well.
pub struct PendingSet {
    limit: usize,
    journal: Option<Journal>,
    /// Number of keys, plus one while whole slots are pending, plus the parts of siblings. Lets a
    /// reader pass without the lock.
    size: AtomicUsize,
    inner: Mutex<Inner>,
}

impl fmt::Debug for PendingSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingSet")
            .field("limit", &self.limit)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Inner {
    keys: HashMap<Key, PendingItem>,
    /// The same keys in the order in which they are to be repeated: one that fails goes to the
    /// back.
    due: BTreeMap<(Instant, u64), Key>,
    /// Slots of which every key is pending.
    slots: PendingSlots,
    /// What other processes with the same journal have not confirmed. They repeat it; it is bypassed
    /// here as well.
    siblings: BTreeMap<usize, LiveRecords>,
    /// What has left the journal of a sibling since the last scan but one. Another process may have
    /// adopted it into a file that this scan had already read, so it is bypassed until the next scan.
    leaving: Vec<LiveRecords>,
    /// Counts additions, so that a confirmation only removes what it confirmed.
    additions: u64,
}

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
    linger_of_others: Duration,
    due: Due,
}

impl PendingItem {
    /// Returns the linger that a later end of this write must keep: each end of a write replaces
    /// the linger of the one before.
    fn others(&self, write: &Token) -> Duration {
        if self.write == *write { self.linger_of_others } else { self.linger }
    }
}

/// When something is to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    addition: u64,
    at: Instant,
    failures: u32,
}

impl Due {
    fn now(addition: u64) -> Self {
        Self { addition, at: Instant::now(), failures: 0 }
    }

    fn postpone(&mut self) {
        let pause = RETRY.0.saturating_mul(1 << self.failures.min(16)).min(RETRY.1);
        self.at = Instant::now() + pause;
        self.failures += 1;
    }

    fn order(self) -> (Instant, u64) {
        (self.at, self.addition)
    }
}

/// The outcome of an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The keys are remembered.
    Keys,
    /// The set is full: every key in the slots of those that did not fit is pending now.
    Overflow,
}

impl PendingSet {
    /// Makes a set of at most `limit` keys, in memory only.
    pub fn new(limit: usize) -> Self {
        Self { limit, journal: None, size: AtomicUsize::new(0), inner: Mutex::default() }
    }

    /// Makes a set of at most `limit` keys that begins with the contents of the journal. Also returns
    /// the journals of other processes, of which nothing has been read yet.
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
        for record in records {
            match record {
                Record::Added { key, write, linger_ms } => {
                    let key = Key(key.into());
                    let write = Token(write.into());
                    let linger = Duration::from_millis(linger_ms);
                    self.update(|inner| self.insert(inner, &key, &write, linger));
                }
                Record::Confirmed { key } => self.update(|inner| {
                    inner.remove(&Key(key.into()));
                }),
                Record::AllAdded => self.update(|inner| inner.insert_slots(&SlotSet::ALL)),
                Record::SlotsAdded { ranges } => {
                    // Unreadable ranges may have named any slot.
                    let slots = SlotSet::from_ranges(&ranges).unwrap_or(SlotSet::ALL);
                    self.update(|inner| inner.insert_slots(&slots));
                }
                Record::AllConfirmed => self.update(|inner| inner.slots = PendingSlots::default()),
                Record::SlotsConfirmed { ranges } => {
                    let slots = SlotSet::from_ranges(&ranges).unwrap_or(SlotSet::NONE);
                    self.update(|inner| inner.slots.confirm(&slots, inner.additions));
                }
            }
        }
    }

    /// Returns whether this key must be bypassed.
    pub fn contains(&self, key: &Key) -> bool {
        // Acquire pairs with the Release in `update`: a reader that knows of an answer to a write
        // sees what was added before the answer.
        if self.size.load(Ordering::Acquire) == 0 {
            return false;
        }
        let inner = self.lock();
        inner.slots.contains(slot(key))
            || inner.keys.contains_key(key)
            || inner.is_pending_in_sibling(key)
    }

    /// Returns the number of pending keys, plus one while whole slots are pending. Those of siblings
    /// do not count.
    pub fn len(&self) -> usize {
        self.lock().own_len()
    }

    /// Returns whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers the unconfirmed invalidation of some keys by one write. With a journal it returns
    /// when the records are on the disk, or the disk has failed or takes too long.
    pub async fn add(&self, keys: &[&Key], write: &Token, linger: Duration) -> Added {
        let (added, queued) = self.update(|inner| {
            let mut overflowed = SlotSet::NONE;
            for key in keys {
                if self.insert(inner, key, write, linger) == Added::Overflow {
                    overflowed.insert(slot(key));
                }
            }
            let records: Vec<_> = keys
                .iter()
                .map(|key| {
                    let linger = inner.keys.get(*key).map_or(linger, |item| item.linger);
                    Record::added(key.main(), write.as_str(), linger)
                })
                .collect();
            let slots = (!overflowed.is_empty()).then(|| Record::slots_added(&overflowed));
            let added = if overflowed.is_empty() { Added::Keys } else { Added::Overflow };
            (
                added,
                self.write_journal(inner, records.into_iter().chain(slots), Durability::Awaited),
            )
        });
        self.synced(queued).await;
        added
    }

    /// Makes every key pending; returns what a purge of all has to confirm.
    pub(super) async fn add_all(&self) -> PurgeAllTask {
        self.add_slots(SlotSet::ALL).await
    }

    /// Makes every key in these slots pending.
    pub(super) async fn add_slots(&self, slots: SlotSet) -> PurgeAllTask {
        let (addition, queued) = self.update(|inner| {
            inner.insert_slots(&slots);
            let record = [Record::slots_added(&slots)];
            (inner.additions, self.write_journal(inner, record, Durability::Awaited))
        });
        self.synced(queued).await;
        PurgeAllTask { slots, addition }
    }

    fn insert(&self, inner: &mut Inner, key: &Key, write: &Token, linger: Duration) -> Added {
        inner.additions += 1;
        let addition = inner.additions;
        if inner.keys.len() >= self.limit && !inner.keys.contains_key(key) {
            inner.slots.overflow(slot(key), addition);
            return Added::Overflow;
        }
        let linger_of_others = inner.remove(key).map_or(Duration::ZERO, |item| item.others(write));
        inner.put(PendingItem {
            key: key.clone(),
            write: write.clone(),
            linger: linger.max(linger_of_others),
            linger_of_others,
            due: Due::now(addition),
        });
        Added::Keys
    }

    /// Applies the linger of an end of a write to its earlier ends that are still pending. A longer
    /// linger of theirs would only keep the job uncached.
    pub(super) fn relax(&self, keys: &[Key], write: &Token, linger: Duration) {
        if self.is_empty() {
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
        let slots = inner.slots.due(Instant::now())?;
        Some(PurgeAllTask { slots, addition: inner.additions })
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
        first.into_iter().chain(inner.slots.next_due()).min()
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
    pub(super) fn postpone_purge_all(&self, sweep: &PurgeAllTask) {
        self.lock().slots.postpone(sweep);
    }

    /// Removes this item, which the store has confirmed. It stays if it was added again in the
    /// meantime.
    pub fn confirm(&self, item: &PendingItem) {
        self.update(|inner| {
            let current = inner.keys.get(&item.key);
            if current.is_some_and(|current| current.due.addition == item.due.addition) {
                inner.remove(&item.key);
                self.write_journal(
                    inner,
                    [Record::Confirmed { key: item.key.main().into() }],
                    Durability::Lazy,
                );
            }
        });
    }

    /// Removes these slots, in which a purge of all has been confirmed. Slots that were added again
    /// after it began stay.
    pub(super) fn confirm_slots(&self, slots: &SlotSet, sweep: &PurgeAllTask) {
        self.update(|inner| {
            let confirmed = inner.slots.confirm(slots, sweep.addition);
            if confirmed.is_empty() {
                return;
            }
            let record = if inner.slots.is_empty() {
                Record::AllConfirmed
            } else {
                Record::SlotsConfirmed { ranges: confirmed.ranges() }
            };
            self.write_journal(inner, [record], Durability::Lazy);
        });
    }

    /// Returns the number of slots that are pending as a whole.
    pub(super) fn slots(&self) -> usize {
        self.lock().slots.slots().iter().count()
    }

    /// Queues records for the journal, and returns the number of the batch to wait for. Called
    /// under the lock, so that the journal has everything in the order in which it happened.
    fn write_journal(
        &self,
        inner: &Inner,
        records: impl IntoIterator<Item = Record>,
        sync: Durability,
    ) -> Option<u64> {
        let journal = self.journal.as_ref()?;
        let is_empty = inner.keys.is_empty() && inner.slots.is_empty();
        Some(if is_empty || journal.is_long(inner.keys.len()) {
            journal.rewrite(inner.records(), sync)
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
}

impl Inner {
    fn own_len(&self) -> usize {
        self.keys.len() + usize::from(!self.slots.is_empty())
    }

    fn insert_slots(&mut self, slots: &SlotSet) {
        self.additions += 1;
        self.slots.add(slots, self.additions);
    }

    /// Everything that is pending, as journal records.
    fn records(&self) -> impl Iterator<Item = Record> {
        let added =
            |item: &PendingItem| Record::added(item.key.main(), item.write.as_str(), item.linger);
        let slots = self.slots.slots();
        let all_slots = (!slots.is_empty()).then(|| Record::slots_added(&slots));
        self.keys.values().map(added).chain(all_slots)
    }

    fn put(&mut self, item: PendingItem) {
        self.due.insert(item.due.order(), item.key.clone());
        self.keys.insert(item.key.clone(), item);
    }

    fn remove(&mut self, key: &Key) -> Option<PendingItem> {
        let item = self.keys.remove(key)?;
        self.due.remove(&item.due.order());
        Some(item)
    }
}

fn slot(key: &Key) -> u16 {
    slot_of(key.main().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::journal;

    fn key(id: &str) -> Key {
        Key::new("job_status:", id)
    }

    /// Opens a set with a journal, as the only process.
    fn with_journal(limit: usize, path: &Path) -> PendingSet {
        let owner = JournalOwner { store: "redis://here".into(), prefix: "job_status:".into() };
        PendingSet::with_journal(limit, path, &owner).unwrap().0
    }

    /// Returns the set that a journal holds, without locking it.
    fn stored(limit: usize, path: &Path) -> PendingSet {
        let pending = PendingSet::new(limit);
        pending.restore(journal::records_at(path));
        pending
    }

    async fn add(pending: &PendingSet, id: &str, write: &str, linger: Duration) -> Added {
        pending.add(&[&key(id)], &Token(write.into()), linger).await
    }

    #[tokio::test]
    async fn an_item_added_again_while_it_was_repeated_stays() {
        let pending = PendingSet::new(10);
        add(&pending, "a", "w1", Duration::ZERO).await;
        let first = pending.batch(10).remove(0);
        add(&pending, "a", "w2", Duration::ZERO).await;
        pending.confirm(&first);
        assert!(pending.contains(&key("a")));
        pending.confirm(&pending.batch(10)[0]);
        assert!(pending.is_empty());
    }

    /// A full set with room for one key.
    async fn full() -> PendingSet {
        let pending = PendingSet::new(1);
        assert_eq!(add(&pending, "a", "w1", Duration::ZERO).await, Added::Keys);
        assert_eq!(add(&pending, "b", "w2", Duration::ZERO).await, Added::Overflow);
        pending
    }

    #[tokio::test]
    async fn past_the_limit_a_key_is_pending_with_all_of_its_slot_until_a_purge_of_all() {
        let pending = full().await;
        assert_eq!(pending.len(), 2);
        assert!(pending.contains(&key("b")));
        assert!(pending.contains(&Key::new("{job_status:b}", "in its slot")));
        assert!(!pending.contains(&key("unrelated")));
        let sweep = pending.due_purge_all().unwrap();
        assert_eq!(sweep.slots, SlotSet::of_name(b"job_status:b"));
        pending.confirm_slots(&sweep.slots, &sweep);
        assert!(!pending.contains(&key("b")) && pending.due_purge_all().is_none());
        assert!(pending.contains(&key("a")), "its own end is still due");
    }

    #[tokio::test]
    async fn a_purge_of_all_confirms_nothing_that_was_added_after_it_began() {
        let pending = full().await;
        let stale = pending.due_purge_all().unwrap();
        let newer = pending.add_all().await;
        pending.confirm_slots(&SlotSet::ALL, &stale);
        assert!(pending.contains(&key("unrelated")), "a newer one was not covered");
        assert_eq!(pending.slots(), 16_384);
        assert_eq!(add(&pending, "c", "w3", Duration::ZERO).await, Added::Overflow);
        pending.confirm_slots(&SlotSet::ALL, &newer);
        assert!(!pending.contains(&key("unrelated")));
        assert!(pending.contains(&key("c")), "it came after the newer one");
        let last = pending.due_purge_all().unwrap();
        pending.confirm_slots(&SlotSet::ALL, &last);
        assert!(!pending.contains(&key("c")));
    }

    #[tokio::test]
    async fn a_purge_of_all_is_confirmed_slot_by_slot() {
        let pending = PendingSet::new(10);
        let sweep = pending.add_all().await;
        let mine = SlotSet::of_name(b"job_status:dead");
        pending.confirm_slots(&SlotSet::ALL.difference(&mine), &sweep);
        assert!(pending.contains(&key("dead")) && !pending.contains(&key("unrelated")));
        assert_eq!((pending.len(), pending.slots()), (1, 1));
        pending.postpone_purge_all(&sweep);
        assert!(pending.due_purge_all().is_none() && pending.next_due().is_some());
        pending.make_all_due();
        assert_eq!(pending.due_purge_all().map(|sweep| sweep.slots), Some(mine.clone()));
        pending.confirm_slots(&mine, &sweep);
        assert!(pending.is_empty() && pending.next_due().is_none());
    }

    #[tokio::test]
    async fn what_overflows_meanwhile_does_not_keep_a_purge_from_being_postponed() {
        let pending = full().await;
        let sweep = pending.due_purge_all().unwrap();
        add(&pending, "c", "w3", Duration::ZERO).await;
        pending.postpone_purge_all(&sweep);
        assert!(pending.due_purge_all().is_none(), "one attempt a second, however many come");
        let sweep = pending.add_all().await;
        assert!(pending.due_purge_all().is_some(), "this one is new");
        for _ in 0..5 {
            pending.postpone_purge_all(&sweep);
        }
        add(&pending, "d", "w4", Duration::ZERO).await;
        let soon = Instant::now() + RETRY.0;
        assert!(pending.lock().slots.next_due().is_some_and(|due| due <= soon));
    }

    #[tokio::test]
    async fn what_fails_goes_behind_the_others_and_is_not_repeated_at_once() {
        let pending = PendingSet::new(10);
        for id in ["a", "b", "c"] {
            add(&pending, id, "w", Duration::ZERO).await;
        }
        let ids = |batch: Vec<PendingItem>| -> Vec<String> {
            batch.iter().map(|item| item.key.main().to_owned()).collect()
        };
        for expected in ["job_status:a", "job_status:b", "job_status:c"] {
            let batch = pending.batch(1);
            pending.postpone(&batch[0]);
            assert_eq!(ids(batch), [expected]);
        }
        assert!(pending.batch(10).is_empty() && pending.next_due().is_some());
        let all = pending.add_all().await;
        pending.postpone_purge_all(&all);
        assert_eq!(pending.due_purge_all(), None);
        pending.make_all_due();
        assert_eq!((pending.batch(10).len(), pending.due_purge_all()), (3, Some(all)));
    }

    #[tokio::test]
    async fn the_longest_linger_of_a_key_is_kept() {
        let pending = PendingSet::new(1);
        add(&pending, "a", "w1", Duration::from_secs(9)).await;
        add(&pending, "a", "w2", Duration::ZERO).await;
        assert_eq!(pending.batch(1)[0].linger, Duration::from_secs(9));
    }

    #[tokio::test]
    async fn a_later_end_of_a_write_replaces_the_linger_of_an_earlier_one() {
        let pending = PendingSet::new(1);
        let linger = || pending.batch(1)[0].linger.as_secs();
        add(&pending, "a", "w1", Duration::from_secs(9)).await;
        add(&pending, "a", "w2", Duration::from_secs(30)).await;
        assert_eq!(linger(), 30);
        pending.relax(&[key("a"), key("b")], &Token("w1".into()), Duration::ZERO);
        assert_eq!(linger(), 30);
        pending.relax(&[key("a")], &Token("w2".into()), Duration::from_secs(1));
        assert_eq!(linger(), 9);
        add(&pending, "a", "w2", Duration::from_secs(30)).await;
        add(&pending, "a", "w2", Duration::from_secs(10)).await;
        assert_eq!(linger(), 10);
    }

    /// Waits until everything noted so far is on the disk.
    async fn settled(pending: &PendingSet) {
        pending
            .synced(pending.journal.as_ref().map(|journal| journal.append([], Durability::Lazy)))
            .await;
    }

    #[tokio::test]
    async fn a_journal_of_the_same_keys_does_not_grow_without_end() {
        let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
        let pending = with_journal(10, &path);
        for _ in 0..1_100 {
            add(&pending, "a", "w", Duration::ZERO).await;
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 200, "{lines}");
        assert!(stored(10, &path).contains(&key("a")));
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_journal_brings_back_what_was_not_confirmed() {
        let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
        let open = || stored(2, &path);
        let first = with_journal(2, &path);
        add(&first, "a", "w1", Duration::ZERO).await;
        add(&first, "b", "w2", Duration::from_secs(9)).await;
        let item = first.batch(2).into_iter().find(|item| item.key == key("a")).unwrap();
        first.confirm(&item);
        settled(&first).await;
        let second = open();
        assert_eq!(second.batch(2).len(), 1);
        assert_eq!(second.batch(2)[0].linger, Duration::from_secs(9));
        first.confirm(&first.batch(2)[0]);
        settled(&first).await;
        assert!(open().is_empty());
        add(&first, "c", "w3", Duration::ZERO).await;
        first.add_all().await;
        assert!(open().contains(&key("unrelated")));
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_journal_brings_back_the_slots_that_were_not_confirmed() {
        let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
        let open = || stored(1, &path);
        let first = with_journal(1, &path);
        add(&first, "a", "w1", Duration::ZERO).await;
        add(&first, "b", "w2", Duration::ZERO).await;
        settled(&first).await;
        assert_eq!(open().due_purge_all().unwrap().slots, SlotSet::of_name(b"job_status:b"));
        let sweep = first.add_all().await;
        let mine = SlotSet::of_name(b"job_status:dead");
        first.confirm_slots(&SlotSet::ALL.difference(&mine), &sweep);
        settled(&first).await;
        assert_eq!(open().due_purge_all().unwrap().slots, mine);
        // Enough records to have the journal rewritten.
        for _ in 0..1_100 {
            add(&first, "a", "w", Duration::ZERO).await;
        }
        assert_eq!(open().due_purge_all().unwrap().slots, mine);
        first.confirm_slots(&mine, &sweep);
        settled(&first).await;
        assert!(open().due_purge_all().is_none() && open().contains(&key("a")));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_journal_of_an_earlier_version_and_one_that_is_damaged_lose_nothing() {
        let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
        let read = |lines: &str| {
            std::fs::write(&path, lines).unwrap();
            with_journal(9, &path).slots()
        };
        let (added, confirmed) = (r#"{"event":"all_added"}"#, r#"{"event":"all_confirmed"}"#);
        assert_eq!(read(&format!("{added}\n")), 16_384);
        assert_eq!(read(&format!("{added}\n{confirmed}\n")), 0);
        assert_eq!(read("{\"event\":\"slots_added\",\"ranges\":[[0,9],[20,20]]}\n"), 11);
        assert_eq!(read("{\"event\":\"slots_added\",\"ranges\":[[0,16384]]}\n"), 16_384);
        let none = r#"{"event":"slots_confirmed","ranges":[[9,1]]}"#;
        assert_eq!(read(&format!("{added}\n{none}\n")), 16_384);
        std::fs::remove_file(&path).unwrap();
    }
}
