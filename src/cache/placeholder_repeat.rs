//! Repeats of reads that failed at the placeholder of their job. They show whether the application itself
//! reads the keys of this cache ([`foreign_cache`](super::foreign_cache)).

use std::mem;

use tokio::time::timeout;

use super::{
    entry::{Entry, Reject},
    fill::{FillTarget, Filler, LeaderRead},
    foreign_cache::Sign,
};

impl Filler {
    /// Gives up the placeholder of a read that has failed, so that the read can be repeated without it:
    /// an application that itself reads the key may fail because of it. Returns false if there is none,
    /// if the store does not take it away in time, or if too many reads were repeated lately. The response
    /// is not stored.
    pub async fn give_up_placeholder(&self, lead: &mut LeaderRead) -> bool {
        if !matches!(lead.target, FillTarget::Lease(_))
            || !self.state.notes.foreign_caches.admits_repeat()
        {
            return false;
        }
        let FillTarget::Lease(lease) = mem::replace(&mut lead.target, FillTarget::Nowhere) else {
            return false;
        };
        timeout(self.config.budget().left(), self.state.store.release(lease)).await.is_ok()
    }

    /// Notes that a read has succeeded without the placeholder, and what it has left under the key.
    pub async fn note_repeated(&self, lead: &LeaderRead) {
        let mut budget = self.config.budget();
        let foreign_caches = &self.state.notes.foreign_caches;
        let prefix = self.config.prefix_of(&lead.key);
        let left = self.state.store.read(&lead.key, &mut budget).await;
        let is_counted =
            if left.is_ok_and(|seen| matches!(Entry::decode(&seen), Some(Err(Reject::Foreign)))) {
                foreign_caches.step_aside(prefix, Sign::Values);
                true
            } else {
                foreign_caches.note_failure(prefix)
            };
        if is_counted {
            self.state.metrics.foreign_values.inc();
        }
    }
}
