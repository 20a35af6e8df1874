//! The keeper: connects, repeats what is pending, and publishes a session while there is one.

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
    connect::{Connection, Target},
    info::{Claim, Info},
    part::{self, Part},
    recent::Recent,
    session::{Judgement, Membership, Session, classify, clock_ahead_ms, credential_key_name},
    source::{Reign, Source},
    tracking::{Tracked, track},
};
use crate::{
    clock,
    metrics::Metrics,
    store::{
        CredentialKey, Ended, Epoch, Key, Redirect, StoreError, Token,
        cluster::SlotSet,
        debts::Debts,
        pending::{Item, Sweep},
    },
    throttle::Throttle,
};

/// Between two looks at the server's role.
const PROBE_EVERY: Duration = Duration::from_millis(400);
/// Between two attempts to connect, doubling.
pub(super) const BACKOFF: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(1));
/// For all the SCANs of one purge of all.
pub(in crate::store) const PURGE_ALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What the keeper and those who use the store have in common.
pub(super) struct Shared {
    pub(super) source: Source,
    /// Without user and password, for the log.
    pub(super) address: String,
    pub(super) prefix: String,
    pub(super) lease: Duration,
    pub(super) session: RwLock<Option<SessionHandle>>,
    pub(super) debts: Arc<Debts>,
    /// What the session has confirmed lately.
    pub(super) recent: Recent,
    /// Derived from the configured secret, else what the server that we talk to keeps for all.
    pub(super) credential_key: Arc<RwLock<CredentialKey>>,
    pub(super) has_secret: bool,
    /// A session failed.
    pub(super) failed: Notify,
    pub(super) warnings: Warnings,
    /// The layer in this process, if there is one.
    pub(super) tracked: Option<Tracked>,
    /// Releases that nobody waits for.
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<Metrics>,
    /// Where it is one of several.
    pub(super) part: Option<Part>,
}

/// What may happen with every request or round, and is yet to be read in the log.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    connect: Throttle,
    pub(super) tracking: Throttle,
    key: Throttle,
    eviction: Throttle,
}

