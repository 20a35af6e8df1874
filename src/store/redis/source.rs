//! Where the master is: at one address for good, or wherever sentinels say.

use std::{future, sync::Arc};

use super::{connect::Target, sentinel::Watch};
use crate::{
    config::{Config, StoreUrl},
    metrics::Metrics,
    store::{Epoch, StoreError},
};

/// The time for which a server is master: the config epoch of the sentinels under which it was made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reign(u64);

impl Reign {
    /// The epoch of what a server holds in this reign.
    pub(super) fn epoch(self, server: &Epoch) -> Epoch {
        Epoch(format!("{}-{}", server.as_str(), self.0).into())
    }
}

/// Who knows where the master is.
#[derive(Debug)]
pub(super) enum Source {
    /// The URL.
    Fixed(Target),
    /// Sentinels.
    Sentinels(Watch),
}

impl Source {
    /// Checks the URL; asks nobody yet.
    pub(super) fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StoreError> {
        match &config.store.url {
            StoreUrl::Redis(url) => Target::parse(url, config, metrics).map(Self::Fixed),
            StoreUrl::Sentinel(sentinels) => {
                Watch::new(sentinels, config, metrics).map(Self::Sentinels)
            }
            StoreUrl::Memory | StoreUrl::Cluster(_) => {
                Err(StoreError::Refused("this is not one server".into()))
            }
        }
    }

    /// The master, as far as is known.
    pub(super) async fn target(&self) -> Result<Target, StoreError> {
        match self {
            Self::Fixed(target) => Ok(target.clone()),
            Self::Sentinels(watch) => watch.master().await,
        }
    }

    /// The reign of a master that has answered; fails if it is another one by now.
    pub(super) async fn confirm(&self, target: &Target) -> Result<Option<Reign>, StoreError> {
        match self {
            Self::Fixed(_) => Ok(None),
            Self::Sentinels(watch) => watch.confirm(target).await.map(Reign).map(Some),
        }
    }

    /// Whether what the master holds is to be purged before it is used; asked once.
    pub(super) fn is_behind(&self) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Sentinels(watch) => watch.is_behind(),
        }
    }

    /// Returns once the master is another one than `target`, or the same in another reign.
    pub(super) async fn moved(&self, target: &Target, reign: Option<Reign>) -> StoreError {
        match (self, reign) {
            (Self::Sentinels(watch), Some(Reign(epoch))) => watch.moved(target, epoch).await,
            _ => future::pending().await,
        }
    }
}
