//! The keeper: connects, repeats what is pending, and publishes a session while there is one.

use std::{
    convert::Infallible,
    future,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::{
    DETACHED_TIMEOUT, SessionHandle,
    connect::{Connection, Target},
    info::Info,
    recent::Recent,
    session::{Judgement, Session, clock_ahead_ms},
    source::Source,
    tracking::{Tracked, track},
};
use crate::{
    clock,
    events::What,
    metrics::Metrics,
    mutants::{self, Mutant},
    store::{
        CredentialKey, Ended, Key, StoreError, Token,
        pending::{Added, Item, Pending},
    },
    throttle::Throttle,
};

/// Between two looks at the server's role.
const PROBE_EVERY: Duration = Duration::from_millis(400);
/// Between two attempts to connect, doubling.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));
/// Pending invalidations that are repeated at a time.
pub(super) const REPLAY_BATCH: usize = 64;
/// For all the SCANs of one purge of all.
const PURGE_ALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What the keeper and those who use the store have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) source: Source,
    /// Without user and password, for the log.
    pub(super) address: String,
    pub(super) prefix: String,
    pub(super) lease: Duration,
    pub(super) session: RwLock<Option<SessionHandle>>,
    pub(super) pending: Pending,
    /// What the session has confirmed lately.
    pub(super) recent: Recent,
    /// Derived from the configured secret, else what the server that we talk to keeps for all.
    pub(super) credential_key: RwLock<CredentialKey>,
    pub(super) has_secret: bool,
    /// A session failed.
    pub(super) failed: Notify,
    /// Something became pending.
    pub(super) due: Notify,
    pub(super) warnings: Warnings,
    /// The layer in this process, if there is one.
    pub(super) tracked: Option<Tracked>,
    /// Releases that nobody waits for.
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<Metrics>,
}

/// What may happen with every request or round, and is yet to be read in the log.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    connect: Throttle,
    pub(super) tracking: Throttle,
    key: Throttle,
    eviction: Throttle,
    unconfirmed: Throttle,
    purge_all: Throttle,
    overflow: Throttle,
}

