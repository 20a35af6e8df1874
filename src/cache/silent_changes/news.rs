//! News of the store, for near entries and for the memory of silent changes.

use std::sync::Arc;

use super::SilentChanges;
use crate::store::near::Watcher;

/// Passes the news of the store on to the near entries and to the memory of silent changes.
#[derive(Debug)]
pub(in crate::cache) struct NewsWatcher {
    pub(in crate::cache) near: Arc<dyn Watcher>,
    pub(in crate::cache) silent_changes: Arc<SilentChanges>,
}

impl Watcher for NewsWatcher {
    fn evict(&self, name: &[u8]) {
        self.near.evict(name);
        if let Ok(name) = std::str::from_utf8(name) {
            self.silent_changes.changed(name);
        }
    }

    fn flush(&self) {
        self.near.flush();
        self.silent_changes.forget_all();
    }

    fn evict_matching(&self, is_gone: &dyn Fn(&[u8]) -> bool) {
        self.near.evict_matching(is_gone);
        self.silent_changes.lock().jobs.retain(|key, _| !is_gone(key.main().as_bytes()));
    }
}
