//! Jobs that the target of a write names outside the `{id}` segment of a route, as `DELETE
//! /jobs?id=7` does.
//!
//! One request may name a thousand of them, so they must cost their readers little: they are fenced
//! only while the write runs, and not for `settle` after it. Instead they are invalidated a second
//! time when `settle` is over, for an upstream that reads from a lagging replica. An unknown outcome
//! means that the write may still run, so the fence lingers for them too.

use std::time::Duration;

use futures_util::future::join;

use super::invalidate::{FenceEnd, InvalidationSource, Invalidator, WriteOutcome};
use crate::{
    observe::events::EventKind,
    semantics::job_id::JobId,
    store::{Budget, Ended, Key, Write},
};

impl Invalidator {
    /// Fences jobs as [`Invalidator::begin`] does, and others that the target names elsewhere.
    pub async fn begin_named(
        &self,
        ids: &[JobId],
        elsewhere: &[JobId],
        budget: &mut Budget,
    ) -> Write {
        if elsewhere.is_empty() {
            return self.begin(ids, budget).await;
        }
        let all: Vec<JobId> = elsewhere.iter().chain(ids).cloned().collect();
        let mut write = self.begin(&all, budget).await;
        write.mark_elsewhere(elsewhere.len());
        write
    }

    pub(super) async fn end_in_store(&self, write: &Write, fence: FenceEnd) -> Ended {
        let linger = self.fence_left(fence);
        let Some((elsewhere, rest)) = write.split_elsewhere() else {
            return self.state.store.end(write, linger, &mut self.config.budget()).await;
        };
        let brief = match fence {
            FenceEnd::Now(WriteOutcome::Known | WriteOutcome::Refused) => Duration::ZERO,
            FenceEnd::Now(WriteOutcome::Unknown) | FenceEnd::WithBodies(_) => linger,
        };
        let (mut budget, mut brief_budget) = (self.config.budget(), self.config.budget());
        let ended = join(
            self.state.store.end(&elsewhere, brief, &mut brief_budget),
            self.state.store.end(&rest, linger, &mut budget),
        );
        let ended = ended.await;
        if linger > brief {
            self.forget_again(elsewhere.keys().to_vec(), linger);
        }
        match ended {
            (Ended::Confirmed { entries }, Ended::Confirmed { entries: others }) => {
                Ended::Confirmed { entries: entries + others }
            }
            _ => Ended::Pending,
        }
    }

    /// Invalidates keys a second time, after a while and in the background.
    fn forget_again(&self, keys: Vec<Key>, after: Duration) {
        let invalidator = self.clone();
        self.state.store.spawn(async move {
            tokio::time::sleep(after).await;
            let (state, wait) = (&invalidator.state, invalidator.config.settings.store_budget);
            let ended = state.store.purge(keys.clone(), wait).await.ended;
            state.invalidate_locally(&keys);
            invalidator.count_invalidation(InvalidationSource::Write, ended);
            // Not the end of the write, which has been recorded.
            let by = Some("a write that named it, once more after settle".into());
            invalidator.record_events(&keys, EventKind::Purge, ended.as_str(), by);
        });
    }
}
