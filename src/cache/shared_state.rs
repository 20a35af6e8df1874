//! What the parts of the cache share: the store, and everything that a change of a job has to reach.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;

use super::{
    flight::Flights,
    near_layer::NearLayer,
    silent_changes::{SilentChanges, news::NewsWatcher},
};
use crate::{
    config,
    limits::Quota,
    observe::metrics::{Limit, Metrics},
    store::{Key, Store, StoreError, near::Watcher},
};

/// The state that survives reloads.
#[derive(Debug)]
pub(super) struct SharedState {
    pub(super) store: Store,
    pub(super) near: Option<NearLayer>,
    pub(super) flights: Arc<Flights>,
    pub(super) silent_changes: Arc<SilentChanges>,
    /// Limits the memory of responses that are being read into the cache.
    pub(super) capture_quota: Arc<Quota>,
    pub(super) metrics: Arc<Metrics>,
}

impl SharedState {
    /// Opens the store that the configuration names.
    pub(super) fn open(config: &config::Config, metrics: Arc<Metrics>) -> Result<Self, StoreError> {
        metrics.events.set_key_prefix(&config.store.prefix);
        let near = NearLayer::new(config, &metrics);
        let silent_changes = Arc::new(SilentChanges::new(Arc::clone(&metrics)));
        let watcher = near.as_ref().map(|near| {
            let near = Arc::clone(&near.entries) as Arc<dyn Watcher>;
            let silent_changes = Arc::clone(&silent_changes);
            Arc::new(NewsWatcher { near, silent_changes }) as Arc<dyn Watcher>
        });
        let store = Store::open(config, Arc::clone(&metrics), watcher)?;
        let limits = &metrics.limits;
        let quota = |limit, used: &Gauge, kind| {
            Quota::new(limit, used.clone(), limits.counter(kind).clone())
        };
        let flights = quota(config.max_flights, &limits.flights, Limit::Flights);
        let capture_quota = quota(config.max_captured, &limits.captured, Limit::Captured);
        let flights = Arc::new(Flights::new(flights));
        Ok(Self { store, near, flights, silent_changes, capture_quota, metrics })
    }

    /// Detaches the flights and evicts the near entries of these jobs. Returns how many flights each
    /// job had.
    pub(super) fn detach(&self, keys: &[Key]) -> Vec<usize> {
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

    /// Detaches the flights and evicts the near entries of all jobs. Returns how many flights there
    /// were.
    pub(super) fn detach_all(&self) -> usize {
        let flights = self.flights.detach_all();
        self.silent_changes.forget_all();
        if let Some(near) = &self.near {
            near.entries.flush();
        }
        flights
    }
}
