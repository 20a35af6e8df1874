//! Values in this process, in front of the store.
//!
//! It holds what was read from the store, and knows nothing of time or trust: whether a value may be
//! used is for the [barrier](super::barrier) and its caller to say. What it does promise is that a
//! value is never put in after the news that it is out of date: a reader notes the generation of its
//! key before it reads the store, and every piece of news bumps it. By the same note a reader who was
//! given a value tells later, without another look, that there was no news of it since.
//!
//! Values come from reads of the store only, never from a fill: what a fill was answered says nothing
//! of what came after it.

use std::{
    fmt,
    future::Future,
    hash::RandomState,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use quick_cache::{
    Lifecycle, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

use super::Key;
use crate::{
    metrics::Metrics,
    mutants::{self, Mutant},
};

/// Keys that share a generation. News of one refuses what is being read of the others, so that there
/// are many; a reader that is refused has lost nothing but the next hit.
const SHARDS: usize = 256;
/// Bytes that a value costs beside its own and those of its key: a slot of 40 in the slab, its place in
/// the table of hashes, the room that both keep to grow, and what an allocator adds to the key.
const OVERHEAD: usize = 80;
/// Bytes of a usual value, by which the cache sizes its tables.
const USUAL_SIZE: usize = 1 << 10;
/// Locks that readers spread over: few enough for the largest body to fit into the part of each.
const LOCKS: (usize, usize) = (16, 4 << 20);

/// Who is told what has changed in the store.
pub trait Watcher: fmt::Debug + Send + Sync {
    /// The value under this name is out of date.
    fn evict(&self, name: &[u8]);
    /// Every value may be, and is not to be used again.
    fn flush(&self);
    /// The same for the values under the names of which this is true.
    fn forget(&self, is_gone: &dyn Fn(&[u8]) -> bool);
}

/// The values.
pub struct Near<V> {
    values: Cache<Key, V, Weigh<V>, RandomState, Evictions<V>>,
    shards: Box<[Shard]>,
    metrics: Arc<Metrics>,
}

/// Where a key stood when its reader set out.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    shard: usize,
    generation: u64,
}

#[derive(Debug, Default)]
struct Shard {
    /// Counts the news, each once what it is about has gone: who notes the new count finds no old
    /// value any more.
    generation: AtomicU64,
    /// Held while a value is put in or taken out, so that none slips in behind the news.
    changing: Mutex<()>,
    changed: Notify,
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// To be called under the lock.
    fn bump(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

struct Weigh<V>(fn(&V) -> usize);

impl<V> Clone for Weigh<V> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<V> Weighter<Key, V> for Weigh<V> {
    fn weight(&self, key: &Key, value: &V) -> u64 {
        (OVERHEAD + key.main().len() + (self.0)(value)) as u64
    }
}

/// Counts what had to go for want of room.
struct Evictions<V> {
    metrics: Arc<Metrics>,
    stash: DefaultLifecycle<Key, V>,
}

impl<V> Clone for Evictions<V> {
    fn clone(&self) -> Self {
        Self { metrics: Arc::clone(&self.metrics), stash: self.stash.clone() }
    }
}

impl<V> Lifecycle<Key, V> for Evictions<V> {
    /// So that values are dropped after the lock.
    type RequestState = <DefaultLifecycle<Key, V> as Lifecycle<Key, V>>::RequestState;

    fn on_evict(&self, state: &mut Self::RequestState, key: Key, value: V) {
        self.metrics.near.evictions.inc();
        self.metrics.events.evicted(key.main());
        self.stash.on_evict(state, key, value);
    }
}

impl<V: Clone> Near<V> {
    /// Room for `max_bytes`, by what `weigh` says of a value.
    ///
    /// # Panics
    ///
    /// Never: the options are refused only for want of one of the two capacities.
    pub fn new(max_bytes: usize, weigh: fn(&V) -> usize, metrics: Arc<Metrics>) -> Self {
        let locks = (max_bytes / LOCKS.1).clamp(1, LOCKS.0);
        let mut options = OptionsBuilder::new();
        options
            .shards(locks)
            .weight_capacity(max_bytes as u64)
            .estimated_items_capacity((max_bytes / USUAL_SIZE).max(1));
        let stash = DefaultLifecycle::default();
        let evictions = Evictions { metrics: Arc::clone(&metrics), stash };
        #[allow(clippy::expect_used, reason = "it fails only for want of the two capacities")]
        let options = options.build().expect("both capacities are given");
        Self {
            // Keys are chosen by clients: the hash is the keyed one of the standard library.
            values: Cache::with_options(options, Weigh(weigh), RandomState::new(), evictions),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            metrics,
        }
    }

    /// What it holds under a key now, and a note by which to tell whether that still stands.
    pub fn read(&self, key: &Key) -> Option<(V, Noted)> {
        // The note first: news after it is news of the value.
        let noted = self.note(key);
        Some((self.values.get(key)?, noted))
    }

    /// Whether it holds a value under a key; asking does not count as a use of it.
    pub fn holds(&self, key: &Key) -> bool {
        self.values.contains_key(key)
    }

    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there was no news since. A value that was read with the note then stands as it did.
    pub fn is_current(&self, noted: Noted) -> bool {
        self.shards[noted.shard].generation() == noted.generation
    }

    /// To be called before the store is read for [`Near::insert`].
    pub fn note(&self, key: &Key) -> Noted {
        let shard = shard_of(key.main());
        Noted { shard, generation: self.shards[shard].generation() }
    }

    /// Puts a value in, unless there was news since its reader noted where the key stood.
    pub fn insert(&self, key: &Key, value: V, noted: Noted) {
        let changing = self.shards[noted.shard].lock();
        if self.is_current(noted) || mutants::is(Mutant::NearWithoutGeneration) {
            // Put over the old one it would count as an eviction of that.
            self.values.remove(key);
            self.values.insert(key.clone(), value);
        }
        drop(changing);
        self.count();
    }

    /// Waits for news of a key, from the moment it is called. News of another may end it, too.
    pub fn changed(&self, key: &Key) -> impl Future<Output = ()> + use<'_, V> {
        self.shards[shard_of(key.main())].changed.notified()
    }

    fn bump_all(&self) {
        for shard in &self.shards {
            let _changing = shard.lock();
            shard.bump();
        }
    }

    fn count(&self) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.near.entries.set(number(self.values.len() as u64));
        self.metrics.near.bytes.set(number(self.values.weight()));
    }
}

impl<V: Clone + Send + Sync> Watcher for Near<V> {
    fn evict(&self, name: &[u8]) {
        // Keys are text; whatever else is under the prefix is none of ours.
        let Ok(name) = std::str::from_utf8(name) else { return };
        let shard = &self.shards[shard_of(name)];
        let changing = shard.lock();
        self.values.remove(name);
        shard.bump();
        drop(changing);
        shard.changed.notify_waiters();
        self.count();
    }

    fn flush(&self) {
        self.drop_some(Cache::clear);
    }

    fn forget(&self, is_gone: &dyn Fn(&[u8]) -> bool) {
        self.drop_some(|values| values.retain(|key, _| !is_gone(key.main().as_bytes())));
    }
}

impl<V: Clone> Near<V> {
    fn drop_some(&self, drop: impl FnOnce(&Cache<Key, V, Weigh<V>, RandomState, Evictions<V>>)) {
        // Before: what is put in from now on was read after this began. And after: who was given a
        // value meanwhile is told.
        self.bump_all();
        drop(&self.values);
        self.bump_all();
        self.metrics.near.flushes.inc();
        for shard in &self.shards {
            shard.changed.notify_waiters();
        }
        self.count();
    }
}

impl<V> fmt::Debug for Near<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Near").finish_non_exhaustive()
    }
}

