//! One server, and the operations on the keys that it owns.
//!
//! One task, the supervisor, owns the connection. It connects, checks version and role, and
//! publishes the session. This is the whole circuit breaker: closed while a session is published,
//! open while there is none, and half-open while the supervisor connects. A session ends at the
//! first broken connection, after several timeouts in a row, or when the server is no longer the
//! master it was, as reported by itself, by sentinels or by the other nodes of its cluster. The next
//! session has the same epoch only if it is with the same server process, replication history and
//! term. `master_source` finds the master, and `dial` connects to it.
//!
//! A shard does not retry the operation of a request: the request has a budget, and an upstream to
//! fall back to.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use redis::{Cmd, FromRedisValue};
use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    dial::ClusterReplies,
    master_source::MasterSource,
    server_info::SlotClaim,
    session::Session,
    state::{SessionHandle, ShardState, StoreContext},
    supervisor::{connect_once, supervise},
};
use crate::{
    mutants::{self, Mutant},
    store::{
        barrier::{BarrierDown, BarrierWait},
        errors::{Budget, DETACHED_TIMEOUT, StoreError},
        near::Watcher,
        slots::{OwnedSlots, SlotSet},
        words::{
            Fill, Grant, Key, KeyState, Lease, LeaseGuard, Replacement, Seen, StoredValue, Token,
        },
        write::KeyReceipt,
    },
};

