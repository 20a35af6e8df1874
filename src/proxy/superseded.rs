//! Writes that outlast the routes and rules by which they were judged.
//!
//! A reload may bring a route or a rule that a write under way falls under. Nothing was fenced for
//! it, and what its path or body names is not known any more; but reads by the new routes fill the
//! cache meanwhile, with what the write is about to change. So from then on such a write counts as
//! one that changes every job, as one by a rule with `all = true` does: all is dropped before it is
//! answered. The reload itself drops all as well, now and after `store.linger`, for what was answered
//! or given up just before.
//!
//! Not covered: a write that was passed on, had its head answered before the reload, and commits with
//! the end of its answer, later than that.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::Proxy;
use crate::cache::Outcome;

/// Whether other routes or rules have come into force. It is told before they do, so that a write
/// that has not been told was answered before any read by them.
#[derive(Clone, Debug, Default)]
pub(super) struct Superseded(Arc<AtomicBool>);

impl Superseded {
    pub(super) fn tell(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_told(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A write under way that no route and no rule knows of. Given up, by its client or for want of an
/// answer, its outcome is unknown.
#[derive(Debug)]
pub(super) struct Unclaimed {
    proxy: Arc<Proxy>,
    answered: bool,
}

impl Unclaimed {
    pub(super) fn new(proxy: &Arc<Proxy>) -> Self {
        Self { proxy: Arc::clone(proxy), answered: false }
    }

    /// It has an answer: whether it counts as one that has changed every job.
    pub(super) fn answered(mut self) -> bool {
        self.answered = true;
        self.proxy.superseded.is_told()
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        if !self.answered && self.proxy.superseded.is_told() {
            let cache = Arc::clone(&self.proxy.cache);
            self.proxy.tasks.spawn(async move { cache.end_all(Outcome::Unknown).await });
        }
    }
}
