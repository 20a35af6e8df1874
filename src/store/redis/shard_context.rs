//! State of a server that is one master of a cluster instead of the whole store.
//!
//! The rest of this engine is the same for both: each server has one supervisor, one session, one
//! tracking connection and one epoch. Pending invalidations are not replayed here: a slot may
//! change its owner, and only `Cluster` knows the current one.

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, FromRedisValue};
use tokio::{sync::Notify, time::timeout};
use tokio_util::task::TaskTracker;

use super::{
    DETACHED_TIMEOUT, Redis,
    dial::Target,
    master_source::MasterSource,
    recently_confirmed::RecentlyConfirmed,
    server_info::SlotClaim,
    session::Session,
    supervisor::{RedisState, RedisWarnings},
    temp_connection,
    tracking::TrackingState,
};
use crate::{
    config::{self, NearTracking},
    observe::metrics::Metrics,
    store::{
        CredentialKey, Epoch, Key, KeyReceipt, Redirect, StoreError, Token,
        cluster::{NodeAddress, OwnedSlots, RefreshRounds, SlotSet},
        near::Watcher,
        retry_queue::RetryQueue,
        sidecar_record::SidecarRecords,
    },
};

/// A master in its cluster.
#[derive(Debug)]
pub(in crate::store) struct ShardContext {
    pub(in crate::store) address: NodeAddress,
    /// The slots that it owns in the slot map.
    pub(in crate::store) slots: Arc<OwnedSlots>,
    pub(in crate::store) refresh_rounds: Arc<RefreshRounds>,
    pub(in crate::store) tracking: NearTracking,
    /// The highest config epoch in which other nodes say that it claims its slots.
    pub(in crate::store) claimed_epoch: AtomicU64,
    /// Notified when the master becomes trusted or tracked, and when it stops being so.
    pub(in crate::store) state_changed: Arc<Notify>,
    pub(in crate::store) metrics: Arc<Metrics>,
    /// What is recorded for other sidecars, for the whole process.
    pub(in crate::store) records: Arc<SidecarRecords>,
}

impl ShardContext {
    /// Checks with another node, after this server has answered us, that it is still a master. A
    /// server that hung while its replica took over does not know that when it comes back.
    pub(super) async fn confirm(&self, claim: &SlotClaim) -> Result<(), StoreError> {
        let lesson = timeout(DETACHED_TIMEOUT, self.refresh_rounds.next());
        let lesson = lesson.await.map_err(|_| StoreError::Timeout)?;
        if !lesson.confirms(&self.address) {
            return Err(StoreError::Unusable("no other node of the cluster answers".into()));
        }
        if self.slots.is_empty() {
            return Err(StoreError::Unusable("its slots belong to another node".into()));
        }
        if self.claimed_epoch.load(Ordering::Acquire) > claim.epoch {
            return Err(StoreError::Unusable("the master has taken over slots".into()));
        }
        Ok(())
    }

    /// Counts a redirect, and requests a topology refresh if the slot map may be out of date.
    pub(super) fn observe(&self, redirect: &Redirect) {
        self.metrics.cluster.count_redirection(redirect.as_str());
        if matches!(redirect, Redirect::Moved | Redirect::Down) {
            self.refresh_rounds.request();
        }
    }
}

/// The epoch of a master in a cluster includes its config epoch. A slot that moved away and came
/// back may have lost an invalidation in a failover at the other node. A master that takes over a
/// slot raises its config epoch, so entries from before are not trusted.
pub(super) fn epoch(server: &Epoch, claim: &SlotClaim) -> Epoch {
    Epoch(format!("{}-{}", server.as_str(), claim.epoch).into())
}

