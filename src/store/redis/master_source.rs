//! Where a master comes from: it is named by the URL, by sentinels, or by the other nodes of its
//! cluster. What differs between the three is here; the rest of the shard is the same.
//!
//! A master of a cluster counts only if another node confirms it, so its supervisor waits for a
//! refresh of the topology. Refreshes are shared as rounds of the read barrier are: a caller that
//! wants one while one is under way waits for the next, so that its result was requested after the
//! caller arrived.

use std::{
    future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    dial::{RedisConnection, Target},
    sentinel::SentinelWatch,
    server_info::{ServerInfo, claimed_epoch},
    session::Session,
    tracking::wire::Question,
};
use crate::{
    config::{Config, StoreConfig, StoreUrl},
    store::{
        Diagnosis, NodeAddress, Redirect, StoreError,
        errors::{DETACHED_TIMEOUT, Result},
        metrics::ClusterMetrics,
        slots::OwnedSlots,
    },
    tls::TlsMetrics,
};

/// Where a master comes from.
pub(super) enum MasterSource {
    /// The URL.
    Fixed(Target),
    /// Sentinels.
    Sentinels(SentinelWatch),
    /// The slot map of a cluster.
    Cluster(ClusterMember),
}

impl MasterSource {
    /// Checks the URL of a store with one master; connects to nothing yet.
    pub(super) fn new(config: &Config, metrics: &TlsMetrics) -> Result<Self> {
        match &config.store.url {
            StoreUrl::Redis(url) => Target::parse(url, config, metrics).map(Self::Fixed),
            StoreUrl::Sentinel(sentinels) => {
                SentinelWatch::new(sentinels, config, metrics).map(Self::Sentinels)
            }
            StoreUrl::Memory | StoreUrl::Cluster(_) => {
                Err(StoreError::Refused("the URL does not name a single server".into()))
            }
        }
    }

    /// The master, as far as it is known.
    pub(super) async fn target(&self) -> Result<Target> {
        match self {
            Self::Fixed(target) => Ok(target.clone()),
            Self::Sentinels(watch) => watch.master().await,
            Self::Cluster(member) => Ok(member.target.clone()),
        }
    }

    /// The term of a master that has answered. Fails if another server is the master by now.
    pub(super) async fn term(
        &self,
        target: &Target,
        connection: &RedisConnection,
    ) -> Result<Option<u64>> {
        match self {
            Self::Fixed(_) => Ok(None),
            Self::Sentinels(watch) => watch.confirm(target).await.map(Some),
            Self::Cluster(member) => member.claim(connection).await.map(Some),
        }
    }

    /// Whether the entries of the master must be purged before use. Resets the flag.
    pub(super) fn take_behind(&self) -> bool {
        matches!(self, Self::Sentinels(watch) if watch.is_behind.swap(false, Ordering::Relaxed))
    }

    /// Returns once the master is another server than that of the session, or the same one in another
    /// term.
    pub(super) async fn moved(&self, session: &Session) -> StoreError {
        match (self, session.server.term) {
            (Self::Sentinels(watch), Some(term)) => watch.moved(&session.target, term).await,
            _ => future::pending().await,
        }
    }

    /// The name of the mark of the epoch, in a slot of this server; `None` if it has no slot, or no
    /// mark is needed.
    pub(super) fn epoch_mark(&self, config: &StoreConfig) -> Option<String> {
        match self {
            _ if config.reconnect_grace.is_zero() => None,
            Self::Cluster(member) => member.slots.name(&config.prefix, "epoch", 0),
            _ => Some(format!("{{{}}}:epoch", config.prefix)),
        }
    }

    /// The question of a barrier round.
    pub(super) fn question(&self, prefix: &str, info: &ServerInfo) -> Result<Question> {
        let Self::Cluster(member) = self else { return Ok(Question::ping()) };
        info.check_slots_move_by_key()?;
        Question::keyed(&member.slots, prefix)
            .ok_or_else(|| StoreError::Unusable("the master owns no slot".into()))
    }

