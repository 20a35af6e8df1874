//! Entries in this process: when one may be served though Redis was not asked for it.
//!
//! In front of everything the same rule stands as for an entry in Redis: it is a hit for its
//! audience, within its time, and for the client's taste. Whatever is no hit here is no verdict
//! either: Redis is asked as if this layer were not there.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{Ask, Cache, entry::Entry};
use crate::{
    config,
    metrics::Metrics,
    mutants::{self, Mutant},
    spans,
    store::{
        Budget, Key, Store, Wait,
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

    /// Whether it holds one, whoever it is for.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.entries.holds(key)
    }

    /// How many it holds.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The same as [`Layer::evict`] for all.
    pub(super) fn flush(&self) {
        self.entries.flush();
    }

    /// To be called before the store is read. None while changes are not tracked.
    pub(super) async fn note(
        &self,
        store: &Store,
        key: &Key,
        budget: &mut Budget,
    ) -> Option<Noted> {
        let noted = self.entries.note(key);
        // Only now: had tracking begun between the two, the note would be void.
        store.follow(key, budget).await.ok()?;
        Some(noted)
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

/// A look for an entry that may have to wait for the barrier. A new one for each request.
#[derive(Debug, Default)]
pub struct Look {
    /// What was found and waits, and when that was.
    found: Option<(Arc<Entry>, Noted, i64)>,
    wait: Wait,
}

/// Why there is no hit in this process; `None` where it was not asked.
pub type Absence = Option<&'static str>;

impl Look {
    /// How long it has waited.
    pub fn waited(&self) -> Duration {
        self.wait.lasted()
    }
}

impl Cache {
    /// An entry in this process that is a hit for this reader, with the time by the store's clock. The
    /// span that it is called in is told what it came to.
    pub async fn near(&self, ask: &Ask, budget: &mut Budget) -> Option<(Arc<Entry>, i64)> {
        let mut look = Look::default();
        let near = poll_fn(|cx| self.poll_near(ask, &mut look, cx)).await;
        let outcome = match &near {
            Ok(_) => Some("hit"),
            Err(absence) => {
                // What has brought a hit was not in vain.
                budget.charge(look.waited());
                *absence
            }
        };
        if let Some(outcome) = outcome {
            self.metrics.near.lookup(outcome);
        }
        spans::result(&spans::current(), outcome.unwrap_or("unasked"));
        near.ok()
    }

    /// The same for who polls; neither counted nor charged to a budget.
    pub fn poll_near(
        &self,
        ask: &Ask,
        look: &mut Look,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Arc<Entry>, i64), Absence>> {
        let Some(layer) = &self.near else { return Poll::Ready(Err(None)) };
        if look.found.is_none() {
            let Ok(now_ms) = self.store.trust(&ask.key) else { return Poll::Ready(Err(None)) };
            let Some((entry, noted)) = self.hit_in(layer, ask, now_ms) else {
                return Poll::Ready(Err(Some("miss")));
            };
            look.found = Some((entry, noted, now_ms));
        }
        if !mutants::is(Mutant::NearWithoutBarrier)
            && ready!(self.store.poll_barrier(&ask.key, layer.staleness, &mut look.wait, cx))
                .is_err()
        {
            return Poll::Ready(Err(Some("untracked")));
        }
        let Some((entry, noted, now_ms)) = look.found.take() else {
            return Poll::Ready(Err(None));
        };
        // It may have gone with the news that was waited for.
        let current = layer.entries.is_current(noted);
        let entry = if current { Some(entry) } else { self.entry_in(layer, ask, now_ms) };
        Poll::Ready(entry.map(|entry| (entry, now_ms)).ok_or(Some("evicted")))
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
