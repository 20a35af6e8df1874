//! Invalidates jobs: for writes that pass through, for purges on request, and for comparisons that
//! find a wrong entry. Writes and reloads that change every job share purges of all.
//!
//! The callers in `proxy` and `admin` decide which jobs a write changes and who may purge.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};

use super::{
    shared_purge_all::SharedPurgeAll,
    shared_state::{CacheConfig, InvalidationSource, SharedState},
};
use crate::{
    observe::events::{EventKind, Initiator},
    semantics::job_id::JobId,
    store::{Ended, Key, KeyReceipt, Purged, Write, WriteBudget},
};

/// How long a reload waits until everything is dropped.
pub const RELOAD_WAIT: Duration = Duration::from_secs(2);

/// Whether the outcome of a write is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The upstream has answered, with any status, or has never seen the write.
    Known,
    /// The upstream may still commit the write.
    Unknown,
    /// The status says that nothing was done.
    Refused,
}

/// When the fence of a write falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceEnd {
    /// The fence falls with this end, apart from the time for which this outcome lets it linger.
    Now(WriteOutcome),
    /// The fence falls with a later end, when the bodies have ended, or else
    /// `upstream.response_timeout` after the response head, which came at this time.
    WithBodies(Instant),
}

/// Place of an end among the ends of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndStage {
    /// A body is still under way, so another end follows.
    Early,
    /// The write is over. This end is the one that is recorded as an event.
    Last,
}

/// Result of a purge of some jobs.
#[derive(Clone, Debug)]
pub struct PurgeOutcome {
    /// Result in the store for all the jobs together.
    pub ended: Ended,
    /// One receipt for each job, in the order of the request.
    pub receipts: Vec<PurgeReceipt>,
}

/// State of one job before it was purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurgeReceipt {
    /// State in the store; `None` if the store has not confirmed the purge.
    pub found: Option<KeyReceipt>,
    /// Number of flights in this process. They go on, but no reader can join them any more.
    pub flights: usize,
    /// Whether there was a near entry in this process.
    pub near: bool,
}

/// Result of a purge of all jobs.
#[derive(Clone, Copy, Debug)]
pub struct PurgeAllOutcome {
    /// Result in the store.
    pub ended: Ended,
    /// Number of flights in this process. They go on, but no reader can join them any more.
    pub flights: usize,
    /// Number of near entries that were in this process.
    pub near: usize,
}

/// Event reason for the end of a write with an unknown outcome.
pub const OUTCOME_UNKNOWN: &str = "outcome-unknown";

/// Invalidates jobs.
#[derive(Clone)]
pub struct Invalidator {
    pub(super) state: Arc<SharedState>,
    pub(super) config: Arc<CacheConfig>,
    pub(super) shared_purge_all: Arc<SharedPurgeAll>,
}

impl Invalidator {
    /// Fences jobs before a write is forwarded: those of its route, and others that its target names
    /// elsewhere, as `DELETE /jobs?id=7` does.
    ///
    /// One request may name a thousand elsewhere, so they must cost their readers little: they are
    /// fenced only while the write runs, and not for `settle` after it. Instead they are invalidated a
    /// second time when `settle` is over, for an upstream that reads from a lagging replica. An unknown
    /// outcome means that the write may still run, so the fence lingers for them too.
    pub async fn begin(
        &self,
        ids: &[JobId],
        elsewhere: &[JobId],
        budget: &mut WriteBudget,
    ) -> Write {
        let keys: Vec<Key> = elsewhere.iter().chain(ids).map(|id| self.config.key(id)).collect();
        if keys.is_empty() {
            return self.unfenced();
        }
        self.record_events(&keys, EventKind::Write, "", None);
        self.state.invalidate_locally(&keys);
        let started = tokio::time::Instant::now();
        let mut step = budget.next_step();
        let mut write = self.state.store.begin(keys, self.config.fence_ttl(), &mut step).await;
        budget.charge(started.elapsed());
        if !elsewhere.is_empty() {
            write.mark_elsewhere(elsewhere.len());
        }
        write
    }

    /// Creates a write before its jobs are known. Nothing is fenced for it.
    pub fn unfenced(&self) -> Write {
        self.state.store.unfenced(self.config.fence_ttl())
    }

    /// Adds jobs to a write that turns out to have changed them. They are invalidated at its end.
    pub fn widen(&self, write: &mut Write, ids: &[JobId]) {
        write.widen(ids.iter().map(|id| self.config.key(id)));
    }

    /// Renews the fence of a long write again and again; never returns.
    pub async fn keep_fenced(&self, write: &Write) -> std::convert::Infallible {
        loop {
            sleep(self.config.fence_ttl() / 2).await;
            self.state.store.renew(write).await;
        }
    }

