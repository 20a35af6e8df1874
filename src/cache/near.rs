//! Entries in this process: when one may be served though Redis was not asked for it.
//!
//! In front of everything the same rule stands as for an entry in Redis: it is a hit for its
//! audience, within its time, and for the client's taste. Whatever is no hit here is no verdict
//! either: Redis is asked as if this layer were not there.

use std::{sync::Arc, time::Duration};

use super::{Ask, Cache, entry::Entry};
use crate::{
    config,
    metrics::Metrics,
    mutants::{self, Mutant},
    store::{
        Budget, Key, Store,
        near::{Near, Noted, Watcher},
    },
};

/// The layer, as configured.
#[derive(Debug)]
pub(super) struct Layer {
    entries: Arc<Near<Arc<Entry>>>,
    /// How old the news of changes may be; zero in strict mode.
    staleness: Duration,
}

impl Layer {
    /// None where it is switched off, or where the store is in this process itself.
    pub(super) fn new(config: &config::Config, metrics: &Arc<Metrics>) -> Option<Self> {
        let staleness = match config.near.mode {
            config::NearMode::Off => return None,
            config::NearMode::Strict => Duration::ZERO,
            config::NearMode::Bounded => config.near.max_staleness,
        };
        if config.store.url == config::StoreUrl::Memory {
            return None;
        }
        let weigh = |entry: &Arc<Entry>| entry.weight();
        let entries = Near::new(config.near.max_bytes, weigh, Arc::clone(metrics));
        Some(Self { entries: Arc::new(entries), staleness })
    }

    /// Who is to be told of changes in the store.
    pub(super) fn watcher(&self) -> Arc<dyn Watcher> {
        Arc::clone(&self.entries) as Arc<dyn Watcher>
    }

    /// Drops what is known to be out of date without waiting for the news of it, so that who wrote
    /// through this process finds his write also where news may be late.
    pub(super) fn evict(&self, keys: &[Key]) {
        for key in keys {
            self.entries.evict(key.main().as_bytes());
        }
    }

    /// The same for all.
    pub(super) fn flush(&self) {
        self.entries.flush();
    }

    /// To be called before the store is read. None while changes are not tracked.
    pub(super) fn note(&self, store: &Store, key: &Key) -> Option<Noted> {
        let noted = self.entries.note(key);
        // Only now: had tracking begun between the two, the note would be void.
        store.is_tracked().then_some(noted)
    }

    /// Keeps what was read, unless it has changed since.
    pub(super) fn keep(&self, key: &Key, entry: &Arc<Entry>, noted: Noted) {
        self.entries.insert(key, Arc::clone(entry), noted);
    }

    /// Waits for news of a key, or of another.
    pub(super) async fn changed(&self, key: &Key) {
        self.entries.changed(key).await;
    }
}

impl Cache {
    /// An entry in this process that is a hit for this reader, with the time by the store's clock.
    pub async fn near(&self, ask: &Ask, budget: &mut Budget) -> Option<(Arc<Entry>, i64)> {
        let layer = self.near.as_ref()?;
        let now_ms = self.store.trust(&ask.key).ok()?;
        let (hit, outcome) = match self.hit_in(layer, ask, now_ms) {
            None => (None, "miss"),
            Some((entry, noted)) if self.passes(layer, budget).await => {
                // It may have gone with the news that was waited for.
                let current = layer.entries.is_current(noted);
                let entry = if current { Some(entry) } else { self.entry_in(layer, ask, now_ms) };
                let outcome = if entry.is_some() { "hit" } else { "evicted" };
                (entry, outcome)
            }
            Some(_) => (None, "untracked"),
        };
        self.metrics.near_lookup(outcome);
        Some((hit?, now_ms))
    }

    async fn passes(&self, layer: &Layer, budget: &mut Budget) -> bool {
        mutants::is(Mutant::NearWithoutBarrier)
            || self.store.barrier(layer.staleness, budget).await.is_ok()
    }

    fn entry_in(&self, layer: &Layer, ask: &Ask, now_ms: i64) -> Option<Arc<Entry>> {
        self.hit_in(layer, ask, now_ms).map(|(entry, _)| entry)
    }

    fn hit_in(&self, layer: &Layer, ask: &Ask, now_ms: i64) -> Option<(Arc<Entry>, Noted)> {
        let (entry, noted) = layer.entries.read(&ask.key)?;
        let live = now_ms < entry.expires_at_ms();
        (live && self.is_hit(ask, &entry, now_ms)).then_some((entry, noted))
    }
}