/// Keeps a session published while there is a master to talk to.
pub(super) async fn keep(shared: Arc<Shared>) {
    let _unkept = Unkept(Arc::clone(&shared));
    let mut backoff = BACKOFF.0;
    loop {
        match shared.connect().await {
            Ok(session) => {
                let error = shared.serve(&session, &mut backoff).await;
                // First of all: what is confirmed from here on nobody doubts any more.
                session.fail();
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

/// A connection to a master that is one, and of a version that we can work with.
pub(super) struct Dialled {
    connection: Connection,
    target: Target,
    info: Info,
    /// By how much its clock is ahead of ours.
    clock_ahead_ms: i64,
    reign: Option<Reign>,
}

/// Connects to the master.
pub(super) async fn dial(source: &Source) -> Result<Dialled, StoreError> {
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
    // It may have hung for as long, and have been deposed meanwhile.
    let reign = source.confirm(&target).await?;
    Ok(Dialled { connection, target, info, clock_ahead_ms, reign })
}

/// Nobody would watch a session whose keeper has panicked.
struct Unkept(Arc<Shared>);

impl Drop for Unkept {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.retract(&StoreError::Lost("its keeper has panicked".into()));
        }
    }
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
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(session);
        self.tell(true);
    }

    /// Tells whether the server is trusted; of several the cluster tells.
    fn tell(&self, up: bool) {
        if let Some(part) = &self.part {
            return part.turned.notify_one();
        }
        self.metrics.store_is_up(up);
        if up {
            self.metrics.breaker.close();
        }
    }

    /// What was published, if anything was, is not trusted any more.
    fn retract(&self, error: &StoreError) {
        let published = self.session.write().unwrap_or_else(PoisonError::into_inner).take();
        if published.is_some() {
            self.metrics.breaker.open(error);
        }
        self.tell(false);
    }

    /// Connects to the master.
    pub(super) async fn connect(&self) -> Result<SessionHandle, StoreError> {
        let Dialled { mut connection, target, info, clock_ahead_ms, reign } =
            dial(&self.source).await?;
        if let Some(policy) = info.evicts() {
            self.warn_of_eviction(policy);
        }
        let epoch = self.epoch(&mut connection, &info, reign).await?;
        if self.source.is_behind() {
            self.debts.pending.add_all().await;
        }
        let session = Session::new(connection, (target, reign), epoch, clock_ahead_ms);
        if !self.has_secret && self.keeps_credential_key() {
            self.share_credential_key(&session).await?;
        }
        Ok(Arc::new(session))
    }

    /// The epoch of what this server holds. A master of a cluster is one only if others say so, too.
    async fn epoch(
        &self,
        connection: &mut Connection,
        info: &Info,
        reign: Option<Reign>,
    ) -> Result<Epoch, StoreError> {
        let server = info.epoch();
        let Some(part) = &self.part else {
            return Ok(reign.map_or_else(|| server.clone(), |reign| reign.epoch(&server)));
        };
        let mut ask = redis::cmd("CLUSTER");
        let claim = ask.arg("INFO").query_async::<String>(&mut connection.requests);
        let claim = timeout(DETACHED_TIMEOUT, claim).await.map_err(|_| StoreError::Timeout)?;
        let claim = Claim::parse(&claim.map_err(|error| classify(&error))?)?;
        part.confirm(&claim).await?;
        Ok(part::epoch(&server, &claim))
    }

    fn membership(&self) -> Membership {
        if self.part.is_some() { Membership::Master } else { Membership::None }
    }

    fn keeps_credential_key(&self) -> bool {
        let name = credential_key_name(&self.prefix);
        self.part.as_ref().is_none_or(|part| part.slots.own(name.as_bytes()))
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
            // Its slot is on its way, and there is none yet: it is asked for with the next session.
            Err(error @ (StoreError::Refused(_) | StoreError::Redirected(Redirect::Ask(_)))) => {
                if let Some(suppressed) = self.warnings.key.admit(&error.to_string()) {
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
            if self.part.is_none() {
                self.debts.pending.hurry();
                self.replay(session).await;
            }
            info!(epoch = session.epoch().as_str(), "store is up");
            self.publish(Arc::clone(session));
            *backoff = BACKOFF.0;
            match &self.part {
                None => self.keep_replaying(session).await,
                Some(_) => future::pending().await,
            }
        };
        tokio::select! {
            error = self.watch(session) => error,
            error = self.source.moved(session.target(), session.reign()) => {
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
            if let Err(error) = session.probe(self.membership()).await {
                session.fail();
                return error;
            }
        }
    }

    async fn keep_replaying(&self, session: &Session) -> Infallible {
        loop {
            self.debts.due().await;
            self.replay(session).await;
        }
    }

    /// Repeats what is due. What fails is postponed, so that this comes to an end.
    pub(super) async fn replay(&self, session: &Session) {
        if let Some(sweep) = self.debts.pending.sweep() {
            self.purge_all(session, &sweep).await;
        }
        loop {
            let batch = self.debts.pending.batch(REPLAY_BATCH);
            if batch.is_empty() {
                break;
            }
            join_all(batch.iter().map(|item| self.repeat(session, item))).await;
            self.debts.count();
        }
        self.debts.count();
    }

    async fn repeat(&self, session: &Session, item: &Item) {
        self.metrics.events.expect(item.key.main());
        let end = timeout(DETACHED_TIMEOUT, session.end(&item.key, &item.write, item.linger));
        let mut ended = end.await.unwrap_or(Err(StoreError::Timeout));
        // Where it became pending in a failover, this is most likely still the deposed master.
        if ended.is_ok()
            && let Err(error) = self.note_confirmed(session, &item.key)
        {
            ended = Err(error);
        }
        self.debts.settle(item, ended);
    }

    /// Notes what a session has just confirmed; not confirmed after all, if it has ended meanwhile: what it
    /// confirmed may have been doubted already, without this.
    pub(super) fn note_confirmed(&self, session: &Session, key: &Key) -> Result<(), StoreError> {
        self.recent.note(key, Instant::now().into_std());
        if session.has_failed() {
            return Err(StoreError::Lost("the session ended before its answer came".into()));
        }
        Ok(())
    }

    /// The same of all that there was in some slots.
    pub(super) fn note_purged(&self, session: &Session, slots: &SlotSet) -> Result<(), StoreError> {
        self.recent.note_slots(slots, Instant::now().into_std());
        if session.has_failed() {
            return Err(StoreError::Lost("the session ended amid a purge of all".into()));
        }
        Ok(())
    }

    /// What a session confirmed just before its end may have been confirmed by a deposed master.
    pub(super) async fn doubt(&self) {
        let late = self.recent.take(Instant::now().into_std());
        if let Some(slots) = late.slots {
            self.debts.pending.add_slots(*slots).await;
            self.debts.hasten();
        }
        // In the name of no write: its fence may linger, and is not ours to lift.
        let nobody = Token::named("doubt");
        let keys: Vec<_> = late.keys.iter().collect();
        self.debts.remember(&keys, &nobody, Duration::ZERO).await;
    }

    pub(super) async fn purge_all(&self, session: &Session, sweep: &Sweep) -> Ended {
        self.metrics.events.expect_all();
        let purge = timeout(PURGE_ALL_TIMEOUT, session.delete_all(&self.prefix)).await;
        self.metrics.events.expect_no_more();
        let mut purged = purge.unwrap_or(Err(StoreError::Timeout));
        if purged.is_ok()
            && let Err(error) = self.note_purged(session, &sweep.slots)
        {
            purged = Err(error);
        }
        self.debts.settle_all(sweep, purged)
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
        if let (Some(part), Err(StoreError::Redirected(redirect))) = (&self.part, result) {
            part.heed(redirect);
        }
        if session.judge(result) == Judgement::GiveUp {
            self.failed.notify_one();
        }
    }
}