/// Need not be keyed: who crowds one shard costs its readers a hit.
fn shard_of(name: &str) -> usize {
    usize::try_from(xxh3_64(name.as_bytes()) % SHARDS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(max_bytes: usize) -> Near<Arc<str>> {
        Near::new(max_bytes, |value| value.len(), Arc::default())
    }

    fn key(id: &str) -> Key {
        Key::new("job_status:", id)
    }

    fn value<V: Clone>(near: &Near<V>, key: &Key) -> Option<V> {
        near.read(key).map(|(value, _)| value)
    }

    #[test]
    fn a_value_read_before_the_news_is_not_put_in_after_it() {
        let near = near(1 << 20);
        let (x, old): (_, Arc<str>) = (key("x"), "old".into());
        let noted = near.note(&x);
        near.evict(b"job_status:x");
        near.insert(&x, Arc::clone(&old), noted);
        assert_eq!(value(&near, &x), None);
        near.insert(&x, "new".into(), near.note(&x));
        assert_eq!(value(&near, &x).as_deref(), Some("new"));
        let noted = near.note(&x);
        near.flush();
        assert_eq!(value(&near, &x), None);
        near.insert(&x, old, noted);
        assert_eq!(value(&near, &x), None);
    }

    #[test]
    fn news_of_one_key_leaves_the_others() {
        let near = near(1 << 20);
        for id in ["x", "y"] {
            near.insert(&key(id), id.into(), near.note(&key(id)));
        }
        near.evict(b"job_status:x");
        near.evict(b"\xff");
        assert_eq!(value(&near, &key("x")), None);
        assert_eq!(value(&near, &key("y")).as_deref(), Some("y"));
    }

    #[test]
    fn what_is_forgotten_is_what_was_named_and_nothing_read_before_comes_after() {
        let near = near(1 << 20);
        for id in ["x", "y"] {
            near.insert(&key(id), id.into(), near.note(&key(id)));
        }
        let (_, noted) = near.read(&key("y")).unwrap();
        near.forget(&|name| name == b"job_status:x");
        assert_eq!(value(&near, &key("x")), None);
        assert_eq!(value(&near, &key("y")).as_deref(), Some("y"));
        near.insert(&key("y"), "older".into(), noted);
        assert_eq!(value(&near, &key("y")).as_deref(), Some("y"));
    }

    #[test]
    fn a_newer_value_in_the_place_of_an_older_is_no_eviction() {
        let metrics = Arc::new(Metrics::default());
        let near: Near<Arc<str>> = Near::new(1 << 20, |value| value.len(), Arc::clone(&metrics));
        for value in ["old", "new"] {
            near.insert(&key("x"), value.into(), near.note(&key("x")));
        }
        assert_eq!(value(&near, &key("x")).as_deref(), Some("new"));
        assert_eq!((metrics.near.evictions.get(), metrics.near.entries.get()), (0, 1));
        assert!(metrics.events.past("job_status:x").happenings.is_empty());
    }

    #[test]
    fn a_value_is_current_until_there_is_news_of_it() {
        let near = near(1 << 20);
        let x = key("x");
        for news in [(|near| near.evict(b"job_status:x")) as fn(&Near<Arc<str>>), Near::flush] {
            near.insert(&x, "old".into(), near.note(&x));
            let (_, noted) = near.read(&x).unwrap();
            near.insert(&x, "the same".into(), near.note(&x));
            assert!(near.is_current(noted));
            news(&near);
            assert!(!near.is_current(noted));
        }
    }

    #[test]
    fn its_bytes_are_bounded_and_counted() {
        let metrics = Arc::new(Metrics::default());
        let near: Near<Arc<str>> = Near::new(64 << 10, |value| value.len(), Arc::clone(&metrics));
        let body: Arc<str> = "x".repeat(600).into();
        for id in 0..1000 {
            let key = key(&id.to_string());
            near.insert(&key, Arc::clone(&body), near.note(&key));
        }
        let bytes = metrics.near.bytes.get();
        assert!(bytes > 32 << 10 && bytes <= 64 << 10, "{bytes} bytes");
        let (entries, evictions) = (metrics.near.entries.get(), metrics.near.evictions.get());
        assert_eq!(u64::try_from(entries).unwrap() + evictions, 1000);
        near.flush();
        assert_eq!((metrics.near.bytes.get(), metrics.near.entries.get()), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_news_of_a_key_is_told() {
        let near = near(1 << 20);
        let x = key("x");
        let changed = near.changed(&x);
        near.evict(b"job_status:x");
        changed.await;
    }
}
