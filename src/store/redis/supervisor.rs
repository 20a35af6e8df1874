//! The supervisor: connects, repeats pending invalidations, and publishes a session while a master
//! is available.

use std::{
    convert::Infallible,
    future,
    sync::{Arc, PoisonError, RwLock},
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{
    DETACHED_TIMEOUT, REPLAY_BATCH, SessionHandle,
    dial::{RedisConnection, Target},
    master_source::{MasterSource, Term},
    recently_confirmed::RecentlyConfirmed,
    record_keeper,
    server_info::{ServerInfo, SlotClaim},
    session::{Membership, Session, SessionEffect, classify, clock_ahead_ms, credential_key_name},
    shard_context::{self, ShardContext},
    tracking::{TrackingState, track},
};
use crate::{
    clock,
    observe::{metrics::Metrics, throttle::Throttle},
    store::{
        CredentialKey, Ended, Epoch, Key, Redirect, StoreError, Token,
        cluster::SlotSet,
        pending::{PendingItem, PurgeAllTask},
        retry_queue::RetryQueue,
        sidecar_record::SidecarRecords,
        unix_ms,
    },
};

/// Interval between two probes of the server's role.
pub(super) const PROBE_EVERY: Duration = Duration::from_millis(400);
/// First and longest pause between two attempts to connect; doubles each time.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));
/// Time limit for all SCANs of one purge of all.
pub(in crate::store) const PURGE_ALL_TIMEOUT: Duration = Duration::from_secs(30);

/// State shared by the supervisor and the users of the store.
pub(super) struct RedisState {
    pub(super) source: MasterSource,
    /// For the log, without user and password.
    pub(super) address: String,
    pub(super) prefix: String,
    pub(super) lease: Duration,
    /// Time for which a new epoch has no hits.
    pub(super) grace: Duration,
    pub(super) records: Arc<SidecarRecords>,
    pub(super) session: RwLock<Option<SessionHandle>>,
    pub(super) retry_queue: Arc<RetryQueue>,
    /// Invalidations that the session has recently confirmed.
    pub(super) recently_confirmed: RecentlyConfirmed,
    /// Derived from the configured secret, or else the key that the server stores for all sidecars.
    pub(super) credential_key: Arc<RwLock<CredentialKey>>,
    pub(super) has_secret: bool,
    /// Notified when a session fails.
    pub(super) failed: Notify,
    pub(super) warnings: RedisWarnings,
    /// Tracking for the entries in this process, if they are enabled.
    pub(super) tracked: Option<TrackingState>,
    /// Lease releases that nothing waits for.
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<Metrics>,
    /// Set if the server is one master of a cluster.
    pub(super) shard: Option<ShardContext>,
}

/// Throttles for warnings that could otherwise come with every request or round.
#[derive(Debug, Default)]
pub(super) struct RedisWarnings {
    pub(super) connect: Throttle,
    pub(super) tracking: Throttle,
    key: Throttle,
    eviction: Throttle,
}

/// Keeps a session published while a master is available.
pub(super) async fn supervise(shared: Arc<RedisState>) {
    let _guard = SupervisorGuard(Arc::clone(&shared));
    let mut backoff = BACKOFF.0;
    let mut first_pause = Duration::ZERO;
    loop {
        let session = shared.reconnect(first_pause, &mut backoff).await;
        let error = shared.serve(&session, &mut backoff).await;
        // Before `requeue_recent`: from here on no invalidation counts as confirmed, so it misses
        // none.
        session.fail();
        shared.retract(&error);
        shared.requeue_recent().await;
        warn!(store = shared.address, %error, "store is down; all requests go to the upstream");
        first_pause = backoff;
    }
}

/// A connection to a server that is a master and has a supported version.
pub(super) struct VerifiedMaster {
    connection: RedisConnection,
    target: Target,
    info: ServerInfo,
    /// The server's clock minus ours, in ms.
    clock_ahead_ms: i64,
    term: Option<Term>,
}

impl VerifiedMaster {
    /// Returns the records of the sidecars; none if they cannot be read.
    pub(super) async fn records(mut self, prefix: &str) -> Vec<String> {
        let now_ms = unix_ms(clock::now()) + self.clock_ahead_ms;
        let read = record_keeper::live_records(prefix, now_ms);
        let records = timeout(DETACHED_TIMEOUT, read.query_async(&mut self.connection.requests));
        records.await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

/// Connects to the master and checks it.
pub(super) async fn connect_master(source: &MasterSource) -> Result<VerifiedMaster, StoreError> {
    let target = source.target().await?;
    let open = async {
        let mut connection = target.connect().await?;
        let sent = clock::now();
        let commands = redis::pipe().cmd("INFO").cmd("TIME").to_owned();
        let (info, time): (String, (i64, i64)) =
            match commands.query_async(&mut connection.requests).await {
                Ok(reply) => reply,
                Err(error) => return Err(target.explain_first_error(&error).await),
            };
        Ok((connection, info, clock_ahead_ms(time, sent)))
    };
    let opened = timeout(DETACHED_TIMEOUT, open).await;
    let (connection, info, clock_ahead_ms) = opened.unwrap_or(Err(StoreError::Timeout))?;
    let info = ServerInfo::parse(&info);
    info.check()?;
    // The server may have hung until now, and may have been deposed meanwhile.
    let reign = source.confirm(&target).await?;
    Ok(VerifiedMaster { connection, target, info, clock_ahead_ms, term: reign })
}

/// Withdraws the session if the supervisor panics, because nothing would watch it any more.
struct SupervisorGuard(Arc<RedisState>);

impl Drop for SupervisorGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.retract(&StoreError::Unusable("the store supervisor has panicked".into()));
        }
    }
}