/// Operations on a master of a cluster. Those on keys take one key each, because the next step
/// depends on the reply for that key.
impl Redis {
    /// Starts the engine for one master of a cluster. Pending invalidations and the fingerprint key
    /// belong to the cluster.
    pub(in crate::store) fn cluster_master(
        target: Target,
        config: &config::StoreConfig,
        shard: ShardContext,
        retry_queue: Arc<RetryQueue>,
        (credential_key, has_secret): (Arc<RwLock<CredentialKey>>, bool),
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Self {
        let metrics = Arc::clone(&shard.metrics);
        let tracked = watcher.map(|watcher| {
            let turned = Some(Arc::clone(&shard.state_changed));
            TrackingState::new(watcher, config.budget, shard.tracking, Arc::clone(&metrics), turned)
        });
        Self::start(RedisState {
            address: shard.address.to_string(),
            source: MasterSource::Fixed(target),
            prefix: config.prefix.clone(),
            lease: config.lease,
            grace: config.reconnect_grace,
            records: Arc::clone(&shard.records),
            session: RwLock::default(),
            retry_queue,
            recently_confirmed: RecentlyConfirmed::default(),
            has_secret,
            credential_key,
            failed: Notify::new(),
            warnings: RedisWarnings::default(),
            tracked,
            tasks,
            metrics,
            shard: Some(shard),
        })
    }

    /// Records the config epoch in which other nodes say that the master claims its slots. A
    /// session that was opened under a lower epoch ends.
    pub(in crate::store) fn raise_claimed_epoch(&self, epoch: u64) {
        let Some(shard) = &self.shared.shard else { return };
        shard.claimed_epoch.fetch_max(epoch, Ordering::AcqRel);
        // A lower epoch than the master's own is only outdated.
        if let Ok(session) = self.shared.session()
            && SlotClaim::config_epoch_of(session.epoch()).is_some_and(|held| held < epoch)
        {
            session.fail();
            self.shared.failed.notify_one();
        }
    }

    /// The master's view of the cluster.
    pub(in crate::store) async fn cluster_replies(
        &self,
    ) -> Result<temp_connection::ClusterReplies, StoreError> {
        self.shared.session()?.cluster_replies().await
    }

    /// Runs one command.
    pub(in crate::store) async fn query<T: FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let session = self.shared.session()?;
        let result = session.query(command).await;
        self.shared.judge(&session, result)
    }

    /// Runs one command on a key in a slot that is migrating to this master.
    pub(in crate::store) async fn asking<T: FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let session = self.shared.session()?;
        let result = session.asking(command).await;
        self.shared.judge(&session, result)
    }

    /// Fences one key.
    pub(in crate::store) async fn begin_key(
        &self,
        key: &Key,
        write: &Token,
        fence: Duration,
    ) -> Result<(), StoreError> {
        let session = self.shared.session()?;
        let result = session.begin(key, write, fence).await;
        self.shared.judge(&session, result)
    }

    /// Ends the write of one key.
    pub(in crate::store) async fn end_key(
        &self,
        key: &Key,
        write: &Token,
        linger: Duration,
    ) -> Result<KeyReceipt, StoreError> {
        let session = self.shared.session()?;
        let mut result = session.end(key, write, linger).await;
        if result.is_ok()
            && let Err(error) = self.shared.note_confirmed(&session, key)
        {
            result = Err(error);
        }
        self.shared.judge(&session, result)
    }

    /// Records an invalidation that was confirmed here, or at a node to which this master
    /// redirected us.
    pub(in crate::store) fn note_confirmed(&self, key: &Key) -> Result<(), StoreError> {
        self.shared.note_confirmed(&*self.shared.session()?, key)
    }

    /// Records that all entries of some slots were purged here.
    pub(in crate::store) fn note_purged(
        &self,
        session: &Session,
        slots: &SlotSet,
    ) -> Result<(), StoreError> {
        self.shared.note_purged(session, slots)
    }

    /// Ends the session, and makes its recently confirmed invalidations pending again.
    pub(in crate::store) async fn requeue_recent(&self) {
        // First: a confirmation after `requeue_recent` would be missed.
        if let Ok(session) = self.shared.session() {
            session.fail();
        }
        self.shared.requeue_recent().await;
    }

    /// Counts an operation that did not finish in time against the session.
    pub(in crate::store) fn note_timeout(&self) {
        if let Ok(session) = self.shared.session() {
            self.shared.conclude::<()>(&session, &Err(StoreError::Timeout));
        }
    }
}