/// One server that owns some of the keys, or all.
pub(in crate::store) struct Shard {
    /// Never used twice: a node that comes back is another shard.
    pub(super) number: u64,
    state: Arc<ShardState>,
    supervisor: JoinHandle<()>,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("address", &self.state.address)
            .field("up", &self.is_up())
            .finish_non_exhaustive()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Shard {
    /// Starts to connect in the background. The `watcher` learns of changes on this server.
    pub(super) fn start(
        number: u64,
        context: &Arc<StoreContext>,
        source: MasterSource,
        address: String,
        slots: Arc<OwnedSlots>,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Self {
        let context = Arc::clone(context);
        let state = Arc::new(ShardState::new(context, source, address, slots, watcher));
        let supervisor = tokio::spawn(supervise(Arc::clone(&state)));
        Self { number, state, supervisor }
    }

    /// For the log, without user and password.
    pub(super) fn address(&self) -> &str {
        &self.state.address
    }

    /// The slots that it owns.
    pub(super) fn slots(&self) -> &OwnedSlots {
        &self.state.slots
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.with_session(|_| ()).is_ok()
    }

    /// Whether the tracking connection is up.
    pub(super) fn is_tracked(&self) -> bool {
        self.state.tracked.as_ref().is_some_and(|tracked| tracked.barrier.is_up())
    }

    /// The current session.
    pub(super) fn session(&self) -> Result<SessionHandle, StoreError> {
        self.state.session()
    }

    /// The time by the server's clock, if its epoch is not too new for hits.
    pub(super) fn trust(&self) -> Result<i64, StoreError> {
        self.state.with_session(|session| {
            if session.is_in_grace() { Err(StoreError::Grace) } else { Ok(session.now_ms()) }
        })?
    }

    /// The time by the server's clock; `None` while it is down.
    pub(super) fn now_ms(&self) -> Option<i64> {
        self.state.with_session(Session::now_ms).ok()
    }

    /// Polls the read barrier. The tracking connection limits the wait, so the caller sets no
    /// timer.
    pub(super) fn poll_barrier(
        &self,
        staleness: Duration,
        wait: &mut BarrierWait,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BarrierDown>> {
        let Some(tracked) = &self.state.tracked else { return Poll::Ready(Err(BarrierDown)) };
        if !wait.has_begun() {
            if tracked.is_fresh(staleness) {
                return Poll::Ready(Ok(()));
            }
            wait.begin();
            tracked.count_wait();
        }
        tracked.barrier.poll_pass(&mut wait.ticket, cx)
    }

    pub(in crate::store) async fn follow(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<(), StoreError> {
        let Some(tracked) = &self.state.tracked else { return Err(StoreError::Down) };
        budget
            .spend(async { tracked.follow(key).await.map_err(|BarrierDown| StoreError::Down) })
            .await
    }

    pub(in crate::store) async fn read(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<Seen, StoreError> {
        let session = self.state.session()?;
        let result = budget.spend(session.read(key)).await;
        self.state.judge(&session, result)
    }

    pub(in crate::store) async fn inspect(
        &self,
        key: &Key,
        budget: &mut Budget,
    ) -> Result<KeyState, StoreError> {
        let session = self.state.session()?;
        budget.spend(session.inspect(key)).await
    }

    pub(in crate::store) async fn lease(
        &self,
        key: &Key,
        token: Token,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant, StoreError> {
        let session = self.state.session()?;
        let hold = self.lease_guard(&session, key, &token);
        let lease = self.state.context.config.lease;
        let result = budget.spend(session.lease((key.clone(), token, hold), lease, refused)).await;
        self.state.judge(&session, result)
    }

    /// Releases the lease in the background if it is dropped before it is spent.
    fn lease_guard(&self, session: &SessionHandle, key: &Key, token: &Token) -> LeaseGuard {
        let (state, session) = (Arc::clone(&self.state), Arc::clone(session));
        let (key, token) = (key.clone(), token.clone());
        LeaseGuard::new(move || {
            // Without a runtime the process is about to end, and the lease expires on its own.
            let Ok(runtime) = Handle::try_current() else { return };
            // Prefers the connection of the lease request, so that the release is executed after
            // it.
            let session = Some(session).filter(|session| !session.has_failed());
            let Some(session) = session.or_else(|| state.session().ok()) else { return };
            state.context.events.expect_own_change(key.main());
            let release = async move { session.release(&key, &token).await };
            state.context.tasks.spawn_on(release, &runtime);
        })
    }

    /// If this is not the master that granted the lease, or that master has lost the slot and taken
    /// it back, the epoch differs and the fill is refused.
    pub(in crate::store) async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill, StoreError> {
        let session = self.state.session()?;
        let meta = if mutants::is(Mutant::EpochAtFill) {
            meta.replace(lease.epoch.as_str(), session.epoch().as_str()).into()
        } else if *session.epoch() == lease.epoch || mutants::is(Mutant::NoEpoch) {
            Cow::Borrowed(meta)
        } else {
            return Ok(Fill::Revoked);
        };
        let fill = session.fill(&lease, body, &meta, ttl, self.state.context.config.lease);
        let result = Budget::new(DETACHED_TIMEOUT).spend(fill).await;
        if result.is_ok() {
            lease.hold.spend();
        }
        self.state.judge(&session, result)
    }

    pub(in crate::store) async fn admit(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        pair: &str,
    ) -> Result<Fill, StoreError> {
        let Some((session, stored)) = self.same_epoch(seen)? else { return Ok(Fill::Revoked) };
        let admission = session.admit(key, stored, generation, pair, seen.now_ms);
        let result = Budget::new(DETACHED_TIMEOUT).spend(admission).await;
        self.state.judge(&session, result)
    }

    pub(in crate::store) async fn replace(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        new: Replacement<'_>,
    ) -> Result<Fill, StoreError> {
        let Some((session, stored)) = self.same_epoch(seen)? else { return Ok(Fill::Revoked) };
        let replacement = session.replace(key, stored, generation, new);
        let result = Budget::new(DETACHED_TIMEOUT).spend(replacement).await;
        self.state.judge(&session, result)
    }

    /// Returns the session and the seen value if the session has the epoch in which the value was
    /// seen. A value of another epoch counts as gone, even if the server still holds an equal one.
    fn same_epoch<'s>(
        &self,
        seen: &'s Seen,
    ) -> Result<Option<(SessionHandle, &'s StoredValue)>, StoreError> {
        let session = self.state.session()?;
        let same = *session.epoch() == seen.epoch;
        Ok(seen.stored.as_ref().filter(|_| same).map(|stored| (session, stored)))
    }

    pub(in crate::store) async fn release(&self, lease: Lease) {
        // Without a session the lease expires on its own.
        if let Ok(session) = self.state.session() {
            session.release(&lease.key, &lease.token).await;
        }
        lease.hold.spend();
    }

    /// Fences one key.
    pub(super) async fn begin_key(
        &self,
        key: &Key,
        write: &Token,
        fence: Duration,
    ) -> Result<(), StoreError> {
        let session = self.state.session()?;
        let result = session.begin(key, write, fence).await;
        self.state.judge(&session, result)
    }

    /// Ends the write of one key.
    pub(super) async fn end_key(
        &self,
        key: &Key,
        write: &Token,
        linger: Duration,
    ) -> Result<KeyReceipt, StoreError> {
        let session = self.state.session()?;
        let mut result = session.end(key, write, linger).await;
        // After a failover this may still be the deposed master, so the session must have outlived
        // the call.
        if result.is_ok()
            && let Err(error) = self.state.note_confirmed(&session, key)
        {
            result = Err(error);
        }
        self.state.judge(&session, result)
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let session = self.state.session()?;
        let result = session.query(command).await;
        self.state.judge(&session, result)
    }

    /// Runs one command on a key in a slot that is migrating to this master.
    pub(super) async fn asking<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, StoreError> {
        let session = self.state.session()?;
        let result = session.asking(command).await;
        self.state.judge(&session, result)
    }

    /// The master's view of the cluster.
    pub(super) async fn cluster_replies(&self) -> Result<ClusterReplies, StoreError> {
        self.state.session()?.cluster_replies().await
    }

    /// Records an invalidation that was confirmed here, or at a node to which this master
    /// redirected us.
    pub(super) fn note_confirmed(&self, key: &Key) -> Result<(), StoreError> {
        self.state.note_confirmed(&*self.state.session()?, key)
    }

    /// Records that all entries of some slots were purged here.
    pub(super) fn note_purged(&self, session: &Session, slots: &SlotSet) -> Result<(), StoreError> {
        self.state.note_purged(session, slots)
    }

    /// Counts operations that did not finish in time as one against the session.
    pub(super) fn note_timeout(&self) {
        if let Ok(session) = self.state.session() {
            self.state.conclude::<()>(&session, &Err(StoreError::Timeout));
        }
    }

    /// Records the config epoch in which other nodes say that the master claims its slots. A
    /// session that was opened under a lower epoch ends.
    pub(super) fn raise_claimed_epoch(&self, epoch: u64) {
        self.state.source.raise_claim(epoch);
        // A lower epoch than the master's own is only outdated.
        if let Ok(session) = self.state.session()
            && SlotClaim::config_epoch_of(session.epoch()).is_some_and(|held| held < epoch)
        {
            session.fail();
            self.state.failed.notify_one();
        }
    }

    /// Ends the session, and makes its recently confirmed invalidations pending again.
    pub(super) async fn requeue_recent(&self) {
        // First: a confirmation after `requeue_recent` would be missed.
        if let Ok(session) = self.state.session() {
            session.fail();
        }
        self.state.requeue_recent().await;
    }

    /// Connects a last time if there is no session: the process is about to stop.
    pub(super) async fn connect_once(&self) {
        self.supervisor.abort();
        // Without a session, what is pending is logged.
        let _ = connect_once(&self.state).await;
    }
}
