//! What all servers of one store share.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::{
    config,
    observe::events::Events,
    store::{
        errors::StoreError, metrics::StoreMetrics, near::Watcher, retry_queue::RetryQueue,
        sibling_watch, sidecar_record::SidecarRecords, words::CredentialKey,
    },
};

/// State of the process, and not of one server.
pub(in crate::store) struct StoreContext {
    pub(super) config: config::StoreConfig,
    pub(super) tracking: config::NearTracking,
    /// Derived from the configured secret, or else the key that the store keeps for all sidecars.
    credential_key: RwLock<CredentialKey>,
    pub(super) has_secret: bool,
    pub(in crate::store) retry_queue: Arc<RetryQueue>,
    /// What is recorded for other sidecars.
    pub(in crate::store) records: SidecarRecords,
    pub(super) watcher: Option<Arc<dyn Watcher>>,
    /// Notified when a server becomes trusted or tracked, and when it stops being so.
    pub(super) status_changed: Notify,
    /// Tasks that finish even if nothing waits for them.
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<StoreMetrics>,
    pub(super) events: Arc<Events>,
}

impl fmt::Debug for StoreContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreContext").field("watcher", &self.watcher).finish_non_exhaustive()
    }
}

impl StoreContext {
    /// Opens the retry queue, too.
    pub(super) fn new(
        config: &config::Config,
        metrics: Arc<StoreMetrics>,
        events: Arc<Events>,
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let secret = config.credentials.secret.as_ref();
        Ok(Self {
            config: config.store.clone(),
            tracking: config.near.tracking,
            credential_key: RwLock::new(CredentialKey::initial(secret)),
            has_secret: secret.is_some(),
            retry_queue: sibling_watch::open_queue(config, Arc::clone(&metrics))?,
            records: SidecarRecords::new(config),
            watcher,
            status_changed: Notify::new(),
            tasks,
            metrics,
            events,
        })
    }

    pub(in crate::store) fn credential_key(&self) -> CredentialKey {
        self.credential_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_credential_key(&self, key: CredentialKey) {
        *self.credential_key.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}
