//! `jobcache check`: validates the configuration, prints it, and tries everything that it names.
//!
//! Whether Redis and the API answer, and whether the sources of cache warming can be read, is only
//! information and does not decide the exit code unless `--strict` asks for that: jobcache starts without
//! any of them.

use std::{
    collections::BTreeSet,
    fmt::{Display, Write as _},
    io::{self, Write as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jobcache::{
    RunError,
    config::{Config, LoadedConfig, StoreUrl},
    observe::metrics::Registry,
    store::{self, RecordMismatch, StoreError},
    tls,
    upstream::Upstream,
    warm::sources::{probe_file, probe_list},
};
use tokio::time::{error::Elapsed, timeout};

use super::CheckVerdict;
use crate::Failure;

/// For each attempt. It is generous, because a person waits for the result.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Text for everything that works.
const REACHABLE: &str = "reachable";

/// Keywords of everything that a strict check could not reach.
#[derive(Debug, thiserror::Error)]
#[error("not everything can be reached: {}", .0.join(", "))]
pub(crate) struct Unreachable(Vec<&'static str>);

/// Prints the loaded configuration, and what can be reached.
pub(crate) async fn run(loaded: &LoadedConfig, verdict: CheckVerdict) -> Result<(), Failure> {
    tls::verify(&loaded.config).map_err(RunError::Tls)?;
    let missing = print(loaded).await?;
    if missing.is_empty() || verdict == CheckVerdict::Configuration {
        return Ok(());
    }
    Err(Failure::Unreachable(Unreachable(missing)))
}

/// Returns keywords of everything that could not be reached.
async fn print(loaded: &LoadedConfig) -> io::Result<Vec<&'static str>> {
    let mut out =
        String::from("# The configuration is valid. Values without a comment are defaults.\n");
    out.push_str(&loaded.to_toml());
    for warning in &loaded.warnings {
        let _ = write!(out, "\nwarning: {warning}");
    }
    let config = &loaded.config;
    let ((store, mismatches), upstream, list) =
        tokio::join!(store(config), upstream(config), warm_list(config));
    let mismatches: BTreeSet<String> = mismatches.iter().map(ToString::to_string).collect();
    for mismatch in &mismatches {
        let _ = write!(out, "\nwarning: {mismatch}");
    }
    let mut missing = Vec::new();
    let mut report = |what: &'static str, name: String, Finding { text, is_reachable }: Finding| {
        let _ = write!(out, "\n# {what:<9} {name}: {text}");
        missing.extend((!is_reachable).then_some(what));
    };
    report("store", config.store.url.to_string(), store);
    report("upstream", config.upstream.url.clone(), upstream);
    if let Some(path) = &config.warm.file {
        report("warm.file", path.display().to_string(), warm_file(path));
    }
    if let (Some(target), Some(list)) = (&config.warm.list, list) {
        report("warm.list", target.to_string(), list);
    }
    out.push('\n');
    // At once: a reader that stops early (`| head`) is not an error.
    match io::stdout().write_all(out.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(missing),
    }
}

/// Result of an attempt.
struct Finding {
    text: String,
    is_reachable: bool,
}

fn warm_file(path: &Path) -> Finding {
    probed(probe_file(path))
}

/// Reads the list as it is read at the start.
async fn warm_list(config: &Config) -> Option<Finding> {
    config.warm.list.as_ref()?;
    let read = timeout(TIMEOUT, probe_list(config)).await;
    Some(read.map_or_else(|elapsed| connected::<io::Error>(Err(elapsed)), probed))
}

fn probed(read: Result<String, String>) -> Finding {
    let is_reachable = read.is_ok();
    let (Ok(text) | Err(text)) = read;
    Finding { text, is_reachable }
}

/// Connects as the sidecar itself does, TLS included.
async fn upstream(config: &Config) -> Finding {
    let upstream = match Upstream::new(config, &mut Registry::default(), Arc::default()) {
        Ok(upstream) => upstream,
        Err(error) => return probed(Err(format!("cannot be used: {error}"))),
    };
    connected(timeout(TIMEOUT, upstream.probe()).await.map(|made| made.map(|()| REACHABLE.into())))
}

/// Connects likewise, through sentinels if there are any. The server must be a master of a supported
/// version. Also returns how other sidecars are configured differently.
async fn store(config: &Config) -> (Finding, Vec<RecordMismatch>) {
    if config.store.url == StoreUrl::Memory {
        return (probed(Ok("in this process".to_owned())), Vec::new());
    }
    match timeout(TIMEOUT, store::probe(config)).await {
        Ok(Ok(mismatches)) => (probed(Ok(REACHABLE.into())), mismatches),
        Ok(Err(StoreError::Refused(error))) => {
            (probed(Err(format!("reachable, but it refuses jobcache: {error}"))), Vec::new())
        }
        Ok(Err(StoreError::Unusable(error))) => {
            (probed(Err(format!("cannot be used: {error}"))), Vec::new())
        }
        probe => (connected(probe.map(|made| made.map(|_| REACHABLE.into()))), Vec::new()),
    }
}

fn connected<E: Display>(outcome: Result<Result<String, E>, Elapsed>) -> Finding {
    probed(match outcome {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(format!("not reachable: {error}")),
        Err(_) => Err(format!("not reachable: no answer within {}s", TIMEOUT.as_secs())),
    })
}
