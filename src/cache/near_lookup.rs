//! Near entries: when an entry in this process may be served without asking Redis for it.
//!
//! A near entry has to meet the same conditions as an entry in Redis: the caller is in its audience,
//! its TTL has not run out, and the request's `Cache-Control` admits it. A near miss decides nothing:
//! the lookup goes on in Redis as if there were no near entries.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{Cache, LookupRequest, entry::Entry};
use crate::{
    config,
    mutants::{self, Mutant},
    observe::{events::Events, spans},
    store::{
        BarrierWait, Budget, Key, NearMetrics, Store,
        near::{NearEntries, Noted, Watcher},
    },
};

/// The near entries and how they may be used.
#[derive(Debug)]
pub(super) struct NearLayer {
    entries: Arc<NearEntries<Arc<Entry>>>,
    /// Greatest age of the knowledge about changes in Redis; zero in strict mode.
    max_staleness: Duration,
}

impl NearLayer {
    /// Returns `None` if near entries are switched off or the store itself is in this process.
    pub(super) fn new(
        config: &config::Config,
        metrics: &Arc<NearMetrics>,
        events: &Arc<Events>,
    ) -> Option<Self> {
        let staleness = match config.near.mode {
            config::NearMode::Off => return None,
            config::NearMode::Strict => Duration::ZERO,
            config::NearMode::Bounded => config.near.max_staleness,
        };
        if config.store.url == config::StoreUrl::Memory {
            return None;
        }
        let weigh = |entry: &Arc<Entry>| entry.weight();
        let (metrics, events) = (Arc::clone(metrics), Arc::clone(events));
        let entries = NearEntries::new(config.near.max_bytes, weigh, metrics, events);
        Some(Self { entries: Arc::new(entries), max_staleness: staleness })
    }

    /// Returns the watcher that the store notifies of changes.
    pub(super) fn watcher(&self) -> Arc<dyn Watcher> {
        Arc::clone(&self.entries) as Arc<dyn Watcher>
    }

    /// Drops outdated entries at once, without waiting for Redis to report the change. So a client that
    /// writes through this process reads its own write even in bounded mode.
    pub(super) fn evict(&self, keys: &[Key]) {
        for key in keys {
            self.entries.evict(key.main().as_bytes());
        }
    }

    /// Returns whether there is a near entry, for any audience.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.entries.holds(key)
    }

    /// Returns the number of near entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Drops all near entries at once, like [`NearLayer::evict`].
    pub(super) fn flush(&self) {
        self.entries.flush();
    }

    /// Notes that a key is about to be read; must be called before the store is read. Returns `None`
    /// while changes are not tracked.
    pub(super) async fn note(
        &self,
        store: &Store,
        key: &Key,
        budget: &mut Budget,
    ) -> Option<Noted> {
        let noted = self.entries.note(key);
        // Tracking is requested only after the note: if it began between the two, the note would be
        // void.
        store.follow(key, budget).await.ok()?;
        Some(noted)
    }

    /// Keeps an entry that was read, unless the key has changed since it was noted.
    pub(super) fn keep(&self, key: &Key, entry: &Arc<Entry>, noted: Noted) {
        self.entries.insert(key, Arc::clone(entry), noted);
    }

    /// Waits until a change of the key is reported. May also return for a change of another key.
    pub(super) async fn changed(&self, key: &Key) {
        self.entries.changed(key).await;
    }
}

/// State of a near lookup, which may have to wait for the barrier. Each request needs a new one.
#[derive(Debug, Default)]
pub struct NearLookup {
    /// Entry that was found and waits for the barrier, with the time of the look in ms since 1970 by
    /// the store's clock.
    found: Option<(Arc<Entry>, Noted, i64)>,
    wait: BarrierWait,
}

/// Why there is no near hit; `None` if near entries were not looked at.
pub type NearMissReason = Option<&'static str>;

impl NearLookup {
    /// Returns how long the lookup has waited for the barrier.
    pub fn waited(&self) -> Duration {
        self.wait.lasted()
    }
}

impl Cache {
    /// Looks up a near entry that is a hit for this request. Returns it with the current time in ms
    /// since 1970 by the store's clock, and records the result in the current span.
    pub async fn lookup_near(
        &self,
        request: &LookupRequest,
        budget: &mut Budget,
    ) -> Option<(Arc<Entry>, i64)> {
        let mut lookup = NearLookup::default();
        let near = poll_fn(|cx| self.poll_lookup_near(request, &mut lookup, cx)).await;
        let outcome = match &near {
            Ok(_) => Some("hit"),
            Err(absence) => {
                // Only a wait without a hit is charged: after a hit, nothing else needs the budget.
                budget.charge(lookup.waited());
                *absence
            }
        };
        if let Some(outcome) = outcome {
            self.metrics.near.count_lookup(outcome);
        }
        spans::record_result(&spans::current(), outcome.unwrap_or("unasked"));
        near.ok()
    }

    /// Polls a near lookup like [`Cache::lookup_near`], but neither counts it nor charges a budget.
    pub fn poll_lookup_near(
        &self,
        request: &LookupRequest,
        lookup: &mut NearLookup,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Arc<Entry>, i64), NearMissReason>> {
        let Some(layer) = &self.near else { return Poll::Ready(Err(None)) };
        if lookup.found.is_none() {
            let Ok(now_ms) = self.store.trust(&request.key) else { return Poll::Ready(Err(None)) };
            let Some((entry, noted)) = self.near_hit(layer, request, now_ms) else {
                return Poll::Ready(Err(Some("miss")));
            };
            lookup.found = Some((entry, noted, now_ms));
        }
        if !mutants::is(Mutant::NearWithoutBarrier)
            && ready!(self.store.poll_barrier(
                &request.key,
                layer.max_staleness,
                &mut lookup.wait,
                cx
            ))
            .is_err()
        {
            return Poll::Ready(Err(Some("untracked")));
        }
        let Some((entry, noted, now_ms)) = lookup.found.take() else {
            return Poll::Ready(Err(None));
        };
        // A change that was reported during the wait may have evicted the entry.
        let current = layer.entries.is_current(noted);
        // The store may have restarted meanwhile, so that no entry counts any more.
        let again = || {
            self.store.trust(&request.key).ok()?;
            self.near_entry(layer, request, now_ms)
        };
        let entry = if current { Some(entry) } else { again() };
        Poll::Ready(entry.map(|entry| (entry, now_ms)).ok_or(Some("evicted")))
    }

    fn near_entry(
        &self,
        layer: &NearLayer,
        request: &LookupRequest,
        now_ms: i64,
    ) -> Option<Arc<Entry>> {
        self.near_hit(layer, request, now_ms).map(|(entry, _)| entry)
    }

    fn near_hit(
        &self,
        layer: &NearLayer,
        request: &LookupRequest,
        now_ms: i64,
    ) -> Option<(Arc<Entry>, Noted)> {
        let (entry, noted) = layer.entries.read(&request.key)?;
        let live = now_ms < entry.expires_at_ms();
        (live && self.is_hit(request, &entry, now_ms)).then_some((entry, noted))
    }
}
