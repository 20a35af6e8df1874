//! One server, and the operations on the keys that it owns.
//!
//! One task, the supervisor, owns the connection. It connects, checks version and role, and
//! publishes the session. This is the whole circuit breaker: closed while a session is published,
//! open while there is none, and half-open while the supervisor connects. A session ends at the
//! first broken connection, after several timeouts in a row (unless a probe shows that the server is
//! only far away, `distance.rs`), or when the server is no longer the master it was, as reported by
//! itself, by sentinels or by the other nodes of its cluster. The
//! next session has the same epoch only if it is with the same server process, replication history
//! and term. `master_source` finds the master, and `dial` connects to it.
//!
//! A shard does not retry the operation of a request: the request has a budget, and an upstream to
//! fall back to.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use redis::{Cmd, FromRedisValue};
use tokio::{runtime::Handle, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    dial::ClusterReplies,
    large_values,
    master_source::MasterSource,
    state::{SessionHandle, ShardState},
    supervisor::{connect_once, supervise},
};
use crate::{
    mutants::{self, Mutant},
    store::{
        BarrierWait, Budget, EntryChange, FarStore, Fill, Grant, Key, KeyReceipt, KeyState, Lease,
        Seen, StoreError, StoredValue, Token,
        barrier::BarrierDown,
        errors::Result,
        words::LeaseGuard,
        write::{KeyOp, WriteStep},
    },
};

/// One server that owns some of the keys, or all.
pub(crate) struct Shard {
    /// Never used twice: a node that comes back is another shard.
    pub(super) number: u64,
    pub(super) state: Arc<ShardState>,
    supervisor: AbortOnDropHandle<()>,
}

impl Shard {
    /// Starts to connect in the background.
    pub(super) fn start(number: u64, state: ShardState) -> Self {
        let state = Arc::new(state);
        let supervisor = AbortOnDropHandle::new(tokio::spawn(supervise(Arc::clone(&state))));
        Self { number, state, supervisor }
    }

    pub(super) fn is_up(&self) -> bool {
        self.state.with_session(|_| ()).is_ok()
    }

    /// Whether reads pass because the server is too far away.
    pub(super) fn is_far(&self) -> bool {
        self.state.with_session(|session| session.health.distance.is_far()).unwrap_or(false)
    }

    /// How far away the server is, if that is too far.
    pub(super) fn far(&self) -> Option<FarStore> {
        let budget = self.state.context.config.budget;
        self.state.with_session(|session| session.health.distance.far(budget)).ok().flatten()
    }

    /// Whether the tracking connection is up.
    pub(super) fn is_tracked(&self) -> bool {
        self.state.tracked.as_ref().is_some_and(|tracked| tracked.barrier.is_up())
    }

    /// The time by the server's clock, if it is near and its epoch is not too new for hits.
    pub(super) fn trust(&self) -> Result<i64> {
        self.state.with_session(|session| {
            if session.health.distance.is_far() {
                Err(StoreError::Far)
            } else if session.is_in_grace() {
                Err(StoreError::Grace)
            } else {
                Ok(session.now_ms())
            }
        })?
    }

    /// The time by the server's clock; `None` while it is down.
    pub(super) fn now_ms(&self) -> Option<i64> {
        self.state.with_session(|session| session.now_ms()).ok()
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
        if wait.began.is_none() {
            if tracked.is_fresh(staleness) {
                return Poll::Ready(Ok(()));
            }
            wait.began = Some(Instant::now());
            tracked.metrics().waits.inc();
        }
        tracked.barrier.poll_pass(wait, cx)
    }

    pub(crate) async fn follow(&self, key: &Key, budget: &mut Budget) -> Result<()> {
        let Some(tracked) = &self.state.tracked else { return Err(StoreError::Down) };
        let followed = async { tracked.follow(key).await.map_err(|BarrierDown| StoreError::Down) };
        budget.spend(followed).await
    }

    pub(crate) async fn read(&self, key: &Key, budget: &mut Budget) -> Result<Seen> {
        let session = self.state.session()?;
        self.state.judge(&session, large_values::read(&self.state, &session, key, budget).await)
    }

    pub(crate) async fn inspect(&self, key: &Key, budget: &mut Budget) -> Result<KeyState> {
        let session = self.state.session()?;
        budget.spend(session.inspect(key)).await
    }

    /// Whether the server has evicted keys since it began to count.
    pub(crate) async fn has_evicted(&self, budget: &mut Budget) -> Result<bool> {
        let session = self.state.session()?;
        budget.spend(session.has_evicted()).await
    }

