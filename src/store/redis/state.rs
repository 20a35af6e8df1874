//! State that all servers of one store share, and the state of one server: its session, and what
//! the tracking connection updates.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use redis::Value;
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    large_keys::LargeKeys, master_source::MasterSource, purge_token::PurgeTokens,
    recently_confirmed::RecentlyConfirmed, session::Session,
};
use crate::{
    config::{self, NearTracking},
    mutants::{self, Mutant},
    observe::{
        events::{EventKind, Events},
        throttle::Throttle,
    },
    store::{
        CredentialKey, Key, StoreError, Token,
        barrier::{Barrier, BarrierDown},
        errors::Result,
        metrics::{StoreMetrics, TrackingMetrics},
        near::Watcher,
        problems::{Problems, RefusedCommand},
        retry_queue::{RetryQueue, open_queue},
        sidecar_record::SidecarRecords,
        slots::{OwnedSlots, SlotSet, slot_of},
    },
};

/// State that all servers of the store share.
pub(crate) struct StoreContext {
    pub(super) config: config::StoreConfig,
    /// The beginnings of keys.
    pub(super) prefixes: Vec<String>,
    pub(super) purge_tokens: Arc<PurgeTokens>,
    /// Notified when a purge of all has been confirmed.
    pub(super) purged: Notify,
    /// Derived from the configured secret, or else the key that the store keeps for all sidecars.
    credential_key: RwLock<CredentialKey>,
    pub(super) has_secret: bool,
    pub(crate) retry_queue: Arc<RetryQueue>,
    /// The present problem, for `/status`.
    pub(crate) problems: Arc<Problems>,
    /// The record for other sidecars.
    pub(crate) records: SidecarRecords,
    /// Learns of changes, which are tracked in this way.
    pub(super) watcher: Option<(Arc<dyn Watcher>, NearTracking)>,
    /// Keys with values that are too large for the budget.
    pub(crate) large: LargeKeys,
    /// Notified when a server becomes trusted or tracked, and when it stops being so.
    pub(super) status_changed: Notify,
    /// Tasks that finish even if nothing waits for them.
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<StoreMetrics>,
    pub(super) events: Arc<Events>,
}

