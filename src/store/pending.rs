//! Invalidations that the store has not confirmed: bounded, and bypassed until it has.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    Key, Token,
    journal::{Durability, Journal, Record},
};

/// Until an invalidation that failed is repeated, doubling.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The set of keys whose invalidation is unconfirmed.
///
/// Past its limit it stands for every key, until a purge of all has been confirmed.
#[derive(Debug)]
pub struct Pending {
    limit: usize,
    journal: Option<Journal>,
    /// Keys, plus one while every key is pending: lets a reader pass without the lock.
    size: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    keys: HashMap<Key, Item>,
    /// The same keys in the order in which they are to be repeated: one that fails goes behind.
    due: BTreeMap<(Instant, u64), Key>,
    /// Set while every key is pending.
    all: Option<Due>,
    /// Counts additions, so that a confirmation only removes what it confirmed.
    additions: u64,
}

/// One unconfirmed invalidation.
#[derive(Clone, Debug)]
pub struct Item {
    /// The key to invalidate.
    pub key: Key,
    /// The write whose fence is to be lifted.
    pub write: Token,
    /// How long its fence lingers.
    pub linger: Duration,
    due: Due,
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

    fn slot(self) -> (Instant, u64) {
        (self.at, self.addition)
    }
}

/// What an addition came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// The keys are remembered.
    Keys,
    /// The set is full: from now on every key is pending.
    Overflow,
}

impl Pending {
    /// A set of at most `limit` keys, in memory only.
    pub fn new(limit: usize) -> Self {
        Self { limit, journal: None, size: AtomicUsize::new(0), inner: Mutex::default() }
    }

    /// A set of at most `limit` keys that begins with what the journal holds.
    pub fn with_journal(limit: usize, path: &Path) -> io::Result<Self> {
        let (journal, records) = Journal::open(path)?;
        let pending = Self { journal: Some(journal), ..Self::new(limit) };
        pending.restore(records);
        Ok(pending)
    }

    fn restore(&self, records: Vec<Record>) {
        for record in records {
            match record {
                Record::Added { key, write, linger_ms } => {
                    let (key, write) = (Key(key.into()), Token(write.into()));
                    let linger = Duration::from_millis(linger_ms);
                    self.update(|inner| self.insert(inner, &key, &write, linger));
                }
                Record::Confirmed { key } => self.update(|inner| {
                    inner.remove(&Key(key.into()));
                }),
                Record::AllAdded => {
                    self.update(Inner::insert_all);
                }
                Record::AllConfirmed => self.update(|inner| inner.all = None),
            }
        }
    }

    /// Whether this key must be bypassed.
    pub fn contains(&self, key: &Key) -> bool {
        if self.is_empty() {
            return false;
        }
        let inner = self.lock();
        inner.all.is_some() || inner.keys.contains_key(key)
    }