    /// Invalidates the jobs of a write: before it is answered, and again when a body has ended. The
    /// upstream may commit while it reads the upload, or while it sends the response.
    ///
    /// A write has two budgets for its beginning and all its ends. An end that has no time left is sent
    /// all the same, and its jobs are pending until it is confirmed.
    pub async fn end(
        &self,
        write: &Write,
        budget: &mut WriteBudget,
        (fence, stage): (FenceEnd, EndStage),
        source: InvalidationSource,
    ) -> Ended {
        if write.keys().is_empty() {
            return Ended::Confirmed { entries: 0 };
        }
        // The write may name jobs that its beginning did not. Redis reports this change too, and the
        // report must not count as a silent change.
        self.state.silent_changes.forget(write.keys());
        let started = tokio::time::Instant::now();
        let ended = self.end_in_store(write, fence, budget).await;
        budget.charge(started.elapsed());
        self.state.invalidate_locally(write.keys());
        self.count_invalidation(source, ended);
        if stage == EndStage::Early {
            self.state.events.expect_own_changes(write.keys().iter().map(Key::main));
            return ended;
        }
        let why = match (ended, fence) {
            (Ended::Confirmed { .. }, FenceEnd::Now(WriteOutcome::Unknown)) => OUTCOME_UNKNOWN,
            _ => ended.as_str(),
        };
        self.record_events(write.keys(), EventKind::WriteEnded, why, None);
        ended
    }

