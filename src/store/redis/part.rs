//! What a server has to heed that is one master of a cluster and not the whole store.
//!
//! The rest of this engine is the same for both: one keeper, one session, one tracking connection and
//! one epoch for each server. What is pending is not replayed here: whose it is changes, and the
//! cluster knows.

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
    connect::Target,
    errand,
    info::Claim,
    keeper::{Shared, Warnings},
    recent::Recent,
    session::Session,
    source::Source,
    tracking::Tracked,
};
use crate::{
    config::{self, NearTracking},
    metrics::Metrics,
    store::{
        CredentialKey, Epoch, Key, Redirect, StoreError, Token, Was,
        cluster::{Address, Lessons, SlotSet, Slots},
        debts::Debts,
        near::Watcher,
    },
};

/// The part of a master in its cluster.
#[derive(Debug)]
pub(in crate::store) struct Part {
    pub(in crate::store) address: Address,
    /// Those that it owns, by the map.
    pub(in crate::store) slots: Arc<Slots>,
    pub(in crate::store) lessons: Arc<Lessons>,
    pub(in crate::store) tracking: NearTracking,
    /// In which it claims them.
    pub(in crate::store) claimed: AtomicU64,
    /// Told when it has become trusted or tracked, or is not any more.
    pub(in crate::store) turned: Arc<Notify>,
    pub(in crate::store) metrics: Arc<Metrics>,
}

impl Part {
    /// Whether another node bears witness, after we have been answered, that this one is a master: one
    /// that hung while its replica took over does not know it itself when it comes back.
    pub(super) async fn confirm(&self, claim: &Claim) -> Result<(), StoreError> {
        let lesson = timeout(DETACHED_TIMEOUT, self.lessons.next());
        let lesson = lesson.await.map_err(|_| StoreError::Timeout)?;
        if !lesson.bears_witness(&self.address) {
            return Err(StoreError::Lost("no other node of the cluster answers".into()));
        }
        if self.slots.is_empty() {
            return Err(StoreError::Lost("its slots are another node's".into()));
        }
        if self.claimed.load(Ordering::Acquire) > claim.epoch {
            return Err(StoreError::Lost("the master has taken slots in".into()));
        }
        Ok(())
    }

    /// Counts where we were sent, and has the map learned anew if it may be out of date.
    pub(super) fn heed(&self, redirect: &Redirect) {
        self.metrics.cluster.redirected(redirect.as_str());
        if matches!(redirect, Redirect::Moved | Redirect::Down) {
            self.lessons.want();
        }
    }
}

/// The epoch of a master in a cluster is of its claims, too. A slot that went away and came back may
/// have lost an invalidation with a failover over there; whoever takes a slot in raises its config
/// epoch, so that what it held before is not believed.
pub(super) fn epoch(server: &Epoch, claim: &Claim) -> Epoch {
    Epoch(format!("{}-{}", server.as_str(), claim.epoch).into())
}

/// What is asked of a server as a part of a cluster. Where keys are concerned it is of one at a time: what
/// follows from an answer differs from key to key.
impl Redis {
    /// One master of a cluster. What is pending, and the key of the fingerprints, is the cluster's.
    pub(in crate::store) fn member(
        target: Target,
        config: &config::StoreConfig,
        part: Part,
        debts: Arc<Debts>,
        (credential_key, has_secret): (Arc<RwLock<CredentialKey>>, bool),
        tasks: TaskTracker,
        watcher: Option<Arc<dyn Watcher>>,
    ) -> Self {
        let metrics = Arc::clone(&part.metrics);
        let tracked = watcher.map(|watcher| {
            let turned = Some(Arc::clone(&part.turned));
            Tracked::new(watcher, config.budget, part.tracking, Arc::clone(&metrics), turned)
        });
        Self::keep(Shared {
            address: part.address.to_string(),
            source: Source::Fixed(target),
            prefix: config.prefix.clone(),
            lease: config.lease,
            session: RwLock::default(),
            debts,
            recent: Recent::default(),
            has_secret,
            credential_key,
            failed: Notify::new(),
            warnings: Warnings::default(),
            tracked,
            tasks,
            metrics,
            part: Some(part),
        })
    }

    /// In which epoch the master claims its slots, as others have it. A session that was opened under a
    /// lower one is over.
    pub(in crate::store) fn claims(&self, epoch: u64) {
        let Some(part) = &self.shared.part else { return };
        part.claimed.fetch_max(epoch, Ordering::AcqRel);
        // What is lower than what the master itself said is only late.
        if let Ok(session) = self.shared.session()
            && Claim::held_by(session.epoch()).is_some_and(|held| held < epoch)
        {
            session.fail();
            self.shared.failed.notify_one();
        }
    }

    /// What the master says of the cluster.
    pub(in crate::store) async fn lesson(&self) -> Result<errand::Lesson, StoreError> {
        self.shared.session()?.lesson().await
    }

    /// One command, whatever it is.
    pub(in crate::store) async fn query<T: FromRedisValue>(
        &self,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let session = self.shared.session()?;
        let result = session.query(command).await;
        self.shared.judge(&session, result)
    }

    /// The same, of a key whose slot is on its way to this master.
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
    ) -> Result<Was, StoreError> {
        let session = self.shared.session()?;
        let mut result = session.end(key, write, linger).await;
        if result.is_ok()
            && let Err(error) = self.shared.note_confirmed(&session, key)
        {
            result = Err(error);
        }
        self.shared.judge(&session, result)
    }

    /// An invalidation was confirmed here, or where we were sent from here.
    pub(in crate::store) fn confirmed(&self, key: &Key) -> Result<(), StoreError> {
        self.shared.note_confirmed(&*self.shared.session()?, key)
    }

    /// All that there was in some slots was purged here.
    pub(in crate::store) fn purged(
        &self,
        session: &Session,
        slots: &SlotSet,
    ) -> Result<(), StoreError> {
        self.shared.note_purged(session, slots)
    }

    /// What was confirmed here lately is owed once more.
    pub(in crate::store) async fn doubt(&self) {
        // What is confirmed from here on would be missed.
        if let Ok(session) = self.shared.session() {
            session.fail();
        }
        self.shared.doubt().await;
    }

    /// What follows from an operation that did not come to its end in time.
    pub(in crate::store) fn was_late(&self) {
        if let Ok(session) = self.shared.session() {
            self.shared.conclude::<()>(&session, &Err(StoreError::Timeout));
        }
    }
}