/// Keeps a session published while there is a master to talk to.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut backoff = BACKOFF.0;
    loop {
        match shared.connect().await {
            Ok(session) => {
                let error = shared.serve(&session, &mut backoff).await;
                shared.retract(&error);
                shared.doubt().await;
                warn!(store = shared.address, %error, "store is down; everything passes through");
            }
            Err(error) => {
                shared.metrics.breaker.fail(&error);
                if let Some(suppressed) = shared.warnings.connect.admit(&error.to_string()) {
                    let store = &shared.address;
                    warn!(store, %error, suppressed, "cannot connect to the store; retrying");
                }
            }
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Connects to the master, and makes sure that it is one, and of a version that we can work with. By how
/// much its clock is ahead of ours, in ms, comes along.
pub(super) async fn dial(source: &Source) -> Result<(Connection, Target, Info, i64), StoreError> {
    let target = source.target().await?;
    let open = async {
        let mut connection = target.connect().await?;
        let sent = clock::now();
        let first = redis::pipe().cmd("INFO").cmd("TIME").to_owned();
        let (info, time): (String, (i64, i64)) =
            match first.query_async(&mut connection.requests).await {
                Ok(told) => told,
                Err(error) => return Err(target.first(&error).await),
            };
        Ok((connection, info, clock_ahead_ms(time, sent)))
    };
    let opened = timeout(DETACHED_TIMEOUT, open).await;
    let (connection, info, clock_ahead_ms) = opened.unwrap_or(Err(StoreError::Timeout))?;
    let info = Info::parse(&info);
    info.check()?;
    Ok((connection, target, info, clock_ahead_ms))
}

impl Shared {
    /// The published session.
    pub(super) fn session(&self) -> Result<SessionHandle, StoreError> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        session.filter(|session| !session.has_failed()).ok_or(StoreError::Down)
    }

    /// A look at the published session. Hits take no handle: its count would go from core to core.
    pub(super) fn with_session<T>(&self, look: impl Fn(&Session) -> T) -> Result<T, StoreError> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        let session = session.as_ref().filter(|session| !session.has_failed());
        session.map(|session| look(session)).ok_or(StoreError::Down)
    }

    fn publish(&self, session: SessionHandle) {
        self.metrics.store_is_up(true);
        self.metrics.breaker.close();
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// What was published, if anything was, is not trusted any more.
    fn retract(&self, error: &StoreError) {
        self.metrics.store_is_up(false);
        let published = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        if published.is_some() {
            self.metrics.breaker.open(error);
        }
    }

    /// Connects to the master.
    pub(super) async fn connect(&self) -> Result<SessionHandle, StoreError> {
        let (connection, target, info, clock_ahead_ms) = dial(&self.source).await?;
        if let Some(policy) = info.evicts() {
            self.warn_of_eviction(policy);
        }
        let session = Session::new(connection, target, info.epoch(), clock_ahead_ms);
        if !self.has_secret {
            self.share_credential_key(&session).await?;
        }
        Ok(Arc::new(session))
    }

    /// Where the server refuses we go on with a key of our own: other sidecars' entries are then not
    /// for our callers until the upstream has let them in.
    async fn share_credential_key(&self, session: &Session) -> Result<(), StoreError> {
        match session.credential_key(&self.prefix).await {
            Ok(key) => {
                let mut ours = self.credential_key.write().unwrap_or_else(PoisonError::into_inner);
                *ours = key;
                Ok(())
            }
            Err(StoreError::Refused(error)) => {
                if let Some(suppressed) = self.warnings.key.admit(&error) {
                    warn!(%error, suppressed, "cannot share the key of the fingerprints");
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

    /// Repeats what is pending, then publishes the session; returns when it can no longer be trusted,
    /// with the reason. All the while the role is probed: a long replay is no reason to believe a
    /// deposed master for longer.
    async fn serve(&self, session: &SessionHandle, backoff: &mut Duration) -> StoreError {
        let repeat = async {
            self.pending.hurry();
            self.replay(session).await;
            info!(epoch = session.epoch().as_str(), "store is up");
            self.publish(Arc::clone(session));
            *backoff = BACKOFF.0;
            self.keep_replaying(session).await
        };
        tokio::select! {
            error = self.watch(session) => error,
            error = self.source.moved(session.target()) => {
                session.fail();
                error
            }
            never = repeat => match never {},
            never = self.track(session) => match never {},
        }
    }

    /// The tracking connection lives and dies with the session: in another epoch its news is not that
    /// of our entries.
    async fn track(&self, session: &Session) -> Infallible {
        match &self.tracked {
            Some(tracked) => track(self, session, tracked).await,
            None => future::pending().await,
        }
    }

    /// Returns when the session can no longer be trusted, with the reason.
    async fn watch(&self, session: &Session) -> StoreError {
        loop {
            let _ = timeout(PROBE_EVERY, self.failed.notified()).await;
            if session.has_failed() {
                return StoreError::Lost("too many operations failed".into());
            }
            if let Err(error) = session.probe().await {
                session.fail();
                return error;
            }
        }
    }

    async fn keep_replaying(&self, session: &Session) -> Infallible {
        loop {
            let next = self.pending.next_due();
            let wait = async {
                match next {
                    Some(at) => sleep_until(at.into()).await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.due.notified() => {}
            }
            self.replay(session).await;
        }
    }

    /// Repeats what is due. What fails is postponed, so that this comes to an end.
    pub(super) async fn replay(&self, session: &Session) {
        if let Some(addition) = self.pending.all() {
            self.purge_all(session, addition).await;
        }
        loop {
            let batch = self.pending.batch(REPLAY_BATCH);
            if batch.is_empty() {
                break;
            }
            join_all(batch.iter().map(|item| self.repeat(session, item))).await;
            self.count_pending();
        }
        self.count_pending();
    }

    async fn repeat(&self, session: &Session, item: &Item) {
        self.metrics.events.expect(item.key.main());
        let end = timeout(DETACHED_TIMEOUT, session.end(&item.key, &item.write, item.linger));
        let Err(error) = end.await.unwrap_or(Err(StoreError::Timeout)) else {
            self.metrics.events.tell(item.key.main(), What::Confirmed, "");
            return self.pending.confirm(item);
        };
        self.pending.postpone(item);
        debug!(%error, key = item.key.main(), "an invalidation is still unconfirmed");
        if let Some(suppressed) = self.warnings.unconfirmed.admit(&error.to_string()) {
            let pending = self.pending.len();
            warn!(%error, pending, suppressed, "invalidations are unconfirmed; their jobs are bypassed");
        }
    }

    pub(super) async fn remember(&self, keys: &[&Key], write: &Token, linger: Duration) {
        if keys.is_empty() || mutants::is(Mutant::NoPending) {
            return;
        }
        if self.pending.add(keys, write, linger).await == Added::Overflow {
            self.metrics.pending_overflows.inc();
            if let Some(suppressed) = self.warnings.overflow.admit("") {
                warn!(
                    pending = self.pending.len(),
                    suppressed,
                    "too many unconfirmed invalidations; every job is bypassed until all are purged"
                );
            }
        }
        self.count_pending();
        self.due.notify_one();
    }

    /// What a session confirmed just before its end may have been confirmed by a deposed master.
    async fn doubt(&self) {
        let late = self.recent.take(Instant::now().into_std());
        if late.all {
            self.pending.add_all().await;
        }
        if let Some(write) = late.write {
            let keys: Vec<_> = late.keys.iter().collect();
            self.remember(&keys, &write, Duration::ZERO).await;
        }
    }

    pub(super) fn count_pending(&self) {
        self.metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }

    pub(super) async fn purge_all(&self, session: &Session, addition: u64) -> Ended {
        self.metrics.events.expect_all();
        let purge = timeout(PURGE_ALL_TIMEOUT, session.delete_all(&self.prefix)).await;
        self.metrics.events.expect_no_more();
        let error = match purge.unwrap_or(Err(StoreError::Timeout)) {
            Ok(entries) => {
                self.recent.note_all(Instant::now().into_std());
                self.pending.confirm_all(addition);
                return Ended::Confirmed { entries };
            }
            Err(error) => error,
        };
        self.pending.postpone_all(addition);
        debug!(%error, "a purge of all failed");
        if let Some(suppressed) = self.warnings.purge_all.admit(&error.to_string()) {
            let pending = self.pending.len();
            warn!(
                %error, pending, suppressed,
                "a purge of all failed; every job is bypassed until it is confirmed"
            );
        }
        Ended::Pending
    }

    /// Draws the conclusion for the session from what an operation came to.
    pub(super) fn judge<T>(
        &self,
        session: &Session,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.conclude(session, &result);
        result
    }

    /// The same, of a result that belongs to somebody else.
    pub(super) fn conclude<T>(&self, session: &Session, result: &Result<T, StoreError>) {
        if session.judge(result) == Judgement::GiveUp {
            self.failed.notify_one();
        }
    }
}
