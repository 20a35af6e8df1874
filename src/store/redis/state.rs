//! State of one server, shared by its supervisor and the users of the store.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::{
    context::StoreContext,
    master_source::MasterSource,
    recently_confirmed::RecentlyConfirmed,
    session::{Session, SessionEffect, credential_key_name},
    tracking::tracking_state::TrackingState,
};
use crate::{
    observe::throttle::Throttle,
    store::{
        errors::StoreError,
        near::Watcher,
        slots::{OwnedSlots, SlotSet},
        words::{Key, Token},
    },
};

/// A session that is used by several tasks.
pub(super) type SessionHandle = Arc<Session>;

/// State of one server.
pub(super) struct ShardState {
    pub(super) context: Arc<StoreContext>,
    pub(super) source: MasterSource,
    /// For the log, without user and password.
    pub(super) address: String,
    /// The slots that it owns.
    pub(super) slots: Arc<OwnedSlots>,
    session: RwLock<Option<SessionHandle>>,
    /// Invalidations that the session has recently confirmed.
    recently_confirmed: RecentlyConfirmed,
    /// Notified when a session fails.
    pub(super) failed: Notify,
    pub(super) warnings: ShardWarnings,
    /// Tracking for the entries in this process, if they are enabled.
    pub(super) tracked: Option<TrackingState>,
}

/// Throttles for warnings that could otherwise come with every request or round.
#[derive(Debug, Default)]
pub(super) struct ShardWarnings {
    pub(super) connect: Throttle,
    pub(super) tracking: Throttle,
    pub(super) key: Throttle,
    pub(super) eviction: Throttle,
}

impl ShardState {
    /// The `watcher` learns of changes on this server.
    pub(super) fn new(
        context: Arc<StoreContext>,
        source: MasterSource,
        address: String,
        slots: Arc<OwnedSlots>,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Self {
        let tracked = watcher.map(|watcher| TrackingState::new(watcher, Arc::clone(&context)));
        Self {
            context,
            source,
            address,
            slots,
            session: RwLock::default(),
            recently_confirmed: RecentlyConfirmed::default(),
            failed: Notify::new(),
            warnings: ShardWarnings::default(),
            tracked,
        }
    }

    /// The published session.
    pub(super) fn session(&self) -> Result<SessionHandle, StoreError> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        session.filter(|session| !session.has_failed()).ok_or(StoreError::Down)
    }

    /// Applies `look` to the published session. Hits do not clone the handle: its reference count
    /// would move from core to core.
    pub(super) fn with_session<T>(&self, look: impl Fn(&Session) -> T) -> Result<T, StoreError> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        let session = session.as_ref().filter(|session| !session.has_failed());
        session.map(|session| look(session)).ok_or(StoreError::Down)
    }

    /// Whether the keys that all sidecars share, apart from those of jobs, are on this server.
    pub(super) fn keeps_shared_keys(&self) -> bool {
        let name = credential_key_name(&self.context.config.prefix);
        self.slots.contains_name(name.as_bytes())
    }

    /// Publishes a session. What is pending can be confirmed now.
    pub(super) fn publish(&self, session: SessionHandle) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self.context.status_changed.notify_one();
        self.context.retry_queue.pending.make_all_due();
        self.context.retry_queue.wake();
    }

    /// Withdraws the published session, if there is one.
    pub(super) fn retract(&self, error: &StoreError) {
        let published = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        if published.is_some() {
            self.context.metrics.breaker.open(error);
        }
        self.context.status_changed.notify_one();
    }

    /// Records an invalidation that the session has just confirmed. Fails if the session has ended
    /// meanwhile: `requeue_recent` may have run already, without this invalidation.
    pub(super) fn note_confirmed(&self, session: &Session, key: &Key) -> Result<(), StoreError> {
        self.recently_confirmed.note(key, Instant::now().into_std());
        if session.has_failed() {
            return Err(StoreError::Lost("the session ended before the answer came".into()));
        }
        Ok(())
    }

    /// Records that all entries of some slots were purged. Fails like `note_confirmed`.
    pub(super) fn note_purged(&self, session: &Session, slots: &SlotSet) -> Result<(), StoreError> {
        self.recently_confirmed.note_slots(slots, Instant::now().into_std());
        if session.has_failed() {
            return Err(StoreError::Lost("the session ended during a purge of all".into()));
        }
        Ok(())
    }

    /// Makes recently confirmed invalidations pending again: a deposed master may have confirmed
    /// them just before the session ended.
    pub(super) async fn requeue_recent(&self) {
        let queue = &self.context.retry_queue;
        let recent = self.recently_confirmed.take(Instant::now().into_std());
        if let Some(slots) = recent.slots {
            queue.pending.add_slots(*slots).await;
            queue.wake();
        }
        // The token of no write: the fence of a write may linger, and must not be lifted here.
        let no_write = Token::named("doubt");
        let keys: Vec<_> = recent.keys.iter().collect();
        queue.add(&keys, &no_write, Duration::ZERO).await;
    }

    /// Updates the health of the session from the result of an operation.
    pub(super) fn judge<T>(
        &self,
        session: &Session,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.conclude(session, &result);
        result
    }

    /// Updates the health of the session from a borrowed result.
    pub(super) fn conclude<T>(&self, session: &Session, result: &Result<T, StoreError>) {
        if let Err(StoreError::Redirected(redirect)) = result {
            self.source.observe(redirect, &self.context.metrics.cluster);
        }
        if session.judge(result) == SessionEffect::End {
            self.failed.notify_one();
        }
    }
}