impl StoreContext {
    /// Opens the retry queue, too.
    pub(super) fn new(
        config: &config::Config,
        metrics: Arc<StoreMetrics>,
        events: Arc<Events>,
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self> {
        let secret = config.cache.credentials.secret.as_ref();
        let prefixes = config.prefixes();
        let problems = Arc::<Problems>::default();
        Ok(Self {
            config: config.store.clone(),
            purge_tokens: Arc::new(PurgeTokens::new(&prefixes)),
            prefixes,
            purged: Notify::new(),
            credential_key: RwLock::new(CredentialKey::initial(secret)),
            has_secret: secret.is_some(),
            retry_queue: open_queue(config, Arc::clone(&metrics), Arc::clone(&problems))?,
            problems,
            records: SidecarRecords::new(config),
            watcher: watcher.map(|watcher| (watcher, config.cache.near.tracking)),
            large: LargeKeys::default(),
            status_changed: Notify::new(),
            tasks,
            metrics,
            events,
        })
    }

    pub(crate) fn credential_key(&self) -> CredentialKey {
        self.credential_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Name of the key that holds the credential key.
    pub(super) fn credential_key_name(&self) -> String {
        format!("{{{}}}:credential-key", self.config.prefix)
    }

    pub(super) fn set_credential_key(&self, key: CredentialKey) {
        *self.credential_key.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

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
    recently_confirmed: Mutex<RecentlyConfirmed>,
    /// Notified when a session fails.
    pub(super) failed: Notify,
    pub(super) warnings: ShardWarnings,
    /// The refused command of the session that is to be reported.
    pub(super) refused: RefusedCommand,
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
    pub(super) far: Throttle,
}

impl ShardState {
    /// The watcher of the `context`, if there is one, learns of changes on this server.
    pub(super) fn new(
        context: Arc<StoreContext>,
        source: MasterSource,
        address: String,
        slots: Arc<OwnedSlots>,
    ) -> Self {
        let tracked = context.watcher.clone().map(|(watcher, mode)| TrackingState {
            barrier: Barrier::default(),
            watcher,
            mode,
            slots: Arc::clone(&slots),
            patience: context.config.budget / 2,
            origin: Instant::now(),
            context: Arc::clone(&context),
        });
        Self {
            context,
            source,
            address,
            slots,
            session: RwLock::default(),
            recently_confirmed: Mutex::default(),
            failed: Notify::new(),
            warnings: ShardWarnings::default(),
            refused: RefusedCommand::default(),
            tracked,
        }
    }

    /// The published session.
    pub(super) fn session(&self) -> Result<SessionHandle> {
        self.with_session(Arc::clone)
    }

    /// Applies `look` to the published session. Hits do not clone the handle: its reference count
    /// would move from core to core.
    pub(super) fn with_session<T>(&self, look: impl Fn(&SessionHandle) -> T) -> Result<T> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        let session = session.as_ref().filter(|session| session.is_usable());
        session.map(look).ok_or(StoreError::Down)
    }

    /// Whether the keys that all sidecars share, apart from those of jobs, are on this server.
    pub(super) fn keeps_shared_keys(&self) -> bool {
        self.slots.contains_name(self.context.credential_key_name().as_bytes())
    }

    /// Publishes a session. What is pending can be confirmed now.
    pub(super) fn publish(&self, session: SessionHandle) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self.context.problems.clear();
        self.context.status_changed.notify_one();
        self.context.retry_queue.pending.make_all_due();
        self.context.retry_queue.changed.notify_one();
    }

    /// Withdraws the published session, if there is one.
    pub(super) fn retract(&self, error: &StoreError) {
        let published = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        if published.is_some() {
            self.context.metrics.open_breaker(error);
        }
        self.context.status_changed.notify_one();
    }

    fn recently_confirmed(&self) -> MutexGuard<'_, RecentlyConfirmed> {
        self.recently_confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records invalidations that the session has just confirmed. Fails if the session has ended
    /// meanwhile: `requeue_recent` may have run already, without these invalidations.
    pub(super) fn note_confirmed<'k>(
        &self,
        session: &Session,
        keys: impl IntoIterator<Item = &'k Key>,
    ) -> Result<()> {
        let now = Instant::now().into_std();
        let mut recent = self.recently_confirmed();
        keys.into_iter().for_each(|key| recent.note(key, now));
        drop(recent);
        session.check_alive()
    }

    /// Records that all entries of some slots were purged. Fails like `note_confirmed`.
    pub(super) fn note_purged(&self, session: &Session, slots: &SlotSet) -> Result<()> {
        let now = Instant::now().into_std();
        self.recently_confirmed().note_slots(slots, now, now);
        session.check_alive()
    }

    /// Makes recently confirmed invalidations pending again: a deposed master may have confirmed
    /// them just before the session ended.
    pub(super) async fn requeue_recent(&self) {
        let queue = &self.context.retry_queue;
        let (keys, slots) = self.recently_confirmed().take(Instant::now().into_std());
        if let Some(slots) = slots {
            queue.pending.add_slots(*slots).await;
            queue.changed.notify_one();
        }
        // The token of no write: the fence of a write may linger, and must not be lifted here.
        let no_write = Token::named("doubt");
        let keys: Vec<_> = keys.iter().collect();
        queue.add(&keys, &no_write, Duration::ZERO).await;
    }

    /// Updates the health of the session from the result of an operation.
    pub(super) fn judge<T>(&self, session: &Session, result: Result<T>) -> Result<T> {
        let result = result.map_err(|error| self.source.diagnosed(error));
        if let Err(StoreError::Redirected(redirect)) = &result {
            self.source.observe(redirect, &self.context.metrics.cluster);
        }
        if session.ends_with(&result) {
            self.failed.notify_one();
        } else if let Err(error) = &result {
            self.refused.note(error);
        }
        result
    }
}

