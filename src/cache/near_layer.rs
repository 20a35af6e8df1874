//! The near entries of this process, and how they may be used.

use std::{sync::Arc, time::Duration};

use super::entry::Entry;
use crate::{
    config,
    observe::events::Events,
    store::{
        Budget, Key, NearMetrics, Store,
        near::{NearEntries, Noted},
    },
};

/// The near entries and how they may be used.
#[derive(Debug)]
pub(super) struct NearLayer {
    pub(super) entries: Arc<NearEntries<Arc<Entry>>>,
    /// Greatest age of the knowledge about changes in Redis; zero in strict mode.
    pub(super) max_staleness: Duration,
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
}
