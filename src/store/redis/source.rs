//! Where the master is: at one address for good, or wherever sentinels say.

use std::{future, sync::Arc};

use super::{connect::Target, sentinel::Watch};
use crate::{
    config::{Config, StoreUrl},
    metrics::Metrics,
    store::StoreError,
};

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

    /// Fails if the master is another one than `target` by now.
    pub(super) async fn confirm(&self, target: &Target) -> Result<(), StoreError> {
        match self {
            Self::Fixed(_) => Ok(()),
            Self::Sentinels(watch) => watch.confirm(target).await,
        }
    }

    /// Returns once the master is another one than `target`.
    pub(super) async fn moved(&self, target: &Target) -> StoreError {
        match self {
            Self::Fixed(_) => future::pending().await,
            Self::Sentinels(watch) => watch.moved(target).await,
        }
    }
}
