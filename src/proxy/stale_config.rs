//! Whether a reload has put other routes or rules into force.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether other routes or rules are in force. It is set before they come into force: a write that
/// finds it unset was answered before any read by the new rules.
#[derive(Clone, Debug, Default)]
pub(super) struct StaleConfig(Arc<AtomicBool>);

impl StaleConfig {
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stale(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