    pub(crate) async fn lease(
        &self,
        key: &Key,
        token: &Token,
        refused: Option<&StoredValue>,
        budget: &mut Budget,
    ) -> Result<Grant> {
        let session = self.state.session()?;
        let held = (key.clone(), token.clone(), self.lease_guard(&session, key, token));
        let lease = session.lease(held, self.state.context.config.lease, refused);
        let began = Instant::now();
        let grant = budget.spend(lease).await;
        self.state.judge(&session, session.explain(began, grant))
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
    pub(crate) async fn fill(
        &self,
        lease: Lease,
        body: &Bytes,
        meta: &str,
        ttl: Duration,
    ) -> Result<Fill> {
        let session = self.state.session()?;
        let meta = if mutants::is(Mutant::EpochAtFill) {
            meta.replace(lease.epoch.server(), session.epoch.as_str()).into()
        } else if session.epoch.as_str() == lease.epoch.server() || mutants::is(Mutant::NoEpoch) {
            Cow::Borrowed(meta)
        } else {
            return Ok(Fill::Revoked);
        };
        let lease_time = self.state.context.config.lease;
        let fill = |lane| session.fill(lane, &lease, body, &meta, ttl, lease_time);
        let value = (&lease.key, body.len());
        let result = large_values::store(&self.state, &session, value, fill).await;
        if result.is_ok() {
            lease.hold.spend();
        }
        self.state.judge(&session, result)
    }

    /// A value of another epoch counts as gone, even if the server still holds an equal one.
    pub(crate) async fn change(
        &self,
        key: &Key,
        seen: &Seen,
        generation: &str,
        change: EntryChange<'_>,
    ) -> Result<Fill> {
        let session = self.state.session()?;
        let is_same = session.epoch.as_str() == seen.epoch.server();
        let stored = seen.stored.as_ref().filter(|_| is_same);
        let Some(stored) = stored else { return Ok(Fill::Revoked) };
        let size = match change {
            EntryChange::Admit(_) => 0,
            EntryChange::Replace { body, .. } => body.len(),
        };
        let changed = |lane| session.change(lane, key, stored, generation, seen.now_ms, change);
        let changed = large_values::store(&self.state, &session, (key, size), changed).await;
        self.state.judge(&session, changed)
    }

    pub(crate) async fn release(&self, lease: Lease) {
        // Without a session the lease expires on its own.
        if let Ok(session) = self.state.session() {
            session.release(&lease.key, &lease.token).await;
        }
        lease.hold.spend();
    }

    /// Takes steps of a write in one round trip. The result is `None` where a step has to be taken by
    /// itself.
    pub(super) async fn run_all(
        &self,
        ops: &[KeyOp<'_>],
    ) -> Result<Vec<Option<Result<KeyReceipt>>>> {
        let session = self.state.session()?;
        let results = session.run_all(ops).await;
        let mut results = self.state.judge(&session, results)?;
        let is_done = |result: &Option<Result<_>>| matches!(result, Some(Ok(_)));
        if ops.iter().any(|op| op.step == WriteStep::End) {
            let ended = ops.iter().zip(&results).filter(|(_, result)| is_done(result));
            if self.state.note_confirmed(&session, ended.map(|(op, _)| op.key)).is_err() {
                let done = results.iter_mut().filter(|result| is_done(result));
                done.for_each(|result| {
                    *result = Some(session.check_alive().map(|()| KeyReceipt::default()));
                });
            }
        }
        let judged = |result: Option<Result<_>>| Some(self.state.judge(&session, result?));
        Ok(results.into_iter().map(judged).collect())
    }

    /// Takes one step of a write.
    pub(super) async fn run(&self, op: KeyOp<'_>) -> Result<KeyReceipt> {
        let session = self.state.session()?;
        let mut result = session.run(op).await;
        // After a failover this may still be the deposed master, so the session must have outlived
        // the end.
        if op.step == WriteStep::End && result.is_ok() {
            result = self.state.note_confirmed(&session, [op.key]).and(result);
        }
        self.state.judge(&session, result)
    }

    /// Runs one command.
    pub(super) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let session = self.state.session()?;
        self.state.judge(&session, session.query(command).await)
    }

    /// Runs one command on a key in a slot that is migrating to this master.
    pub(super) async fn asking<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let session = self.state.session()?;
        self.state.judge(&session, session.lane.connection.asking(command).await)
    }

    /// The master's view of the cluster.
    pub(super) async fn cluster_replies(&self) -> Result<ClusterReplies> {
        let lane = Arc::clone(&self.state.session()?.lane);
        lane.ask(lane.connection.cluster_replies()).await
    }

    /// Records an invalidation that was confirmed here, or at a node to which this master
    /// redirected us.
    pub(super) fn note_confirmed(&self, key: &Key) -> Result<()> {
        self.state.note_confirmed(&*self.state.session()?, [key])
    }

    /// Counts operations that began at this time and did not finish in time as one against the
    /// session.
    pub(super) fn note_timeout(&self, began: Instant) {
        if let Ok(session) = self.state.session()
            && !session.is_late_for_a_reason(began)
        {
            let _ = self.state.judge::<()>(&session, Err(StoreError::Timeout));
        }
    }

    /// Records the config epoch in which other nodes say that the master claims its slots. A
    /// session that was opened under a lower epoch ends.
    pub(super) fn raise_claimed_epoch(&self, epoch: u64) {
        if let MasterSource::Cluster(member) = &self.state.source {
            member.claimed_epoch.fetch_max(epoch, Ordering::AcqRel);
        }
        // A lower epoch than the master's own is only outdated.
        if let Ok(session) = self.state.session()
            && session.server.term.is_some_and(|held| held < epoch)
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
