//! The store on one Redis server.
//!
//! One task, the supervisor, owns the connection. It connects, checks version and role, repeats the
//! pending invalidations, and only then publishes the session. This is the whole circuit breaker:
//! closed while a session is published, open while there is none, and half-open while the
//! supervisor connects. A session ends at the first broken connection, after several timeouts in a
//! row, or when the server is no longer the master it was, as reported by itself or by sentinels.
//! The next session has the same epoch only if it is with the same server process, replication
//! history and term. `master_source` finds the master, and `dial` connects to it.
//!
//! This engine does not retry the operation of a request: the request has a budget, and an upstream
//! to fall back to.

pub(super) mod dial;
mod master_source;
mod recently_confirmed;
mod reconnect;
pub(super) mod record_keeper;
mod sentinel;
mod server_info;
pub(super) mod session;
pub(super) mod shard_context;
pub(super) mod supervisor;
pub(super) mod temp_connection;
mod tracking;

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use redis::RedisError;
use tokio::{
    runtime::Handle,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use self::{
    master_source::MasterSource,
    recently_confirmed::RecentlyConfirmed,
    session::Session,
    supervisor::{RedisState, RedisWarnings, connect_master, supervise},
    tracking::TrackingState,
};
use super::{
    BarrierWait, Begun, Budget, CredentialKey, Ended, Fill, Grant, Key, KeyReceipt, KeyState,
    Lease, Replacement, Seen, StoreError, StoredValue, Token, Write,
    barrier::BarrierDown,
    batch_outcome::BatchOutcome,
    near::Watcher,
    pending::JournalStatus,
    retry_queue::RetryQueue,
    sidecar_record::{RecordMismatch, SidecarRecord, SidecarRecords},
    unix_ms,
};
use crate::{clock, config, mutants, mutants::Mutant, observe::metrics::Metrics};

/// Timeout for connecting, and for operations that no client waits for: fills, releases, repeated
/// ends.
pub(super) const DETACHED_TIMEOUT: Duration = Duration::from_secs(1);

/// Total time for one purge of listed jobs, over all its chunks. Its caller is a webhook, not a
/// poll.
pub(super) const PURGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of keys that are ended at the same time.
pub(super) const REPLAY_BATCH: usize = 64;

/// A session that a write keeps, so that its end follows its begin on the same connection.
pub type SessionHandle = Arc<Session>;

/// The store on one Redis server.
pub struct Redis {
    shared: Arc<RedisState>,
    supervisor: JoinHandle<()>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("address", &self.shared.address)
            .field("up", &self.is_up())
            .finish_non_exhaustive()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Redis {
    /// Checks the URL and starts to connect in the background.
    pub(super) fn open(
        config: &config::Config,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Result<Self, StoreError> {
        let source = MasterSource::new(config, &metrics)?;
        let retry_queue = RetryQueue::open(config, Arc::clone(&metrics))?;
        let budget = config.store.budget;
        let tracking_metrics = Arc::clone(&metrics);
        Ok(Self::start(RedisState {
            source,
            address: config.store.url.to_string(),
            prefix: config.store.prefix.clone(),
            lease: config.store.lease,
            grace: config.store.reconnect_grace,
            records: Arc::new(SidecarRecords::new(config)),
            session: RwLock::default(),
            retry_queue,
            recently_confirmed: RecentlyConfirmed::default(),
            credential_key: initial_credential_key(config),
            has_secret: config.credentials.secret.is_some(),
            failed: Notify::new(),
            warnings: RedisWarnings::default(),
            tracked: watcher.map(|watcher| {
                TrackingState::new(watcher, budget, config.near.tracking, tracking_metrics, None)
            }),
            tasks,
            metrics,
            shard: None,
        }))
    }

    fn start(shared: RedisState) -> Self {
        let shared = Arc::new(shared);
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared)));
        Self { shared, supervisor }
    }

    /// Whether the tracking connection is up.
    pub(super) fn is_tracked(&self) -> bool {
        self.shared.tracked.as_ref().is_some_and(|tracked| tracked.barrier.is_up())
    }

    /// The current session.
    pub(super) fn session(&self) -> Result<SessionHandle, StoreError> {
        self.shared.session()
    }

    pub(super) fn trust(&self, key: &Key) -> Result<i64, StoreError> {
        if self.shared.retry_queue.pending.contains(key) {
            return Err(StoreError::Pending);
        }
        self.shared.with_session(|session| {
            if session.is_in_grace() { Err(StoreError::Grace) } else { Ok(session.now_ms()) }
        })?
    }

    /// Replaces the configuration that is recorded for other sidecars.
    pub(super) fn record(&self, record: SidecarRecord) {
        self.shared.records.replace(record);
    }

    /// Polls the read barrier. The tracking connection limits the wait, so the caller sets no
    /// timer.
    pub(super) fn poll_barrier(
        &self,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        let Some(tracked) = &self.shared.tracked else { return Poll::Ready(Err(BarrierDown)) };
        if !wait.has_begun() {
            if tracked.is_fresh(staleness) {
                return Poll::Ready(Ok(()));
            }
            wait.begin();
            tracked.count_wait();
        }
        tracked.barrier.poll_pass(&mut wait.ticket, cx)
    }

    pub(super) async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<(), StoreError> {
        let Some(tracked) = &self.shared.tracked else { return Err(StoreError::Down) };
        budget
            .spend(async { tracked.follow(key).await.map_err(|BarrierDown| StoreError::Down) })
            .await
    }

    pub(super) fn is_up(&self) -> bool {
        self.shared.session().is_ok()
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.shared.with_session(Session::now_ms).unwrap_or_else(|_| unix_ms(clock::now()))
    }

    pub(super) fn pending(&self) -> usize {
        self.shared.retry_queue.pending.len()
    }

    pub(super) fn journal_status(&self) -> Option<JournalStatus> {
        self.shared.retry_queue.journal_status()
    }

    pub(super) async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen, StoreError> {
        let session = self.shared.session()?;
        let result = budget.spend(session.read(key)).await;
        self.shared.judge(&session, result)
    }

    pub(super) async fn inspect(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<KeyState, StoreError> {
        let session = self.shared.session()?;
        budget.spend(session.inspect(key)).await
    }

    pub(super) async fn lease(
        &self,
        key: &Key,
        token: Token,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant, StoreError> {
        let session = self.shared.session()?;
        let hold = RedisLeaseHold {
            shared: Arc::clone(&self.shared),
            session: Arc::clone(&session),
            key: key.clone(),
            token,
            spent: false,
        };
        let result = budget.spend(session.lease(hold, self.shared.lease, refused)).await;
        self.shared.judge(&session, result)
    }

    pub(super) async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        let session = self.shared.session()?;
        let meta = if mutants::is(Mutant::EpochAtFill) {
            meta.replace(lease.epoch.as_str(), session.epoch().as_str()).into()
        } else if *session.epoch() == lease.epoch || mutants::is(Mutant::NoEpoch) {
            Cow::Borrowed(meta)
        } else {
            return Ok(Fill::Revoked);
        };
        let fill = session.fill(&lease, body, &meta, ttl, self.shared.lease);
        let result = Budget::new(DETACHED_TIMEOUT).spend(fill).await;
        if result.is_ok() {
            lease.hold.spend();
        }
        self.shared.judge(&session, result)
    }

    pub(super) async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        pair: &str,
    ) -> Result<Fill, StoreError> {
        let Some((session, stored)) = self.same_epoch(seen)? else { return Ok(Fill::Revoked) };
        let admission = session.admit(key, stored, generation, pair, seen.now_ms);
        let result = Budget::new(DETACHED_TIMEOUT).spend(admission).await;
        self.shared.judge(&session, result)
    }

    pub(super) async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill, StoreError> {
        let Some((session, stored)) = self.same_epoch(seen)? else { return Ok(Fill::Revoked) };
        let replacement = session.replace(key, stored, generation, new);
        let result = Budget::new(DETACHED_TIMEOUT).spend(replacement).await;
        self.shared.judge(&session, result)
    }

    /// Returns the session and the seen value if the session has the epoch in which the value was
    /// seen. A value of another epoch counts as gone, even if the server still holds an equal one.
    fn same_epoch<'s>(
        &self,
        seen: &'s Seen,
    ) -> Result<Option<(SessionHandle, &'s StoredValue)>, StoreError> {
        let session = self.shared.session()?;
        let same = *session.epoch() == seen.epoch;
        Ok(seen.stored.as_ref().filter(|_| same).map(|stored| (session, stored)))
    }

    pub(super) fn credential_key(&self) -> CredentialKey {
        self.shared.credential_key.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn release(&self, lease: Lease) {
        // Without a session the lease expires on its own.
        if let Ok(session) = self.shared.session() {
            session.release(&lease.key, &lease.token).await;
        }
        lease.hold.spend();
    }

    pub(super) async fn begin(
        &self,
        keys: &[Key],
        write: &Token,
        fence: Duration,
        budget: &mut Budget,
    ) -> (Begun, Result<(), StoreError>) {
        let session = match self.shared.session() {
            Ok(session) => session,
            Err(error) => return (Begun::Unconfirmed(None), Err(error)),
        };
        let calls = join_all(keys.iter().map(|key| session.begin(key, write, fence)));
        let all = async { calls.await.into_iter().collect::<Result<Vec<_>, _>>().map(drop) };
        let result = budget.spend(all).await;
        let result = self.shared.judge(&session, result);
        let begun = match result {
            Ok(()) => Begun::Confirmed(Some(session)),
            Err(_) => Begun::Unconfirmed(Some(session)),
        };
        (begun, result)
    }

    pub(super) async fn renew(&self, write: &Write) {
        if let Begun::Confirmed(Some(session)) = &write.begun {
            let calls = write.keys.iter().map(|key| session.begin(key, &write.id, write.fence));
            let _ = timeout(DETACHED_TIMEOUT, join_all(calls)).await;
        }
    }

    /// Ends a write. Keys that are not confirmed become pending.
    pub(super) async fn end(
        &self,
        write: &Write,
        linger: Duration,
        budget: &mut Budget,
    ) -> Result<Ended, StoreError> {
        let (held, end_again) = match &write.begun {
            Begun::Confirmed(session) => (session.as_ref(), false),
            // An unconfirmed begin may still be executed later and leave its fence.
            Begun::Unconfirmed(session) => (session.as_ref(), session.is_some()),
            Begun::Scattered => (None, true),
        };
        let held = held.filter(|session| !session.has_failed()).cloned();
        let mut outcome = BatchOutcome::default();
        match held.map_or_else(|| self.shared.session(), Ok) {
            Ok(session) => {
                let results = self.end_each(&session, &write.keys, &write.id, linger, budget).await;
                outcome.add_results(&write.keys, results);
            }
            Err(error) => outcome.add_failed(&write.keys, error),
        }
        self.shared.retry_queue.pending.relax(&write.keys, &write.id, linger);
        let unsure = if end_again { write.keys.iter().collect() } else { outcome.unconfirmed };
        self.shared.retry_queue.add(&unsure, &write.id, linger).await;
        outcome.ended
    }

    /// Ends the keys of a purge in chunks, so that many keys do not use up the time for the answer.
    /// Each chunk waits for at most `wait`. A chunk that fails for a reason other than a single key
    /// stops the purge; all keys that are not confirmed by then become pending.
    pub(super) async fn purge(
        &self,
        write: &Write,
        wait: Duration,
    ) -> (Result<Ended, StoreError>, Vec<Option<KeyReceipt>>) {
        let deadline = Instant::now() + PURGE_TIMEOUT;
        let mut outcome = BatchOutcome::default();
        let mut chunks = write.keys.chunks(REPLAY_BATCH);
        for chunk in chunks.by_ref() {
            match self.shared.session() {
                Ok(session) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let mut budget = Budget::new(wait.min(left));
                    let end =
                        self.end_each(&session, chunk, &write.id, Duration::ZERO, &mut budget);
                    outcome.add_results(chunk, end.await);
                }
                Err(error) => outcome.add_failed(chunk, error),
            }
            if outcome.is_hopeless() {
                break;
            }
        }
        outcome.unconfirmed.extend(chunks.flatten());
        outcome.receipts.resize(write.keys.len(), None);
        self.shared.retry_queue.add(&outcome.unconfirmed, &write.id, Duration::ZERO).await;
        (outcome.ended, outcome.receipts)
    }

    /// Ends keys concurrently. Each key has its own result, so that confirmed keys count even if
    /// others fail. For the health of the session all timeouts together count as one.
    async fn end_each(
        &self,
        session: &Session,
        keys: &[Key],
        write: &Token,
        linger: Duration,
        budget: &mut Budget,
    ) -> Vec<Result<KeyReceipt, StoreError>> {
        let results = budget.spend_each(keys.iter().map(|key| session.end(key, write, linger)));
        let mut results = results.await;
        for (key, result) in keys.iter().zip(&mut results) {
            if result.is_ok()
                && let Err(error) = self.shared.note_confirmed(session, key)
            {
                *result = Err(error);
            }
            if !matches!(result, Err(StoreError::Timeout)) {
                self.shared.conclude(session, result);
            }
        }
        if let Some(timeout) =
            results.iter().find(|result| matches!(result, Err(StoreError::Timeout)))
        {
            self.shared.conclude(session, timeout);
        }
        results
    }

    pub(super) async fn purge_all(&self) -> Ended {
        // Every key is bypassed from here on, until this same purge has been confirmed.
        let sweep = self.shared.retry_queue.pending.add_all().await;
        let ended = match self.shared.session() {
            Ok(session) => self.shared.purge_all(&session, &sweep).await,
            Err(_) => Ended::Pending,
        };
        if ended == Ended::Pending {
            self.shared.retry_queue.wake();
        }
        self.shared.retry_queue.update_gauge();
        ended
    }

    pub(super) async fn close(&self, deadline: Duration) {
        self.supervisor.abort();
        if self.shared.retry_queue.pending.is_empty() {
            return;
        }
        let last_try = async {
            let session = match self.shared.session() {
                Ok(session) => session,
                Err(_) => self.shared.connect().await?,
            };
            self.shared.retry_queue.pending.make_all_due();
            self.shared.replay(&session).await;
            Ok::<_, StoreError>(())
        };
        let _ = timeout(deadline, last_try).await;
        self.shared.retry_queue.log_remaining();
    }
}

