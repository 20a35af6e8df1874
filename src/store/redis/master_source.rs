//! Where a master comes from: it is named by the URL, by sentinels, or by the other nodes of its
//! cluster. What differs between the three is here; the rest of the shard is the same.

use std::{future, sync::atomic::Ordering};

use super::{
    cluster_member::ClusterMember,
    dial::{RedisConnection, Target},
    sentinel::{SentinelWatch, Term},
    server_info::ServerInfo,
    tracking::question::Question,
};
use crate::{
    config::{Config, StoreUrl},
    store::{
        errors::{Redirect, StoreError},
        redis::cluster::metrics::ClusterMetrics,
        words::Epoch,
    },
    tls::TlsMetrics,
};

/// Where a master comes from.
#[derive(Debug)]
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
    pub(super) fn new(config: &Config, metrics: &TlsMetrics) -> Result<Self, StoreError> {
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
    pub(super) async fn target(&self) -> Result<Target, StoreError> {
        match self {
            Self::Fixed(target) => Ok(target.clone()),
            Self::Sentinels(watch) => watch.master().await,
            Self::Cluster(member) => Ok(member.target.clone()),
        }
    }

    /// The epoch of the data on a master that has answered, and its term. Fails if another server
    /// is the master by now.
    pub(super) async fn epoch(
        &self,
        target: &Target,
        connection: &mut RedisConnection,
        info: &ServerInfo,
    ) -> Result<(Epoch, Option<Term>), StoreError> {
        match self {
            Self::Fixed(_) => Ok((info.epoch(), None)),
            Self::Sentinels(watch) => {
                let term = watch.confirm(target).await?;
                Ok((term.epoch(&info.epoch()), Some(term)))
            }
            Self::Cluster(member) => Ok((member.epoch(connection, info).await?, None)),
        }
    }

    /// Whether the entries of the master must be purged before use. Resets the flag.
    pub(super) fn take_behind(&self) -> bool {
        matches!(self, Self::Sentinels(watch) if watch.take_behind())
    }

    /// Returns once the master is another server than `target`, or the same one in another term.
    pub(super) async fn moved(&self, target: &Target, term: Option<Term>) -> StoreError {
        match (self, term) {
            (Self::Sentinels(watch), Some(term)) => watch.moved(target, term).await,
            _ => future::pending().await,
        }
    }

    /// Whether the master is one of several.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// The name of the mark of the epoch, in a slot of this server; `None` if it has no slot.
    pub(super) fn epoch_mark(&self, prefix: &str) -> Option<String> {
        match self {
            Self::Cluster(member) => member.slots.name(prefix, "epoch", 0),
            _ => Some(format!("{{{prefix}}}:epoch")),
        }
    }

    /// The epoch as it is marked: without the config epoch of a cluster, which also changes with
    /// every slot that a master takes in.
    pub(super) fn marked_epoch<'e>(&self, epoch: &'e Epoch) -> &'e str {
        let whole = epoch.as_str();
        let server = whole.rsplit_once('-').filter(|_| self.is_cluster());
        server.map_or(whole, |(server, _)| server)
    }

    /// The question of a barrier round.
    pub(super) fn question(&self, prefix: &str, info: &ServerInfo) -> Result<Question, StoreError> {
        let Self::Cluster(member) = self else { return Ok(Question::ping()) };
        info.check_slots_move_by_key()?;
        Question::keyed(&member.slots, prefix)
            .ok_or_else(|| StoreError::Unusable("the master owns no slot".into()))
    }

    /// Counts a redirect, and requests a topology refresh if the slot map may be out of date.
    pub(super) fn observe(&self, redirect: &Redirect, metrics: &ClusterMetrics) {
        let Self::Cluster(member) = self else { return };
        metrics.redirections.inc([redirect.as_str()]);
        if matches!(redirect, Redirect::Moved | Redirect::Down) {
            member.refresh_rounds.request();
        }
    }

    /// Records the config epoch in which other nodes say that a master claims its slots.
    pub(super) fn raise_claim(&self, epoch: u64) {
        if let Self::Cluster(member) = self {
            member.claimed_epoch.fetch_max(epoch, Ordering::AcqRel);
        }
    }
}
