//! Address of the master: fixed, or reported by sentinels.

use std::{future, sync::Arc};

use super::{dial::Target, sentinel::SentinelWatch};
use crate::{
    config::{Config, StoreUrl},
    observe::metrics::Metrics,
    store::{Epoch, StoreError},
};

/// The time for which a server is master: the config epoch of the sentinels in which it was
/// promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term(u64);

impl Term {
    /// The epoch of the data on a server in this term.
    pub(super) fn epoch(self, server: &Epoch) -> Epoch {
        Epoch(format!("{}-{}", server.as_str(), self.0).into())
    }
}

/// Where the address of the master comes from.
#[derive(Debug)]
pub(super) enum MasterSource {
    /// The URL.
    Fixed(Target),
    /// Sentinels.
    Sentinels(SentinelWatch),
}

impl MasterSource {
    /// Checks the URL; connects to nothing yet.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StoreError> {
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
        }
    }

    /// The term of a master that has answered. Fails if another server is the master by now.
    pub(super) async fn confirm(&self, target: &Target) -> Result<Option<Term>, StoreError> {
        match self {
            Self::Fixed(_) => Ok(None),
            Self::Sentinels(watch) => watch.confirm(target).await.map(Term).map(Some),
        }
    }

    /// Whether the entries of the master must be purged before use. Resets the flag.
    pub(super) fn take_behind(&self) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Sentinels(watch) => watch.take_behind(),
        }
    }

    /// Returns once the master is another server than `target`, or the same one in another term.
    pub(super) async fn moved(&self, target: &Target, term: Option<Term>) -> StoreError {
        match (self, term) {
            (Self::Sentinels(watch), Some(Term(epoch))) => watch.moved(target, epoch).await,
            _ => future::pending().await,
        }
    }
}
