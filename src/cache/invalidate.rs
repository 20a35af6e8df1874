//! Invalidates jobs: for writes that pass through, and for purges on request.
//!
//! The callers in `proxy` and `admin` decide which jobs a write changes and who may purge.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, task::JoinError};
use tracing::{debug, error, warn};

use super::{cache_config::CacheConfig, shared_state::SharedState};
use crate::{
    observe::{
        events::{EventKind, Initiator},
        throttle::Throttle,
    },
    semantics::job_id::JobId,
    store::{Budget, Ended, Key, KeyReceipt, Purged, Write},
};

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
    /// The fence falls with a later end, when the bodies have ended, or else `upstream.response_timeout` after the
    /// response head, which came at this time.
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

/// Cause of an invalidation; a label of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidationSource {
    /// A write, before it is answered.
    Write,
    /// A write, after one of its bodies has ended.
    WriteBody,
    /// A write or a reload that changes every job.
    WriteAll,
    /// A purge of some jobs on request.
    Purge,
    /// A purge of all jobs on request.
    PurgeAll,
    /// A comparison with the upstream, which has found a wrong entry.
    Comparison,
}

impl InvalidationSource {
    /// Returns the word for metrics, logs and spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::WriteBody => "write-body",
            Self::WriteAll => "write-all",
            Self::Purge => "purge",
            Self::PurgeAll => "purge-all",
            Self::Comparison => "evidence",
        }
    }
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

/// The task of a purge failed, which is a bug in jobcache: the purge may be neither confirmed nor
/// queued for a retry.
#[derive(Debug, thiserror::Error)]
#[error("the task of the purge failed")]
pub struct PurgeTaskFailed;

fn purge_task_failed(error: &JoinError) -> PurgeTaskFailed {
    error!(%error, "the task of a purge failed; the purge may be neither confirmed nor queued");
    PurgeTaskFailed
}

/// Invalidates jobs.
#[derive(Clone, Debug)]
pub struct Invalidator {
    pub(super) state: Arc<SharedState>,
    pub(super) config: Arc<CacheConfig>,
    pub(super) pending_warnings: Arc<Throttle>,
    pub(super) shared_purge_all: Arc<SharedPurgeAll>,
}

impl Invalidator {
    /// Fences jobs before a write is forwarded.
    pub async fn begin(&self, ids: &[JobId], budget: &mut Budget) -> Write {
        let keys: Vec<Key> = ids.iter().map(|id| self.config.key(id)).collect();
        if keys.is_empty() {
            return self.unfenced();
        }
        self.record_events(&keys, EventKind::Write, "", None);
        self.state.invalidate_locally(&keys);
        self.state.store.begin(keys, self.config.settings.fence_ttl, budget).await
    }

    /// Creates a write before its jobs are known. Nothing is fenced for it.
    pub fn unfenced(&self) -> Write {
        self.state.store.unfenced(self.config.settings.fence_ttl)
    }

    /// Adds jobs to a write that turns out to have changed them. They are invalidated at its end.
    pub fn widen(&self, write: &mut Write, ids: &[JobId]) {
        write.widen(ids.iter().map(|id| self.config.key(id)));
    }

