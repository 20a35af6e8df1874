//! Checks that the sources of warming can be read, for `jobcache check`, which warms nothing.

use std::{path::Path, sync::Arc};

use super::{
    ids,
    sources::{MAX_LIST, headers, listed},
};
use crate::{
    cache::Cache,
    config::{Config, StoreUrl},
    observe::metrics::Registry,
    proxy::Proxy,
    run_error::RunError,
    semantics::route::Routes,
    upstream::Upstream,
};

/// Describes the ids in a file. The error says what is wrong with it.
pub fn file(path: &Path) -> Result<String, String> {
    let found = ids::in_file(path, MAX_LIST).map_err(|error| format!("cannot be read: {error}"))?;
    describe(&found, "use a file with one id per line")
}

/// Describes the ids in the list, which is fetched from the upstream as at startup.
pub async fn list(config: &Config) -> Result<String, String> {
    let Some(target) = &config.warm.list else { return Ok("is not set".to_owned()) };
    let proxy = probe_proxy(config).map_err(|error| error.to_string())?;
    let found = listed(&proxy, target, &headers(config), &config.warm).await;
    let remedy = format!("warm.pointer = \"{}\" must lead to ids", config.warm.pointer);
    describe(&found.map_err(|error| error.to_string())?, &remedy)
}

fn describe(found: &ids::FoundIds, remedy: &str) -> Result<String, String> {
    let jobs = found.jobs.len();
    match &found.first_unreadable {
        Some(first) => {
            let count = found.unreadable;
            Err(format!("has {jobs} ids and {count} invalid ones ({first}); {remedy}"))
        }
        None if jobs == 0 => Err(format!("has no ids; {remedy}")),
        None => Ok(format!("has {jobs} ids")),
    }
}

/// Builds a proxy that asks the upstream and stores nothing.
fn probe_proxy(config: &Config) -> Result<Proxy, RunError> {
    let mut config = config.clone();
    config.store.url = StoreUrl::Memory;
    let registry = &mut Registry::default();
    let routes = Arc::new(Routes::new(&config.routes, &config.invalidate, &config.query)?);
    let upstream = Upstream::new(&config, registry, Arc::default())?;
    let cache = Arc::new(Cache::open(&config, registry, Arc::default())?);
    Ok(Proxy::new(routes, cache, upstream, &config, registry))
}
