//! What forgets jobs: writes that pass through, and purges on request.
//!
//! It does not know who asks, nor which jobs a write reaches: `proxy` and `admin` say.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinError;
use tracing::{debug, error, warn};

use super::{Cache, key::JobId};
use crate::{
    events::{By, What},
    metrics::InvalidationLabels,
    store::{Budget, Ended, Key, Purged, Was, Write},
};

/// Whether the outcome of a write is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream has answered, whatever it said, or has never seen the write.
    Known,
    /// It may commit yet.
    Unknown,
}

/// Where an invalidation came from; a label of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Write,
    WriteBody,
    WriteAll,
    Purge,
    PurgeAll,
    Evidence,
}

/// What a purge of some jobs came to.
#[derive(Clone, Debug)]
pub struct Purge {
    /// For all of them taken together.
    pub ended: Ended,
    /// For each, in their order.
    pub receipts: Vec<Receipt>,
}

/// What a purge found of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// In the store; none where it has not confirmed the purge.
    pub was: Option<Was>,
    /// Reads of the upstream under way here that nobody may join any more.
    pub flights: usize,
    /// Whether there was an entry in this process.
    pub near: bool,
}

/// What a purge of all came to.
#[derive(Clone, Copy, Debug)]
pub struct PurgeAll {
    /// In the store.
    pub ended: Ended,
    /// Reads of the upstream under way here that nobody may join any more.
    pub flights: usize,
    /// Entries in this process.
    pub near: usize,
}

/// How the end of a write is told of which nobody knows whether the upstream carried it out.
pub const OUTCOME_UNKNOWN: &str = "outcome-unknown";

/// A purge died, which is a fault of ours: nothing is known to be confirmed, nor to be queued.
#[derive(Debug, thiserror::Error)]
#[error("the purge died")]
pub struct Died;

fn died(error: &JoinError) -> Died {
    error!(%error, "a purge died; nothing is known to be purged or queued");
    Died
}

impl Cache {
    /// Fences jobs before a write is forwarded.
    pub async fn begin(&self, ids: &[JobId], budget: &mut Budget) -> Write {
        let keys: Vec<Key> = ids.iter().map(|id| self.key(id)).collect();
        if keys.is_empty() {
            return self.unfenced();
        }
        self.tell(&keys, What::Write, "", None);
        self.detach(&keys);
        self.store.begin(keys, self.settings.fence, budget).await
    }

    /// A write of which it is not known yet what it changes.
    pub fn unfenced(&self) -> Write {
        self.store.unfenced(self.settings.fence)
    }

    /// Adds jobs that a write turns out to have changed.
    pub fn widen(&self, write: &mut Write, ids: &[JobId]) {
        write.widen(ids.iter().map(|id| self.key(id)));
    }