    /// Keys pending, plus one while every key is.
    pub fn len(&self) -> usize {
        // Acquire pairs with the Release in `update`: who is told that a write was answered sees
        // what was added before.
        self.size.load(Ordering::Acquire)
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers the unconfirmed invalidation of some keys by one write; with a journal it returns
    /// when that is on the disk.
    pub async fn add(&self, keys: &[&Key], write: &Token, linger: Duration) -> Added {
        let (added, noted) = self.update(|inner| {
            let mut added = Added::Keys;
            for key in keys {
                if self.insert(inner, key, write, linger) == Added::Overflow {
                    added = Added::Overflow;
                }
            }
            let records = keys.iter().map(|key| Record::added(key.main(), write.as_str(), linger));
            let all = (added == Added::Overflow).then_some(Record::AllAdded);
            (added, self.note(inner, records.chain(all), Durability::Awaited))
        });
        self.synced(noted).await;
        added
    }

    /// Every key is pending; returns what [`Pending::confirm_all`] is to be called with.
    pub async fn add_all(&self) -> u64 {
        let (addition, noted) = self.update(|inner| {
            let addition = inner.insert_all();
            (addition, self.note(inner, [Record::AllAdded], Durability::Awaited))
        });
        self.synced(noted).await;
        addition
    }

    fn insert(&self, inner: &mut Inner, key: &Key, write: &Token, linger: Duration) -> Added {
        inner.additions += 1;
        let addition = inner.additions;
        if inner.keys.len() >= self.limit && !inner.keys.contains_key(key) {
            inner.all = Some(Due::now(addition));
            return Added::Overflow;
        }
        let linger = inner.remove(key).map_or(linger, |item| item.linger.max(linger));
        let (write, due) = (write.clone(), Due::now(addition));
        inner.put(Item { key: key.clone(), write, linger, due });
        Added::Keys
    }

    /// What a purge of all would confirm, if one is due.
    pub fn all(&self) -> Option<u64> {
        self.lock().all.filter(|due| due.at <= Instant::now()).map(|due| due.addition)
    }

    /// Up to `limit` items to be repeated now, those that have waited longest first.
    pub fn batch(&self, limit: usize) -> Vec<Item> {
        let inner = self.lock();
        let due = inner.due.range(..=(Instant::now(), u64::MAX)).take(limit);
        due.filter_map(|(_, key)| inner.keys.get(key).cloned()).collect()
    }

    /// When something is to be repeated next.
    pub fn next_due(&self) -> Option<Instant> {
        let inner = self.lock();
        let first = inner.due.first_key_value().map(|((at, _), _)| *at);
        first.into_iter().chain(inner.all.map(|due| due.at)).min()
    }

    /// Everything is to be repeated now: the store is another one, or it is the last chance.
    pub fn hurry(&self) {
        let mut inner = self.lock();
        let keys = std::mem::take(&mut inner.keys);
        inner.due.clear();
        for mut item in keys.into_values() {
            item.due = Due::now(item.due.addition);
            inner.put(item);
        }
        inner.all = inner.all.map(|due| Due::now(due.addition));
    }

    /// This item could not be confirmed: it is repeated later, and the others come first.
    pub fn postpone(&self, item: &Item) {
        let mut inner = self.lock();
        if inner.keys.get(&item.key).is_some_and(|now| now.due == item.due) {
            let mut item = item.clone();
            inner.remove(&item.key);
            item.due.postpone();
            inner.put(item);
        }
    }

    /// A purge of all could not be confirmed.
    pub fn postpone_all(&self, addition: u64) {
        if let Some(due) = self.lock().all.as_mut().filter(|due| due.addition == addition) {
            due.postpone();
        }
    }

    /// The store has confirmed this item. It stays if it was added again meanwhile.
    pub fn confirm(&self, item: &Item) {
        self.update(|inner| {
            let now = inner.keys.get(&item.key);
            if now.is_some_and(|now| now.due.addition == item.due.addition) {
                inner.remove(&item.key);
                self.note(
                    inner,
                    [Record::Confirmed { key: item.key.main().into() }],
                    Durability::Lazy,
                );
            }
        });
    }

    /// The store has confirmed a purge of all.
    pub fn confirm_all(&self, addition: u64) {
        self.update(|inner| {
            if inner.all.is_some_and(|due| due.addition == addition) {
                inner.all = None;
                self.note(inner, [Record::AllConfirmed], Durability::Lazy);
            }
        });
    }

    /// Under the lock, so that the journal has everything in the order in which it happened; it only
    /// queues. Returns what to wait for.
    fn note(
        &self,
        inner: &Inner,
        records: impl IntoIterator<Item = Record>,
        sync: Durability,
    ) -> Option<u64> {
        let journal = self.journal.as_ref()?;
        let is_empty = inner.keys.is_empty() && inner.all.is_none();
        Some(if is_empty || journal.is_long(inner.keys.len()) {
            journal.rewrite(inner.records(), sync)
        } else {
            journal.append(records, sync)
        })
    }

    async fn synced(&self, noted: Option<u64>) {
        if let (Some(journal), Some(noted)) = (&self.journal, noted) {
            journal.synced(noted).await;
        }
    }

    fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let result = change(&mut inner);
        self.size.store(inner.keys.len() + usize::from(inner.all.is_some()), Ordering::Release);
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that holds the lock panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert_all(&mut self) -> u64 {
        self.additions += 1;
        self.all = Some(Due::now(self.additions));
        self.additions
    }

    /// All that is pending, as a journal has it.
    fn records(&self) -> impl Iterator<Item = Record> {
        let added = |item: &Item| Record::added(item.key.main(), item.write.as_str(), item.linger);
        self.keys.values().map(added).chain(self.all.map(|_| Record::AllAdded))
    }

    fn put(&mut self, item: Item) {
        self.due.insert(item.due.slot(), item.key.clone());
        self.keys.insert(item.key.clone(), item);
    }

    fn remove(&mut self, key: &Key) -> Option<Item> {
        let item = self.keys.remove(key)?;
        self.due.remove(&item.due.slot());
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key::new("job_status:", id)
    }

    async fn add(pending: &Pending, id: &str, write: &str, linger: Duration) -> Added {
        pending.add(&[&key(id)], &Token(write.into()), linger).await
    }

    #[tokio::test]
    async fn an_item_added_again_while_it_was_repeated_stays() {
        let pending = Pending::new(10);
        add(&pending, "a", "w1", Duration::ZERO).await;
        let first = pending.batch(10).remove(0);
        add(&pending, "a", "w2", Duration::ZERO).await;
        pending.confirm(&first);
        assert!(pending.contains(&key("a")));
        pending.confirm(&pending.batch(10)[0]);
        assert!(pending.is_empty());
    }

    #[tokio::test]
    async fn past_the_limit_every_key_is_pending_until_a_purge_of_all() {
        let pending = Pending::new(1);
        assert_eq!(add(&pending, "a", "w1", Duration::ZERO).await, Added::Keys);
        assert_eq!(add(&pending, "b", "w2", Duration::ZERO).await, Added::Overflow);
        assert!(pending.contains(&key("unrelated")));
        let stale = pending.all().unwrap();
        let newer = pending.add_all().await;
        pending.confirm_all(stale);
        assert!(pending.contains(&key("unrelated")), "a newer overflow was not covered");
        pending.confirm_all(newer);
        assert!(!pending.contains(&key("unrelated")));
        assert!(pending.contains(&key("a")), "its own end is still due");
    }

    #[tokio::test]
    async fn what_fails_goes_behind_the_others_and_is_not_repeated_at_once() {
        let pending = Pending::new(10);
        for id in ["a", "b", "c"] {
            add(&pending, id, "w", Duration::ZERO).await;
        }
        let ids = |batch: Vec<Item>| -> Vec<String> {
            batch.iter().map(|item| item.key.main().to_owned()).collect()
        };
        for expected in ["job_status:a", "job_status:b", "job_status:c"] {
            let batch = pending.batch(1);
            pending.postpone(&batch[0]);
            assert_eq!(ids(batch), [expected]);
        }
        assert!(pending.batch(10).is_empty() && pending.next_due().is_some());
        let all = pending.add_all().await;
        pending.postpone_all(all);
        assert_eq!(pending.all(), None);
        pending.hurry();
        assert_eq!((pending.batch(10).len(), pending.all()), (3, Some(all)));
    }

    #[tokio::test]
    async fn the_longest_linger_of_a_key_is_kept() {
        let pending = Pending::new(1);
        add(&pending, "a", "w1", Duration::from_secs(9)).await;
        add(&pending, "a", "w2", Duration::ZERO).await;
        assert_eq!(pending.batch(1)[0].linger, Duration::from_secs(9));
    }

    /// Everything noted so far is on the disk.
    async fn settled(pending: &Pending) {
        pending
            .synced(pending.journal.as_ref().map(|journal| journal.append([], Durability::Lazy)))
            .await;
    }

    #[tokio::test]
    async fn a_journal_of_the_same_keys_does_not_grow_without_end() {
        let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
        let pending = Pending::with_journal(10, &path).unwrap();
        for _ in 0..1_100 {
            add(&pending, "a", "w", Duration::ZERO).await;
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 200, "{lines}");
        assert!(Pending::with_journal(10, &path).unwrap().contains(&key("a")));
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_journal_brings_back_what_was_not_confirmed() {
        let path = std::env::temp_dir().join(format!("jobcache-pending-{}", fastrand::u64(..)));
        let open = || Pending::with_journal(2, &path).unwrap();
        let first = open();
        add(&first, "a", "w1", Duration::ZERO).await;
        add(&first, "b", "w2", Duration::from_secs(9)).await;
        let item = first.batch(2).into_iter().find(|item| item.key == key("a")).unwrap();
        first.confirm(&item);
        settled(&first).await;
        let second = open();
        assert_eq!(second.batch(2).len(), 1);
        assert_eq!(second.batch(2)[0].linger, Duration::from_secs(9));
        second.confirm(&second.batch(2)[0]);
        settled(&second).await;
        assert!(open().is_empty());
        add(&second, "c", "w3", Duration::ZERO).await;
        second.add_all().await;
        assert!(open().contains(&key("unrelated")));
        std::fs::remove_file(&path).unwrap();
    }
}