impl RedisState {
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

    fn publish(&self, session: SessionHandle) {
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self.report_up(true);
    }

    /// Reports whether the server is trusted. In a cluster, `Cluster` reports it.
    fn report_up(&self, up: bool) {
        if let Some(shard) = &self.shard {
            return shard.state_changed.notify_one();
        }
        self.metrics.set_store_up(up);
        if up {
            self.metrics.breaker.close();
        }
    }

    /// Withdraws the published session, if there is one.
    fn retract(&self, error: &StoreError) {
        let published = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        if published.is_some() {
            self.metrics.breaker.open(error);
        }
        self.report_up(false);
    }

    /// Connects to the master and opens a session.
    pub(super) async fn connect(&self) -> Result<SessionHandle, StoreError> {
        self.open_session(self.dial().await?).await
    }

    /// Connects to the master, and takes its epoch. Has no effect if it is cancelled.
    pub(super) async fn dial(&self) -> Result<(VerifiedMaster, Epoch), StoreError> {
        let mut master = connect_master(&self.source).await?;
        let epoch = self.epoch(&mut master.connection, &master.info, master.term).await?;
        Ok((master, epoch))
    }

    /// Opens a session with a master.
    pub(super) async fn open_session(
        &self,
        (master, epoch): (VerifiedMaster, Epoch),
    ) -> Result<SessionHandle, StoreError> {
        let VerifiedMaster { mut connection, target, info, clock_ahead_ms, term } = master;
        if let Some(policy) = info.evicting_policy() {
            self.warn_of_eviction(policy);
        }
        if self.source.take_behind() {
            self.retry_queue.pending.add_all().await;
        }
        let grace_end = self.grace_end(&mut connection.requests, &info, &epoch).await;
        let reached = (target, term, self.membership());
        let session = Session::new(connection, reached, epoch, clock_ahead_ms, grace_end);
        if !self.has_secret && self.keeps_shared_keys() {
            self.share_credential_key(&session).await?;
        }
        Ok(Arc::new(session))
    }

    /// The epoch of the data on this server. A master of a cluster counts only if another node
    /// confirms it.
    async fn epoch(
        &self,
        connection: &mut RedisConnection,
        info: &ServerInfo,
        term: Option<Term>,
    ) -> Result<Epoch, StoreError> {
        let server = info.epoch();
        let Some(shard) = &self.shard else {
            return Ok(term.map_or_else(|| server.clone(), |term| term.epoch(&server)));
        };
        let mut command = redis::cmd("CLUSTER");
        let claim = command.arg("INFO").query_async::<String>(&mut connection.requests);
        let claim = timeout(DETACHED_TIMEOUT, claim).await.map_err(|_| StoreError::Timeout)?;
        let claim = SlotClaim::parse(&claim.map_err(|error| classify(&error))?)?;
        shard.confirm(&claim).await?;
        Ok(shard_context::epoch(&server, &claim))
    }

    fn membership(&self) -> Membership {
        if self.shard.is_some() { Membership::Master } else { Membership::None }
    }

    /// Whether the keys that all sidecars share, apart from those of jobs, are on this server.
    pub(super) fn keeps_shared_keys(&self) -> bool {
        let name = credential_key_name(&self.prefix);
        self.shard.as_ref().is_none_or(|shard| shard.slots.contains_name(name.as_bytes()))
    }