    /// Keeps the fence of a long write standing; never returns.
    pub async fn keep_fenced(&self, write: &Write) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(self.settings.fence / 2).await;
            self.store.renew(write).await;
        }
    }

    /// Invalidates the jobs of a write, before it is answered.
    ///
    /// A write has one budget on its way in and one on its way out. What a slow `begin` has spent
    /// says nothing of the store now, long after, and without time an end cannot be confirmed.
    pub async fn end(&self, write: &Write, outcome: Outcome) -> Ended {
        self.invalidate(write, outcome, Source::Write).await
    }

    /// Invalidates them once more, when the upstream's answer has come to its end: it may commit
    /// while it sends.
    pub async fn end_again(&self, write: &Write, outcome: Outcome) -> Ended {
        self.invalidate(write, outcome, Source::WriteBody).await
    }

    async fn invalidate(&self, write: &Write, outcome: Outcome, source: Source) -> Ended {
        if write.keys().is_empty() {
            return Ended::Confirmed { entries: 0 };
        }
        let ended = self.store.end(write, self.linger(outcome), &mut self.budget()).await;
        self.detach(write.keys());
        self.count_invalidation(source, ended);
        let why = match (ended, outcome) {
            (Ended::Confirmed { .. }, Outcome::Unknown) => OUTCOME_UNKNOWN,
            _ => ended.as_str(),
        };
        self.tell(write.keys(), What::WriteEnded, why, None);
        ended
    }

    pub(super) fn linger(&self, outcome: Outcome) -> Duration {
        match outcome {
            Outcome::Known => self.settings.settle,
            Outcome::Unknown => self.settings.linger.max(self.settings.settle),
        }
    }

    /// Invalidates jobs on request. Who asked may hang up: it is carried out all the same.
    pub async fn purge(self: &Arc<Self>, ids: &[JobId], by: By) -> Result<Purge, Died> {
        let keys = ids.iter().map(|id| self.key(id)).collect();
        self.purge_keys(keys, Source::Purge, by).await
    }

    /// The same, for that reason.
    pub(super) async fn purge_keys(
        self: &Arc<Self>,
        keys: Vec<Key>,
        source: Source,
        by: By,
    ) -> Result<Purge, Died> {
        let cache = Arc::clone(self);
        let purge = async move {
            // The news of what the store is about to drop may be here before its answer.
            let near = |key: &Key| cache.near.as_ref().is_some_and(|near| near.holds(key));
            let near: Vec<bool> = keys.iter().map(near).collect();
            let Purged { ended, was } =
                cache.store.purge(keys.clone(), cache.settings.budget).await;
            let flights = cache.detach(&keys);
            cache.count_invalidation(source, ended);
            cache.tell(&keys, What::Purge, ended.as_str(), by);
            let found = was.into_iter().zip(flights).zip(near);
            let receipt = |((was, flights), near)| Receipt { was, flights, near };
            Purge { ended, receipts: found.map(receipt).collect() }
        };
        self.store.spawn(purge).await.map_err(|error| died(&error))
    }

    /// Invalidates every job, as [`Cache::purge`] does some.
    pub async fn purge_all(self: &Arc<Self>, by: By) -> Result<PurgeAll, Died> {
        let cache = Arc::clone(self);
        let purge = async move {
            let near = cache.near.as_ref().map_or(0, |near| near.len());
            let ended = cache.store.purge_all().await;
            let flights = cache.flights.detach_all();
            if let Some(near) = &cache.near {
                near.flush();
            }
            cache.count_invalidation(Source::PurgeAll, ended);
            cache.metrics.events.tell_all(What::PurgeAll, ended.as_str(), by);
            PurgeAll { ended, flights, near }
        };
        self.store.spawn(purge).await.map_err(|error| died(&error))
    }

    /// What this process has of these jobs is out of date. Says how many flights there were of each.
    fn detach(&self, keys: &[Key]) -> Vec<usize> {
        let flights = keys.iter().map(|key| self.flights.detach(key)).collect();
        if let Some(near) = &self.near {
            near.evict(keys);
        }
        flights
    }

    fn tell(&self, keys: &[Key], what: What, why: &'static str, by: By) {
        self.metrics.events.tell_each(keys.iter().map(Key::main), what, why, by);
    }

    pub(super) fn count_invalidation(&self, source: Source, ended: Ended) {
        let source = match source {
            Source::Write => "write",
            Source::WriteBody => "write-body",
            Source::WriteAll => "write-all",
            Source::Purge => "purge",
            Source::PurgeAll => "purge-all",
            Source::Evidence => "evidence",
        };
        let outcome = ended.as_str();
        self.metrics.invalidations.get_or_create(&InvalidationLabels { source, outcome }).inc();
        if ended != Ended::Pending {
            return;
        }
        debug!(source, "an invalidation was not confirmed in time");
        if let Some(suppressed) = self.pending_warnings.admit(source) {
            let pending = self.store.pending();
            warn!(
                source,
                pending,
                suppressed,
                "an invalidation was not confirmed in time; its jobs are bypassed until it is"
            );
        }
    }
}