/// The read barrier, the watcher of changes, and the tracking settings.
pub(super) struct TrackingState {
    pub(super) barrier: Barrier,
    pub(super) watcher: Arc<dyn Watcher>,
    pub(super) mode: NearTracking,
    /// The slots of this server. Those of others are not flushed.
    slots: Arc<OwnedSlots>,
    context: Arc<StoreContext>,
    /// How long an answer to a `PING` may take before waiting requests ask Redis instead. The
    /// budget covers two rounds, because a request may wait for the round in flight and for its
    /// own.
    pub(super) patience: Duration,
    /// Origin of the times given to the barrier.
    origin: Instant,
}

impl TrackingState {
    pub(super) fn purge_token_of(&self, key: &Key) -> Cow<'_, str> {
        self.context.purge_tokens.of_key(key)
    }

    pub(super) fn metrics(&self) -> &TrackingMetrics {
        &self.context.metrics.tracking
    }

    /// Makes sure that changes of a key will be reported. With broadcast tracking, changes of all
    /// keys are.
    pub(super) async fn follow(&self, key: &Key) -> Result<(), BarrierDown> {
        if self.mode == NearTracking::Broadcast || mutants::is(Mutant::NearUntracked) {
            return if self.barrier.is_up() { Ok(()) } else { Err(BarrierDown) };
        }
        self.barrier.pass(Some(key.clone())).await
    }

    /// Whether every change older than `staleness` is known here already.
    pub(super) fn is_fresh(&self, staleness: Duration) -> bool {
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

    /// A time in the form that [`Barrier::answered`] takes.
    pub(super) fn since_origin_us(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn raise(&self) {
        self.barrier.mark_up();
        // Afterwards: a key that is read from now on is followed.
        self.watcher.resumed();
        self.context.status_changed.notify_one();
    }

    pub(super) fn lower(&self) {
        self.barrier.mark_down();
        self.context.status_changed.notify_one();
    }

    /// Evicts every near entry of this server.
    fn flush(&self) {
        if self.slots.snapshot() == SlotSet::ALL {
            self.watcher.flush();
        } else {
            self.watcher.evict_matching(&|name| self.slots.contains_name(name));
        }
    }

    /// As [`TrackingState::flush`], because changes were not tracked for a while.
    pub(super) fn flush_untracked(&self) {
        if !mutants::is(Mutant::NearWithoutFlush) {
            self.flush();
        }
    }

    /// Evicts the entries in the slots of purge tokens that have changed.
    pub(super) fn evict_purged(&self, slots: &SlotSet) {
        if self.context.purge_tokens.is_one_for_all() {
            self.flush();
        } else {
            self.watcher.evict_matching(&|name| slots.contains_name(name));
        }
    }

    /// Evicts the names of one invalidation message: a list of names, or nil for all (FLUSHALL,
    /// FLUSHDB). Adds the slots of purge tokens to `purged`.
    pub(super) fn evict(&self, data: &[Value], purged: &mut Option<Box<SlotSet>>) {
        let events = &self.context.events;
        let [Value::Array(names)] = data else {
            self.flush();
            events.publish_global(EventKind::Flushed, "", None);
            return;
        };
        for name in names {
            self.metrics().news.inc();
            let Value::BulkString(name) = name else {
                self.flush();
                continue;
            };
            if name.starts_with(b"{") {
                purged.get_or_insert_with(|| Box::new(SlotSet::NONE)).insert(slot_of(name));
                continue;
            }
            self.watcher.evict(name);
            // Our keys are text, so any other name under the prefix is not ours.
            if let Ok(name) = std::str::from_utf8(name) {
                events.record_change(name);
            }
        }
    }
}