    /// Fetches the fingerprint key that all sidecars share. If the server refuses, this sidecar
    /// keeps its own key: its callers then get entries of other sidecars only after the upstream
    /// has accepted them.
    async fn share_credential_key(&self, session: &Session) -> Result<(), StoreError> {
        match session.credential_key(&self.prefix).await {
            Ok(key) => {
                let mut ours = self.credential_key.write().unwrap_or_else(PoisonError::into_inner);
                *ours = key;
                Ok(())
            }
            // `ASK` means that the slot is migrating and lacks the key; the next session tries
            // again.
            Err(error @ (StoreError::Refused(_) | StoreError::Redirected(Redirect::Ask(_)))) => {
                if let Some(suppressed) = self.warnings.key.admit(&error.to_string()) {
                    warn!(%error, suppressed, "cannot share the fingerprint key");
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn warn_of_eviction(&self, policy: &str) {
        if let Some(suppressed) = self.warnings.eviction.admit(policy) {
            warn!(
                policy,
                suppressed,
                "this Redis may evict the fence of a write; set maxmemory-policy noeviction"
            );
        }
    }

    /// Repeats pending invalidations, then publishes the session. Returns the reason when the
    /// session can no longer be trusted. The role is probed all the time: a long replay must not
    /// extend the trust in a deposed master.
    async fn serve(&self, session: &SessionHandle, backoff: &mut Duration) -> StoreError {
        let replay = async {
            if self.shard.is_none() {
                self.retry_queue.pending.make_all_due();
                self.replay(session).await;
            }
            info!(epoch = session.epoch().as_str(), "store is up");
            self.publish(Arc::clone(session));
            *backoff = BACKOFF.0;
            match &self.shard {
                None => self.keep_replaying(session).await,
                Some(_) => future::pending().await,
            }
        };
        tokio::select! {
            error = self.watch(session) => error,
            error = self.source.moved(session.target(), session.term()) => {
                session.fail();
                error
            }
            never = replay => match never {},
            never = self.keep_record(session) => match never {},
            never = self.end_grace(session) => match never {},
            never = self.track(session) => match never {},
        }
    }

    /// Runs the tracking connection for as long as the session lasts: in another epoch its messages
    /// are not about our entries.
    async fn track(&self, session: &Session) -> Infallible {
        match &self.tracked {
            Some(tracked) => track(self, session, tracked).await,
            None => future::pending().await,
        }
    }

    /// Returns the reason when the session can no longer be trusted.
    async fn watch(&self, session: &Session) -> StoreError {
        loop {
            tokio::select! {
                _ = timeout(self.probe_interval(), self.failed.notified()) => {}
                () = session.closed() => {
                    return StoreError::Lost("the server closed the connection".into());
                }
            }
            if session.has_failed() {
                return StoreError::Unusable("too many operations failed".into());
            }
            if let Err(error) = session.probe().await {
                session.fail();
                return error;
            }
        }
    }

    async fn keep_replaying(&self, session: &Session) -> Infallible {
        loop {
            self.retry_queue.due().await;
            self.replay(session).await;
        }
    }

    /// Repeats the invalidations that are due. Failed ones are postponed, so the loop ends.
    pub(super) async fn replay(&self, session: &Session) {
        if let Some(sweep) = self.retry_queue.pending.due_purge_all() {
            self.purge_all(session, &sweep).await;
        }
        loop {
            let batch = self.retry_queue.pending.batch(REPLAY_BATCH);
            if batch.is_empty() {
                break;
            }
            join_all(batch.iter().map(|item| self.replay_one(session, item))).await;
            self.retry_queue.update_gauge();
        }
        self.retry_queue.update_gauge();
    }

    async fn replay_one(&self, session: &Session, item: &PendingItem) {
        self.metrics.events.expect_own_change(item.key.main());
        let end = timeout(DETACHED_TIMEOUT, session.end(&item.key, &item.write, item.linger));
        let mut ended = end.await.unwrap_or(Err(StoreError::Timeout));
        // After a failover this may still be the deposed master, so the session must have outlived
        // the call.
        if ended.is_ok()
            && let Err(error) = self.note_confirmed(session, &item.key)
        {
            ended = Err(error);
        }
        self.retry_queue.record(item, ended);
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
        let recent = self.recently_confirmed.take(Instant::now().into_std());
        if let Some(slots) = recent.slots {
            self.retry_queue.pending.add_slots(*slots).await;
            self.retry_queue.wake();
        }
        // The token of no write: the fence of a write may linger, and must not be lifted here.
        let no_write = Token::named("doubt");
        let keys: Vec<_> = recent.keys.iter().collect();
        self.retry_queue.add(&keys, &no_write, Duration::ZERO).await;
    }

    pub(super) async fn purge_all(&self, session: &Session, sweep: &PurgeAllTask) -> Ended {
        self.metrics.events.expect_own_purge_all();
        let purge = timeout(PURGE_ALL_TIMEOUT, session.delete_all(&self.prefix)).await;
        self.metrics.events.end_own_purge_all();
        let mut purged = purge.unwrap_or(Err(StoreError::Timeout));
        if purged.is_ok()
            && let Err(error) = self.note_purged(session, &sweep.slots)
        {
            purged = Err(error);
        }
        self.retry_queue.record_purge_all(sweep, purged)
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
        if let (Some(shard), Err(StoreError::Redirected(redirect))) = (&self.shard, result) {
            shard.observe(redirect);
        }
        if session.judge(result) == SessionEffect::End {
            self.failed.notify_one();
        }
    }
}