    /// Renews the fence of a long write again and again; never returns.
    pub async fn keep_fenced(&self, write: &Write) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(self.config.settings.fence_ttl / 2).await;
            self.state.store.renew(write).await;
        }
    }

    /// Invalidates the jobs of a write: before it is answered, and again when a body has ended. The
    /// upstream may commit while it reads the upload, or while it sends the response.
    ///
    /// A write has one budget for its beginning and another for each end. The time that a slow `begin`
    /// took says nothing about the store now, much later, and an end cannot be confirmed without time.
    pub async fn end(
        &self,
        write: &Write,
        fence: FenceEnd,
        stage: EndStage,
        source: InvalidationSource,
    ) -> Ended {
        if write.keys().is_empty() {
            return Ended::Confirmed { entries: 0 };
        }
        // The write may name jobs that its beginning did not. Redis reports this change too, and the
        // report must not count as a silent change.
        self.state.silent_changes.forget(write.keys());
        let ended = self.end_in_store(write, fence).await;
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

    /// Returns how long the fence still stands after an end.
    pub(super) fn fence_left(&self, fence: FenceEnd) -> Duration {
        match fence {
            FenceEnd::Now(outcome) => self.fence_time_after(outcome),
            FenceEnd::WithBodies(since) => self
                .config
                .settings
                .body_fence_time
                .saturating_sub(since.elapsed())
                .max(self.config.settings.settle),
        }
    }

    /// Returns how long the fence stands after a write with this outcome.
    pub(super) fn fence_time_after(&self, outcome: WriteOutcome) -> Duration {
        match outcome {
            WriteOutcome::Known => self.config.settings.settle,
            WriteOutcome::Unknown => self.config.settings.linger.max(self.config.settings.settle),
            WriteOutcome::Refused => Duration::ZERO,
        }
    }

    /// Purges jobs on request. The purge is carried out even if the returned future is dropped.
    ///
    /// # Errors
    ///
    /// Fails if the task of the purge panics or is cancelled.
    pub async fn purge(
        self: &Arc<Self>,
        ids: &[JobId],
        by: Initiator,
    ) -> Result<PurgeOutcome, PurgeTaskFailed> {
        let keys = ids.iter().map(|id| self.config.key(id)).collect();
        self.purge_keys(keys, InvalidationSource::Purge, by).await
    }

    /// Purges the jobs of these keys for any reason, as [`Invalidator::purge`] does.
    pub(super) async fn purge_keys(
        self: &Arc<Self>,
        keys: Vec<Key>,
        source: InvalidationSource,
        by: Initiator,
    ) -> Result<PurgeOutcome, PurgeTaskFailed> {
        let invalidator = Arc::clone(self);
        let purge = async move {
            let Self { state, config, .. } = &*invalidator;
            // Checked first: Redis may report the change, which evicts the near entry, before it
            // replies to the purge.
            let near = |key: &Key| state.near.as_ref().is_some_and(|near| near.entries.holds(key));
            let near: Vec<bool> = keys.iter().map(near).collect();
            // First, because Redis also reports this change, and the report must not count as a silent
            // change. A comparison that found a wrong entry is no purge.
            match source {
                InvalidationSource::Purge => state.silent_changes.purged(&keys),
                _ => state.silent_changes.forget(&keys),
            }
            let Purged { ended, receipts: was } =
                state.store.purge(keys.clone(), config.settings.store_budget).await;
            let flights = state.invalidate_locally(&keys);
            invalidator.count_invalidation(source, ended);
            invalidator.record_events(&keys, EventKind::Purge, ended.as_str(), by);
            let found = was.into_iter().zip(flights).zip(near);
            let receipt = |((was, flights), near)| PurgeReceipt { found: was, flights, near };
            PurgeOutcome { ended, receipts: found.map(receipt).collect() }
        };
        self.state.store.spawn(purge).await.map_err(|error| purge_task_failed(&error))
    }

    /// Purges all jobs on request, as [`Invalidator::purge`] does some.
    ///
    /// # Errors
    ///
    /// Fails if the task of the purge panics or is cancelled.
    pub async fn purge_all(
        self: &Arc<Self>,
        by: Initiator,
    ) -> Result<PurgeAllOutcome, PurgeTaskFailed> {
        let invalidator = Arc::clone(self);
        let purge = async move {
            let state = &invalidator.state;
            let near = state.near.as_ref().map_or(0, |near| near.entries.len());
            state.silent_changes.all_purged();
            let ended = state.store.purge_all().await;
            let flights = state.invalidate_all_locally();
            invalidator.count_invalidation(InvalidationSource::PurgeAll, ended);
            state.events.publish_global(EventKind::PurgeAll, ended.as_str(), by);
            PurgeAllOutcome { ended, flights, near }
        };
        self.state.store.spawn(purge).await.map_err(|error| purge_task_failed(&error))
    }

    pub(super) fn record_events(
        &self,
        keys: &[Key],
        what: EventKind,
        why: &'static str,
        by: Initiator,
    ) {
        self.state.events.record_each(keys.iter().map(Key::main), what, why, by);
    }

    pub(super) fn count_invalidation(&self, source: InvalidationSource, ended: Ended) {
        let source = source.as_str();
        let outcome = ended.as_str();
        self.state.metrics.invalidations.inc([source, outcome]);
        if ended != Ended::Pending {
            return;
        }
        debug!(source, "an invalidation was not confirmed in time");
        if let Some(suppressed) = self.pending_warnings.admit(source) {
            let pending = self.state.store.pending();
            warn!(
                source,
                pending,
                suppressed,
                "an invalidation was not confirmed in time; its jobs bypass the cache until it is"
            );
        }
    }
}

/// Lets concurrent writes share one purge of all jobs, so that a burst of them does not walk through
/// the store once each.
#[derive(Debug)]
pub(super) struct SharedPurgeAll {
    /// Number of purges requested so far.
    requested: AtomicU64,
    /// Last request that the latest purge covers, and its result. Locked while a purge runs.
    last_result: Mutex<(u64, Ended)>,
}

impl Default for SharedPurgeAll {
    fn default() -> Self {
        Self { requested: AtomicU64::new(0), last_result: Mutex::new((0, Ended::Pending)) }
    }
}

impl SharedPurgeAll {
    /// Returns the result of a purge that begins after the call: `purge`, or that of another caller.
    pub(super) async fn join_or_run(&self, purge: impl Future<Output = Ended>) -> Ended {
        let request = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.last_result.lock().await;
        if answered.0 < request {
            let covered = self.requested.load(Ordering::SeqCst);
            *answered = (covered, purge.await);
        }
        answered.1
    }
}
