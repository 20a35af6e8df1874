//! Whether what is to be warmed can be read: at the start, and by `jobcache check`, which warms nothing.

use std::{path::Path, sync::Arc};

use hyper::{HeaderMap, Uri};
use tokio::task::spawn_blocking;

use super::{MAX_LIST, headers, ids};
use crate::{
    RunError,
    cache::Cache,
    config::{self, Config, StoreUrl},
    limits::Room,
    metrics::{Limit, Metrics},
    proxy::{Proxy, Unlisted, route::Routes},
    upstream::Upstream,
};

/// Why there are no jobs of a list.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// There is no list.
    #[error(transparent)]
    Unlisted(#[from] Unlisted),
    /// It is no JSON.
    #[error("its answer is not JSON: {0}; look at warm.list and at Accept in warm.headers")]
    NotJson(#[from] serde_json::Error),
    /// We are told to stop.
    #[error("there was no time to read it")]
    Stopped,
}

impl Unread {
    /// Whether there is somebody who answers.
    pub(super) fn is_an_answer(&self) -> bool {
        match self {
            Self::Unlisted(Unlisted::Status(status)) => !status.is_server_error(),
            Self::Unlisted(Unlisted::Upstream(_) | Unlisted::Broken(_)) | Self::Stopped => false,
            Self::Unlisted(Unlisted::Encoded | Unlisted::TooLarge(_)) | Self::NotJson(_) => true,
        }
    }
}

/// Reads the list once.
pub(super) async fn listed(
    proxy: &Proxy,
    target: &Uri,
    headers: &HeaderMap,
    config: &config::WarmConfig,
) -> Result<ids::Found, Unread> {
    let body = proxy.list(target, headers, MAX_LIST).await?;
    let pointer = config.pointer.clone();
    let read = spawn_blocking(move || ids::in_json(&body, &pointer)).await;
    Ok(read.map_err(|_| Unread::Stopped)??)
}

/// What a file of ids holds, in words; the error says what is wrong with it.
pub fn file(path: &Path) -> Result<String, String> {
    let found = ids::in_file(path, MAX_LIST).map_err(|error| format!("cannot be read: {error}"))?;
    told(&found, "name a file of ids, one a line")
}

/// The same of the list, asked of the upstream as at the start.
pub async fn list(config: &Config) -> Result<String, String> {
    let Some(target) = &config.warm.list else { return Ok("is not set".to_owned()) };
    let proxy = proxy(config).map_err(|error| error.to_string())?;
    let found = listed(&proxy, target, &headers(config), &config.warm).await;
    let mend = format!("let warm.pointer = \"{}\" lead to ids", config.warm.pointer);
    told(&found.map_err(|error| error.to_string())?, &mend)
}

fn told(found: &ids::Found, mend: &str) -> Result<String, String> {
    let jobs = found.jobs.len();
    match &found.first_unreadable {
        Some(first) => {
            let count = found.unreadable;
            Err(format!("has {jobs} ids, and {count} that are none ({first}); {mend}"))
        }
        None if jobs == 0 => Err(format!("has no ids; {mend}")),
        None => Ok(format!("has {jobs} ids")),
    }
}

/// One that asks the upstream and stores nothing.
fn proxy(config: &Config) -> Result<Proxy, RunError> {
    let mut config = config.clone();
    config.store.url = StoreUrl::Memory;
    let metrics = Arc::new(Metrics::default());
    let limits = &metrics.limits;
    let met = limits.counter(Limit::Inspected).clone();
    let room = Room::new(config.max_inspected, limits.inspected.clone(), met);
    let routes = Arc::new(Routes::configured::<RunError>(&config)?);
    let upstream = Upstream::new(&config, Arc::clone(&metrics))?;
    let cache = Arc::new(Cache::open(&config, Arc::clone(&metrics))?);
    Ok(Proxy::new(routes, cache, upstream, room, &config, metrics))
}
