//! Who wants the news of the tracking connection, and what they are told.

use std::{sync::Arc, time::Duration};

use redis::Value;
use tokio::{sync::Notify, time::Instant};

use crate::{
    config::NearTracking,
    events::What,
    metrics::Metrics,
    mutants::{self, Mutant},
    store::{
        Key,
        barrier::{Down, Rounds},
        near::Watcher,
    },
};

/// Who wants the news.
#[derive(Clone, Debug)]
pub(in crate::store::redis) struct Tracked {
    pub(in crate::store::redis) rounds: Arc<Rounds>,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) tracking: NearTracking,
    /// How long an answer to a `PING` may take before whoever waits asks Redis instead.
    pub(super) patience: Duration,
    /// Times are measured from here.
    origin: Instant,
    /// Told when it turns up or down, where it is one of several.
    turned: Option<Arc<Notify>>,
}

impl Tracked {
    /// A request waits for the round under way and for its own: `budget` is for both.
    pub(in crate::store::redis) fn new(
        watcher: Arc<dyn Watcher>,
        budget: Duration,
        tracking: NearTracking,
        metrics: Arc<Metrics>,
        turned: Option<Arc<Notify>>,
    ) -> Self {
        let (patience, origin) = (budget / 2, Instant::now());
        Self { rounds: Arc::default(), watcher, metrics, tracking, patience, origin, turned }
    }

    /// Makes sure that the news of a key will come: at once where that of all keys does.
    pub(in crate::store::redis) async fn follow(&self, key: &Key) -> Result<(), Down> {
        if self.tracking == NearTracking::Broadcast || mutants::is(Mutant::NearUnfollowed) {
            return if self.rounds.is_up() { Ok(()) } else { Err(Down) };
        }
        self.rounds.carry(key).await
    }

    /// Whether everything that had changed so long ago is known here anyway.
    pub(in crate::store::redis) fn is_fresh(&self, staleness: Duration) -> bool {
        if staleness.is_zero() {
            return false;
        }
        let Some(fresh_at_us) = self.rounds.fresh_at_us() else { return false };
        let age_us = self.since_origin_us(Instant::now()).saturating_sub(fresh_at_us);
        let age = Duration::from_micros(age_us);
        if age > staleness / 2 {
            // In time for those who come later.
            self.rounds.nudge();
        }
        age < staleness
    }

    /// Counts who is about to wait until everything that had changed before now is known here.
    pub(in crate::store::redis) fn count_wait(&self) {
        self.metrics.barrier_waits.inc();
    }

    /// A time as [`Rounds::answered`] takes it.
    pub(super) fn since_origin_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn raise(&self) {
        self.rounds.raise();
        self.tell(true);
    }

    pub(super) fn lower(&self) {
        self.rounds.lower();
        self.tell(false);
    }

    /// Of several the cluster tells.
    fn tell(&self, up: bool) {
        match &self.turned {
            Some(turned) => turned.notify_one(),
            None => self.metrics.tracking_is_up(up),
        }
    }

    pub(super) fn flush(&self) {
        if !mutants::is(Mutant::NearWithoutFlush) {
            self.watcher.flush();
        }
    }
}

/// One list of names, or nil for all of them (FLUSHALL, FLUSHDB).
pub(super) fn evict(tracked: &Tracked, data: &[Value]) {
    let (watcher, events) = (&tracked.watcher, &tracked.metrics.events);
    let [Value::Array(names)] = data else {
        watcher.flush();
        events.tell_all(What::Flushed, "", None);
        return;
    };
    for name in names {
        tracked.metrics.tracking_news.inc();
        let Value::BulkString(name) = name else {
            watcher.flush();
            continue;
        };
        watcher.evict(name);
        // Keys are text; whatever else is under the prefix is none of ours.
        if let Ok(name) = std::str::from_utf8(name) {
            events.changed(name);
        }
    }
}
