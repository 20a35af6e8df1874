//! `jobcache check`: is the configuration right, and is there anybody behind it?
//!
//! Whether Redis and the upstream answer, and what is to be warmed can be read, is information, and not
//! part of the verdict unless that is asked for (`--strict`): jobcache starts without any of them.

use std::{
    fmt::{Display, Write as _},
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jobcache::{
    RunError,
    config::{Config, LoadedConfig, StoreUrl},
    store::{self, StoreError},
    tls,
    upstream::Upstream,
    warm::probe,
};
use tokio::time::{error::Elapsed, timeout};

use super::CheckVerdict;
use crate::Failure;

/// For each of the two; generous, as a person waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Of what is as it should be.
const REACHABLE: &str = "reachable";

/// What a strict check has found wrong, in one word each.
#[derive(Debug, thiserror::Error)]
#[error("not everything can be reached: {}", .0.join(", "))]
pub(crate) struct Unreachable(Vec<&'static str>);

/// Prints what was loaded and who can be reached.
pub(crate) async fn run(loaded: &LoadedConfig, verdict: CheckVerdict) -> Result<(), Failure> {
    tls::verify(&loaded.config).map_err(RunError::Tls)?;
    let missing = print(loaded).await?;
    if missing.is_empty() || verdict == CheckVerdict::Configuration {
        return Ok(());
    }
    Err(Failure::Unreachable(Unreachable(missing)))
}

/// Returns what is not as it should be.
async fn print(loaded: &LoadedConfig) -> io::Result<Vec<&'static str>> {
    let mut out =
        String::from("# The configuration is valid. Values without a comment are defaults.\n");
    out.push_str(&loaded.to_toml());
    for warning in &loaded.warnings {
        let _ = write!(out, "\nwarning: {warning}");
    }
    let config = &loaded.config;
    let (store, upstream, list) = tokio::join!(store(config), upstream(config), warm_list(config));
    let mut missing = Vec::new();
    let mut tell = |what: &'static str, name: String, (found, is_well): Found| {
        let _ = write!(out, "\n# {what:<9} {name}: {found}");
        missing.extend((!is_well).then_some(what));
    };
    tell("store", config.store.url.to_string(), store);
    tell("upstream", config.upstream.url.clone(), upstream);
    if let Some(path) = &config.warm.file {
        tell("warm.file", path.display().to_string(), warm_file(path));
    }
    if let (Some(target), Some(list)) = (&config.warm.list, list) {
        tell("warm.list", target.to_string(), list);
    }
    out.push('\n');
    // All at once: a reader that stops early (`| head`) is no error of ours.
    match io::stdout().write_all(out.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(missing),
    }
}

/// What there is to say, and whether that is as it should be.
type Found = (String, bool);

fn warm_file(path: &Path) -> Found {
    of(probe::file(path))
}

/// The list as it is read at the start.
async fn warm_list(config: &Config) -> Option<Found> {
    config.warm.list.as_ref()?;
    let read = timeout(PATIENCE, probe::list(config)).await;
    Some(read.map_or_else(|elapsed| told::<io::Error>(Err(elapsed)), of))
}

fn of(read: Result<String, String>) -> Found {
    match read {
        Ok(text) => (text, true),
        Err(why) => (why, false),
    }
}

/// As the sidecar itself connects, TLS included.
async fn upstream(config: &Config) -> Found {
    let upstream = match Upstream::new(config, Arc::default()) {
        Ok(upstream) => upstream,
        Err(error) => return (format!("cannot be used: {error}"), false),
    };
    told(timeout(PATIENCE, upstream.probe()).await.map(|made| made.map(|()| REACHABLE.into())))
}

/// Likewise, by way of sentinels if need be: who answers must be a master of a version that will do.
async fn store(config: &Config) -> Found {
    if config.store.url == StoreUrl::Memory {
        return ("in this process".to_owned(), true);
    }
    match timeout(PATIENCE, store::probe(config)).await {
        Ok(Err(StoreError::Refused(error))) => {
            (format!("reachable, but it refuses us: {error}"), false)
        }
        probed => told(probed.map(|made| made.map(|()| REACHABLE.into()))),
    }
}

fn told<E: Display>(outcome: Result<Result<String, E>, Elapsed>) -> Found {
    match outcome {
        Ok(Ok(text)) => {
            let is_well = text == REACHABLE;
            (text, is_well)
        }
        Ok(Err(error)) => (format!("not reachable: {error}"), false),
        Err(_) => (format!("not reachable: no answer within {}s", PATIENCE.as_secs()), false),
    }
}