/// Connects as a session would, reads the records of other sidecars, and disconnects.
pub(super) async fn probe(config: &config::Config) -> Result<Vec<RecordMismatch>, StoreError> {
    let source = MasterSource::new(config, &Arc::default())?;
    let records = connect_master(&source).await?.records(&config.store.prefix).await;
    let ours = SidecarRecord::of(config);
    Ok(records.iter().filter_map(|record| ours.mismatch(record)).collect())
}

/// Releases a lease if it is dropped before it is spent. It is created before the lease is
/// requested: a request that times out, or is dropped because its client hung up, must not block
/// all fills of the job until the lease expires.
pub struct RedisLeaseHold {
    shared: Arc<RedisState>,
    session: SessionHandle,
    key: Key,
    token: Token,
    spent: bool,
}

impl fmt::Debug for RedisLeaseHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLeaseHold")
            .field("key", &self.key)
            .field("token", &self.token)
            .field("spent", &self.spent)
            .finish_non_exhaustive()
    }
}

impl RedisLeaseHold {
    /// Disarms the release: the lease was not granted, or has ended.
    pub(super) fn spend(mut self) {
        self.spent = true;
    }
}

impl Drop for RedisLeaseHold {
    fn drop(&mut self) {
        // Without a runtime the process is about to end, and the lease expires on its own.
        let Ok(runtime) = Handle::try_current() else { return };
        if self.spent {
            return;
        }
        // Prefers the connection of the lease request, so that the release is executed after it.
        let session = Some(Arc::clone(&self.session)).filter(|session| !session.has_failed());
        let Some(session) = session.or_else(|| self.shared.session().ok()) else { return };
        let (key, token) = (self.key.clone(), self.token.clone());
        self.shared.metrics.events.expect_own_change(key.main());
        let release = async move { session.release(&key, &token).await };
        self.shared.tasks.spawn_on(release, &runtime);
    }
}

/// The fingerprint key until the store provides the one that all sidecars share.
pub(super) fn initial_credential_key(config: &config::Config) -> Arc<RwLock<CredentialKey>> {
    let secret = config.credentials.secret.as_ref();
    Arc::new(RwLock::new(
        secret.map_or_else(CredentialKey::random, |secret| CredentialKey::derived(secret.expose())),
    ))
}

#[allow(clippy::needless_pass_by_value, reason = "it is passed to `map_err`")]
fn refused(error: RedisError) -> StoreError {
    StoreError::Refused(error.to_string())
}