    async fn end_in_store(&self, write: &Write, fence: FenceEnd, budget: &WriteBudget) -> Ended {
        let store = &self.state.store;
        let linger = self.fence_left(fence);
        let Some((elsewhere, rest)) = write.split_elsewhere() else {
            return store.end(write, linger, &mut budget.next_step()).await;
        };
        let brief = match fence {
            FenceEnd::Now(WriteOutcome::Known | WriteOutcome::Refused) => Duration::ZERO,
            FenceEnd::Now(WriteOutcome::Unknown) | FenceEnd::WithBodies(_) => linger,
        };
        let (mut step, mut brief_step) = (budget.next_step(), budget.next_step());
        // Boxed, because most writes name no job elsewhere.
        let ended = Box::pin(join(
            store.end(&elsewhere, brief, &mut brief_step),
            store.end(&rest, linger, &mut step),
        ));
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
            sleep(after).await;
            let Self { state, config, .. } = &invalidator;
            let ended = state.store.purge(keys.clone(), config.store_budget).await.ended;
            state.invalidate_locally(&keys);
            invalidator.count_invalidation(InvalidationSource::Write, ended);
            // Not the end of the write, which has been recorded.
            let by = Some("a write that named it, once more after settle".into());
            invalidator.record_events(&keys, EventKind::Purge, ended.as_str(), by);
        });
    }

    /// Returns how long the fence still stands after an end.
    fn fence_left(&self, fence: FenceEnd) -> Duration {
        let CacheConfig { settings, linger, response_timeout, .. } = &*self.config;
        let settle = settings.settle;
        match fence {
            FenceEnd::Now(WriteOutcome::Known) => settle,
            FenceEnd::Now(WriteOutcome::Unknown) => settle.max(*linger),
            FenceEnd::Now(WriteOutcome::Refused) => Duration::ZERO,
            FenceEnd::WithBodies(since) => {
                response_timeout.saturating_sub(since.elapsed()).max(settle)
            }
        }
    }

    /// Invalidates every job, as [`Invalidator::end`] does the jobs of a write.
    ///
    /// There is no fence over all jobs. Instead, all entries and leases are dropped before the write is
    /// answered, so that nothing read earlier is kept or stored. They are dropped a second time after
    /// the time for which a single job's fence would linger, in case the upstream commits late or reads
    /// from a replica.
    ///
    /// Waits at most `wait` for the first drop, which then goes on in the background. This sidecar serves
    /// nothing from the cache until it is confirmed.
    pub async fn end_all(self: &Arc<Self>, outcome: WriteOutcome, wait: Duration) -> Ended {
        let linger = self.fence_left(FenceEnd::Now(outcome));
        if !linger.is_zero() {
            let invalidator = Arc::clone(self);
            self.state.store.spawn(async move {
                sleep(linger).await;
                invalidator.share_purge_all().await;
            });
        }
        let invalidator = Arc::clone(self);
        let purge = self.state.store.spawn(async move { invalidator.share_purge_all().await });
        match timeout(wait, purge).await {
            Ok(Ok(ended)) => ended,
            _ => Ended::Pending,
        }
    }

    /// Drops everything by a purge that begins after the call, which may be shared.
    async fn share_purge_all(&self) -> Ended {
        let by = Some("a write or reload that changes every job".into());
        let purge = async { self.drop_all(InvalidationSource::WriteAll, by).await.ended };
        self.shared_purge_all.join_or_run(purge).await
    }

    /// Purges jobs on request. The purge is carried out even if the returned future is dropped.
    /// Returns `None` if its task failed, which is a bug in jobcache: then the purge may be neither
    /// confirmed nor queued for a retry.
    pub async fn purge(self: &Arc<Self>, ids: &[JobId], by: Initiator) -> Option<PurgeOutcome> {
        let keys = ids.iter().map(|id| self.config.key(id)).collect();
        self.purge_keys(keys, InvalidationSource::Purge, by).await
    }

    /// Purges the jobs of these keys for any reason, as [`Invalidator::purge`] does.
    pub(super) async fn purge_keys(
        self: &Arc<Self>,
        keys: Vec<Key>,
        source: InvalidationSource,
        by: Initiator,
    ) -> Option<PurgeOutcome> {
        let invalidator = Arc::clone(self);
        let purge = async move {
            let Self { state, config, .. } = &*invalidator;
            // Checked first: Redis may report the change, which evicts the near entry, before it
            // replies to the purge.
            let near: Vec<bool> = keys.iter().map(|key| state.is_near(key)).collect();
            // First, because Redis also reports this change, and the report must not count as a silent
            // change. A comparison that found a wrong entry is no purge.
            match source {
                InvalidationSource::Purge => state.silent_changes.purged(&keys),
                _ => state.silent_changes.forget(&keys),
            }
            let Purged { ended, receipts: was } =
                state.store.purge(keys.clone(), config.store_budget).await;
            let flights = state.invalidate_locally(&keys);
            invalidator.count_invalidation(source, ended);
            invalidator.record_events(&keys, EventKind::Purge, ended.as_str(), by);
            let found = was.into_iter().zip(flights).zip(near);
            let receipt = |((was, flights), near)| PurgeReceipt { found: was, flights, near };
            PurgeOutcome { ended, receipts: found.map(receipt).collect() }
        };
        self.carry_out(purge).await
    }

    /// Purges all jobs on request, as [`Invalidator::purge`] does some.
    pub async fn purge_all(self: &Arc<Self>, by: Initiator) -> Option<PurgeAllOutcome> {
        let invalidator = Arc::clone(self);
        let source = InvalidationSource::PurgeAll;
        self.carry_out(async move { invalidator.drop_all(source, by).await }).await
    }

    async fn drop_all(&self, source: InvalidationSource, by: Initiator) -> PurgeAllOutcome {
        let SharedState { store, near, silent_changes, events, .. } = &*self.state;
        let near = near.as_ref().map_or(0, |near| near.len());
        match source {
            InvalidationSource::PurgeAll => silent_changes.all_purged(),
            _ => silent_changes.forget_all(),
        }
        let ended = store.purge_all().await;
        // Redis may report the change late, as for the jobs of a write.
        let flights = self.state.invalidate_all_locally();
        self.count_invalidation(source, ended);
        events.publish_global(EventKind::PurgeAll, ended.as_str(), by);
        PurgeAllOutcome { ended, flights, near }
    }

    /// Runs a purge in a task of its own.
    async fn carry_out<T: Send + 'static>(
        &self,
        purge: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let done = self.state.store.spawn(purge).await.inspect_err(|error| {
            error!(%error, "the task of a purge failed; the purge may be neither confirmed nor queued");
        });
        done.ok()
    }

    fn record_events(&self, keys: &[Key], what: EventKind, why: &'static str, by: Initiator) {
        self.state.events.record_each(keys.iter().map(Key::main), what, why, by);
    }

    fn count_invalidation(&self, source: InvalidationSource, ended: Ended) {
        let source = source.as_str();
        let outcome = ended.as_str();
        self.state.metrics.invalidations.inc([source, outcome]);
        if ended != Ended::Pending {
            return;
        }
        debug!(source, "an invalidation was not confirmed in time");
        let store = &self.state.store;
        if store.problem().is_some_and(|problem| problem.diagnosis.refuses_commands()) {
            // The warning about refused commands covers it.
            return;
        }
        if let Some(suppressed) = self.state.notes.pending_warnings.admit(source) {
            let pending = store.pending();
            warn!(
                source,
                pending,
                suppressed,
                "an invalidation was not confirmed in time; its jobs bypass the cache until it is"
            );
        }
    }
}
