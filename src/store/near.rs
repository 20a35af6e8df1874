//! Values in this process, in front of the store.
//!
//! The layer holds what was read from the store, and knows nothing of time or trust: the
//! [barrier](super::barrier) and its caller decide whether a value may be used. Its own promise is
//! that a value is never inserted after the news that it is out of date. A reader notes the
//! generation of its key before it reads the store, and every piece of news bumps the generation.
//! The same note lets a reader that was given a value check later, without another lookup, that
//! there was no news about the value since.
//!
//! Values come from reads of the store only, never from a fill: the answer to a fill says nothing
//! about what came after it.

use std::{
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
use xxhash_rust::xxh3::xxh3_64;

use super::{Key, NearMetrics};
use crate::{
    mutants::{self, Mutant},
    observe::events::Events,
};

/// Number of shards; the keys of one shard share a generation. News about one key also refuses what
/// is being read of the others, so there are many shards. A refused reader loses only the next hit.
const SHARDS: usize = 256;
/// Bytes that a value costs in addition to its own and those of its key: 40 for a slot in the slab,
/// its place in the hash table, the spare capacity of both, and the allocator's overhead for the
/// key.
const OVERHEAD: usize = 80;
/// Bytes of a typical value, by which the cache sizes its tables.
const TYPICAL_SIZE: usize = 1 << 10;
/// The most locks that readers spread over, and the least bytes per lock: few enough locks for the
/// largest body to fit into the part of each.
const LOCKS: (usize, usize) = (16, 4 << 20);

/// Receives the news of changes in the store.
pub trait Watcher: Send + Sync {
    /// The value under this name is out of date.
    fn evict(&self, name: &[u8]);
    /// Every value may be out of date and must not be used again.
    fn flush(&self);
    /// As [`Watcher::flush`], for the values with a name that satisfies `is_gone`.
    fn evict_matching(&self, is_gone: &dyn Fn(&[u8]) -> bool);
    /// Reports have begun again. A key that was read before may have changed unreported since, although
    /// no value is out of date: there is none.
    fn resumed(&self) {}
}

/// The values that this process holds.
pub struct NearEntries<V> {
    values: Cache<Key, V, Weigh<V>, RandomState, Evictions<V>>,
    shards: Box<[NearShard]>,
    metrics: Arc<NearMetrics>,
}

/// The generation of a key when its reader set out.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    shard: usize,
    generation: u64,
}

#[derive(Debug, Default)]
struct NearShard {
    /// Counts the news. Bumped only after the value in question is gone, so a reader that notes the
    /// new count finds no old value.
    generation: AtomicU64,
    /// Held while a value is inserted or removed, so that none slips in behind the news.
    changing: Mutex<()>,
}

