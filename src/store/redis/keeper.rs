//! The keeper: connects, repeats what is pending, and publishes a session while there is one.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::join_all;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::{sync::Notify, time::timeout};
use tracing::{info, warn};

use super::{
    DETACHED_TIMEOUT, SessionHandle,
    session::{Info, Judgement, Session, classify, clock_ahead_ms},
};
use crate::{
    clock,
    metrics::Metrics,
    mutants::{self, Mutant},
    store::{
        CredentialKey, Ended, Key, StoreError, Token,
        pending::{Added, Item, Pending},
    },
};

/// Between two looks at the server's role.
const PROBE_EVERY: Duration = Duration::from_millis(400);
/// Between two attempts to connect, doubling.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Pending invalidations that are repeated at a time.
pub(super) const REPLAY_BATCH: usize = 64;
/// For all the SCANs of one purge of all.
const PURGE_ALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Commands that wait for their turn on the connection.
const QUEUE: usize = 1024;

/// What the keeper and those who use the store have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) prefix: String,
    pub(super) lease: Duration,
    pub(super) session: RwLock<Option<SessionHandle>>,
    pub(super) pending: Pending,
    /// Derived from the configured secret, else what the server that we talk to keeps for all.
    pub(super) credential_key: RwLock<Arc<CredentialKey>>,
    pub(super) has_secret: bool,
    /// Wakes the keeper: a session failed, or something became pending.
    pub(super) wake: Notify,
    pub(super) metrics: Arc<Metrics>,
}

/// Keeps a session published while there is a master to talk to.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut backoff = BACKOFF.0;
    let mut complained = false;
    loop {
        match shared.connect().await {
            Ok(session) => {
                shared.replay(&session).await;
                info!(epoch = session.epoch().as_str(), "store is up");
                shared.publish(Some(Arc::clone(&session)));
                (backoff, complained) = (BACKOFF.0, false);
                let error = shared.watch(&session).await;
                shared.publish(None);
                warn!(%error, "store is down; everything passes through");
            }
            Err(error) if !complained => {
                complained = true;
                warn!(%error, "cannot connect to the store; retrying");
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

impl Shared {
    /// The published session.
    pub(super) fn session(&self) -> Result<SessionHandle, StoreError> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        session.filter(|session| !session.has_failed()).ok_or(StoreError::Down)
    }

    fn publish(&self, session: Option<SessionHandle>) {
        self.metrics.store_up.set(session.is_some().into());
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = session;
    }

    /// Connects, and makes sure that this is a master of a version that we can work with.
    pub(super) async fn connect(&self) -> Result<SessionHandle, StoreError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let open = async {
            let mut connection =
                self.client.get_multiplexed_async_connection_with_config(&config).await?;
            let sent = clock::now();
            let (info, time): (String, (i64, i64)) =
                redis::pipe().cmd("INFO").cmd("TIME").query_async(&mut connection).await?;
            Ok((connection, info, clock_ahead_ms(time, sent)))
        };
        let (connection, info, clock_ahead_ms) = match timeout(DETACHED_TIMEOUT, open).await {
            Ok(result) => result.map_err(|error: RedisError| classify(&error))?,
            Err(_) => return Err(StoreError::Timeout),
        };
        let info = Info::parse(&info);
        info.check()?;
        let session = Session::new(connection, info.epoch(), clock_ahead_ms);
        if !self.has_secret {
            let key = session.credential_key(&self.prefix).await?;
            *self.credential_key.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
        }
        Ok(Arc::new(session))
    }

    /// Returns when the session can no longer be trusted, with the reason.
    async fn watch(&self, session: &Session) -> StoreError {
        loop {
            let _ = timeout(PROBE_EVERY, self.wake.notified()).await;
            if session.has_failed() {
                return StoreError::Lost("too many operations failed".into());
            }
            if let Err(error) = session.probe().await {
                session.fail();
                return error;
            }
            self.replay(session).await;
        }
    }

    /// Repeats what is pending, until nothing is or the server refuses.
    pub(super) async fn replay(&self, session: &Session) {
        if let Some(addition) = self.pending.all()
            && self.purge_all(session, addition).await == Ended::Pending
        {
            return;
        }
        while !self.pending.is_empty() {
            let batch = self.pending.batch(REPLAY_BATCH);
            let ends = batch.iter().map(|item| self.repeat(session, item));
            let confirmed = join_all(ends).await.into_iter().filter(|confirmed| *confirmed).count();
            self.count_pending();
            if confirmed < batch.len() || batch.is_empty() {
                return;
            }
        }
    }

    async fn repeat(&self, session: &Session, item: &Item) -> bool {
        let end = session.end(&item.key, &item.write, item.linger);
        match timeout(DETACHED_TIMEOUT, end).await {
            Ok(Ok(_)) => {
                self.pending.confirm(item);
                true
            }
            Ok(Err(error)) => {
                warn!(%error, "an invalidation is still unconfirmed; its job is bypassed");
                false
            }
            Err(_) => false,
        }
    }

    pub(super) async fn remember(&self, keys: &[&Key], write: &Token, linger: Duration) {
        if keys.is_empty() || mutants::is(Mutant::NoPending) {
            return;
        }
        if self.pending.add(keys, write, linger).await == Added::Overflow {
            self.metrics.pending_overflows.inc();
            warn!("too many unconfirmed invalidations; every job is bypassed until all are purged");
        }
        self.count_pending();
        self.wake.notify_one();
    }

    pub(super) fn count_pending(&self) {
        self.metrics.pending.set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
    }

    pub(super) async fn purge_all(&self, session: &Session, addition: u64) -> Ended {
        match timeout(PURGE_ALL_TIMEOUT, session.delete_all(&self.prefix)).await {
            Ok(Ok(entries)) => {
                self.pending.confirm_all(addition);
                Ended::Confirmed { entries }
            }
            Ok(Err(error)) => {
                warn!(%error, "a purge of all failed; every job is bypassed until it is confirmed");
                Ended::Pending
            }
            Err(_) => Ended::Pending,
        }
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
            self.wake.notify_one();
        }
    }
}
