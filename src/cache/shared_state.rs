//! The state that the parts of the cache share: the store, and everything that a change of a job has to reach.

use std::{fmt, sync::Arc};

use super::{
    flight::Flights,
    metrics::CacheMetrics,
    near_layer::NearLayer,
    silent_changes::{SilentChanges, news::NewsWatcher},
};
use crate::{
    config,
    limits::{Limit, LimitHits, Quota},
    observe::{events::Events, metrics::Registry},
    store::{Key, Store, StoreError, near::Watcher},
};

/// The state that survives reloads.
pub(super) struct SharedState {
    pub(super) store: Store,
    pub(super) near: Option<NearLayer>,
    pub(super) flights: Arc<Flights>,
    pub(super) silent_changes: Arc<SilentChanges>,
    /// Limits the memory of responses that are being read into the cache.
    pub(super) capture_quota: Arc<Quota>,
    pub(super) metrics: Arc<CacheMetrics>,
    pub(super) events: Arc<Events>,
}

impl fmt::Debug for SharedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedState")
            .field("store", &self.store)
            .field("flights", &self.flights)
            .finish_non_exhaustive()
    }
}

impl SharedState {
    /// Opens the store that the configuration names.
    pub(super) fn open(
        config: &config::Config,
        registry: &mut Registry,
        events: Arc<Events>,
    ) -> Result<Self, StoreError> {
        events.set_key_prefix(&config.store.prefix);
        let metrics = Arc::new(CacheMetrics::register(registry));
        let near = NearLayer::new(config, &metrics.near, &events);
        let silent_changes = Arc::new(SilentChanges::new(metrics.silent_changes.clone()));
        let watcher = near.as_ref().map(|near| {
            let near = Arc::clone(&near.entries) as Arc<dyn Watcher>;
            let silent_changes = Arc::clone(&silent_changes);
            Arc::new(NewsWatcher { near, silent_changes }) as Arc<dyn Watcher>
        });
        let store = Store::open(config, registry, Arc::clone(&events), watcher)?;
        let hits = LimitHits::shared(registry);
        let flights = Quota::of(Limit::Flights, config.max_flights, &metrics.flights, &hits);
        let capture_quota =
            Quota::of(Limit::Captured, config.max_captured, &metrics.captured, &hits);
        let flights = Arc::new(Flights::new(flights));
        Ok(Self { store, near, flights, silent_changes, capture_quota, metrics, events })
    }

    /// Invalidates these jobs in this process: detaches their flights, evicts their near entries, and
    /// drops what is remembered to find silent changes. Returns how many flights each job had.
    pub(super) fn invalidate_locally(&self, keys: &[Key]) -> Vec<usize> {
        let flights = keys.iter().map(|key| self.flights.detach(key)).collect();
        self.silent_changes.forget(keys);
        // At once, without waiting for Redis to report the change. So a client that writes through this
        // process reads its own write even in bounded mode.
        if let Some(near) = &self.near {
            for key in keys {
                near.entries.evict(key.main().as_bytes());
            }
        }
        flights
    }

    /// Invalidates all jobs in this process. Returns how many flights there were.
    pub(super) fn invalidate_all_locally(&self) -> usize {
        let flights = self.flights.detach_all();
        self.silent_changes.forget_all();
        if let Some(near) = &self.near {
            near.entries.flush();
        }
        flights
    }
}