impl NearShard {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Must be called under the lock.
    fn bump(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

#[derive(Clone)]
struct Weigh<V>(fn(&V) -> usize);

impl<V> Weighter<Key, V> for Weigh<V> {
    fn weight(&self, key: &Key, value: &V) -> u64 {
        (OVERHEAD + key.main().len() + (self.0)(value)) as u64
    }
}

/// Counts the values that were evicted for lack of space.
#[derive(Clone)]
struct Evictions<V> {
    metrics: Arc<NearMetrics>,
    events: Arc<Events>,
    stash: DefaultLifecycle<Key, V>,
}

impl<V> Lifecycle<Key, V> for Evictions<V> {
    /// Values are dropped after the lock is released.
    type RequestState = <DefaultLifecycle<Key, V> as Lifecycle<Key, V>>::RequestState;

    fn on_evict(&self, state: &mut Self::RequestState, key: Key, value: V) {
        self.metrics.evictions.inc();
        self.events.record_eviction(key.main());
        self.stash.on_evict(state, key, value);
    }
}

impl<V: Clone> NearEntries<V> {
    /// Makes a layer of at most `max_bytes`, counting `weigh` for a value.
    ///
    /// # Panics
    ///
    /// Never: building the options fails only without one of the two capacities.
    pub fn new(
        max_bytes: usize,
        weigh: fn(&V) -> usize,
        metrics: Arc<NearMetrics>,
        events: Arc<Events>,
    ) -> Self {
        let locks = (max_bytes / LOCKS.1).clamp(1, LOCKS.0);
        let options = OptionsBuilder::new()
            .shards(locks)
            .weight_capacity(max_bytes as u64)
            .estimated_items_capacity((max_bytes / TYPICAL_SIZE).max(1))
            .build();
        let stash = DefaultLifecycle::default();
        let evictions = Evictions { metrics: Arc::clone(&metrics), events, stash };
        #[allow(clippy::expect_used, reason = "it fails only without the two capacities")]
        let options = options.expect("both capacities are given");
        Self {
            // Clients choose the keys, so the hash is the keyed one of the standard library.
            values: Cache::with_options(options, Weigh(weigh), RandomState::new(), evictions),
            shards: (0..SHARDS).map(|_| NearShard::default()).collect(),
            metrics,
        }
    }

    /// Returns the value under a key, and a note by which to check whether it is still current.
    pub fn read(&self, key: &Key) -> Option<(V, Noted)> {
        // The note comes first: any news after it is news about the value.
        let noted = self.note(key);
        Some((self.values.get(key)?, noted))
    }

    /// Returns whether there is a value under a key; this does not count as a use of it.
    pub fn holds(&self, key: &Key) -> bool {
        self.values.contains_key(key)
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether there was no news since the note. A value that was read with the note is
    /// then still current.
    pub fn is_current(&self, noted: Noted) -> bool {
        self.shards[noted.shard].generation() == noted.generation
    }

    /// Notes the generation of a key. Call it before the store is read for [`NearEntries::insert`].
    pub fn note(&self, key: &Key) -> Noted {
        let shard = shard_of(key.main());
        Noted { shard, generation: self.shards[shard].generation() }
    }

    /// Inserts a value, unless there was news since its reader noted the generation.
    pub fn insert(&self, key: &Key, value: V, noted: Noted) {
        let changing = self.shards[noted.shard].lock();
        if self.is_current(noted) || mutants::is(Mutant::NearWithoutGeneration) {
            // Overwriting the old value would count as its eviction.
            self.values.remove(key);
            self.values.insert(key.clone(), value);
        }
        drop(changing);
        self.count();
    }

    fn bump_all(&self) {
        for shard in &self.shards {
            let _changing = shard.lock();
            shard.bump();
        }
    }

    fn remove_some(&self, remove: impl FnOnce()) {
        // The first bump refuses values that were read before this began. The second tells readers
        // that were given a value in the meantime.
        self.bump_all();
        remove();
        self.bump_all();
        self.metrics.flushes.inc();
        self.count();
    }

    fn count(&self) {
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.entries.set(number(self.values.len() as u64));
        self.metrics.bytes.set(number(self.values.weight()));
    }
}

impl<V: Clone + Send + Sync> Watcher for NearEntries<V> {
    fn evict(&self, name: &[u8]) {
        // Keys are text; anything else under the prefix is not ours.
        let Ok(name) = std::str::from_utf8(name) else { return };
        let shard = &self.shards[shard_of(name)];
        let changing = shard.lock();
        let was_held = self.values.remove(name).is_some();
        shard.bump();
        drop(changing);
        // Most keys that are reported are not held here, and the count locks every part of the map.
        if was_held {
            self.count();
        }
    }

    fn flush(&self) {
        self.remove_some(|| self.values.clear());
    }

    fn evict_matching(&self, is_gone: &dyn Fn(&[u8]) -> bool) {
        self.remove_some(|| self.values.retain(|key, _| !is_gone(key.main().as_bytes())));
    }
}

/// Need not be keyed: a client that crowds one shard costs its readers only a hit.
fn shard_of(name: &str) -> usize {
    usize::try_from(xxh3_64(name.as_bytes()) % SHARDS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Registry;

    /// Near entries, and their metrics.
    fn counted(max_bytes: usize) -> (NearEntries<Arc<str>>, Arc<NearMetrics>) {
        let metrics = Arc::new(NearMetrics::register(&mut Registry::default()));
        let counted = Arc::clone(&metrics);
        (NearEntries::new(max_bytes, |value| value.len(), counted, Arc::default()), metrics)
    }

    fn near(max_bytes: usize) -> NearEntries<Arc<str>> {
        counted(max_bytes).0
    }

    fn key(id: &str) -> Key {
        Key::new("job_status:", id)
    }

    fn value<V: Clone>(near: &NearEntries<V>, key: &Key) -> Option<V> {
        near.read(key).map(|(value, _)| value)
    }

    #[test]
    fn a_value_read_before_the_news_is_not_put_in_after_it() {
        let near = near(1 << 20);
        let x = key("x");
        let old: Arc<str> = "old".into();
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
        near.evict_matching(&|name| name == b"job_status:x");
        assert_eq!(value(&near, &key("x")), None);
        assert_eq!(value(&near, &key("y")).as_deref(), Some("y"));
        near.insert(&key("y"), "older".into(), noted);
        assert_eq!(value(&near, &key("y")).as_deref(), Some("y"));
    }

    #[test]
    fn a_newer_value_in_the_place_of_an_older_is_no_eviction() {
        let (near, metrics) = counted(1 << 20);
        for value in ["old", "new"] {
            near.insert(&key("x"), value.into(), near.note(&key("x")));
        }
        assert_eq!(value(&near, &key("x")).as_deref(), Some("new"));
        assert_eq!((metrics.evictions.get(), metrics.entries.get()), (0, 1));
    }

    #[test]
    fn a_value_is_current_until_there_is_news_of_it() {
        let near = near(1 << 20);
        let x = key("x");
        for news in
            [(|near| near.evict(b"job_status:x")) as fn(&NearEntries<Arc<str>>), NearEntries::flush]
        {
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
        let (near, metrics) = counted(64 << 10);
        let body: Arc<str> = "x".repeat(600).into();
        for id in 0..1000 {
            let key = key(&id.to_string());
            near.insert(&key, Arc::clone(&body), near.note(&key));
        }
        let bytes = metrics.bytes.get();
        assert!(bytes > 32 << 10 && bytes <= 64 << 10, "{bytes} bytes");
        let (entries, evictions) = (metrics.entries.get(), metrics.evictions.get());
        assert_eq!(u64::try_from(entries).unwrap() + evictions, 1000);
        near.flush();
        assert_eq!((metrics.bytes.get(), metrics.entries.get()), (0, 0));
    }
}