    /// Adds what a redirect means where the URL names a single server.
    pub(super) fn diagnosed(&self, error: StoreError) -> StoreError {
        match (self, error) {
            (
                Self::Fixed(_) | Self::Sentinels(_),
                StoreError::Redirected(redirect @ (Redirect::Moved | Redirect::Ask(_))),
            ) => {
                let said = format!("the node answered {}", redirect.as_str());
                StoreError::Denied(Diagnosis::ClusterNode, said)
            }
            (_, error) => error,
        }
    }

    /// Counts a redirect, and requests a topology refresh if the slot map may be out of date.
    pub(super) fn observe(&self, redirect: &Redirect, metrics: &ClusterMetrics) {
        let Self::Cluster(member) = self else { return };
        metrics.redirections.inc([redirect.as_str()]);
        if matches!(redirect, Redirect::Moved | Redirect::Down) {
            member.refresh_rounds.wanted.notify_one();
        }
    }
}

/// A master in its cluster.
pub(super) struct ClusterMember {
    pub(super) target: Target,
    pub(super) address: NodeAddress,
    /// The slots that it owns in the slot map.
    pub(super) slots: Arc<OwnedSlots>,
    pub(super) refresh_rounds: Arc<RefreshRounds>,
    /// The highest config epoch in which other nodes say that it claims its slots.
    pub(super) claimed_epoch: AtomicU64,
}

impl ClusterMember {
    /// The config epoch in which this server claims its slots. It counts only if another node
    /// confirms that the server is a master.
    ///
    /// It is part of the epoch of the store. A slot that moved away and came back may have lost an
    /// invalidation in a failover at the other node. A master that takes over a slot raises its
    /// config epoch, so entries from before are not trusted.
    async fn claim(&self, connection: &RedisConnection) -> Result<u64> {
        let mut command = redis::cmd("CLUSTER");
        let mut requests = connection.requests.clone();
        let claim = command.arg("INFO").query_async::<String>(&mut requests);
        let claim = claimed_epoch(&timeout(DETACHED_TIMEOUT, claim).await??)?;
        // After this server has answered us, another node has to say that it is still a master. A
        // server that hung while its replica took over does not know that when it comes back.
        let refresh = timeout(DETACHED_TIMEOUT, self.refresh_rounds.next()).await?;
        let objection = if !refresh.confirms(&self.address) {
            "no other node of the cluster answers"
        } else if self.slots.is_empty() {
            "its slots belong to another node"
        } else if self.claimed_epoch.load(Ordering::Acquire) > claim {
            "the master has taken over slots"
        } else {
            return Ok(claim);
        };
        Err(StoreError::Unusable(objection.into()))
    }
}

/// Topology refreshes, one after the other.
#[derive(Default)]
pub(super) struct RefreshRounds {
    /// Notified when a refresh is wanted.
    pub(super) wanted: Notify,
    /// Number of refreshes that have begun.
    begun: AtomicU64,
    latest: watch::Sender<RefreshResult>,
}

/// The result of a refresh, apart from the map itself.
#[derive(Clone, Default)]
pub(super) struct RefreshResult {
    number: u64,
    /// The nodes that answered.
    witnesses: Arc<[NodeAddress]>,
    /// Whether there is no other node that could have answered.
    is_alone: bool,
}

impl RefreshRounds {
    /// Waits for a refresh that begins after now. By then the map is up to date.
    pub(super) async fn next(&self) -> RefreshResult {
        let mut learned = self.latest.subscribe();
        let next = self.begun.load(Ordering::SeqCst) + 1;
        self.wanted.notify_one();
        let refresh = learned.wait_for(|refresh| refresh.number >= next).await;
        // Cannot fail: `self` holds the sender.
        refresh.map(|refresh| refresh.clone()).unwrap_or_default()
    }

    /// Begins a refresh and returns its number.
    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Ends a refresh, after the map was updated. A refresh that no node answered does not end.
    pub(super) fn end(&self, number: u64, witnesses: Arc<[NodeAddress]>, is_alone: bool) {
        self.latest.send_replace(RefreshResult { number, witnesses, is_alone });
    }
}

impl RefreshResult {
    /// Whether a node other than this one has answered, or this node if there is no other.
    pub(super) fn confirms(&self, node: &NodeAddress) -> bool {
        self.witnesses.iter().any(|witness| witness != node)
            || self.is_alone && self.witnesses.contains(node)
    }
}
