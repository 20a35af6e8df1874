//! State that the tracking connection updates: the read barrier and the entries in this process.

use std::{sync::Arc, time::Duration};

use redis::Value;
use tokio::time::Instant;

use crate::{
    config::NearTracking,
    mutants::{self, Mutant},
    observe::events::EventKind,
    store::{
        barrier::{Barrier, BarrierDown},
        near::Watcher,
        redis::{context::StoreContext, tracking::metrics::TrackingMetrics},
        words::Key,
    },
};

/// The read barrier, the watcher of changes, and the tracking settings.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct TrackingState {
    pub(in crate::store::redis) barrier: Arc<Barrier>,
    pub(super) watcher: Arc<dyn Watcher>,
    context: Arc<StoreContext>,
    /// How long an answer to a `PING` may take before waiting requests ask Redis instead.
    pub(super) patience: Duration,
    /// Origin of the times given to the barrier.
    origin: Instant,
}

impl TrackingState {
    /// The budget covers two rounds, because a request may wait for the round in flight and for its
    /// own.
    pub(in crate::store::redis) fn new(
        watcher: Arc<dyn Watcher>,
        context: Arc<StoreContext>,
    ) -> Self {
        let patience = context.config.budget / 2;
        Self { barrier: Arc::default(), watcher, context, patience, origin: Instant::now() }
    }

    pub(super) fn metrics(&self) -> &TrackingMetrics {
        &self.context.metrics.tracking
    }

    /// Makes sure that changes of a key will be reported. With broadcast tracking, changes of all
    /// keys are.
    pub(in crate::store::redis) async fn follow(&self, key: &Key) -> Result<(), BarrierDown> {
        if self.context.tracking == NearTracking::Broadcast || mutants::is(Mutant::NearUntracked) {
            return if self.barrier.is_up() { Ok(()) } else { Err(BarrierDown) };
        }
        self.barrier.carry(key).await
    }

    /// Whether every change older than `staleness` is known here already.
    pub(in crate::store::redis) fn is_fresh(&self, staleness: Duration) -> bool {
        if staleness.is_zero() {
            return false;
        }
        let Some(fresh_at_us) = self.barrier.fresh_at_us() else { return false };
        let age_us = self.since_origin_us(Instant::now()).saturating_sub(fresh_at_us);
        let age = Duration::from_micros(age_us);
        if age > staleness / 2 {
            // Early enough for later requests.
            self.barrier.nudge();
        }
        age < staleness
    }

    /// Counts a request that is about to wait for the barrier.
    pub(in crate::store::redis) fn count_wait(&self) {
        self.metrics().waits.inc();
    }

    /// A time in the form that [`Barrier::answered`] takes.
    pub(super) fn since_origin_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn raise(&self) {
        self.barrier.mark_up();
        self.context.status_changed.notify_one();
    }

    pub(super) fn lower(&self) {
        self.barrier.mark_down();
        self.context.status_changed.notify_one();
    }

    pub(super) fn flush(&self) {
        if !mutants::is(Mutant::NearWithoutFlush) {
            self.watcher.flush();
        }
    }
}

/// Evicts the names of one invalidation message: a list of names, or nil for all (FLUSHALL,
/// FLUSHDB).
pub(super) fn evict(tracked: &TrackingState, data: &[Value]) {
    let (watcher, events) = (&tracked.watcher, &tracked.context.events);
    let [Value::Array(names)] = data else {
        watcher.flush();
        events.publish_global(EventKind::Flushed, "", None);
        return;
    };
    for name in names {
        tracked.metrics().news.inc();
        let Value::BulkString(name) = name else {
            watcher.flush();
            continue;
        };
        watcher.evict(name);
        // Our keys are text, so any other name under the prefix is not ours.
        if let Ok(name) = std::str::from_utf8(name) {
            events.record_change(name);
        }
    }
}
